"""How much of what a denoiser takes out of an image is noise: the rest is texture, and stays.

Noise of one brightness is as strong in one place as in another; texture is not. So what is taken out of the smoothest
places shows the noise, and where more is taken out, the rest is texture. Of N + T, the mean squares of noise and
texture, the share N / (N + T) leaves the least error: the gain of Wiener's filter. It is found place by place, of the
mean of the channels and of the differences from it apart: texture is mostly in the mean.
"""

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
from numpy.lib.stride_tricks import sliding_window_view

from tbsn.noise import METHOD, combine, survey

BLOCK = 8  # pixels a side; windows are counted in blocks
MEASURED, JUDGED = 5, 3
GROUPS = 4
SMOOTHEST = 0.25
SPOILT = 0.05
MORE = 1.7  # of the noise: windows of real noise alone differ by as much (benchmarks/trust.py)
MOST = 1.5**2  # of the mean square that `tbsn.noise` measures
BEYOND = 1 / 16
LEAST = 1e-12

Pair = tuple[np.ndarray, np.ndarray]


@dataclass(frozen=True)
class Trust:
    """The noise in what is taken out, for images in [0, 1].

    ``brightness`` (g): of groups of windows, in order; ``noise`` (2, g): mean squares there, of the mean of the
    channels and of the differences from it. ``seen``: the range of brightness, beyond which all is taken for noise.
    """

    brightness: np.ndarray
    noise: np.ndarray
    seen: tuple[float, float]

    def limited(self, noisy: np.ndarray, change: np.ndarray) -> np.ndarray:
        """The change (h, w, c) that a denoiser makes to an image, as much of it as can be noise."""
        shares = [MORE / np.maximum(MORE, ratio) for ratio in self.ratios(noisy, change)]
        if min(share.min() for share in shares) == 1:
            return change
        blocks = shares[0].shape
        down, across = (_bilinear(*lengths) for lengths in zip(change.shape[:2], blocks, strict=True))
        of_mean, *of_rest = (down @ share.astype(np.float32) @ across.T for share in shares)
        if not of_rest:
            return change * of_mean[..., None]
        mean = change.mean(axis=2)
        return change * of_rest[0][..., None] + (mean * (of_mean - of_rest[0]))[..., None]

    def ratios(self, noisy: np.ndarray, change: np.ndarray) -> list[np.ndarray]:
        """What is taken out around each block, in multiples of the noise there: of the mean, and of the rest if any.

        0 where it is darker or brighter than what is known.
        """
        bright = _around(_brightness(noisy) + _brightness(change))
        known = (bright >= self.seen[0]) & (bright <= self.seen[1])
        energies = _energies(change)[: 1 if change.shape[2] == 1 else 2]
        noise = (np.interp(bright, self.brightness, one) for one in self.noise)
        judged = map(_around, energies)
        return [known * one / np.maximum(of_noise, LEAST) for one, of_noise in zip(judged, noise, strict=False)]


def measure(parts: Iterable[Pair]) -> Trust | None:
    """The noise in what a denoiser takes out of parts of an image: each as it was, and denoised, (h, w, c) in [0, 1].

    None if they are too small, or all clipped: then nothing can be said.
    """
    parts = [pair for pair in parts if min(pair[0].shape[:2]) >= METHOD.patch]
    windows = [_measured(*pair) for pair in parts]
    found = np.concatenate(windows, axis=1) if windows else np.empty((5, 0))
    brightness, texture, *noise = found[:-1, found[-1] <= SPOILT]
    if not brightness.size:
        return None
    rows = []
    for group in np.array_split(np.argsort(brightness), min(GROUPS, len(brightness))):
        smooth = group[np.argsort(texture[group])[: int(np.ceil(SMOOTHEST * len(group)))]]
        rows.append([brightness[group].mean(), *(np.median(one[smooth]) for one in noise)])
    bright, *noise = np.array(rows).T
    most = MOST / MORE * float((combine([survey(noisy) for noisy, _ in parts]).level ** 2).mean())
    limit = most / np.maximum(most, sum(noise))
    return Trust(bright, limit * noise, (brightness.min() - BEYOND, brightness.max() + BEYOND))


def _measured(noisy: np.ndarray, denoised: np.ndarray) -> np.ndarray:
    """Of the windows of a part: brightness, texture, the two mean squares, share that is clipped or does not change."""
    change = denoised - noisy
    planes = [_brightness(denoised), _texture(denoised.mean(axis=2)), *_energies(change)]
    spoilt = ((noisy <= 0) | (noisy >= 1)).any(axis=2) | (change == 0).all(axis=2)
    planes.append(_blocks(spoilt.astype(np.float32)))
    side = min(MEASURED, *planes[0].shape)
    return np.stack([_windows(plane, side).ravel() for plane in planes])


def _texture(image: np.ndarray) -> np.ndarray:
    slopes = (np.diff(image, axis=axis, append=image[-1:] if axis == 0 else image[:, -1:]) for axis in (0, 1))
    return sum(_mean_squares(slope) for slope in slopes)  # type: ignore[return-value]


def _energies(change: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Mean squares in blocks: of the mean of the channels, and of the differences from it."""
    of_mean = _mean_squares(change.mean(axis=2))
    of_all = np.mean([_mean_squares(plane) for plane in np.moveaxis(change, 2, 0)], axis=0)
    return of_mean, np.maximum(of_all - of_mean, 0)


def _brightness(image: np.ndarray) -> np.ndarray:
    return np.mean([_blocks(plane) for plane in np.moveaxis(image, 2, 0)], axis=0)


def _blocks(plane: np.ndarray) -> np.ndarray:
    return np.einsum("ijkl->ik", _cut(plane)) / BLOCK**2


def _mean_squares(plane: np.ndarray) -> np.ndarray:
    cut = _cut(plane)
    return np.einsum("ijkl,ijkl->ik", cut, cut) / BLOCK**2


def _cut(plane: np.ndarray) -> np.ndarray:
    """Into blocks (rows, BLOCK, columns, BLOCK); the last row and column are repeated to fill them."""
    below, right = (-length % BLOCK for length in plane.shape)
    whole = np.pad(plane, ((0, below), (0, right)), mode="edge") if below or right else plane
    return whole.reshape(whole.shape[0] // BLOCK, BLOCK, whole.shape[1] // BLOCK, BLOCK)


def _around(blocks: np.ndarray) -> np.ndarray:
    return _windows(np.pad(blocks, JUDGED // 2, mode="edge"), JUDGED)


def _windows(blocks: np.ndarray, side: int) -> np.ndarray:
    return sliding_window_view(blocks, (side, side)).mean(axis=(2, 3))


def _bilinear(length: int, blocks: int) -> np.ndarray:
    """Weights (length, blocks) of the blocks in each pixel, by the distance from their centres."""
    place = np.clip((np.arange(length) + 0.5) / BLOCK - 0.5, 0, blocks - 1)
    return np.maximum(0, 1 - np.abs(place[:, None] - np.arange(blocks))).astype(np.float32)
