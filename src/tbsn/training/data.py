"""Noisy photos on disk, decoded once into a memory-mapped cache, and random strided crops of them."""

import hashlib
import json
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import cast

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset

from tbsn import images
from tbsn.errors import InputError
from tbsn.files import atomic

CACHE_VERSION = 1


class Photos(Sequence[np.ndarray]):
    """Decoded images (h, w, c), uint8 or uint16, in one memory-mapped file: memory does not grow with their number."""

    def __init__(self, directory: Path) -> None:
        index = json.loads((directory / "index.json").read_text())
        self.names: list[str] = index["names"]
        self.skipped: list[str] = index["skipped"]
        self._places: list[tuple[int, list[int], str]] = index["places"]
        self._bytes = np.memmap(directory / "pixels.bin", np.uint8, "r")

    def __len__(self) -> int:
        return len(self._places)

    def __getitem__(self, index: int) -> np.ndarray:  # type: ignore[override]
        start, shape, dtype = self._places[index]
        size = int(np.prod(shape)) * np.dtype(dtype).itemsize
        return self._bytes[start : start + size].view(dtype).reshape(shape)


def cached_folder(folder: Path, cache: Path, channels: int, other: Path | None = None) -> Photos:
    """The images of a folder, searched recursively; decoded again only if the folder has changed.

    Grey images are repeated and alpha is dropped to reach three channels. Damaged files are left out and named in
    ``skipped``. A cache of the same images at ``other`` serves as well. Raises `InputError` if no image is found or can
    be used.
    """
    paths = list(images.find([folder])) if folder.is_dir() else []
    if not paths:
        raise InputError(folder, "no images in this folder", f"name a folder with {' '.join(images.SUFFIXES)} files")
    digest = hashlib.sha256(f"{CACHE_VERSION} {channels}".encode())
    for path in paths:
        digest.update(f"{path.relative_to(folder)} {path.stat().st_size} {path.stat().st_mtime_ns}".encode())
    stamp = digest.hexdigest()
    skipped: list[str] = []

    def decode() -> Iterator[tuple[str, np.ndarray]]:
        for path in paths:
            try:
                yield str(path), _with_channels(path, images.read(path).pixels, channels)
            except InputError as error:
                skipped.append(str(error))

    photos = cached(decode(), other if other and _holds(other, stamp) else cache, stamp, skipped)
    if not len(photos):
        raise InputError(
            folder, f"none of {len(paths)} images can be used ({photos.skipped[0]})", "mend or replace them"
        )
    return photos


def cached_arrays(arrays: Sequence[np.ndarray], cache: Path, channels: int, other: Path | None = None) -> Photos:
    """Arrays (h, w) or (h, w, c) of integers, or of floats in [0, 1], as `cached_folder` does files."""
    shaped = [array[..., None] if array.ndim == 2 else array for array in arrays]
    decoded = [(f"image {i}", _with_channels(f"image {i}", image, channels)) for i, image in enumerate(shaped)]
    if not decoded:
        raise InputError("images", "there are none", "give at least one array")
    digest = hashlib.sha256()
    for _, pixels in decoded:
        digest.update(f"{pixels.shape} {pixels.dtype}".encode() + np.ascontiguousarray(pixels).tobytes())
    stamp = f"{CACHE_VERSION} {digest.hexdigest()}"
    return cached(decoded, other if other and _holds(other, stamp) else cache, stamp)


def cached(decoded: Iterable[tuple[str, np.ndarray]], cache: Path, stamp: str, skipped: Sequence[str] = ()) -> Photos:
    """Write named images one after another into a cache folder, unless it already holds the ones of this stamp."""
    if _holds(cache, stamp):
        return Photos(cache)
    index = cache / "index.json"
    cache.mkdir(parents=True, exist_ok=True)
    index.unlink(missing_ok=True)
    names, places, position = [], [], 0
    with atomic(cache / "pixels.bin") as partial, partial.open("wb") as file:
        for name, pixels in decoded:
            names.append(name)
            places.append((position, pixels.shape, pixels.dtype.str))
            position += file.write(np.ascontiguousarray(pixels).tobytes())
            position += file.write(bytes(-position % 16))
        file.write(bytes(16))
    with atomic(index) as partial:
        facts = {"stamp": stamp, "names": names, "skipped": list(skipped), "places": places}
        partial.write_text(json.dumps(facts))
    return Photos(cache)


def _holds(cache: Path, stamp: str) -> bool:
    index = cache / "index.json"
    return index.exists() and json.loads(index.read_text())["stamp"] == stamp


def _with_channels(name: object, pixels: np.ndarray, channels: int) -> np.ndarray:
    if pixels.ndim != 3:
        raise InputError(name, f"has shape {pixels.shape}", "give (h, w) or (h, w, c)")
    if pixels.dtype not in (np.uint8, np.uint16):
        if not np.isfinite(pixels).all():
            raise InputError(name, "has NaN or infinite values", "replace them by finite ones")
        pixels = images.from_float(images.to_float(pixels), np.dtype(np.uint16))
    if pixels.shape[2] == channels:
        return pixels
    if pixels.shape[2] == 1:
        return np.repeat(pixels, channels, axis=2)
    raise InputError(name, f"has {pixels.shape[2]} channels, the network {channels}", "--set network.channels=N")


class Crops(Dataset[tuple[Tensor, ...]]):
    """Batch number ``step`` of random crops: every item of it a pure function of the seed, the step and its place.

    Every batch is one tensor (batch, c, crop / stride, crop / stride) in [0, 1] for each of the aligned ``stacks``, cut
    at the same places. ``stride`` takes one PD sub-image of the crop. Photos are drawn in proportion to their pixels.
    ``places`` are the places of the batch that this process computes: all processes together make the batch that one
    alone would. ``among`` are the photos to crop, all if not given.
    """

    def __init__(
        self,
        stacks: Sequence[Photos],
        *,
        crop: int,
        places: Sequence[int],
        stride: int = 1,
        augment: bool,
        seed: int,
        among: np.ndarray | None = None,
    ) -> None:
        self.stacks, self.crop, self.places, self.stride = stacks, crop, places, stride
        self.augment, self.seed = augment, seed
        self._among = np.arange(len(stacks[0])) if among is None else among
        for name, photo in zip(stacks[0].names, stacks[0], strict=True):
            if min(photo.shape[:2]) < crop:
                size = f"{photo.shape[1]}x{photo.shape[0]}"
                raise InputError(
                    name, f"is {size}, smaller than the crop of {crop}", "leave it out or --set fit.crop=N"
                )
        sizes = (stacks[0][index].shape[:2] for index in self._among)
        self._pixels = np.cumsum([height * width for height, width in sizes])

    def __getitem__(self, step: int) -> tuple[Tensor, ...]:  # type: ignore[override]
        crops = [self._crops(np.random.default_rng([self.seed, step, place])) for place in self.places]
        return tuple(torch.from_numpy(np.stack(parts)) for parts in zip(*crops, strict=True))

    def _crops(self, random: np.random.Generator) -> list[np.ndarray]:
        index = self._among[np.searchsorted(self._pixels, random.integers(self._pixels[-1]), side="right")]
        height, width = self.stacks[0][index].shape[:2]
        top = int(random.integers(height - self.crop + 1))
        left = int(random.integers(width - self.crop + 1))
        turn, flip = (int(random.integers(4)), bool(random.integers(2))) if self.augment else (0, False)
        crops = []
        for photos in self.stacks:
            crop = photos[index][top : top + self.crop : self.stride, left : left + self.crop : self.stride]
            crop = np.rot90(crop, turn)
            crop = images.to_float(crop[:, ::-1] if flip else crop)
            crops.append(np.ascontiguousarray(cast(np.ndarray, crop.transpose(2, 0, 1))))
        return crops


def split(count: int, share: float, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Numbers of ``count`` images to train on, and of the share of them, rounded, to hold back; at random."""
    order = np.random.default_rng(seed).permutation(count)
    held_back = round(share * count)
    return np.sort(order[held_back:]), np.sort(order[:held_back])
