"""One question, its answers trained at an equal budget, over seeds: which parts of the network, which PD stride, ...

    python benchmarks/ablation.py train FOLDER RUNS attention --seeds 3
    python benchmarks/ablation.py score RUNS NOISY CLEAN attention --every 4

``train`` trains each answer for each seed as `tbsn train` does, by the recipe ``cpu`` and BUDGET; ``--share 1/2`` and
``2/2`` are for two processes side by side. ``score`` prints the mean PSNR of one PD pass with its standard deviation
over the seeds. What is done is kept, so that both go on where they were stopped.
"""

import json
from pathlib import Path
from typing import Annotated

import numpy as np
import torch
import typer

from tbsn import metrics
from tbsn.evaluation.pairs import evaluate, find_pairs
from tbsn.network.files import load_network, parameters
from tbsn.settings import TeacherSettings
from tbsn.teacher import numpy_denoiser
from tbsn.training import runs
from tbsn.training.recipe import TrainRecipe, load_recipe

app = typer.Typer(add_completion=False, pretty_exceptions_enable=False)

BUDGET = ["fit.batch=4", "fit.steps=1800", "fit.checkpoint_every=600"]
PART = "network.channel_attention={} network.spatial_attention={}"
QUESTIONS = {
    "attention": {
        "convolutions": PART.format("'off'", "false"),
        "M-WSA": PART.format("'off'", "true"),
        "G-CSA": PART.format("grouped", "false"),
        "both": PART.format("grouped", "true"),
        "both, ungrouped": PART.format("ungrouped", "true"),
    },
    "stride": {f"PD-{stride}": f"pd={stride} fit.crop={32 * stride}" for stride in (2, 3, 4, 5, 6)},
    "amount": {f"{trained} of 640 images": f"fit.hold_back={1 - trained / 640}" for trained in (10, 40, 160, 608)},
    "training": {
        "as the recipe has it": "",
        "no flips or turns": "fit.augment=false",
        "no averaged weights": "fit.ema=0",
        "a third of the learning rate": "fit.lr=3.3e-4",
        "the learning rate falls": "fit.milestones=[0.5,0.8] fit.gamma=0.1",
        "batches of 16, a quarter of the steps": "fit.batch=16 fit.steps=450 fit.checkpoint_every=150",
        "batches of 1, four times the steps": "fit.batch=1 fit.steps=7200 fit.checkpoint_every=2400",
    },
}

Question = Annotated[str, typer.Argument(help=f"One of {', '.join(QUESTIONS)}.")]
Seeds = Annotated[int, typer.Option(help="Number of seeds.")]


@app.command()
def train(
    folder: Annotated[Path, typer.Argument(help="Folder of noisy images.")],
    output: Annotated[Path, typer.Argument(metavar="RUNS", help="Folder for the runs.")],
    question: Question,
    seeds: Seeds = 3,
    share: Annotated[str, typer.Option(help="Part of the work: 1/2 and 2/2 for two processes.")] = "1/1",
) -> None:
    """Train every answer for each seed."""
    part, parts = map(int, share.split("/"))
    torch.set_num_threads(max(1, torch.get_num_threads() // parts))
    todo = [(seed, *answer) for seed in range(seeds) for answer in QUESTIONS[question].items()]
    for seed, answer, settings in todo[part - 1 :: parts]:
        recipe = load_recipe(TrainRecipe, "cpu", [*BUDGET, *settings.split(), f"fit.seed={seed}"])
        runs.train(folder, output / question / answer / f"seed-{seed}", recipe, runs.Start(device="cpu"))


@app.command()
def score(
    output: Annotated[Path, typer.Argument(metavar="RUNS", help="Folder of the runs.")],
    noisy: Annotated[Path, typer.Argument(metavar="NOISY", help="Folder of noisy images.")],
    clean: Annotated[Path, typer.Argument(metavar="CLEAN", help="Folder of clean ones.")],
    question: Question,
    seeds: Seeds = 3,
    every: Annotated[int, typer.Option(help="Take every n-th pair.")] = 1,
) -> None:
    """Score the networks of all runs, then print the table."""
    pairs = find_pairs(noisy, clean)[::every]
    print("| | parameters | steps/s | loss held back | PSNR |\n|---|---|---|---|---|")
    for answer in QUESTIONS[question]:
        scores, speeds, losses, size = [], [], [], 0
        for run in (output / question / answer / f"seed-{seed}" for seed in range(seeds)):
            network, kept = load_network(run), run / f"psnr-{len(pairs)}.json"
            size = parameters(network)
            if not kept.exists():
                denoise = numpy_denoiser(network, TeacherSettings(passes=0), answer)
                found = [one.psnr for one in evaluate(denoise, pairs, metrics.PROTOCOLS["sidd"])]
                kept.write_text(json.dumps(float(np.mean(found))))
            scores.append(json.loads(kept.read_text()))
            log = [json.loads(line) for line in (run / "log.jsonl").read_text().splitlines()]
            losses.append([entry["held_back"] for entry in log if "held_back" in entry][-1])
            speeds.append(np.median([entry["steps_per_second"] for entry in log if "steps_per_second" in entry]))
        values = f"{np.mean(speeds):.2f} | {np.mean(losses):.5f} | {_spread(scores)}"
        print(f"| {answer} | {size:,} | {values} |", flush=True)


def _spread(values: list[float]) -> str:
    return f"{np.mean(values):.2f}" + (f" ± {np.std(values, ddof=1):.2f}" if len(values) > 1 else "")


if __name__ == "__main__":
    app()
