"""How a trained TBSN is best used: PD stride, R3 and its patterns, self-ensemble; score and time of each.

    python benchmarks/inference.py MODEL NOISY CLEAN --every 16

A pattern puts each noisy value back in one of the passes; R3 draws them at random.
"""

from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Annotated

import numpy as np
import torch
import typer
from torch import Tensor

from tbsn import metrics
from tbsn.evaluation.pairs import evaluate, find_pairs
from tbsn.network.files import load_network
from tbsn.settings import TeacherSettings
from tbsn.teacher import Masks, as_numpy, downsampled, numpy_denoiser, padded, random_masks, refined

ONE_PASS = [TeacherSettings(stride=stride, passes=0) for stride in (1, 2, 3, 4, 5)]
REFINED = [TeacherSettings(stride=2, passes=8, probability=share) for share in (0.08, 0.16, 0.3, 0.5)]
PASSES = [TeacherSettings(stride=2, passes=passes) for passes in (1, 2, 4)]


def checkerboard(shape: torch.Size) -> Iterator[Tensor]:
    for lattices in ((0, 3), (1, 2)):
        yield lattice(shape, 2, lattices[0]) | lattice(shape, 2, lattices[1])


def one_in(side: int, shape: torch.Size) -> Iterator[Tensor]:
    for i in range(side**2):
        yield lattice(shape, side, i)


def lattice(shape: torch.Size, side: int, number: int) -> Tensor:
    mask = torch.zeros(shape, dtype=torch.bool)
    mask[..., number // side :: side, number % side :: side] = True
    return mask


Denoise = Callable[[np.ndarray], np.ndarray]
PATTERNS: dict[tuple[int, str, str], Masks] = {
    (2, "0.5", "checkerboard"): checkerboard,
    (2, "0.5", "random"): random_masks(2, 1 / 2, 0),
    (4, "0.25", "one of 2x2"): partial(one_in, 2),
    (4, "0.25", "random"): random_masks(4, 1 / 4, 0),
    (9, "0.11", "one of 3x3"): partial(one_in, 3),
    (9, "0.11", "random"): random_masks(9, 1 / 9, 0),
}


def main(
    model: Annotated[Path, typer.Argument(help="Run or model file of a blind-spot network.")],
    noisy: Annotated[Path, typer.Argument(metavar="NOISY", help="Folder of noisy images.")],
    clean: Annotated[Path, typer.Argument(metavar="CLEAN", help="Folder of clean ones.")],
    every: Annotated[int, typer.Option(help="Take every n-th pair.")] = 1,
) -> None:
    """Print the table."""
    pairs, network = find_pairs(noisy, clean)[::every], load_network(model)
    print("| PD stride | R3 passes | probability | | PSNR | seconds an image |\n|---|---|---|---|---|---|")
    rows: dict[tuple[object, ...], Denoise] = {}
    for one in (*ONE_PASS, *PASSES, *REFINED):
        refinement = (one.passes, one.probability) if one.passes else ("", "")
        rows[one.stride, *refinement, ""] = numpy_denoiser(network, one, "TBSN")
    once = TeacherSettings(stride=2, passes=0)
    rows[2, "", "", "self-ensemble"] = numpy_denoiser(network, once, "TBSN").self_ensemble()
    for pattern, masks in PATTERNS.items():
        denoiser = padded(refined(downsampled(network, 2), network, masks), 2 * network.multiple)
        rows[2, *pattern] = as_numpy(torch.no_grad()(denoiser), torch.device("cpu"))
    for row, denoise in rows.items():
        scores = list(evaluate(denoise, pairs, metrics.PROTOCOLS["sidd"]))
        values = f"{np.mean([one.psnr for one in scores]):.2f} | {np.mean([one.seconds for one in scores]):.2f}"
        print(f"| {' | '.join(map(str, row))} | {values} |", flush=True)


if __name__ == "__main__":
    typer.run(main)
