"""A run: a folder with its recipe, its log, its checkpoints and the weights that came of it."""

import hashlib
import json
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch
import yaml
from lightning_fabric import Fabric
from lightning_fabric.utilities.exceptions import MisconfigurationException
from rich.console import Console
from rich.progress import track

from tbsn import images
from tbsn.errors import InputError
from tbsn.network import TBSN
from tbsn.network.files import Network, build, load_network
from tbsn.teacher import as_numpy, targets
from tbsn.training import losses
from tbsn.training.data import Crops, Photos, cached, cached_folder
from tbsn.training.fit import computes_bf16, fit
from tbsn.training.recipe import DistillRecipe, Settings, TargetSettings, TrainRecipe


def train(folder: Path, run: Path, recipe: TrainRecipe, resume: bool = False, device: str = "auto") -> Network:
    """Train a blind-spot network on a folder of noisy images (TBSN, section 3.1); the result is in ``run``."""
    _check_multiple(recipe.fit.crop // recipe.pd, 4 * recipe.network.window, recipe.fit.crop, recipe.pd)
    open_run(run, recipe, resume)
    fabric = _fabric(device)
    photos = _photos(folder, run, recipe.network.channels)
    return _fit(run, recipe, [photos], recipe.pd, fabric)


def distill(
    folder: Path, teacher_path: Path, run: Path, recipe: DistillRecipe, resume: bool = False, device: str = "auto"
) -> Network:
    """Distil a trained blind-spot network into a student on a folder of noisy images; the result is in ``run``.

    The teacher's targets are computed once and kept in the run.
    """
    _check_multiple(recipe.fit.crop, 2**recipe.network.depth, recipe.fit.crop, 1)
    bsn = load_network(teacher_path)
    if not isinstance(bsn, TBSN):
        raise InputError(teacher_path, "is a student, not a blind-spot network", "name the run of `tbsn train`")
    open_run(run, recipe, resume)
    fabric = _fabric(device)
    photos = _photos(folder, run, recipe.network.channels)
    taught = _targets(bsn, photos, recipe.targets, run, fabric.device)
    return _fit(run, recipe, [photos, taught], 1, fabric)


def open_run(run: Path, recipe: Settings, resume: bool) -> None:
    """Make the folder of a run, or check that it can be resumed: same recipe, and asked for."""
    file = run / "recipe.yaml"
    resolved = yaml.safe_dump(recipe.model_dump(mode="json"), sort_keys=False)
    if file.exists():
        if not resume:
            raise InputError(run, "holds a run already", "add --resume to go on, or choose another folder with -o")
        if file.read_text() != resolved:
            raise InputError(file, "differs from the recipe asked for", "resume with the same settings")
        return
    try:
        run.mkdir(parents=True, exist_ok=True)
        file.write_text(resolved)
    except OSError as error:
        raise InputError(run, f"cannot write here ({error.strerror})", "choose another folder with -o") from error


def _fit(run: Path, recipe: TrainRecipe | DistillRecipe, stacks: list[Photos], stride: int, fabric: Fabric) -> Network:
    settings = recipe.fit
    crops = Crops(
        stacks,
        crop=settings.crop,
        batch=settings.batch,
        stride=stride,
        augment=settings.augment,
        seed=settings.seed,
        rank=fabric.global_rank,
    )
    torch.manual_seed(settings.seed)
    network = build(recipe.network)
    loss = losses.blind_spot if isinstance(recipe, TrainRecipe) else losses.distillation
    return fit(network, loss, crops, settings, run, fabric)


def _fabric(device: str) -> Fabric:
    try:
        fabric = Fabric(accelerator=device, devices=1)
    except (ValueError, RuntimeError, MisconfigurationException) as error:
        raise InputError(f"--device {device}", str(error).splitlines()[0], "use auto or cpu") from error
    fabric.launch()
    return fabric


def _photos(folder: Path, run: Path, channels: int) -> Photos:
    photos = cached_folder(folder, run / "cache", channels)
    if photos.skipped:
        (run / "skipped.txt").write_text("\n".join(photos.skipped) + "\n")
    return photos


def _targets(bsn: TBSN, photos: Photos, settings: TargetSettings, run: Path, device: torch.device) -> Photos:
    facts = [settings.model_dump_json(), photos.names, [float(p.detach().sum()) for p in bsn.parameters()]]
    stamp = hashlib.sha256(json.dumps(facts).encode()).hexdigest()
    bsn = bsn.to(device)
    teach = targets(bsn, settings.pd, settings.estimate, settings.refinements, settings.seed)
    teach_numpy = as_numpy(teach, device)

    def taught() -> Iterator[tuple[str, np.ndarray]]:
        console = Console(stderr=True)
        for index in track(range(len(photos)), description="targets", console=console):
            with torch.autocast(device.type, torch.bfloat16, enabled=computes_bf16(device)):
                target = teach_numpy(images.to_float(photos[index]))
            yield photos.names[index], images.from_float(target, np.dtype(np.uint16))

    return cached(taught(), run / "targets", stamp)


def _check_multiple(side: int, multiple: int, crop: int, pd: int) -> None:
    if crop % pd or side % multiple:
        step = multiple * pd
        raise InputError(
            f"fit.crop={crop}", f"not a multiple of {step}", f"--set fit.crop={max(1, crop // step) * step}"
        )
