"""Fuzz the reader and the writer of metadata: any bytes are a photo, or bad input that says so in one line.

    python fuzz/read.py -max_total_time=120

Whatever libFuzzer takes can be given. A file that breaks the rule stays, as `build/fuzz/read-crash-*`, and is printed
as text, for where files do not outlive the run.
"""

import base64
import logging
import sys
import tempfile
import zlib
from pathlib import Path

import atheris

with atheris.instrument_imports(include=["tbsn"]):
    from tbsn import encoding, formats, images, metadata, tags  # noqa: F401 (the last two are instrumented)
    from tbsn.errors import InputError

import numpy as np
import pyvips

from structure import mutate

SUFFIXES = {"PNG": ".png", "JPEG": ".jpg", "TIFF": ".tif", "WebP": ".webp"}
OPTIONS = {
    ".png": ({}, {"interlace": True}, {"palette": True}),
    ".jpg": ({}, {"interlace": True}),
    ".tif": ({}, {"tile": True, "compression": "deflate"}, {"compression": "lzw"}, {"bigtiff": True}),
    ".webp": ({}, {"lossless": True}),
}
MOST_PIXELS = 1 << 20


def seeds(folder: Path) -> None:
    """Small files of every kind, whole and cut short."""
    pixels = (np.arange(12 * 9 * 4) % 251).reshape(12, 9, 4)
    made = 0
    for suffix, options in OPTIONS.items():
        deep = {".png": [np.uint8, np.uint16], ".tif": [np.uint8, np.uint16, np.float32]}.get(suffix, [np.uint8])
        for dtype in deep:
            for bands in (1, 3, 4):
                meaning = ("b-w" if bands == 1 else "srgb") if dtype is not np.uint16 else "rgb16"
                for option in options:
                    image = pyvips.Image.new_from_array(pixels[..., :bands].astype(dtype), interpretation=meaning)
                    image.set_type(pyvips.GValue.blob_type, "xmp-data", b"<x/>")
                    whole = image.write_to_buffer(suffix, **option)
                    (folder / str(made)).write_bytes(whole)
                    (folder / f"{made}-cut").write_bytes(whole[: len(whole) * 2 // 3])
                    made += 1


def check(path: Path, output: Path) -> None:
    """What holds for any file."""
    try:
        photo = images.read(path)
        pixels = photo.pixels
    except InputError as error:
        assert "\n" not in str(error) and "; " in str(error), error
        return
    assert pixels.ndim == 3 and pixels.size and pixels.dtype in (np.uint8, np.uint16, np.float32), pixels.dtype
    assert pixels.dtype != np.float32 or np.isfinite(pixels).all()
    written = output.with_suffix(SUFFIXES[formats.of(path)])
    try:
        encoding.write(written, pixels, photo)
    except InputError:
        return
    again = images.read(written)
    assert again.pixels.shape == pixels.shape
    if written.suffix in (".png", ".tif"):
        assert np.array_equal(again.pixels, pixels)
    if written.suffix != ".tif":
        assert again.kept == photo.kept


def main() -> None:
    logging.disable()
    pyvips.cache_set_max(0)
    images.MAX_PIXELS = MOST_PIXELS
    Path("build/fuzz").mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        (folder / "corpus").mkdir()
        seeds(folder / "corpus")

        def one(data: bytes) -> None:
            (folder / "file").write_bytes(data)
            try:
                check(folder / "file", folder / "output")
            except Exception:
                print("zlib, base 85:", base64.b85encode(zlib.compress(data)).decode(), file=sys.stderr)
                raise

        limits = ["-rss_limit_mb=2048", "-timeout=20", "-max_len=20000", "-artifact_prefix=build/fuzz/read-"]
        atheris.Setup(
            [sys.argv[0], *limits, *sys.argv[1:], str(folder / "corpus")],
            one,
            custom_mutator=lambda data, most, seed: mutate(data, most, seed, atheris.Mutate),
        )
        atheris.Fuzz()


if __name__ == "__main__":
    main()
