"""Metadata from file to file, byte for byte.

libvips writes EXIF anew (maker notes, thumbnails, byte order and padding change) and drops some of the rest. So what
stands in a file is collected here, and put into the file that libvips has written.
"""

import os
import zlib
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from io import BytesIO
from pathlib import Path
from struct import pack, unpack
from typing import BinaryIO

from tbsn import formats, tags
from tbsn.errors import InputError
from tbsn.files import atomic

EXIF = {"PNG": b"eXIf", "JPEG": b"\xe1Exif\0\0", "WebP": b"EXIF"}
# Without these it is another picture.
COLOUR = (*b"cICP cHRM gAMA iCCP sRGB mDCV cLLI pHYs ICCP".split(), b"\xe0JFIF\0", b"\xe2ICC_PROFILE\0")
# What is carried. Not what describes the pixels as they were: palettes, histograms, previews, gain maps, signatures.
CARRIED = (
    *COLOUR,
    *EXIF.values(),
    *b"oFFs pCAL sCAL tIME tEXt zTXt iTXt".split(),
    b"XMP ",
    b"\xe1http://ns.adobe.com/xap/1.0/\0",
    b"\xe1http://ns.adobe.com/xmp/extension/\0",
    b"\xedPhotoshop 3.0\0",
    b"\xfe",
)
LONGEST_NAME = max(map(len, CARRIED))
JFIF, JFIF_ALONE = b"\xe0JFIF\0", 18  # bytes of it, without a thumbnail
FIRST, LAST = (b"IHDR", b"\xe0JFIF\0", b"VP8X"), (b"EXIF", b"XMP ")
PICTURE = tags.RESOLUTION | tags.WHITE | {tags.EXTRA, tags.NO_DATA}
UNITS = {1: 25.4, 2: 10, 3: 1000}  # millimetres, by the numbers of JFIF; TIFF counts from 2, a PNG has metres or none
MOST_EXIF = 0xFFFF - 8  # bytes, in a JPEG
WEBP_FLAGS = {b"ICCP": 0x20, b"EXIF": 0x08, b"XMP ": 0x04}
FILL, START_OF_SCAN = 0xFF, 0xDA
BARE = (0, 1, *range(0xD0, 0xDA))  # JPEG markers without a length, and the 0 after a byte that is no marker
BLOCK = 1 << 20

Segment = tuple[bytes, int, int]
"""Name, start and stop of a part of a file: a PNG or WebP chunk, or a JPEG segment, which is named by how it starts."""


@dataclass(frozen=True)
class Metadata:
    """What stands in a file of ``kind``: ``parts`` by name, as they stand there, or tags of the ``pages`` of a TIFF."""

    kind: str = ""
    parts: list[tuple[bytes, bytes]] = field(default_factory=list)
    pages: list[tags.Directory] = field(default_factory=list)

    @property
    def exif(self) -> bytes:
        """The EXIF, without what a format puts around it; nothing if there is none."""
        if self.pages:
            return tags.as_exif(self.pages[0])
        for name, part in self.parts:
            if name == EXIF[self.kind]:
                inner = {"PNG": part[8:-4], "JPEG": part[4:], "WebP": part[8 : 8 + unpack("<I", part[4:8])[0]]}
                return inner[self.kind].removeprefix(b"Exif\0\0")
        return b""

    @property
    def directories(self) -> list[tags.Directory]:
        """The tags of all pages, as TIFF has them; those of its EXIF for another format."""
        return self.pages or tags.read(BytesIO(self.exif))[:1]

    def without_description(self) -> "Metadata":
        """The same, but for what pages of a TIFF say in words."""
        pages = [{tag: value for tag, value in page.items() if tag != tags.DESCRIPTION} for page in self.pages]
        return replace(self, pages=pages)

    @property
    def resolution(self) -> tuple[float, float] | None:
        """Pixels in a millimetre, across and down, if the file says how large they are."""
        page, parts = next(iter(self.directories), {}), dict(self.parts)
        unit, *sides = unpack(">BHH", parts.get(JFIF, b"").ljust(JFIF_ALONE, b"\0")[11:16])
        *physical, metres = unpack(">IIB", parts.get(b"pHYs", b"").ljust(17, b"\0")[8:17])
        inside = [tags.rational(page, tag) for tag in (282, 283)]
        told = ((tags.number(page, 296, 2) - 1, inside), (unit, sides), (3 * metres, physical))
        found = ((x / UNITS[unit], y / UNITS[unit]) for unit, (x, y) in told if unit in UNITS and x and y)
        return next(found, None)


def collect(path: Path) -> Metadata:
    """The metadata of a PNG, JPEG, WebP or TIFF file. Raises `InputError` if it is another, or a checksum is wrong."""
    kind = formats.of(path)
    with path.open("rb") as file:
        if kind == "TIFF":
            pages = tags.read(file)
            for page in pages:
                if tags.number(page, tags.EXTRA) == 1:  # colours multiplied by alpha: libvips divides them by it
                    del page[tags.EXTRA]
            return Metadata(kind, pages=pages)
        checked = (*CARRIED, b"IEND")
        parts = [(name, _bytes(file, start, stop)) for name, start, stop in _segments(file, kind) if name in checked]
    if kind == "PNG":
        _check(path, parts)
    return Metadata(kind, [(name, part) for name, part in parts if name in CARRIED])


def names(path: Path) -> set[bytes]:
    """What the chunks of a PNG or WebP file are called, or the markers of a JPEG before its pixels."""
    with path.open("rb") as file:
        return {name for name, _, _ in _segments(file, formats.of(path))}


def _check(path: Path, parts: list[tuple[bytes, bytes]]) -> None:
    """Raises `InputError` for damage in PNG chunks that libvips lets pass."""
    for name, part in parts:
        if zlib.crc32(part[4:-4]).to_bytes(4, "big") != part[-4:]:
            raise InputError(path, f"damaged (checksum of {name.decode()})", "copy it again from its source")
    if not parts or parts[-1][0] != b"IEND":
        raise InputError(path, "damaged (its end is missing)", "copy it again from its source")


def put(path: Path, metadata: Metadata, private: bool = True) -> None:
    """Put metadata into a file that libvips has written, in place of its own; into one of another format EXIF alone,
    if there is any: that of libvips says no more than the resolution.

    Without what is ``private``, only what the file says of colours, resolution and NoData: the rest libvips writes. A
    JPEG that was no JPEG before has no room for EXIF of more than 64 kB: orientation and resolution are all of it then.
    """
    kind = formats.of(path)
    if kind == "TIFF":
        kept = [page if private else {tag: page[tag] for tag in PICTURE & page.keys()} for page in metadata.directories]
        with path.open("r+b") as file:
            tags.add(file, kept or [{}], metadata.resolution is not None)
    elif kind == metadata.kind in EXIF:
        names = CARRIED if private else COLOUR
        parts = [part for part in metadata.parts if part[0] in names]
        _rewrite(path, kind, names, parts if private else [(name, _no_thumbnail(name, part)) for name, part in parts])
    elif kind in EXIF and metadata.kind and private and (metadata.exif or not metadata.resolution):
        _rewrite(path, kind, tuple(EXIF.values()), _exif_part(kind, _exif_for(kind, metadata)))


def _no_thumbnail(name: bytes, part: bytes) -> bytes:
    """A part of a JPEG without the small picture that JFIF may have."""
    return part[:2] + pack(">H", JFIF_ALONE - 2) + part[4:16] + b"\0\0" if name == JFIF else part


def _exif_for(kind: str, metadata: Metadata) -> bytes:
    """The EXIF for a file of another ``kind``; with the resolution, which a JPEG or WebP with EXIF has nowhere else."""
    exif, page, told = metadata.exif, next(iter(metadata.directories), {}), {}
    if exif and kind != "PNG" and metadata.resolution and not tags.RESOLUTION & page.keys():
        x, y = (pack("<II", min(round(25400 * one), 0xFFFFFFFF), 1000) for one in metadata.resolution)
        told = {282: (5, x), 283: (5, y), 296: (3, pack("<H", 2))}
        file = BytesIO(exif)
        tags.add(file, [told])
        exif = file.getvalue()
    if kind == "JPEG" and len(exif) > MOST_EXIF:
        kept = {tag: value for tag, value in page.items() if tag in tags.RESOLUTION | {tags.ORIENTATION}}
        exif = tags.as_exif(kept | told)
    return exif


def _rewrite(path: Path, kind: str, replaced: tuple[bytes, ...], parts: list[tuple[bytes, bytes]]) -> None:
    with atomic(path) as rewritten, path.open("rb") as old, rewritten.open("w+b") as new:
        whole = list(_segments(old, kind))
        segments = [segment for segment in whole if segment[0] not in replaced]
        new.write(_bytes(old, 0, whole[0][1]))
        _copy(old, new, [segment for segment in segments if segment[0] in FIRST])
        new.write(b"".join(part for name, part in parts if name not in LAST))
        _copy(old, new, [segment for segment in segments if segment[0] not in FIRST])
        new.write(b"".join(part for name, part in parts if name in LAST))
        if kind == "WebP":
            _mend_header(new)


def _mend_header(file: BinaryIO) -> None:
    """Let the header of a WebP file tell its size, and what is in it. libvips writes the extended form always."""
    names = {name for name, _, _ in _segments(file, "WebP")}
    flags = _bytes(file, 20, 21)[0] & ~sum(WEBP_FLAGS.values())
    flags |= sum(flag for name, flag in WEBP_FLAGS.items() if name in names)
    for at, value in ((4, pack("<I", file.seek(0, os.SEEK_END) - 8)), (20, bytes([flags]))):
        file.seek(at)
        file.write(value)


def _exif_part(kind: str, exif: bytes) -> list[tuple[bytes, bytes]]:
    if not exif:
        return []
    if kind == "JPEG":
        part = b"\xff\xe1" + pack(">H", len(exif) + 8) + b"Exif\0\0" + exif
    elif kind == "PNG":
        part = pack(">I", len(exif)) + b"eXIf" + exif + pack(">I", zlib.crc32(b"eXIf" + exif))
    else:
        part = b"EXIF" + pack("<I", len(exif)) + exif + b"\0" * (len(exif) % 2)
    return [(EXIF[kind], part)]


def _segments(file: BinaryIO, kind: str) -> Iterator[Segment]:
    """The parts of a PNG, JPEG or WebP file; what follows the last whole one is left out."""
    end = file.seek(0, os.SEEK_END)
    start = {"PNG": 8, "JPEG": 2, "WebP": 12}[kind]
    while start + 4 < end:
        name, stop = _segment(file, kind, start, end)
        if stop > end:
            return
        yield name, start, stop
        start = stop


def _segment(file: BinaryIO, kind: str, start: int, end: int) -> tuple[bytes, int]:
    head = _bytes(file, start, start + 4 + LONGEST_NAME)
    if kind == "PNG":
        return head[4:8], start + 12 + int.from_bytes(head[:4], "big")
    if kind == "WebP":
        length = int.from_bytes(head[4:8], "little")
        return head[:4], start + 8 + length + length % 2
    if stray := head.find(FILL):  # libjpeg passes over bytes before a marker
        return b"", start + (stray if stray > 0 else len(head))
    if head[1] == FILL:
        return b"", start + 1
    if head[1] in BARE:
        return b"", start + 2
    if head[1] == START_OF_SCAN:
        return head[1:2], end
    length = int.from_bytes(head[2:4], "big")
    inside = head[1:2] + head[4 : length + 2]
    return next((name for name in CARRIED if inside.startswith(name)), head[1:2]), start + 2 + length


def _bytes(file: BinaryIO, start: int, stop: int) -> bytes:
    file.seek(start)
    return file.read(stop - start)


def _copy(old: BinaryIO, new: BinaryIO, segments: list[Segment]) -> None:
    for _, start, stop in segments:
        for at in range(start, stop, BLOCK):
            new.write(_bytes(old, at, min(at + BLOCK, stop)))
