"""The one file that knows image formats: strict reading, atomic writing, metadata kept."""

import os
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyvips

from tbsn import formats, metadata
from tbsn.errors import InputError
from tbsn.files import atomic

SUFFIXES = (".png", ".jpg", ".jpeg", ".tif", ".tiff", ".webp")
MAX_PIXELS = 1 << 30
KEPT_BLOBS = ("icc-profile-data", "exif-data", "xmp-data", "iptc-data")
DEPTHS = {"uchar": np.uint8, "ushort": np.uint16, "float": np.float32}
MAX_CHANNELS = 8
MAX_RESOLUTION = 1e6
CONVERT = "convert it to 8- or 16-bit grey or RGB"


@dataclass(frozen=True)
class Photo:
    """A decoded image file: ``pixels`` (h, w, c) uint8, uint16 or float32, and what to carry to the output."""

    pixels: np.ndarray
    alpha: np.ndarray | None
    header: pyvips.Image
    kept: metadata.Metadata


def find(inputs: Iterable[Path]) -> Iterator[Path]:
    """Image files among the inputs; folders are searched recursively, hidden files left out."""
    for entry in inputs:
        if os.path.isdir(entry):
            for folder, subfolders, names in os.walk(entry):
                subfolders.sort()
                for path in map(Path(folder).joinpath, sorted(names)):
                    if path.suffix.lower() in SUFFIXES and not path.name.startswith(".") and path.is_file():
                        yield path
        else:
            yield entry


def read(path: Path, channels: int = 3) -> Photo:
    """Decode a PNG, JPEG, TIFF or WebP file, by its content, whole or not at all.

    Two or four channels are grey or RGB with alpha, unless just so many ``channels`` are expected, or the file says
    that it has no colour. Raises `InputError` for a missing, empty, damaged or non-image file, one of more than 8
    channels, in another colour space, or of a depth other than 8, 16 or float 32 bits, and NaN or infinite values.
    """
    if not os.path.isfile(path):
        raise InputError(path, "not a file" if os.path.exists(path) else "no such file", "check the name")
    if path.stat().st_size == 0:
        raise InputError(path, "the file is empty", "copy it again from its source")
    try:
        image = _load(path)
        _check(path, image)
        array = image.numpy()
        kept = metadata.collect(path)
    except pyvips.Error as error:
        raise InputError(path, _reason(error), "copy it again from its source, or leave it out") from error
    except OSError as error:
        raise InputError(path, f"cannot be read ({error.strerror})", "check its name and permissions") from error
    array = array.reshape(image.height, image.width, image.bands)
    if array.dtype == np.float32 and not np.isfinite(array).all():
        raise InputError(path, "has NaN or infinite values", "replace them by finite ones")
    coloured = image.bands == 2 or image.interpretation not in ("b-w", "grey16")
    if image.bands in (2, 4) and coloured and image.bands != channels:
        return Photo(array[..., :-1], array[..., -1:], image, kept)
    return Photo(array, None, image, kept)


def _load(path: Path) -> pyvips.Image:
    """By the loader of the format, since libvips has others, for what no photo is; by descriptor, since it takes a name
    apart (``a[page=1].png``), wants it in UTF-8, and remembers what was in it."""
    load = getattr(pyvips.Image, f"{formats.of(path).lower()}load_source")
    with path.open("rb") as file:
        return load(pyvips.Source.new_from_descriptor(file.fileno()), access="sequential", fail_on="error")


def write(path: Path, pixels: np.ndarray, like: Photo | None = None) -> None:
    """Write ``pixels`` (h, w, c), with the alpha and the metadata of ``like``, whose depth they have.

    The format follows the suffix of ``path``. The file appears whole or not at all. Raises `InputError` if it cannot be
    written, or the format does not hold the depth.
    """
    if path.suffix.lower() not in SUFFIXES:
        raise InputError(path, "unknown image format", f"use one of {' '.join(SUFFIXES)}")
    if pixels.dtype != np.uint8 and path.suffix.lower() in (".jpg", ".jpeg", ".webp"):
        raise InputError(path, f"{path.suffix} cannot hold {pixels.dtype} pixels", "write .png or .tif")
    if pixels.dtype == np.float32 and path.suffix.lower() == ".png":
        raise InputError(path, ".png cannot hold float pixels", "write .tif")
    image = _with_metadata(pixels, like) if like else pyvips.Image.new_from_array(np.ascontiguousarray(pixels))
    options = {"Q": 95} if path.suffix.lower() in (".jpg", ".jpeg", ".webp") else {}
    with atomic(path) as partial:
        try:
            with partial.open("r+b") as file:
                target = pyvips.Target.new_to_descriptor(file.fileno())
                image.write_to_target(target, path.suffix.lower(), **options)
            if like:
                metadata.put(partial, like.kept)
        except pyvips.Error as error:
            raise InputError(path, _reason(error), "choose another output with -o") from error
        except OSError as error:
            raise InputError(path, f"cannot be written ({error.strerror})", "choose another output with -o") from error


def _with_metadata(pixels: np.ndarray, like: Photo) -> pyvips.Image:
    whole = pixels if like.alpha is None else np.concatenate([pixels, like.alpha], axis=-1)
    header = like.header
    image = pyvips.Image.new_from_array(np.ascontiguousarray(whole), interpretation=header.interpretation)
    # A resolution that libvips reads but does not write is none, and would be complained of on standard error.
    xres, yres = (value if 0 <= value <= MAX_RESOLUTION else 1.0 for value in (header.xres, header.yres))
    image = image.copy(xres=xres, yres=yres)
    # Field by field: among the names of all fields can be texts that are not UTF-8.
    for field in (field for field in KEPT_BLOBS if header.get_typeof(field)):
        image.set_type(pyvips.GValue.blob_type, field, header.get(field))
    if header.get_typeof("orientation"):
        image.set_type(pyvips.GValue.gint_type, "orientation", header.get("orientation"))
    return image


def unit_range(name: object, values: np.ndarray) -> None:
    """Raises `InputError` for floats that are not in [0, 1]: a depth of 16 bits would cut them off."""
    low, high = values.min(), values.max()
    if not (low >= 0 and high <= 1):
        raise InputError(name, f"has values from {low:g} to {high:g}", "scale floats to 0 to 1, all images alike")


def to_float(pixels: np.ndarray) -> np.ndarray:
    """Any integer or float pixels as float32, the full range of an integer depth mapped to [0, 1]."""
    scale = np.iinfo(pixels.dtype).max if np.issubdtype(pixels.dtype, np.integer) else 1
    return (pixels / np.float32(scale)).astype(np.float32, copy=False)


def from_float(values: np.ndarray, dtype: np.dtype) -> np.ndarray:
    """The inverse of `to_float`: rounded half up and clipped for integers, as it is for floats."""
    if not np.issubdtype(dtype, np.integer):
        return values.astype(dtype)
    top = np.iinfo(dtype).max
    return np.clip(np.floor(values * np.float64(top) + 0.5), 0, top).astype(dtype)


def _check(path: Path, image: pyvips.Image) -> None:
    if image.width * image.height > MAX_PIXELS:
        raise InputError(path, f"claims {image.width}x{image.height} pixels", "cut it to under 2^30 pixels")
    if image.interpretation in ("cmyk", "lab", "labs", "xyz", "hsv", "lch") or image.bands > MAX_CHANNELS:
        raise InputError(path, f"is {image.interpretation} with {image.bands} channels", CONVERT)
    if image.format not in DEPTHS:
        raise InputError(path, f"has pixels of type {image.format}", CONVERT)
    if image.get_typeof("n-pages") and int(str(image.get("n-pages"))) > 1:
        raise InputError(path, f"holds {image.get('n-pages')} pages", "split it into single images")


def _reason(error: pyvips.Error) -> str:
    """The last line that libvips said, without its stack of names."""
    lines = [line for line in str(error.detail if hasattr(error, "detail") else error).splitlines() if line.strip()]
    said = lines[-1] if lines else "unknown error"
    return "not a readable image" if "is not a known file format" in said else f"damaged or unreadable ({said})"
