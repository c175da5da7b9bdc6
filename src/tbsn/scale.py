"""Which values of an image are black and white to a network, and the way back."""

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np

SAMPLES = 1e6
OUTLIERS = 0.1  # per cent, at either end


@dataclass(frozen=True)
class Scale:
    """The values that a network sees as 0 and as 1; what lies beyond them it does not see, and does not change."""

    low: float = 0.0
    high: float = 1.0

    def unit(self, pixels: np.ndarray) -> np.ndarray:
        """As float32 in [0, 1]; in place of values that are not finite, the mean of the others."""
        values = ((pixels - np.float32(self.low)) / np.float32(self.high - self.low)).astype(np.float32, copy=False)
        if pixels.dtype.kind == "f" and not (finite := np.isfinite(values)).all():
            values = np.where(finite, values, values[finite].mean() if finite.any() else 0).astype(np.float32)
        return np.clip(values, 0, 1)

    def changed(self, pixels: np.ndarray, change: np.ndarray) -> np.ndarray:
        """Pixels plus a ``change`` in units of [0, 1], in their own dtype: integers rounded half up and clipped."""
        exact = np.float32 if pixels.dtype.itemsize <= 2 else np.float64
        values = pixels + exact(self.high - self.low) * change
        if pixels.dtype.kind == "f":
            return values.astype(pixels.dtype)
        limits = np.iinfo(pixels.dtype)
        values += exact(0.5)
        return np.clip(np.floor(values, out=values), limits.min, limits.max, out=values).astype(pixels.dtype)


def scale_of(dtype: np.dtype, count: int, parts: Iterable[np.ndarray]) -> Scale:
    """The scale of an image of ``count`` values: all of the range of an integer dtype, [0, 1] of a float one.

    Floats that do not keep to [0, 1] are scaled by what they are, outliers aside; that needs the ``parts`` of the image
    (n, w, c), whose order does not matter.
    """
    if dtype.kind != "f":
        return Scale(0.0, float(np.iinfo(dtype).max))
    step = max(1, int(np.sqrt(count / SAMPLES)))
    sample = np.concatenate([part[::step, ::step].ravel() for part in parts])
    sample = sample[np.isfinite(sample)]
    low, high = np.percentile(sample, [OUTLIERS, 100 - OUTLIERS]) if sample.size else (0, 1)
    if low >= 0 and high <= 1:
        return Scale()
    return Scale(float(low), float(high) if high > low else float(low) + 1)
