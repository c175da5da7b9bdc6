"""Which images are noisy, to learn from or to measure: not those that this program has written."""

import os
from collections.abc import Callable, Iterable, Iterator
from functools import lru_cache
from itertools import takewhile
from pathlib import Path

from tbsn.errors import InputError
from tbsn.images import RAW_SUFFIXES, SUFFIXES, find
from tbsn.plan import Output

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


def _is_result(path: Path) -> bool:
    source = path.stem.removesuffix(Output.suffix)
    known = (suffix for small in (*SUFFIXES, *RAW_SUFFIXES) for suffix in (small, small.upper()))
    return source != path.stem and any(os.path.exists(path.with_name(f"{source}{suffix}")) for suffix in known)
