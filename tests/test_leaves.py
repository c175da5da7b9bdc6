"""Dead leaves: pictures without a camera."""

import numpy as np

from tbsn.training.leaves import LARGEST_CROP, Leaves, dead_leaves

COLOURS = np.array([[0.2, 0.4, 0.6], [0.7, 0.5, 0.3]], np.float32)


def test_a_picture_is_a_function_of_the_seed() -> None:
    one, other = (dead_leaves().draw(COLOURS, 64, np.random.default_rng(seed)) for seed in (0, 1))
    assert one.shape == (64, 64, 3) and one.dtype == np.float32 and one.min() >= 0 and one.max() <= 1
    assert np.array_equal(one, dead_leaves().draw(COLOURS, 64, np.random.default_rng(0)))
    assert not np.array_equal(one, other)
    assert dead_leaves().draw(COLOURS[:, :1], LARGEST_CROP, np.random.default_rng(0)).shape == (256, 256, 1)


def test_the_amplitude_falls_with_the_frequency_as_that_of_photos_does() -> None:
    random, power = np.random.default_rng(2), np.zeros((256, 129))
    for _ in range(40):
        picture = dead_leaves().draw(COLOURS[:, :1], 256, random)[..., 0]
        power += np.abs(np.fft.rfft2((picture - picture.mean()) * np.hanning(256) * np.hanning(256)[:, None])) ** 2
    frequency = np.hypot(np.fft.fftfreq(256)[:, None], np.fft.rfftfreq(256))
    inside = (frequency > 0.02) & (frequency < 0.3)
    slope = np.polyfit(np.log(frequency[inside]), np.log(power[inside]) / 2, 1)[0]
    assert -1.6 < slope < -0.8


def test_another_seed_makes_other_leaves() -> None:
    assert not np.array_equal(Leaves.make(1).shapes, dead_leaves().shapes)
