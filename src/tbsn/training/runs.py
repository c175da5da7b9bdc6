"""A run: a folder with its recipe, its log, its checkpoints and the weights that came of it."""

import hashlib
import json
import os
import platform
import shlex
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import torch
import yaml
from lightning_fabric import Fabric
from lightning_fabric.loggers.tensorboard import TensorBoardLogger
from lightning_fabric.utilities.exceptions import MisconfigurationException
from torch import Tensor

from tbsn import images
from tbsn.errors import InputError
from tbsn.files import atomic, remove_partial
from tbsn.network import TBSN
from tbsn.network.files import Network, build, load_network
from tbsn.settings import TeacherSettings
from tbsn.teacher import as_numpy, of_network, targets
from tbsn.training import losses
from tbsn.training.data import Crops, Photos, cached, cached_arrays, cached_folder, split
from tbsn.training.fit import computes_bf16, fit
from tbsn.training.memory import keep_freed_memory
from tbsn.training.progress import progress
from tbsn.training.recipe import DistillRecipe, FitSettings, Settings, TargetSettings, TrainRecipe

Source = Path | Sequence[np.ndarray]

SAMPLE = 256
HELD_BACK = 8
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


def train(source: Source, run: Path, recipe: TrainRecipe, start: Start) -> Network:
    """Train a blind-spot network on noisy images (TBSN, section 3.1); the result is in ``run``.

    A run that is there already, with the same recipe, goes on from its last checkpoint.
    """
    _check_multiple(recipe.fit.crop // recipe.pd, 4 * recipe.network.window, recipe.fit.crop, recipe.pd)
    fabric = open_fabric(start.device, run)
    with fabric.rank_zero_first():
        if fabric.is_global_zero:
            open_run(run, recipe, start)
        photos = open_photos(source, run, recipe.network.channels)
    return _fit(run, recipe, [photos], recipe.pd, fabric, start)


def distill(source: Source, teacher_path: Path, run: Path, recipe: DistillRecipe, start: Start) -> Network:
    """Distil a trained blind-spot network into a student on noisy images; the result is in ``run``.

    The teacher's targets are computed once and kept in the run.
    """
    _check_multiple(recipe.fit.crop, 2**recipe.network.depth, recipe.fit.crop, 1)
    bsn = load_network(teacher_path)
    if not isinstance(bsn, TBSN):
        raise InputError(teacher_path, "is a student, not a blind-spot network", "name the run of `tbsn train`")
    fabric = open_fabric(start.device, run)
    with fabric.rank_zero_first():
        if fabric.is_global_zero:
            open_run(run, recipe, start)
        photos = open_photos(source, run, recipe.network.channels, teacher_path)
        taught = _targets(bsn, photos, recipe.targets, run, fabric.device)
    return _fit(run, recipe, [photos, taught], 1, fabric, start)


def open_run(run: Path, recipe: Settings, start: Start) -> None:
    """Make the folder of a run, or check that it can go on: the same recipe, or changes that are accepted.

    Raises `InputError` that names what has changed.
    """
    file = run / "recipe.yaml"
    wanted = recipe.model_dump(mode="json")
    try:
        if file.exists():
            known = type(recipe).model_validate(yaml.safe_load(file.read_text())).model_dump(mode="json")
            changes = list(_changes(known, wanted))
            if changes and not start.accept_changes:
                raise InputError(file, f"differs from the settings asked for: {', '.join(changes)}", DIFFERENT)
        elif start.resume:
            raise InputError(run, "holds no run to go on with", "leave out --resume to begin one")
        run.mkdir(parents=True, exist_ok=True)
        remove_partial(run)
        with atomic(file) as partial:
            partial.write_text(yaml.safe_dump(wanted, sort_keys=False))
    except OSError as error:
        raise InputError(run, f"cannot write here ({error.strerror})", "choose another folder with -o") from error
    except (ValueError, yaml.YAMLError) as error:
        raise InputError(file, "is not a recipe of this kind", "choose another folder with -o") from error


def _changes(known: dict[str, Any], wanted: dict[str, Any], prefix: str = "") -> Iterator[str]:
    for key, value in wanted.items():
        before = known.get(key)
        if isinstance(value, dict):
            yield from _changes(before or {}, value, f"{prefix}{key}.")
        elif before != value:
            yield f"{prefix}{key} {before} -> {value}"


def _fit(
    run: Path, recipe: TrainRecipe | DistillRecipe, stacks: list[Photos], stride: int, fabric: Fabric, start: Start
) -> Network:
    crops, held_back = share_of_crops(stacks, recipe.fit, stride, fabric)
    network = _new_network(recipe, start.init)
    if fabric.is_global_zero:
        _record_start(run, fabric)
    loss = losses.blind_spot if isinstance(recipe, TrainRecipe) else losses.distillation
    sample = stacks[0][0][:SAMPLE, :SAMPLE]

    def watch(step: int, averaged: Network) -> None:
        denoise = as_numpy(of_network(averaged.to(fabric.device), TeacherSettings(passes=0)), fabric.device)
        denoised = images.from_float(denoise(images.to_float(sample)), sample.dtype)
        (run / "samples").mkdir(exist_ok=True)
        if sample.shape[2] in (1, 3):
            images.write(run / "samples" / f"step-{step:06}.png", np.concatenate([sample, denoised], axis=1))

    return fit(network, loss, crops, recipe.fit, run, fabric, start.max_seconds, held_back, watch)


def share_of_crops(
    stacks: list[Photos], settings: FitSettings, stride: int, fabric: Fabric
) -> tuple[Crops, list[Sequence[Tensor]]]:
    """The places of every batch that this process computes, and the batches that are held back.

    Raises `InputError` if the batch cannot be shared.
    """
    share, rest = divmod(settings.batch, fabric.world_size * settings.accumulate)
    if rest:
        parts = f"{fabric.world_size} processes x {settings.accumulate} parts"
        raise InputError(f"fit.batch={settings.batch}", f"cannot be shared by {parts}", "make it a multiple")
    share *= settings.accumulate
    places = range(fabric.global_rank * share, (fabric.global_rank + 1) * share)
    training, held_back = split(len(stacks[0]), settings.hold_back, settings.seed)
    cut = partial(Crops, stacks, crop=settings.crop, stride=stride, seed=settings.seed)
    crops = cut(places=places, augment=settings.augment, among=training)
    if not len(held_back):
        return crops, []
    seen = cut(places=range(settings.batch), augment=False, among=held_back)
    return crops, [seen[step] for step in range(HELD_BACK)]


def _new_network(recipe: TrainRecipe | DistillRecipe, init: Path | None) -> Network:
    torch.manual_seed(recipe.fit.seed)
    network = build(recipe.network)
    if init:
        first = load_network(init)
        if first.config != recipe.network:
            changes = ", ".join(_changes(first.config.model_dump(), recipe.network.model_dump()))
            raise InputError(init, f"is another network than the recipe's: {changes}", "set network.* to its values")
        network.load_state_dict(first.state_dict())
    if isinstance(network, TBSN) and isinstance(recipe, TrainRecipe):
        network.set_recompute(recipe.recompute)
    return network


def _record_start(run: Path, fabric: Fabric) -> None:
    """A line in started.jsonl: when, by which command, with what."""
    device = torch.cuda.get_device_name(fabric.device) if fabric.device.type == "cuda" else platform.processor()
    facts = {
        "time": time.strftime("%Y-%m-%d %H:%M:%S%z"),
        "command": shlex.join(["tbsn", *sys.argv[1:]]),
        "tbsn": version("tbsn"),
        "torch": torch.__version__,
        "python": platform.python_version(),
        "system": platform.platform(),
        "device": f"{fabric.device} {device}".strip(),
        "processes": fabric.world_size,
        "threads": torch.get_num_threads(),
    }
    with (run / "started.jsonl").open("a") as file:
        file.write(json.dumps(facts) + "\n")


def open_fabric(device: str, run: Path) -> Fabric:
    """One process, or as many as torchrun has started."""
    world, local = (int(os.environ.get(name, "1")) for name in ("WORLD_SIZE", "LOCAL_WORLD_SIZE"))
    spread: dict[str, Any] = {"devices": local, "num_nodes": world // local}
    if world > 1:
        spread["strategy"] = "ddp"
    logger = TensorBoardLogger(run, name="", version="tensorboard")
    try:
        fabric = Fabric(accelerator=device, loggers=logger, **spread)
    except (ValueError, RuntimeError, MisconfigurationException) as error:
        raise InputError(f"--device {device}", str(error).splitlines()[0], "use auto or cpu") from error
    fabric.launch()
    if fabric.device.type == "cpu":
        keep_freed_memory()
    return fabric


def open_photos(source: Source, run: Path, channels: int, other: Path | None = None) -> Photos:
    """The images of a folder, or arrays, decoded once: into the run, unless the run ``other`` has them."""
    others = other and other / "cache"
    if not isinstance(source, Path):
        return cached_arrays(source, run / "cache", channels, others)
    photos = cached_folder(source, run / "cache", channels, others)
    if photos.skipped:
        file = run / "skipped.txt"
        file.write_text("\n".join(photos.skipped) + "\n")
        print(f"{len(photos.skipped)} images cannot be used and are left out: see {file}", file=sys.stderr)
    return photos


def _targets(bsn: TBSN, photos: Photos, settings: TargetSettings, run: Path, device: torch.device) -> Photos:
    facts = [settings.model_dump_json(), photos.names, [float(p.detach().sum()) for p in bsn.parameters()]]
    stamp = hashlib.sha256(json.dumps(facts).encode()).hexdigest()
    bsn = bsn.to(device)
    teach = as_numpy(targets(bsn, settings.pd, settings.estimate, settings.refinements, settings.seed), device)

    def taught() -> Iterator[tuple[str, np.ndarray]]:
        with progress("target", len(photos)) as report:
            for index in range(len(photos)):
                with torch.autocast(device.type, torch.bfloat16, enabled=computes_bf16(device)):
                    target = teach(images.to_float(photos[index]))
                yield photos.names[index], images.from_float(target, np.dtype(np.uint16))
                report(index + 1, "")

    return cached(taught(), run / "targets", stamp)


def _check_multiple(side: int, multiple: int, crop: int, pd: int) -> None:
    if crop % pd or side % multiple:
        step = multiple * pd
        raise InputError(
            f"fit.crop={crop}", f"not a multiple of {step}", f"--set fit.crop={max(1, crop // step) * step}"
        )
