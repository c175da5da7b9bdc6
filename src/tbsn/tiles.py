"""Images of any size in overlapping tiles: bounded memory, no seams."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np

Function = Callable[[np.ndarray], np.ndarray]
Rows = Callable[[int, int], np.ndarray]

STRIP = 1 << 18  # pixels handed out at a time: what is made of them is small beside a row of tiles


@dataclass(frozen=True)
class Tiling:
    """Tiles of at most ``size`` pixels a side.

    Neighbouring tiles overlap by ``2 * margin + feather``: the margins, where a tile lacks its surroundings, are
    dropped, and the tiles are blended across the feather with weights that sum to 1. Starts are multiples of
    ``size - 2 * margin - feather``, so a network that halves its input sees the same grid in every tile.

    Raises ValueError if more than half of a tile would overlap.
    """

    size: int = 896
    margin: int = 48
    feather: int = 32

    def __post_init__(self) -> None:
        if 2 * self.overlap > self.size:
            raise ValueError(f"tiles of {self.size} pixels cannot overlap by {self.overlap}: at most half")

    @property
    def overlap(self) -> int:
        """Rows or columns that two neighbours share."""
        return 2 * self.margin + self.feather

    def plan(self, length: int) -> list[tuple[slice, np.ndarray]]:
        """The tiles along one axis: where each lies, and its weights, which sum to 1 over the tiles at every pixel."""
        overlap, feather = self.overlap, (np.arange(self.feather) + 0.5) / self.feather
        starts = range(0, max(1, length - overlap), self.size - overlap)
        rise = np.concatenate([np.zeros(self.margin), feather, np.ones(self.margin)])
        tiles = []
        for start in starts:
            stop = min(start + self.size, length)
            weight = np.ones(stop - start, np.float32)
            if start > 0:
                weight[:overlap] *= rise
            if stop < length:
                weight[-overlap:] *= 1 - rise
            tiles.append((slice(start, stop), weight))
        return tiles


def stream(
    function: Function, rows: Rows, size: tuple[int, int], tiling: Tiling
) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Run a function of images (h, w, c) on the tiles of a large one of ``size`` (height, width), from top to bottom.

    ``rows`` gives those from one to another, and is asked for each of them once, in order. Yields pairs of rows as they
    are and what the function made of them, in order: no more is held than a row of tiles.
    """
    height, width = size
    source = carried = None
    strip = max(1, STRIP // width)
    across, down = tiling.plan(width), tiling.plan(height)
    for i, (place, weight) in enumerate(down):
        more = rows(place.start + (0 if source is None else len(source)), place.stop)
        source = more if source is None else np.concatenate([source, more])
        done = down[i + 1][0].start - place.start if i + 1 < len(down) else len(source)
        band = _band(function, source, weight, across)
        if carried is not None:
            band[: len(carried)] += carried
        for top in range(0, done, strip):
            part = slice(top, min(top + strip, done))
            yield source[part].copy(), band[part].copy()  # else whoever holds them holds all of it
        source, carried = source[done:].copy(), band[done:].copy()
        del band  # before there is another


def _band(
    function: Function, source: np.ndarray, down: np.ndarray, across: list[tuple[slice, np.ndarray]]
) -> np.ndarray:
    band = np.zeros(())
    for place, weight in across:
        tile = function(source[:, place])
        if not band.ndim:
            band = np.zeros((tile.shape[2], *source.shape[:2]), np.float32).transpose(1, 2, 0)  # plane by plane
        band[:, place] += tile * (down[:, None] * weight)[..., None]
    return band


def tiled(function: Function, tiling: Tiling = Tiling()) -> Function:
    """Run a function of images (h, w, c) on tiles, see `stream`."""

    def run(image: np.ndarray) -> np.ndarray:
        parts = stream(function, lambda top, bottom: image[top:bottom], image.shape[:2], tiling)
        return np.concatenate([made for _, made in parts])

    return run


def reflected(function: Function, multiple: int) -> Function:
    """Reflect images (h, w, c) of any size to multiples of ``multiple`` on both sides, and crop back."""

    def run(image: np.ndarray) -> np.ndarray:
        height, width = image.shape[:2]
        below, right = -height % multiple, -width % multiple
        if not (below or right):
            return function(image)
        return function(np.pad(image, ((0, below), (0, right), (0, 0)), mode="reflect"))[:height, :width]

    return run
