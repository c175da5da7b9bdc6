"""Noisy images, decoded once into memory-mapped files: memory does not grow with their number."""

import json
import os
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Self

import numpy as np

from tbsn.errors import InputError, unwritable
from tbsn.files import atomic

SECONDS_BETWEEN_SYNCS = 5.0
ALIGNMENT = 16
PIXELS, INDEX, TEXTS, FACTS = "pixels.bin", "index.bin", "texts.bin", "facts.json"
# One for every image asked for, the unusable too: those have a height of 0, and their text is the reason.
ENTRY = np.dtype([
    ("start", "<i8"), ("height", "<i4"), ("width", "<i4"), ("channels", "<i4"), ("bytes", "<i4"), ("text_end", "<i8"),
])  # fmt: skip

Decode = Callable[[int], Iterator[tuple[str, np.ndarray | None]]]


class Photos(Sequence[np.ndarray]):
    """Decoded images (h, w, c), uint8 or uint16, in a folder that `cached` has filled.

    ``sizes`` (n, 2): heights and widths. ``stamp``: what they were made of. ``unusable``: how many
    images are not here, see `skipped`.
    """

    def __init__(self, directory: Path) -> None:
        self.directory, self.stamp = directory, str(facts(directory)["stamp"])
        self._entries = np.fromfile(directory / INDEX, ENTRY)
        self._numbers = np.flatnonzero(self._entries["height"])
        self.unusable = len(self._entries) - len(self._numbers)
        used = self._entries[self._numbers]
        self.sizes = np.stack([used["height"], used["width"]], axis=1)
        self._pixels, self._texts = (_mapped(directory / name) for name in (PIXELS, TEXTS))

    def __reduce__(self) -> tuple[Callable[[Path, str], Self], tuple[Path, str]]:
        """Sent to another process as the folder and its stamp alone."""
        return type(self).opened, (self.directory, self.stamp)

    @classmethod
    def opened(cls, directory: Path, stamp: str) -> Self:
        """Those of this stamp. Raises `InputError` if others have taken their place; that ends the run."""
        photos = cls(directory)
        if photos.stamp != stamp:
            raise InputError(directory, "has been made anew by another command", "the same command goes on")
        return photos

    def __len__(self) -> int:
        return len(self._numbers)

    def __getitem__(self, index: int) -> np.ndarray:  # type: ignore[override]
        start, *shape, size, _ = self._entries[self._numbers[index]].tolist()
        dtype = np.dtype(f"u{size}")
        return self._pixels[start : start + int(np.prod(shape)) * size].view(dtype).reshape(shape)

    def name(self, index: int) -> str:
        """The file or array that an image came from."""
        return self._text(self._numbers[index])

    def skipped(self) -> Iterator[str]:
        """Why images that were asked for are not here."""
        return map(self._text, np.flatnonzero(self._entries["height"] == 0).tolist())

    def _text(self, number: int) -> str:
        ends = self._entries["text_end"]
        text = self._texts[ends[number - 1] if number else 0 : ends[number]].tobytes()
        return text.decode("utf-8", "surrogateescape").rstrip("\n")


def cached(
    decode: Decode, cache: Path, stamp: str, other: Path | None = None, stamp_after: Callable[[], str] | None = None
) -> Photos:
    """Images in a cache folder, which are those of this stamp: written now, unless they, or ``other``, hold them.

    ``decode(first)`` gives the images from number ``first`` on: name and pixels, or the reason why it cannot be used
    and None. What an interrupted call has written is kept. ``stamp_after`` is the stamp of what was decoded in the end.
    Raises `InputError` if no image can be used, or the folder cannot be written.
    """
    for place in (cache, other):
        if place and facts(place) == {"stamp": stamp, "whole": True}:
            return Photos(place)
    try:
        cache.mkdir(parents=True, exist_ok=True)
        if facts(cache).get("stamp") != stamp:
            _clear(cache)
            _write_facts(cache, stamp, whole=False)
        with _Writer(cache) as writer:
            # What an earlier call decoded is not looked at again: only the stamp before all is sure to know a change.
            final = stamp if writer.entries else None
            for text, pixels in decode(writer.entries):
                writer.add(text, pixels)
        _write_facts(cache, final or (stamp_after or (lambda: stamp))(), whole=True)
        photos = Photos(cache)
        if len(photos):
            return photos
        reason = next(photos.skipped(), "they are gone")
        _clear(cache)
    except OSError as error:
        remedy = "make room there, or choose another folder with -o; the same command goes on"
        raise unwritable(cache, error, remedy, "cannot be written") from error
    more = f"; {photos.unusable - 1} others cannot be used either" if photos.unusable > 1 else ""
    raise InputError(cache, f"no image can be used: {reason}{more}", "name a folder of images that can be read")


def facts(cache: Path) -> dict[str, object]:
    """``stamp`` of a cache folder, and whether it is ``whole``; nothing if it is none."""
    return json.loads((cache / FACTS).read_text()) if (cache / FACTS).exists() else {}


class _Writer:
    """Appends images to a cache folder. After a crash, a power cut too, all but the last seconds are still there."""

    def __init__(self, cache: Path) -> None:
        self._files = {name: (cache / name).open("ab") for name in (PIXELS, TEXTS, INDEX)}
        whole = np.fromfile(cache / INDEX, ENTRY)
        self.entries = len(whole)
        self._pixels, self._texts = 0, 0
        if self.entries:
            *_, last = whole
            size = int(last["height"]) * int(last["width"]) * int(last["channels"]) * int(last["bytes"])
            self._pixels, self._texts = int(last["start"]) + _aligned(size), int(last["text_end"])
        for name, position in ((PIXELS, self._pixels), (TEXTS, self._texts), (INDEX, ENTRY.itemsize * self.entries)):
            self._files[name].truncate(position)
        self._waiting: list[bytes] = []
        self._synced = time.monotonic()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *raised: object) -> None:
        try:
            self._sync()
        finally:
            for file in self._files.values():
                file.close()

    def add(self, text: str, pixels: np.ndarray | None) -> None:
        """Append an image of this name, or the reason why there is none."""
        shape, size = (pixels.shape, pixels.itemsize) if pixels is not None else ((0, 0, 0), 0)
        encoded = text.encode("utf-8", "surrogateescape") + b"\n"
        start, self._texts = self._pixels, self._texts + len(encoded)
        self._files[TEXTS].write(encoded)
        if pixels is not None:
            self._files[PIXELS].write(np.ascontiguousarray(pixels).data)
            self._files[PIXELS].write(bytes(-pixels.nbytes % ALIGNMENT))
            self._pixels += _aligned(pixels.nbytes)
        self._waiting.append(np.array((start, *shape, size, self._texts), ENTRY).tobytes())
        self.entries += 1
        if time.monotonic() - self._synced > SECONDS_BETWEEN_SYNCS:
            self._sync()

    def _sync(self) -> None:
        """Entries reach the disk after the pixels and texts that they speak of."""
        waiting, self._waiting = self._waiting, []  # an interrupted sync is not repeated: it would write them twice
        for name in (PIXELS, TEXTS, INDEX):
            if name == INDEX:
                self._files[INDEX].write(b"".join(waiting))
            self._files[name].flush()
            os.fsync(self._files[name].fileno())
        self._synced = time.monotonic()


def _mapped(path: Path) -> np.ndarray:
    return np.memmap(path, np.uint8, "r") if path.stat().st_size else np.empty(0, np.uint8)


def _aligned(size: int) -> int:
    return -(-size // ALIGNMENT) * ALIGNMENT


def _clear(cache: Path) -> None:
    for name in (FACTS, INDEX, TEXTS, PIXELS):
        (cache / name).unlink(missing_ok=True)  # not emptied: another run may have mapped them


def _write_facts(cache: Path, stamp: str, whole: bool) -> None:
    with atomic(cache / FACTS) as partial:
        partial.write_text(json.dumps({"stamp": stamp, "whole": whole}))
