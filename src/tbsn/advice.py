"""From what the noise is like to what to do about it. Every rule and constant is explained in docs/noise.md."""

import os
import shutil
from dataclasses import dataclass

import numpy as np

NEGLIGIBLE = 0.025
TOLERABLE = 0.2
STRONG = 0.1
WIDEST = 5
INVISIBLE = 2 / 255
TOO_FEW = 2_000_000
CPU_MINUTES = 50
MOST_CORES = 8
CROPS = {"sidd": 640, "dnd": 480, "cpu": 160}


@dataclass(frozen=True)
class Advice:
    """What to do.

    ``pd_train`` and ``pd_inference``: PD strides, 1 for no PD, None if no stride will do. ``recipe``: for `tbsn train`.
    ``minutes``: of training, None if not known. ``suits``: whether the method suits. ``sentences``: it all in words.
    """

    pd_train: int | None
    pd_inference: int | None
    recipe: str
    minutes: float | None
    suits: bool
    sentences: tuple[str, ...]


def pd_strides(autocorrelation: np.ndarray) -> tuple[int, int] | None:
    """PD stride for training and for inference, from the autocorrelation (LAGS + 1, LAGS + 1), mean over channels.

    In training: 1 if no lag is strong; None if one is that PD with the WIDEST stride leaves; else the least stride from
    which on all lags along rows and columns are negligible, WIDEST at most. In inference: the least one that leaves a
    tolerable correlation between neighbours, so that less detail is lost (asymmetric PD, AP-BSN, Lee et al., CVPR
    2022, section 3.3).
    """
    along = np.maximum(np.abs(autocorrelation[0]), np.abs(autocorrelation[:, 0]))
    if along[1:].max() < STRONG:
        return 1, 1
    if along[WIDEST:].max() >= STRONG:
        return None
    train = min(1 + int(np.flatnonzero(along >= NEGLIGIBLE).max()), WIDEST)
    return train, int(np.argmax(along[: train + 1] < TOLERABLE))


def advise(autocorrelation: np.ndarray, floor: float, usable: int, side: int) -> Advice:
    """Advice for noise of this autocorrelation and floor, on ``usable`` pixels, in images of at least ``side``."""
    strides = pd_strides(autocorrelation)
    recipe, minutes = _recipe(side)
    reasons = []
    if floor < INVISIBLE:
        reasons.append(
            f"These images are clean, or nearly: in their quiet parts the noise is {255 * floor:.1f}/255, and under "
            f"{255 * INVISIBLE:.0f}/255 it can hardly be seen. The rest is texture. Leave them as they are."
        )
    elif strides is None:
        reasons.append(
            "The noise is too widely correlated: pixel-shuffle downsampling (PD) does not whiten it, and a blind-spot "
            "network would learn to copy it. Use BM3D or non-local means (`tbsn evaluate nlm` scores it), or start "
            "again from RAW files, before the camera's own processing and JPEG."
        )
    if usable < TOO_FEW:
        reasons.append(
            f"There are too few usable pixels to train on: {usable / 1e6:.1f} million; with fewer than "
            f"{TOO_FEW / 1e6:.0f} million a network learns them by heart. Add images of the same camera, or use the "
            "default model: `tbsn denoise`."
        )
    if reasons or strides is None:
        return Advice(*(strides or (None, None)), recipe, minutes, False, tuple(reasons))
    return Advice(*strides, recipe, minutes, True, tuple(_plan(*strides, recipe, minutes)))


def _plan(train: int, inference: int, recipe: str, minutes: float | None) -> list[str]:
    if train == 1:
        why = "The noise is white already: train without PD (stride 1), and denoise without it; no detail is lost."
    else:
        why = (
            f"Train with PD stride {train}: pixels that far apart have independent noise. Denoise with stride "
            f"{inference}, which keeps more detail."
        )
    time = (
        f"Training takes about {minutes:.0f} minutes on the {os.cpu_count()} cores here (twice that on a processor "
        "without bfloat16), distilling the fast student about as long again."
        if minutes
        else "Training takes 100,000 steps on the GPU: hours to a day."
    )
    return [why, f"Train: tbsn train FOLDER --recipe {recipe} --set pd={train}", time]


def _recipe(side: int) -> tuple[str, float | None]:
    """The recipe whose crops fit into images of ``side`` pixels, and its minutes; the paper's recipes need a GPU."""
    if shutil.which("nvidia-smi") and side >= CROPS["dnd"]:
        return "sidd" if side >= CROPS["sidd"] else "dnd", None
    return "cpu", CPU_MINUTES / min(os.cpu_count() or 1, MOST_CORES)
