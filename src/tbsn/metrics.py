"""PSNR and SSIM by named protocols: one image gives different figures under each."""

from dataclasses import dataclass
from typing import Any

import numpy as np


@dataclass(frozen=True)
class Protocol:
    """How denoised values in [0, 1] become the values that are scored."""

    name: str
    eight_bit: bool
    description: str

    def prepare(self, image: np.ndarray) -> np.ndarray:
        """Clipped to [0, 1], and for an 8-bit protocol rounded half up to 255 steps; float64."""
        values = image.astype(np.float64)
        return np.clip(np.floor(255 * values + 0.5) / 255 if self.eight_bit else values, 0, 1)


PROTOCOLS = {
    "sidd": Protocol("sidd", True, "8-bit rounding, clip; SSIM with a gaussian window of 11, sigma 1.5, per channel"),
    "dnd": Protocol("dnd", False, "clip only; SSIM with a gaussian window of 11, sigma 1.5, per channel"),
}


def psnr(denoised: np.ndarray, clean: np.ndarray, protocol: Protocol) -> float:
    """Peak signal-to-noise ratio in dB of images (h, w, c) in [0, 1], over all channels; infinite if they are equal."""
    error = np.mean((protocol.prepare(denoised) - protocol.prepare(clean)) ** 2)
    return float("inf") if error == 0 else float(-10 * np.log10(error))


def ssim(denoised: np.ndarray, clean: np.ndarray, protocol: Protocol) -> float:
    """Structural similarity of images (h, w, c) in [0, 1], the mean over channels (needs scikit-image)."""
    from skimage.metrics import structural_similarity

    prepared, reference = protocol.prepare(denoised), protocol.prepare(clean)
    value: Any = structural_similarity(
        prepared, reference, data_range=1, gaussian_weights=True, sigma=1.5, use_sample_covariance=False, channel_axis=2
    )
    return float(value)
