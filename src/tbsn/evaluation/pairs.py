"""Folders of noisy and clean images with equal names."""

import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from tbsn import images, metrics
from tbsn.errors import InputError


@dataclass(frozen=True)
class Score:
    """One image's scores, and the seconds its denoising took."""

    name: str
    psnr: float
    ssim: float
    seconds: float


def find_pairs(noisy: Path, clean: Path) -> list[tuple[Path, Path]]:
    """Images of ``noisy`` and those of the same relative name, whatever their suffix, in ``clean``.

    Raises `InputError` for a missing or empty folder and for a name without a partner.
    """
    for folder in (noisy, clean):
        if not folder.is_dir():
            raise InputError(folder, "not a folder", "name a folder of images")
    references = {path.relative_to(clean).with_suffix(""): path for path in images.find([clean])}
    pairs = []
    for path in images.find([noisy]):
        name = path.relative_to(noisy).with_suffix("")
        if name not in references:
            raise InputError(path, f"has no clean partner in {clean}", "give pairs the same name")
        pairs.append((path, references[name]))
    if not pairs:
        raise InputError(noisy, "no images in this folder", "name a folder of noisy images")
    return pairs


def evaluate(
    denoise: Callable[[np.ndarray], np.ndarray], pairs: list[tuple[Path, Path]], protocol: metrics.Protocol
) -> Iterator[Score]:
    """Scores of a denoiser of float images (h, w, c) in [0, 1], pair by pair."""
    for noisy_path, clean_path in pairs:
        noisy, clean = (images.to_float(images.read(path).pixels) for path in (noisy_path, clean_path))
        if noisy.shape != clean.shape:
            raise InputError(noisy_path, f"is {noisy.shape}, its partner {clean.shape}", "give pairs of equal size")
        start = time.perf_counter()
        denoised = denoise(noisy)
        seconds = time.perf_counter() - start
        psnr, ssim = (score(denoised, clean, protocol) for score in (metrics.psnr, metrics.ssim))
        yield Score(noisy_path.name, psnr, ssim, seconds)


def report(model: str, protocol: metrics.Protocol, scores: list[Score]) -> dict[str, Any]:
    """The scores of all images and their means, ready for JSON."""
    mean = {key: float(np.mean([getattr(score, key) for score in scores])) for key in ("psnr", "ssim", "seconds")}
    return {
        "model": model,
        "protocol": protocol.name,
        "protocol_description": protocol.description,
        "mean": mean,
        "images": [asdict(score) for score in scores],
    }
