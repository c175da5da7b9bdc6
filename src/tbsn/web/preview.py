"""What the eye is shown of a photo and its result: pictures of 8 bits, whatever the depth, one pixel for one."""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyvips

from tbsn import formats, tiff
from tbsn.errors import InputError
from tbsn.images import MAX_CHANNELS
from tbsn.scale import bits_used

SIDE, OVERVIEW_SIDE = 1600, 400
MAX_MEGAPIXELS = 100
LOADERS = ("PNG", "JPEG", "TIFF", "WebP")
ELSEWHERE = "denoise it with `tbsn denoise`"


@dataclass(frozen=True)
class Window:
    """A part of a photo: where it begins, its size, and the size of the whole, in pixels as the photo is seen."""

    left: int
    top: int
    width: int
    height: int
    whole_width: int
    whole_height: int


def restrict() -> None:
    """Let libvips decode the formats of photos alone, in this process: it knows dozens that strangers could send."""
    pyvips.operation_block_set("VipsForeignLoad", True)
    for name in LOADERS:
        pyvips.operation_block_set(f"VipsForeignLoad{name.capitalize()}", False)


def check(path: Path) -> None:
    """Raises `InputError` for a file of another format than those of photos, and for one that claims, in its header,
    more pixels on all its pages than there is time and memory to spare for.
    """
    kind = formats.of(path)
    if kind not in LOADERS or path.suffix.lower() in formats.RAW_SUFFIXES or (kind == "TIFF" and tiff.is_raw(path)):
        raise InputError(path, f"is no photo in {', '.join(LOADERS)}", ELSEWHERE)
    try:
        image = pyvips.Image.new_from_file(str(path))
    except pyvips.Error:
        return  # why it cannot be read is told by who reads it
    pages = image.get_n_pages()
    if image.width * image.height * pages > MAX_MEGAPIXELS * 1_000_000:
        several = f"{pages} pages of " if pages > 1 else ""
        reason = f"claims {several}{image.width}x{image.height} pixels, over {MAX_MEGAPIXELS} million"
        raise InputError(path, reason, f"{ELSEWHERE}, or cut it")


def show(before: Path, after: Path, folder: Path, x: float = 0.5, y: float = 0.5) -> Window:
    """Write ``before.png`` and ``after.png``, the same window of two photos around a point, ``x`` and ``y`` in [0, 1].

    A reduced picture hides noise, and a whole one can be hundreds of megabytes: a window has at most SIDE pixels a
    side. ``overview.jpg`` is all of ``after``, small. Floats outside [0, 1] are shown from the least to the greatest.
    """
    noisy, denoised = (pyvips.Image.new_from_file(str(path)).autorot() for path in (before, after))
    low, high = _range(noisy)
    width, height = min(SIDE, noisy.width), min(SIDE, noisy.height)
    left = round(min(max(x * noisy.width - width / 2, 0), noisy.width - width))
    top = round(min(max(y * noisy.height - height / 2, 0), noisy.height - height))
    for name, image in (("before", noisy), ("after", denoised)):
        part = _visible(image, low, high).crop(left, top, width, height)
        part.write_to_file(str(folder / f"{name}.png"), compression=1, keep="icc")
    small = _visible(denoised, low, high).thumbnail_image(OVERVIEW_SIDE)
    small.write_to_file(str(folder / "overview.jpg"), keep="icc", background=255)
    return Window(left, top, width, height, noisy.width, noisy.height)


def _range(image: pyvips.Image) -> tuple[float, float]:
    """What is shown black, and what white: of the colours, of which alpha is none."""
    if image.hasalpha():
        image = image[: image.bands - 1]
    if image.format != "float":
        dtype = np.dtype({"uchar": np.uint8, "ushort": np.uint16}[str(image.format)])
        return 0, 2 ** bits_used(dtype, [np.array(image.max(), dtype)]) - 1
    low, high = (float(image.stats()(x, 0)[0]) for x in (0, 1))
    return (0, 1) if low >= 0 and high <= 1 else (low, max(high, low + 1e-6))


def _visible(image: pyvips.Image, low: float, high: float) -> pyvips.Image:
    # Of the channels of microscopes and satellites, the first three.
    seen = image[:3] if 4 < image.bands <= MAX_CHANNELS else image
    scale = 255 / (high - low)
    eight_bits = (seen * scale - low * scale).rint().cast("uchar")
    return eight_bits.copy(interpretation="b-w" if seen.bands < 3 else "srgb")
