"""Mutations that leave a file well-formed enough to get past its checksums and lengths."""

import random
import struct
import zlib
from collections.abc import Callable

Pieces = list[tuple[bytes, bytes]]
Mutate = Callable[[bytes, int], bytes]

PNG = b"\x89PNG\r\n\x1a\n"
INTERESTING = (0, 1, 2, 3, 4, 7, 8, 12, 16, 255, 256, 65535, 1 << 31, (1 << 32) - 1)


def mutate(data: bytes, most: int, seed: int, anyhow: Mutate) -> bytes:
    """One mutation: of the parts of a file and its order, or, in a third of the cases, ``anyhow``."""
    dice = random.Random(seed)
    kind = _kind(data)
    if not kind or dice.random() < 0.33:
        return anyhow(data, most)
    if kind == "tiff":
        return _mutate_tiff(data, dice)
    pieces = _split(kind, data)
    if not pieces:
        return anyhow(data, most)
    at, other = dice.randrange(len(pieces)), dice.randrange(len(pieces))
    match dice.randrange(6):
        case 0:
            del pieces[at]
        case 1:
            pieces.insert(other, pieces[at])
        case 2:
            pieces[at], pieces[other] = pieces[other], pieces[at]
        case 3:
            pieces[at] = pieces[other][0], pieces[at][1]
        case _:
            pieces[at] = pieces[at][0], _inner(*pieces[at], most, anyhow)
    return _join(kind, pieces)[:most]


def _kind(data: bytes) -> str:
    starts = {PNG: "png", b"\xff\xd8": "jpeg", b"RIFF": "webp", b"II*\0": "tiff"}
    return next((kind for start, kind in starts.items() if data.startswith(start)), "")


def _inner(name: bytes, content: bytes, most: int, anyhow: Mutate) -> bytes:
    """Compressed pixels are mutated as they are before compression."""
    if name == b"IDAT":
        try:
            return zlib.compress(anyhow(zlib.decompress(content), most))
        except zlib.error:
            pass
    return anyhow(content, most)


def _split(kind: str, data: bytes) -> Pieces:
    """Names and contents; of a JPEG the last is all from the start of the scan on."""
    pieces, at = [], {"png": 8, "jpeg": 2, "webp": 12}[kind]
    while at + 8 <= len(data):
        if kind == "jpeg":
            name, length = struct.unpack(">2sH", data[at : at + 4])
            if name == b"\xff\xda":
                break
            pieces.append((name, data[at + 4 : at + 2 + length]))
            at += 2 + max(2, length)
            continue
        length, name = struct.unpack(">I4s", data[at : at + 8])
        if kind == "webp":
            name, length = struct.unpack("<4sI", data[at : at + 8])
        pieces.append((name, data[at + 8 : at + 8 + length]))
        at += length + (12 if kind == "png" else 8 + length % 2)
    return [*pieces, (b"", data[at:])] if kind == "jpeg" else pieces


def _join(kind: str, pieces: Pieces) -> bytes:
    if kind == "png":
        return PNG + b"".join(
            struct.pack(">I", len(content)) + name + content + struct.pack(">I", zlib.crc32(name + content))
            for name, content in pieces
        )
    if kind == "webp":
        body = b"WEBP" + b"".join(
            struct.pack("<4sI", name, len(content)) + content + b"\0" * (len(content) % 2) for name, content in pieces
        )
        return struct.pack("<4sI", b"RIFF", len(body)) + body
    return b"\xff\xd8" + b"".join(
        struct.pack(">2sH", name, min(len(content) + 2, 65535)) + content[:65533] if name else content
        for name, content in pieces
    )


def _mutate_tiff(data: bytes, dice: random.Random) -> bytes:
    """One field of one entry of the first directory, or of anything that lies there."""
    whole = bytearray(data.ljust(16, b"\0"))
    (start,) = struct.unpack("<I", whole[4:8])
    start = min(start, len(whole) - 2)
    (count,) = struct.unpack("<H", whole[start : start + 2])
    at = start + 2 + 12 * dice.randrange(max(1, count))
    offset, code = dice.choice(((0, "<H"), (2, "<H"), (4, "<I"), (8, "<I")))
    value = dice.choice((*INTERESTING, len(data), start, dice.getrandbits(16))) % (1 << 8 * struct.calcsize(code))
    new = struct.pack(code, value)
    whole[at + offset : at + offset + len(new)] = new
    return bytes(whole)
