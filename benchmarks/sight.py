"""What a trained blind-spot network sees: of its own pixel, which it must not, and of the rest.

    python benchmarks/sight.py IMAGE MODEL... --picture docs/leak.png

Rows of numbers and a plot: the gradient of an output pixel with respect to the same input pixel, as a share of all of
its gradient, by the number of pixels for each channel in the deepest channel attention; and how far the network sees,
as the radius that holds 50, 90 and 99 % of the gradient. Means over pixels drawn from the middle of square parts of
the image.
"""

from pathlib import Path
from typing import Annotated

import numpy as np
import torch
import typer
from torch import Tensor

from tbsn.images import read, to_float
from tbsn.network import TBSN
from tbsn.network.files import load_network

SIDES = (32, 64, 96, 128, 192, 256)
SHARES = (0.5, 0.9, 0.99)
DEEPEST = 2


def main(
    image: Annotated[Path, typer.Argument(help="A noisy image of at least 256x256 pixels.")],
    models: Annotated[list[Path], typer.Argument(metavar="MODEL...", help="Runs or model files.")],
    pixels: Annotated[int, typer.Option(help="How many pixels to draw for each size.")] = 8,
    picture: Annotated[Path | None, typer.Option(help="Draw the leak into this file.")] = None,
) -> None:
    """Print the table, and draw the leak."""
    noisy = torch.from_numpy(to_float(read(image).pixels)).permute(2, 0, 1)[None]
    leaks: dict[str, list[tuple[float, float]]] = {}
    print("| | side | pixels a channel | leak | radius of 50, 90, 99 % |\n|---|---|---|---|---|")
    for path in models:
        network = load_network(path)
        assert isinstance(network, TBSN)
        name = path.parent.name if path.name.startswith("seed") else path.name
        width = network.config.width * 2**DEEPEST
        channels = width // network.config.groups(DEEPEST) if network.config.channel_attention != "off" else 0
        for side in SIDES:
            part = noisy[..., :side, :side].clone()
            seen = [see(network, part, *where) for where in places(side, pixels)]
            leak, radius = np.mean([one[0] for one in seen]), np.mean([one[1] for one in seen], axis=0)
            ratio = (side / 2**DEEPEST) ** 2 / channels if channels else np.nan
            leaks.setdefault(name, []).append((ratio, float(leak)))
            radii = ", ".join(f"{value:.1f}" for value in radius)
            print(f"| {name} | {side} | {ratio:.1f} | {leak:.1e} | {radii} |", flush=True)
    if picture:
        draw(leaks, picture)


def places(side: int, count: int) -> np.ndarray:
    """Pixels (count, 2) of the middle half."""
    return np.random.default_rng(side).integers(side // 4, 3 * side // 4, (count, 2))


def see(network: TBSN, image: Tensor, row: int, col: int) -> tuple[float, list[float]]:
    """Of one output pixel: the share of its gradient on itself, and the radii that hold `SHARES` of it."""
    image.requires_grad_(True)
    output = network(image)
    (gradient,) = torch.autograd.grad(output[0, :, row, col].sum(), image)
    strength = gradient[0].abs().sum(dim=0).double().numpy()
    rows, cols = np.ogrid[: strength.shape[0], : strength.shape[1]]
    distance = np.maximum(abs(rows - row), abs(cols - col))
    within = np.cumsum(np.bincount(distance.ravel(), strength.ravel())) / strength.sum()
    return strength[row, col] / strength.sum(), [float(np.searchsorted(within, share)) for share in SHARES]


def draw(leaks: dict[str, list[tuple[float, float]]], path: Path) -> None:
    """The leak by pixels a channel, both logarithmic."""
    import matplotlib as mpl

    mpl.use("Agg")
    from matplotlib import pyplot as plt

    figure, axes = plt.subplots(figsize=(7, 4))
    for name, points in leaks.items():
        if np.isfinite(points[0][0]):
            axes.loglog(*zip(*points, strict=True), "o-", label=name)
    axes.axvline(1, color="grey", linestyle=":")
    axes.set(
        xlabel="pixels for each channel, deepest channel attention", ylabel="share of the gradient on its own pixel"
    )
    axes.legend()
    figure.savefig(path, dpi=110, bbox_inches="tight")


if __name__ == "__main__":
    typer.run(main)
