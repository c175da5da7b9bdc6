"""Where the error of a denoiser is: by photo and spatial frequency, beside the scene, the result and the noise.

python benchmarks/bands.py MODEL NOISY CLEAN --every 4
"""

from collections import defaultdict
from pathlib import Path
from typing import Annotated

import numpy as np
import typer

import tbsn
from tbsn import images
from tbsn.evaluation.pairs import find_pairs

EDGES = (0, 1 / 64, 1 / 32, 1 / 16, 1 / 8, 1 / 4, 1)
NAMES = ("error", "clean", "denoised", "noise")


def power(image: np.ndarray) -> np.ndarray:
    """Of an image (h, w, c) in [0, 1]: mean square in levels of 255 without its mean, in each band of frequencies."""
    height, width = image.shape[:2]
    spectrum = np.fft.fft2(255 * image, axes=(0, 1)) / (height * width)
    frequency = np.hypot(np.fft.fftfreq(height)[:, None], np.fft.fftfreq(width))
    band = np.digitize(frequency, EDGES[1:-1])
    band[0, 0] = len(EDGES) - 1
    return np.bincount(band.ravel(), (np.abs(spectrum) ** 2).mean(axis=2).ravel())[:-1]


def main(
    model: Annotated[str, typer.Argument(help="A name, model file, or run.")],
    noisy: Annotated[Path, typer.Argument(metavar="NOISY", help="Folder of noisy images, named PHOTO_BLOCK.")],
    clean: Annotated[Path, typer.Argument(metavar="CLEAN", help="Folder of clean ones.")],
    every: Annotated[int, typer.Option(help="Take every n-th pair.")] = 1,
) -> None:
    """Print the table: mean square of each band, in levels of 255."""
    denoise, photos = tbsn.load(model, strength=1), defaultdict(list)
    for source, target in find_pairs(noisy, clean)[::every]:
        seen, truth = (images.to_float(images.read(path).pixels) for path in (source, target))
        result = np.clip(denoise(seen), 0, 1)
        parts = (result - truth, truth, result, seen - truth)
        photos[source.stem.split("_")[0]].append([power(part) for part in parts])
    bands = " | ".join(f"to 1/{round(1 / edge)}" for edge in EDGES[1:-1])
    print(f"| photo | | {bands} | above |\n|---|---|{'---|' * (len(EDGES) - 1)}")
    for photo, found in photos.items():
        for name, values in zip(NAMES, np.mean(found, axis=0), strict=True):
            print(f"| {photo} | {name} | {' | '.join(f'{value:.3g}' for value in values)} |")


if __name__ == "__main__":
    typer.run(main)
