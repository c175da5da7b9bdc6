"""What a student should learn from, beside what a teacher says: pairs, the mean of noise, crops, at an equal budget.

    python benchmarks/renoising.py train FOLDER MODEL RUNS --passes 0
    python benchmarks/renoising.py score FOLDER MODEL RUNS NOISY CLEAN --every 8 --passes 0

The recipe ``renoise-cpu`` with a small budget, and 8 crops of 128x128 where nothing else is said, as it once had. MODEL
is the first denoiser, whose estimates are computed once for all answers of a RUNS: by one pass here, since R3 would
take an hour; by the self-ensemble, if it is a student. ``--only`` takes the answers that begin with it, for both
commands; another seed, or number of steps, wants another RUNS.
``--again`` has other answers: what should a student, MODEL, learn from its own estimates, and from its own weights?
``--share 1/2`` and ``2/2`` are for two processes side by side, a thread each, once the estimates are there. ``score``
prints the loss on pairs of images held back, the same of the whole recipe for all, the mean PSNR and SSIM, and the
mean PSNR of three clean photos, which a denoiser should leave alone. What is done is kept, so that both go on where
they were stopped.
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
from tbsn.denoiser import find
from tbsn.evaluation.pairs import evaluate, find_pairs
from tbsn.network.files import Network, build, load_network
from tbsn.settings import TeacherSettings
from tbsn.teacher import load_denoiser
from tbsn.training import kept, losses, runs
from tbsn.training.data import Renoised
from tbsn.training.fit import Loss, fit, mean_loss
from tbsn.training.noise_model import unclipped_mean
from tbsn.training.photos import Photos
from tbsn.training.recipe import RenoiseRecipe, load_recipe
from tbsn.training.start import Start, at_work

app = typer.Typer(add_completion=False, pretty_exceptions_enable=False)

ALONE = "pairs.halved=0 pairs.leaves=0 pairs.mixed=0 pairs.plain=0 pairs.grey=0 pairs.stops=0 pairs.weak=0"
GENTLE = "fit.lr=4e-4"
SHARE = 0.5
DOUBLED_WEIGHT = 15
CROP = 128
ANY = [""]


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


class Placed:
    """Random numbers, but for the place of a drawn cell, which is that of the photo's."""

    def __init__(self, random: np.random.Generator, where: Sequence[slice]) -> None:
        self.standard_normal, self.place = random.standard_normal, [part.start % 2 for part in where]

    def integers(self, *_: Any, **__: Any) -> list[int]:
        return self.place


class SomeDoubled(Doubled):
    """60 % of such pairs among those of the recipe; the third part of a batch (b, 1, 1, 1) is the weight of each."""

    in_place = False

    def _cut(self, index: int, random: np.random.Generator) -> list[np.ndarray]:
        if doubled := random.random() < 0.6:
            where = self._place(index, self.crop, random)
            photo, estimate = (images.to_float(stack[index][where]) for stack in self.stacks)
            placed: Any = Placed(random, where) if self.in_place else random
            noise = self._model(index).draw(estimate, placed)
            pair = [self._rounded(photo + noise, index), photo - noise]
        else:
            pair = Renoised._cut(self, index, random)
        return [*pair, np.full((1, 1, 1), DOUBLED_WEIGHT if doubled else 1, np.float32)]


class SomeInPlace(SomeDoubled):
    in_place = True


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


def weighted(model: nn.Module, batch: Sequence[Tensor]) -> Tensor:
    """The recipe's loss, by the weights that come with the pairs: noise in a target makes its gradient small."""
    noisy, target, weight = batch
    error = (model(noisy) - target).square().mean(dim=(1, 2, 3))
    return ((error + losses.LEAST_ERROR).log() * weight.flatten()).mean()


def of_ensemble(teacher: Network) -> Loss:
    return losses.ensembled([teacher], 2)


def of_ensemble_or_clean(teacher: Network) -> Loss:
    """What the ensemble leaves further from the truth than it came has the truth as its target."""

    def loss(model: nn.Module, batch: Sequence[Tensor]) -> Tensor:
        noisy, clean = batch
        with torch.no_grad():
            said = losses._mean_over_some([teacher], noisy, 2)
            off, came = ((one - clean).square().mean(dim=(1, 2, 3), keepdim=True) for one in (said, noisy))
            target = torch.where(off > came, clean, said)
        return ((model(noisy) - target).square().mean(dim=(1, 2, 3)) + losses.LEAST_DISTANCE).log().mean()

    return loss


@dataclass(frozen=True)
class Answer:
    """``mean`` is the mean of light of which the noise has none, ``after`` the answer whose student is the denoiser.

    ``taught`` makes a loss of the student that is the denoiser, in place of ``loss``.
    """

    settings: str = ""
    pairs: type[Renoised] = Renoised
    loss: Loss = losses.renoised
    taught: Callable[[Network], Loss] | None = None
    mean: Callable[[np.ndarray], Any] = unclipped_mean
    after: str = ""


RECIPE = "the recipe's: also weaker noise, dead leaves, noise of no camera, grey"
ANSWERS = {
    "photos with Gaussian noise, and without (R2R)": Answer(ALONE, Recorrupted, squared),
    "photos with their noise doubled, and without": Answer(ALONE, Doubled, squared),
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
AGAIN = {
    "again the recipe's": Answer(GENTLE),
    "the same, 32 crops of 64x64": Answer(f"{GENTLE} fit.crop=64 fit.batch=32"),
    "60 % photos with their noise doubled, and without": Answer(GENTLE, SomeDoubled, weighted),
    "the same, drawn cells where those of the photo are": Answer(GENTLE, SomeInPlace, weighted),
    "its ensemble of two": Answer(GENTLE, taught=of_ensemble),
    "the same, 35 % with weaker noise": Answer(f"{GENTLE} pairs.weak=0.35", taught=of_ensemble),
    "the same, the truth for what the ensemble harms": Answer(f"{GENTLE} pairs.weak=0.35", taught=of_ensemble_or_clean),
}

Folder = Annotated[Path, typer.Argument(metavar="FOLDER", help="Folder of noisy images.")]
Model = Annotated[str, typer.Argument(metavar="MODEL", help="The first denoiser.")]
Runs = Annotated[Path, typer.Argument(metavar="RUNS", help="Folder for the runs.")]
Only = Annotated[list[str], typer.Option(help="Take the answers that begin with this; may be repeated.")]
Steps = Annotated[int, typer.Option(help="Steps of a run.")]
Seed = Annotated[int, typer.Option(help="Seed of a run, and of what is held back.")]
Again = Annotated[bool, typer.Option("--again", help="From the weights of MODEL, a student.")]
Passes = Annotated[int | None, typer.Option(help="Refinements of MODEL, if it is a blind-spot network.")]


def answers(again: bool, only: list[str]) -> dict[str, Answer]:
    table = AGAIN if again else ANSWERS
    return {name: answer for name, answer in table.items() if name.startswith(tuple(only))}


def recipe_of(answer: Answer, steps: int, seed: int) -> RenoiseRecipe:
    """The warm-up is a sixth of the steps, the weights are averaged over a third."""
    budget = [f"fit.steps={steps}", f"fit.checkpoint_every={steps // 3}", f"fit.warmup={steps // 6}"]
    budget += [f"fit.ema={1 - 3 / steps}", "fit.crop=128", "fit.batch=8", "fit.workers=0", f"fit.seed={seed}"]
    return load_recipe(RenoiseRecipe, "renoise-cpu", [*budget, *answer.settings.split()])


def open_pairs(
    photos: Photos, model: str, passes: int | None, run: Path, answer: Answer, places: range, recipe: RenoiseRecipe
) -> tuple[Renoised, list[Sequence[Tensor]]]:
    """What `tbsn renoise` would train on, and what it would hold back."""
    settings = TeacherSettings(passes=None if answer.after else passes)
    known = tbsn.load(model, settings, strength=1, device="cpu")
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
    again: Again = False,
    only: Only = ANY,
    steps: Steps = 300,
    seed: Seed = 0,
    passes: Passes = None,
) -> None:
    """Train every answer."""
    part, parts = map(int, share.split("/"))
    torch.set_num_threads(max(1, torch.get_num_threads() // parts))
    for name, answer in list(answers(again, only).items())[part - 1 :: parts]:
        recipe, run = recipe_of(answer, steps, seed), output / name
        with at_work(run, recipe, Start("cpu"), dict) as (fabric, places):
            photos = runs.open_photos(folder, output, 3, recipe.fit.crop)
            first, where = (str(output / answer.after), run) if answer.after else (model, output)
            if answer.mean is not unclipped_mean:  # other models of the noise, of the same estimates
                where, but = run, shutil.ignore_patterns("noise")
                shutil.copytree(output / "estimates", run / "estimates", ignore=but, dirs_exist_ok=True)
            crops, held_back = open_pairs(photos, first, passes, where, answer, places, recipe)
            torch.manual_seed(recipe.fit.seed)
            network = build(recipe.network)
            if answer.after or again:
                network.load_state_dict(load_network(find(first)).state_dict())
            loss = answer.taught(load_network(find(first))) if answer.taught else answer.loss
            fit(network, loss, crops, recipe.fit, run, fabric, held_back=held_back)


@app.command()
def score(
    folder: Folder,
    model: Model,
    output: Runs,
    noisy: Annotated[Path, typer.Argument(metavar="NOISY", help="Folder of noisy images.")],
    clean: Annotated[Path, typer.Argument(metavar="CLEAN", help="Folder of clean ones.")],
    every: Annotated[int, typer.Option(help="Take every n-th pair.")] = 1,
    again: Again = False,
    only: Only = ANY,
    steps: Steps = 300,
    seed: Seed = 0,
    passes: Passes = None,
) -> None:
    """Score all students, then print the table."""
    whole, pairs = recipe_of(Answer(), steps, seed), find_pairs(noisy, clean)[::every]
    photos = runs.open_photos(folder, output, 3, whole.fit.crop)
    _, held_back = open_pairs(photos, model, passes, output, Answer(), range(1), whole)
    print("| student of | steps/s | loss held back | PSNR | SSIM | clean photos |\n|---|---|---|---|---|---|")
    for name in answers(again, only):
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
