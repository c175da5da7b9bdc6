"""How much more than the measured noise models take out of noisy images: what `tbsn.denoiser.trusted` has to allow.

python benchmarks/trust.py FOLDER --every 4
"""

from pathlib import Path
from typing import Annotated

import numpy as np
import typer

import tbsn
from tbsn import images
from tbsn.noise import combine, survey

QUANTILES = (0, 0.1, 0.5, 0.9, 0.99, 1)


def main(
    folder: Annotated[Path, typer.Argument(help="Folder of noisy images.")],
    model: Annotated[list[str], typer.Option(help="Repeatable.")] = ["default", "unet"],  # noqa: B006
    every: Annotated[int, typer.Option(help="Take every n-th image.")] = 1,
) -> None:
    noisy = [images.to_float(images.read(file).pixels) for file in list(images.find([folder]))[::every]]
    level = np.array([np.sqrt((combine([survey(image)]).level ** 2).mean()) for image in noisy])
    print(f"| taken out, of the noise measured | {' | '.join(f'{q:.0%}' for q in QUANTILES)} |")
    print("|---" * (1 + len(QUANTILES)) + "|")
    for name in model:
        denoise = tbsn.load(name, strength=1)
        removed = np.array([np.sqrt(np.mean((image - denoise(image)) ** 2)) for image in noisy])
        print(f"| {name} | {' | '.join(f'{value:.2f}' for value in np.quantile(removed / level, QUANTILES))} |")


if __name__ == "__main__":
    typer.run(main)
