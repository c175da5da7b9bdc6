"""Choose the constants of `tbsn diagnose` without any clean image.

    python benchmarks/noise_calibration.py NOISY

NOISY is a folder of noisy blocks of one size (sidd/train). Three kinds of scenes stand in for clean images: blocks
denoised by the model in the package, which learned from noisy images alone; the same averaged 2x2, four to a picture,
which are sharper; and drawn ones. To each, noise is added that is known: eleven kinds, three strengths. A case is one
kind of scene, noise and strength, in twelve pictures. Found is compared with true, which is noisy minus scene.

The criterion was fixed beforehand. Error of a case: the absolute log ratio of the level in bars of 10 %, mean of the
channels, and the largest error of the autocorrelation at lags 1 to 3 in bars of 0.07; each counts as three bars at
most, since beyond that a result is just wrong. Chosen is the least mean over the cases: first what shapes the
autocorrelation, by that error, for each split; then split and reading of the level, by both. The floor and the bounds
are those which make the fewest wrong verdicts in sets of three pictures, in the middle of the widest gap. The bound of
strong correlation is that for noise which can be seen, not the weakest: there texture stands in for the noise, and
white noise taken for correlated costs some detail, but correlated noise taken for white costs everything. What wins is
written into the code.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import product
from pathlib import Path
from typing import Annotated

import numpy as np
import pyvips
import typer
from black import demosaiced
from noise import CORRELATION, LEVEL, known, moments

import tbsn
from tbsn import images
from tbsn.noise import METHOD, Method, Noise, Survey, combine, common_spectrum, pure_spectrum, survey
from tbsn.spectrum import autocovariance, patches, transform
from tbsn.training.leaves import shrunk

PICTURES = 12
SIGMAS = (3, 10, 30)
WEAK = SIGMAS[0]
WHITE = ("white", "white, signal-dependent")
BLURRED = {"Gaussian 0.6": 0.6, "Gaussian 1.0": 1.0, "Gaussian 1.5": 1.5, "box 3": 3, "box 5": 5}
OTHER = ("demosaiced", "Gaussian 1.0, signal-dependent", "white, JPEG 75", "demosaiced, JPEG 90")
NOISES = (*WHITE, *BLURRED, *OTHER)
MOST_BARS = 3
SPLITS = (1 / 3, 1 / 2, 2 / 3)
SPECTRUM = {
    "patch": (16, 32),
    "content": (2, 3, 4, 5, 6),
    "purest": (0.025, 0.05, 0.1),
    "images": (0.1, 0.25, 0.5),
}
READING = {"quiet": (0.25, 0.5, 0.75), "reading": (0.5, None)}
FLOOR = {"floor_share": (0.05, 0.1, 0.2), "floor_group": (0, 1, 2)}


@dataclass(frozen=True)
class Case:
    """Noisy pictures (h, w, 3) uint8; true level (3); autocorrelation (2, 4): along rows and columns, lags 0 to 3."""

    scenes: str
    noise: str
    sigma: int
    pictures: Sequence[np.ndarray]
    level: np.ndarray
    correlation: np.ndarray


def denoised(folder: Path) -> tuple[list[np.ndarray], list[np.ndarray]]:
    """Denoised blocks as they are, and four averaged 2x2 in one picture."""
    paths = list(images.find([folder]))
    denoise = tbsn.load()
    chosen = [paths[i] for i in np.linspace(0, len(paths) - 1, 5 * PICTURES).astype(int)]
    blocks = [images.to_float(denoise(images.read(path).pixels)) for path in chosen]
    half = [shrunk(block, 2) for block in blocks]
    sharp = [half[i : i + 5] for i in range(0, len(half), 5)]
    return blocks[::5], [np.block([[[one[1]], [one[2]]], [[one[3]], [one[4]]]]) for one in sharp]


def drawn(seed: int, side: int = 512) -> np.ndarray:
    """Discs of all sizes that hide each other, with fractal texture of any strength; averaged 2x2 like a camera."""
    rng = np.random.default_rng(seed)
    y, x = np.mgrid[:side, :side] / side
    frequency = np.hypot(np.fft.fftfreq(side)[:, None], np.fft.rfftfreq(side)[None]) + 1 / side
    picture = np.full((side, side, 3), 0.5)
    for _ in range(150):
        radius, (cy, cx), colour = min(0.03 / rng.random(), 0.6), rng.random(2), rng.uniform(0.05, 0.95, 3)
        inside = (x - cx) ** 2 + (y - cy) ** 2 < radius**2
        white = np.fft.rfft2(rng.normal(size=(side, side)))
        texture = np.fft.irfft2(white / frequency ** rng.uniform(1, 2), (side, side))
        picture[inside] = (colour + rng.exponential(0.03) * (texture / texture.std())[..., None])[inside]
    return shrunk(np.clip(picture, 0, 1), 2).astype(np.float32)


def sensor(shape: tuple[int, ...], rng: np.random.Generator) -> np.ndarray:
    """White noise of a Bayer sensor, interpolated bilinearly, of unit variance."""
    noise = demosaiced(np.broadcast_to(rng.normal(size=shape[:2])[..., None], shape))
    return noise / noise.std(axis=(0, 1))


def compressed(picture: np.ndarray, quality: int) -> np.ndarray:
    buffer = pyvips.Image.new_from_array(picture).jpegsave_buffer(Q=quality, subsample_mode="off")
    return pyvips.Image.new_from_buffer(buffer, "").numpy()


def noisy(scene: np.ndarray, name: str, sigma: int, rng: np.random.Generator) -> np.ndarray:
    """A scene with noise, 8 bits. Signal-dependent: the variance is 0.2 + 1.6 times the brightness, 1 in the middle."""
    kind, _, more = name.partition(", ")
    unit = sensor(scene.shape, rng) if kind == "demosaiced" else known(kind, BLURRED.get(kind, 0), scene.shape, rng)
    if more == "signal-dependent":
        unit = unit * np.sqrt(0.2 + 1.6 * scene)
    picture = images.from_float((scene + sigma / 255 * unit).astype(np.float32), np.dtype(np.uint8))
    return compressed(picture, int(more[5:])) if more.startswith("JPEG") else picture


def cases(scenes: dict[str, list[np.ndarray]]) -> Iterator[Case]:
    rng = np.random.default_rng(0)
    for (kind, clean), noise, sigma in product(scenes.items(), NOISES, SIGMAS):
        pictures = [noisy(scene, noise, sigma, rng) for scene in clean]
        truth = np.array([moments(images.to_float(x) - y) for x, y in zip(pictures, clean, strict=True)])
        mean = truth.mean(axis=0)
        level, correlation = np.sqrt(mean[0, 0]), (mean / mean[:1, :1]).mean(axis=2)
        yield Case(kind, noise, sigma, pictures, level, correlation)


def level_error(case: Case, level: np.ndarray) -> float:
    return min(float(np.abs(np.log(level / case.level)).mean()) / np.log1p(LEVEL), MOST_BARS)


def correlation_error(case: Case, correlation: np.ndarray) -> float:
    """Of an autocorrelation (LAGS + 1, LAGS + 1), mean over the channels."""
    found = np.stack([correlation[0, :4], correlation[:4, 0]])
    return min(float(np.abs(found - case.correlation).max()) / CORRELATION, MOST_BARS)


def variants(base: Method, grid: dict[str, tuple]) -> list[Method]:
    return [replace(base, **dict(zip(grid, values, strict=True))) for values in product(*grid.values())]


def spectrum_errors(data: list[Case]) -> dict[Method, float]:
    """Mean error of the autocorrelation, for every variant of the spectrum."""
    total: dict[Method, float] = {}
    for case in data:
        for side in SPECTRUM["patch"]:
            cut = [images.to_float(patches(picture, side)) for picture in case.pictures]
            clipped = [((one <= 0) | (one >= 1)).mean(axis=(2, 3)) for one in cut]
            powers = [transform(one) for one in cut]
            for one in variants(METHOD, SPECTRUM | {"patch": (side,), "images": (0,), "split": SPLITS}):
                pairs = zip(powers, clipped, strict=True)
                spectra = np.stack([pure_spectrum(power, ends, one) for power, ends in pairs])
                for variant in variants(one, {"images": SPECTRUM["images"]}):
                    covariance = [
                        autocovariance(common_spectrum(spectra[:, c], variant), one.content) for c in (0, 1, 2)
                    ]
                    correlation = np.mean([x / x[0, 0] for x in covariance], axis=0)
                    error = correlation_error(case, correlation) / len(data)
                    total[variant] = total.get(variant, 0) + error
    return total


def along(noise: Noise) -> np.ndarray:
    """Autocorrelation (2, LAGS) along rows and columns, lags from 1 on, mean over the channels."""
    mean = noise.autocorrelation.mean(axis=0)
    return np.abs(np.stack([mean[0, 1:], mean[1:, 0]]))


def boundary(low: Sequence[float], high: Sequence[float]) -> tuple[float, int, float]:
    """The bound that parts ``low`` from ``high`` with fewest errors, those errors, and the width of the gap, a ratio.

    It lies in the middle, geometrically, of the widest such gap.
    """
    low, high = np.sort(low), np.sort(high)
    values = np.unique(np.concatenate([low, high]))
    bounds, widths = np.sqrt(values[1:] * values[:-1]), values[1:] / values[:-1]
    errors = np.array([(low >= one).sum() + (high < one).sum() for one in bounds])
    best = max(np.flatnonzero(errors == errors.min()), key=lambda i: widths[i])
    return float(bounds[best]), int(errors[best]), float(widths[best])


def threes(surveys: list[Survey]) -> list[list[Survey]]:
    return [surveys[i : i + 3] for i in range(0, len(surveys), 3)]


def show(title: str, errors: dict[Method, float], most: int = 8) -> Method:
    """Print the best variants and the one in the code; return the best."""
    print(f"\n{title}: least mean error, in bars, of {len(errors)} variants")
    ranked = sorted(errors, key=errors.__getitem__)
    for one in ranked[:most]:
        print(f"  {errors[one]:.3f}  {one}")
    if METHOD in errors:
        print(f"  {errors[METHOD]:.3f}  the one in the code now", flush=True)
    return ranked[0]


def main(noisy_folder: Annotated[Path, typer.Argument(metavar="NOISY", help="Folder of noisy blocks.")]) -> None:
    """Print the best variants and bounds."""
    blocks, sharp = denoised(noisy_folder)
    scenes = {"denoised": blocks, "denoised, sharp": sharp, "drawn": [drawn(seed) for seed in range(PICTURES)]}
    data = list(cases(scenes))
    print(f"{len(data)} cases of {PICTURES} pictures", flush=True)

    errors = spectrum_errors(data)
    finalists = [show(f"Split {s:.2f}", {k: v for k, v in errors.items() if k.split == s}) for s in SPLITS]

    both: dict[Method, float] = {}
    for one in finalists:
        for case in data:
            surveys = [survey(picture, one) for picture in case.pictures]
            for variant in variants(one, READING):
                noise = combine(surveys, variant)
                parts = level_error(case, noise.level), correlation_error(case, noise.autocorrelation.mean(axis=0))
                both[variant] = both.get(variant, 0) + np.mean(parts) / len(data)
    best = show("Level and autocorrelation", both)

    surveys = [[survey(picture, best) for picture in case.pictures] for case in data]
    quiet = [images.from_float(scene, np.dtype(np.uint8)) for clean in scenes.values() for scene in clean]
    quiet += [compressed(picture, 90) for picture in quiet]
    clean = [survey(picture, best) for picture in quiet]
    print(f"\nFloor, of 255, in sets of three: without noise {len(clean) // 3}, with {len(data) * PICTURES // 3}")
    floors = {}
    for variant in variants(best, FLOOR):
        low = [255 * combine(three, variant).floor for three in threes(clean)]
        high = [255 * combine(three, variant).floor for one in surveys for three in threes(one)]
        bound, wrong, width = boundary(low, high)
        floors[variant] = -wrong, width
        rule = f"share {variant.floor_share}, group {variant.floor_group}"
        print(f"  {rule}: {wrong} wrong, gap {width:.2f}, bound {bound:.2f}; clean up to {max(low):.2f}", flush=True)
    best = max(floors, key=floors.__getitem__)

    found = [(case, combine(one, best)) for case, one in zip(data, surveys, strict=True)]
    print(f"\nChosen: {best}\n\n| scenes | noise | sigma | level, found / true | autocorrelation, error |")
    print("|---" * 5 + "|")
    for case, noise in found:
        ratio = np.sqrt((noise.level**2).mean() / (case.level**2).mean())
        error = correlation_error(case, noise.autocorrelation.mean(axis=0)) * CORRELATION
        print(f"| {case.scenes} | {case.noise} | {case.sigma} | {ratio:.2f} | {error:.3f} |")
    threes_white, threes_other = (
        [
            float(along(combine(three, best)).max())
            for case, one in zip(data, surveys, strict=True)
            if case.sigma > WEAK and "JPEG" not in case.noise and (case.noise in WHITE) == is_white
            for three in threes(one)
        ]
        for is_white in (True, False)
    )
    bound, wrong, width = boundary(threes_white, threes_other)
    sets = f"{len(threes_white)} white and {len(threes_other)} others"
    print(f"\nStrong: {bound:.4f}; {wrong} wrong of {sets}, gap {width:.2f}")


if __name__ == "__main__":
    typer.run(main)
