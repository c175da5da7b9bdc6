"""Image files, written as their rows come: whole or not at all, with the metadata of another."""

import re
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

import numpy as np
import pyvips

from tbsn import formats, metadata
from tbsn.errors import InputError, unwritable
from tbsn.files import atomic
from tbsn.images import DEPTHS, SUFFIXES, Photo, load, reason
from tbsn.rows import as_image, write_to

MAX_RESOLUTION = 1e6
UNKNOWN_RESOLUTION = 72 / 25.4  # pixels in a millimetre: what EXIF designates for it
STRIP = 128  # rows, of a TIFF
BIG_TIFF = 3 << 30  # bytes; TIFF as it was ends at 4 GiB
ELSEWHERE = "choose another output with -o"
LOSSLESS = "lossless"
JPEG, TIFF, WEBP = (formats.SUFFIXES[kind] for kind in ("JPEG", "TIFF", "WebP"))
LOSSY, NO_ALPHA = (*JPEG, *WEBP), (*JPEG, ".npy")
LONGEST_SIDE = dict.fromkeys(WEBP, 16383) | dict.fromkeys(JPEG, 65500)  # pixels
PROFILE, GREY = "icc-profile-data", slice(16, 20)  # of a profile, where it says for what colours it is
DESCRIPTION = "image-description"
UUID = re.compile(r"<UUID\b[^>]*>([^<]+)<")  # of the file that holds a plane, in OME-XML
KEPT = {
    PROFILE: pyvips.GValue.blob_type,
    "exif-data": pyvips.GValue.blob_type,
    "xmp-data": pyvips.GValue.blob_type,
    DESCRIPTION: pyvips.GValue.gstr_type,
    "orientation": pyvips.GValue.gint_type,
}
PRIVATE = ("exif-data", "xmp-data", DESCRIPTION)


@dataclass(frozen=True)
class Encoding:
    """How to write: ``quality`` of JPEG and WebP; without ``private`` metadata (EXIF, XMP, IPTC, description) or with.

    Profile, resolution and orientation always stay: without them it is another picture.
    """

    quality: int = 95
    private: bool = True


def write(path: Path, pixels: np.ndarray, like: Photo | None = None) -> None:
    """`write_rows` of a whole image (h, w, c)."""
    whole = np.ascontiguousarray(pixels)
    write_rows(path, [whole], whole.shape, whole.dtype, like)


def write_rows(
    path: Path,
    rows: Iterable[np.ndarray],
    shape: tuple[int, ...],
    dtype: np.dtype,
    like: Photo | None = None,
    encoding: Encoding = Encoding(),
) -> None:
    """Write an image of ``shape`` (h, w, c) as its rows come, with the alpha and the metadata of ``like``.

    If ``like`` has several pages, so has the output: the rows of all of them follow each other. The format follows
    the suffix of ``path``. The file appears whole or not at all. Raises `InputError` if it cannot be written, or the
    format does not hold the depth, and whatever ``rows`` raises.
    """
    suffix = path.suffix.lower()
    pages = like.pages if like else 1
    check_holds(path, np.dtype(dtype), shape, pages, like is not None and like.alpha)
    try:
        with atomic(path) as partial:
            if suffix == ".npy":
                flat = like is not None and like.flat and shape[2] == 1
                with partial.open("wb") as file:
                    _write_array(file, rows, shape[:2] if flat else shape, np.dtype(dtype))
                return
            with as_image(rows, (shape[0] * pages, *shape[1:]), np.dtype(dtype)) as image:
                image = _with_metadata(image, like, shape[0], encoding) if like else image
                with partial.open("r+b", buffering=0) as file:
                    write_to(file, image, suffix, **_packed(suffix, image, like, encoding.quality))
                if like:
                    metadata.put(partial, like.kept, encoding.private)
    except pyvips.Error as error:
        raise InputError(path, f"cannot be written ({reason(error)})", ELSEWHERE) from error
    except OSError as error:
        raise unwritable(path, error, ELSEWHERE) from error


def check_kept(path: Path, like: Photo) -> None:
    """Raises `InputError` if what ``like`` says beside its pixels would be wrong in ``path``.

    Its profile is one of grey, and the format knows colours alone. Or it and other files name each other (OME-TIFF),
    and the output would not be so named: who opens it would get pages of the others, which are as they were.
    """
    if like.header is None:
        return
    profile: Any = like.header.get(PROFILE) if like.header.get_typeof(PROFILE) else b""
    if path.suffix.lower() in WEBP and profile[GREY] == b"GRAY":
        raise InputError(path, ".webp cannot hold a profile of grey", "write .png, .jpg or .tif")
    told = str(like.header.get(DESCRIPTION)) if like.header.get_typeof(DESCRIPTION) else ""
    if path.name != like.path.name and len(set(UUID.findall(told))) > 1:
        remedy = "name a folder with -o, where it keeps its name"
        raise InputError(like.path, "is one of several files that name each other (OME-TIFF)", remedy)


def check_holds(path: Path, dtype: np.dtype, shape: tuple[int, ...], pages: int = 1, alpha: bool = False) -> None:
    """Raises `InputError` if the format that the suffix of ``path`` names cannot hold images of ``shape`` (h, w, c)."""
    suffix, channels = path.suffix.lower(), shape[2]
    if suffix not in SUFFIXES:
        raise InputError(path, "unknown image format", f"use one of {' '.join(SUFFIXES)}")
    if alpha and suffix in NO_ALPHA:
        raise InputError(path, f"{suffix} cannot hold alpha", "write .png, .tif or .webp")
    if pages > 1 and suffix not in TIFF:
        raise InputError(path, f"{suffix} cannot hold {pages} pages", "write .tif")
    if max(shape[:2]) > (most := LONGEST_SIDE.get(suffix, max(shape[:2]))):
        raise InputError(path, f"{suffix} cannot hold more than {most} pixels a side", "write .png or .tif")
    if suffix == ".npy":
        return
    held = {".png": "u1 u2", ".tif": "u1 u2 f4", ".tiff": "u1 u2 f4"}.get(suffix, "u1")
    if dtype.str[1:] not in held.split():
        raise InputError(path, f"{suffix} cannot hold {dtype} pixels", "write .npy, or .tif for 16 bits and float32")
    if channels > 4 and suffix not in TIFF:
        raise InputError(path, f"{suffix} cannot hold {channels} channels", "write .tif")


def _packed(suffix: str, image: pyvips.Image, like: Photo | None, quality: int) -> dict[str, Any]:
    """What to tell libvips: without loss if ``like`` is so, and packed as it is."""
    packing = like.packing if like else ""
    if suffix in TIFF:
        height = image.height // (like.pages if like else 1)
        # ImageJ takes the lengths of two strips, which fill the place of an offset, for one: they are made one strip.
        strip = 2 * STRIP if STRIP < height <= 2 * STRIP else STRIP
        # Packed, noise may take more than it does unpacked.
        big = image.width * image.height * image.bands * np.dtype(DEPTHS[str(image.format)]).itemsize > BIG_TIFF
        packed = {"compression": packing} if packing and packing != LOSSLESS else {}
        return {"bigtiff": big, "tile_height": strip} | packed
    options: dict[str, Any] = {"Q": quality} if suffix in LOSSY else {}
    return options | ({"lossless": True, "exact": True} if suffix == ".webp" and packing == LOSSLESS else {})


def _write_array(file: IO[bytes], rows: Iterable[np.ndarray], shape: tuple[int, ...], dtype: np.dtype) -> None:
    header = {"descr": np.lib.format.dtype_to_descr(dtype), "fortran_order": False, "shape": shape}
    np.lib.format.write_array_header_2_0(file, header)
    for part in rows:
        file.write(np.ascontiguousarray(part).data)


def _with_metadata(image: pyvips.Image, like: Photo, height: int, encoding: Encoding) -> pyvips.Image:
    if (header := like.header) is None:
        return image
    if like.alpha:
        again = load(like.path, only_pixels=True, **({"n": -1} if like.pages > 1 else {}))
        image = image.bandjoin(again[again.bands - 1])
    # libvips takes 25 dpi if a file says nothing, and complains on standard error about what no scanner has.
    told = like.kept.resolution or (UNKNOWN_RESOLUTION, UNKNOWN_RESOLUTION)
    xres, yres = (value if value <= MAX_RESOLUTION else UNKNOWN_RESOLUTION for value in told)
    image = image.copy(interpretation=header.interpretation, xres=xres, yres=yres)
    for field, kind in KEPT.items():
        if header.get_typeof(field) and (encoding.private or field not in PRIVATE):
            image.set_type(kind, field, header.get(field))
    if like.pages > 1:
        image.set_type(pyvips.GValue.gint_type, "page-height", height)
    return image
