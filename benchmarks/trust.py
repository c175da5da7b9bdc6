"""How much more than the noise is taken out where noise is all there is: what `tbsn.trust` has to allow.

    python benchmarks/trust.py windows FOLDER
    python benchmarks/trust.py shrunk FOLDER --every 5

``windows``, of noisy images: quantiles, over the blocks of 8x8 pixels of all of them, of what a student takes out
around a block, as a multiple of the noise that `tbsn.trust` expects there. What is above MORE is taken for texture.
``shrunk``: noisy photos shrunk to half, where noise is weak and all is sharp, stand in for clean ones; mean PSNR after
noise is added and taken out.
"""

from pathlib import Path
from typing import Annotated

import numpy as np
import typer
from einops import reduce

import tbsn
from tbsn import images, metrics
from tbsn.trust import MORE, measure

app = typer.Typer(add_completion=False, pretty_exceptions_enable=False)

QUANTILES = (0.01, 0.1, 0.5, 0.9, 0.99, 0.999)
SIGMAS = (0, 5, 10, 20)

Model = Annotated[list[str], typer.Option(help="Repeatable.")]
Every = Annotated[int, typer.Option(help="Take every n-th image.")]


@app.command()
def windows(
    folder: Annotated[Path, typer.Argument(help="Folder of noisy images.")],
    model: Model = ["default"],  # noqa: B006
    every: Every = 1,
) -> None:
    """What is taken out, as a multiple of the noise."""
    files = list(images.find([folder]))[::every]
    print(f"| taken out, of the noise | {' | '.join(f'{q:.1%}' for q in QUANTILES)} | above {MORE} |")
    print("|---" * (2 + len(QUANTILES)) + "|")
    for name in model:
        denoise, found = tbsn.load(name, strength=1), []
        for file in files:
            noisy = images.to_float(images.read(file).pixels)
            denoised = denoise(noisy)
            if trust := measure([(noisy, denoised)]):
                ratios = np.concatenate([one.ravel() for one in trust.ratios(noisy, denoised - noisy)])
                found.append(ratios[ratios > 0])
        ratios = np.concatenate(found)
        values = " | ".join(f"{value:.2f}" for value in np.quantile(ratios, QUANTILES))
        print(f"| {name} | {values} | {np.mean(ratios > MORE):.1%} |", flush=True)


@app.command()
def shrunk(
    folder: Annotated[Path, typer.Argument(help="Folder of noisy photos, their names in *_real.JPG.")],
    model: Model = ["default"],  # noqa: B006
    every: Every = 1,
) -> None:
    """What is lost of noisy photos at half their size, with strength 1 and with `auto`."""
    files, rule = sorted(folder.glob("*_real.JPG"))[::every], metrics.PROTOCOLS["sidd"]
    print(f"| noise added | {' | '.join(f'{sigma}' for sigma in SIGMAS)} |")
    print("|---" * (1 + len(SIGMAS)) + "|")
    for name in model:
        for how, strength in (("", 1.0), (", auto", None)):
            denoise, random, means = tbsn.load(name, strength=strength), np.random.default_rng(0), []
            for sigma in SIGMAS:
                scores = []
                for file in files:
                    clean = images.to_float(images.read(file).pixels)
                    clean = reduce(clean, "(h p) (w q) c -> h w c", "mean", p=2, q=2)
                    noisy = clean + np.float32(sigma / 255) * random.standard_normal(clean.shape).astype(np.float32)
                    noisy = images.to_float(images.from_float(noisy, np.dtype(np.uint8)))
                    scores.append(metrics.psnr(denoise(noisy), clean, rule))
                means.append(f"{np.mean(scores):.2f}")
            print(f"| {name}{how} | {' | '.join(means)} |", flush=True)


if __name__ == "__main__":
    app()
