"""A training step: the paper's network in its literal form against ours, part by part, in one run.

    python benchmarks/training.py

Every row is a process of its own, and rows take turns for ``--rounds``; times are medians over all steps of a row but
the first of each process. Peak memory is the most that the process held (Linux), or the device did. Crops are cut from
random images in the memory-mapped cache and loaded as in training. A row is a form and its options,
``compile`` too; of a GPU: --device cuda --row "literal bf16" --row "ours bf16 compile".
"""

import json
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import torch
import typer
from lightning_fabric import Fabric
from network import LiteralTBSN, memory

from tbsn.memory import keep_freed_memory
from tbsn.network import TBSN
from tbsn.network.files import build
from tbsn.training import losses
from tbsn.training.data import Crops
from tbsn.training.fit import loader
from tbsn.training.photos import cached
from tbsn.training.recipe import TrainRecipe, load_recipe

PARTS = ("data", "forward", "backward", "optimiser")
ROWS = ["literal", "literal bf16", "ours", "ours recompute", "ours bf16", "ours bf16 recompute"]


def main(
    recipe: Annotated[list[str], typer.Option(help="Recipes to measure.")] = ["sidd", "cpu"],  # noqa: B006
    device: Annotated[str, typer.Option(help="cpu or cuda.")] = "cpu",
    steps: Annotated[int, typer.Option(help="Timed steps of a process.")] = 3,
    rounds: Annotated[int, typer.Option(help="Processes of a row.")] = 2,
    row: Annotated[list[str], typer.Option(help="Rows to measure, ratios to the first.")] = ROWS,
    only: Annotated[str, typer.Option(help="Print the figures of one row, and nothing else.")] = "",
) -> None:
    if only:
        print(json.dumps(measured(load_recipe(TrainRecipe, recipe[0], []), only, device, steps)))
        return
    for name in recipe:
        settings = load_recipe(TrainRecipe, name, [])
        side = settings.fit.crop // settings.pd
        pixels = settings.fit.batch * side**2
        print(f"\nRecipe `{name}`, {settings.fit.batch} x {side}x{side}, {device}, torch {torch.__version__}\n")
        parts = " | ".join(PARTS)
        print(f"| | steps/s | pixels/s | to {row[0]} | peak MiB | to {row[0]} | {parts} | waiting for data |")
        print("|---" * (7 + len(PARTS)) + "|")
        found: dict[str, list[dict[str, Any]]] = {form: [] for form in row}
        for _ in range(rounds):
            for form in row:
                found[form].append(in_own_process(name, form, device, steps))
        first: tuple[float, float] | None = None
        for form, runs in found.items():
            times = {part: statistics.median(t for run in runs for t in run[part]) for part in PARTS}
            rate, peak = 1 / sum(times.values()), statistics.median(run["peak"] for run in runs)
            first = first or (rate, peak)
            shares = " | ".join(f"{1000 * times[part]:.0f} ms" for part in PARTS)
            ratios = f"{rate / first[0]:.2f} | {peak:.0f} | {peak / first[1]:.2f}"
            waiting = f"{100 * times['data'] * rate:.1f} %"
            print(f"| {form} | {rate:.3f} | {rate * pixels:,.0f} | {ratios} | {shares} | {waiting} |", flush=True)


def in_own_process(recipe: str, row: str, device: str, steps: int) -> dict[str, Any]:
    settings = ["--recipe", recipe, "--device", device, "--steps", str(steps), "--only", row]
    done = subprocess.run([sys.executable, __file__, *settings], capture_output=True, text=True, check=True)
    return json.loads(done.stdout)


def measured(recipe: TrainRecipe, row: str, device: str, steps: int) -> dict[str, Any]:
    """Seconds of every part of every step but the first, and the peak memory in MiB."""
    form, *options = row.split()
    fabric = Fabric(accelerator=device, devices=1)
    if fabric.device.type == "cpu" and form == "ours":
        keep_freed_memory()
    network = build(recipe.network)
    assert isinstance(network, TBSN)
    network.set_recompute("recompute" in options)
    model, optimizer = fabric.setup(network, torch.optim.AdamW(network.parameters(), lr=recipe.fit.lr, fused=True))
    run = LiteralTBSN(network) if form == "literal" else torch.compile(model) if "compile" in options else model
    times: dict[str, list[float]] = {part: [] for part in PARTS}
    with tempfile.TemporaryDirectory() as folder:
        batches = iter(loader(crops(recipe, Path(folder)), recipe.fit, 0, fabric.device))
        for _ in range(steps + 1):
            clock = [now(fabric)]
            batch = [part.to(fabric.device, non_blocking=True) for part in next(batches)]
            clock.append(now(fabric))
            with torch.autocast(fabric.device.type, torch.bfloat16, enabled="bf16" in options):
                loss = losses.blind_spot(run, batch)
            clock.append(now(fabric))
            fabric.backward(loss)
            clock.append(now(fabric))
            optimizer.step()
            optimizer.zero_grad()
            clock.append(now(fabric))
            for part, begin, end in zip(PARTS, clock[:-1], clock[1:], strict=True):
                times[part].append(end - begin)
    cuda = fabric.device.type == "cuda"
    peak = torch.cuda.max_memory_allocated() / 2**20 if cuda else memory("VmHWM")
    return {part: values[1:] for part, values in times.items()} | {"peak": peak}


def crops(recipe: TrainRecipe, folder: Path) -> Crops:
    random = np.random.default_rng(0)
    images = ((str(i), random.integers(0, 256, (1000, 1000, 3), dtype=np.uint8)) for i in range(4))
    photos = cached(lambda first: images, folder, "")
    fit = recipe.fit
    return Crops([photos], crop=fit.crop, places=range(fit.batch), stride=recipe.pd, augment=fit.augment, seed=0)


def now(fabric: Fabric) -> float:
    if fabric.device.type == "cuda":
        torch.cuda.synchronize()
    return time.perf_counter()


if __name__ == "__main__":
    typer.run(main)
