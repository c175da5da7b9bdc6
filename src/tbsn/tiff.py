"""What a TIFF file holds that libvips does not tell, or not by its name."""

import os
import re
import weakref
import zlib
from bisect import bisect_left, bisect_right
from itertools import chain
from math import prod
from operator import itemgetter
from pathlib import Path
from typing import BinaryIO

import pyvips

from tbsn import tags
from tbsn.errors import InputError
from tbsn.formats import CONVERT, CONVERT_NUMBERS

REDUCED, WIDTH, HEIGHT, BITS, PACKED, MEANING, ORIENTATION, SAMPLES = 254, 256, 257, 258, 259, 262, 274, 277
LAYOUT, COLOURS_OF, TILES, NUMBERS, DEPTH = 284, 320, 322, 339, 32997
STORED = {REDUCED, WIDTH, HEIGHT, BITS, PACKED, MEANING, ORIENTATION, SAMPLES, LAYOUT, COLOURS_OF, TILES, NUMBERS}
STORED |= {DEPTH, tags.DESCRIPTION, tags.EXTRA}
PIECES = ((273, 279), (324, 325))  # where strips and tiles are, and how many bytes they have
# All that says how pixels are stored: sizes, strips, tiles, packing, palette, channels, numbers; JPEG, YCbCr, LERC.
OF_PIXELS = {REDUCED, WIDTH, HEIGHT, BITS, PACKED, MEANING, SAMPLES, LAYOUT, NUMBERS, DEPTH, TILES, tags.EXTRA}
OF_PIXELS |= {255, 266, 273, 278, 279, 292, 293, 317, 320, 323, 324, 325, 332, 347, *range(512, 522), *range(529, 533)}
OF_PIXELS |= {50674}
ONLY_RAW = {33422, 50706, 50752}  # the pattern of a sensor, the version of DNG, slices of CR2
MOSAIC, LINEAR = 32803, 34892
FLOATS = 3
WHITE_IS_ZERO, BLACK_IS_ZERO, RGB, PALETTE, YCBCR, PLANAR = 0, 1, 2, 3, 6, 2
COLOURS = {4: "a mask", 5: "CMYK or of other inks", YCBCR: "YCbCr", 8: "LAB", 9: "LAB", 10: "LAB"}
JPEG = 7
NOT_UNPACKED = {34925: "LZMA", 50000: "Zstandard", 34887: "LERC", 34933: "PNG", 34934: "JPEG XR"}
NOT_UNPACKED |= dict.fromkeys((33003, 33004, 33005, 34712), "JPEG 2000") | dict.fromkeys((50002, 52546), "JPEG XL")
WHOLE = (1, 2, 4, 8, 16, 32)  # bits of a value that libvips takes apart
MULTIPLIED, ALPHA = 1, (1, 2)
PACKINGS = {5: "lzw", 8: "deflate", 32946: "deflate", 32773: "packbits"}  # none of them loses anything
BLOCK = 1 << 14
ALIKE = (WIDTH, HEIGHT, BITS, MEANING, ORIENTATION, SAMPLES, NUMBERS)
SPLIT = "split it into single images"
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
    """Of every page, how it is stored; of the first alone if all others are smaller pictures of it.

    Raises `InputError` if the file ends where it should tell of more pages.
    """
    with path.open("rb") as file:
        if not tags.whole(file):
            raise InputError(path, "damaged (its pages end in the middle)", "copy it again from its source")
        pages = tags.read(file, STORED)
    return pages[:1] if [tags.number(page, REDUCED) & 1 for page in pages] == [0] + [1] * (len(pages) - 1) else pages


def pixels(path: Path, **options: int) -> pyvips.Image:
    """A TIFF file as if it said nothing but how its pixels are stored, to be decoded from top to bottom.

    Otherwise libvips fails on tags that have nothing to do with them. And it takes damaged tiles for black ones, unless
    it is to fail on warnings, of which other tags give many.
    """
    alone = Alone(path, OF_PIXELS)
    tiled = any(TILES in page for page in tags.read(alone.file, {TILES}))
    source = pyvips.SourceCustom()
    source.on_read(alone.read)
    source.on_seek(alone.seek)
    # This way pyvips holds on to the source for as long as the image is used.
    return pyvips.Image.new_from_source(
        source, "", access="sequential", fail_on="warning" if tiled else "error", **options
    )


class Alone:
    """The bytes of a TIFF file, as if it had the ``kept`` tags alone."""

    def __init__(self, path: Path, kept: set[int]) -> None:
        self.file = path.open("rb")
        weakref.finalize(self, self.file.close)
        self.parts = sorted(tags.alone(self.file, kept))

    def seek(self, offset: int, whence: int) -> int:
        """To be at an offset; -1 if there is none such."""
        try:
            return self.file.seek(offset, whence)
        except (OSError, ValueError):
            return -1

    def read(self, length: int) -> bytes:
        """The next bytes of the file."""
        start = self.file.tell()
        data = self.file.read(length)
        stop = start + len(data)
        first = bisect_right(self.parts, start, key=itemgetter(0))
        for at, part in self.parts[max(0, first - 1) : bisect_left(self.parts, stop, key=itemgetter(0))]:
            low, high = max(at, start), min(at + len(part), stop)
            if low < high:
                data = data[: low - start] + part[low - at : high - at] + data[high - start :]
        return data


def check(path: Path, pages: list[tags.Directory]) -> None:
    """Raises `InputError` for what libvips does not read right, or not refuse by its name."""
    first = pages[0] if pages else {}
    plane, bits = prod(tags.number(first, tag, 1) for tag in (WIDTH, HEIGHT, SAMPLES)), tags.number(first, BITS, 1)
    # A single plane of a larger stack may still describe the whole of it: are there others?
    others = len(pages) == 1 and 8 * os.path.getsize(path) >= 2 * plane * bits
    claimed = _claimed(first.get(tags.DESCRIPTION, (0, b""))[1], plane)
    if tags.number(first, DEPTH, 1) > 1 or (others and claimed > plane):
        raise InputError(path, "holds several planes in one page", PLANES)
    apart = tags.number(first, LAYOUT) == PLANAR and tags.number(first, SAMPLES) > 1
    if apart and (tags.number(first, MEANING) != RGB or TILES in first):
        raise InputError(path, "holds its channels one after another", "save it with them side by side (contiguous)")
    meaning, packed = tags.number(first, MEANING, BLACK_IS_ZERO), tags.number(first, PACKED)
    if meaning not in (WHITE_IS_ZERO, BLACK_IS_ZERO, RGB, PALETTE) and (meaning, packed) != (YCBCR, JPEG):
        raise InputError(path, f"is {COLOURS.get(meaning, f'of colours of kind {meaning}')}", CONVERT)
    if packed in NOT_UNPACKED:
        raise InputError(path, f"is packed by {NOT_UNPACKED[packed]}", "pack it by LZW or Deflate, or not at all")
    small = bits < 8 and tags.number(first, SAMPLES, 1) > 1
    if (bits not in WHOLE or small) and tags.number(first, NUMBERS) != FLOATS:
        raise InputError(path, f"has {bits} bits a value", CONVERT_NUMBERS)
    if tags.number(first, NUMBERS) == FLOATS and bits != 32:
        raise InputError(path, f"has pixels of type float{bits}", CONVERT_NUMBERS)
    if tags.number(first, NUMBERS) == FLOATS and tags.number(first, MEANING, 1) == WHITE_IS_ZERO:
        raise InputError(path, "has floats of which 0 is white", "save it with black as 0 (MinIsBlack)")
    grey_with_alpha = (FLOATS, 2, MULTIPLIED)
    if tuple(tags.number(first, tag) for tag in (NUMBERS, SAMPLES, tags.EXTRA)) == grey_with_alpha:
        raise InputError(path, "has grey floats multiplied by their alpha", "save it with an alpha that is apart")
    if len({tuple(tags.number(page, tag, 1) for tag in ALIKE) for page in pages}) > 1:
        raise InputError(path, "holds pages of different sizes, types or orientations", SPLIT)
    palettes = (page.get(COLOURS_OF) if tags.number(page, MEANING) == PALETTE else None for page in pages)
    if len(set(zip(palettes, (page.get(tags.EXTRA) for page in pages), strict=True))) > 1:
        raise InputError(path, "holds pages of different palettes or kinds of alpha", SPLIT)


def check_pieces(path: Path, pages: int) -> None:
    """Raises `InputError` if a strip or tile of the first ``pages`` is not whole, where libvips does not see that.

    libtiff does not look at the checksum of one packed by Deflate that has more pixels than it needs, as damage can
    make it. What is missing at the end of a strip in JPEG is grey.
    """
    seen = set[int]()
    with path.open("rb") as file:
        end = file.seek(0, os.SEEK_END)
        for page in tags.read(file, {WIDTH, HEIGHT, SAMPLES, BITS, PACKED, *chain(*PIECES)})[:pages]:
            deflate, packed = PACKINGS.get(tags.number(page, PACKED)) == "deflate", tags.number(page, PACKED)
            if not (deflate or packed == JPEG):
                continue
            most = BLOCK + 2 * prod(tags.number(page, tag, 1) for tag in (WIDTH, HEIGHT, SAMPLES, BITS)) // 8
            places = chain(*(zip(*(tags.numbers(page, tag) for tag in piece), strict=False) for piece in PIECES))
            for start, length in places:
                if length and start not in seen:
                    file.seek(min(start, end))
                    if not (_is_whole(file, length, most) if deflate else _has_end(file, length)):
                        raise InputError(path, "damaged (a part is not whole)", "copy it again from its source")
                    seen.add(start)


def _is_whole(file: BinaryIO, length: int, most: int) -> bool:
    """Whether these bytes can be unpacked to an end with the right checksum, or hold more than ``most`` bytes."""
    unpack = zlib.decompressobj()
    try:
        while length > 0 and most > 0 and not unpack.eof and (data := file.read(min(length, BLOCK))):
            length -= len(data)
            most -= len(unpack.decompress(data))
    except zlib.error:
        return False
    return unpack.eof or most <= 0


def _has_end(file: BinaryIO, length: int) -> bool:
    """Whether a JPEG of so many bytes ends with its mark, but for what fills it up."""
    file.seek(max(0, length - BLOCK), os.SEEK_CUR)
    return file.read(min(length, BLOCK)).rstrip(b"\0\xff").endswith(b"\xd9")


def has_alpha(pages: list[tags.Directory]) -> bool:
    """Whether the first channel beyond the colours is alpha: nothing says that it is something else."""
    return all(tags.number(page, tags.EXTRA, ALPHA[0]) in ALPHA for page in pages[:1])


def is_restored(pages: list[tags.Directory]) -> bool:
    """Whether pixels are written in another shape than that in which they are stored: planes, or a palette's numbers.

    What tifffile says of the shape is then no longer so.
    """
    first = pages[0] if pages else {}
    apart = tags.number(first, LAYOUT) == PLANAR or tags.number(first, MEANING) == PALETTE
    return apart and bool(SHAPED.match(first.get(tags.DESCRIPTION, (0, b""))[1]))


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
