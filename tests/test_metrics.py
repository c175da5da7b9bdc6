import numpy as np
import pytest

from tbsn.metrics import PROTOCOLS, psnr, ssim


def test_psnr_of_a_known_error() -> None:
    clean = np.full((8, 8, 3), 0.5)
    assert psnr(clean + 0.1, clean, PROTOCOLS["dnd"]) == pytest.approx(20)
    assert psnr(clean, clean, PROTOCOLS["sidd"]) == np.inf


def test_only_the_sidd_protocol_rounds() -> None:
    clean = np.full((8, 8, 3), 100 / 255)
    assert psnr(clean + 0.4 / 255, clean, PROTOCOLS["sidd"]) == np.inf
    assert psnr(clean + 0.4 / 255, clean, PROTOCOLS["dnd"]) < 60


def test_values_outside_the_range_are_clipped() -> None:
    white = np.ones((16, 16, 3))
    for protocol in PROTOCOLS.values():
        assert psnr(white + 1, white, protocol) == np.inf
        assert ssim(white + 1, white, protocol) == pytest.approx(1)


def test_ssim_is_the_mean_over_channels() -> None:
    random = np.random.default_rng(0)
    clean, noisy = random.random((32, 32, 3)), random.random((32, 32, 3))
    channels = [ssim(noisy[..., i : i + 1], clean[..., i : i + 1], PROTOCOLS["dnd"]) for i in range(3)]
    assert ssim(noisy, clean, PROTOCOLS["dnd"]) == pytest.approx(np.mean(channels))
