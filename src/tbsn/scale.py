"""Which values of an image are black and white to a network, and the way back."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from types import MappingProxyType

import numpy as np

SAMPLES = 1e6
FEWEST = 8  # bits
OUTLIERS = 0.1  # per cent, at either end
FAINT = 1e-3  # a quarter of the least that a display shows
SHORT = np.dtype(np.uint16)

Bits = Mapping[np.dtype, int]


@dataclass(frozen=True)
class Scale:
    """The values that a network sees as 0 and as 1; what lies beyond them it does not see, and does not change."""

    low: float = 0.0
    high: float = 1.0

    def unit(self, pixels: np.ndarray) -> np.ndarray:
        """As float32 in [0, 1]; in place of values that are not finite, the mean of the others."""
        exact = np.result_type(pixels, np.float32).type
        values = ((pixels - exact(self.low)) / exact(self.high - self.low)).astype(np.float32, copy=False)
        if pixels.dtype.kind == "f" and not (finite := np.isfinite(values)).all():
            values = np.where(finite, values, values[finite].mean() if finite.any() else 0).astype(np.float32)
        return np.clip(values, 0, 1)

    def changed(self, pixels: np.ndarray, change: np.ndarray) -> np.ndarray:
        """Pixels plus a ``change`` in units of [0, 1], in their own dtype: integers rounded half up and clipped.

        Of 64 bits float64 holds 53: what does not change stays exact, all else is as near as that.
        """
        exact = np.float32 if pixels.dtype.itemsize <= 2 else np.float64
        values = pixels + exact(self.high - self.low) * change
        if pixels.dtype.kind == "f":
            return values.astype(pixels.dtype)
        limits = np.iinfo(pixels.dtype)
        top = limits.max if int(exact(limits.max)) <= limits.max else np.nextafter(exact(limits.max), exact(0))
        values += exact(0.5)
        changed = np.clip(np.floor(values, out=values), limits.min, top, out=values).astype(pixels.dtype)
        if pixels.dtype.itemsize > 4:
            np.copyto(changed, pixels, where=change == 0)
        return changed


def bits_used(dtype: np.dtype, parts: Iterable[np.ndarray]) -> int:
    """Of an integer dtype: 8, 10, 12 and so on, as many as hold all that is in the ``parts`` of an image (n, w, c).

    Cameras and detectors of 10, 12 or 14 bits write files of 16.
    """
    whole = np.iinfo(dtype).max.bit_length()
    bits = FEWEST
    for part in parts if whole > FEWEST else ():
        bits = max(bits, int(part.max()).bit_length())
        if bits > whole - 2:
            return whole
    return bits + bits % 2 if whole > FEWEST else whole


def common_bits(images: Iterable[tuple[np.dtype, Iterable[np.ndarray]]]) -> Bits:
    """The `bits_used` by each integer dtype in all ``images``, given by their dtype and parts.

    They are of one camera, and a dark one alone would seem to have fewer bits. Once one of uint16 uses all of them, no
    more is read; of other dtypes nothing is known then.
    """
    bits: dict[np.dtype, int] = {}
    for dtype, parts in images:
        if dtype.kind != "f":
            bits[dtype] = max(bits.get(dtype, 0), bits_used(dtype, parts))
        if bits.get(SHORT) == 16:
            return {SHORT: 16}
    return bits


def full_depth(pixels: np.ndarray, bits: Bits = MappingProxyType({})) -> np.ndarray:
    """Integers (h, w, c), multiplied so that they use all the bits of their dtype; others as they are.

    Those of 64 bits, all of which float64 does not hold, become some of 32. ``bits`` is what `common_bits` found; by
    default, those that this image uses.
    """
    if pixels.dtype.kind == "f":
        return pixels
    dtype = pixels.dtype if pixels.dtype.itemsize <= 4 else np.dtype(f"{pixels.dtype.kind}4")
    limits, most = np.iinfo(dtype), 2 ** (bits.get(pixels.dtype) or bits_used(pixels.dtype, [pixels])) - 1
    if most == limits.max and dtype == pixels.dtype:
        return pixels
    return np.clip(np.rint(np.minimum(pixels, most) * (limits.max / most)), limits.min, limits.max).astype(dtype)


def scale_of(dtype: np.dtype, count: int, parts: Iterable[np.ndarray]) -> Scale:
    """The scale of an image of ``count`` values: the range of the bits that integers use, [0, 1] of floats.

    Negative integers, and floats that do not keep to [0, 1] or hardly leave 0, as lengths in metres do, are scaled by
    what they are, outliers aside; that needs the ``parts`` of the image (n, w, c), whose order does not matter.
    """
    if dtype.kind == "u":
        return Scale(0.0, float(2 ** bits_used(dtype, parts) - 1))
    step, bits, samples = max(1, int(np.sqrt(count / SAMPLES))), FEWEST, []
    for part in parts:
        samples.append(part[::step, ::step].ravel())
        bits = max(bits, bits_used(dtype, [part]) if dtype.kind == "i" else 0)
    sample = np.concatenate(samples)
    sample = sample[np.isfinite(sample)]
    low, high = np.percentile(sample, [OUTLIERS, 100 - OUTLIERS]) if sample.size else (0, 1)
    usual = Scale(0.0, float(2**bits - 1)) if dtype.kind == "i" else Scale()
    if low >= usual.low and (dtype.kind == "i" or high >= FAINT) and high <= usual.high:
        return usual
    return Scale(float(low), float(high) if high > low else float(low) + 1)
