"""What a file is, by its first bytes. libvips would also take what no photo is, from SVG to tables of numbers."""

import os
from pathlib import Path

from numpy.lib.format import MAGIC_PREFIX

from tbsn.errors import InputError

SUFFIXES = {
    "PNG": (".png",),
    "JPEG": (".jpg", ".jpeg", ".jpe", ".jfif"),
    "TIFF": (".tif", ".tiff"),
    "WebP": (".webp",),
    "NumPy": (".npy",),
}
"""The formats that are read and written, and how their files are named."""
RAW_SUFFIXES = (".arw", ".cr2", ".cr3", ".dng", ".nef", ".nrw", ".orf", ".pef", ".raf", ".rw2")
CONVERT = "convert it to 8- or 16-bit grey or RGB"
CONVERT_NUMBERS = "convert it to 8 or 16 bits without a sign, or float32, or save it as .npy"

FOREIGN = (".gif", ".bmp", ".heic", ".heif", ".avif", ".jxl", ".jp2", ".psd", ".pdf", ".svg", ".ppm", ".pgm", ".tga")
FOREIGN += (".3fr", ".btf", ".czi", ".exr", ".lif", ".lsm", ".nd2", ".npz", ".oib", ".rwl", ".srw", ".x3f")
"""How files of other formats are named, none of which is written."""

OME = ".ome"

STARTS = (
    (0, b"\x89PNG\r\n\x1a\n", "PNG"),
    (0, b"\xff\xd8\xff", "JPEG"),
    (0, b"II*\0", "TIFF"),
    (0, b"MM\0*", "TIFF"),
    (0, b"II+\0", "TIFF"),
    (0, b"MM\0+", "TIFF"),
    (8, b"WEBP", "WebP"),
    (0, MAGIC_PREFIX, "NumPy"),
    (0, b"GIF8", "GIF"),
    (0, b"BM", "BMP"),
    (0, b"%PDF", "PDF"),
    (0, b"8BPS", "PSD"),
    (4, b"ftypavif", "AVIF"),
    (4, b"ftyphe", "HEIF"),
    (4, b"ftypmif1", "HEIF"),
    (4, b"JXL ", "JPEG XL"),
    (0, b"\xff\x0a", "JPEG XL"),
    (4, b"jP  ", "JPEG 2000"),
)
LONGEST = 16


def name(head: bytes) -> str:
    """The name of the format of a file that begins with these 16 bytes; nothing if it is not known."""
    known = (name for at, start, name in STARTS if head[at:].startswith(start))
    return next(known, "HTML or SVG" if head.lstrip().startswith(b"<") else "")


def of(path: Path) -> str:
    """The format of a file, one of `SUFFIXES`. Raises `InputError` if it is another, or cannot be read."""
    try:
        with path.open("rb") as file:
            found = name(file.read(LONGEST))
    except OSError as error:
        raise InputError(path, f"cannot be read ({error.strerror})", "check its name and permissions") from error
    if not found:
        remedy = f"copy it again from its source, or convert it to {', '.join(SUFFIXES)}"
        raise InputError(path, "not a readable image", remedy)
    if found not in SUFFIXES:
        raise InputError(path, f"is {found}", f"convert it to {', '.join(SUFFIXES)}")
    return found


def suffix(path: Path) -> str:
    """That of a file if it is one of its format, else one that is; of RAW files, and of what is no image, its own."""
    own = path.suffix.lower()
    try:
        known = (own,) if own in RAW_SUFFIXES or not os.path.isfile(path) else SUFFIXES[of(path)]
    except InputError:  # it will be told when the file is opened
        known = (own,)
    return path.suffix if own in known else known[0]


def stem(path: Path) -> tuple[str, str]:
    """The name of a file without its suffix, and ``.ome`` if that is ``.ome.tif``, by which OME-TIFF is known."""
    ome = path.stem[-len(OME) :]
    known = ome.lower() == OME and path.suffix.lower() in SUFFIXES["TIFF"]
    return (path.stem.removesuffix(ome), ome) if known else (path.stem, "")


def misnamed(path: Path) -> str:
    """One line for a file that was read by its content though it is named otherwise; nothing if all is well."""
    if suffix(path) == path.suffix:
        return ""
    return f"{path}: is {of(path)}, though named {path.suffix or 'without a suffix'}"
