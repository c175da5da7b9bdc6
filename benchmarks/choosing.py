"""Which weights of a run to keep, chosen without clean images: how much is lost against the best, over seeds.

    python benchmarks/choosing.py train FOLDER RUNS --seeds 3
    python benchmarks/choosing.py score RUNS NOISY CLEAN --every 4

``train`` runs a recipe for each seed, as `tbsn train` does, and keeps the weights of every checkpoint, last and
averaged. ``score`` then scores them on pairs (every 4th here) by PSNR with one PD pass, and prints for each seed: the
last weights, the average of the weights (EMA), the average chosen by the loss on images held back, and the best of all,
chosen with the clean images. What is done is kept, so that both go on where they were stopped.
"""

import json
from functools import partial
from pathlib import Path
from typing import Annotated

import numpy as np
import torch
import typer

from tbsn import metrics
from tbsn.evaluation.pairs import evaluate, find_pairs
from tbsn.network.files import Network, build, load_network, save_network
from tbsn.settings import TeacherSettings
from tbsn.teacher import numpy_denoiser
from tbsn.training import losses, runs
from tbsn.training.data import Crops
from tbsn.training.fit import fit
from tbsn.training.recipe import TrainRecipe, load_recipe
from tbsn.training.start import Start, at_work

app = typer.Typer(add_completion=False, pretty_exceptions_enable=False)
KINDS = {"last": "last", "average": "EMA"}


@app.command()
def train(
    folder: Annotated[Path, typer.Argument(help="Folder of noisy images.")],
    output: Annotated[Path, typer.Argument(metavar="RUNS", help="Folder for the runs.")],
    recipe: Annotated[str, typer.Option(help="Recipe.")] = "cpu",
    seeds: Annotated[int, typer.Option(help="Number of seeds.")] = 3,
) -> None:
    """Train for each seed and keep every checkpoint."""
    for seed in range(seeds):
        settings, run = load_recipe(TrainRecipe, recipe, [f"fit.seed={seed}"]), output / f"seed-{seed}"
        with at_work(run, settings, Start("cpu"), dict) as (fabric, places):
            photos = runs.open_photos(folder, run, settings.network.channels, settings.fit.crop, output / "seed-0")
            cut = partial(Crops, [photos], stride=settings.pd)
            crops, held_back = runs.open_crops(cut, photos, settings.fit, places)
            torch.manual_seed(seed)
            network = build(settings.network)
            kept = run / "weights"
            kept.mkdir(exist_ok=True)

            def keep(step: int, averaged: Network, network: Network = network, kept: Path = kept) -> None:
                save_network(kept / f"last-{step:06}.safetensors", network)
                save_network(kept / f"average-{step:06}.safetensors", averaged)

            fit(network, losses.blind_spot, crops, settings.fit, run, fabric, held_back=held_back, watch=keep)


@app.command()
def score(
    runs_folder: Annotated[Path, typer.Argument(metavar="RUNS", help="Folder of the runs.")],
    noisy: Annotated[Path, typer.Argument(metavar="NOISY", help="Folder of noisy images.")],
    clean: Annotated[Path, typer.Argument(metavar="CLEAN", help="Folder of clean ones.")],
    every: Annotated[int, typer.Option(help="Take every n-th pair.")] = 1,
) -> None:
    """Score every checkpoint, then print the table."""
    pairs = find_pairs(noisy, clean)[::every]
    table = []
    for run in sorted(runs_folder.glob("seed-*")):
        for path in sorted((run / "weights").glob("*.safetensors")):
            result = path.with_suffix(".json")
            if not result.exists():
                denoise = numpy_denoiser(load_network(path), TeacherSettings(passes=0), path.stem)
                scores = [one.psnr for one in evaluate(denoise, pairs, metrics.PROTOCOLS["sidd"])]
                result.write_text(json.dumps({"psnr": float(np.mean(scores)), "pairs": len(scores)}))
        table.append(row(run))
        print_row(run.name, table[-1])
    if len(table) == 1:
        return
    mean, spread = np.mean(table, axis=0), np.std(table, axis=0, ddof=1)
    print("| mean ± standard deviation |" + "|".join(f" {m:.2f} ± {s:.2f} " for m, s in zip(mean, spread, strict=True)))


def row(run: Path) -> list[float]:
    """PSNR of the last weights, the last average, the chosen average, the best of all; and what the choice loses."""
    found = {
        kind: {
            int(path.stem.split("-")[1]): json.loads(path.read_text())["psnr"]
            for path in sorted((run / "weights").glob(f"{kind}-*.json"))
        }
        for kind in KINDS
    }
    log = [json.loads(line) for line in (run / "log.jsonl").read_text().splitlines()]
    held_back = {entry["step"]: entry["held_back"] for entry in log if "held_back" in entry}
    chosen = found["average"][min(held_back, key=held_back.__getitem__)]
    last, average = (found[kind][max(found[kind])] for kind in KINDS)
    best = max(max(scores.values()) for scores in found.values())
    for step, loss in held_back.items():
        print(f"{run.name}  step {step:6}  held back {loss:.5f}  last {found['last'][step]:.2f}", end="  ")
        print(f"EMA {found['average'][step]:.2f}")
    return [last, average, chosen, best, best - chosen]


def print_row(name: str, values: list[float]) -> None:
    print("| run | last | EMA | chosen | best | best - chosen |\n|---|---|---|---|---|---|")
    print(f"| {name} |" + "|".join(f" {value:.2f} " for value in values) + "|", flush=True)


if __name__ == "__main__":
    app()
