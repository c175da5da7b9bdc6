"""How much more than the noise is taken out where noise is all there is: what `tbsn.trust` has to allow.

    python benchmarks/trust.py FOLDER --every 4

Of noisy images: quantiles, over the blocks of 8x8 pixels of all of them, of what a student takes out around a block, as
a multiple of the noise that `tbsn.trust` expects there. What is above MORE is taken for texture.
"""

from pathlib import Path
from typing import Annotated

import numpy as np
import typer

import tbsn
from tbsn import images
from tbsn.trust import MORE, measure

QUANTILES = (0.01, 0.1, 0.5, 0.9, 0.99, 0.999)


def main(
    folder: Annotated[Path, typer.Argument(help="Folder of noisy images.")],
    model: Annotated[list[str], typer.Option(help="Repeatable.")] = ["default", "unet"],  # noqa: B006
    every: Annotated[int, typer.Option(help="Take every n-th image.")] = 1,
) -> None:
    files = list(images.find([folder]))[::every]
    print(f"| taken out, of the noise | {' | '.join(f'{q:.1%}' for q in QUANTILES)} | above {MORE} |")
    print("|---" * (2 + len(QUANTILES)) + "|")
    for name in model:
        denoise, found = tbsn.load(name, strength=1), []
        for file in files:
            noisy = images.to_float(images.read(file).pixels)
            denoised = denoise(noisy)
            if trust := measure([(noisy, denoised)]):
                found.append(np.concatenate([one.ravel() for one in trust.ratios(noisy, denoised - noisy)]))
        ratios = np.concatenate(found)
        values = " | ".join(f"{value:.2f}" for value in np.quantile(ratios, QUANTILES))
        print(f"| {name} | {values} | {np.mean(ratios > MORE):.1%} |", flush=True)


if __name__ == "__main__":
    typer.run(main)
