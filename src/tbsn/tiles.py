"""Images of any size in overlapping tiles: bounded memory, no seams."""

from collections.abc import Callable
from itertools import product

import numpy as np

Function = Callable[[np.ndarray], np.ndarray]

SIZE, MARGIN, FEATHER = 896, 48, 32


def tiled(function: Function, size: int = SIZE, margin: int = MARGIN, feather: int = FEATHER) -> Function:
    """Run a denoiser of images (h, w, c) on tiles of at most ``size`` pixels a side.

    Neighbouring tiles overlap by ``2 * margin + feather``: the margins, where a tile lacks its surroundings, are
    dropped, and the tiles are blended across the feather with weights that sum to 1. Starts are multiples of
    ``size - 2 * margin - feather``, so a network that halves its input sees the same grid in every tile.
    """

    def run(image: np.ndarray) -> np.ndarray:
        height, width = image.shape[:2]
        if max(height, width) <= size:
            return function(image)
        blended = np.zeros(())
        rows, cols = plan(height, size, margin, feather), plan(width, size, margin, feather)
        for (row, row_weight), (col, col_weight) in product(rows, cols):
            weight = (row_weight[:, None] * col_weight)[..., None]
            tile = function(image[row, col])
            if not blended.ndim:
                blended = np.zeros((height, width, tile.shape[2]), np.float32)
            blended[row, col] += tile * weight
        return blended

    return run


def plan(length: int, size: int, margin: int, feather: int) -> list[tuple[slice, np.ndarray]]:
    """The tiles along one axis: where each lies, and its weights, which sum to 1 over the tiles at every pixel."""
    overlap = 2 * margin + feather
    if 2 * overlap > size:
        raise ValueError(f"tiles of {size} pixels cannot overlap by {overlap}: at most half")
    starts = range(0, max(1, length - overlap), size - overlap)
    rise = np.concatenate([np.zeros(margin), (np.arange(feather) + 0.5) / feather, np.ones(margin)])
    tiles = []
    for start in starts:
        stop = min(start + size, length)
        weight = np.ones(stop - start)
        if start > 0:
            weight[:overlap] *= rise
        if stop < length:
            weight[-overlap:] *= 1 - rise
        tiles.append((slice(start, stop), weight.astype(np.float32)))
    return tiles


def reflected(function: Function, multiple: int) -> Function:
    """Reflect images (h, w, c) of any size to multiples of ``multiple`` on both sides, and crop back."""

    def run(image: np.ndarray) -> np.ndarray:
        height, width = image.shape[:2]
        padding = ((0, -height % multiple), (0, -width % multiple), (0, 0))
        return function(np.pad(image, padding, mode="reflect"))[:height, :width]

    return run
