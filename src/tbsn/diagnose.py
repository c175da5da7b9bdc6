"""What a folder of noisy images is like, and what to do about it: `tbsn diagnose`."""

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from tbsn import images
from tbsn.advice import CROPS, Advice, advise
from tbsn.errors import InputError
from tbsn.lines import warn
from tbsn.noise import LEVELS, METHOD, Noise, Survey, combine, survey
from tbsn.noisy import bits_of, noisy_images
from tbsn.scale import Bits, full_depth

MOST_IMAGES = 256
CLIPPING = 0.01


@dataclass(frozen=True)
class Diagnosis:
    """Noise and advice for a set of images.

    ``found`` and ``measured``: numbers of files; ``failed``: those, and folders, that could not be read. ``pixels`` and
    ``usable``: of all ``found``, if those measured are like the rest; usable are unclipped, in images large enough to
    train on.
    ``black`` and ``white``: share of clipped values. ``jpeg``: share of images with a JPEG grid, ``jpeg_strength`` its
    median strength there.
    """

    noise: Noise
    advice: Advice
    found: int
    measured: int
    failed: int
    pixels: int
    usable: int
    side: int
    black: float
    white: float
    jpeg: float
    jpeg_strength: float


def diagnose(inputs: Iterable[Path], failed: Callable[[InputError], None], channels: int = 3) -> Diagnosis:
    """Diagnose image files and folders, in memory that does not grow with their number: MOST_IMAGES, evenly, are read.

    ``failed`` is told of each of several files that cannot be used, and of folders that cannot be read; for
    ``channels`` see `images.read`. Raises `InputError` if there is no file that can.
    """
    inputs = list(inputs)
    closed: list[InputError] = []
    found = sum(1 for _ in noisy_images(inputs, closed.append))
    if not found and closed:
        raise closed[0]
    if not found:
        suffixes = " ".join(images.SUFFIXES)
        raise InputError(inputs[0], "no images in this folder", f"name files or folders with {suffixes}")
    numbers = set(np.linspace(0, found - 1, min(found, MOST_IMAGES)).astype(int).tolist())
    chosen = [path for i, path in enumerate(noisy_images(inputs, lambda error: None)) if i in numbers]
    for error in closed:
        failed(error)
    surveys: list[Survey] = []
    bits = bits_of(chosen, channels)
    for path in chosen:
        try:
            surveys.append(survey_file(path, channels, bits))
        except InputError as error:
            if len(chosen) == 1:
                raise
            failed(error)
    if not surveys:
        raise InputError(inputs[0], "none of these images can be measured", "name images that can be read")
    return _conclude(surveys, found, len(chosen), len(closed))


def pd_strides(folder: Path, channels: int = 3) -> tuple[int, int]:
    """PD strides for training and inference on the images of a folder. Raises `InputError`, also where no stride suits.

    What else speaks against training on them is a warning on standard error.
    """
    advice = diagnose([folder], lambda error: None, channels).advice
    if advice.pd_train is None or advice.pd_inference is None:
        raise InputError(folder, advice.sentences[0].rstrip("."), "or set a PD stride yourself")
    for sentence in () if advice.suits else advice.sentences:
        warn(f"warning: {sentence}")
    return advice.pd_train, advice.pd_inference


def survey_file(path: Path, channels: int, bits: Bits) -> Survey:
    """Measure one image file, with the ``bits`` of all of them. Raises `InputError`."""
    pixels = full_depth(images.read(path, channels).pixels, bits)
    images.check_range(path, pixels)
    if min(pixels.shape[:2]) < METHOD.patch:
        size = f"{pixels.shape[1]}x{pixels.shape[0]}"
        raise InputError(path, f"is {size} pixels", f"both sides must be at least {METHOD.patch}")
    return survey(pixels)


def _conclude(surveys: list[Survey], found: int, chosen: int, closed: int) -> Diagnosis:
    noise = combine(surveys)
    share = found / chosen
    sizes = [one.size[0] * one.size[1] for one in surveys]
    pixels = round(share * sum(sizes))
    large = [one for one in surveys if min(one.size) >= CROPS["cpu"]]
    usable = round(share * sum(one.usable for one in large))
    side = min((min(one.size) for one in large), default=0)
    grids = [one.grid for one in surveys if one.grid]
    return Diagnosis(
        noise=noise,
        advice=advise(
            noise.mean_autocorrelation,
            noise.floor,
            pixels,
            usable,
            side,
            len(noise.level),
            measured=len(surveys),
        ),
        found=found,
        measured=len(surveys),
        failed=chosen - len(surveys) + closed,
        pixels=pixels,
        usable=usable,
        side=min(min(one.size) for one in surveys),
        black=float(np.average([one.black for one in surveys], weights=sizes)),
        white=float(np.average([one.white for one in surveys], weights=sizes)),
        jpeg=len(grids) / len(surveys),
        jpeg_strength=float(np.median(grids)) if grids else 0.0,
    )


def describe(result: Diagnosis) -> list[str]:
    """The diagnosis in lines of plain words."""
    noise, names = result.noise, channel_names(result.noise)
    levels = "  ".join(f"{name} {255 * level:.1f}" for name, level in zip(names, noise.level, strict=True))
    spread = 255 * np.quantile(noise.per_image.mean(axis=1), (0.1, 0.9))
    mean = noise.mean_autocorrelation
    read = f"{result.found}" + (f" ({result.measured} measured)" if result.measured < result.found else "")
    usable = f"{result.usable / 1e6:.1f} million usable (unclipped, in images of {CROPS['cpu']} pixels and more)"
    return [
        f"images          {read}, {result.pixels / 1e6:.1f} million pixels, {usable}",
        f"noise level     {levels}  (standard deviation, of 255)",
        f"  quietest parts {255 * noise.floor:.1f}  (median over images)",
        f"  over images   {spread[0]:.1f} to {spread[1]:.1f}  (10 % to 90 %)",
        f"  by brightness {_by_brightness(noise)}",
        "autocorrelation  lag " + "".join(f"{lag:6d}" for lag in range(1, mean.shape[0])),
        "  along rows         " + "".join(f"{value + 0.0:6.2f}" for value in mean[0, 1:].round(2)),
        "  along columns      " + "".join(f"{value + 0.0:6.2f}" for value in mean[1:, 0].round(2)),
        f"JPEG grid       {_jpeg(result)}",
        f"clipping        {_clipping(result)}",
        "",
        *(f"- {sentence}" for sentence in result.advice.sentences),
    ]


def as_dict(result: Diagnosis) -> dict[str, Any]:
    """Everything in the diagnosis as JSON knows it; null where nothing was seen."""
    noise, advice = result.noise, result.advice
    plain = {key: value for key, value in vars(result).items() if key not in ("noise", "advice")}
    curve = [[None if np.isnan(value) else float(value) for value in row] for row in noise.curve]
    return plain | {
        "noise": {
            "channels": channel_names(noise),
            "level": noise.level.tolist(),
            "per_image": noise.per_image.tolist(),
            "floor": noise.floor,
            "brightness": brightness().tolist(),
            "level_by_brightness": curve,
            "autocorrelation": noise.autocorrelation.tolist(),
        },
        "advice": vars(advice) | {"sentences": list(advice.sentences)},
    }


def channel_names(noise: Noise) -> list[str]:
    """The names of the channels."""
    count = len(noise.level)
    return {1: ["grey"], 3: ["red", "green", "blue"]}.get(count) or [f"channel {i + 1}" for i in range(count)]


def brightness() -> np.ndarray:
    """The middle of each interval of brightness of a noise curve."""
    return (np.arange(LEVELS) + 0.5) / LEVELS


def _by_brightness(noise: Noise) -> str:
    """The mean over the channels that are seen in an interval of brightness, and none where nothing is."""
    seen = [(x, row[~np.isnan(row)]) for x, row in zip(brightness(), noise.curve, strict=True)]
    levels = [(x, np.sqrt((row**2).mean())) for x, row in seen if row.any()]
    return ", ".join(f"{255 * level:.1f} at {100 * x:.0f} %" for x, level in levels) or "none"


def _jpeg(result: Diagnosis) -> str:
    if not result.jpeg:
        return "none seen"
    return (
        f"in {100 * result.jpeg:.0f} % of the images, jumps {100 * result.jpeg_strength:.0f} % stronger at block edges"
    )


def _clipping(result: Diagnosis) -> str:
    shares = f"{100 * result.black:.1f} % of the values are black, {100 * result.white:.1f} % white"
    strong = max(result.black, result.white) >= CLIPPING
    return f"{shares}{': the noise there is cut off' if strong else ''}"
