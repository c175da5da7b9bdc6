"""How to take back what a camera's cut at black does to the mean of dark, noisy light: rules on simulated cameras.

    python benchmarks/black.py

A flat patch of a random dark colour, with photon and read noise on a Bayer pattern, goes through a random camera: white
balance, bilinear demosaicing, a colour matrix, the sRGB curve, 8 bit. Values below black are cut off after the colour
matrix; the "two cuts" camera has cut the raw values too, as most raw developers do. The truth is what the mean of the
raw values gives. Rows: by the share of values at black, the root mean square error and the mean error of the mean
light, in levels of 255 of the picture, by rule: none; a Gaussian with that share below black; and the shortest tail
that a distribution with one peak can have (`tbsn.training.noise_model.unclipped_mean`). No photo is used.
"""

from collections import defaultdict
from typing import Annotated

import numpy as np
import typer
from scipy.ndimage import convolve
from scipy.stats import norm

from tbsn.training.light import CURVES
from tbsn.training.noise_model import unclipped_mean

SIDE = 128
SHARES = (0.05, 0.15, 0.25, 0.35, 0.45)
CROSS = np.array([[0, 1, 0], [1, 4, 1], [0, 1, 0]]) / 4
SQUARE = np.array([[1, 2, 1], [2, 4, 2], [1, 2, 1]]) / 4
TO_LIGHT, FROM_LIGHT = CURVES["sRGB"]


def main(cameras: Annotated[int, typer.Option(help="How many to draw.")] = 400) -> None:
    """Print the table."""
    errors: dict[tuple[str, int], list[list[float]]] = defaultdict(list)
    random = np.random.default_rng(0)
    for _ in range(cameras):
        for name, share, truth, light in patches(random):
            rules = light.mean(), gaussian(light, share), unclipped_mean(light)
            means = 255 * FROM_LIGHT(np.maximum([truth, *rules], 0))
            errors[name, int(np.digitize(share, SHARES))].append(means[1:] - means[0])
    print("| camera | share at black | patches | none | Gaussian | shortest tail |\n|---|---|---|---|---|---|")
    for (name, place), found in sorted(errors.items()):
        if 0 < place < len(SHARES):
            spread, bias = np.sqrt(np.mean(np.square(found), axis=0)), np.mean(found, axis=0)
            cells = " | ".join(f"{s:.1f} ({b:+.1f})" for s, b in zip(spread, bias, strict=True))
            print(f"| {name} | {SHARES[place - 1]:.2f}-{SHARES[place]:.2f} | {len(found)} | {cells} |")


def patches(random: np.random.Generator) -> list[tuple[str, float, float, np.ndarray]]:
    """One patch through one camera with one cut and with two: kind, share at black, true light and light (n,)."""
    matrix = colour_matrix(random)
    balance = np.array([random.uniform(1.4, 2.4), 1, random.uniform(1.4, 2.4)])
    colour = np.clip(2 ** random.uniform(-9, -4) * np.exp(random.normal(0, 0.3, 3)), 0, 1)
    raw = np.linalg.solve(matrix, colour)
    if (raw < 0).any():
        return []
    photons, read = 2 ** random.uniform(-11, -6), 2 ** random.uniform(-9, -5)
    noise = np.sqrt(balance * photons * raw + (balance * read) ** 2) * random.standard_normal((SIDE, SIDE, 3))
    made = []
    for name, seen in (("one cut", raw + noise), ("two cuts", np.clip(raw + noise, 0, 1))):
        picture = np.floor(255 * FROM_LIGHT(np.clip(demosaiced(seen) @ matrix.T, 0, 1)) + 0.5) / 255
        truth = np.clip(matrix @ seen.mean(axis=(0, 1)), 0, 1)
        light = TO_LIGHT(picture).reshape(-1, 3).T
        made += [(name, float((one == 0).mean()), float(true), one) for one, true in zip(light, truth, strict=True)]
    return made


def colour_matrix(random: np.random.Generator) -> np.ndarray:
    """From a sensor's colours to sRGB: its rows add up to 1, so that white stays white; in the range of phones'."""
    off = random.uniform(
        [[0, -0.9, -0.3], [-0.4, 0, -0.6], [-0.1, -0.9, 0]], [[0, -0.2, 0.1], [-0.05, 0, -0.1], [0.1, -0.2, 0]]
    )
    return off + np.diag(1 - off.sum(axis=1))


def demosaiced(image: np.ndarray) -> np.ndarray:
    """What bilinear interpolation makes of the Bayer pattern of an image (h, w, 3)."""
    planes = []
    for channel, kernel, phases in ((0, SQUARE, [(0, 0)]), (1, CROSS, [(0, 1), (1, 0)]), (2, SQUARE, [(1, 1)])):
        mosaic = np.zeros(image.shape[:2])
        for row, column in phases:
            mosaic[row::2, column::2] = image[row::2, column::2, channel]
        planes.append(convolve(mosaic, kernel, mode="wrap"))
    return np.stack(planes, axis=2)


def gaussian(light: np.ndarray, share: float) -> float:
    """The mean of the Gaussian that has this share below black and, cut off there, the mean of the light."""
    if share == 0:
        return float(light.mean())
    z = norm.ppf(1 - share)
    return float(light.mean() * z / (z * norm.cdf(z) + norm.pdf(z)))


if __name__ == "__main__":
    typer.run(main)
