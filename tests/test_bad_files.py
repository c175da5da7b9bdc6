"""Whatever files a user hands over: one line for what cannot be used, and all of the rest denoised."""

import re
import struct
import zlib
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import pyvips
import tifffile
from PIL import Image

from conftest import EXAMPLES, SUFFIXES, Command, child, chunk, outputs, save
from tbsn import formats, images, tags
from tbsn.encoding import write
from tbsn.errors import InputError


def test_files_cut_short_anywhere_are_refused_and_the_rest_goes_on(
    tmp_path: Path, denoise: Command, small: Path, identity: Path
) -> None:
    (tmp_path / "whole").mkdir()
    image = pyvips.Image.new_from_file(str(EXAMPLES / "01_14.png"))
    for suffix in SUFFIXES:
        image.write_to_file(str(tmp_path / "whole" / f"plain{suffix}"))
    image.write_to_file(str(tmp_path / "whole" / "other.png"), interlace=True)
    image.write_to_file(str(tmp_path / "whole" / "other.jpg"), interlace=True)
    image.write_to_file(str(tmp_path / "whole" / "other.webp"), lossless=True)
    image.write_to_file(str(tmp_path / "whole" / "tiled.tif"), tile=True, compression="deflate")
    tifffile.imwrite(tmp_path / "whole" / "directory_first.tif", image.numpy(), photometric="rgb")
    bad = []
    for path in sorted((tmp_path / "whole").iterdir()):
        whole = path.read_bytes()
        for length in (*(len(whole) * tenth // 10 for tenth in range(10)), len(whole) - 1):
            bad.append(tmp_path / f"{length}_{path.name}")
            bad[-1].write_bytes(whole[:length])
    errors = denoise.refused(*bad, tmp_path / "whole", "-o", tmp_path / "out", "--model", identity)
    assert [error["name"] for error in errors] == [str(path) for path in bad]
    assert outputs(tmp_path / "out") == outputs(tmp_path / "whole")


@pytest.mark.parametrize("tile", [False, True])
def test_damage_inside_a_tiff_is_refused(tmp_path: Path, denoise: Command, identity: Path, tile: bool) -> None:
    """Even in a tile, of which libvips makes a black one; what it warns of otherwise is no damage."""
    path, private = tmp_path / "damaged.tif", [(60000, "H", 1, 7, True), (274, "H", 1, 0, True)]
    noise = np.random.default_rng(0).integers(0, 255, (256, 256, 3), np.uint8)
    options = {"compression": "zlib", "photometric": "rgb", "extratags": private, "metadata": None}
    tifffile.imwrite(path, noise, tile=(128, 128) if tile else None, **options)
    assert np.array_equal(images.read(path).pixels, noise)
    whole = bytearray(path.read_bytes())
    whole[len(whole) // 2] ^= 0xFF
    path.write_bytes(whole)
    denoise.refused(path, "-o", tmp_path / "out.tif", "--model", identity)
    assert not (tmp_path / "out.tif").exists()


@pytest.mark.parametrize("options", [{"rowsperstrip": 16}, {"tile": (32, 32)}, {"bigtiff": True}])
def test_no_flipped_bit_in_a_packed_tiff_is_overlooked(tmp_path: Path, options: dict[str, Any]) -> None:
    """libtiff looks at the checksum only if it has not got all pixels before."""
    path, random = tmp_path / "a.tif", np.random.default_rng(0)
    noise = random.integers(120, 136, (64, 64, 3), np.uint8)
    tifffile.imwrite(path, noise, compression="zlib", photometric="rgb", metadata=None, **options)
    assert np.array_equal(images.read(path).pixels, noise)
    whole, refused = path.read_bytes(), 0
    with tifffile.TiffFile(path) as file:
        starts, sizes = file.pages[0].dataoffsets, file.pages[0].databytecounts
    inside = np.concatenate([start + np.arange(size) for start, size in zip(starts, sizes, strict=True)])
    for at in random.choice(inside, 40, replace=False):
        damaged = bytearray(whole)
        damaged[at] ^= 1 << random.integers(8)
        path.write_bytes(damaged)
        try:
            assert np.array_equal(images.read(path).pixels, noise)  # some bits say nothing
        except InputError as error:
            assert "damaged" in str(error)
            refused += 1
    assert refused > 30


def test_damage_in_a_jpeg_inside_a_tiff_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "a.tif"
    Image.open(EXAMPLES / "01_14.png").convert("RGB").save(path, compression="jpeg")
    assert images.read(path).pixels.shape == (256, 256, 3)
    whole = bytearray(path.read_bytes())
    with tifffile.TiffFile(path) as file:
        ends = file.pages[0].dataoffsets[0] + file.pages[0].databytecounts[0]
    whole[ends - 400 : ends] = bytes(400)
    path.write_bytes(whole)
    with pytest.raises(InputError, match="damaged"):
        images.read(path)


def test_a_flipped_bit_in_any_checksum_of_a_png_is_damage(
    tmp_path: Path, denoise: Command, small: Path, identity: Path
) -> None:
    whole = small.read_bytes()
    whole = whole[:33] + chunk(b"tEXt", b"Comment\0text") + whole[33:]
    at, bad = 8, []
    while at < len(whole):
        end = at + 12 + struct.unpack(">I", whole[at : at + 4])[0]
        bad.append(tmp_path / f"bad{at}.png")
        bad[-1].write_bytes(whole[: end - 1] + bytes([whole[end - 1] ^ 1]) + whole[end:])
        at = end
    assert len(denoise.refused(*bad, "-o", tmp_path / "out", "--model", identity)) == len(bad) > 3
    assert not outputs(tmp_path / "out")


def test_what_is_no_photo_is_refused_by_its_content(
    tmp_path: Path, denoise: Command, small: Path, identity: Path
) -> None:
    frames = [Image.new("RGB", (8, 8), colour) for colour in ("red", "blue")]
    svg = '<svg xmlns="http://www.w3.org/2000/svg" width="9" height="9"/>'
    (tmp_path / "page.png").write_text("<!doctype html><p>404</p>")
    (tmp_path / "drawing.png").write_text(svg)
    (tmp_path / "xml.png").write_text(f'<?xml version="1.0"?>\n{svg}')
    (tmp_path / "pdf.png").write_bytes(b"%PDF-1.4\n%%EOF\n")
    (tmp_path / "table.png").write_text("1 2 3\n4 5 6\n")
    (tmp_path / "map.png").write_bytes(b"P6 1 1 255 abc")
    pyvips.Image.black(9, 9).write_to_file(str(tmp_path / "native.v"))
    (tmp_path / "native.v").rename(tmp_path / "native.png")
    frames[0].save(tmp_path / "moving.gif.png", "GIF", save_all=True, append_images=frames[1:])
    frames[0].save(tmp_path / "moving.webp", save_all=True, append_images=frames[1:])
    frames[0].save(tmp_path / "bitmap.png", "BMP")
    frames[0].save(tmp_path / "heif.png", "AVIF")
    for number, value in enumerate((np.nan, np.inf, -np.inf)):
        pixels = np.zeros((9, 9, 3), np.float32)
        pixels[4, 4, 1] = value
        save(tmp_path / f"not_finite{number}.tif", pixels)
    bad = sorted({*tmp_path.iterdir()} - {small, identity})
    errors = denoise.refused(*bad, small, "-o", tmp_path / "out", "--model", identity)
    assert [Path(error["name"]) for error in errors] == bad
    reasons = {Path(error["name"]).name: error["reason"] for error in errors}
    assert reasons["moving.gif.png"] == "is GIF" and "2 pages" in reasons["moving.webp"]
    assert reasons["drawing.png"] == reasons["xml.png"] == reasons["page.png"] == "is HTML or SVG"
    assert reasons["pdf.png"] == "is PDF" and "NaN" in reasons["not_finite1.tif"]
    assert outputs(tmp_path / "out") == ["small.png"]


def test_what_cannot_be_used_is_called_by_its_name(tmp_path: Path, denoise: Command, identity: Path) -> None:
    pixels = np.zeros((20, 30, 3), np.uint8)
    Image.fromarray(pixels).convert("LAB").save(tmp_path / "lab.tif")
    for kind in ("float64", "float16", "int16", "uint32"):
        tifffile.imwrite(tmp_path / f"{kind}.tif", pixels.astype(kind), photometric="rgb")
    with tifffile.TiffWriter(tmp_path / "sizes.tif") as file:
        file.write(pixels, photometric="rgb")
        file.write(pixels[1:], photometric="rgb")
    frames = [Image.new("RGB", (8, 8), colour) for colour in ("red", "blue")]
    frames[0].save(tmp_path / "moving.png", save_all=True, append_images=frames[1:])
    errors = denoise.refused(*sorted(tmp_path.glob("*.[tp]*")), "-o", tmp_path / "out", "--model", identity)
    said = {Path(error["name"]).name: f"{error['reason']}; {error['remedy']}" for error in errors}
    assert not any("damaged" in line or "copy" in line for line in said.values()), said
    assert "LAB" in said["lab.tif"] and "animation" in said["moving.png"] and "sizes" in said["sizes.tif"]
    assert all("float32" in said[f"{kind}.tif"] for kind in ("float64", "float16", "int16", "uint32"))


def test_a_preview_on_a_page_of_its_own_is_left_out(tmp_path: Path) -> None:
    pixels = np.arange(20 * 30 * 3, dtype=np.uint8).reshape(20, 30, 3)
    with tifffile.TiffWriter(tmp_path / "a.tif") as file:
        file.write(pixels, photometric="rgb")
        file.write(pixels[::2, ::2], photometric="rgb", subfiletype=1)
    photo = images.read(tmp_path / "a.tif")
    write(tmp_path / "b.tif", photo.pixels, photo)
    with tifffile.TiffFile(tmp_path / "b.tif") as file:
        assert len(file.pages) == 1 and np.array_equal(file.asarray(), pixels)


def test_a_wrong_suffix_is_noted(tmp_path: Path, denoise: Command, small: Path, identity: Path) -> None:
    wrong = small.rename(tmp_path / "really.jpg")
    code, said = denoise(wrong, "-o", tmp_path / "out.png", "--model", identity)
    assert code == 0 and said == f"note: {wrong}: is PNG, though named .jpg\n"


@pytest.mark.parametrize(
    ("named", "beside", "inside"),
    [
        ("a.jpg", "a_denoised.png", "a.png"),
        ("a", "a_denoised.png", "a.png"),
        ("a.2024", "a.2024_denoised.png", "a.2024.png"),
        ("A.PNG", "A_denoised.PNG", "A.PNG"),
    ],
)
def test_the_output_has_the_format_that_the_input_is_in(
    tmp_path: Path, denoise: Command, identity: Path, named: str, beside: str, inside: str
) -> None:
    deep = np.arange(1200, dtype=np.uint16).reshape(30, 40)
    pyvips.Image.new_from_array(deep, interpretation="grey16").write_to_file(str(tmp_path / "deep.png"))
    (tmp_path / "deep.png").rename(tmp_path / named)
    for options in ([], ["-o", tmp_path / "out"]):
        code, said = denoise(tmp_path / named, "--model", identity, *options)
        assert code == 0 and said.startswith("note: ") is (named != "A.PNG"), said
    for output in (tmp_path / beside, tmp_path / "out" / inside):
        assert formats.of(output) == "PNG" and np.array_equal(images.read(output).pixels[..., 0], deep)


def test_a_small_file_that_claims_to_be_huge_takes_no_memory(tmp_path: Path) -> None:
    """60,000x60,000 pixels would be 10 GB."""
    side = 60000
    head = struct.pack(">IIBBBBB", side, side, 8, 2, 0, 0, 0)
    png = b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", head) + chunk(b"IDAT", zlib.compress(bytes(900))) + chunk(b"IEND", b"")
    (tmp_path / "huge.png").write_bytes(png)
    Image.new("RGB", (16, 16)).save(tmp_path / "huge.jpg")
    jpeg = (tmp_path / "huge.jpg").read_bytes()
    (tmp_path / "huge.jpg").write_bytes(
        re.sub(rb"(\xff\xc0\0\x11\x08)....", rb"\1" + struct.pack(">HH", side, side), jpeg)
    )
    tifffile.imwrite(tmp_path / "huge.tif", np.zeros((16, 16, 3), np.uint8), photometric="rgb")
    tiff = bytearray((tmp_path / "huge.tif").read_bytes())
    for tag in (256, 257):
        at = tiff.index(
            struct.pack("<HHI", tag, 4, 1) if struct.pack("<HHI", tag, 4, 1) in tiff else struct.pack("<HHI", tag, 3, 1)
        )
        tiff[at : at + 12] = struct.pack("<HHII", tag, 4, 1, side)
    (tmp_path / "huge.tif").write_bytes(tiff)
    size = (side - 1).to_bytes(3, "little")
    Image.new("RGBA", (16, 16)).save(tmp_path / "huge.webp", lossless=True, exif=b"II*\0\0\0\0\0")
    webp = bytearray((tmp_path / "huge.webp").read_bytes())
    webp[24:30] = size + size
    (tmp_path / "huge.webp").write_bytes(webp)
    peak = "import atexit, re, sys; atexit.register(lambda: print(open('/proc/self/status').read(), file=sys.stderr))"
    done = child(peak, *(tmp_path / f"huge{suffix}" for suffix in SUFFIXES), "-o", tmp_path / "out")
    errors = [line for line in done.stderr.splitlines() if line.startswith("error")]
    assert done.returncode == 3 and len(errors) == 4 and not outputs(tmp_path / "out"), done.stderr
    assert sum("60000x60000" in error for error in errors) >= 3, errors
    assert int(re.findall(r"VmHWM:\s+(\d+) kB", done.stderr)[0]) < 300_000


@pytest.mark.parametrize("kind", ["png", "interlaced png", "jpg", "progressive jpg", "tif"])
def test_a_small_file_that_claims_long_rows_takes_no_memory(tmp_path: Path, identity: Path, kind: str) -> None:
    path, blank = tmp_path / f"long.{kind[-3:]}", Image.new("RGB", (16, 16))
    if path.suffix == ".png":
        head = struct.pack(">IIBBBBB", 1_000_000, 1000, 8, 2, 0, 0, kind != "png")
        parts = ((b"IHDR", head), (b"IDAT", zlib.compress(bytes(900))), (b"IEND", b""))
        path.write_bytes(b"\x89PNG\r\n\x1a\n" + b"".join(chunk(*part) for part in parts))
    elif path.suffix == ".jpg":
        blank.save(path, progressive=kind != "jpg")
        size = struct.pack(">HH", 16_000, 65_000)
        path.write_bytes(re.sub(rb"(\xff[\xc0\xc2]\0\x11\x08)....", rb"\1" + size, path.read_bytes()))
    else:
        blank.save(path)
        tags.add(
            file := BytesIO(path.read_bytes()),
            [{256: (4, struct.pack("<I", 1_000_000)), 257: (4, struct.pack("<I", 1000))}],
        )
        path.write_bytes(file.getvalue())
    peak = "import atexit, re, sys; atexit.register(lambda: print(open('/proc/self/status').read(), file=sys.stderr))"
    done = child(peak, path, "-o", tmp_path / "out", "--model", identity)
    assert done.returncode == 3 and "damaged" in done.stderr, done.stderr
    assert int(re.findall(r"VmHWM:\s+(\d+) kB", done.stderr)[0]) < 300_000


@pytest.mark.parametrize("options", [{}, {"interlace": True, "trellis_quant": True, "optimize_scans": True}])
@pytest.mark.parametrize("suffix", [".png", ".jpg", ".tif", ".webp"])
def test_what_packs_best_is_no_damage(tmp_path: Path, suffix: str, options: dict[str, bool]) -> None:
    image, options = pyvips.Image.black(8000, 3000), options if suffix == ".jpg" else {}
    image.write_to_file(str(tmp_path / f"a{suffix}"), **options)
    assert images.open_photo(tmp_path / f"a{suffix}").shape[:2] == (3000, 8000)
    assert images.open_photo(tmp_path / f"a{suffix}").rows()(0, 3000).max() <= 1


def test_any_size_keeps_its_size(tmp_path: Path, denoise: Command) -> None:
    noise = np.random.default_rng(0).integers(0, 255, (40, 40, 3), dtype=np.uint8)
    sizes = [(1, 1), (1, 29), (29, 1), (7, 5), (17, 31), (2, 3)]
    for height, width in sizes:
        save(tmp_path / f"{height}x{width}.png", noise[:height, :width])
    code, said = denoise(*tmp_path.glob("*.png"), "-o", tmp_path / "out")
    assert code == 0, said
    for height, width in sizes:
        assert images.read(tmp_path / "out" / f"{height}x{width}.png").pixels.shape == (height, width, 3)


@pytest.mark.parametrize("channels", [1, 3])
def test_a_model_that_changes_nothing_changes_nothing(
    tmp_path: Path, denoise: Command, identity: Path, channels: int
) -> None:
    bytes_ = np.arange(256, dtype=np.uint8).repeat(4 * channels).reshape(32, 32, channels)
    words = np.arange(65536).astype(np.uint16).repeat(channels).reshape(64, 1024, channels)[:, ::-1]
    floats = np.random.default_rng(0).random((64, 64, channels)).astype(np.float32)
    for suffix in (".png", ".tif"):
        save(tmp_path / f"bytes{suffix}", bytes_)
        meaning = "grey16" if channels == 1 else "rgb16"
        image = pyvips.Image.new_from_array(np.ascontiguousarray(words), interpretation=meaning)
        image.write_to_file(str(tmp_path / f"words{suffix}"))
    save(tmp_path / "floats.tif", floats)
    code, said = denoise(*tmp_path.glob("*s.*"), "-o", tmp_path / "out", "--model", identity)
    assert code == 0, said
    for suffix in (".png", ".tif"):
        assert np.array_equal(images.read(tmp_path / "out" / f"bytes{suffix}").pixels, bytes_)
        assert np.array_equal(images.read(tmp_path / "out" / f"words{suffix}").pixels, words)
    np.testing.assert_array_max_ulp(images.read(tmp_path / "out" / "floats.tif").pixels, floats, 1)


def test_texts_and_resolutions_beyond_the_usual_do_not_matter(
    tmp_path: Path, denoise: Command, small: Path, identity: Path
) -> None:
    whole = small.read_bytes()
    extra = chunk(b"pHYs", struct.pack(">IIB", 2**31 - 1, 1, 1)) + chunk(b"tEXt", "Größe".encode("latin-1") + b"\0a")
    # The file has a resolution of its own already; of two, the first counts.
    small.write_bytes(whole[:33] + extra + whole[33:])
    assert denoise(small, "-o", tmp_path / "out.png", "--model", identity) == (0, "")
    assert extra in (tmp_path / "out.png").read_bytes()


def test_flat_images_stay_flat(tmp_path: Path, denoise: Command) -> None:
    colours = [(0, 0, 0), (255, 255, 255), (128, 128, 128), (200, 30, 60), (10, 200, 250), (255, 255, 0), (0, 0, 255)]
    for number, colour in enumerate(colours):
        save(tmp_path / f"{number}.png", np.full((64, 80, 3), colour, np.uint8))
    assert denoise(*tmp_path.glob("*.png"), "-o", tmp_path / "out")[0] == 0
    for number, colour in enumerate(colours):
        out = images.read(tmp_path / "out" / f"{number}.png").pixels.astype(int)
        assert abs(out - colour).max() <= 1, (colour, out.min((0, 1)), out.max((0, 1)))


def test_a_jpeg_that_lacks_pixels_is_damaged_and_one_with_stray_bytes_is_not(
    tmp_path: Path, denoise: Command, identity: Path
) -> None:
    path = tmp_path / "a.jpg"
    pyvips.Image.new_from_file(str(EXAMPLES / "01_14.png")).write_to_file(str(path), Q=90)
    whole = path.read_bytes()
    scan, middle = whole.index(b"\xff\xda"), len(whole) // 2
    path.write_bytes(whole[:scan] + b"\0\0\0" + whole[scan:])
    with pytest.raises(pyvips.Error, match="extraneous"):
        pyvips.Image.new_from_file(str(path), fail_on="warning").avg()
    assert np.array_equal(images.read(path).pixels, pyvips.Image.jpegload_buffer(whole).numpy())
    Image.open(EXAMPLES / "01_14.png").save(path, quality=90, restart_marker_rows=1)
    marked = path.read_bytes()
    assert images.read(path).pixels.shape == (256, 256, 3)
    for name, damaged in (
        ("ends", whole[:middle] + b"\xff\xd9"),
        ("jumps", whole[:middle] + b"\xff\xd0" + whole[middle + 2 :]),
        ("is empty", marked[:middle] + bytes(2000) + marked[middle + 2000 :]),
    ):
        (tmp_path / f"{name}.jpg").write_bytes(damaged)
        errors = denoise.refused(tmp_path / f"{name}.jpg", "-o", tmp_path / "out", "--model", identity)
        assert "damaged" in errors[0]["reason"]
