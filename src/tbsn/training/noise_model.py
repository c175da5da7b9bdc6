"""A model of the noise of one image, from the image and an estimate of what it shows: to draw more noise of its kind.

The noise is a Gaussian field whose values are mapped, by brightness and channel, to the quantiles of the noise that was
seen. So it has the distribution of the real noise, skewed by the tone curve and clipped as that is, its dependence on
brightness, and its correlation between neighbours and channels.

Of each colour a camera sees one pixel in two or four, and interpolates the others: in every cell of 2x2 pixels some are
noisier than others, and each goes with other neighbours. So the field is one of cells, each a pixel of 4c channels,
and alike from cell to cell only.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Self

import numpy as np
import torch
from numpy.fft import irfft2, rfft2
from numpy.lib.stride_tricks import sliding_window_view
from scipy.ndimage import gaussian_filter, uniform_filter
from scipy.stats import norm
from torch.nn import functional as F

from tbsn.training.light import CURVES, Curve

LEVELS = 10
GRID = 4096
FULL, REACH = 2, 7  # pixels
LAGS, KERNEL, TORUS = 9, 9, 16  # cells of 2x2
ROW, COLUMN = np.array([0, 0, 1, 1]), np.array([0, 1, 0, 1])  # of the pixels of a cell
FLAT = 0.5
STRONGEST = 50 / 255
SCORES = np.linspace(-3.5, 3.5, 29, dtype=np.float32)
STEP = float(SCORES[1] - SCORES[0])
WINDOW, WINDOWS = 256, 2
RINGS = 12
SAME = np.ones(RINGS)
BLACK, NEAR_BLACK = 1e-6, 0.1
LEAST_NOISE = 1e-4  # under it there is nothing to measure: a blank photo, a white sky
ROUNDS = 3
RING_CENTRES = (np.arange(RINGS) + 0.5) * np.sqrt(0.5) / RINGS


@dataclass(frozen=True)
class NoiseModel:
    """The noise of an image of c channels, values in [0, 1].

    ``brightness`` (c, LEVELS): ascending. ``quantiles`` (c, LEVELS, scores): of the noise at each brightness, at the
    normal scores SCORES. ``level`` (c, GRID): the place among these brightnesses of the values 0 to 1, and ``shift``
    (c, GRID): how much brighter the image is where the estimate has them. ``kernel`` (4c, 4c, KERNEL, KERNEL): what
    white noise is convolved with to become the Gaussian field of cells of 2x2 pixels.

    The noise has the mean 0 in light: the average of many such photos, which is what a longer exposure measures, is the
    truth. After the tone curve of a picture, which is steep where it is dark, the mean of noisy values is too dark, and
    so is a denoiser that learned from them. What was cut off at black raises the mean, see `unclipped_mean`.
    """

    brightness: np.ndarray
    quantiles: np.ndarray
    level: np.ndarray
    shift: np.ndarray
    kernel: np.ndarray

    @classmethod
    def fit(cls, noisy: np.ndarray, estimate: np.ndarray, power: np.ndarray = SAME, curve: Curve = "sRGB") -> Self:
        """From an image (h, w, c) and an estimate of it without noise, both float in [0, 1].

        ``power`` is what `missed_power` found: factors of the field's power, by frequency. ``curve`` is the tone curve
        of the image.

        Only the flattest half of what is of like brightness counts: elsewhere the difference holds content that the
        estimate has lost. Of images larger than 512 pixels four windows are looked at.
        """
        windows = [(noisy[where], estimate[where]) for where in _windows(*noisy.shape[:2])]
        flat = [_flatness(of) for _, of in windows]
        shown = np.concatenate([of.reshape(-1, of.shape[2]) for _, of in windows])
        seen = np.concatenate([whole.reshape(-1, whole.shape[2]) for whole, _ in windows]) - shown
        activity = np.concatenate([one.ravel() for one in flat])
        tables = [_quantiles(shown[:, k], seen[:, k], activity, curve) for k in range(shown.shape[1])]
        brightness, quantiles, shift = (np.stack(part) for part in zip(*tables, strict=True))
        places = np.arange(LEVELS)
        model = cls(brightness, quantiles, _tables(brightness, places), np.empty(0), np.empty(0))
        limit = np.quantile(activity, FLAT)
        fields = [model.scores(whole - of, of) for whole, of in windows]
        kernel = _kernel(_covariance(fields, [one <= limit for one in flat]), power)
        rising = np.maximum.accumulate(brightness + shift, axis=1) + 1e-6 * np.arange(LEVELS, dtype=np.float32)
        level, shift_of = _tables(rising, places), _tables(brightness, rising - brightness)
        return cls(rising, quantiles - shift[..., None], level, shift_of, kernel)

    @property
    def packed(self) -> np.ndarray:
        """All of it in bytes (n,)."""
        return np.concatenate([part.reshape(-1).view(np.uint8) for part in vars(self).values()])

    @classmethod
    def unpacked(cls, packed: np.ndarray, channels: int) -> Self:
        """What was `packed`, as a view of its bytes (n,)."""
        table, kernel = (channels, GRID), (4 * channels, 4 * channels, KERNEL, KERNEL)
        layout = np.dtype([
            ("brightness", np.float32, (channels, LEVELS)), ("quantiles", np.float32, (channels, LEVELS, len(SCORES))),
            ("level", np.float32, table), ("shift", np.float32, table), ("kernel", np.float32, kernel),
        ])  # fmt: skip
        (record,) = packed.view(layout)
        return cls(*record)

    @property
    def strength(self) -> float:
        """Of the noise: root mean square at the normal scores, over all brightnesses and channels."""
        return float(np.sqrt((self.quantiles**2).mean()))

    def unbiased(self, estimate: np.ndarray) -> np.ndarray:
        """An estimate (h, w, c) moved so that the noise has the mean 0 in light, at each brightness."""
        return np.clip(estimate + _looked_up(self.shift, estimate), 0, 1)

    def scores(self, noise: np.ndarray, image: np.ndarray) -> np.ndarray:
        """Normal scores of noise (h, w, c) at the brightness of an image: the inverse of `of_scores`."""
        level, place = self._level(image), np.zeros(noise.shape, np.intp)
        for step in (16, 8, 4, 2, 1):
            further = np.minimum(place + step, len(SCORES) - 2)
            place = np.where(self._quantile(further, *level) <= noise, further, place)
        low, high = (self._quantile(place + i, *level) for i in (0, 1))
        return np.clip(SCORES[place] + STEP * (noise - low) / (high - low), SCORES[0], SCORES[-1])

    def of_scores(self, scores: np.ndarray, image: np.ndarray) -> np.ndarray:
        """Noise (h, w, c) of a Gaussian field (h, w, c) at the brightness of an image."""
        level = self._level(image)
        place = np.clip((scores - SCORES[0]) / np.float32(STEP), 0, len(SCORES) - 1.001).astype(np.float32)
        below = place.astype(np.intp)
        along = place - below.astype(np.float32)
        return self._quantile(below, *level) * (1 - along) + self._quantile(below + 1, *level) * along

    def draw(self, image: np.ndarray, random: np.random.Generator) -> np.ndarray:
        """Noise for an image (h, w, c), float32; the place of its cells is random."""
        height, width = image.shape[:2]
        size = [side // 2 + KERNEL for side in (height, width)]
        white = torch.from_numpy(random.standard_normal((1, len(self.kernel), *size), dtype=np.float32))
        field = F.pixel_shuffle(F.conv2d(white, torch.tensor(self.kernel)), 2)[0].numpy().transpose(1, 2, 0)
        top, left = random.integers(2, size=2)
        return self.of_scores(field[top : top + height, left : left + width], image)

    def _level(self, image: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """The level below each value, and how far it is on the way to the next."""
        exact = _looked_up(self.level, image)
        level = np.minimum(exact.astype(np.intp), LEVELS - 2)
        return level, exact - level.astype(np.float32)

    def _quantile(self, place: np.ndarray, level: np.ndarray, share: np.ndarray) -> np.ndarray:
        """The noise at a place among SCORES, a ``share`` of the way from a level to the next (all h, w, c)."""
        tables, row = self.quantiles.reshape(-1), len(SCORES)
        start = (np.arange(level.shape[2]) * LEVELS + level) * row + place
        return tables[start] * (1 - share) + tables[start + row] * share


def plain_noise(image: np.ndarray, random: np.random.Generator) -> np.ndarray:
    """Noise (h, w, c) that is no camera's: Gaussian, of a standard deviation from none to STRONGEST.

    Independent or a little blurred, and as strong everywhere or, in part, like that of photons.
    """
    field = random.standard_normal(image.shape, dtype=np.float32)
    if random.random() < 0.5:
        blur = random.uniform(0, 1)
        field = gaussian_filter(field, (blur, blur, 0))
        field /= field.std()
    photons = np.float32(random.random())
    return np.float32(random.uniform(0, STRONGEST)) * np.sqrt(1 - photons + 2 * photons * image) * field


def missed_power(
    denoiser: Callable[[np.ndarray], np.ndarray],
    pairs: Sequence[tuple[np.ndarray, np.ndarray]],
    random: np.random.Generator,
    curve: Curve = "sRGB",
) -> np.ndarray:
    """Factors (RINGS) of the power that the model misses, by frequency from coarse to fine.

    ``pairs`` are noisy images and what the denoiser makes of them, float (h, w, c) in [0, 1]. A denoiser leaves some
    noise in its estimates, the coarse the most, and the model does not see that. But it leaves as much of drawn noise:
    so the power is changed until what the denoiser takes out of estimates with drawn noise is what it takes out of the
    noisy images, where those are flat. Images that have hardly any noise there do not count.
    """
    power = SAME
    for _ in range(ROUNDS):
        real, drawn = np.zeros(RINGS), np.zeros(RINGS)
        for noisy, estimate in pairs:
            side = min(WINDOW, *noisy.shape[:2])
            noisy, estimate = noisy[:side, :side], estimate[:side, :side]
            activity = _flatness(estimate)
            flat = (activity <= np.quantile(activity, FLAT))[..., None]
            scale = float((noisy - estimate)[flat[..., 0]].std())  # weak noise counts like strong
            if scale < LEAST_NOISE:
                continue
            model = NoiseModel.fit(noisy, estimate, power, curve)
            clean = model.unbiased(estimate)
            renoised = np.clip(clean + model.draw(clean, random), 0, 1)
            real += _by_ring((noisy - estimate) * flat / scale)
            drawn += _by_ring((renoised - denoiser(renoised)) * flat / scale)
        power = power * np.divide(real, drawn, out=np.ones(RINGS), where=drawn > 0)
    return power


def _tables(at: np.ndarray, values: np.ndarray) -> np.ndarray:
    """Of each channel (c, GRID): values (LEVELS) or (c, LEVELS), known at ascending places (c, LEVELS), from 0 to 1."""
    grid = np.linspace(0, 1, GRID)
    known = zip(at, np.broadcast_to(values, at.shape), strict=True)
    return np.stack([np.interp(grid, place, value) for place, value in known], dtype=np.float32)


def _looked_up(tables: np.ndarray, image: np.ndarray) -> np.ndarray:
    """What the tables (c, GRID) have for each value of an image (h, w, c)."""
    index = np.clip(image * np.float32(GRID - 1) + np.float32(0.5), 0, GRID - 1).astype(np.intp)
    return tables.ravel().take(index + GRID * np.arange(len(tables)))


def _by_ring(image: np.ndarray) -> np.ndarray:
    """Power (RINGS) of an image (h, w, c) by frequency."""
    height, width = image.shape[:2]
    ring = np.minimum((_frequency(height, width) * RINGS / np.sqrt(0.5)).astype(int), RINGS - 1)
    power = (np.abs(rfft2(image, axes=(0, 1))) ** 2).sum(axis=2)
    return np.bincount(ring.ravel(), power.ravel(), RINGS) / np.maximum(np.bincount(ring.ravel(), minlength=RINGS), 1)


def _frequency(height: int, width: int) -> np.ndarray:
    """Distance from frequency 0, in cycles a pixel, of what rfft2 gives."""
    return np.hypot(np.fft.fftfreq(height)[:, None], np.fft.rfftfreq(width))


def _windows(height: int, width: int) -> list[tuple[slice, slice]]:
    """What is looked at of an image; all windows begin with a cell."""
    if height * width <= (WINDOW * WINDOWS) ** 2:
        return [(slice(0, height), slice(0, width))]
    rows, columns = (
        [
            slice(start, start + WINDOW)
            for start in np.linspace(0, size - min(size, WINDOW), WINDOWS).astype(int) // 2 * 2
        ]
        for size in (height, width)
    )
    return [(row, column) for row in rows for column in columns]


def _flatness(image: np.ndarray) -> np.ndarray:
    """How strongly an image (h, w, c) changes around each pixel (h, w); little is flat."""
    rows, columns = np.gradient(gaussian_filter(image, (1, 1, 0)), axis=(0, 1))
    return np.sqrt(np.maximum(uniform_filter((rows**2 + columns**2).sum(axis=2), 9), 0))  # its running sum errs below 0


def _quantiles(
    shown: np.ndarray, noise: np.ndarray, activity: np.ndarray, curve: Curve
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Of one channel: brightness of the levels, quantiles of the noise there, and how much brighter its mean light is.

    The last is in values of the picture.
    """
    to_light, from_light = CURVES[curve]
    brightness, quantiles, shift = [], [], []
    for level, part in enumerate(np.array_split(np.argsort(shown, kind="stable"), LEVELS)):
        flat = part[activity[part] <= np.quantile(activity[part], FLAT, method="higher")]
        brightness.append(shown[part].mean() + 1e-6 * level)  # rising, whatever the image
        quantiles.append(np.quantile(noise[flat], norm.cdf(SCORES)) + 1e-6 * np.arange(len(SCORES)))
        noisy = unclipped_mean(to_light(shown[flat] + noise[flat]))
        shift.append(from_light(np.array(noisy)) - from_light(to_light(shown[flat]).mean()))
    return np.array(brightness, np.float32), np.array(quantiles, np.float32), np.array(shift, np.float32)


def unclipped_mean(light: np.ndarray) -> float:
    """The mean of light (n,) in [0, 1] that was cut off at black, had it not been: at least 0.

    Below black the density goes on as it is just above, until it has held the share of the values that lie at black.
    The noise having one peak, above black, no tail is shorter: this is the least that the cut can have hidden.
    """
    black = light <= BLACK
    above, share = light[~black], black.mean()
    near = int(NEAR_BLACK * len(light))
    if not share or near >= len(above):
        return float(light.mean())
    width = np.partition(above, near)[near]
    reach = share * width / NEAR_BLACK
    return max(0.0, float(light.mean() - share * reach / 2))


def cells(image: np.ndarray) -> np.ndarray:
    """The cells of 2x2 pixels of an image (h, w, c), each a pixel of 4c channels: (h / 2, w / 2, 4c), less odd ends."""
    rows, columns, channels = image.shape[0] // 2, image.shape[1] // 2, image.shape[2]
    parts = image[: 2 * rows, : 2 * columns].reshape(rows, 2, columns, 2, channels)
    return parts.transpose(0, 2, 4, 1, 3).reshape(rows, columns, 4 * channels)


def _covariance(fields: Sequence[np.ndarray], flat: Sequence[np.ndarray]) -> np.ndarray:
    """Covariance (LAGS, LAGS, 4c, 4c) of the cells of fields (h, w, c), from pairs of pixels that are both flat."""
    seen = [cells(field * mask[..., None]) for field, mask in zip(fields, flat, strict=True)]
    known = [cells(mask[..., None].astype(np.float32)) for mask in flat]
    total, count = (np.sum([_products(one) for one in parts], axis=0) for parts in (seen, known))
    place = np.arange(total.shape[-1]) % 4
    return total / np.maximum(count[..., place[:, None], place], 1)


def _products(image: np.ndarray) -> np.ndarray:
    """Sums (LAGS, LAGS, n, n) over all places of the products of channel i at a distance and channel j of (h, w, n)."""
    side = LAGS // 2
    moved = sliding_window_view(np.pad(image, ((side, side), (side, side), (0, 0))), image.shape)[:, :, 0]
    return np.array([[np.tensordot(one, image, ((0, 1), (0, 1))) for one in row] for row in moved])


def _apart(distance: np.ndarray) -> tuple[np.ndarray, ...]:
    """Rows, and columns, between the pixels of two cells by the ``distance`` (n) of these: each (n, 4, 4)."""
    return tuple(2 * distance[:, None, None] + place[:, None] - place for place in (ROW, COLUMN))


def _fade(distance: np.ndarray) -> np.ndarray:
    """1 up to FULL, and nothing beyond REACH."""
    return 0.5 + 0.5 * np.cos(np.pi * np.clip((np.abs(distance) - FULL) / (REACH + 1 - FULL), 0, 1))


def _kernel(covariance: np.ndarray, power: np.ndarray) -> np.ndarray:
    """What white noise is convolved with (4c, 4c, KERNEL, KERNEL), for the covariances, which fade out towards REACH.

    Each place in a cell keeps its variance, before what ``power`` does by ring of frequency.
    """
    lags, number = np.arange(LAGS) - LAGS // 2, covariance.shape[-1]
    rows, columns = map(_fade, _apart(lags))
    fade = np.tile(rows[:, None] * columns, (1, 1, number // 4, number // 4))
    whole = np.zeros((TORUS, TORUS, number, number))
    whole[np.ix_(lags, lags)] = covariance * fade
    values, vectors = np.linalg.eigh(rfft2(whole, axes=(0, 1)))
    root = vectors * np.sqrt(np.maximum(values, 0))[..., None, :] @ vectors.conj().swapaxes(-1, -2)
    variance = np.diagonal(covariance[LAGS // 2, LAGS // 2]), (irfft2(root, axes=(0, 1)) ** 2).sum(axis=(0, 1, 3))
    root *= np.sqrt(np.maximum(variance[0], 0) / np.maximum(variance[1], 1e-12))[:, None]
    blur = irfft2(np.sqrt(np.interp(_frequency(2 * TORUS, 2 * TORUS), RING_CENTRES, power)))
    rows, columns = _apart(np.arange(TORUS))
    root = np.kron(np.eye(number // 4), rfft2(blur[rows[:, None], columns], axes=(0, 1))) @ root
    around = -np.arange(KERNEL) + KERNEL // 2  # torch correlates instead of convolving
    return irfft2(root, axes=(0, 1))[np.ix_(around, around)].transpose(2, 3, 0, 1).astype(np.float32)
