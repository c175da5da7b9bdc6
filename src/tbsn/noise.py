"""What the noise is like, from noisy images alone: level, dependence on brightness, spatial autocorrelation.

The discrete cosine transform (DCT-II) of small overlapping patches separates what a patch holds: its content lies in
the coarse coefficients, its noise in all. The patches with the least coarse energy for their fine energy are noise and
little else. Selecting by a statistic and measuring the same one would be biased, so what selects never measures: the
coefficients are split like a chessboard, and each colour is measured on the patches that the other one chose.

Measuring the fine DCT energy of the patches with the least coarse energy is the method of Ponomarenko et al. (IGARSS
2007). The mean power over patches is Welch's periodogram (1967); over images its median is taken, so that images
without a pure patch do not count.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from tbsn.grid import grid_strength
from tbsn.images import to_float
from tbsn.spectrum import RINGS, autocovariance, by_ring, order, patches, transform

CLIPPED_PATCH, DEAD_PATCH = 0.05, 0.5  # shares of clipped values: of noise that is not whole, and of hardly any
FAINT = 0.05 / 255
GROUPS = 4
LEVELS = 10


@dataclass(frozen=True)
class Method:
    """What `benchmarks/noise_calibration.py` has chosen, without any clean image.

    ``patch``: side of the patches. ``content``: DCT coefficients up to this order (row + column) are left out as
    content. ``purest``: share of the patches that show the spectrum. ``split``: share of the noise energy that counts
    as fine. ``images``: quantile over the images that is their common spectrum, or None for the mean. ``quiet``: share
    of the patches of like brightness that show the level; ``reading``: their quantile that is the level, or None for
    the mean. ``floor_share``: quantile of the patches that is the floor of their brightness; ``floor_group``: the floor
    of the image is that of the quietest of the groups (0), the second quietest (1) and so on.
    """

    patch: int = 32
    content: int = 5
    purest: float = 0.05
    split: float = 2 / 3
    images: float | None = 0.25
    quiet: float = 0.25
    reading: float | None = 0.5
    floor_share: float = 0.2
    floor_group: int = 0


METHOD = Method()


@dataclass(frozen=True)
class Survey:
    """What one image tells: n patches, c channels, values of [0, 1].

    ``brightness`` (n, c): mean of each patch. ``energy`` (n, c, RINGS): its DCT energy in rings from coarse to fine.
    ``clipped`` (n, c): share of its values at the ends of the range. ``spectrum`` (c, patch, patch): mean DCT power of
    the purest patches. ``black`` and ``white``: share of values at the ends of the range. ``grid``: strength of a JPEG
    grid, 0 if there is none. ``size``: height and width. ``usable``: pixels that are clipped in no channel;
    empty channels do not count.
    """

    brightness: np.ndarray
    energy: np.ndarray
    clipped: np.ndarray
    spectrum: np.ndarray
    black: float
    white: float
    grid: float
    size: tuple[int, int]
    usable: int


@dataclass(frozen=True)
class Noise:
    """The noise of a set of images, c channels; standard deviations in units of the [0, 1] range.

    ``level`` (c): root mean square over the pixels of all images. ``per_image`` (images, c). ``floor``: of
    the quietest patches (see `Method`), median over images and channels: content has quiet places, noise is everywhere.
    Channels without any noise, as fluorescence of one colour has, do not count. ``curve`` (LEVELS, c): level by
    brightness, in equal intervals of [0, 1], NaN where nothing was seen.
    ``autocorrelation`` (c, LAGS + 1, LAGS + 1): by vertical and horizontal distance in pixels, the mean of the two
    diagonal directions.
    """

    level: np.ndarray
    per_image: np.ndarray
    floor: float
    curve: np.ndarray
    autocorrelation: np.ndarray

    @property
    def mean_autocorrelation(self) -> np.ndarray:
        """The mean (LAGS + 1, LAGS + 1) over the channels that have noise."""
        return self.autocorrelation[with_noise(self.level)].mean(axis=0)


def survey(pixels: np.ndarray, method: Method = METHOD) -> Survey:
    """Measure one image (h, w, c), any integer or float dtype; both sides at least ``method.patch``."""
    top = np.iinfo(pixels.dtype).max if np.issubdtype(pixels.dtype, np.integer) else 1
    black, white = pixels <= 0, pixels >= top
    values = to_float(patches(pixels, method.patch))
    at_end = ((values <= 0) | (values >= 1)).mean(axis=(2, 3))
    power = transform(values)
    full = pixels.min(axis=(0, 1)) < pixels.max(axis=(0, 1))
    return Survey(
        brightness=values.mean(axis=(2, 3)),
        energy=by_ring(power, method.content).sum(axis=-1),
        clipped=at_end,
        spectrum=pure_spectrum(power, at_end, method),
        black=float(black.mean()),
        white=float(white.mean()),
        grid=grid_strength(pixels),
        size=pixels.shape[:2],
        usable=int((~(black | white)[..., full].any(axis=2)).sum()) if full.any() else 0,
    )


def combine(surveys: Sequence[Survey], method: Method = METHOD) -> Noise:
    """The noise of a set of images, surveyed with one method; grey images among colour ones count for every channel."""
    channels = max(one.spectrum.shape[0] for one in surveys)
    parts = [_channel(surveys, c, method) for c in range(channels)]
    variance = np.stack([part[0] for part in parts], axis=1)
    floor = np.stack([part[1] for part in parts], axis=1)
    level = np.sqrt(variance.mean(axis=0))
    return Noise(
        level=level,
        per_image=np.sqrt(variance),
        floor=float(np.sqrt(np.median(floor[:, with_noise(level)]))),
        curve=np.stack([part[2] for part in parts], axis=1),
        autocorrelation=np.stack([part[3] for part in parts]),
    )


def with_noise(level: np.ndarray) -> np.ndarray:
    """Which channels have noise, by their level (c): all, if none has."""
    return (level >= FAINT) | (level.max() < FAINT)


def pure_spectrum(power: np.ndarray, clipped: np.ndarray, method: Method = METHOD) -> np.ndarray:
    """Mean DCT power (c, side, side) of the purest patches, of ``power`` (n, c, side, side), ``clipped`` (n, c)."""
    rings = by_ring(power, method.content)
    return np.stack([_purest(power[:, c], rings[:, c], clipped[:, c], method) for c in range(power.shape[1])])


def _purest(power: np.ndarray, rings: np.ndarray, clipped: np.ndarray, method: Method) -> np.ndarray:
    """Mean DCT power (side, side) of the purest patches of one channel; ``rings`` (n, RINGS, 2): their energy."""
    unclipped = np.flatnonzero(clipped < CLIPPED_PATCH)
    if len(unclipped) < max(1, len(power) // 10):
        unclipped = np.argsort(clipped)[: max(1, len(power) // 4)]
    keep = max(1, round(method.purest * len(unclipped)))
    rings = rings[unclipped]
    colour = order(power.shape[-1]) % 2
    spectrum = np.zeros(power.shape[1:])
    split = RINGS // 2
    for _ in range(2):
        for chooser in (0, 1):
            ratio = rings[:, :split, chooser].sum(axis=1) / (rings[:, split:, chooser].sum(axis=1) + 1e-12)
            chosen = unclipped[np.argsort(ratio)[:keep]]
            spectrum = np.where(colour == chooser, spectrum, power[chosen].mean(axis=0))
        split = _split(spectrum, method)
    return spectrum


def _split(spectrum: np.ndarray, method: Method) -> int:
    """The ring from which on outwards ``method.split`` of the noise energy lies: what is finer is for measuring."""
    outside = np.cumsum(by_ring(spectrum, method.content).sum(axis=-1)[::-1])[::-1]
    return int(np.clip(np.searchsorted(-outside, -outside[0] * method.split), 3, RINGS - 4))


def _channel(surveys: Sequence[Survey], channel: int, method: Method) -> tuple[np.ndarray, ...]:
    """Of one channel: variance of each image, its floor, curve of the level, autocorrelation."""
    index = [min(channel, one.spectrum.shape[0] - 1) for one in surveys]
    spectra = np.stack([one.spectrum[c] for one, c in zip(surveys, index, strict=True)])
    spectrum = common_spectrum(spectra, method)
    covariance = autocovariance(spectrum, method.content)
    split = _split(spectrum, method)
    scale = covariance[0, 0] / by_ring(spectrum, method.content)[split:].sum()
    groups = [_groups(one, c, split, scale, method) for one, c in zip(surveys, index, strict=True)]
    variance = np.array([np.average(group[:, 1], weights=group[:, 3]) for group in groups])
    floor = np.array([np.sort(group[:, 2])[: method.floor_group + 1].max() for group in groups])
    return variance, floor, _by_brightness(np.concatenate(groups)), covariance / covariance[0, 0]


def common_spectrum(spectra: np.ndarray, method: Method = METHOD) -> np.ndarray:
    """The spectrum (side, side) that images share, each scaled to one, of their spectra (n, side, side)."""
    side = spectra.shape[-1]
    power = spectra[:, order(side) > method.content].mean(axis=1)
    if not power.any():
        return np.ones((side, side))
    return _middle(spectra[power > 0] / power[power > 0, None, None], method.images)


def _middle(values: np.ndarray, quantile: float | None) -> np.ndarray:
    return values.mean(axis=0) if quantile is None else np.quantile(values, quantile, axis=0)


def _groups(one: Survey, channel: int, split: int, scale: float, method: Method) -> np.ndarray:
    """Patches of like brightness, one row each: brightness, variance, floor of the variance, patches.

    Those with the least coarse energy are measured by their fine energy, ``scale`` of which is the variance.
    """
    coarse = one.energy[:, channel, :split].sum(axis=1)
    variance = scale * one.energy[:, channel, split:].sum(axis=1)
    alive = np.flatnonzero(one.clipped[:, channel] < DEAD_PATCH)
    alive = alive if len(alive) else np.arange(len(coarse))
    rows = []
    for group in np.array_split(alive[np.argsort(one.brightness[alive, channel])], min(GROUPS, len(alive))):
        pure = group[np.argsort(coarse[group])[: int(np.ceil(method.quiet * len(group)))]]
        values = _middle(variance[pure], method.reading), np.quantile(variance[group], method.floor_share)
        rows.append((one.brightness[group, channel].mean(), *values, len(group)))
    return np.array(rows)


def _by_brightness(groups: np.ndarray) -> np.ndarray:
    """Level by brightness (LEVELS), NaN where there are no patches."""
    brightness, variance, _, patches = groups.T
    interval = np.minimum((brightness * LEVELS).astype(int), LEVELS - 1)
    weight = np.bincount(interval, patches, LEVELS)
    total = np.bincount(interval, patches * variance, LEVELS)
    return np.sqrt(np.divide(total, weight, out=np.full(LEVELS, np.nan), where=weight > 0))
