"""What is noise is taken out, and what is texture stays."""

from dataclasses import replace

import numpy as np
import pytest

import tbsn
from conftest import EXAMPLES
from tbsn import images
from tbsn.trust import MORE, Trust, measure

SIDE = 256
RANDOM = np.random.default_rng(0)


def scene(channels: int = 3) -> np.ndarray:
    """Slow changes of brightness in every row, alike."""
    rows = np.linspace(0.2, 0.8, SIDE, dtype=np.float32)
    return np.repeat(np.repeat(rows[None], SIDE, axis=0)[..., None], channels, axis=2)


def grain(level: float, channels: int = 3) -> np.ndarray:
    return np.float32(level) * RANDOM.standard_normal((SIDE, SIDE, channels)).astype(np.float32)


def of_mean(image: np.ndarray) -> np.ndarray:
    return image.mean(axis=2, keepdims=True)


def taken(noisy: np.ndarray, denoised: np.ndarray) -> np.ndarray:
    trust = measure([(noisy, denoised)])
    assert trust
    return trust.limited(noisy, denoised - noisy)


@pytest.mark.parametrize("channels", [1, 3, 5])
@pytest.mark.parametrize("level", [0.01, 0.05])
def test_noise_is_taken_out_wherever_it_is(channels: int, level: float) -> None:
    noise = grain(level, channels) * (0.5 + scene(channels))  # more where it is brighter
    noisy = scene(channels) + noise
    left = noise + taken(noisy, scene(channels))
    assert np.mean(left**2) < 1e-3 * np.mean(noise**2)


def test_of_texture_as_much_stays_as_leaves_the_least_error() -> None:
    noise, texture = grain(0.02), np.zeros((SIDE, SIDE, 3), np.float32)
    texture[: SIDE // 2] = of_mean(grain(0.1))[: SIDE // 2]
    denoised = scene() + grain(0.001)
    denoised[: SIDE // 2] += of_mean(grain(0.02))[: SIDE // 2]  # it is not the smoothest place of the result
    noisy = scene() + texture + noise
    change = taken(noisy, denoised)
    inside = slice(16, SIDE // 2 - 16)
    for part, share in ((of_mean, MORE * 0.02**2 / 3 / (0.1**2 / 3)), (lambda image: image - of_mean(image), 1)):
        found, whole = part(change)[inside], part(denoised - noisy)[inside]
        assert np.sum(found * whole) / np.sum(whole**2) == pytest.approx(share, rel=0.15)
    np.testing.assert_allclose(change[SIDE // 2 + 24 :], (denoised - noisy)[SIDE // 2 + 24 :], atol=2e-3)


@pytest.mark.parametrize("spoil", [0.0, 1.0])
def test_what_is_clipped_or_does_not_change_tells_nothing_of_the_noise(spoil: float) -> None:
    noise = grain(0.03)
    noisy, denoised = scene() + noise, scene()
    noisy[:, : SIDE // 2], denoised[:, : SIDE // 2] = spoil, spoil
    change = taken(noisy, denoised)[:, SIDE // 2 + 16 :]
    assert np.mean((change + noise[:, SIDE // 2 + 16 :]) ** 2) < 1e-3 * np.mean(noise**2)
    assert measure([(noisy[:, : SIDE // 2], denoised[:, : SIDE // 2])]) is None


def test_all_is_noise_where_it_is_darker_or_brighter_than_what_was_seen() -> None:
    trust = Trust(np.array([0.4, 0.6]), np.full((2, 2), 1e-4), (0.35, 0.65))
    change = grain(0.2)
    limited = trust.limited(scene() - change, change)  # from 0.2 to 0.8, once it is done
    unseen = np.r_[0:48, SIDE - 48 : SIDE]
    assert np.array_equal(limited[:, unseen], change[:, unseen])
    assert np.std(limited[:, 112:144]) < 0.1 * np.std(change)


def test_small_images_tell_nothing() -> None:
    assert measure([(scene()[:31, :200], scene()[:31, :200])]) is None and measure([]) is None


@pytest.mark.parametrize("grey", [False, True])
def test_tiles_take_out_what_the_whole_does(grey: bool) -> None:
    photo = images.read(EXAMPLES / "01_14.png").pixels
    photo = np.ascontiguousarray(np.concatenate([photo, np.rot90(photo)], axis=1)[:250, :500, : 1 if grey else 3])
    photo[:, 200:] = (photo[:, 200:].astype(int) + RANDOM.integers(-3, 4, photo[:, 200:].shape)).clip(0, 255)
    denoise = tbsn.load()
    tiles = replace(denoise, tiling=replace(denoise.tiling, size=256))
    whole = denoise(photo).astype(int)
    assert np.abs(whole - tiles(photo)).max() <= 1
    assert np.abs(whole - replace(denoise, strength=1)(photo)).max() > 1  # or there would be nothing to see
