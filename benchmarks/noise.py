"""The noise that `tbsn diagnose` measures from noisy images alone, against the truth: noisy minus clean.

    python benchmarks/noise.py DATA

DATA holds sidd/{val,large}/{noisy,gt} and polyu100/*_{real,mean}.JPG; the method was chosen without the truth of
sidd/large. Level: standard deviation of 255, over all pixels of the folder, the mean residual of each image taken
off. Correlation: autocorrelation of the residual at lags 1 to 3, over the folder. "True in flat parts" is the true
residual too, but only in the tenth of the patches where the reference is flattest: what to expect of a method that
looks for flat parts. The known noise is added to the PolyU references, and for a harder case to the same averaged
2x2: twice as sharp.
"""

from collections.abc import Iterable
from dataclasses import replace
from itertools import product
from pathlib import Path
from typing import Annotated

import numpy as np
import typer

from tbsn import images
from tbsn.advice import INVISIBLE, advise
from tbsn.noise import METHOD, Noise, combine, survey
from tbsn.spectrum import autocovariance, order, patches, transform
from tbsn.training.leaves import shrunk

LEVEL, CORRELATION = 0.10, 0.07
KNOWN = (("white", 0), ("Gaussian 0.8", 0.8), ("Gaussian 1.5", 1.5), ("box 3", 3), ("box 5", 5))
SIGMAS = (10, 20)
CHANNELS = ("red", "green", "blue")


def read(path: Path) -> np.ndarray:
    return images.to_float(images.read(path).pixels)


def pairs(data: Path, name: str) -> list[tuple[Path, Path]]:
    if name == "polyu100":
        return [
            (one, one.with_name(one.name.replace("_real", "_mean"))) for one in sorted(data.glob("polyu100/*_real*"))
        ]
    return [(one, data / name / "gt" / one.name) for one in sorted(data.glob(f"{name}/noisy/*.png"))]


def moments(residual: np.ndarray) -> np.ndarray:
    """Autocovariance (2, 4, c) of a residual (h, w, c): along rows and columns, lags 0 to 3."""
    values = residual.astype(np.float64)
    values = values - values.mean(axis=(0, 1))
    turned = values.swapaxes(0, 1)
    return np.array([[(x[:, : x.shape[1] - d] * x[:, d:]).mean((0, 1)) for d in range(4)] for x in (values, turned)])


def in_flat_parts(noise: Noise, measured: Iterable[tuple[np.ndarray, np.ndarray]]) -> Noise:
    """The noise of residuals (h, w, c) where the clean image that comes with each is flattest."""
    covariances = []
    for residual, clean in measured:
        power, content = (transform(patches(one, METHOD.patch)) for one in (residual, clean))
        texture = content[..., order(METHOD.patch) > METHOD.content].sum(axis=-1)
        flattest = np.argsort(texture, axis=0)[: round(METHOD.purest * len(texture))]
        means = [power[flattest[:, c], c].mean(axis=0) for c in range(len(CHANNELS))]
        covariances.append(np.stack([autocovariance(one, METHOD.content) for one in means]))
    covariance = np.mean(covariances, axis=0)
    variance = np.array(covariances)[:, :, 0, 0]
    correlation = covariance / covariance[:, :1, :1]
    level = np.sqrt(variance.mean(axis=0))
    return replace(noise, level=level, per_image=np.sqrt(variance), autocorrelation=correlation)


def compare(name: str, noise: Noise, truths: Iterable[np.ndarray], each: bool = True) -> None:
    """Print one line for each channel, if asked, and one for the mean of the channels."""
    truth = np.array(list(truths))
    level = np.sqrt(truth[:, 0, 0])
    ratios = np.quantile(noise.per_image / level, (0.1, 0.9), axis=0)
    level = np.sqrt((level**2).mean(axis=0))
    correlation = truth.mean(axis=0) / truth.mean(axis=0)[0, 0]
    found = np.stack([noise.autocorrelation[:, 0, :4], noise.autocorrelation[:, :4, 0]]).transpose(0, 2, 1)
    for c, channel in enumerate(CHANNELS if each else ()):
        line(f"{name}, {channel}", noise.level[c], level[c], ratios[:, c], found[..., c], correlation[..., c])
    rms = np.sqrt((noise.level**2).mean()), np.sqrt((level**2).mean())
    line(f"{name}, mean", *rms, ratios.mean(axis=1), found.mean(axis=2), correlation.mean(axis=2))


def line(name: str, found: float, true: float, spread: np.ndarray, rows: np.ndarray, truth: np.ndarray) -> None:
    numbers = (" / ".join(f"{one:.2f}".replace("0.", ".") for one in axis[1:]) for x in (rows, truth) for axis in x)
    error = np.abs(rows - truth).max()
    bars = [f"{'yes' if abs(found / true - 1) <= LEVEL else 'NO'}", f"{'yes' if error <= CORRELATION else 'NO'}"]
    level = (
        f"{255 * found:.2f} | {255 * true:.2f} | {found / true:.2f} | {spread[0]:.2f} to {spread[1]:.2f} | {bars[0]}"
    )
    print(f"| {name} | {level} | {' | '.join(numbers)} | {error:.3f} | {bars[1]} |", flush=True)


def head(title: str) -> None:
    axes = "rows, found | columns, found | rows, true | columns, true"
    print(f"\n{title}\n\n| | found | true | ratio | per image | within 10 % | {axes} | error | within 0.07 |")
    print("|---" * 12 + "|")


def known(name: str, size: float, shape: tuple[int, ...], rng: np.random.Generator) -> np.ndarray:
    """Noise of unit variance (h, w, c), white or blurred."""
    reach = np.arange(-8, 9)
    blur = {"w": reach == 0, "G": np.exp(-(reach**2) / (2 * size**2 + 1e-9)), "b": np.abs(reach) <= size // 2}[name[0]]
    blur = np.outer(blur, blur) / np.linalg.norm(np.outer(blur, blur))
    spectrum = np.fft.rfft2(blur, shape[:2])[..., None] * np.fft.rfft2(rng.normal(size=shape), axes=(0, 1))
    return np.fft.irfft2(spectrum, shape[:2], axes=(0, 1))


def verdict(name: str, noise: Noise) -> None:
    advice = advise(noise.autocorrelation.mean(axis=0), noise.floor, 10**9, 10**9, 256)
    clean = "clean" if noise.floor < INVISIBLE else "noisy"
    strides = f"{advice.pd_train} / {advice.pd_inference}" if advice.suits else "does not suit"
    print(f"| {name} | {255 * noise.floor:.2f} | {clean} | {strides} |", flush=True)


def main(data: Annotated[Path, typer.Argument(help="Folder with sidd and polyu100.")]) -> None:
    """Print the tables that docs/noise.md shows."""
    verdicts: list[tuple[str, Noise]] = []
    head("Real noise")
    for name in ("sidd/val", "polyu100", "sidd/large"):
        noise = combine([survey(images.read(noisy).pixels) for noisy, _ in pairs(data, name)])
        compare(name, noise, (moments(read(noisy) - read(clean)) for noisy, clean in pairs(data, name)))
        ideal = in_flat_parts(noise, ((read(noisy) - read(clean), read(clean)) for noisy, clean in pairs(data, name)))
        truths = (moments(read(noisy) - read(clean)) for noisy, clean in pairs(data, name))
        compare(f"{name}, true in flat parts", ideal, truths, each=False)
        clean = combine([survey(images.read(clean).pixels) for _, clean in pairs(data, name)])
        verdicts += [(f"{name}, noisy", noise), (f"{name}, clean", clean)]
    scenes = [read(clean) for _, clean in pairs(data, "polyu100")][::5]
    sharp = [shrunk(scene, 2) for scene in scenes]
    verdicts.append(("polyu100, clean, sharp", combine([survey(scene) for scene in sharp])))
    rng = np.random.default_rng(0)
    for title, pictures in (("Known noise", scenes), ("Known noise, sharp scenes", sharp)):
        head(title)
        for (name, size), sigma in product(KNOWN, SIGMAS):
            added = [sigma / 255 * known(name, size, picture.shape, rng) for picture in pictures]
            noise = combine([survey(picture + one) for picture, one in zip(pictures, added, strict=True)])
            compare(f"{name}, {sigma}", noise, map(moments, added), each=False)
            if pictures is scenes:
                verdicts.append((f"{name}, {sigma}", noise))
    print("\nVerdicts\n\n| | quietest parts | said to be | PD stride, training / inference |\n|---|---|---|---|")
    for one in verdicts:
        verdict(*one)


if __name__ == "__main__":
    typer.run(main)
