"""An image that libvips pulls out of Python as it writes it, and back into a file.

libvips takes no pixels from a generator, but it reads PNG as a stream; so the rows are handed to it as an uncompressed
PNG of bytes, whatever they are, and told apart again behind that.
"""

import struct
import zlib
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from io import FileIO
from typing import Any

import numpy as np
import pyvips

FORMATS = {  # what libvips calls them, and images of one or two, three or four such channels
    "uint8": ("uchar", "b-w", "srgb"),
    "uint16": ("ushort", "grey16", "rgb16"),
    "float32": ("float", "b-w", "scrgb"),
}


@contextmanager
def as_image(rows: Iterable[np.ndarray], shape: tuple[int, ...], dtype: np.dtype) -> Iterator[pyvips.Image]:
    """An image of ``shape`` (h, w, c), uint8, uint16 or float32, of its ``rows`` (n, w, c), to be used once, in order.

    What goes wrong in ``rows`` is raised at the end of the block, in place of what libvips makes of it.
    """
    height, width, bands = shape
    size = bands * dtype.itemsize
    failures: list[BaseException] = []
    source = pyvips.SourceCustom()
    source.on_read(_reader(_png(rows, width * size, height), failures))
    try:
        stream = pyvips.Image.new_from_source(source, "", access="sequential", fail_on="error", unlimited=True)
        format_, *meanings = FORMATS[dtype.name]
        meaning = meanings[(bands - 1) // 2] if bands <= 4 else "multiband"
        yield stream.bandfold(factor=size).copy(bands=bands, format=format_, interpretation=meaning)
    except pyvips.Error:
        if failures:
            raise failures[0] from None
        raise


def write_to(file: FileIO, image: pyvips.Image, suffix: str, **options: Any) -> None:
    """Write an image to a file that is open. Raises what goes wrong in it, in place of what libvips makes of it."""
    failures: list[OSError] = []

    def write(data: bytes | bytearray | memoryview) -> int:
        try:
            return file.write(data)
        except OSError as failure:
            failures.append(failure)
            return -1

    target = pyvips.TargetCustom()
    target.on_write(write)
    target.on_read(file.read)  # TIFF goes back to what is written
    target.on_seek(file.seek)
    try:
        image.write_to_target(target, suffix, **options)
    finally:
        if failures:
            raise failures[0]


def _png(rows: Iterable[np.ndarray], width: int, height: int) -> Iterator[bytes]:
    yield b"\x89PNG\r\n\x1a\n" + _chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 0, 0, 0, 0))
    stored = zlib.compressobj(0)
    for part in rows:
        lines = np.ascontiguousarray(part, part.dtype.newbyteorder("=")).view(np.uint8).reshape(len(part), width)
        yield _chunk(b"IDAT", stored.compress(np.pad(lines, ((0, 0), (1, 0))).data))
    yield _chunk(b"IDAT", stored.flush()) + _chunk(b"IEND", b"")


def _chunk(kind: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(data, zlib.crc32(kind)))


def _reader(parts: Iterator[bytes], failures: list[BaseException]) -> Callable[[int], bytes]:
    rest = memoryview(b"")

    def read(size: int) -> bytes:
        nonlocal rest
        try:
            rest = rest or memoryview(next(parts, b""))
        except BaseException as failure:  # it cannot pass through libvips, which takes nothing for a truncated file
            failures.append(failure)
            return b""
        part, rest = rest[:size], rest[size:]
        return bytes(part)

    return read
