"""What models make of the photos of a run, computed once and kept in its folder."""

import hashlib
import json
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import save

from tbsn import images, teacher
from tbsn.files import atomic
from tbsn.progress import progress
from tbsn.teacher import BlindNetwork, as_numpy
from tbsn.tiles import tiled
from tbsn.training.fit import computes_bf16
from tbsn.training.light import Curve
from tbsn.training.noise_model import NoiseModel, missed_power
from tbsn.training.photos import Photos, cached
from tbsn.training.recipe import TargetSettings

Denoiser = Callable[[np.ndarray], np.ndarray]
MEASURED = 16
POWER = "power.json"
VERSION = 3  # of the noise model: of another, nothing that was kept counts


def targets(
    teachers: Sequence[BlindNetwork], photos: Photos, settings: TargetSettings, run: Path, device: torch.device
) -> Photos:
    """What blind-spot networks say, for `losses.distillation`.

    In larger tiles than `teacher.ATTENTIVE`: on two photos of 512x512 that was no worse, and 1.6 times as fast.
    """
    weights = b"".join(
        save({name: value.cpu().contiguous() for name, value in bsn.state_dict().items()}) for bsn in teachers
    )
    stamp = hashlib.sha256(f"{settings.model_dump_json()} {photos.stamp}".encode() + weights).hexdigest()
    networks, s = [bsn.to(device) for bsn in teachers], settings
    teach = tiled(as_numpy(teacher.targets(networks, s.pd, s.estimate, s.refinements, s.holes, s.seed), device))
    return _kept("target", _denoised(teach, photos, device), stamp, photos, run / "targets")


def mean_of(denoisers: Sequence[Denoiser]) -> Denoiser:
    """What several denoisers make of a float image, on average."""
    return lambda image: np.mean([denoise(image) for denoise in denoisers], axis=0)


def estimates(denoiser: Denoiser, weights: bytes, photos: Photos, run: Path) -> Photos:
    """What a denoiser with these weights, on the CPU, makes of the photos."""
    stamp = hashlib.sha256(photos.stamp.encode() + weights).hexdigest()
    return _kept("estimate", _denoised(denoiser, photos, torch.device("cpu")), stamp, photos, run / "estimates")


def power(denoiser: Denoiser, photos: Photos, estimates: Photos, curve: Curve, crop: int) -> list[float]:
    """See `missed_power`: of photos from all over the set, none under the crop, kept beside the estimates."""
    file = estimates.directory / POWER
    known = json.loads(file.read_text()) if file.exists() else {}
    if known.get("stamp") != (stamp := f"{estimates.stamp} {curve} {VERSION} {crop}"):
        large = np.flatnonzero(photos.sizes.min(axis=1) >= crop)
        chosen = np.unique(large[np.linspace(0, len(large) - 1, MEASURED).astype(int)]).tolist()
        pairs = [(images.to_float(photos[i]), images.to_float(estimates[i])) for i in chosen]
        factors = missed_power(denoiser, pairs, np.random.default_rng(0), curve)
        known = {"stamp": stamp, "power": factors.tolist()}
        with atomic(file) as partial_file:
            partial_file.write_text(json.dumps(known))
    return known["power"]


def noise_models(photos: Photos, estimates: Photos, curve: Curve, power: Sequence[float], crop: int) -> Photos:
    """The `NoiseModel` of each photo as an image of bytes, beside the estimates; nothing of one under the crop.

    Mapped, those of any number of photos take no memory, and no process has to make them again.
    """

    def model(index: int) -> np.ndarray:
        if photos.sizes[index].min() < crop:
            return np.zeros((1, 1, 1), np.uint8)
        noisy, estimate = (images.to_float(stack[index]) for stack in (photos, estimates))
        return NoiseModel.fit(noisy, estimate, np.array(power), curve).packed[None, :, None]

    stamp = hashlib.sha256(f"{estimates.stamp} {curve} {VERSION} {list(power)} {crop}".encode()).hexdigest()
    return _kept("noise", model, stamp, photos, estimates.directory / "noise")


def _denoised(denoiser: Denoiser, photos: Photos, device: torch.device) -> Callable[[int], np.ndarray]:
    """Makes a 16-bit image of what a denoiser says of a photo, by its number."""

    def denoised(index: int) -> np.ndarray:
        with torch.autocast(device.type, torch.bfloat16, enabled=computes_bf16(device)):
            result = denoiser(images.to_float(photos[index]))
        return images.from_float(result, np.dtype(np.uint16))

    return denoised


def _kept(unit: str, make: Callable[[int], np.ndarray], stamp: str, photos: Photos, cache: Path) -> Photos:
    """What is made of each photo, by its number, in a cache folder; goes on where it was stopped."""

    def made(first: int) -> Iterator[tuple[str, np.ndarray]]:
        with progress(unit, len(photos), first) as report:
            for index in range(first, len(photos)):
                yield photos.name(index), make(index)
                report(index + 1, "")

    return cached(made, cache, stamp)
