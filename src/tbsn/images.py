"""Image files, read strictly, whole or row by row."""

import os
import re
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from contextlib import suppress
from dataclasses import dataclass, replace
from functools import cache, partial
from pathlib import Path
from typing import Any

import numpy as np
import pyvips

from tbsn import formats, tags, tiff
from tbsn.errors import InputError, unreadable
from tbsn.formats import CONVERT, CONVERT_NUMBERS, RAW_SUFFIXES
from tbsn.metadata import Metadata, collect, names

SUFFIXES = tuple(suffix for known in formats.SUFFIXES.values() for suffix in known)
MAX_PIXELS = 1 << 30
DEPTHS = {"uchar": np.uint8, "ushort": np.uint16, "float": np.float32}
MAX_CHANNELS = 8
LARGEST = 1e38
FETCHED = 1 << 24  # bytes at a time
# A block of 64 pixels takes at least a bit, and one channel has the blocks for at least a quarter of the pixels.
JPEG_PIXELS_A_BYTE = 8 * 64 * 4
ARITHMETIC = {b"\xc9", b"\xca", b"\xcb"}  # JPEG whose blocks may take less
BITS = "bits-per-sample"
STILLS = "take single images out of it"
# What libjpeg warns of where it cannot decode; markers in the middle of the pixels are from D0 to D7.
MISSING = re.compile("premature end|bad Huffman code|found marker|bytes before marker 0xd[0-7]")
AGAIN = "copy it again from its source, or leave it out"

Rows = Callable[[int, int], np.ndarray]


@dataclass(frozen=True)
class Photo:
    """An image file that is open; nothing of it is decoded yet.

    ``shape`` (h, w, c) is that of one of its ``pages``, without ``alpha``; ``dtype`` any integer or float one. ``rows``
    begins to decode: it gives a function from top and bottom to rows (bottom - top, w, c), to be asked for them in
    order, the pages one after another. The output inherits from ``header``, if there is one, and what is ``kept``.
    ``suffix`` is that of the format. ``flat`` says that a single channel is no axis of its own, in an array;
    ``packing``, how libvips packs it in the same way, if that is without loss.
    """

    path: Path
    shape: tuple[int, int, int]
    dtype: np.dtype
    rows: Callable[[], Rows]
    pages: int = 1
    alpha: bool = False
    header: pyvips.Image | None = None
    suffix: str = ".tif"
    kept: Metadata = Metadata()
    flat: bool = True
    packing: str = ""

    @property
    def no_data(self) -> np.floating | None:
        """The value of floats that stands for none, if the file names one, as GeoTIFF do."""
        named = (page.get(tags.NO_DATA, (0, b""))[1] for page in self.kept.pages[:1])
        with suppress(ValueError), np.errstate(over="ignore"):  # as the least of float64, in a file of float32
            return self.dtype.type(float(next(named, b"").rstrip(b" \0"))) if self.dtype.kind == "f" else None
        return None

    @property
    def pixels(self) -> np.ndarray:
        """The first page, (h, w, c). Raises `InputError` if it is damaged, or not finite."""
        pixels = self.rows()(0, self.shape[0])
        check_values(self.path, pixels)
        return pixels


def raised(error: InputError) -> None:
    """Raise it."""
    raise error


def find(
    inputs: Iterable[Path], recursive: bool = True, failed: Callable[[InputError], None] = raised
) -> Iterator[Path]:
    """Image files and links that lead nowhere, among the inputs and in folders among them, hidden ones left out.

    ``failed`` is told of folders that cannot be read.
    """

    def cannot_walk(error: OSError) -> None:
        if not isinstance(error, FileNotFoundError):  # it is gone since
            failed(unreadable(error.filename, error))

    for entry in inputs:
        if os.path.isdir(entry):
            for path in _walked(entry, recursive, cannot_walk):
                known = path.suffix.lower() in SUFFIXES + RAW_SUFFIXES
                if known and (os.path.isfile(path) or not os.path.exists(path)):
                    yield path
        else:
            yield entry


def left_out(inputs: Iterable[Path], recursive: bool = True) -> Counter[str]:
    """How many files in folders among the inputs are of the formats that `find` passes over, by their suffixes."""
    walked = (path for entry in inputs for path in _walked(entry, recursive, lambda error: None))
    return Counter(path.suffix.lower() for path in walked if path.suffix.lower() in formats.FOREIGN)


def _walked(root: Path, recursive: bool, failed: Callable[[OSError], None]) -> Iterator[Path]:
    """What is in a folder, in order, but for what is hidden; nothing if it is none."""
    for folder, subfolders, files in os.walk(root, onerror=failed):
        subfolders[:] = sorted(name for name in subfolders if recursive and not name.startswith("."))
        yield from (Path(folder, name) for name in sorted(files) if not name.startswith("."))


def read(path: Path, channels: int = 3) -> Photo:
    """Decode a file of one image. Raises `InputError` as `open_photo` does, and if it is not whole or finite."""
    photo = open_photo(path, channels)
    if photo.pages > 1:
        raise InputError(path, f"holds {photo.pages} pages", tiff.SPLIT)
    pixels = photo.pixels
    return replace(photo, rows=lambda: lambda top, bottom: pixels[top:bottom])


def open_photo(path: Path, channels: int = 3) -> Photo:
    """Open a PNG, JPEG, TIFF, WebP or NumPy file, known by its content, or a RAW file, known by its name or tags.

    Two or four channels are grey or RGB with alpha, unless just so many ``channels`` are expected, or the file says
    that it has no colour. Raises `InputError` for a missing, empty, damaged or non-image file, one of more than 8
    channels, in another colour space, or of a depth other than 8, 16 or float 32 bits.
    """
    if not os.path.isfile(path):
        raise InputError(path, "not a file" if os.path.exists(path) else "no such file", "check the name")
    if path.stat().st_size == 0:
        raise InputError(path, "the file is empty", "copy it again from its source")
    if path.suffix.lower() in RAW_SUFFIXES:
        return _develop(path)
    kind = formats.of(path)
    if kind == "NumPy":
        return _open_array(path)
    if kind == "TIFF" and tiff.is_raw(path):
        return _develop(path)
    stored = tiff.read(path) if kind == "TIFF" else []
    tiff.check(path, stored)
    if kind == "TIFF":
        tiff.check_pieces(path, len(stored))
    image, suffix, pages = load(path), formats.SUFFIXES[kind][0], 1
    _check(path, image)
    if len(stored) > 1:
        image = load(path, n=-1)
        pages = image.height // image.get_page_height()
    kept = collect(path)
    if tiff.is_restored(stored):
        kept, image = kept.without_description(), image.copy()
        image.remove("image-description")
    alpha = _has_alpha(image, channels) and (kind != "TIFF" or tiff.has_alpha(stored))
    shape = image.height // pages, image.width, image.bands - alpha
    rows = partial(_rows, path, shape[2], {"n": -1} if pages > 1 else {})
    packing = "lossless" if kind == "WebP" and b"VP8L" in names(path) else tiff.packing(stored)
    dtype = np.dtype(DEPTHS[str(image.format)])
    return Photo(path, shape, dtype, rows, pages, alpha, image, suffix, kept, packing=packing)


def _rows(path: Path, channels: int, options: dict[str, Any]) -> Rows:
    # Unless it is to fail on warnings, libvips takes for grey what is missing in a JPEG. But not all are of damage.
    strict = {"fail_on": "warning"} if formats.of(path) == "JPEG" else {}
    fetch = _fetched(path, channels, options | strict)

    def read(top: int, bottom: int) -> np.ndarray:
        nonlocal fetch
        try:
            return fetch(top, bottom)
        except InputError as error:
            if not strict or MISSING.search(str(error)):
                raise
            fetch = _fetched(path, channels, options)
            return fetch(top, bottom)

    return read


def _fetched(path: Path, channels: int, options: dict[str, Any]) -> Rows:
    @cache
    def begun() -> tuple[pyvips.Image, pyvips.Region]:
        image = load(path, only_pixels=True, **options)
        return image, pyvips.Region.new(image)

    def fetch(top: int, bottom: int) -> np.ndarray:
        image, region = begun()
        width, bands, dtype = image.width, image.bands, np.dtype(DEPTHS[str(image.format)])
        # Little by little: what a header claims takes no memory before it is there.
        step = max(1, FETCHED // (width * bands * dtype.itemsize))
        try:
            parts = [region.fetch(0, y, width, min(step, bottom - y)) for y in range(top, bottom, step)]
        except pyvips.Error as error:
            raise InputError(path, reason(error), AGAIN) from error
        data = parts[0] if len(parts) == 1 else b"".join(parts)
        return np.frombuffer(data, dtype).reshape(-1, width, bands)[..., :channels]

    return fetch


def load(path: Path, only_pixels: bool = False, **options: Any) -> pyvips.Image:
    """Open a file with libvips, to be decoded from top to bottom. Raises `InputError`.

    By the loader of its format, since libvips has others, for what no photo is; by descriptor, since it takes a name
    apart (``a[page=1].png``), wants it in UTF-8, and remembers what was in it. Where ``only_pixels`` matter, whatever
    else a TIFF file says does not stand in the way.
    """
    kind = formats.of(path)
    loader = getattr(pyvips.Image, f"{kind.lower()}load_source")
    try:
        with path.open("rb") as file:
            if kind == "TIFF" and only_pixels:
                return tiff.pixels(path, **options)
            source = pyvips.Source.new_from_descriptor(file.fileno())
            return loader(source, **({"access": "sequential", "fail_on": "error"} | options))
    except pyvips.Error as error:
        if "differs from page" in str(error):
            raise InputError(path, "holds pages that are stored in different ways", tiff.SPLIT) from error
        raise InputError(path, reason(error), AGAIN) from error
    except OSError as error:
        raise unreadable(path, error) from error


def _has_alpha(image: pyvips.Image, channels: int) -> bool:
    coloured = image.bands == 2 or image.interpretation not in ("b-w", "grey16")
    return image.bands in (2, 4) and coloured and image.bands != channels


def _open_array(path: Path) -> Photo:
    try:
        array = np.load(path, mmap_mode="r", allow_pickle=False)
    except (ValueError, OSError, EOFError) as error:
        raise InputError(path, f"not a NumPy file ({error})", "write it with numpy.save, no objects") from error
    if array.ndim not in (2, 3) or 0 in array.shape or array.dtype.kind not in "iuf":
        reason = f"holds an array {array.shape} of {array.dtype}"
        raise InputError(path, reason, "give integers or floats (h, w) or (h, w, c)")
    height, width, channels = (*array.shape, 1)[:3]
    if channels > MAX_CHANNELS:
        remedy = f"give (h, w) or (h, w, c) of at most {MAX_CHANNELS} channels; of a stack, plane by plane"
        raise InputError(path, f"holds an array {array.shape}", remedy)
    whole = array.reshape(height, width, channels)
    rows = partial(_copied, whole)
    return Photo(path, whole.shape, array.dtype, lambda: rows, suffix=".npy", flat=array.ndim == 2)


def _copied(array: np.ndarray, top: int, bottom: int) -> np.ndarray:
    return np.array(array[top:bottom])


def _develop(path: Path) -> Photo:
    """A RAW file, developed to 16-bit sRGB with the camera's white balance, no brightening."""
    try:
        import rawpy
    except ImportError as error:
        raise InputError(path, "RAW files need rawpy", "pip install 'tbsn[raw]'") from error
    try:
        with rawpy.imread(os.fspath(path)) as raw:
            pixels = raw.postprocess(output_bps=16, use_camera_wb=True, no_auto_bright=True)
    except rawpy.LibRawError as error:
        raise InputError(path, f"not a RAW file, or damaged ({error})", AGAIN) from error
    return Photo(path, pixels.shape, pixels.dtype, lambda: lambda top, bottom: pixels[top:bottom])


def check_values(name: object, pixels: np.ndarray, keep: bool = False, remedy: str = "replace them by others") -> None:
    """Raises `InputError`, with the ``remedy``, for NaN and infinite values unless they are to ``keep``, and for floats
    that float32, which networks compute in, does not hold.
    """
    if pixels.dtype.kind != "f":
        return
    values = pixels[np.isfinite(pixels)] if keep else pixels
    low, high = values.min(initial=0), values.max(initial=0)
    if not (np.isfinite(low) and np.isfinite(high)):
        raise InputError(name, "has NaN or infinite values", remedy)
    if max(-float(low), float(high)) > LARGEST:
        raise InputError(name, f"has values beyond {LARGEST:g}", "scale or replace them")


def check_range(name: object, pixels: np.ndarray) -> None:
    """Raises `InputError` for floats that are not in [0, 1], and integers below 0: 16 bits would cut them off."""
    low, high = pixels.min(), pixels.max()
    if pixels.dtype.kind == "f" and not (low >= 0 and high <= 1):
        raise InputError(name, f"has values from {low:g} to {high:g}", "scale floats to 0 to 1, all images alike")
    if low < 0:
        raise InputError(name, "has values below 0", "add the same to all images, so that none is")


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
    frames = image.get_n_pages()
    if formats.of(path) == "WebP" and frames > 1:
        raise InputError(path, f"holds {frames} pages, an animation", STILLS)
    if formats.of(path) == "PNG" and b"acTL" in names(path):
        raise InputError(path, "is an animation", STILLS)
    dense = image.width * image.height > JPEG_PIXELS_A_BYTE * path.stat().st_size
    if dense and formats.of(path) == "JPEG" and not ARITHMETIC & names(path):
        raise InputError(path, f"damaged (claims {image.width}x{image.height} pixels, and holds few)", AGAIN)
    if image.get_typeof(BITS) and image.get(BITS) == 1:
        raise InputError(path, "has 1 bit a pixel: two colours alone", CONVERT)
    if image.interpretation in ("cmyk", "lab", "labs", "xyz", "hsv", "lch") or image.bands > MAX_CHANNELS:
        raise InputError(path, f"is {image.interpretation} with {image.bands} channels", CONVERT)
    if image.format not in DEPTHS:
        raise InputError(path, f"has pixels of type {image.format}", CONVERT_NUMBERS)


def reason(error: pyvips.Error) -> str:
    """The last line that libvips said, without its stack of names."""
    lines = [line for line in str(error.detail if hasattr(error, "detail") else error).splitlines() if line.strip()]
    said = f" ({lines[-1]})" if lines else ""
    return "not a readable image" if "known format" in said else f"damaged or unreadable{said}"
