"""The picture of a diagnosis (needs matplotlib)."""

from pathlib import Path

import numpy as np
from matplotlib.figure import Figure

from tbsn.advice import STRONG
from tbsn.diagnose import Diagnosis, brightness, channel_names
from tbsn.errors import InputError
from tbsn.files import atomic
from tbsn.spectrum import LAGS

FORMATS = (".png", ".svg", ".pdf")
COLOURS = {"red": "#c0392b", "green": "#27864a", "blue": "#2c5fa8", "grey": "#444444"}


def draw(result: Diagnosis, path: Path) -> None:
    """Draw the level by brightness, and the autocorrelation along the axes and in two dimensions.

    The format follows the suffix of ``path``. Raises `InputError` if it is none of FORMATS or cannot be written.
    """
    if path.suffix.lower() not in FORMATS:
        raise InputError(path, "unknown picture format", f"use one of {' '.join(FORMATS)}")
    figure = Figure(figsize=(13, 4), layout="constrained")
    by_brightness, along, plane = figure.subplots(1, 3)
    noise = result.noise
    for channel, name in enumerate(channel_names(noise)):
        x = brightness()
        seen = ~np.isnan(noise.curve[:, channel])
        colour = COLOURS.get(name, f"C{channel}")
        by_brightness.plot(x[seen], 255 * noise.curve[seen, channel], "o-", color=colour, label=name)
        along.plot(noise.autocorrelation[channel, 0], "o-", color=colour, label=f"{name}, along rows")
        along.plot(noise.autocorrelation[channel, :, 0], "s:", color=colour, label="along columns", mfc="none")
    by_brightness.set(xlabel="brightness", ylabel="standard deviation (of 255)", title="Noise level", xlim=(0, 1))
    by_brightness.set_ylim(bottom=0)
    by_brightness.legend()
    along.axhline(STRONG, color="black", linewidth=0.8, linestyle="--")
    along.set(xlabel="distance in pixels", title="Autocorrelation (under the dashed line: white)")
    along.legend(fontsize="small")
    mean = noise.mean_autocorrelation
    shown = plane.imshow(mean, vmin=-1, vmax=1, cmap="RdBu_r", origin="lower")
    for (row, column), value in np.ndenumerate(mean):
        ink = "white" if abs(value) > 0.6 else "black"
        plane.text(
            column,
            row,
            f"{value:.2f}".replace("-0.00", "0.00").replace("0.", "."),
            ha="center",
            va="center",
            size=7,
            color=ink,
        )
    plane.set(xlabel="distance along rows", ylabel="along columns", title="Autocorrelation, mean of channels")
    plane.set(xticks=range(LAGS + 1), yticks=range(LAGS + 1))
    figure.colorbar(shown, ax=plane)
    with atomic(path, "name a file in a writable folder with --picture") as partial:
        figure.savefig(partial, dpi=120)
