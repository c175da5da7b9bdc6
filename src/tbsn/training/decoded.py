"""Noisy images from files and arrays into the cache of a run."""

import hashlib
import itertools
import os
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import numpy as np

from tbsn import images
from tbsn.errors import InputError, unreadable
from tbsn.noisy import bits_of, noisy_images
from tbsn.progress import progress
from tbsn.scale import Bits, common_bits, full_depth
from tbsn.training.photos import Photos, cached

CACHE_VERSION = 5
LATE = "start again, and all images are decoded anew"


def cached_folder(folder: Path | Sequence[Path], cache: Path, channels: int, other: Path | None = None) -> Photos:
    """The `noisy_images` of a folder, searched recursively, or files; decoded again only if they have changed.

    Grey images are repeated to reach the channels. Images that cannot be used are left out, see `Photos.skipped`, and
    so is a folder that cannot be read, as one of them. A cache of the same images at ``other`` serves as well. The
    folder may change meanwhile: what is not there any more is skipped, what is new is found by the next call. Raises
    `InputError` if no image is found or can be used.
    """

    roots = [folder] if isinstance(folder, Path) else folder

    def stamped(digest: Callable[[bytes], None]) -> Iterator[Path | InputError]:
        failures: list[InputError] = []
        for root, path in ((one, path) for one in roots for path in noisy_images([one], failures.append)):
            try:
                found = path.lstat() if os.path.islink(path) and not os.path.exists(path) else path.stat()
            except FileNotFoundError:
                continue
            except OSError as error:
                failures.append(unreadable(path, error))
                continue
            name = path.name if path == root else path.relative_to(root)
            digest(f"{name} {found.st_size} {found.st_mtime_ns}\n".encode(errors="surrogateescape"))
            yield path
        for failure in failures:
            digest(f"{failure}\n".encode(errors="surrogateescape"))
            yield failure

    def new_digest() -> "hashlib._Hash":
        return hashlib.sha256(f"{CACHE_VERSION} {channels}\n".encode())

    before, after, late = new_digest(), new_digest(), []
    total = sum(1 for _ in stamped(before.update))
    if not total:
        raise InputError(roots[0], "no images here", f"name a folder with {' '.join(images.SUFFIXES)} files, or a file")

    def decode(first: int) -> Iterator[tuple[str, np.ndarray | None]]:
        bits = bits_of((path for path in stamped(lambda line: None) if isinstance(path, Path)), channels)
        with progress("image", total, first) as report:
            for number, path in enumerate(itertools.islice(stamped(after.update), first, None), first + 1):
                yield one(path, bits)
                report(number, "")

    def one(path: Path | InputError, bits: Bits) -> tuple[str, np.ndarray | None]:
        if isinstance(path, InputError):
            return str(path), None
        try:
            return str(path), with_channels(path, images.read(path, channels).pixels, channels, bits)
        except (InputError, OSError) as error:
            late.extend([path] * (LATE in str(error)))
            return str(error), None

    # Of another stamp the next start decodes all again.
    return cached(decode, cache, before.hexdigest(), other, lambda: "late " * bool(late) + after.hexdigest())


def cached_arrays(arrays: Sequence[np.ndarray], cache: Path, channels: int, other: Path | None = None) -> Photos:
    """Arrays (h, w) or (h, w, c) of integers, or of floats in [0, 1], as `cached_folder` does files."""
    shaped = [array[..., None] if array.ndim == 2 else array for array in arrays]
    if empty := [i for i, image in enumerate(shaped) if not image.size]:
        raise InputError(f"image {empty[0]}", f"is empty: {arrays[empty[0]].shape}", "leave it out")
    bits = common_bits((image.dtype, [image]) for image in shaped if image.dtype.kind in "iu")
    decoded = [(f"image {i}", with_channels(f"image {i}", image, channels, bits)) for i, image in enumerate(shaped)]
    if not decoded:
        raise InputError("images", "there are none", "give at least one array")
    digest = hashlib.sha256(f"{CACHE_VERSION}".encode())
    for _, pixels in decoded:
        digest.update(f"{pixels.shape} {pixels.dtype}".encode() + np.ascontiguousarray(pixels).tobytes())
    return cached(lambda first: iter(decoded[first:]), cache, digest.hexdigest(), other)


def with_channels(name: object, pixels: np.ndarray, channels: int, bits: Bits) -> np.ndarray:
    """Pixels (h, w, c) as uint8 or uint16 with this number of channels, grey repeated. Raises `InputError`.

    ``bits`` are those that all images together use, see `full_depth`.
    """
    if pixels.ndim != 3:
        raise InputError(name, f"has shape {pixels.shape}", "give (h, w) or (h, w, c)")
    if pixels.dtype.kind not in "iuf":
        raise InputError(name, f"is an array of {pixels.dtype}", "give integers or floats")
    most = bits.get(pixels.dtype)
    if most and int(pixels.max()) >= 2**most:
        raise InputError(name, f"has more than the {most} bits of all images before", LATE)
    pixels = full_depth(pixels, bits)
    if pixels.dtype not in (np.uint8, np.uint16):
        if not np.isfinite(pixels).all():
            raise InputError(name, "has NaN or infinite values", "replace them by finite ones")
        images.check_range(name, pixels)
        pixels = images.from_float(images.to_float(pixels), np.dtype(np.uint16))
    if pixels.shape[2] == channels:
        return pixels
    if pixels.shape[2] == 1:
        return np.repeat(pixels, channels, axis=2)
    remedy = f"--set network.channels={pixels.shape[2]}"
    raise InputError(name, f"has {pixels.shape[2]} channels, the network {channels}", remedy)
