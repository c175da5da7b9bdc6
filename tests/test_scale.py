"""Which values are black and white to a network."""

import json
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import tifffile

from conftest import EXAMPLES, tbsn
from tbsn import images
from tbsn.batch import denoise_file
from tbsn.denoiser import Denoiser, load
from tbsn.diagnose import diagnose
from tbsn.errors import InputError
from tbsn.scale import Scale, bits_used, common_bits, full_depth, scale_of
from tbsn.training.decoded import cached_arrays, cached_folder, with_channels


@pytest.mark.parametrize(
    ("largest", "bits"), [(0, 8), (255, 8), (256, 10), (1023, 10), (4095, 12), (4096, 14), (16383, 14), (16384, 16)]
)
def test_integers_are_scaled_by_the_bits_that_they_use(largest: int, bits: int) -> None:
    image = np.array([[[0]], [[largest // 2]], [[largest]]], np.uint16)
    assert bits_used(image.dtype, [image[:1], image[1:]]) == bits
    assert scale_of(image.dtype, image.size, [image]) == Scale(0, 2**bits - 1)
    deep = full_depth(image)
    assert deep.dtype == image.dtype and np.allclose(deep / 65535, image / (2**bits - 1), atol=1e-5)


def test_no_more_is_read_than_is_needed_to_know() -> None:
    def parts() -> Iterator[np.ndarray]:
        yield np.full((1, 1, 1), 65535, np.uint16)
        raise AssertionError("read on")

    assert bits_used(np.dtype(np.uint16), parts()) == 16


def test_of_other_integers_nothing_is_known_where_one_of_sixteen_bits_ends_the_reading() -> None:
    pixels = [np.full((1, 1, 1), value, dtype) for value, dtype in ((200, "u4"), (65535, "u2"), (60000, "u4"))]
    bits = common_bits((one.dtype, [one]) for one in pixels)
    assert bits == {np.dtype("u2"): 16}


def test_twelve_bits_in_a_file_of_sixteen_are_what_eight_are(tmp_path: Path) -> None:
    photo = images.read(EXAMPLES / "01_14.png").pixels
    photo[0, 0] = 255
    deep = np.rint(photo * (4095 / 255)).astype(np.uint16)
    for name, pixels in (("eight", photo), ("twelve", deep)):
        tifffile.imwrite(tmp_path / f"{name}.tif", pixels, photometric="rgb")
        assert tbsn("denoise", tmp_path / f"{name}.tif", "-o", tmp_path / f"{name}-clean.tif").returncode == 0
        report = tmp_path / f"{name}.json"
        assert tbsn("diagnose", tmp_path / f"{name}.tif", "--json", report).returncode == 0
    eight, twelve = (tifffile.imread(tmp_path / f"{name}-clean.tif") for name in ("eight", "twelve"))
    assert twelve.max() <= 4095 and np.abs(eight / 255 - twelve / 4095).max() < 1 / 255
    levels = [json.loads((tmp_path / f"{name}.json").read_text())["noise"]["level"] for name in ("eight", "twelve")]
    assert np.allclose(*levels, rtol=0.02)
    assert np.array_equal(with_channels("twelve", deep, 3, {}), np.rint(deep * (65535 / 4095)))


def test_the_files_of_a_folder_have_one_scale(tmp_path: Path) -> None:
    """Of twelve bits, though a dark one needs no more than ten; measured and learned from alike, as files or arrays."""
    light = np.rint(images.read(EXAMPLES / "01_14.png").pixels * (4095 / 255)).astype(np.uint16)
    light[0, 0] = 4095
    dark = light // 5
    folder = tmp_path / "twelve"
    folder.mkdir()
    for name, pixels in (("a", dark), ("b", light)):
        tifffile.imwrite(folder / f"{name}.tif", pixels, photometric="rgb")
    (folder / "c.tif").write_bytes((folder / "b.tif").read_bytes()[:5000])
    for photos in (cached_folder(folder, tmp_path / "f", 3), cached_arrays([dark, light], tmp_path / "a", 3)):
        for found, true in zip(photos, (dark, light), strict=True):
            assert np.array_equal(found, np.rint(true * (65535 / 4095)))
    level, alone = (diagnose([where], lambda error: None).noise.per_image[0, 0] for where in (folder, folder / "a.tif"))
    assert np.isclose(alone, 4 * level, rtol=0.02), "a file alone is all that is known of its camera"


def test_dark_floats_stay_dark(tmp_path: Path) -> None:
    dark = np.full((8, 8, 3), 0.05, np.float32)
    assert np.allclose(cached_arrays([dark], tmp_path / "cache", 3)[0] / 65535, dark, atol=1e-5)


@pytest.mark.parametrize("dtype", [np.int16, np.uint32, np.int64])
def test_wide_integers_train_as_they_are_denoised(dtype: type) -> None:
    photo = images.read(EXAMPLES / "01_14.png").pixels[:64, :64]
    assert np.allclose(with_channels("wide", photo.astype(dtype), 3, {}) / 65535, photo / 255, atol=1e-4)


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("largest", [255, 4095, 2**32 - 1, 2**40])
@pytest.mark.parametrize("dtype", [np.int64, np.uint64])
def test_white_stays_white_in_integers_of_64_bits(dtype: type, largest: int) -> None:
    image = (np.arange(17) / 16 * largest).astype(dtype).reshape(1, 17, 1)
    bits = bits_used(image.dtype, [image])
    assert np.allclose(with_channels("wide", image, 1, {}) / 65535, image / (2.0**bits - 1), atol=1e-4)


def test_integers_below_0_are_not_learned_from() -> None:
    with pytest.raises(InputError, match="below 0; add the same to all"):
        with_channels("signed", np.full((8, 8, 1), -5, np.int16), 1, {})


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("dtype", [np.int64, np.uint64])
def test_integers_of_64_bits_stay_exact_and_within_their_limits(dtype: type) -> None:
    limits = np.iinfo(dtype)
    image = np.array([limits.min, limits.min + 1, 2**53 + 1, limits.max - 1, limits.max], dtype).reshape(1, 5, 1)
    scale, change = Scale(0, float(limits.max)), np.zeros(image.shape, np.float32)
    assert np.array_equal(scale.changed(image, change), image)
    assert (scale.changed(image, change + 2) > limits.max // 2).all()
    assert (scale.changed(image, change - 2)[0, 2:] <= 0).all()


@pytest.mark.parametrize("dtype", [">u2", ">f4", ">i8", "<u2"])
def test_the_order_of_bytes_stays(tmp_path: Path, dtype: str) -> None:
    image = np.random.default_rng(0).integers(0, 9999, (40, 50)).astype(dtype)
    same = Denoiser(lambda image: image, 3, "identity")
    assert same(image).dtype == dtype and np.array_equal(same(image), image)
    np.save(tmp_path / "a.npy", image)
    for suffix in (".npy",) if dtype == ">i8" else (".npy", ".tif"):
        denoise_file(same, tmp_path / "a.npy", tmp_path / f"b{suffix}")
        assert np.array_equal(images.read(tmp_path / f"b{suffix}").pixels[..., 0], image)
    assert np.load(tmp_path / "b.npy").dtype == dtype


def test_metres_are_denoised_as_what_they_are_a_small_part_of() -> None:
    photo = images.to_float(images.read(EXAMPLES / "01_14.png").pixels)
    photo -= photo.min()
    photo /= photo.max()
    small, denoise = photo * np.float32(2e-9), load(strength=1)
    taken, same = (small - denoise(small)) / 2e-9, photo - denoise(photo)
    assert np.corrcoef(taken.ravel(), same.ravel())[0, 1] > 0.999
    assert np.isclose(taken.std(), same.std(), rtol=0.01)
    scale = Scale(1e11, 1e11 + 1000)
    assert scale.unit(np.array([[[1e11 + 250]]])) == 0.25


def test_negative_integers_are_denoised_as_floats_are() -> None:
    light = np.repeat([-1000, 40], 48)[None, :, None] + np.zeros((96, 1, 1))
    noisy = np.rint(light + 20 * np.random.default_rng(0).standard_normal((96, 96, 1))).astype(np.int16)
    denoise = load(strength=1)
    denoised = denoise(noisy)
    assert denoised.dtype == np.int16
    for part in (np.s_[:, 8:40], np.s_[:, 56:88]):
        assert denoised[part].std() < 0.3 * noisy[part].std()
    assert np.abs(denoised - denoise(noisy.astype(np.float32))).max() <= 1
