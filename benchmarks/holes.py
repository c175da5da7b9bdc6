"""A blind spot as wide as the correlation of the noise, at full resolution, instead of PD: which, and how to use it.

    python benchmarks/holes.py train FOLDER RUNS --minutes 15
    python benchmarks/holes.py score RUNS NOISY CLEAN --every 8
    python benchmarks/holes.py use RUNS FOLDER NOISY CLEAN --every 8

``train`` gives every answer the same time; ``--share 1/2`` and ``2/2`` are for two processes side by side, a thread
each. ``score`` prints the steps that it came to, the last loss, and the mean PSNR and SSIM of one pass. ``use`` takes
two of the networks: the radius of the hole in inference, by PSNR and, without clean images, by Stein's unbiased risk
estimate (its divergence along a drawn direction, Ramani et al. 2008) on every 40th image of FOLDER; and means of what
both say.

On s x s phases a TBSN moves by multiples of s, so that an embedding that looks at no offset whose coordinates are both,
modulo s, within [-r, r] never sees the (2r+1) x (2r+1) pixels around the one predicted. Its channel attention is then
of each phase alone, and it has no window attention.
"""

import json
from functools import partial
from pathlib import Path
from typing import Annotated, Literal
from unittest.mock import patch

import numpy as np
import torch
import typer
from torch import Tensor, nn
from torch.nn import functional as F

from tbsn import images, metrics
from tbsn.denoiser import Denoiser
from tbsn.evaluation.pairs import evaluate, find_pairs
from tbsn.network import files, tbsn
from tbsn.network.files import Network, build, load_network
from tbsn.network.phases import inverse_pd, pd
from tbsn.network.tbsn import TBSN, TBSNConfig
from tbsn.settings import TeacherSettings
from tbsn.teacher import numpy_denoiser
from tbsn.training import losses, runs
from tbsn.training.data import Crops
from tbsn.training.fit import fit
from tbsn.training.noise_model import NoiseModel
from tbsn.training.recipe import TrainRecipe, load_recipe
from tbsn.training.start import Start, at_work

app = typer.Typer(add_completion=False, pretty_exceptions_enable=False)


class PhasesConfig(TBSNConfig):
    """A `TBSN` on ``stride`` x ``stride`` phases, blind to a square of radius ``hole``."""

    kind: Literal["Phases"] = "Phases"  # type: ignore[assignment]
    width: int = 24
    blocks: tuple[int, int, int] = (2, 2, 2)
    refinement: int = 2
    group_channels: int = 24
    spatial_attention: bool = False
    pd: int = 1
    stride: int
    hole: int

    @property
    def multiple(self) -> int:
        return 4 * self.stride


class HoleConv(nn.Conv2d):
    """A convolution that reaches up to the next pixel of its own phase, and sees none that its phase must not."""

    mask: Tensor

    def __init__(self, config: PhasesConfig) -> None:
        size = 2 * config.stride - 1
        super().__init__(config.channels, config.width, size, padding=size // 2, bias=False)
        offsets = torch.arange(size) - size // 2
        near = (offsets.abs() <= config.hole) | (offsets.abs() >= config.stride - config.hole)
        self.register_buffer("mask", 1 - near[:, None].float() * near, persistent=False)

    def forward(self, input: Tensor) -> Tensor:  # noqa: A002
        return F.conv2d(input, self.weight * self.mask, padding=self.padding)


class Phases(TBSN):
    """The network of a `PhasesConfig`."""

    config: PhasesConfig

    def __init__(self, config: PhasesConfig) -> None:
        super().__init__(config)
        self.embed = HoleConv(config)  # type: ignore[assignment]

    def forward(self, image: Tensor) -> Tensor:
        stride = self.config.stride
        with (
            patch.object(tbsn, "pd", lambda x, _: pd(x, stride)),
            patch.object(tbsn, "inverse_pd", lambda x, _: inverse_pd(x, stride)),
            patch("tbsn.network.attention.PHASES", 1),
        ):
            return super().forward(image)


files.NETWORKS["Phases"] = (PhasesConfig, Phases)

HALF_PLANES = "fit.checkpoint_every=400"
PHASES = "pd=1 fit.batch=1 fit.checkpoint_every=50 fit.crop="
TBSN_PD, HALF_PLANE = "TBSN, PD-5", "half-planes, hole of radius 3"
ANSWERS: dict[str, tuple[str, str, PhasesConfig | None]] = {
    TBSN_PD: ("cpu", "fit.checkpoint_every=400", None),
    HALF_PLANE: ("hole", HALF_PLANES, None),
    "the same, beta2 of 0.99": ("hole", f"{HALF_PLANES} fit.beta2=0.99", None),
    "the same, gradient not clipped": ("hole", f"{HALF_PLANES} fit.beta2=0.99 fit.clip=0", None),
    "TBSN on 4x4 phases, hole of radius 1": ("cpu", f"{PHASES}128", PhasesConfig(stride=4, hole=1)),
    "TBSN on 6x6 phases, hole of radius 1": ("cpu", f"{PHASES}120", PhasesConfig(stride=6, hole=1)),
    "TBSN on 8x8 phases, hole of radius 2": ("cpu", f"{PHASES}128", PhasesConfig(stride=8, hole=2)),
}
HOLES = range(5)
EPSILON = 0.1

Runs = Annotated[Path, typer.Argument(metavar="RUNS", help="Folder of the runs.")]
Folder = Annotated[Path, typer.Argument(metavar="FOLDER", help="Folder of noisy images.")]
Noisy = Annotated[Path, typer.Argument(metavar="NOISY", help="Folder of noisy images.")]
Clean = Annotated[Path, typer.Argument(metavar="CLEAN", help="Folder of clean ones.")]
Every = Annotated[int, typer.Option(help="Take every n-th pair.")]


@app.command()
def train(
    folder: Folder,
    output: Runs,
    minutes: Annotated[float, typer.Option(help="Of training, for each answer.")] = 15,
    share: Annotated[str, typer.Option(help="Part of the work: 1/2 and 2/2 for two processes.")] = "1/1",
) -> None:
    """Train every answer."""
    part, parts = map(int, share.split("/"))
    torch.set_num_threads(max(1, torch.get_num_threads() // parts))
    for answer, (name, settings, phases) in list(ANSWERS.items())[part - 1 :: parts]:
        recipe = load_recipe(TrainRecipe, name, ["fit.steps=1000000", "fit.hold_back=0", *settings.split()])
        run = output / answer
        with at_work(run, recipe, Start("cpu"), dict) as (fabric, places):
            photos = runs.open_photos(folder, run, 3, recipe.fit.crop)
            crops, _ = runs.open_crops(partial(Crops, [photos], stride=recipe.pd), photos, recipe.fit, places)
            torch.manual_seed(recipe.fit.seed)
            network: Network = build(phases or recipe.network)
            if phases:
                check(network, phases)
            fit(network, losses.blind_spot, crops, recipe.fit, run, fabric, 60 * minutes)


def check(network: Network, phases: PhasesConfig) -> None:
    """That the gradient of a pixel is exactly zero in the hole around it, and not beyond."""
    image = torch.rand(1, 3, 2 * phases.multiple, 2 * phases.multiple, requires_grad=True)
    middle, radius = phases.multiple, phases.hole
    (seen,) = torch.autograd.grad(network(image)[..., middle, middle].sum(), image)
    around = [seen[..., middle - r : middle + r + 1, middle - r : middle + r + 1] for r in (radius, radius + 1)]
    assert not around[0].any()
    assert around[1].any()


@app.command()
def score(output: Runs, noisy: Noisy, clean: Clean, every: Every = 1) -> None:
    """Score all networks, then print the table."""
    pairs = find_pairs(noisy, clean)[::every]
    print("| network | steps | loss | PSNR | SSIM |\n|---|---|---|---|---|")
    for answer in ANSWERS:
        run = output / answer
        kept = run / f"score-{len(pairs)}.json"
        if not kept.exists():
            denoise = numpy_denoiser(load_network(run), TeacherSettings(passes=0), answer)
            found = [(one.psnr, one.ssim) for one in evaluate(denoise, pairs, metrics.PROTOCOLS["sidd"])]
            kept.write_text(json.dumps(np.mean(found, axis=0).tolist()))
        psnr, ssim = json.loads(kept.read_text())
        log = [json.loads(line) for line in (run / "log.jsonl").read_text().splitlines()]
        last = np.mean([entry["loss"] for entry in log if "loss" in entry][-5:])
        print(f"| {answer} | {log[-1]['step']:,} | {last:.5f} | {psnr:.2f} | {ssim:.3f} |", flush=True)


@app.command()
def use(output: Runs, folder: Folder, noisy: Noisy, clean: Clean, every: Every = 1) -> None:
    """Score the ways to use two of them, and print both tables."""
    pairs = find_pairs(noisy, clean)[::every]
    half_plane, tbsn_pd = (load_network(output / name) for name in (HALF_PLANE, TBSN_PD))
    by_hole = [numpy_denoiser(half_plane, TeacherSettings(hole=hole), str(hole)) for hole in HOLES]
    blocks = [images.to_float(images.read(path).pixels) for path in list(images.find([folder]))[::40]]
    directions = [drawn(block, by_hole[2](block)) for block in blocks]
    looked_at = list(zip(blocks, directions, strict=True))
    risks = [np.mean([stein(denoise, *one) for one in looked_at]) for denoise in by_hole]
    by_pd = [numpy_denoiser(tbsn_pd, TeacherSettings(passes=n, probability=0.16), str(n)) for n in (0, 1)]
    ways = {
        "TBSN, PD-2 pass": by_pd[:1],
        "TBSN, one refinement of 0.16": by_pd[1:],
        **{f"half-planes, hole of radius {hole}": [by_hole[hole]] for hole in HOLES},
        "half-planes, 0, 1 and 2": by_hole[:3],
        "TBSN, both": by_pd,
        "TBSN, PD-2 pass, and half-planes, 1": [by_pd[0], by_hole[1]],
        "TBSN, both, and half-planes, 0, 1 and 2": [*by_pd, *by_hole[:3]],
    }
    print("| mean of | PSNR |\n|---|---|")
    for name, denoisers in ways.items():
        mean = lambda image, among=denoisers: np.mean([denoise(image) for denoise in among], axis=0)  # noqa: E731
        found = [one.psnr for one in evaluate(mean, pairs, metrics.PROTOCOLS["sidd"])]
        print(f"| {name} | {np.mean(found):.2f} |", flush=True)
    print("\n| radius | risk by Stein's estimate, squared levels of 255 |\n|---|---|")
    for hole, risk in zip(HOLES, risks, strict=True):
        print(f"| {hole} | {risk:.1f} |")


def drawn(noisy: np.ndarray, estimate: np.ndarray) -> np.ndarray:
    """Noise (h, w, c) as strong and as correlated as that of an image is by an estimate of it."""
    noise = NoiseModel.fit(noisy, estimate).draw(estimate, np.random.default_rng(0))
    return noise - noise.mean(axis=(0, 1))


def stein(denoise: Denoiser, noisy: np.ndarray, noise: np.ndarray) -> float:
    """Mean square error of a denoiser, plus the variance of the noise, in squared levels of 255."""
    denoised = denoise(noisy)
    moved = denoise(noisy + np.float32(EPSILON) * noise)
    return 255**2 * float(((denoised - noisy) ** 2 + 2 * noise * (moved - denoised) / EPSILON).mean())


if __name__ == "__main__":
    app()
