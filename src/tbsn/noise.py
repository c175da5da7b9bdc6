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

PATCH = 32
STEP = 16
MOST_PATCHES = 1024
LAGS = 8
RINGS = 16
PUREST = 0.1
CLIPPED_PATCH = 0.05
GROUPS = 4
LEVELS = 10

_row, _column = np.mgrid[:PATCH, :PATCH]
BASIS = np.sqrt(2 / PATCH) * np.cos(np.pi * _row * (2 * _column + 1) / (2 * PATCH))
BASIS[0] /= np.sqrt(2)
DC_AND_SLOPES = _row + _column <= 2
NEIGHBOURS = (_row + _column == 3) | (_row + _column == 4)
RING = np.where(DC_AND_SLOPES, RINGS, np.minimum(np.hypot(_row, _column) * RINGS / PATCH, RINGS - 1)).astype(int)
IN_RING = np.stack([ring == RING for ring in range(RINGS)]).reshape(RINGS, -1).T.astype(np.float32)
CHESSBOARD = (_row + _column) % 2 == 0


@dataclass(frozen=True)
class Survey:
    """What one image tells: n patches, c channels, values of [0, 1].

    ``brightness`` (n, c): mean of each patch. ``energy`` (n, c, RINGS): its DCT energy in rings from coarse to fine.
    ``spectrum`` (c, PATCH, PATCH): mean DCT power of the purest patches. ``black`` and ``white``: share of values at
    the ends of the range. ``grid``: strength of a JPEG grid, 0 if there is none. ``size``: height and width.
    ``usable``: pixels with no channel clipped.
    """

    brightness: np.ndarray
    energy: np.ndarray
    spectrum: np.ndarray
    black: float
    white: float
    grid: float
    size: tuple[int, int]
    usable: int


@dataclass(frozen=True)
class Noise:
    """The noise of a set of images, c channels; standard deviations in units of the [0, 1] range.

    ``level`` (c): root mean square over the pixels of all images. ``per_image`` (images, c). ``floor``: of the
    quietest tenth of the patches, in the second quietest of the groups of like brightness (the quietest may be
    clipped), median over images and channels: content has quiet places, noise is everywhere. ``curve`` (LEVELS, c):
    level by brightness, in equal intervals of [0, 1], NaN where nothing was seen. ``autocorrelation``
    (c, LAGS + 1, LAGS + 1): by vertical and horizontal distance in pixels, the mean of the two diagonal directions.
    """

    level: np.ndarray
    per_image: np.ndarray
    floor: float
    curve: np.ndarray
    autocorrelation: np.ndarray


def survey(pixels: np.ndarray) -> Survey:
    """Measure one image (h, w, c), any integer or float dtype; both sides at least PATCH."""
    top = np.iinfo(pixels.dtype).max if np.issubdtype(pixels.dtype, np.integer) else 1
    black, white = pixels <= 0, pixels >= top
    values = to_float(patches(pixels))
    at_end = ((values <= 0) | (values >= 1)).mean(axis=(2, 3))
    basis = BASIS.astype(np.float32)
    power = (basis @ values @ basis.T) ** 2
    flat = power.reshape(*power.shape[:2], -1)
    return Survey(
        brightness=values.mean(axis=(2, 3)),
        energy=flat @ IN_RING,
        spectrum=np.stack([_purest(power[:, c], at_end[:, c]) for c in range(power.shape[1])]),
        black=float(black.mean()),
        white=float(white.mean()),
        grid=grid_strength(pixels),
        size=pixels.shape[:2],
        usable=int((~(black | white).any(axis=2)).sum()),
    )


def combine(surveys: Sequence[Survey]) -> Noise:
    """The noise of a set of images; grey images among colour ones count for every channel."""
    channels = max(one.spectrum.shape[0] for one in surveys)
    parts = [_channel(surveys, c) for c in range(channels)]
    variance = np.stack([part[0] for part in parts], axis=1)
    floor = np.stack([part[1] for part in parts], axis=1)
    return Noise(
        level=np.sqrt(variance.mean(axis=0)),
        per_image=np.sqrt(variance),
        floor=float(np.sqrt(np.median(floor))),
        curve=np.stack([part[2] for part in parts], axis=1),
        autocorrelation=np.stack([part[3] for part in parts]),
    )


def patches(pixels: np.ndarray) -> np.ndarray:
    """At most MOST_PATCHES overlapping patches (n, c, PATCH, PATCH), evenly from the whole image (h, w, c)."""
    windows = np.lib.stride_tricks.sliding_window_view(pixels, (PATCH, PATCH), axis=(0, 1))[::STEP, ::STEP]
    rows, columns = windows.shape[:2]
    chosen = np.unique(np.linspace(0, rows * columns - 1, min(rows * columns, MOST_PATCHES)).astype(int))
    return windows[chosen // columns, chosen % columns]


def autocovariance(spectrum: np.ndarray) -> np.ndarray:
    """Autocovariance (LAGS + 1, LAGS + 1) of stationary noise from its expected DCT power (PATCH, PATCH).

    The power is linear in the autocovariance: P = A r Aᵀ, with A[k, d] the sum over i of c_k(i) c_k(i + d), twice for
    d > 0. It is solved by least squares with lags up to half a patch. Mean, slope and curvature of a patch are content:
    their place is taken by the next coefficients.
    """
    products = [(BASIS[:, : PATCH - d] * BASIS[:, d:]).sum(axis=1) * (2 if d else 1) for d in range(PATCH // 2 + 1)]
    solve = np.linalg.pinv(np.stack(products, axis=1))
    filled = np.where(DC_AND_SLOPES, spectrum[NEIGHBOURS].mean(), spectrum)
    return (solve @ filled @ solve.T)[: LAGS + 1, : LAGS + 1]


def _purest(power: np.ndarray, clipped: np.ndarray) -> np.ndarray:
    """Mean DCT power (PATCH, PATCH) of the purest patches, of ``power`` (n, PATCH, PATCH)."""
    unclipped = np.flatnonzero(clipped < CLIPPED_PATCH)
    if len(unclipped) < len(power) // 10:
        unclipped = np.argsort(clipped)[: max(1, len(power) // 4)]
    power = power[unclipped]
    keep = max(1, round(PUREST * len(power)))
    spectrum = np.zeros((PATCH, PATCH))
    split = RINGS // 2
    for _ in range(2):
        coarse, fine = split > RING, (split <= RING) & (RING < RINGS)
        for colour in (CHESSBOARD, ~CHESSBOARD):
            ratio = power[:, coarse & colour].mean(axis=1) / (power[:, fine & colour].mean(axis=1) + 1e-12)
            spectrum[~colour] = power[np.argsort(ratio)[:keep]].mean(axis=0)[~colour]
        split = _split(spectrum)
    return spectrum


def _split(spectrum: np.ndarray) -> int:
    """The ring from which on outwards half of the noise energy lies: what is finer is for measuring."""
    outside = np.cumsum((spectrum.reshape(-1) @ IN_RING)[::-1])[::-1]
    return int(np.clip(np.searchsorted(-outside, -outside[0] / 2), 3, RINGS - 4))


def _channel(surveys: Sequence[Survey], channel: int) -> tuple[np.ndarray, ...]:
    """Of one channel: variance of each image, its floor, curve of the level, autocorrelation."""
    index = [min(channel, one.spectrum.shape[0] - 1) for one in surveys]
    spectra = np.stack([one.spectrum[c] for one, c in zip(surveys, index, strict=True)])
    power = spectra[:, ~DC_AND_SLOPES].mean(axis=1)
    normalized = spectra[power > 0] / power[power > 0, None, None]
    spectrum = np.median(normalized, axis=0) if power.any() else np.ones((PATCH, PATCH))
    covariance = autocovariance(spectrum)
    split = _split(spectrum)
    scale = covariance[0, 0] / spectrum[(split <= RING) & (RING < RINGS)].sum()
    groups = [_groups(one, c, split, scale) for one, c in zip(surveys, index, strict=True)]
    variance = np.array([np.average(group[:, 1], weights=group[:, 3]) for group in groups])
    floor = np.array([np.sort(group[:, 2])[:2].max() for group in groups])
    return variance, floor, _by_brightness(np.concatenate(groups)), covariance / covariance[0, 0]


def _groups(one: Survey, channel: int, split: int, scale: float) -> np.ndarray:
    """Patches of like brightness, one row each: brightness, variance, floor of the variance, patches.

    The half with the least coarse energy is measured by its fine energy, ``scale`` of which is the variance.
    """
    coarse = one.energy[:, channel, :split].sum(axis=1)
    variance = scale * one.energy[:, channel, split:].sum(axis=1)
    rows = []
    for group in np.array_split(np.argsort(one.brightness[:, channel]), min(GROUPS, len(coarse))):
        pure = group[np.argsort(coarse[group])[: (len(group) + 1) // 2]]
        values = np.median(variance[pure]), np.quantile(variance[group], 0.1)
        rows.append((one.brightness[group, channel].mean(), *values, len(group)))
    return np.array(rows)


def _by_brightness(groups: np.ndarray) -> np.ndarray:
    """Level by brightness (LEVELS), NaN where there are no patches."""
    brightness, variance, _, patches = groups.T
    interval = np.minimum((brightness * LEVELS).astype(int), LEVELS - 1)
    weight = np.bincount(interval, patches, LEVELS)
    total = np.bincount(interval, patches * variance, LEVELS)
    return np.sqrt(np.divide(total, weight, out=np.full(LEVELS, np.nan), where=weight > 0))
