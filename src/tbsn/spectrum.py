"""Small patches of an image in the discrete cosine transform, and the autocovariance that their power shows."""

from functools import cache

import numpy as np

MOST_PATCHES = 1024
LAGS = 8
RINGS = 16


def patches(pixels: np.ndarray, side: int) -> np.ndarray:
    """At most MOST_PATCHES half overlapping patches (n, c, side, side), evenly from the whole image (h, w, c)."""
    step = side // 2
    windows = np.lib.stride_tricks.sliding_window_view(pixels, (side, side), axis=(0, 1))[::step, ::step]
    rows, columns = windows.shape[:2]
    chosen = np.unique(np.linspace(0, rows * columns - 1, min(rows * columns, MOST_PATCHES)).astype(int))
    return windows[chosen // columns, chosen % columns]


@cache
def basis(side: int) -> np.ndarray:
    """The orthonormal DCT-II (side, side), coefficients first."""
    row, column = np.mgrid[:side, :side]
    waves = np.sqrt(2 / side) * np.cos(np.pi * row * (2 * column + 1) / (2 * side))
    waves[0] /= np.sqrt(2)
    return waves


def transform(values: np.ndarray) -> np.ndarray:
    """DCT power of patches (..., side, side)."""
    waves = basis(values.shape[-1]).astype(values.dtype)
    return (waves @ values @ waves.T) ** 2


def order(side: int) -> np.ndarray:
    """Row + column of each DCT coefficient (side, side)."""
    return np.add.outer(np.arange(side), np.arange(side))


def by_ring(power: np.ndarray, content: int) -> np.ndarray:
    """Energy (..., RINGS, 2) of DCT power (..., side, side), from coarse to fine, by colour of a chessboard."""
    flat = power.reshape(*power.shape[:-2], -1)
    return (flat @ _in_ring(power.shape[-1], content)).reshape(*flat.shape[:-1], RINGS, 2)


def autocovariance(spectrum: np.ndarray, content: int) -> np.ndarray:
    """Autocovariance (LAGS + 1, LAGS + 1) of stationary noise from its expected DCT power (side, side).

    The power is linear in the autocovariance: P = A r Aᵀ, with A[k, d] the sum over i of c_k(i) c_k(i + d), twice for
    d > 0. It is solved by least squares with lags up to half a patch. The coefficients up to the order ``content`` are
    content: their place is taken by the mean of the next two orders.
    """
    distance = order(len(spectrum))
    next_orders = (distance > content) & (distance <= content + 2)
    filled = np.where(distance <= content, spectrum[next_orders].mean(), spectrum)
    solve = _solve(len(spectrum))
    return (solve @ filled @ solve.T)[: LAGS + 1, : LAGS + 1]


@cache
def _solve(side: int) -> np.ndarray:
    """From DCT power to autocovariance, along one axis (side // 2 + 1, side)."""
    waves = basis(side)
    products = [(waves[:, : side - d] * waves[:, d:]).sum(axis=1) * (2 if d else 1) for d in range(side // 2 + 1)]
    return np.linalg.pinv(np.stack(products, axis=1))


@cache
def _in_ring(side: int, content: int) -> np.ndarray:
    """Which coefficients are in which ring and of which colour (side * side, RINGS * 2); content is in none."""
    distance = np.hypot(*np.mgrid[:side, :side])
    ring = np.where(order(side) <= content, RINGS, np.minimum(distance * RINGS / side, RINGS - 1)).astype(int)
    colour = order(side) % 2
    member = [(ring == r) & (colour == c) for r in range(RINGS) for c in (0, 1)]
    return np.stack(member).reshape(2 * RINGS, -1).T.astype(np.float32)
