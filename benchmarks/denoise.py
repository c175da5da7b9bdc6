"""Denoising files: the command against the same network in plain eager torch, and against non-local means, in one run.

    python benchmarks/denoise.py [--megapixels 1 --megapixels 12] [--repeats 3] [--nlm-megapixels 12]
                                 [--pairs NOISY CLEAN] [--every 8]

Every row is a process of its own that reads a PNG and writes one, timed from its start to its exit, import of torch
included; its peak memory is VmHWM (Linux), asked of itself as it ends. Rows take turns; the median counts. ``torch
eager`` runs the whole image at once, as plain code does. The photos are blocks of examples/pepper.png, each
turned or mirrored at random, or a PNG would find them again. OpenCV's row needs opencv-python-headless.
``--pairs`` scores the devices on folders of noisy and of clean images.
"""

import importlib.util
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Annotated

import numpy as np
import typer

import tbsn
from tbsn import images, metrics
from tbsn.encoding import write
from tbsn.evaluation.pairs import evaluate, find_pairs

PHOTO = Path(__file__).parents[1] / "examples" / "pepper.png"
BLOCK = 128
SIDES = {1: (864, 1152), 12: (3000, 4000), 50: (6144, 8192)}
EAGER = "torch eager"
NLM = ("scikit-image NLM", "OpenCV NLM")
DEVICES = {f"tbsn denoise --device {device}": device for device in ("cpu", "openvino", "ncnn")}
NEEDS = {row: device for row, device in DEVICES.items() if device != "cpu"}
NEEDS |= {"scikit-image NLM": "skimage", "OpenCV NLM": "cv2"}
Result = tuple[float, float]


def photo(height: int, width: int) -> np.ndarray:
    """Real noise of any size: blocks of a photo in random order and symmetry."""
    real, random = images.read(PHOTO).pixels, np.random.default_rng(0)
    drawn = np.empty((-(-height // BLOCK) * BLOCK, -(-width // BLOCK) * BLOCK, 3), np.uint8)
    for top in range(0, drawn.shape[0], BLOCK):
        for left in range(0, drawn.shape[1], BLOCK):
            row, col = (int(random.integers(0, side - BLOCK + 1)) for side in real.shape[:2])
            block = np.rot90(real[row : row + BLOCK, col : col + BLOCK], random.integers(4))
            drawn[top : top + BLOCK, left : left + BLOCK] = block[:, :: random.choice([1, -1])]
    return drawn[:height, :width]


def eager(pixels: np.ndarray) -> np.ndarray:
    import torch

    from tbsn.denoiser import DEFAULT, find
    from tbsn.network.files import load_network
    from tbsn.teacher import padded

    network = load_network(find(DEFAULT))
    with torch.no_grad():
        noisy = torch.from_numpy(images.to_float(pixels)).permute(2, 0, 1)[None]
        denoised = padded(network, network.multiple)(noisy)[0].permute(1, 2, 0).numpy()
    return images.from_float(denoised, pixels.dtype)


def skimage_nlm(pixels: np.ndarray) -> np.ndarray:
    from tbsn.evaluation.baselines import nlm

    return images.from_float(nlm(images.to_float(pixels)), pixels.dtype)


def opencv_nlm(pixels: np.ndarray) -> np.ndarray:
    import cv2

    return cv2.fastNlMeansDenoisingColored(pixels, None, 10, 10, 7, 21)


METHODS = {EAGER: eager, "scikit-image NLM": skimage_nlm, "OpenCV NLM": opencv_nlm}


def process(row: str, source: Path, target: Path) -> None:
    """What the process of a row does: it denoises a file and prints its peak memory in MiB."""
    if row in DEVICES:
        from tbsn.cli import app

        words = ["denoise", str(source), "-o", str(target), "--overwrite", "--device", DEVICES[row]]
        if code := app(words, standalone_mode=False):
            sys.exit(code)
    else:
        write(target, METHODS[row](images.read(source).pixels))
    lines = Path("/proc/self/status").read_text().splitlines()
    print(next(int(line.split()[1]) / 1024 for line in lines if line.startswith("VmHWM")))


def measured(row: str, source: Path) -> Result:
    """Seconds from start to exit, and MiB, of one process."""
    command = [sys.executable, __file__, "--row", row, "--photo", str(source)]
    start = time.perf_counter()
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
    return time.perf_counter() - start, float(done.stdout.split()[-1])


def compare(rows: list[str], source: Path, megapixels: float, repeats: int) -> None:
    """Print the rows of one size."""
    rounds = [{row: measured(row, source) for row in rows} for _ in range(repeats)]
    medians = {row: [statistics.median(one[row][i] for one in rounds) for i in range(2)] for row in rows}
    for row, (seconds, memory) in medians.items():
        ratio = f"{medians[EAGER][0] / seconds:.2f}" if EAGER in medians else ""
        print(f"| {megapixels:.0f} | {row} | {seconds:.2f} | {megapixels / seconds:.2f} | {ratio} | {memory:.0f} |")


def start_to_exit(source: Path, repeats: int) -> None:
    """Print the time of the smallest things."""
    output = ["-o", str(source.with_name("small_denoised.png")), "--overwrite"]
    commands = {
        "tbsn --help": ["--help"],
        "256x256, default": ["denoise", str(source), *output],
        "256x256, cpu": ["denoise", str(source), *output, "--device", "cpu"],
    }
    times: dict[str, list[float]] = {name: [] for name in commands}
    for _ in range(repeats):
        for name, arguments in commands.items():
            start = time.perf_counter()
            subprocess.run([sys.executable, "-m", "tbsn", *arguments], stdout=subprocess.DEVNULL, check=True)
            times[name].append(time.perf_counter() - start)
    print("\n| start to exit | seconds |\n|---|---|")
    for name, found in times.items():
        print(f"| {name} | {statistics.median(found):.2f} |")


def quality(noisy: Path, clean: Path, every: int, devices: list[str]) -> None:
    """Print what each device's results are worth."""
    pairs = find_pairs(noisy, clean)[::every]
    print("\n| device | PSNR |\n|---|---|")
    for device in devices:
        scores = evaluate(tbsn.load(device=device), pairs, metrics.PROTOCOLS["sidd"])
        print(f"| {device} | {np.mean([score.psnr for score in scores]):.3f} |")


def main(
    megapixels: Annotated[list[int], typer.Option(help="1, 12 or 50; repeatable.")] = list(SIDES),  # noqa: B006
    repeats: Annotated[int, typer.Option(help="Processes of each row.", min=1)] = 3,
    nlm_megapixels: Annotated[int, typer.Option(help="No non-local means above this size.")] = 12,
    eager_megapixels: Annotated[int, typer.Option(help="No eager torch above this size: 8 GB at 50.")] = 50,
    pairs: Annotated[tuple[Path, Path] | None, typer.Option(metavar="NOISY CLEAN")] = None,
    every: Annotated[int, typer.Option(help="Take every n-th pair.", min=1)] = 8,
    row: Annotated[str, typer.Option(hidden=True)] = "",
    photo_file: Annotated[Path, typer.Option("--photo", hidden=True)] = PHOTO,
) -> None:
    if row:
        process(row, photo_file, photo_file.with_name("denoised.png"))
        return
    missing = {name for name, module in NEEDS.items() if not importlib.util.find_spec(module)}
    print(f"{os.cpu_count()} cores, median of {repeats}, ratio: how often as fast as {EAGER}")
    print("".join(f"left out, {NEEDS[name]} is not installed: {name}\n" for name in sorted(missing)))
    print("| megapixels | row | seconds | megapixels/s | ratio | peak MiB |\n|---|---|---|---|---|---|")
    with tempfile.TemporaryDirectory() as folder:
        for size in megapixels:
            source, (height, width) = Path(folder) / f"{size}.png", SIDES[size]
            write(source, photo(height, width))
            rows = [*DEVICES, *([EAGER] if size <= eager_megapixels else []), *(NLM if size <= nlm_megapixels else ())]
            compare([one for one in rows if one not in missing], source, height * width / 1e6, repeats)
        small = Path(folder) / "small.png"
        write(small, photo(256, 256))
        start_to_exit(small, max(5, repeats))
    if pairs:
        quality(*pairs, every, [device for row, device in DEVICES.items() if row not in missing])


if __name__ == "__main__":
    typer.run(main)
