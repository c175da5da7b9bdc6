"""Noise that the students were not trained on: other cameras, Gaussian, Poisson-Gaussian, JPEG; and none at all.

    python benchmarks/other_noise.py [--polyu FOLDER] [--model default] [--model unet] [--only TEXT]

Mean PSNR in dB (protocol `sidd`) beside the noisy images, non-local means, and BM3D where the package bm3d is installed
(its licence allows no commercial use). Those two know the standard deviation of the drawn noise; on PolyU, where nobody
does, they get the best of three, chosen with the references. The images are photos of scikit-image, in the public
domain. Of PolyU it says besides how many photos each model makes worse than they came.
"""

import io
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Annotated

import numpy as np
import typer
from skimage import data
from skimage.restoration import denoise_nl_means

import tbsn
from tbsn import images, metrics

PHOTOS = (data.astronaut, data.chelsea, data.coffee)
GREY = (data.camera, data.coins, data.brick)
POLYU_SIGMAS = (3, 6, 10)
LUMA = np.array([[0.299], [0.587], [0.114]], np.float32)
Pair = tuple[np.ndarray, np.ndarray]
STRENGTHS = {"": 1.0, ", auto": None}  # of `tbsn denoise`: its default, and what is trusted


def as_float(image: np.ndarray) -> np.ndarray:
    values = images.to_float(image)
    return values if values.ndim == 3 else values[..., None]


def rounded(image: np.ndarray) -> np.ndarray:
    return images.to_float(images.from_float(image, np.dtype(np.uint8)))


def gaussian(clean: np.ndarray, sigma: float, random: np.random.Generator) -> np.ndarray:
    return rounded(clean + sigma / 255 * random.standard_normal(clean.shape))


def poisson(clean: np.ndarray, sigma: float, random: np.random.Generator) -> np.ndarray:
    """Of standard deviation sigma at mid grey, half of its variance in proportion to the value."""
    variance = (sigma / 255) ** 2 * (0.5 + clean)
    return rounded(clean + np.sqrt(variance) * random.standard_normal(clean.shape))


def jpeg(clean: np.ndarray, sigma: float, random: np.random.Generator) -> np.ndarray:
    """Gaussian noise, then quality 80."""
    from PIL import Image

    noisy, file = images.from_float(gaussian(clean, sigma, random), np.dtype(np.uint8)), io.BytesIO()
    Image.fromarray(noisy.squeeze()).save(file, "JPEG", quality=80)
    return images.to_float(np.asarray(Image.open(file)).reshape(noisy.shape))


KINDS: dict[str, Callable[[np.ndarray, float, np.random.Generator], np.ndarray]] = {
    "Gaussian": gaussian,
    "Poisson-Gaussian": poisson,
    "Gaussian, JPEG 80": jpeg,
}


def nlm(noisy: np.ndarray, sigma: float) -> np.ndarray:
    grey = noisy.shape[2] == 1
    settings = {"patch_size": 5, "patch_distance": 6, "fast_mode": True, "channel_axis": None if grey else 2}
    image = noisy[..., 0] if grey else noisy
    return denoise_nl_means(image, h=0.8 * sigma / 255, sigma=sigma / 255, **settings).reshape(noisy.shape)


def bm3d(noisy: np.ndarray, sigma: float) -> np.ndarray:
    import bm3d

    function = bm3d.bm3d_rgb if noisy.shape[2] == 3 else bm3d.bm3d
    return function(noisy, sigma / 255).reshape(noisy.shape)


def classic() -> dict[str, Callable[[np.ndarray, float], np.ndarray]]:
    try:
        import bm3d as _  # noqa: F401
    except ImportError:
        return {"NLM": nlm}
    return {"NLM": nlm, "BM3D": bm3d}


def score(denoised: np.ndarray, clean: np.ndarray) -> float:
    return metrics.psnr(denoised, clean, metrics.PROTOCOLS["sidd"])


def rows(polyu: Path | None, every: int) -> Iterator[tuple[str, list[Pair], tuple[float, ...]]]:
    colour = [as_float(photo()) for photo in PHOTOS]
    grey = [as_float(photo()) for photo in GREY]
    for name, clean in (("colour", colour), ("colour photos in grey", [one @ LUMA for one in colour]), ("grey", grey)):
        yield f"{name}, no noise", [(one, one) for one in clean], (2,)
        for kind, draw in KINDS.items():
            for sigma in (10, 25, 50):
                random = np.random.default_rng(0)
                yield f"{name}, {kind}, {sigma}", [(draw(one, sigma, random), one) for one in clean], (sigma,)
    if polyu:
        files = sorted(polyu.glob("*_real.JPG"))[::every]
        pairs = ((file, file.with_name(file.name.replace("_real", "_mean"))) for file in files)
        yield "PolyU", [tuple(images.to_float(images.read(one).pixels) for one in pair) for pair in pairs], POLYU_SIGMAS  # type: ignore[misc]


def main(
    polyu: Annotated[Path | None, typer.Option(help="Folder of *_real.JPG and *_mean.JPG.")] = None,
    model: Annotated[list[str], typer.Option(help="Repeatable.")] = ["default", "unet"],  # noqa: B006
    every: Annotated[int, typer.Option(help="Take every n-th image of PolyU.")] = 1,
    only: Annotated[str, typer.Option(help="Only rows of which the name has this text.")] = "",
) -> None:
    baselines, models = (
        classic(),
        {f"{name}{how}": tbsn.load(name, strength=strength) for name in model for how, strength in STRENGTHS.items()},
    )
    print(f"| noise | noisy | {' | '.join([*baselines, *models])} |")
    print("|---" * (2 + len(baselines) + len(models)) + "|")
    for name, pairs, sigmas in rows(polyu, every):
        if only not in name:
            continue
        before = [min(score(*pair), 99) for pair in pairs]
        scores = [float(np.mean(before))]
        for denoise in baselines.values():
            scores.append(max(float(np.mean([score(denoise(n, s), c) for n, c in pairs])) for s in sigmas))
        after = {name: [score(denoise(n), c) for n, c in pairs] for name, denoise in models.items()}
        scores += [float(np.mean(found)) for found in after.values()]
        print(f"| {name} | " + " | ".join("∞" if one == 99 else f"{one:.2f}" for one in scores) + " |", flush=True)
        if name == "PolyU":
            for what, found in after.items():
                gain = np.subtract(found, before)
                print(f"{what}: {np.sum(gain < 0)} of {len(pairs)} worse, least gain {gain.min():.2f} dB", flush=True)


if __name__ == "__main__":
    typer.run(main)
