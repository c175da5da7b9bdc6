"""How a trained TBSN is best used: PD stride, R3's passes and probability, self-ensemble; score and time of each.

python benchmarks/inference.py MODEL NOISY CLEAN --every 16
"""

from pathlib import Path
from typing import Annotated

import numpy as np
import typer

from tbsn import metrics
from tbsn.evaluation.pairs import evaluate, find_pairs
from tbsn.network.files import load_network
from tbsn.settings import TeacherSettings
from tbsn.teacher import numpy_denoiser

ONE_PASS = [TeacherSettings(stride=stride, passes=0) for stride in (1, 2, 3, 4, 5)]
REFINED = [TeacherSettings(stride=2, passes=8, probability=share) for share in (0.08, 0.16, 0.3, 0.5)]
PASSES = [TeacherSettings(stride=2, passes=passes) for passes in (1, 2, 4)]


def main(
    model: Annotated[Path, typer.Argument(help="Run or model file of a blind-spot network.")],
    noisy: Annotated[Path, typer.Argument(metavar="NOISY", help="Folder of noisy images.")],
    clean: Annotated[Path, typer.Argument(metavar="CLEAN", help="Folder of clean ones.")],
    every: Annotated[int, typer.Option(help="Take every n-th pair.")] = 1,
) -> None:
    """Print the table."""
    pairs, network = find_pairs(noisy, clean)[::every], load_network(model)
    print(
        "| PD stride | R3 passes | probability | self-ensemble | PSNR | seconds an image |\n|---|---|---|---|---|---|"
    )
    ways = [(settings, False) for settings in (*ONE_PASS, *PASSES, *REFINED)]
    for settings, ensemble in (*ways, (TeacherSettings(stride=2, passes=0), True)):
        denoiser = numpy_denoiser(network, settings, "TBSN")
        denoiser = denoiser.self_ensemble() if ensemble else denoiser
        scores = list(evaluate(denoiser, pairs, metrics.PROTOCOLS["sidd"]))
        refined = f"{settings.passes} | {settings.probability}" if settings.passes else " | "
        values = f"{np.mean([one.psnr for one in scores]):.2f} | {np.mean([one.seconds for one in scores]):.2f}"
        print(f"| {settings.stride} | {refined} | {'yes' if ensemble else ''} | {values} |", flush=True)


if __name__ == "__main__":
    typer.run(main)
