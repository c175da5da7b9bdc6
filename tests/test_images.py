import struct
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import pytest
import pyvips
import tifffile
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from conftest import save
from tbsn import encoding, images, tags
from tbsn.errors import InputError

RANDOM = np.random.default_rng(0)


@pytest.mark.parametrize("suffix", [".png", ".tif"])
@pytest.mark.parametrize("channels", [1, 2, 3, 4])
@pytest.mark.parametrize("dtype", [np.uint8, np.uint16])
def test_lossless_formats_come_back_bit_for_bit(tmp_path: Path, suffix: str, channels: int, dtype: type) -> None:
    pixels = RANDOM.integers(0, np.iinfo(dtype).max, (5, 7, channels), dtype=dtype, endpoint=True)
    meaning = {1: "b-w", 2: "b-w", 3: "srgb", 4: "srgb"} if dtype == np.uint8 else {1: "grey16", 2: "grey16"}
    image = pyvips.Image.new_from_array(pixels, interpretation=meaning.get(channels, "rgb16"))
    image.write_to_file(str(tmp_path / f"a{suffix}"))
    photo = images.read(tmp_path / f"a{suffix}")
    assert photo.pixels.shape == (5, 7, 1 if channels < 3 else 3)
    encoding.write(tmp_path / f"b{suffix}", photo.pixels, photo)
    again = images.read(tmp_path / f"b{suffix}")
    assert again.pixels.dtype == dtype
    assert np.array_equal(
        pyvips.Image.new_from_file(str(tmp_path / f"b{suffix}")).numpy().reshape(pixels.shape), pixels
    )


def test_float_tiff_keeps_values_outside_the_unit_range(tmp_path: Path) -> None:
    pixels = RANDOM.normal(size=(4, 6, 3)).astype(np.float32)
    photo = images.read(save(tmp_path / "a.tif", pixels))
    encoding.write(tmp_path / "b.tif", photo.pixels, photo)
    assert np.array_equal(images.read(tmp_path / "b.tif").pixels, pixels)


@pytest.mark.parametrize("suffix", [".png", ".jpg", ".tif", ".webp"])
def test_metadata_is_kept(tmp_path: Path, suffix: str) -> None:
    profile = pyvips.Image.black(8, 8, bands=3).copy(interpretation="srgb").icc_transform("p3").get("icc-profile-data")
    image = pyvips.Image.new_from_array(RANDOM.integers(0, 255, (8, 8, 3), dtype=np.uint8)).copy(xres=5.0, yres=5.0)
    image.set_type(pyvips.GValue.blob_type, "icc-profile-data", profile)
    image.set_type(pyvips.GValue.blob_type, "xmp-data", b"<x:xmpmeta xmlns:x='adobe:ns:meta/'/>")
    image.set_type(pyvips.GValue.gint_type, "orientation", 6)
    image.write_to_file(str(tmp_path / f"a{suffix}"))
    photo = images.read(tmp_path / f"a{suffix}")
    encoding.write(tmp_path / f"b{suffix}", photo.pixels, photo)
    before, after = (pyvips.Image.new_from_file(str(tmp_path / f"{name}{suffix}")) for name in "ab")
    assert before.get("icc-profile-data") == after.get("icc-profile-data") == profile
    for field in ("xmp-data", "orientation", "exif-data"):
        assert (field in before.get_fields()) == (field in after.get_fields())
    assert after.get("orientation") == 6
    assert after.xres == pytest.approx(before.xres)


def bad_files(folder: Path, photo: Path) -> dict[str, Path]:
    whole = photo.read_bytes()
    contents = {
        "empty.png": b"",
        "truncated.png": whole[: len(whole) // 2],
        "checksum.png": whole[:60] + bytes([whole[60] ^ 1]) + whole[61:],
        "page.png": b"<html>not found</html>",
    }
    for name, content in contents.items():
        (folder / name).write_bytes(content)
    for suffix in (".jpg", ".tif", ".webp"):
        pyvips.Image.new_from_file(str(photo)).write_to_file(str(folder / f"whole{suffix}"))
        data = (folder / f"whole{suffix}").read_bytes()
        (folder / f"truncated{suffix}").write_bytes(data[: len(data) // 2])
    save(folder / "nan.tif", np.full((4, 4, 3), np.nan, np.float32))
    save(folder / "double.tif", np.zeros((4, 4, 3), np.float64))
    pyvips.Image.black(4, 4, bands=4).copy(interpretation="cmyk").write_to_file(str(folder / "cmyk.tif"))
    names = [*contents, "truncated.jpg", "truncated.tif", "truncated.webp", "nan.tif", "double.tif", "cmyk.tif"]
    return {name: folder / name for name in [*names, "missing.png"]}


def test_bad_files_are_refused_by_name(tmp_path: Path, photo: Path) -> None:
    for name, path in bad_files(tmp_path, photo).items():
        with pytest.raises(InputError) as refused:
            images.read(path)
        line = str(refused.value)
        assert line.startswith(str(path)) and "; " in line and "\n" not in line, name


def test_content_counts_and_not_the_suffix(tmp_path: Path, photo: Path) -> None:
    renamed = photo.rename(tmp_path / "really_a_png.jpg")
    assert images.read(renamed).pixels.shape == (256, 256, 3)


def test_failed_write_leaves_nothing(tmp_path: Path, photo: Path) -> None:
    source = images.read(photo)
    before = sorted(tmp_path.iterdir())
    with pytest.raises(InputError, match="cannot hold"):
        encoding.write(tmp_path / "deep.jpg", source.pixels.astype(np.uint16), source)
    with pytest.raises(InputError, match="cannot write"):
        encoding.write(tmp_path / "absent" / "photo.png", source.pixels, source)
    assert sorted(tmp_path.iterdir()) == before


@given(st.sampled_from([np.uint8, np.uint16]), st.integers(0, 2**16 - 1))
def test_every_level_survives_the_way_through_float(dtype: type, level: int) -> None:
    pixels = np.array([level % (np.iinfo(dtype).max + 1)], dtype)
    assert images.from_float(images.to_float(pixels), np.dtype(dtype)) == pixels


@pytest.mark.parametrize("channels", [2, 4, 5, 8])
@pytest.mark.parametrize("dtype", [np.uint8, np.uint16, np.float32])
def test_as_many_channels_as_are_expected_are_no_alpha(tmp_path: Path, channels: int, dtype: type) -> None:
    pixels = RANDOM.integers(0, 200, (5, 7, channels)).astype(dtype)
    photo = images.read(save(tmp_path / "a.tif", pixels), channels)
    assert not photo.alpha and np.array_equal(photo.pixels, pixels)
    encoding.write(tmp_path / "b.tif", photo.pixels, photo)
    again = images.read(tmp_path / "b.tif", channels)
    assert again.pixels.dtype == dtype and np.array_equal(again.pixels, pixels)
    with pytest.raises(InputError, match="channels"):
        images.read(save(tmp_path / "nine.tif", np.zeros((4, 4, 9), np.uint8)))


@pytest.mark.parametrize(("channels", "meaning"), [(2, 0), (2, 1), (2, 2), (4, 0), (4, 2)])
def test_alpha_is_what_the_file_says_is_alpha(tmp_path: Path, channels: int, meaning: int) -> None:
    pixels = RANDOM.integers(0, 200, (5, 7, channels), dtype=np.uint8)
    colours = "minisblack" if channels == 2 else "rgb"
    tifffile.imwrite(tmp_path / "a.tif", pixels, photometric=colours, planarconfig="contig", extrasamples=[meaning])
    photo = images.read(tmp_path / "a.tif")
    assert photo.alpha == (meaning > 0) and photo.shape[2] == channels - photo.alpha
    encoding.write(tmp_path / "b.tif", photo.pixels, photo)
    with tifffile.TiffFile(tmp_path / "b.tif") as file:
        # Colours that were multiplied by alpha are so no more.
        assert np.array_equal(file.asarray()[..., -1], pixels[..., -1])
        assert np.array_equal(file.asarray(), pixels) == (meaning != 1)
        assert file.pages[0].extrasamples == (meaning if meaning != 1 else 2,)


def test_what_the_file_does_not_name_is_alpha(tmp_path: Path) -> None:
    pixels = RANDOM.integers(0, 200, (5, 7, 4), dtype=np.uint8)
    tifffile.imwrite(tmp_path / "a.tif", pixels, photometric="rgb", extrasamples=[2])
    named, other = (struct.pack("<HH", tag, 3) for tag in (338, 337))
    (tmp_path / "a.tif").write_bytes((tmp_path / "a.tif").read_bytes().replace(named, other))
    photo = images.read(tmp_path / "a.tif")
    assert photo.alpha and np.array_equal(photo.pixels, pixels[..., :3])


@pytest.mark.parametrize("suffix", [".jpg", ".npy"])
def test_alpha_is_not_lost(tmp_path: Path, suffix: str) -> None:
    photo = images.read(save(tmp_path / "a.png", np.zeros((5, 7, 4), np.uint8)))
    with pytest.raises(InputError, match="cannot hold alpha"):
        encoding.write(tmp_path / f"b{suffix}", photo.pixels, photo)


@pytest.mark.parametrize(
    ("channels", "meaning", "right"), [(3, "rgb", True), (4, "minisblack", False), (5, "minisblack", False)]
)
def test_channels_one_after_another_are_read_right_or_refused(
    channels: int, meaning: str, right: bool, tmp_path: Path
) -> None:
    planes = np.random.default_rng(0).integers(0, 256, (channels, 40, 50), np.uint8)
    tifffile.imwrite(tmp_path / "a.tif", planes, photometric=meaning, planarconfig="separate")
    if right:
        assert np.array_equal(images.read(tmp_path / "a.tif", channels).pixels, planes.transpose(1, 2, 0))
        return
    with pytest.raises(InputError, match="side by side"):
        images.open_photo(tmp_path / "a.tif", channels)


@given(
    st.sampled_from([".png", ".tif", ".npy"]),
    st.sampled_from([np.uint8, np.uint16]),
    st.tuples(st.integers(1, 40), st.integers(1, 40), st.sampled_from([1, 3])),
    st.integers(0, 2**32 - 1),
)
def test_files_hold_what_was_written(suffix: str, dtype: type, shape: tuple[int, int, int], seed: int) -> None:
    pixels = np.random.default_rng(seed).integers(0, np.iinfo(dtype).max, shape, dtype, endpoint=True)
    with TemporaryDirectory() as folder:
        encoding.write(Path(folder) / f"a{suffix}", pixels)
        again = images.read(Path(folder) / f"a{suffix}").pixels
    assert again.dtype == dtype and np.array_equal(again, pixels)


@pytest.mark.parametrize("writer", ["tifffile", "libvips"])
def test_a_stack_that_ends_between_its_pages_is_damaged(tmp_path: Path, writer: str) -> None:
    stack = RANDOM.integers(0, 255, (4, 16, 16), dtype=np.uint8)
    path = tmp_path / "stack.tif"
    if writer == "tifffile":
        tifffile.imwrite(path, stack, compression="zlib", photometric="minisblack")
    else:
        image = pyvips.Image.new_from_array(stack.reshape(64, 16))
        image.set_type(pyvips.GValue.gint_type, "page-height", 16)
        image.write_to_file(str(path), compression="lzw")
    assert images.open_photo(path).pages == 4
    whole = path.read_bytes()
    with path.open("rb") as file:
        places = [(offset, following) for offset, _, following in tags.Layout(file).directories(file)]
    for offset, following in places:
        for length in (offset + 1, offset + 14, following, following + 3):
            path.write_bytes(whole[:length])
            with pytest.raises(InputError, match="damaged"):
                images.open_photo(path)


def test_what_would_come_out_in_wrong_colours_is_refused_by_name(tmp_path: Path) -> None:
    noise = RANDOM.random((16, 16), np.float32)
    tifffile.imwrite(tmp_path / "white.tif", noise, photometric="miniswhite")
    Image.fromarray(noise > 0.5).save(tmp_path / "bit.png")
    Image.fromarray(noise > 0.5).save(tmp_path / "bit.tif")
    photo = Image.fromarray((255 * noise).astype(np.uint8)).convert("RGB")
    for space in ("CMYK", "LAB", "YCbCr"):
        photo.convert(space).save(tmp_path / f"{space}.tif", compression="tiff_lzw")
    photo.convert("CMYK").save(tmp_path / "inks.jpg")
    photo.save(tmp_path / "mask.tif")
    with tifffile.TiffFile(tmp_path / "mask.tif", mode="r+") as file:
        file.pages[0].tags[262].overwrite(4)
    for packing in ("zstd", "lzma"):
        photo.save(tmp_path / f"{packing}.tif", compression=packing)
    tifffile.imwrite(tmp_path / "long.tif", noise.astype(np.uint64))
    turned = [((255 * noise).astype(np.uint8), orientation) for orientation in (1, 6)]
    with tifffile.TiffWriter(tmp_path / "turned.tif") as writer:
        for page, orientation in turned:
            writer.write(page, metadata=None, extratags=[(274, "H", 1, orientation, True)])
    colours = np.arange(768, dtype=np.uint16).reshape(3, 256)
    numbers = (255 * noise).astype(np.uint8)
    pages = {
        "palettes": [{"photometric": "palette", "colormap": colours * factor} for factor in (1, 85)],
        "alphas": [{"photometric": "rgb", "extrasamples": [kind]} for kind in ("unassalpha", "assocalpha")],
        "strips": [{"photometric": "minisblack", "rowsperstrip": rows} for rows in (4, 16)],
    }
    for name, options in pages.items():
        with tifffile.TiffWriter(tmp_path / f"{name}.tif") as writer:
            for one in options:
                pixels = np.dstack([numbers] * 4) if name == "alphas" else numbers
                writer.write(pixels, metadata=None, contiguous=False, **one)
    multiplied = {"photometric": "minisblack", "planarconfig": "contig", "extrasamples": ["assocalpha"]}
    tifffile.imwrite(tmp_path / "multiplied.tif", np.dstack([noise] * 2), **multiplied)
    tiled = {"photometric": "rgb", "planarconfig": "separate", "tile": (16, 16)}
    tifffile.imwrite(tmp_path / "planes.tif", np.stack([numbers] * 3), **tiled)
    for name, reason in (
        ("palettes.tif", "different palettes"),
        ("alphas.tif", "kinds of alpha"),
        ("strips.tif", "stored in different ways"),
        ("multiplied.tif", "multiplied by their alpha"),
        ("planes.tif", "one after another"),
        ("white.tif", "floats of which 0 is white"),
        ("bit.png", "1 bit a pixel"),
        ("bit.tif", "1 bit a pixel"),
        ("inks.jpg", "is cmyk"),
        ("CMYK.tif", "is CMYK"),
        ("LAB.tif", "is LAB"),
        ("YCbCr.tif", "is YCbCr"),
        ("mask.tif", "is a mask"),
        ("zstd.tif", "is packed by Zstandard"),
        ("lzma.tif", "is packed by LZMA"),
        ("long.tif", "has 64 bits"),
        ("turned.tif", "orientations"),
    ):
        with pytest.raises(InputError, match=reason):
            images.open_photo(tmp_path / name)


def test_a_jpeg_in_a_tiff_has_its_colours(tmp_path: Path) -> None:
    Image.new("RGB", (64, 64), (200, 10, 10)).convert("YCbCr").save(tmp_path / "red.tif", compression="jpeg")
    assert np.abs(images.read(tmp_path / "red.tif").pixels - [200.0, 10, 10]).max() <= 3


def test_palettes_and_grey_of_which_0_is_white_are_read_as_they_look(tmp_path: Path) -> None:
    colours = Image.fromarray(RANDOM.integers(0, 255, (8, 8, 3), dtype=np.uint8)).quantize(16)
    colours.save(tmp_path / "palette.png")
    assert np.array_equal(images.read(tmp_path / "palette.png").pixels, np.asarray(colours.convert("RGB")))
    grey = RANDOM.integers(0, 255, (8, 8), dtype=np.uint8)
    tifffile.imwrite(tmp_path / "white.tif", grey, photometric="miniswhite")
    assert np.array_equal(images.read(tmp_path / "white.tif").pixels[..., 0], 255 - grey)


def test_a_tiff_that_may_grow_too_large_for_it_is_a_bigtiff(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pixels = RANDOM.integers(0, 255, (9, 9, 3), dtype=np.uint8)
    tifffile.imwrite(tmp_path / "a.tif", pixels, photometric="rgb")
    for most, big in ((243, False), (242, True)):
        monkeypatch.setattr(encoding, "BIG_TIFF", most)
        photo = images.read(tmp_path / "a.tif")
        encoding.write(tmp_path / "b.tif", photo.pixels, photo)
        assert np.array_equal(images.read(tmp_path / "b.tif").pixels, pixels)
        with tifffile.TiffFile(tmp_path / "b.tif") as written:
            assert written.is_bigtiff == big
