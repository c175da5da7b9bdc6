"""Settings that more than one floor speaks of."""

from dataclasses import dataclass


@dataclass(frozen=True)
class TeacherSettings:
    """How a blind-spot network denoises (TBSN, section 3.4): PD stride, R3 passes and probability, self-ensemble.

    A `HalfPlane` has a ``hole`` instead of PD and R3: the radius of the square that it does not see, its own if not
    given.

    ``passes`` 0 leaves R3 out; 1 with ``probability`` 0 is the paper's target for distillation. ``seed`` fixes the
    masks of R3. A student has no use for them.
    """

    stride: int = 2
    passes: int = 8
    probability: float = 0.16
    ensemble: bool = False
    hole: int | None = None
    seed: int = 0
