"""From what the noise is like to what to do about it. Every rule and constant is explained in docs/noise.md."""

import os
import shutil
from dataclasses import dataclass

import numpy as np

from tbsn import settings

STRONG = 0.204
WIDE = 0.1
STRIDE = 5
INVISIBLE = 1.73 / 255
TOO_FEW = 2_000_000
CPU_MINUTES = 25  # its steps are too small for many cores to share
TARGET_SECONDS = 40  # a million pixels, on one core
MOST_CORES = 8
CROPS = {"sidd": 640, "dnd": 480, "cpu": 160}

ENOUGH = 4
SINGLE = (
    "So few images hardly tell texture from noise: of single photos of 256x256 pixels without noise about half are "
    "called noisy. Measure more of the same camera, or look at them."
)


@dataclass(frozen=True)
class Advice:
    """What to do.

    ``pd_train`` and ``pd_inference``: PD strides, 1 for no PD, None if no stride will do, or the images are clean.
    ``recipe``: for `tbsn train`. ``minutes``: of training, None if not known, and of ``preparation``: the teacher's
    targets, before a student is distilled. ``suits``: whether the method suits. ``sentences``: it all in words.
    """

    pd_train: int | None
    pd_inference: int | None
    recipe: str
    minutes: float | None
    preparation: float | None
    suits: bool
    sentences: tuple[str, ...]


def pd_strides(autocorrelation: np.ndarray) -> tuple[int, int] | None:
    """PD stride for training and for inference, from the autocorrelation (LAGS + 1, LAGS + 1), mean over channels.

    1 if no lag is strong, as in white noise. Else STRIDE in training, and in inference the least stride whose
    neighbours are not strongly correlated, so that less detail is lost (asymmetric PD, AP-BSN, Lee et al., CVPR 2022,
    section 3.3), and not those beyond them either. None if that is not less than STRIDE, or PD with STRIDE would leave
    more than WIDE.
    """
    along = np.maximum(np.abs(autocorrelation[0]), np.abs(autocorrelation[:, 0]))
    if along[1:].max() < STRONG:
        return 1, 1
    white = [stride for stride in range(2, STRIDE) if along[stride::stride].max() < STRONG]
    return (STRIDE, white[0]) if white and along[STRIDE:].max() < WIDE else None


def advise(
    autocorrelation: np.ndarray,
    floor: float,
    pixels: int,
    usable: int,
    side: int,
    channels: int = 3,
    measured: int = ENOUGH,
) -> Advice:
    """Advice for noise of this autocorrelation and floor, on ``pixels``, the ``usable`` in images of at least ``side``.

    ``channels`` is that of the images, and ``measured`` the number of those that were looked at.
    """
    clean = floor < INVISIBLE
    strides = pd_strides(autocorrelation)
    recipe, minutes = _recipe(side)
    preparation = minutes and pixels / 1e6 * TARGET_SECONDS / 60 / min(_cores(), MOST_CORES)
    reasons = []
    doubt = [SINGLE] if measured < ENOUGH else []
    if clean:
        reasons.append(
            f"These images are clean, or nearly: in their quiet parts the noise is {255 * floor:.2f}/255, and under "
            f"{255 * INVISIBLE:.2f}/255 it can hardly be seen. The rest is texture. Leave them as they are."
        )
    if strides is None:
        reasons.append(
            f"{'What noise there is' if clean else 'The noise'} is too widely correlated: pixel-shuffle downsampling "
            "(PD) does not whiten it, and a blind-spot network would learn to copy it. Use BM3D or non-local means "
            "(`tbsn evaluate nlm` scores it), or start again from RAW files, before camera processing and JPEG."
        )
    if usable < TOO_FEW:
        reasons.append(
            f"There are too few usable pixels to train on: {usable / 1e6:.1f} million; with fewer than "
            f"{TOO_FEW / 1e6:.0f} million a network learns them by heart. Add images of the same camera, or use the "
            "default model: `tbsn denoise`."
        )
    sentences = reasons if reasons or strides is None else _plan(*strides, recipe, minutes, preparation, channels)
    train, inference = (None, None) if clean or strides is None else strides
    return Advice(train, inference, recipe, minutes, preparation, not reasons, (*sentences, *doubt))


def _plan(
    train: int, inference: int, recipe: str, minutes: float | None, preparation: float | None, channels: int
) -> list[str]:
    if train == 1:
        why = "The noise is white already: train without PD (stride 1), and denoise without it; no detail is lost."
    else:
        why = (
            f"Train with PD stride {train}, as neighbours share their noise and pixels that far apart do not. Denoise "
            f"with stride {inference}, which keeps more detail."
        )
    time = (
        f"Training takes about {minutes:.0f} minutes (twice that on a processor without bfloat16), distilling the "
        f"student about as long again, after {_spoken(preparation)} for what the teacher makes of all these pixels on "
        f"the {_cores()} cores here."
        if minutes and preparation is not None
        else "Training takes 100,000 steps on the GPU: hours to a day."
    )
    network = "" if channels == 3 else f" --set network.channels={channels}"
    targets = "" if inference == settings.STRIDE else f" --set targets.pd={inference}"
    return [
        why,
        f"Train: tbsn train FOLDER --recipe {recipe} --pd {train}{network}",
        f"Then: tbsn distill FOLDER --teacher runs/teacher{targets}{network}",
        time,
    ]


def _cores() -> int:
    """Those that this process may use: a container, or a batch job, has not all of them."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _recipe(side: int) -> tuple[str, float | None]:
    """The recipe whose crops fit into images of ``side`` pixels, and its minutes; the paper's recipes need a GPU."""
    if shutil.which("nvidia-smi") and side >= CROPS["dnd"]:
        return "sidd" if side >= CROPS["sidd"] else "dnd", None
    return "cpu", CPU_MINUTES


def _spoken(minutes: float) -> str:
    if minutes < 1.5:
        return "a minute"
    return f"{minutes:.0f} minutes" if minutes < 100 else f"{minutes / 60:.1f} hours"
