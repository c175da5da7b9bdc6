"""One image in, one out: arrays, rows, pages, RAW, formats; and in bounded memory."""

import subprocess
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import pyvips
import tifffile

import tbsn as package
from conftest import EXAMPLES, save, tbsn
from tbsn import batch, images, tiff
from tbsn.denoiser import Denoiser
from tbsn.errors import InputError
from tbsn.images import open_photo
from tbsn.tiles import Tiling
from test_docs import negative

RANDOM = np.random.default_rng(0)
SAME = Denoiser(lambda image: image, 3, "identity", tiling=Tiling(96, 16, 8))
DARKER = Denoiser(lambda image: image / 2, 3, "half", tiling=Tiling(96, 16, 8))


def integers(*shape: int, dtype: type = np.uint8) -> np.ndarray:
    return RANDOM.integers(0, np.iinfo(dtype).max, shape, dtype=dtype, endpoint=True)


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16, np.int16, np.uint32, np.float16, np.float32, np.float64])
@pytest.mark.parametrize("shape", [(1, 1), (130, 70), (101, 1), (60, 50, 1), (200, 300, 3)])
def test_what_does_nothing_changes_nothing(tmp_path: Path, dtype: type, shape: tuple[int, ...]) -> None:
    values = RANDOM.normal(100, 300, shape) if np.dtype(dtype).kind == "f" else integers(*shape, dtype=dtype)
    np.save(tmp_path / "a.npy", values.astype(dtype))
    batch.denoise_file(SAME, tmp_path / "a.npy", tmp_path / "b.npy")
    result = np.load(tmp_path / "b.npy")
    assert result.dtype == dtype and np.array_equal(result, values.astype(dtype))


def test_a_stack_of_arrays_is_no_image_of_many_channels(tmp_path: Path) -> None:
    np.save(tmp_path / "a.npy", integers(5, 20, 30))
    with pytest.raises(InputError, match="plane by plane"):
        batch.denoise_file(SAME, tmp_path / "a.npy", tmp_path / "b.npy")


def test_rows_that_come_in_parts_are_the_image(tmp_path: Path, photo: Path) -> None:
    batch.denoise_file(package.load(), photo, tmp_path / "parts.png")
    assert np.array_equal(images.read(tmp_path / "parts.png").pixels, package.load()(images.read(photo).pixels))


@pytest.mark.parametrize(("strength", "times"), [(1.0, 1), (None, 2)])
def test_a_file_is_decoded_no_more_often_than_it_must(
    tmp_path: Path, photo: Path, monkeypatch: pytest.MonkeyPatch, strength: float | None, times: int
) -> None:
    opened, begun = open_photo(photo, 3), []
    counted = replace(opened, rows=lambda: begun.append(1) or opened.rows())
    monkeypatch.setattr(batch, "open_photo", lambda path, channels: counted)
    batch.denoise_file(replace(SAME, strength=strength), photo, tmp_path / "out.png")
    assert len(begun) == times


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16, np.float32])
def test_stacks_are_denoised_page_by_page(tmp_path: Path, dtype: type) -> None:
    stack = integers(4, 120, 100, dtype=np.uint8).astype(dtype) * (257 if dtype == np.uint16 else 1)
    tifffile.imwrite(tmp_path / "a.ome.tif", stack, metadata={"axes": "ZYX", "PhysicalSizeX": 0.1})
    tifffile.imwrite(tmp_path / "b.tif", stack, imagej=True, compression="zlib", metadata={"axes": "ZYX", "fps": 7.0})
    for name in ("a.ome.tif", "b.tif"):
        steps: list[batch.Step] = []
        pixels = batch.denoise_file(DARKER, tmp_path / name, tmp_path / f"out-{name}", watch=steps.append)
        assert pixels == stack.size and sum(step.share for step in steps) == pytest.approx(1)
        assert list(dict.fromkeys(step.page for step in steps)) == [f"page {k}/4" for k in range(1, 5)]
        with tifffile.TiffFile(tmp_path / name) as before, tifffile.TiffFile(tmp_path / f"out-{name}") as after:
            assert after.series[0].axes == "ZYX" and after.asarray().dtype == dtype
            assert after.is_ome == before.is_ome and after.imagej_metadata == before.imagej_metadata
            np.testing.assert_allclose(after.asarray(), stack / 2, atol=0.5)


def test_each_page_is_given_back_what_is_no_noise_in_it(tmp_path: Path) -> None:
    noisy = images.read(EXAMPLES / "01_14.png").pixels.mean(axis=2).astype(np.uint8)
    quiet = np.full_like(noisy, 90)
    quiet[::16] += 20
    tifffile.imwrite(tmp_path / "in.tif", np.stack([quiet, noisy, quiet]), photometric="minisblack")
    batch.denoise_file(package.load(), tmp_path / "in.tif", tmp_path / "out.tif")
    for page, alone in zip(tifffile.imread(tmp_path / "out.tif"), (quiet, noisy, quiet), strict=True):
        assert np.array_equal(page, package.load()(alone))
    with pytest.raises(InputError, match="cannot hold 3 pages"):
        batch.denoise_file(package.load(), tmp_path / "in.tif", tmp_path / "out.npy")


def test_every_tile_is_a_step(tmp_path: Path) -> None:
    steps: list[batch.Step] = []
    save(tmp_path / "a.png", integers(100, 1700))
    batch.denoise_file(replace(SAME, tiling=Tiling()), tmp_path / "a.png", tmp_path / "b.png", watch=steps.append)
    assert [step.share for step in steps] == pytest.approx([1 / 3] * 3)


@pytest.mark.parametrize("name", ["a.dng", "a.tif", "a.nrw", "standard-input"])
def test_raw_is_developed_whatever_it_is_called(tmp_path: Path, name: str) -> None:
    negative(tmp_path / name)
    photo = open_photo(tmp_path / name)
    assert photo.shape == (160, 170, 3) and photo.dtype == np.uint16 and photo.suffix == ".tif"


def test_raw_is_known_by_what_is_below_its_preview(tmp_path: Path) -> None:
    with tifffile.TiffWriter(tmp_path / "a.tif") as file:
        file.write(integers(20, 30, 3), photometric="rgb", subifds=1)
        file.write(integers(80, 120, dtype=np.uint16), photometric="CFA", metadata=None)
    assert tiff.is_raw(tmp_path / "a.tif")
    tifffile.imwrite(tmp_path / "b.tif", integers(20, 30), extratags=[(330, "H", 3, (1, 2, 3), True)])
    assert not tiff.is_raw(tmp_path / "b.tif")


@pytest.mark.parametrize("kind", ["imagej", "shaped", "ome", "volume"])
def test_planes_without_pages_are_not_lost(tmp_path: Path, kind: str) -> None:
    path, stack = tmp_path / "a.tif", integers(16, 32, 48)
    if kind == "volume":
        tifffile.imwrite(path, stack, photometric="minisblack", volumetric=True, tile=(16, 16, 16))
    elif kind == "ome":
        sizes = 'SizeC="2" SizeT="1" SizeX="48" SizeY="32" SizeZ="8"'
        tifffile.imwrite(path, stack[0], metadata=None, description=f'<OME><Pixels ID="a" {sizes} Type="uint8"/></OME>')
        path.write_bytes(path.read_bytes() + stack[1:].tobytes())
    else:
        tifffile.imwrite(path, stack, imagej=kind == "imagej", photometric="minisblack", truncate=True)
    with pytest.raises(InputError, match=r"a\.tif: holds several planes in one page; save it with a page for each"):
        open_photo(path)
    tifffile.imwrite(path, stack[0], metadata=None, description="ImageJ=1.11a\nimages=16\nslices=16\n")
    assert open_photo(path).shape == (32, 48, 1)


def test_pages_of_different_sizes_are_refused(tmp_path: Path) -> None:
    with tifffile.TiffWriter(tmp_path / "a.tif") as file:
        file.write(integers(20, 20))
        file.write(integers(30, 20))
    with pytest.raises(InputError, match=r"a\.tif"):
        open_photo(tmp_path / "a.tif")


def test_floats_keep_their_range(tmp_path: Path) -> None:
    counts = RANDOM.normal(500, 100, (150, 140)).astype(np.float32)
    counts[3, 4], counts[5, 6] = 1e6, -1e6
    half = Denoiser(lambda image: (image + 0.5) / 2, 3, "flatter")
    flatter = half(counts)
    assert flatter[3, 4] > 0.9e6 and flatter[5, 6] < -0.9e6
    assert np.corrcoef(flatter[10:].ravel(), counts[10:].ravel())[0, 1] > 0.99
    np.testing.assert_allclose(half(counts * 3 - 7), flatter * 3 - 7, rtol=1e-3)


def test_nan_is_an_error_or_kept(tmp_path: Path) -> None:
    values = RANDOM.random((90, 80, 3)).astype(np.float32)
    values[3, 4, 1], values[5, 6] = np.nan, np.inf
    save(tmp_path / "a.tif", values)
    refused = tbsn("denoise", tmp_path / "a.tif", "-o", tmp_path / "b.tif")
    assert refused.returncode == 3 and "--nan keep" in refused.stderr and not (tmp_path / "b.tif").exists()
    assert tbsn("denoise", tmp_path / "a.tif", "-o", tmp_path / "b.tif", "--nan", "keep").returncode == 0
    kept = pyvips.Image.new_from_file(str(tmp_path / "b.tif")).numpy()
    assert np.array_equal(np.isnan(kept), np.isnan(values)) and np.isinf(kept[5, 6]).all()


@pytest.mark.parametrize("none", ["-9999", "-3.4028234663852886e+38", "nan"])
def test_what_a_file_calls_no_data_stays_and_is_not_looked_at(tmp_path: Path, none: str) -> None:
    photo = (images.read(EXAMPLES / "01_14.png").pixels.mean(axis=2) / 255).astype(np.float32)
    holes = photo.copy()
    holes[:60] = np.float32(none)
    for name, pixels in (("holes", holes), ("whole", photo)):
        tifffile.imwrite(tmp_path / f"{name}.tif", pixels, extratags=[(42113, "s", 0, none, True)])
        settings = batch.Settings(nan="keep")
        batch.denoise_file(package.load(strength=1), tmp_path / f"{name}.tif", tmp_path / f"{name}-out.tif", settings)
    found, whole = (tifffile.imread(tmp_path / f"{name}-out.tif") for name in ("holes", "whole"))
    assert np.array_equal(found[:60], holes[:60], equal_nan=True)
    assert np.abs(found[124:] - whole[124:]).max() < 0.05 < np.abs(whole - photo).max()


@pytest.mark.parametrize("nan", ["error", "keep"])
def test_floats_that_float32_does_not_hold_are_refused(tmp_path: Path, nan: Any) -> None:
    np.save(tmp_path / "a.npy", np.where(integers(20, 30) > 99, 1e300, np.nan if nan == "keep" else 0))
    with pytest.raises(InputError, match="beyond 1e\\+38"):
        batch.denoise_file(SAME, tmp_path / "a.npy", tmp_path / "b.npy", batch.Settings(nan=nan))
    assert not (tmp_path / "b.npy").exists()


def test_formats_and_privacy(tmp_path: Path) -> None:
    image = pyvips.Image.new_from_array(integers(60, 50, 3)).copy(interpretation="srgb")
    image.set_type(pyvips.GValue.blob_type, "xmp-data", b"<x:xmpmeta xmlns:x='adobe:ns:meta/'/>")
    image.set_type(pyvips.GValue.gint_type, "orientation", 6)
    image.write_to_file(str(tmp_path / "a.png"))
    done = tbsn("denoise", tmp_path / "a.png", "-o", tmp_path / "out", "--format", "jpg", "--strip-metadata")
    assert done.returncode == 0, done.stderr
    bare = pyvips.Image.new_from_file(str(tmp_path / "out" / "a.jpg"))
    assert "xmp-data" not in bare.get_fields() and bare.get("orientation") == 6
    sizes = {}
    for quality in ("30", "95"):
        assert (
            tbsn("denoise", tmp_path / "a.png", "--format", "jpg", "--quality", quality, "--overwrite").returncode == 0
        )
        sizes[quality] = (tmp_path / "a_denoised.jpg").stat().st_size
    assert sizes["30"] < 0.7 * sizes["95"]


def test_tiles_are_as_small_as_memory_needs() -> None:
    model = package.load()
    sizes = [model.within(memory, 12_000).tiling.size for memory in (8e9, 1e9, 5e8, 1e6)]
    assert sizes[0] == Tiling().size and sizes == sorted(sizes, reverse=True) and sizes[-1] == 256


def test_raw_files_are_developed(tmp_path: Path) -> None:
    pytest.importorskip("rawpy")
    (tmp_path / "a.dng").write_bytes(b"II*\0no raw file")
    done = tbsn("denoise", tmp_path / "a.dng", "-o", tmp_path / "out")
    assert done.returncode == 3 and "not a RAW file" in done.stderr


def test_parts_made_ahead_come_in_order_and_their_failure_at_its_place() -> None:
    begun: list[int] = []

    def parts(failing: int) -> Iterator[np.ndarray]:
        for number in range(9):
            begun.append(number)
            if number == failing:
                raise ValueError("here")
            yield np.array(number)

    with batch.ahead(parts(9), 3) as made:
        assert [int(part) for part in made] == list(range(9))
    with batch.ahead(parts(4), 3) as made:
        assert [int(next(made)) for _ in range(4)] == list(range(4))
        with pytest.raises(ValueError, match="here"):
            next(made)
    begun.clear()
    with pytest.raises(KeyError), batch.ahead(parts(9), 3) as made:
        next(made)
        raise KeyError("gone")
    assert len(begun) <= 5


@pytest.mark.slow
def test_a_photo_of_144_megapixels_takes_less_than_a_gigabyte(tmp_path: Path) -> None:
    light = pyvips.Image.xyz(12000, 12000)[0] / 12000 * 255
    noisy = light.bandjoin([light, light]) + pyvips.Image.gaussnoise(12000, 12000, sigma=15)
    noisy.cast("uchar").copy(interpretation="srgb").write_to_file(str(tmp_path / "large.png"), compression=1)
    command = [sys.executable, "-m", "tbsn", "denoise", str(tmp_path / "large.png"), "-o", str(tmp_path / "out.png")]
    # Started by a small process: what is told of a child counts the memory of who has started it.
    small = "import resource, subprocess, sys; subprocess.run(sys.argv[1:], check=True)"
    tell = "print(resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss)"
    program = [sys.executable, "-c", f"{small}; {tell}", *command]
    done = subprocess.run(program, capture_output=True, text=True, check=True)
    assert 1e8 < 1024 * int(done.stdout.split()[-1]) < 1e9
    assert images.open_photo(tmp_path / "out.png").shape == (12000, 12000, 3)
