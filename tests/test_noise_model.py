"""The model of an image's noise: what it draws is like the noise that it was fitted to."""

import numpy as np
import pytest
from scipy.ndimage import convolve, gaussian_filter
from scipy.stats import skew

from tbsn.training.noise_model import (
    LEVELS,
    SAME,
    STRONGEST,
    Curve,
    NoiseModel,
    missed_power,
    plain_noise,
    unclipped_mean,
)


def scene(random: np.random.Generator, height: int = 256, width: int = 256) -> np.ndarray:
    """Smooth content of all brightnesses (h, w, 3)."""
    smooth = gaussian_filter(random.standard_normal((height, width, 3)), (24, 24, 0))
    return np.clip(0.5 + 0.2 * smooth / smooth.std(), 0.05, 0.95).astype(np.float32)


def known_noise(image: np.ndarray, random: np.random.Generator) -> np.ndarray:
    """Correlated between neighbours and channels, stronger where it is dark, skewed towards dark."""
    white = random.standard_normal(image.shape)
    field = gaussian_filter(white + white.mean(axis=2, keepdims=True), (0.7, 0.7, 0))
    field /= field.std()
    return (0.08 * (1.2 - image) * np.where(field < 0, 1.5, 0.8) * field).astype(np.float32)


def correlation(noise: np.ndarray, rows: int, columns: int) -> float:
    height, width = noise.shape[:2]
    here, there = noise[rows:, columns:], noise[: height - rows, : width - columns]
    return float(np.corrcoef(here[..., 0].ravel(), there[..., 0].ravel())[0, 1])


@pytest.fixture(scope="module")
def fitted() -> tuple[np.ndarray, np.ndarray, NoiseModel]:
    """An image, its noise, and the model of that."""
    random = np.random.default_rng(0)
    image = scene(random)
    noise = known_noise(image, random)
    return image, noise, NoiseModel.fit(image + noise, image)


def drawn(image: np.ndarray, model: NoiseModel) -> np.ndarray:
    return model.draw(image, np.random.default_rng(1))


def test_drawn_noise_is_like_the_noise_it_was_fitted_to(fitted: tuple[np.ndarray, np.ndarray, NoiseModel]) -> None:
    image, noise, model = fitted
    new = drawn(image, model)
    assert new.dtype == np.float32 and new.shape == noise.shape
    dark = image < np.median(image)
    for part in (dark, ~dark):
        assert np.isclose(new[part].std(), noise[part].std(), rtol=0.05)
        assert np.isclose(skew(new[part]), skew(noise[part]), atol=0.15)
        assert np.isclose(*((np.clip(image + one, 0, 1)[part] ** 2.2).mean() for one in (new, 0)), rtol=0.02)
    for lag in ((0, 1), (1, 0), (1, 1), (0, 2), (3, 0)):
        assert np.isclose(correlation(new, *lag), correlation(noise, *lag), atol=0.05)
    channels = [np.corrcoef(one[..., 0].ravel(), one[..., 1].ravel())[0, 1] for one in (new, noise)]
    assert np.isclose(*channels, atol=0.05)
    assert abs(np.corrcoef(new.ravel(), noise.ravel())[0, 1]) < 0.02


def interpolated(random: np.random.Generator, size: int) -> np.ndarray:
    """Noise (size, size, 3) as cameras have it, a colour seen at one or two pixels of a cell, the others their mean."""
    seen = np.zeros((2, 2, 3), bool)
    seen[0, 0, 0] = seen[0, 1, 1] = seen[1, 0, 1] = seen[1, 1, 2] = True
    known = np.tile(seen, (size // 2, size // 2, 1))
    near = np.array([[1, 2, 1], [2, 4, 2], [1, 2, 1]], np.float32)[..., None]
    sums = (convolve(part, near, mode="wrap") for part in (random.standard_normal(known.shape) * known, known * 1.0))
    return (0.1 * np.divide(*sums)).astype(np.float32)


def of_cells(noise: np.ndarray) -> np.ndarray:
    """Covariances of all that is in two cells beside each other, over all such cells of noise (h, w, c)."""
    cells = noise.reshape(len(noise) // 2, 2, -1, 2, noise.shape[2]).transpose(0, 2, 1, 3, 4)
    cells = cells.reshape(*cells.shape[:2], -1)
    return np.cov(np.concatenate([cells[:, :-1], cells[:, 1:]], axis=2).reshape(-1, 2 * cells.shape[2]).T)


def test_noise_that_differs_from_pixel_to_pixel_of_a_cell_is_drawn_so() -> None:
    random = np.random.default_rng(9)
    image = np.full((256, 256, 3), 0.5, np.float32)
    noise = interpolated(random, 256)
    seen = of_cells(noise)
    places = [(0, 0), (0, 1), (1, 0), (1, 1)]
    model = NoiseModel.fit(image + noise, image)
    found = [
        min(np.abs(of_cells(np.roll(drawn, place, axis=(0, 1))) - seen).max() / seen.max() for place in places)
        for drawn in (model.draw(image, random) for _ in range(4))
    ]
    assert max(found) < 0.1
    assert np.abs(of_cells(np.roll(noise, 1, axis=1)) - seen).max() > 0.5 * seen.max()


def test_scores_are_the_inverse_of_noise(fitted: tuple[np.ndarray, np.ndarray, NoiseModel]) -> None:
    image, _, model = fitted
    field = np.random.default_rng(2).uniform(-3, 3, image.shape).astype(np.float32)
    np.testing.assert_allclose(model.scores(model.of_scores(field, image), image), field, atol=1e-3)


def test_a_shift_of_the_estimate_is_not_noise(fitted: tuple[np.ndarray, np.ndarray, NoiseModel]) -> None:
    image, noise, model = fitted
    shifted = NoiseModel.fit(image + noise, image + np.float32(0.01))
    assert abs((drawn(image, shifted) - drawn(image, model)).mean()) < 0.02 * noise.std()


@pytest.mark.parametrize("shape", [(256, 256, 1), (128, 700, 3), (900, 600, 4)])
def test_any_size_and_number_of_channels(shape: tuple[int, int, int]) -> None:
    random = np.random.default_rng(3)
    noisy = random.random(shape, dtype=np.float32)
    noise = NoiseModel.fit(noisy, np.full_like(noisy, 0.5)).draw(np.full((63, 70, shape[2]), 0.5), random)
    assert noise.shape == (63, 70, shape[2]) and np.isclose(noise.std(), 12**-0.5, rtol=0.1)


def test_an_image_without_noise_gets_next_to_none() -> None:
    image = np.full((256, 256, 3), 0.25, np.float32)
    model = NoiseModel.fit(image, image)
    assert model.brightness.shape == (3, LEVELS) and (np.diff(model.brightness) >= 0).all()
    assert np.abs(model.draw(image[:64, :64], np.random.default_rng(0))).max() < 1 / 255


def test_every_window_of_a_large_image_begins_with_a_cell() -> None:
    random = np.random.default_rng(9)
    noise = interpolated(random, 802)[:801, :801]
    image = np.full(noise.shape, 0.5, np.float32)
    seen = of_cells(noise[:800, :800])
    found = of_cells(NoiseModel.fit(image + noise, image).draw(image[:256, :256], random))
    places = [(0, 0), (0, 1), (1, 0), (1, 1)]
    variances = [np.diagonal(found)[:12].reshape(2, 2, 3)[np.ix_(*[(i, 1 - i) for i in place])] for place in places]
    assert min(np.abs(one - np.diagonal(seen)[:12].reshape(2, 2, 3)).max() for one in variances) < 0.1 * seen.max()


def test_images_without_noise_do_not_count_for_the_power_that_is_missed() -> None:
    image, random = scene(np.random.default_rng(4)), np.random.default_rng(5)
    noisy = image + known_noise(image, random)

    def blur(noisy: np.ndarray) -> np.ndarray:
        return gaussian_filter(noisy, (4, 4, 0)) + np.float32(0.002) * (noisy > 0)

    pairs = [(noisy, blur(noisy))]
    alone = missed_power(blur, pairs, np.random.default_rng(0))
    sky = noisy.copy()
    sky[:160] = 1
    for more in (np.full_like(image, 0.3), np.ones_like(image), sky):
        found = missed_power(blur, [*pairs, (more, blur(more))], np.random.default_rng(0))
        assert np.allclose(found, alone, rtol=0.05), more.mean()
    assert np.array_equal(missed_power(blur, [(image * 0, image * 0)], random), SAME)


def test_an_image_smaller_than_the_rings_of_frequency_is_no_trouble() -> None:
    noisy = np.random.default_rng(0).random((8, 8, 3), dtype=np.float32)
    assert np.isfinite(
        missed_power(lambda image: image * 0 + 0.5, [(noisy, noisy * 0 + 0.5)], np.random.default_rng(0))
    ).all()


def test_the_coarse_noise_that_a_denoiser_leaves_is_not_missed() -> None:
    random = np.random.default_rng(4)
    image = scene(random)
    white = random.standard_normal(image.shape)
    noise = (0.05 * (white + 3 * gaussian_filter(white, (2, 2, 0)))).astype(np.float32)

    def blur(noisy: np.ndarray) -> np.ndarray:
        return gaussian_filter(noisy, (4, 4, 0))

    estimate = blur(image + noise)
    power = missed_power(blur, [(image + noise, estimate)], random)

    def coarse(noise: np.ndarray) -> float:
        return float(gaussian_filter(noise, (3, 3, 0)).std() / noise.std())

    missed, found = (
        coarse(drawn(image, NoiseModel.fit(image + noise, estimate, factors))) for factors in (SAME, power)
    )
    assert missed < 0.9 * coarse(noise) and abs(found / coarse(noise) - 1) < 0.7 * abs(missed / coarse(noise) - 1)


@pytest.mark.parametrize(("curve", "gamma"), [("sRGB", 2.2), ("linear", 1.0)])
def test_an_estimate_is_moved_to_the_mean_of_the_light(curve: Curve, gamma: float) -> None:
    random = np.random.default_rng(5)
    image = scene(random)
    light = image**gamma + 0.02 * gaussian_filter(random.standard_normal(image.shape), (0.6, 0.6, 0))
    noisy = (np.clip(light, 0, 1) ** (1 / gamma)).astype(np.float32)
    estimate = image - np.float32(0.02) * (1 - image)
    model = NoiseModel.fit(noisy, estimate, curve=curve)
    moved = model.unbiased(estimate)
    assert np.abs(moved - image).mean() < 0.2 * np.abs(estimate - image).mean()
    dark = image < 0.3
    mean = float((np.clip(moved + drawn(moved, model), 0, 1)[dark] ** gamma).mean())
    assert np.isclose(mean, (noisy[dark] ** gamma).mean(), rtol=0.03)


@pytest.mark.parametrize("black", [0.0, 0.1, 0.4])
def test_what_was_cut_off_at_black_is_put_back_as_the_shortest_tail(black: float) -> None:
    random = np.random.default_rng(6)
    level = random.random(100_000) - black
    assert np.isclose(unclipped_mean(np.clip(level, 0, 1)), level.mean(), atol=0.002)
    bell = 0.3 + random.standard_normal(100_000) * 0.3
    assert bell.mean() < unclipped_mean(np.maximum(bell, 0)) < np.maximum(bell, 0).mean() - 0.01


def test_black_stays_black() -> None:
    assert unclipped_mean(np.zeros(100)) == 0
    assert 0 <= unclipped_mean(np.r_[np.zeros(95), np.ones(5)]) <= 0.05


def test_plain_noise_has_the_mean_0_and_no_more_than_its_strength() -> None:
    image = scene(np.random.default_rng(7))
    for seed in range(10):
        noise = plain_noise(image, np.random.default_rng(seed))
        assert noise.dtype == np.float32 and noise.shape == image.shape
        assert abs(noise.mean()) < 5e-3 and noise.std() < 1.1 * STRONGEST


def test_an_estimate_that_is_quite_flat_in_parts_is_no_trouble() -> None:
    random = np.random.default_rng(8)
    estimate = np.full((256, 256, 3), 0.3, np.float32)
    estimate[:, :100] = random.random((256, 100, 3))
    estimate[:, 100:110] += (random.random((256, 10, 3)) < 0.5) / np.float32(65535)  # a running sum falls below 0
    noisy = estimate + 0.02 * random.standard_normal(estimate.shape, dtype=np.float32)
    model = NoiseModel.fit(noisy, estimate)
    assert np.isfinite(model.quantiles).all() and np.isfinite(model.draw(estimate[:64, -64:], random)).all()
