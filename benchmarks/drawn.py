"""How far drawn noise is from that of photos: from noisy images and a denoiser of them alone.

    python benchmarks/drawn.py sidd/train --every 40

What a denoiser takes out of photos is compared with what it takes out of its estimates with drawn noise, by the
divergence of Gaussian fields that have their spectra: of cells of 2x2 pixels, in nats a cell, the mean of both
directions. Drawn by the model, by one that is alike at all four places of a cell, and, as what chance leaves, two
draws of the first.
"""

from pathlib import Path
from typing import Annotated

import numpy as np
import typer
from numpy.fft import rfft2

import tbsn
from tbsn import images
from tbsn.training.noise_model import NoiseModel, cells

SIDE, STEP = 16, 8
LEAST = 1e-4
PLACES = [(0, 0), (0, 1), (1, 0), (1, 1)]


def spectrum(noise: np.ndarray) -> np.ndarray:
    """Mean spectral matrix of the cells of noise (h, w, c), of windows of SIDE cells."""
    whole, window = cells(noise), np.hanning(SIDE + 2)[1:-1]
    starts = [range(0, size - SIDE + 1, STEP) for size in whole.shape[:2]]
    parts = np.stack([whole[top : top + SIDE, left : left + SIDE] for top in starts[0] for left in starts[1]])
    found = rfft2(parts * np.outer(window, window)[..., None], axes=(1, 2))
    return np.einsum("nhwi,nhwj->hwij", found, found.conj()) / len(parts)


def divergence(one: np.ndarray, other: np.ndarray) -> float:
    """Of Gaussian fields of two spectra, in nats a cell: the mean of both directions."""
    size = one.shape[-1]
    least = LEAST * np.trace(one, axis1=-2, axis2=-1).real.mean() / size * np.eye(size)
    ratios = np.linalg.eigvals(np.linalg.solve(other + least, one + least)).real
    return float((ratios + 1 / ratios - 2).sum(axis=-1).mean() / 4)


def nearest(real: np.ndarray, drawn: np.ndarray) -> float:
    """Their divergence, wherever the cells of what was drawn are."""
    return min(divergence(spectrum(real), spectrum(np.roll(drawn, place, axis=(0, 1)))) for place in PLACES)


def alike(noisy: np.ndarray, estimate: np.ndarray) -> NoiseModel:
    """The model of an image together with itself moved by a pixel: alike at all places of a cell."""
    height, width = (2 * (size // 2) - 2 for size in noisy.shape[:2])
    moved = [
        np.concatenate([image[top : top + height, left : left + width] for top, left in PLACES])
        for image in (noisy, estimate)
    ]
    return NoiseModel.fit(moved[0], moved[1])


def main(
    folder: Annotated[Path, typer.Argument(help="Folder of noisy images.")],
    model: Annotated[str, typer.Option(help="The denoiser.")] = "default",
    every: Annotated[int, typer.Option(help="Take every n-th image.")] = 1,
) -> None:
    """Print the table."""
    denoise = tbsn.load(model, strength=1)
    random = np.random.default_rng(0)

    def taken(estimate: np.ndarray, noise: NoiseModel) -> np.ndarray:
        clean = noise.unbiased(estimate)
        drawn = np.clip(clean + noise.draw(clean, random), 0, 1)
        drawn = images.to_float(images.from_float(drawn, np.dtype(np.uint8)))
        return drawn - denoise(drawn)

    rows = []
    for path in list(images.find([folder]))[::every]:
        noisy = images.to_float(images.read(path).pixels)
        estimate = denoise(noisy)
        noise, even = NoiseModel.fit(noisy, estimate), alike(noisy, estimate)
        real, first = noisy - estimate, taken(estimate, noise)
        rows.append((
            nearest(real, taken(estimate, even)), nearest(real, first), nearest(first, taken(estimate, noise))
        ))  # fmt: skip
        print(path.name, *(f"{value:.2f}" for value in rows[-1]), flush=True)
    print("\n| alike at all places of a cell | the model | two draws of it |\n|---|---|---|")
    print("| " + " | ".join(f"{value:.2f}" for value in np.mean(rows, axis=0)) + " |")


if __name__ == "__main__":
    typer.run(main)
