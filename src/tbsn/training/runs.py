"""A run: a folder with its recipe, its log, its checkpoints and the weights that came of it."""

import hashlib
import itertools
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path

import numpy as np
import torch
from lightning_fabric import Fabric
from torch import Tensor

from tbsn import images
from tbsn.denoiser import find, load
from tbsn.encoding import write
from tbsn.errors import InputError
from tbsn.lines import warn
from tbsn.network import TBSN
from tbsn.network.files import MODEL, Network, Student, build, load_network
from tbsn.noisy import SAMPLES
from tbsn.settings import TeacherSettings
from tbsn.teacher import BlindNetwork, as_numpy, of_network
from tbsn.training import kept, losses
from tbsn.training.data import Crops, Renoised, split
from tbsn.training.decoded import cached_arrays, cached_folder
from tbsn.training.fit import Loss, fit, precision
from tbsn.training.photos import Photos, facts
from tbsn.training.processes import made_by_first, record_start
from tbsn.training.recipe import DistillRecipe, FitSettings, RenoiseRecipe, TrainRecipe
from tbsn.training.start import Recipe, Start, at_work, changes

Source = Path | Sequence[Path] | Sequence[np.ndarray]  # a folder or file, files, or arrays

SAMPLE = 256
HELD_BACK = 8, 16  # rounds of crops: as many and the same for every size of a batch


def train(source: Source, run: Path, recipe: TrainRecipe, start: Start) -> Network:
    """Train a blind-spot network on noisy images (TBSN, section 3.1); the result is in ``run``.

    A run that is there already, with the same recipe, goes on from its last checkpoint.
    """
    check(recipe, start)
    if recipe.network.kind == "TBSN":
        recipe = recipe.with_pd(recipe.pd)  # the network's own stride may be larger
    with at_work(run, recipe, start, lambda: _inputs(source, start)) as (fabric, places):
        photos = made_by_first(fabric, lambda: open_photos(source, run, recipe.network.channels, recipe.fit.crop))
        cut = partial(Crops, [photos], stride=recipe.pd)
        return _fit(run, recipe, losses.blind_spot, cut, photos, places, fabric, start)


def distill(source: Source, teachers: Sequence[Path], run: Path, recipe: DistillRecipe, start: Start) -> Network:
    """Distil one or more trained blind-spot networks into a student on noisy images; the result is in ``run``.

    The teachers' targets are computed once and kept in the run.
    """
    check(recipe, start)
    networks = [_blind_network(path, recipe.network.channels) for path in teachers]
    channels, crop = recipe.network.channels, recipe.fit.crop
    with at_work(run, recipe, start, lambda: _inputs(source, start, teachers)) as (fabric, places):
        photos = made_by_first(fabric, lambda: open_photos(source, run, channels, crop, teachers[0]))
        taught = made_by_first(fabric, lambda: kept.targets(networks, photos, recipe.targets, run, fabric.device))
        cut = partial(Crops, [photos, taught])
        return _fit(run, recipe, losses.distillation, cut, photos, places, fabric, start)


def renoise(source: Source, models: Sequence[str | Path], run: Path, recipe: RenoiseRecipe, start: Start) -> Network:
    """Train a student on what denoisers make of noisy images, with noise like theirs added to it.

    ``models`` are any that `tbsn.load` takes; the mean of what they make of the images is computed once and kept in the
    run.
    """
    check(recipe, start)
    known = [load(model, strength=1, device="cpu") for model in models]
    channels, crop = recipe.network.channels, recipe.fit.crop
    # A teacher that attends to all of an image takes too long for that.
    denoiser = kept.mean_of([one.self_ensemble() if one.local else one for one in known])
    weights = b"".join(map(_weights, models))
    how = recipe.pairs
    students = list(map(_student, models)) if recipe.ensemble else []
    loss = losses.ensembled(students, recipe.ensemble) if students else losses.renoised
    for student in students:
        if crop % student.multiple:
            remedy = f"--set fit.crop={max(1, crop // student.multiple) * student.multiple}"
            raise InputError(f"fit.crop={crop}", f"not a multiple of {student.multiple}, as a model takes", remedy)
    for model, one in zip(models, known, strict=True):
        if channels > 1 or recipe.ensemble:  # grey images pass through a colour model, but not through its network
            _check_channels(model, one.channels, channels)
    with at_work(run, recipe, start, lambda: _inputs(source, start, models)) as (fabric, places):
        photos = made_by_first(fabric, lambda: open_photos(source, run, channels, crop))
        estimates = made_by_first(fabric, lambda: kept.estimates(denoiser, weights, photos, run))
        power = made_by_first(fabric, lambda: kept.power(denoiser, photos, estimates, how.curve, crop))
        noise = partial(kept.noise_models, photos, estimates, how.curve, power, crop)
        cut = partial(Renoised, photos, estimates, made_by_first(fabric, noise), how=how)
        return _fit(run, recipe, loss, cut, photos, places, fabric, start)


def _inputs(source: Source, start: Start, models: Sequence[str | Path] = ()) -> dict[str, str]:
    """What a run learns from, besides its recipe: the place of the images, not what is there; weights by their hash."""
    digest = hashlib.sha256()
    for one in [source] if isinstance(source, Path) else source:
        if isinstance(one, Path):
            digest.update(str(one.resolve()).encode(errors="surrogateescape") + b"\n")
        else:
            digest.update(f"{one.shape} {one.dtype}".encode() + np.ascontiguousarray(one).tobytes())
    images = str(source.resolve()) if isinstance(source, Path) else f"list {digest.hexdigest()[:12]}"
    hashes = [hashlib.sha256(_weights(model)).hexdigest()[:12] for model in (*models, start.init) if model]
    taught, init = (" ".join(part) or "none" for part in (hashes[: len(models)], hashes[len(models) :]))
    return {"images": images, "models": taught, "init": init}


def _weights(model: str | Path) -> bytes:
    file = find(model)
    try:
        return (file / MODEL if file.is_dir() else file).read_bytes()
    except OSError as error:
        raise InputError(model, f"cannot be read ({error.strerror})", "name a model file or a run") from error


def _student(model: str | Path) -> Student:
    network = load_network(find(model))
    if not isinstance(network, Student):
        raise InputError(model, "is no student, and takes too long for an ensemble", "leave out ensemble, or distil it")
    return network


def _check_channels(model: str | Path, found: int, wanted: int) -> None:
    if found != wanted:
        remedy = f"--set network.channels={found}, or name a model of {wanted}"
        raise InputError(model, f"has {found} channels, the student {wanted}", remedy)


def _blind_network(path: Path, channels: int) -> BlindNetwork:
    network = load_network(find(path))
    _check_channels(path, network.config.channels, channels)
    if isinstance(network, Student):
        raise InputError(path, "is a student, not a blind-spot network", "name the run of `tbsn train`, or `teacher`")
    return network


def _fit(
    run: Path,
    recipe: Recipe,
    loss: Loss,
    cut: Callable[..., Crops],
    photos: Photos,
    places: range,
    fabric: Fabric,
    start: Start,
) -> Network:
    crops, held_back = open_crops(cut, photos, recipe.fit, places)
    network = _new_network(recipe, start.init)
    if fabric.is_global_zero:
        record_start(run, fabric, precision(recipe.fit, fabric.device))
    sample = photos[0][:SAMPLE, :SAMPLE]

    def watch(step: int, averaged: Network) -> None:
        denoise = as_numpy(of_network(averaged.to(fabric.device), TeacherSettings(passes=0)), fabric.device)
        denoised = images.from_float(denoise(images.to_float(sample)), sample.dtype)
        (run / SAMPLES).mkdir(exist_ok=True)
        both = np.concatenate([sample, denoised], axis=1)
        if both.shape[2] not in (1, 3):
            both = both.mean(axis=2, keepdims=True).astype(both.dtype)
        write(run / SAMPLES / f"step-{step:06}.png", both)

    return fit(network, loss, crops, recipe.fit, run, fabric, start.max_seconds, held_back, watch)


def open_crops(
    cut: Callable[..., Crops], photos: Photos, settings: FitSettings, places: range
) -> tuple[Crops, list[Sequence[Tensor]]]:
    """The batches to train on, and those that are held back, of ``cut``: all but the settings of these crops."""
    large = np.flatnonzero(photos.sizes.min(axis=1) >= settings.crop)
    training, held_back = split(map(photos.name, large.tolist()), settings.hold_back, settings.seed)
    cut = partial(cut, crop=settings.crop, seed=settings.seed)
    crops = cut(places=places, augment=settings.augment, among=large[training])
    if not len(held_back):
        return crops, []
    rounds, places = map(range, HELD_BACK)
    seen = cut(places=places, augment=False, among=large[held_back])
    return crops, [part for i in rounds for part in zip(*(one.split(settings.batch) for one in seen[i]), strict=True)]


def _new_network(recipe: Recipe, init: Path | None) -> Network:
    torch.manual_seed(recipe.fit.seed)
    network = build(recipe.network)
    if init:
        network.load_state_dict(_first(recipe, init).state_dict())
    if isinstance(network, TBSN) and isinstance(recipe, TrainRecipe):
        network.set_recompute(recipe.recompute)
    return network


def _first(recipe: Recipe, init: Path) -> Network:
    """The network to start from. Raises `InputError` if it is not of the recipe's kind and size."""
    first = load_network(find(init))
    # How it is used, by PD or with a hole, may differ.
    found, wanted = (one.model_dump(exclude={"pd", "hole"}) for one in (first.config, recipe.network))
    if found["kind"] != wanted["kind"]:
        remedy = "`default` is for renoise, `unet` for distill, an earlier run for its own command"
        raise InputError(init, f"is a {found['kind']}, the recipe's network a {wanted['kind']}", remedy)
    if found != wanted:
        remedy = "set network.* to its values"
        raise InputError(init, f"is another network than the recipe's: {', '.join(changes(found, wanted))}", remedy)
    return first


def open_photos(source: Source, run: Path, channels: int, crop: int, other: Path | None = None) -> Photos:
    """The images of a folder, files, or arrays, decoded once: into the run, unless the run ``other`` has them.

    Says how many cannot be used, and lists them in ``skipped.txt``. Raises `InputError` if none can.
    """
    cache, others = run / "cache", other and other / "cache"
    known = facts(cache).get("stamp")
    are_files = isinstance(source, Path) or (source and isinstance(source[0], Path))
    decode = cached_folder if are_files else cached_arrays
    photos = decode(source, cache, channels, others)  # type: ignore[arg-type]
    if known not in (None, photos.stamp):
        warn("the images have changed since the last start: they were decoded again")
    small = np.flatnonzero(photos.sizes.min(axis=1) < crop).tolist()
    reasons = (
        f"{photos.name(i)}: is {'x'.join(map(str, photos.sizes[i, ::-1]))}, under the crop of {crop}" for i in small
    )
    if len(small) == len(photos):
        raise InputError(run, f"no image is large enough: {next(reasons)}", "--set fit.crop=N, or take larger images")
    skipped = run / "skipped.txt"
    skipped.unlink(missing_ok=True)
    if count := len(small) + photos.unusable:
        with skipped.open("w", errors="surrogateescape") as file:
            file.writelines(f"{reason}\n" for reason in itertools.chain(photos.skipped(), reasons))
        warn(f"{count} images or folders cannot be used and are left out: see {skipped}")
    return photos


def check(recipe: Recipe, start: Start) -> None:
    """Raises `InputError` for a crop that the network cannot take, and what it is to start from, if that is another."""
    pd = recipe.pd if isinstance(recipe, TrainRecipe) else 1
    crop, step = recipe.fit.crop, recipe.network.multiple * pd
    if crop % step or not crop:
        remedy = f"--set fit.crop={max(1, crop // step) * step}"
        raise InputError(f"fit.crop={crop}", f"not a multiple of {step}", remedy)
    if start.init:
        _first(recipe, start.init)
