"""What a TIFF file holds that libvips does not tell, or not by its name."""

import os
import re
from math import prod
from pathlib import Path

from tbsn import tags
from tbsn.errors import InputError
from tbsn.formats import CONVERT, CONVERT_NUMBERS

REDUCED, WIDTH, HEIGHT, BITS, PACKED, MEANING, SAMPLES = 254, 256, 257, 258, 259, 262, 277
LAYOUT, NUMBERS, DEPTH = 284, 339, 32997
STORED = {REDUCED, WIDTH, HEIGHT, BITS, PACKED, MEANING, tags.DESCRIPTION, SAMPLES, LAYOUT, tags.EXTRA, NUMBERS, DEPTH}
ONLY_RAW = {33422, 50706, 50752}  # the pattern of a sensor, the version of DNG, slices of CR2
MOSAIC, LINEAR = 32803, 34892
FLOATS = 3
LAB = (8, 9, 10)
RGB, PLANAR = 2, 2
ALPHA = (1, 2)
PACKINGS = {5: "lzw", 8: "deflate", 32946: "deflate", 32773: "packbits"}  # none of them loses anything
ALIKE = (WIDTH, HEIGHT, BITS, SAMPLES, NUMBERS)
PLANES = "save it with a page for each plane, or split it into single images"
IMAGEJ = re.compile(rb"ImageJ=.*?\nimages=(\d{1,9})\n", re.DOTALL)
SHAPED = re.compile(rb'\{"shape": \[([\d, ]{1,99})\]')
OME = re.compile(rb"<Pixels\b[^>]*>")
OME_SIZE = re.compile(rb'\bSize[XYZCT]="(\d{1,9})"')


def is_raw(path: Path) -> bool:
    """Whether a TIFF file is a RAW file, which may show a small picture first."""
    wanted = {*ONLY_RAW, MEANING, tags.BELOW}
    with path.open("rb") as file:
        pages = tags.read(file, wanted)
        pages += [below for page in pages[:1] for below in tags.read_below(file, page, wanted)]
    return any(ONLY_RAW & page.keys() or tags.number(page, MEANING) in (MOSAIC, LINEAR) for page in pages)


def read(path: Path) -> list[tags.Directory]:
    """Of every page, how it is stored; of the first alone if all others are smaller pictures of it."""
    with path.open("rb") as file:
        pages = tags.read(file, STORED)
    return pages[:1] if [tags.number(page, REDUCED) & 1 for page in pages] == [0] + [1] * (len(pages) - 1) else pages


def check(path: Path, pages: list[tags.Directory]) -> None:
    """Raises `InputError` for what libvips does not read right, or not refuse by its name."""
    first = pages[0] if pages else {}
    plane, bits = prod(tags.number(first, tag, 1) for tag in (WIDTH, HEIGHT, SAMPLES)), tags.number(first, BITS, 1)
    # A single plane of a larger stack may still describe the whole of it: are there others?
    others = len(pages) == 1 and 8 * os.path.getsize(path) >= 2 * plane * bits
    claimed = _claimed(first.get(tags.DESCRIPTION, (0, b""))[1], plane)
    if tags.number(first, DEPTH, 1) > 1 or (others and claimed > plane):
        raise InputError(path, "holds several planes in one page", PLANES)
    if tags.number(first, LAYOUT) == PLANAR and tags.number(first, SAMPLES) > 1 and tags.number(first, MEANING) != RGB:
        raise InputError(path, "holds its channels one after another", "save it with them side by side (contiguous)")
    if tags.number(first, MEANING) in LAB:
        raise InputError(path, "is LAB", CONVERT)
    if tags.number(first, NUMBERS) == FLOATS and bits != 32:
        raise InputError(path, f"has pixels of type float{bits}", CONVERT_NUMBERS)
    if len({tuple(tags.number(page, tag, 1) for tag in ALIKE) for page in pages}) > 1:
        raise InputError(path, "holds pages of different sizes or types", "split it into single images")


def has_alpha(pages: list[tags.Directory]) -> bool:
    """Whether the first channel beyond the colours is alpha: nothing says that it is something else."""
    return all(tags.number(page, tags.EXTRA, ALPHA[0]) in ALPHA for page in pages[:1])


def packing(pages: list[tags.Directory]) -> str:
    """How the first page is packed, as libvips calls it; nothing if it is not, or with loss."""
    return next((PACKINGS.get(tags.number(page, PACKED), "") for page in pages), "")


def _claimed(description: bytes, plane: int) -> int:
    """How many values ImageJ, tifffile or OME-XML say that there are, in planes of so many; 0 if none of them does."""
    if found := IMAGEJ.match(description):
        return int(found[1]) * plane
    if found := SHAPED.match(description):
        return prod(int(length) for length in re.findall(rb"\d+", found[1]))
    return sum(prod(map(int, OME_SIZE.findall(pixels))) for pixels in OME.findall(description))
