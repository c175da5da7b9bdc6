"""TIFF directories, as in TIFF files and in EXIF: tags read from one, and added to another."""

import os
from collections.abc import Iterator
from io import BytesIO
from itertools import chain, repeat
from struct import calcsize, pack, unpack
from typing import Any, BinaryIO

import numpy as np

EXIF, GPS, INTEROPERABILITY = 0x8769, 0x8825, 0xA005
Pointers = dict[int, Any]
POINTERS: Pointers = {EXIF: {INTEROPERABILITY: {}}, GPS: {}}
# Document, description, camera, orientation, resolution, page, program, time, people, rights, what Windows adds.
EXIF_TAGS = {269, 270, 271, 272, 274, 282, 283, 285, 296, 305, 306, 315, 316, 33432, *range(40091, 40096), EXIF, GPS}
WHITE = {301, 318, 319}  # transfer function, white point, primaries
# What channels beyond the colours mean; XMP, IPTC, Photoshop, ICC; GeoTIFF and GDAL; ImageJ and Micro-Manager.
ONLY_TIFF_TAGS = {338, 700, 33723, 34377, 34675} | {33550, 33922, 34264, *range(34735, 34738), 42112, 42113}
ONLY_TIFF_TAGS |= {50838, 50839, 51123} | WHITE
# Bytes of a number, and of a value, which is two numbers in a rational.
TYPES = {1: (1, 1), 2: (1, 1), 3: (2, 2), 4: (4, 4), 5: (4, 8), 6: (1, 1), 7: (1, 1), 8: (2, 2), 9: (4, 4), 10: (4, 8)}
TYPES |= {11: (4, 4), 12: (8, 8), 13: (4, 4), 16: (8, 8), 17: (8, 8), 18: (8, 8)}
DESCRIPTION, BELOW, MOST_BELOW, EXTRA = 270, 330, 64, 338
LONG, RATIONAL, ONLY_BIG = 4, 5, (16, 17, 18)
RESOLUTION, ORIENTATION = {282, 283, 296}, 274
OF_BYTES = {33723, 34377}  # IPTC and Photoshop's block, by whatever type they are told
COMMENT, UNICODE = 0x9286, b"UNICODE\0"
NO_DATA, IMAGEJ_SIZES, IMAGEJ = 42113, 50838, 50839
IMAGEJ_NUMBERS = {b"info": 2, b"labl": 2, b"prop": 2, b"rang": 8}  # bytes of each: of texts and display ranges
MOST = {ORIENTATION: 8, 296: 3}  # libtiff takes no other orientation, and no other unit of resolution
ROOM = 1 << 26

Directory = dict[int, Any]
"""Tag to its type and little-endian bytes, or to the directory that it points to."""


def read(file: BinaryIO, wanted: set[int] = EXIF_TAGS | ONLY_TIFF_TAGS) -> list[Directory]:
    """The tags of every page, those that describe the picture or others ``wanted``.

    Left out are damaged ones and, of those that describe the picture, 64-bit ones, which only a BigTIFF holds.
    """
    layout = Layout(file)
    return [_values(file, layout, raw, wanted, POINTERS) for _, raw, _ in layout.directories(file)]


def whole(file: BinaryIO) -> bool:
    """Whether the directories of all pages, each with where the next one is, are there to their ends."""
    layout = Layout(file)
    end = file.seek(0, os.SEEK_END)
    return all(following + calcsize(layout.pointer) <= end for _, _, following in layout.directories(file))


def alone(file: BinaryIO, kept: set[int]) -> list[tuple[int, bytes]]:
    """Where the directories of all pages stand, and what may stand there for them to have the ``kept`` tags alone."""
    layout, parts = Layout(file), []
    for offset, raw, following in layout.directories(file):
        entries = [raw[tag] for tag in sorted(raw) if tag in kept]
        end = pack(layout.pointer, layout.number(file, following, layout.pointer))
        parts.append((offset, pack(layout.count, len(entries)) + b"".join(entries) + end))
    return parts


def read_below(file: BinaryIO, page: Directory, wanted: set[int]) -> list[Directory]:
    """The same of the pictures below a ``page``, whose tag `BELOW` was read; of the first of them."""
    layout = Layout(file)
    kind, data = page.get(BELOW, (LONG, b""))
    offsets = np.frombuffer(data[: 4 * MOST_BELOW], "<u4") if TYPES[kind] == TYPES[LONG] else ()
    return [_values(file, layout, layout.entries(file, int(offset))[0], wanted, {}) for offset in offsets]


def number(page: Directory, tag: int, default: int = 0) -> int:
    """The first of the integers of a tag that was read."""
    kind, data = page.get(tag, (LONG, b""))
    return int.from_bytes(data[: TYPES[kind][0]], "little") if data else default


def numbers(page: Directory, tag: int) -> list[int]:
    """All integers of a tag that was read."""
    kind, data = page.get(tag, (LONG, b""))
    return np.frombuffer(data, f"<u{TYPES[kind][0]}").tolist()


def rational(page: Directory, tag: int) -> float:
    """The first of the fractions, or of the integers, of a tag that was read; 0 if there is none."""
    above, below = (*numbers(page, tag), 0, 0)[:2]
    below = below if page.get(tag, (RATIONAL,))[0] == RATIONAL else 1
    return above / below if below else 0


def add(file: BinaryIO, pages: list[Directory], resolution: bool = True) -> None:
    """Give the pages of a TIFF file tags, in place of its own. What it had before stays in it, unused.

    Without a ``resolution``, its own is taken away too.
    """
    layout = Layout(file)
    at = layout.first
    if pages and pages[0].get(DESCRIPTION, (0, b""))[1].startswith(b"ImageJ="):
        # All is said on the first page, and directories behind all pixels mean that the pixels of all pages are in one.
        pages = pages[:1]
    for page in pages:
        if not (offset := layout.number(file, at, layout.pointer)):
            return
        raw, following = layout.entries(file, offset)
        raw = {tag: entry for tag, entry in raw.items() if resolution or tag not in RESOLUTION}
        moved = layout.write(file, page, raw, layout.number(file, following, layout.pointer))
        file.seek(at)
        file.write(pack(layout.pointer, moved))
        at = moved + calcsize(layout.count) + layout.size * len(raw)


def as_exif(page: Directory) -> bytes:
    """What EXIF can hold of the tags of a page; nothing if there is nothing."""
    kept = {tag: value for tag, value in page.items() if tag in EXIF_TAGS}
    if not kept:
        return b""
    file = BytesIO(b"II*\0\0\0\0\0")
    layout = Layout(file)
    offset = layout.write(file, kept, {}, 0)
    file.seek(layout.first)
    file.write(pack(layout.pointer, offset))
    return file.getvalue()


class Layout:
    """How a TIFF file stores its directories: the byte order, and 32 or 64 bits."""

    def __init__(self, file: BinaryIO) -> None:
        file.seek(0)
        head = file.read(4)
        self.order = ">" if head[:1] == b"M" else "<"
        big = b"+" in head
        # Values may overlap, and together be larger than any memory.
        self.room = file.seek(0, os.SEEK_END) + ROOM
        self.first, self.size, self.inline = (8, 20, 8) if big else (4, 12, 4)
        self.count, self.pointer = (f"{self.order}{code}" for code in ("QQ" if big else "HI"))

    def number(self, file: BinaryIO, at: int, code: str) -> int:
        """The number there, 0 past the end of the file."""
        return unpack(code, _bytes(file, at, calcsize(code)).ljust(calcsize(code), b"\0"))[0]

    def directories(self, file: BinaryIO) -> Iterator[tuple[int, dict[int, bytes], int]]:
        """Of every page: its offset, its entries, and where the offset of the next one is."""
        seen, at = set(), self.first
        while (offset := self.number(file, at, self.pointer)) and offset not in seen:
            seen.add(offset)
            raw, at = self.entries(file, offset)
            yield offset, raw, at

    def entries(self, file: BinaryIO, offset: int) -> tuple[dict[int, bytes], int]:
        """The entries of a directory as they stand, the first of a tag; where the offset of the next directory is."""
        count = self.number(file, offset, self.count)
        start = offset + calcsize(self.count)
        raw = _bytes(file, start, min(count, 0xFFFF) * self.size)
        parts = [raw[at : at + self.size] for at in range(0, len(raw) - self.size + 1, self.size)]
        return {unpack(f"{self.order}H", part[:2])[0]: part for part in reversed(parts)}, start + count * self.size

    def write(self, file: BinaryIO, values: Directory, raw: dict[int, bytes], following: int) -> int:
        """Append a directory of ``raw`` entries and of ``values``, which take the place of those. Gives its offset."""
        for tag, value in values.items():
            if isinstance(value, dict):
                value = LONG, pack("<I", self.write(file, value, {}, 0))
            kind, data = value
            head = pack(f"{self.order}HH{self.pointer[1]}", tag, kind, len(data) // TYPES[kind][1])
            data = data if tag in OF_BYTES else _swapped(data, kind, self.order)
            if len(data) > self.inline:
                data = pack(self.pointer, self._append(file, data))
            raw[tag] = head + data.ljust(self.inline, b"\0")
        whole = pack(self.count, len(raw)) + b"".join(raw[tag] for tag in sorted(raw)) + pack(self.pointer, following)
        return self._append(file, whole)

    def _append(self, file: BinaryIO, data: bytes) -> int:
        """Write at the end of the file, on an even offset as TIFF wants it."""
        end = file.seek(0, os.SEEK_END)
        file.write(b"\0" * (end % 2) + data)
        return end + end % 2


def _values(
    file: BinaryIO, layout: Layout, raw: dict[int, bytes], tags: set[int] | None, pointers: Pointers
) -> Directory:
    values: Directory = {}
    for tag, entry in raw.items():
        kind, count = unpack(f"{layout.order}H{layout.pointer[1]}", entry[2 : -layout.inline])
        if kind not in TYPES or (tags is not None and tag not in tags):
            continue
        field, length = entry[-layout.inline :], count * TYPES[kind][1]
        if tag in pointers:
            inner, _ = layout.entries(file, _number(field[: TYPES[kind][0]], layout.order))
            values[tag] = _values(file, layout, inner, None, pointers[tag])
            continue
        if length > layout.room or (kind in ONLY_BIG and (tags is None or tag in EXIF_TAGS | ONLY_TIFF_TAGS)):
            continue
        data = field[:length] if length <= layout.inline else _bytes(file, _number(field, layout.order), length)
        layout.room -= len(data)
        if len(data) == length:
            values[tag] = kind, data if tag in OF_BYTES else _swapped(data, kind, layout.order)
            if tag in MOST and not 1 <= number(values, tag) <= MOST[tag]:
                del values[tag]
    if layout.order == ">":
        _turn(values)
    return values


def _turn(values: Directory) -> None:
    """Turn the numbers inside values that are bytes to TIFF from big-endian to little-endian."""
    if COMMENT in values and values[COMMENT][1].startswith(UNICODE):
        kind, text = values[COMMENT]
        values[COMMENT] = kind, UNICODE + _turned(text[len(UNICODE) :], 2)
    if IMAGEJ in values and values.get(IMAGEJ_SIZES, (0,))[0] == LONG:
        kind, data = values[IMAGEJ]
        # A head of names, each with how many there are of it, and then those; and before it all the size of each.
        head, *sizes = np.frombuffer(values[IMAGEJ_SIZES][1], "<u4").tolist() or [0]
        named = ((data[at : at + 4], _number(data[at + 4 : at + 8], ">")) for at in range(4, min(head, len(data)), 8))
        names = chain.from_iterable(repeat(name, count) for name, count in named)
        parts, at = [_turned(data[:head], 4)], head
        for name, size in zip(names, sizes, strict=False):
            parts.append(_turned(data[at : at + size], IMAGEJ_NUMBERS.get(name, 1)))
            at += size
        values[IMAGEJ] = kind, b"".join([*parts, data[at:]])


def _turned(data: bytes, size: int) -> bytes:
    """The bytes of every number of this ``size`` in reverse order; what is left at the end stays."""
    whole = len(data) - len(data) % size
    return np.frombuffer(data[:whole], f">u{size}").astype(f"<u{size}").tobytes() + data[whole:]


def _number(field: bytes, order: str) -> int:
    return int.from_bytes(field, "big" if order == ">" else "little")


def _bytes(file: BinaryIO, start: int, length: int) -> bytes:
    """What there is of these bytes; an offset of 64 bits may be none that the system can seek to."""
    file.seek(min(start, file.seek(0, os.SEEK_END)))
    return file.read(length)


def _swapped(data: bytes, kind: int, order: str) -> bytes:
    """Little-endian values in the byte order ``order``, or the inverse."""
    size = TYPES[kind][0]
    return np.frombuffer(data, f"{order}u{size}").astype(f"<u{size}").tobytes()
