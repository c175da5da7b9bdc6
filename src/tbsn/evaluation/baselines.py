"""Denoisers that learn nothing (need scikit-image): functions of one image (h, w, c) in [0, 1]."""

from collections.abc import Callable

import numpy as np
from skimage.filters import gaussian
from skimage.restoration import denoise_nl_means

# Constants chosen with the clean images of the SIDD validation pairs: the baselines at their strongest.
BLUR_SIGMA = 2.5
NLM_STRENGTH = 0.15


def blur(image: np.ndarray) -> np.ndarray:
    """Gaussian blur with a standard deviation of 2.5 pixels."""
    return gaussian(image, sigma=BLUR_SIGMA, channel_axis=2).astype(np.float32)


def nlm(image: np.ndarray) -> np.ndarray:
    """Non-local means with 5x5 patches in surroundings of 13x13 pixels."""
    settings = {"patch_size": 5, "patch_distance": 6, "fast_mode": True, "channel_axis": 2}
    return denoise_nl_means(image, h=NLM_STRENGTH, **settings).astype(np.float32)


BASELINES: dict[str, Callable[[np.ndarray], np.ndarray]] = {"noisy": lambda image: image, "blur": blur, "nlm": nlm}
