"""Light: what values stand for, and the same picture in another exposure."""

import numpy as np
import pytest

from tbsn.training.light import CURVES, Curve, exposed

RANDOM = np.random.default_rng(0)
CLEAN = RANDOM.uniform(0.05, 0.4, (64, 64, 3)).astype(np.float32)
NOISY = CLEAN + RANDOM.normal(0, 0.02, CLEAN.shape).astype(np.float32)


@pytest.mark.parametrize("curve", CURVES)
def test_light_and_values_are_inverse(curve: Curve) -> None:
    to_light, from_light = CURVES[curve]
    values = np.linspace(-0.2, 1.2, 1001, dtype=np.float32)
    np.testing.assert_allclose(from_light(to_light(values)), values, atol=1e-6)
    assert to_light(values).dtype == np.float32 and (np.diff(to_light(values)) > 0).all()


@pytest.mark.parametrize("curve", CURVES)
def test_another_exposure_is_the_same_picture_in_other_light(curve: Curve) -> None:
    to_light, _ = CURVES[curve]
    for seed in range(5):
        noisy, clean = exposed(NOISY, CLEAN, curve, 1.0, 0.0, np.random.default_rng(seed))
        gain = to_light(clean) / to_light(CLEAN)
        assert gain.min() >= 0.5 and gain.max() <= 2 and np.ptp(gain) < 1e-3
        strength = (to_light(noisy) - to_light(clean)) / (to_light(NOISY) - to_light(CLEAN))
        assert np.sqrt(gain.mean() / 2) * 0.99 <= np.median(strength) <= np.sqrt(gain.mean() * 2) * 1.01


def test_without_stops_nothing_but_the_noise_changes() -> None:
    noisy, clean = exposed(NOISY, CLEAN, "sRGB", 0.0, 1.0, np.random.default_rng(1))
    np.testing.assert_allclose(clean, CLEAN, atol=1e-6)
    assert 0 < (noisy - clean).std() < (NOISY - CLEAN).std()
