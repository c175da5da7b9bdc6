"""The table of the README: quality on pairs of noisy and clean images, cost, and time, of all methods in one run.

    python benchmarks/quality.py NOISY CLEAN [--every 1] [--model teacher] [--model default] [--crops docs/crops.png]

PSNR and SSIM by the protocol `sidd`; GFLOP (multiplications and additions) per 256x256 image; seconds per megapixel of
this run. The last model stands there once more with its self-ensemble. ``--crops`` draws a part of three images: noisy,
non-local means, each student, clean. BM3D stands beside them where the package is installed (`pip install bm3d`; its
licence allows no commercial use), with the standard deviation of what the last model removes.
"""

from collections.abc import Callable
from pathlib import Path
from typing import Annotated

import numpy as np
import torch
import typer
from torch.utils.flop_counter import FlopCounterMode

import tbsn
from tbsn import images, metrics
from tbsn.denoiser import find
from tbsn.encoding import write
from tbsn.evaluation.baselines import BASELINES
from tbsn.evaluation.pairs import evaluate, find_pairs
from tbsn.network.files import load_network

SIDE = 256
PART, ZOOM, CROPS = slice(64, 192), 2, 3
SYMMETRIES = 8  # flips and quarter turns


def gigaflops(path: Path) -> float:
    """Of one pass of a model for an image of 256x256."""
    network = load_network(path)
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        network(torch.zeros(1, network.config.channels, SIDE, SIDE))
    return counter.get_total_flops() / 1e9


def bm3d(reference: Callable[[np.ndarray], np.ndarray]) -> dict[str, Callable[[np.ndarray], np.ndarray]]:
    try:
        import bm3d
    except ImportError:
        return {}
    return {"BM3D": lambda noisy: bm3d.bm3d_rgb(noisy, float((noisy - reference(noisy)).std())).astype(np.float32)}


def main(
    noisy: Annotated[Path, typer.Argument(metavar="NOISY")],
    clean: Annotated[Path, typer.Argument(metavar="CLEAN")],
    every: Annotated[int, typer.Option(help="Take every n-th pair.")] = 1,
    model: Annotated[list[str], typer.Option(help="Repeatable.")] = ["teacher", "unet", "default"],  # noqa: B006
    crops: Annotated[Path | None, typer.Option(help="Picture to draw.")] = None,
) -> None:
    pairs = find_pairs(noisy, clean)[::every]
    models = {name: tbsn.load(name) for name in model}
    last = models[model[-1]]
    ensemble = f"{model[-1]}, self-ensemble"
    methods = BASELINES | bm3d(last) | models | {ensemble: last.self_ensemble()}
    costs = {name: gigaflops(find(name)) for name in models}
    costs[ensemble] = SYMMETRIES * costs[model[-1]]
    print("| method | PSNR | SSIM | GFLOP | s per megapixel |\n|---|---|---|---|---|")
    for name, denoise in methods.items():
        scores = list(evaluate(denoise, pairs, metrics.PROTOCOLS["sidd"]))
        pixels = sum(np.prod(images.read(path).pixels.shape[:2]) for path, _ in pairs)
        psnr, ssim = (float(np.mean([getattr(score, key) for score in scores])) for key in ("psnr", "ssim"))
        cost = f"{costs[name]:.1f}" if name in costs else ""
        seconds = sum(score.seconds for score in scores) / pixels * 1e6
        print(f"| {name} | {psnr:.2f} | {ssim:.3f} | {cost} | {seconds:.2f} |", flush=True)
    if crops:
        students = {name: one for name, one in models.items() if find(name).suffix == ".onnx"}
        draw(crops, pairs[:: -(-len(pairs) // CROPS)], {"nlm": BASELINES["nlm"]} | students)


def draw(path: Path, pairs: list[tuple[Path, Path]], methods: dict[str, Callable[[np.ndarray], np.ndarray]]) -> None:
    """A row for each pair: noisy, what each method makes of it, clean."""
    rows = []
    for noisy_path, clean_path in pairs:
        noisy, clean = (images.to_float(images.read(one).pixels) for one in (noisy_path, clean_path))
        seen = [noisy, *(denoise(noisy) for denoise in methods.values()), clean]
        rows.append(np.concatenate([one[PART, PART].repeat(ZOOM, 0).repeat(ZOOM, 1) for one in seen], axis=1))
    write(path, images.from_float(np.concatenate(rows), np.dtype(np.uint8)))


if __name__ == "__main__":
    typer.run(main)
