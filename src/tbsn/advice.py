"""From what the noise is like to what to do about it. Every rule and constant is explained in docs/noise.md."""

import os
import shutil
from dataclasses import dataclass

import numpy as np

from tbsn.noise import LAGS

NEGLIGIBLE = 0.03
TOLERABLE = 0.2
WIDEST = 6
INVISIBLE = 2 / 255
TOO_FEW = 2_000_000
CPU_MINUTES = 50
MOST_CORES = 8
CROPS = {"sidd": 640, "dnd": 480, "cpu": 160}


@dataclass(frozen=True)
class Advice:
    """``pd_train`` and ``pd_inference``: PD strides, 1 for none. ``recipe``: for `tbsn train`. ``minutes``: of training,
    None if not known. ``suits``: whether the method suits these images. ``sentences``: the advice in words."""

    pd_train: int
    pd_inference: int
    recipe: str
    minutes: float | None
    suits: bool
    sentences: tuple[str, ...]


def pd_strides(autocorrelation: np.ndarray) -> tuple[int, int]:
    """PD stride for training and for inference, from the autocorrelation (LAGS + 1, LAGS + 1), mean over channels.

    In training: the least stride from which on all lags along rows and columns are negligible, LAGS + 1 if there is
    none. In inference: the least one that leaves a tolerable correlation between neighbours, so that less detail is
    lost (asymmetric PD, AP-BSN, Lee et al., CVPR 2022, section 3.3).
    """
    along = np.maximum(np.abs(autocorrelation[0]), np.abs(autocorrelation[:, 0]))[1:]
    train = int(np.max(np.flatnonzero(along >= NEGLIGIBLE), initial=-1)) + 2
    return train, min(train, int(np.argmax(along < TOLERABLE)) + 1 if (along < TOLERABLE).any() else LAGS + 1)


def advise(autocorrelation: np.ndarray, floor: float, usable: int, side: int) -> Advice:
    """Advice for noise of this autocorrelation and floor, on ``usable`` pixels of images of at least ``side`` pixels."""
    train, inference = pd_strides(autocorrelation)
    recipe, minutes = _recipe(side)
    reasons = []
    if floor < INVISIBLE:
        reasons.append(
            f"These images are clean, or nearly: noise under {255 * INVISIBLE:.0f}/255 can hardly be seen. Leave them."
        )
    elif train > WIDEST:
        reasons.append(
            "The noise is too widely correlated: pixel-shuffle downsampling (PD) does not whiten it, and a blind-spot "
            "network would learn to copy it. Use BM3D or non-local means (`tbsn evaluate nlm` scores it), or start "
            "again from RAW files, before the camera's own processing and JPEG."
        )
    if usable < TOO_FEW:
        reasons.append(
            f"There are too few usable pixels to train on: {usable / 1e6:.1f} million, with fewer than "
            f"{TOO_FEW / 1e6:.0f} million a network learns them by heart. Add images of the same camera, or use the "
            "default model: `tbsn denoise`."
        )
    suits = not reasons
    train, inference = min(train, WIDEST), min(inference, WIDEST)
    return Advice(train, inference, recipe, minutes, suits, tuple(reasons or _plan(train, inference, recipe, minutes)))


def _plan(train: int, inference: int, recipe: str, minutes: float | None) -> list[str]:
    if train == 1:
        why = "The noise is white already: train without PD (stride 1), at full resolution, and denoise without it."
    else:
        why = (
            f"Train with PD stride {train}: pixels that far apart have independent noise. Denoise with stride "
            f"{inference}, which keeps more detail."
        )
    time = (
        f"Training takes about {minutes:.0f} minutes on this machine's {os.cpu_count()} cores (twice that on a processor "
        "without bfloat16), distilling the fast student about as long again."
        if minutes
        else "Training takes 100,000 steps on the GPU: hours to a day."
    )
    return [why, f"Train: tbsn train FOLDER --recipe {recipe} --set pd={train}", time]


def _recipe(side: int) -> tuple[str, float | None]:
    """The recipe whose crops fit into images of at least ``side`` pixels, and its minutes; GPU recipes need NVIDIA's."""
    if shutil.which("nvidia-smi") and side >= CROPS["dnd"]:
        return "sidd" if side >= CROPS["sidd"] else "dnd", None
    return "cpu", CPU_MINUTES / min(os.cpu_count() or 1, MOST_CORES)
