"""The start of a run: a new one, or one that goes on. Nothing else is at work on it, and it can be stopped."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TextIO

import yaml
from lightning_fabric import Fabric

from tbsn.errors import InputError, NoRoomError, is_out_of_memory, unwritable
from tbsn.files import atomic, remove_partial
from tbsn.noisy import SAMPLES
from tbsn.stopping import stopped_by_signal
from tbsn.training import checkpoint
from tbsn.training.processes import ended_with_others, open_fabric
from tbsn.training.recipe import DistillRecipe, FitSettings, RenoiseRecipe, TrainRecipe

try:
    import fcntl
except ImportError:  # Windows: nothing is locked there
    fcntl = None

Recipe = TrainRecipe | DistillRecipe | RenoiseRecipe

Inputs = Callable[[], dict[str, str]]

RECIPE, INPUTS, LOCK = "recipe.yaml", "inputs.yaml", "lock"
COSTLY = ("targets", "estimates")  # in a run, what was computed before the first step
KEPT = ("cache", *COSTLY, "estimates/noise", SAMPLES)
OTHER_NETWORK = "use the same network.*, or begin another run with -o"
DIFFERENT = "use the same settings, another folder with -o, or add --accept-changes"


@dataclass(frozen=True)
class Start:
    """How a run is started, this time: what the recipe does not say.

    ``resume`` refuses to begin a new run; ``accept_changes`` goes on although the recipe has changed. ``init`` is a
    model to start from. ``max_seconds`` of training in all end the run early, its schedule finished.
    """

    device: str = "auto"
    resume: bool = False
    accept_changes: bool = False
    init: Path | None = None
    max_seconds: float = float("inf")


@contextmanager
def at_work(run: Path, recipe: Recipe, start: Start, inputs: Inputs) -> Iterator[tuple[Fabric, range]]:
    """The processes of a run that is open, and the `share` of this one. ``inputs`` is called by the first alone.

    Raises `InputError` as `open_run` does, if another of the processes ended, or memory is full, and `Stopped` after
    SIGTERM or Ctrl-C.
    """
    with stopped_by_signal(run):
        fabric = open_fabric(start.device)
        places = share(recipe.fit, fabric)
        opened = open_run(run, recipe, start, inputs()) if fabric.is_global_zero else nullcontext()
        with opened, ended_with_others(run, fabric):
            try:
                yield fabric, places
            except (MemoryError, RuntimeError) as error:
                if not is_out_of_memory(error):
                    raise
                remedy = "make fit.batch or fit.crop smaller, or add --set fit.accumulate=2, and --accept-changes"
                raise NoRoomError(run, "does not fit into memory", remedy, disk=False) from error


def share(settings: FitSettings, fabric: Fabric) -> range:
    """The places of every batch that this process computes. Raises `InputError` if the batch cannot be shared."""
    each, rest = divmod(settings.batch, fabric.world_size * settings.accumulate)
    if rest:
        parts = f"{fabric.world_size} processes x {settings.accumulate} parts"
        raise InputError(f"fit.batch={settings.batch}", f"cannot be shared by {parts}", "make it a multiple")
    each *= settings.accumulate
    return range(fabric.global_rank * each, (fabric.global_rank + 1) * each)


def open_run(run: Path, recipe: Recipe, start: Start, inputs: dict[str, str]) -> TextIO:
    """Make the folder of a run, or check that it can go on: the same recipe and inputs, or changes that are accepted.

    ``inputs`` are the images and models, each in words that tell it from others. The network of a checkpoint cannot be
    changed. Raises `InputError` that names what has changed. Until the file that is returned is closed, nobody else can
    open the run.
    """
    file, used = run / RECIPE, run / INPUTS
    wanted = recipe.model_dump(mode="json")
    try:
        if file.exists():
            known = type(recipe).model_validate(yaml.safe_load(file.read_text())).model_dump(mode="json")
            found = list(changes(known, wanted))
            found += changes(yaml.safe_load(used.read_text()) if used.exists() else inputs, inputs)
            built = [change for change in found if change.startswith("network.")]
            if built and checkpoint.exists(run):
                raise InputError(file, f"its checkpoint is of another network: {', '.join(built)}", OTHER_NETWORK)
            begun = checkpoint.exists(run) or start.resume or any((run / name).exists() for name in COSTLY)
            if found and begun and not start.accept_changes:
                raise InputError(file, f"differs from the settings asked for: {', '.join(found)}", DIFFERENT)
        elif start.resume:
            raise InputError(run, "holds no run to go on with", "leave out --resume to begin one")
        run.mkdir(parents=True, exist_ok=True)
        lock = _locked(run)
        for folder in (run, *(run / name for name in KEPT)):
            remove_partial(folder)
        for path, written in ((file, wanted), (used, inputs)):
            with atomic(path) as partial:
                partial.write_text(yaml.safe_dump(written, sort_keys=False))
    except OSError as error:
        raise unwritable(run, error, "choose another folder with -o") from error
    except (ValueError, yaml.YAMLError) as error:
        raise InputError(file, "is not a recipe of this kind", "choose another folder with -o") from error
    return lock


def _locked(run: Path) -> TextIO:
    """A file in the run, locked until it is closed, by the end of this process at the latest."""
    lock = (run / LOCK).open("w")
    try:
        if fcntl:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError as error:
        lock.close()
        remedy = "wait until it has ended, or choose another folder with -o"
        raise InputError(run, "another process is at work on this run", remedy) from error
    return lock


def changes(known: dict[str, Any], wanted: dict[str, Any], prefix: str = "") -> Iterator[str]:
    """What is wanted and not so known, each in words."""
    for key, value in wanted.items():
        before = known.get(key)
        if isinstance(value, dict):
            yield from changes(before or {}, value, f"{prefix}{key}.")
        elif before != value:
            yield f"{prefix}{key} {before} -> {value}"
