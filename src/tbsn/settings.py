"""Settings that more than one floor speaks of."""

from dataclasses import dataclass
from pathlib import Path

from tbsn.errors import InputError

STRIDE, PASSES = 2, 8


@dataclass(frozen=True)
class TeacherSettings:
    """How a blind-spot network denoises (TBSN, section 3.4): PD stride, R3 passes and probability.

    The ``stride`` is the network's own if not given, as a rule STRIDE; the ``passes`` are PASSES, or none at stride 1,
    which leaves nothing for R3 to mend. ``passes`` 0 leaves R3 out; 1 with ``probability`` 0 is the paper's target for
    distillation. ``seed`` fixes the masks of R3.

    A `HalfPlane` has a ``hole`` instead of PD and R3: the radius of the square that it does not see, its own if not
    given. A student has no use for any of them.
    """

    stride: int | None = None
    passes: int | None = None
    probability: float = 0.16
    hole: int | None = None
    seed: int = 0

    def only(self, model: Path, *known: str) -> None:
        """Raises `InputError` if more is given than what is ``known`` to a kind of model."""
        options = {"stride": "--pd", "passes": "--passes", "hole": "--hole"}
        given = [name for key, name in options.items() if key not in known and getattr(self, key) is not None]
        if given:
            raise InputError(model, f"has no use for {', '.join(given)}", "leave that out")
