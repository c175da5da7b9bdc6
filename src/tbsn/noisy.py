"""Which images are noisy, to learn from or to measure, and what they share: not those that this program has written."""

import os
from collections.abc import Callable, Iterable, Iterator
from contextlib import suppress
from functools import lru_cache
from itertools import takewhile
from pathlib import Path

import numpy as np

from tbsn import formats
from tbsn.errors import InputError
from tbsn.images import RAW_SUFFIXES, SUFFIXES, Photo, find, open_photo
from tbsn.plan import Output
from tbsn.scale import Bits, common_bits

RUN = ("recipe.yaml", "started.jsonl")
SAMPLES = "samples"


def noisy_images(inputs: Iterable[Path], failed: Callable[[InputError], None]) -> Iterator[Path]:
    """Image files among the inputs, and those in folders among them; there the pictures of runs, and results, are not.

    A result is named as `tbsn denoise` does by default, and beside its source. ``failed`` is told of folders that
    cannot be read.
    """
    is_run = lru_cache(lambda folder: all(os.path.exists(folder / name) for name in RUN))
    for root in inputs:
        for path in find([root], failed=failed):
            below = takewhile(root.__ne__, path.parents)
            sample = path.parent.name == SAMPLES and is_run(path.parent.parent)  # of a run that is the root itself
            if path == root or not (sample or any(map(is_run, below)) or _is_result(path)):
                yield path


def bits_of(paths: Iterable[Path], channels: int) -> Bits:
    """The `common_bits` of image files, as far as they can be read."""

    def pixels(photo: Photo) -> Iterator[np.ndarray]:
        with suppress(InputError):
            yield photo.pixels

    def images() -> Iterator[tuple[np.dtype, Iterator[np.ndarray]]]:
        for path in paths:
            with suppress(InputError, OSError):
                photo = open_photo(path, channels)
                yield photo.dtype, pixels(photo)

    return common_bits(images())


def _is_result(path: Path) -> bool:
    stem, ome = formats.stem(path)
    source = stem.removesuffix(Output.suffix)
    known = (suffix for small in (*SUFFIXES, *RAW_SUFFIXES) for suffix in (small, small.upper()))
    return source != stem and any(os.path.exists(path.with_name(f"{source}{ome}{suffix}")) for suffix in known)
