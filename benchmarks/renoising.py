"""What a student should learn from, beside what a teacher says: pairs, the mean of noise, crops, at an equal budget.

    python benchmarks/renoising.py train FOLDER MODEL RUNS
    python benchmarks/renoising.py score FOLDER MODEL RUNS NOISY CLEAN --every 8

The recipe ``renoise-cpu`` with BUDGET; MODEL is the first denoiser, a blind-spot network with PD, whose estimates, of
one pass, are computed once for all answers. ``--share 1/2`` and ``2/2`` are for two processes side by side, a thread
each, once the estimates are there. ``score`` prints the loss on pairs of images held back, the same of the whole recipe
for all, the mean PSNR and SSIM, and the mean PSNR of three clean photos, which a denoiser should leave alone. What is
done is kept, so that both go on where they were stopped.
"""

import json
import shutil
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Annotated, Any
from unittest.mock import patch

import numpy as np
import torch
import typer
from other_noise import PHOTOS, as_float
from other_noise import score as psnr
from torch import Tensor, nn
from torch.nn import functional as F

import tbsn
from tbsn import images, metrics
from tbsn.evaluation.pairs import evaluate, find_pairs
from tbsn.network.files import build, load_network
from tbsn.settings import TeacherSettings
from tbsn.teacher import load_denoiser
from tbsn.training import kept, losses, runs
from tbsn.training.data import Renoised
from tbsn.training.fit import fit, mean_loss
from tbsn.training.noise_model import unclipped_mean
from tbsn.training.photos import Photos
from tbsn.training.recipe import RenoiseRecipe, load_recipe
from tbsn.training.start import Start, at_work

app = typer.Typer(add_completion=False, pretty_exceptions_enable=False)

BUDGET = ["fit.steps=300", "fit.checkpoint_every=100", "fit.warmup=50", "fit.ema=0.99", "fit.beta2=0.99"]
BUDGET += ["fit.workers=0"]
ALONE = "pairs.halved=0 pairs.leaves=0 pairs.mixed=0 pairs.plain=0 pairs.grey=0 pairs.stops=0 pairs.weak=0"
SHARE = 0.5
CROP = 128


class Doubled(Renoised):
    """A photo with noise like its own added, and with the same noise taken away: right on average."""

    def _cut(self, index: int, random: np.random.Generator) -> list[np.ndarray]:
        photo, estimate = self._seen(index, random)
        noise = self._model(index).draw(estimate, random)
        return [self._rounded(photo + noise, index), photo - noise]

    def _seen(self, index: int, random: np.random.Generator) -> list[np.ndarray]:
        where = self._place(index, self.crop, random)
        return [images.to_float(stack[index][where]) for stack in self.stacks]

    def _rounded(self, image: np.ndarray, index: int) -> np.ndarray:
        return images.to_float(images.from_float(image, self.stacks[0][index].dtype))


class Recorrupted(Doubled):
    """The same with Gaussian noise of the covariance of the photo's, weaker in the input (arXiv 2102.02234)."""

    def _cut(self, index: int, random: np.random.Generator) -> list[np.ndarray]:
        photo, estimate = self._seen(index, random)
        model = self._model(index)
        drawn = model.draw(estimate, random)
        mirrored = model.of_scores(-model.scores(drawn, estimate), estimate)
        noise = (drawn - mirrored) / 2
        return [self._rounded(photo + SHARE * noise, index), photo - noise / SHARE]


def squared(model: nn.Module, batch: Sequence[Tensor]) -> Tensor:
    """``d²``: of a target that holds noise, the mean is learned."""
    noisy, target = batch
    return F.mse_loss(model(noisy), target)


@dataclass(frozen=True)
class Answer:
    """``mean`` is the mean of light of which the noise has none, ``after`` the answer whose student is the denoiser."""

    settings: str = ""
    pairs: type[Renoised] = Renoised
    mean: Callable[[np.ndarray], Any] = unclipped_mean
    after: str = ""


RECIPE = "the recipe's: also weaker noise, dead leaves, noise of no camera, grey"
ANSWERS = {
    "photos with Gaussian noise, and without (R2R)": Answer(ALONE, Recorrupted),
    "photos with their noise doubled, and without": Answer(ALONE, Doubled),
    "estimates with drawn noise": Answer(ALONE),
    "the same, half of them shrunk to half": Answer(f"{ALONE} pairs.halved=0.5"),
    "the same, of other exposures, half of two photos": Answer(
        f"{ALONE} pairs.halved=0.5 pairs.stops=1 pairs.mixed=0.5"
    ),
    RECIPE: Answer(),
    "the recipe's, the mean of noise its median": Answer(mean=np.median),
    "the recipe's, the mean of noise that of values": Answer("pairs.curve=linear", mean=np.mean),
    "the recipe's, a second round": Answer(after=RECIPE),
    "the recipe's, 32 crops of 64x64": Answer("fit.crop=64 fit.batch=32"),
}

Folder = Annotated[Path, typer.Argument(metavar="FOLDER", help="Folder of noisy images.")]
Model = Annotated[str, typer.Argument(metavar="MODEL", help="The first denoiser.")]
Runs = Annotated[Path, typer.Argument(metavar="RUNS", help="Folder for the runs.")]


def recipe_of(answer: Answer) -> RenoiseRecipe:
    return load_recipe(RenoiseRecipe, "renoise-cpu", [*BUDGET, *answer.settings.split()])


def open_pairs(
    photos: Photos, model: str, run: Path, answer: Answer, places: range, recipe: RenoiseRecipe
) -> tuple[Renoised, list[Sequence[Tensor]]]:
    """What `tbsn renoise` would train on, and what it would hold back."""
    one_pass = TeacherSettings(passes=None if answer.after else 0)  # R3 would take an hour
    known = tbsn.load(model, one_pass, strength=1, device="cpu")
    denoiser = known.self_ensemble() if known.local else known
    estimates = kept.estimates(denoiser, model.encode(), photos, run)
    power = kept.power(denoiser, photos, estimates, "sRGB", CROP)
    with patch("tbsn.training.noise_model.unclipped_mean", lambda light: float(answer.mean(light))):
        models = kept.noise_models(photos, estimates, recipe.pairs.curve, power, CROP)
    cut = partial(answer.pairs, photos, estimates, models, how=recipe.pairs)
    return runs.open_crops(cut, photos, recipe.fit, places)  # type: ignore[return-value]


@app.command()
def train(
    folder: Folder,
    model: Model,
    output: Runs,
    share: Annotated[str, typer.Option(help="Part of the work: 1/2 and 2/2 for two processes.")] = "1/1",
) -> None:
    """Train every answer."""
    part, parts = map(int, share.split("/"))
    torch.set_num_threads(max(1, torch.get_num_threads() // parts))
    for name, answer in list(ANSWERS.items())[part - 1 :: parts]:
        recipe, run = recipe_of(answer), output / name
        with at_work(run, recipe, Start("cpu"), dict) as (fabric, places):
            photos = runs.open_photos(folder, output, 3, recipe.fit.crop)
            first, where = (str(output / answer.after), run) if answer.after else (model, output)
            if answer.mean is not unclipped_mean:  # other models of the noise, of the same estimates
                where, but = run, shutil.ignore_patterns("noise")
                shutil.copytree(output / "estimates", run / "estimates", ignore=but, dirs_exist_ok=True)
            crops, held_back = open_pairs(photos, first, where, answer, places, recipe)
            torch.manual_seed(recipe.fit.seed)
            network = build(recipe.network)
            if answer.after:
                network.load_state_dict(load_network(Path(first)).state_dict())
            loss = squared if issubclass(answer.pairs, Doubled) else losses.renoised
            fit(network, loss, crops, recipe.fit, run, fabric, held_back=held_back)


@app.command()
def score(
    folder: Folder,
    model: Model,
    output: Runs,
    noisy: Annotated[Path, typer.Argument(metavar="NOISY", help="Folder of noisy images.")],
    clean: Annotated[Path, typer.Argument(metavar="CLEAN", help="Folder of clean ones.")],
    every: Annotated[int, typer.Option(help="Take every n-th pair.")] = 1,
) -> None:
    """Score all students, then print the table."""
    whole, pairs = recipe_of(Answer()), find_pairs(noisy, clean)[::every]
    photos = runs.open_photos(folder, output, 3, whole.fit.crop)
    _, held_back = open_pairs(photos, model, output, Answer(), range(1), whole)
    print("| student of | steps/s | loss held back | PSNR | SSIM | clean photos |\n|---|---|---|---|---|---|")
    for name in ANSWERS:
        run = output / name
        result = run / f"score-{len(pairs)}.json"
        if not result.exists():
            network = load_network(run)
            lost = mean_loss(network, losses.renoised, held_back, torch.device("cpu"), mixed=False)
            denoise = load_denoiser(run, TeacherSettings())
            found = [(one.psnr, one.ssim) for one in evaluate(denoise, pairs, metrics.PROTOCOLS["sidd"])]
            left = np.mean([psnr(denoise(one), one) for one in (as_float(photo()) for photo in PHOTOS)])
            result.write_text(json.dumps([lost, *np.mean(found, axis=0), float(left)]))
        log = [json.loads(line) for line in (run / "log.jsonl").read_text().splitlines()]
        speed = np.median([entry["steps_per_second"] for entry in log if "steps_per_second" in entry])
        lost, found, ssim, left = json.loads(result.read_text())
        print(f"| {name} | {speed:.2f} | {lost:.3f} | {found:.2f} | {ssim:.3f} | {left:.1f} |", flush=True)


if __name__ == "__main__":
    app()
