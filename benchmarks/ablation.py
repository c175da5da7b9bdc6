"""One question, its answers trained at an equal budget, over seeds: which parts of the network, which PD stride, ...

An answer is a few settings, another way to cut crops, another loss or another optimiser. Those of `size`, `crops`,
`loss` and `optimiser` are to be compared with the first of `training`; those of `window` see larger sub-images.

    python benchmarks/ablation.py train FOLDER RUNS attention --seeds 3
    python benchmarks/ablation.py score FOLDER RUNS NOISY CLEAN attention --every 4

``train`` trains each answer for each seed, by the recipe ``cpu`` and BUDGET; ``--share 1/2`` and
``2/2`` are for two processes side by side. ``score`` prints the mean PSNR of one PD pass with its standard deviation
over the seeds, and the loss on the images held back: L1 on the same 128 crops, whatever an answer was trained on. What
is done is kept, so that both go on where they were stopped.
"""

import json
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Annotated, Any
from unittest.mock import patch

import numpy as np
import torch
import typer
from torch import Tensor, nn
from torch.nn import functional as F
from torch.optim import SGD, AdamW, NAdam, Optimizer

from tbsn import images, metrics
from tbsn.evaluation.pairs import evaluate, find_pairs
from tbsn.network.files import Network, build, load_network, parameters
from tbsn.network.phases import pd
from tbsn.settings import TeacherSettings
from tbsn.teacher import numpy_denoiser
from tbsn.training import losses, runs
from tbsn.training.data import Crops
from tbsn.training.fit import Loss, fit, mean_loss
from tbsn.training.recipe import TrainRecipe, load_recipe
from tbsn.training.start import Start, at_work

app = typer.Typer(add_completion=False, pretty_exceptions_enable=False)

BUDGET = ["fit.batch=4", "fit.steps=1800", "fit.ema=0.995", "fit.beta2=0.999", "fit.checkpoint_every=600"]
PART = "network.channel_attention={} network.spatial_attention={}"
LARGE = "pd=4 fit.crop=256"
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
        "no weight decay": "fit.weight_decay=0",
        "batches of 16, a quarter of the steps": "fit.batch=16 fit.steps=450 fit.checkpoint_every=150",
        "batches of 1, four times the steps": "fit.batch=1 fit.steps=7200 fit.checkpoint_every=2400",
    },
    "size": {
        "width 36, 1 block": "network.width=36 network.group_channels=36 network.blocks=[1,1,1] network.refinement=1",
        "width 16, 4 blocks": "network.width=16 network.group_channels=16 network.blocks=[4,4,4] network.refinement=4",
        "groups of 12 channels": "network.group_channels=12",
    },
    "window": {f"windows of {side} pixels": f"{LARGE} fit.batch=1 network.window={side}" for side in (8, 16)},
    "crops": {
        "channels in any order": "",
        "brighter and darker": "",
        "PD-3 to PD-6": "fit.crop=192",
        "all 25 sub-images of a crop": "fit.batch=25 fit.steps=288 fit.checkpoint_every=96",
    },
    "loss": {"Charbonnier": "", "squared": "", "likelihood": "network.channels=6"},
    "optimiser": {
        "beta2 of 0.99": "fit.beta2=0.99",
        "Nesterov": "",
        "gradient descent with momentum": "fit.lr=0.1 fit.weight_decay=1e-4",
    },
}


class Permuted(Crops):
    """The channels in any order."""

    def _cut(self, index: int, random: np.random.Generator) -> list[np.ndarray]:
        order = random.permutation(3)
        return [crop[..., order] for crop in super()._cut(index, random)]


class Brightened(Crops):
    """Half a stop brighter or darker, the noise too."""

    def _cut(self, index: int, random: np.random.Generator) -> list[np.ndarray]:
        gain = np.float32(2 ** random.uniform(-0.5, 0.5))
        return [gain * crop for crop in super()._cut(index, random)]


class MixedStrides(Crops):
    """A sub-image of 32x32 by a PD stride from 3 to 6."""

    def _cut(self, index: int, random: np.random.Generator) -> list[np.ndarray]:
        stride = int(random.integers(3, 7))
        where = self._place(index, 32 * stride, random)
        return [images.to_float(photos[index][where][::stride, ::stride]) for photos in self.stacks]


class AllSubImages(Crops):
    """All sub-images of one crop: the batch must be as large as they are many."""

    def __init__(self, stacks: Any, *, places: Sequence[int], stride: int, **settings: Any) -> None:
        super().__init__(stacks, places=places[:1], **settings)
        self.pd = stride

    def __getitem__(self, step: int) -> tuple[Tensor, ...]:  # type: ignore[override]
        return tuple(pd(whole, self.pd) for whole in super().__getitem__(step))


def charbonnier(model: nn.Module, batch: Sequence[Tensor]) -> Tensor:
    """``sqrt(d² + (1/255)²)``."""
    (noisy,) = batch
    return ((model(noisy) - noisy).square() + (1 / 255) ** 2).sqrt().mean()


def squared(model: nn.Module, batch: Sequence[Tensor]) -> Tensor:
    """``d²``."""
    (noisy,) = batch
    return F.mse_loss(model(noisy), noisy)


def likelihood(model: nn.Module, batch: Sequence[Tensor]) -> Tensor:
    """Of a Laplace distribution; its mean and an eighth of its scale's logarithm are the output, so of six channels."""
    (noisy,) = batch
    mean, eighth = model(torch.cat([noisy, noisy], dim=1)).chunk(2, dim=1)
    return ((mean - noisy).abs() * (-8 * eighth).exp() + 8 * eighth).mean()


CROPS: dict[str, type[Crops]] = {
    "channels in any order": Permuted,
    "brighter and darker": Brightened,
    "PD-3 to PD-6": MixedStrides,
    "all 25 sub-images of a crop": AllSubImages,
}
LOSSES: dict[str, Loss] = {"Charbonnier": charbonnier, "squared": squared, "likelihood": likelihood}
OPTIMISERS: dict[str, Callable[..., Optimizer]] = {
    "Nesterov": lambda *weights, fused, **settings: NAdam(*weights, decoupled_weight_decay=True, **settings),
    "gradient descent with momentum": lambda *weights, betas, **settings: SGD(*weights, momentum=0.9, **settings),
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
        run = output / question / answer / f"seed-{seed}"
        with at_work(run, recipe, Start("cpu"), dict) as (fabric, places):
            photos = runs.open_photos(folder, run, 3, recipe.fit.crop)
            cut = partial(CROPS.get(answer, Crops), [photos], stride=recipe.pd)
            crops, held_back = runs.open_crops(cut, photos, recipe.fit, places)
            torch.manual_seed(seed)
            network = build(recipe.network)
            with patch("tbsn.training.state.AdamW", OPTIMISERS.get(answer, AdamW)):
                fit(network, LOSSES.get(answer, losses.blind_spot), crops, recipe.fit, run, fabric, held_back=held_back)


@app.command()
def score(
    folder: Annotated[Path, typer.Argument(help="Folder of noisy images that they were trained on.")],
    output: Annotated[Path, typer.Argument(metavar="RUNS", help="Folder of the runs.")],
    noisy: Annotated[Path, typer.Argument(metavar="NOISY", help="Folder of noisy images.")],
    clean: Annotated[Path, typer.Argument(metavar="CLEAN", help="Folder of clean ones.")],
    question: Question,
    seeds: Seeds = 3,
    every: Annotated[int, typer.Option(help="Take every n-th pair.")] = 1,
) -> None:
    """Score the networks of all runs, then print the table."""
    pairs = find_pairs(noisy, clean)[::every]
    large = LARGE.split() if question == "window" else []
    held_back = [_held_back(folder, output, [f"fit.seed={seed}", *large]) for seed in range(seeds)]
    print("| | parameters | steps/s | loss held back | PSNR |\n|---|---|---|---|---|")
    for answer in QUESTIONS[question]:
        scores, speeds, lost, size = [], [], [], 0
        for seed in range(seeds):
            run = output / question / answer / f"seed-{seed}"
            network, kept = _of_three_channels(load_network(run)), run / f"psnr-{len(pairs)}.json"
            size = parameters(network)
            if not kept.exists():
                denoise = numpy_denoiser(network, TeacherSettings(passes=0), answer)
                found = [one.psnr for one in evaluate(denoise, pairs, metrics.PROTOCOLS["sidd"])]
                kept.write_text(json.dumps(float(np.mean(found))))
            scores.append(json.loads(kept.read_text()))
            log = [json.loads(line) for line in (run / "log.jsonl").read_text().splitlines()]
            lost.append(mean_loss(network, losses.blind_spot, held_back[seed], torch.device("cpu"), mixed=False))
            speeds.append(np.median([entry["steps_per_second"] for entry in log if "steps_per_second" in entry]))
        values = f"{np.mean(speeds):.2f} | {np.mean(lost):.5f} | {_spread(scores)}"
        print(f"| {answer} | {size:,} | {values} |", flush=True)


def _held_back(folder: Path, output: Path, settings: list[str]) -> list[Sequence[Tensor]]:
    """Crops that no run of this seed was trained on: where an answer holds more images back, they are among those."""
    recipe = load_recipe(TrainRecipe, "cpu", settings)
    photos = runs.open_photos(folder, output, 3, recipe.fit.crop)
    return runs.open_crops(partial(Crops, [photos], stride=recipe.pd), photos, recipe.fit, range(1))[1]


def _of_three_channels(network: Network) -> Network:
    """The mean alone of a network that was trained by `likelihood`."""
    if network.config.channels == 3:
        return network
    weights = network.state_dict()
    weights["embed.weight"] = weights["embed.weight"][:, :3] + weights["embed.weight"][:, 3:]
    weights["output.weight"] = weights["output.weight"][:3]
    of_three = build(network.config.model_copy(update={"channels": 3}))
    of_three.load_state_dict(weights)
    return of_three.eval()


def _spread(values: list[float]) -> str:
    return f"{np.mean(values):.2f}" + (f" ± {np.std(values, ddof=1):.2f}" if len(values) > 1 else "")


if __name__ == "__main__":
    app()
