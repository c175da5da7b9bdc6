"""The paper's network: its literal form against the lattice form, in one run.

    python benchmarks/network.py

Time is the median of alternating runs in one process; peak memory is what the resident set of a new process grows by
when the built network takes one step (Linux).
"""

import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Annotated

import torch
import typer
from torch.profiler import ProfilerActivity, profile

from tbsn.network import TBSN, TBSNConfig
from tbsn.network.files import build

sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))
from literal import LiteralTBSN

FORMS, TASKS = ("literal", "lattice"), ("forward", "training step")


def make(form: str) -> torch.nn.Module:
    torch.manual_seed(0)
    return LiteralTBSN(TBSN()) if form == "literal" else build(TBSNConfig())


def task(form: str, name: str, size: int) -> Callable[[], None]:
    network, image = make(form), torch.rand(1, 3, size, size)
    optimizer = torch.optim.AdamW(network.parameters(), lr=3e-4)

    def forward() -> None:
        with torch.no_grad():
            network(image)

    def step() -> None:
        torch.nn.functional.l1_loss(network(image), image).backward()
        optimizer.step()
        optimizer.zero_grad()

    return forward if name == "forward" else step


def seconds(run: Callable[[], None]) -> float:
    start = time.perf_counter()
    run()
    return time.perf_counter() - start


def peak_mebibytes(form: str, name: str, size: int, threads: int) -> float:
    settings = ["--size", str(size), "--threads", str(threads), "--only", f"{form}/{name}"]
    command = [sys.executable, __file__, *settings]
    return float(subprocess.run(command, capture_output=True, text=True, check=True).stdout)


def print_growth(form: str, name: str, size: int) -> None:
    run = task(form, name, size)
    before = memory("VmRSS")
    run()
    print(memory("VmHWM") - before)


def memory(entry: str) -> float:
    """MiB. Not getrusage, whose peak a child inherits from its parent."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) / 1024 for line in lines if line.startswith(entry))


def print_profile(size: int) -> None:
    run = task("lattice", "forward", size)
    run()
    with profile(activities=[ProfilerActivity.CPU]) as recorded:
        run()
    parts = sorted(recorded.key_averages(), key=lambda part: -part.self_cpu_time_total)
    total = sum(part.self_cpu_time_total for part in parts)
    print("\n| operator of the lattice form's forward | calls | share of time |\n|---|---|---|")
    for part in parts[:12]:
        print(f"| {part.key} | {part.count} | {part.self_cpu_time_total / total:.1%} |")


def main(
    size: Annotated[int, typer.Option(help="Side of the image in pixels.")] = 256,
    repeats: Annotated[int, typer.Option(help="Timed runs of each.")] = 3,
    threads: Annotated[int, typer.Option(help="Threads of torch.")] = 2,
    only: Annotated[str, typer.Option(help="Print the peak memory of FORM/TASK, and nothing else.")] = "",
) -> None:
    torch.set_num_threads(threads)
    if only:
        form, name = only.split("/")
        print_growth(form, name, size)
        return
    print(
        f"torch {torch.__version__}, {threads} threads, {size}x{size}, float32, the paper's size, median of {repeats}\n"
    )
    print("| | literal | lattice | ratio |\n|---|---|---|---|")
    for name in TASKS:
        runs = {form: task(form, name, size) for form in FORMS}
        for run in runs.values():
            run()
        times = [[seconds(runs[form]) for form in FORMS] for _ in range(repeats)]
        literal, lattice = (statistics.median(column) for column in zip(*times, strict=True))
        print(f"| {name}, seconds | {literal:.2f} | {lattice:.2f} | {literal / lattice:.2f} |", flush=True)
        del runs
    for name in TASKS:
        literal, lattice = (peak_mebibytes(form, name, size, threads) for form in FORMS)
        print(f"| {name}, peak MiB | {literal:.0f} | {lattice:.0f} | {lattice / literal:.2f} |", flush=True)
    print_profile(size)


if __name__ == "__main__":
    typer.run(main)
