"""How a student should be distilled, at an equal budget: which targets, the mean or the sum, recharged, on which crops.

    python benchmarks/distilling.py train FOLDER TEACHER OTHER RUNS
    python benchmarks/distilling.py score RUNS NOISY CLEAN

The recipe ``distill-cpu`` with 4 crops of 128x128, as it was before, and a fast student but where the paper's U-Net is
named; the targets of the blind-spot network TEACHER, and of another, OTHER, are computed once for all answers.
``score`` prints the mean PSNR. What is done is kept, so that both go on where they were stopped.
"""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Annotated

import numpy as np
import torch
import typer
from torch import Tensor, nn

from tbsn import metrics
from tbsn.denoiser import find
from tbsn.evaluation.pairs import evaluate, find_pairs
from tbsn.network.files import Student, build, load_network
from tbsn.settings import TeacherSettings
from tbsn.teacher import BlindNetwork, load_denoiser
from tbsn.training import kept, losses, runs
from tbsn.training.data import Crops
from tbsn.training.fit import fit
from tbsn.training.recipe import DistillRecipe, TargetSettings, load_recipe
from tbsn.training.start import Start, at_work

app = typer.Typer(add_completion=False, pretty_exceptions_enable=False)

TARGETS = TargetSettings(estimate=True, refinements=(0.0, 0.16, 0.3, 0.5, 0.5))
PD_PASS, NOTHING, SIXTH, THIRD, HALF, _ = range(6)  # the pass and, by what is put back, its refinements
FEWER = TargetSettings(estimate=True, refinements=(0.16,))
STRIDES = (1, 3)  # of PD, beside the teacher's own
OTHER_STRIDES, OTHER_TEACHER = range(6, 10), range(10, 12)
BUDGET = ["network.kind=FastUNet", "fit.clip=1", "fit.steps=1200", "fit.checkpoint_every=200"]
BUDGET += ["fit.crop=128", "fit.batch=4", "fit.lr=5e-4", "fit.beta2=0.999"]


@dataclass(frozen=True)
class Taught:
    """The loss of one answer: L1 to some of the targets, or to their ``mean``.

    A share ``recharged`` of the values of a target is that of the noisy image, other ones at every step.
    """

    targets: Sequence[int] = (PD_PASS, SIXTH)
    mean: bool = False
    recharged: float = 0.0

    def __call__(self, model: nn.Module, batch: Sequence[Tensor]) -> Tensor:
        noisy, *targets = batch
        chosen = torch.cat(targets, dim=1).unflatten(1, (-1, noisy.shape[1]))[:, list(self.targets)]
        if self.mean:
            chosen = chosen.mean(dim=1, keepdim=True)
        chosen = torch.where(torch.rand_like(chosen) < self.recharged, noisy[:, None], chosen)
        return losses.distillation(model, (noisy, chosen.flatten(1, 2)))


ANSWERS = {
    "a refinement, nothing put back (the paper's)": (Taught([NOTHING]), ""),
    "the PD pass": (Taught([PD_PASS]), ""),
    "a refinement, 0.3 put back": (Taught([THIRD]), ""),
    "a refinement, 0.5 put back": (Taught([HALF]), ""),
    "the PD pass and a refinement of 0.16 (the recipe's)": (Taught(), ""),
    "the same, to their mean": (Taught(mean=True), ""),
    "the PD pass and refinements of 0, 0.16, 0.3, 0.5, 0.5": (Taught(range(6)), ""),
    "the same, to the mean of all": (Taught(range(6), mean=True), ""),
    "the recipe's, and the same by PD-1 and PD-3": (Taught((PD_PASS, SIXTH, *OTHER_STRIDES)), ""),
    "the same, to their mean, by PD-1 to PD-3": (Taught((PD_PASS, SIXTH, *OTHER_STRIDES), mean=True), ""),
    "the recipe's, and the same of another teacher": (Taught((PD_PASS, SIXTH, *OTHER_TEACHER)), ""),
    "the same, to their mean, of two teachers": (Taught((PD_PASS, SIXTH, *OTHER_TEACHER), mean=True), ""),
    "the recipe's, 0.1 recharged": (Taught(recharged=0.1), ""),
    "the recipe's, 0.3 recharged": (Taught(recharged=0.3), ""),
    "the recipe's, 16 crops of 64x64": (Taught(), "fit.crop=64 fit.batch=16"),
    "the recipe's, 1 crop of 256x256": (Taught(), "fit.crop=256 fit.batch=1"),
    "the recipe's, no flips or turns": (Taught(), "fit.augment=false"),
    "the recipe's, the learning rate stays": (Taught(), "fit.milestones=[]"),
    "the recipe's, weights not averaged": (Taught(), "fit.ema=0"),
    "the recipe's, the paper's U-Net": (Taught(), "network.kind=UNet"),
    "the same, 16 crops of 64x64": (Taught(), "network.kind=UNet fit.crop=64 fit.batch=16"),
}


def blind(name: str) -> BlindNetwork:
    network = load_network(find(name))
    if isinstance(network, Student):
        raise typer.BadParameter(f"{name} is no blind-spot network")
    return network


@app.command()
def train(
    folder: Annotated[Path, typer.Argument(help="Folder of noisy images.")],
    teacher: Annotated[str, typer.Argument(help="A blind-spot network with PD.")],
    other: Annotated[str, typer.Argument(help="Another, as from another seed.")],
    output: Annotated[Path, typer.Argument(metavar="RUNS", help="Folder for the runs.")],
) -> None:
    """Train every answer."""
    bsn, second = (blind(name) for name in (teacher, other))
    kinds = [("", bsn, TARGETS), *((f"pd-{one}", bsn, FEWER.model_copy(update={"pd": one})) for one in STRIDES)]
    kinds.append(("other", second, FEWER))
    for answer, (loss, settings) in ANSWERS.items():
        recipe = load_recipe(DistillRecipe, "distill-cpu", [*BUDGET, *settings.split()])
        run = output / answer
        with at_work(run, recipe, Start("cpu"), dict) as (fabric, places):
            photos = runs.open_photos(folder, output, 3, recipe.fit.crop)
            taught = [kept.targets([by], photos, how, output / name, fabric.device) for name, by, how in kinds]
            crops, held_back = runs.open_crops(partial(Crops, [photos, *taught]), photos, recipe.fit, places)
            torch.manual_seed(recipe.fit.seed)
            fit(build(recipe.network), loss, crops, recipe.fit, run, fabric, held_back=held_back)


@app.command()
def score(
    output: Annotated[Path, typer.Argument(metavar="RUNS", help="Folder of the runs.")],
    noisy: Annotated[Path, typer.Argument(metavar="NOISY", help="Folder of noisy images.")],
    clean: Annotated[Path, typer.Argument(metavar="CLEAN", help="Folder of clean ones.")],
) -> None:
    """Score all students, then print the table."""
    pairs = find_pairs(noisy, clean)
    print("| student of | PSNR | SSIM |\n|---|---|---|")
    for answer in ANSWERS:
        result = output / answer / "score.json"
        if not result.exists():
            denoise = load_denoiser(output / answer, TeacherSettings())
            found = [(one.psnr, one.ssim) for one in evaluate(denoise, pairs, metrics.PROTOCOLS["sidd"])]
            result.write_text(json.dumps(np.mean(found, axis=0).tolist()))
        psnr, ssim = json.loads(result.read_text())
        print(f"| {answer} | {psnr:.2f} | {ssim:.3f} |", flush=True)


if __name__ == "__main__":
    app()
