"""What a step of training sees: crops, pairs, and the images held back."""

import pickle
from collections.abc import Sequence
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from scipy.ndimage import gaussian_filter

from conftest import save
from tbsn.images import to_float
from tbsn.training import kept
from tbsn.training.data import Crops, Renoised, split
from tbsn.training.decoded import cached_arrays, cached_folder
from tbsn.training.noise_model import SAME, NoiseModel
from tbsn.training.recipe import PairSettings, TrainRecipe, load_recipe
from tbsn.training.runs import open_crops


def test_crops_are_a_function_of_seed_and_step(folder: Path, tmp_path: Path) -> None:
    photos = cached_folder(folder, tmp_path / "cache", 3)

    def crops(seed: int, places: Sequence[int] = range(3)) -> Crops:
        return Crops([photos], crop=160, places=places, stride=5, augment=True, seed=seed)

    (first,) = crops(0)[7]
    assert first.shape == (3, 3, 32, 32) and first.dtype == torch.float32 and first.min() >= 0 and first.max() <= 1
    assert torch.equal(first, crops(0)[7][0])
    for other in (crops(1)[7], crops(0)[8]):
        assert not torch.equal(first, other[0])
    shares = [crops(0, places)[7][0] for places in ([0], [1, 2])]
    assert torch.equal(first, torch.cat(shares))


def test_a_strided_crop_is_a_sub_image_of_a_photo(blocks: Path, tmp_path: Path) -> None:
    photos = cached_folder(blocks, tmp_path / "cache", 3)
    (batch,) = Crops([photos], crop=250, places=[0], stride=5, augment=False, seed=3)[0]
    found = (255 * batch[0].permute(1, 2, 0)).round().numpy().astype(np.uint8)
    places = ((photo, i, j) for photo in photos for i in range(7) for j in range(7))
    assert any(np.array_equal(photo[i : i + 250 : 5, j : j + 250 : 5], found) for photo, i, j in places)


def test_aligned_stacks_are_cut_at_the_same_places(folder: Path, tmp_path: Path) -> None:
    photos = cached_folder(folder, tmp_path / "cache", 3)
    noisy, same_again = Crops([photos, photos], crop=64, places=range(4), augment=True, seed=0)[5]
    assert torch.equal(noisy, same_again)


def test_renoised_pairs_are_estimates_with_noise_like_the_photos(folder: Path, tmp_path: Path) -> None:
    photos = cached_folder(folder, tmp_path / "cache", 3)
    smooth = [np.uint16(257) * gaussian_filter(photo, (3, 3, 0)) for photo in photos]
    estimates = cached_arrays(smooth, tmp_path / "estimates", 3)
    models = kept.noise_models(photos, estimates, "sRGB", SAME.tolist(), 64)

    def pairs(halved: float) -> Renoised:
        settings = {"crop": 64, "places": range(4), "augment": True, "seed": 0}
        return Renoised(photos, estimates, models, how=PairSettings(halved=halved), **settings)

    for halved in (0.0, 1.0):
        noisy, clean = pairs(halved)[3]
        assert noisy.shape == clean.shape == (4, 3, 64, 64) and noisy.dtype == clean.dtype == torch.float32
        torch.testing.assert_close(noisy * 255, (noisy * 255).round(), rtol=0, atol=1e-3)
        assert 0.01 < float((noisy - clean).std()) < 0.2
        again = pickle.loads(pickle.dumps(pairs(halved)))[3]
        assert torch.equal(again[0], noisy) and torch.equal(again[1], clean)
    settings = {"crop": 128, "places": [0], "augment": False, "seed": 0, "among": np.array([0])}
    plain = PairSettings(halved=1, leaves=0, plain=0, grey=0, stops=0, weak=0)
    models = kept.noise_models(photos, estimates, "sRGB", SAME.tolist(), 128)
    _, halved = Renoised(photos, estimates, models, how=plain, **settings)[0]
    moved = NoiseModel.fit(to_float(photos[0]), to_float(estimates[0])).unbiased(to_float(estimates[0]))
    whole = moved.reshape(128, 2, 128, 2, 3).mean(axis=(1, 3))
    torch.testing.assert_close(halved[0], torch.from_numpy(whole).permute(2, 0, 1), rtol=0, atol=1e-6)


def test_noise_models_are_made_once_and_no_photo_makes_another_again(
    blocks: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    save(blocks / "small.png", np.zeros((40, 300, 3), np.uint8))
    photos = cached_folder(blocks, tmp_path / "cache", 3)
    smooth = [np.uint16(257) * gaussian_filter(photo, (3, 3, 0)) for photo in photos]
    estimates = cached_arrays(smooth, tmp_path / "estimates", 3)
    large = np.flatnonzero(photos.sizes.min(axis=1) >= 64)
    fitted = [NoiseModel.fit(to_float(photos[i]), to_float(estimates[i]), 2 * SAME) for i in large]
    kept.noise_models(photos, estimates, "sRGB", (2 * SAME).tolist(), 64)
    monkeypatch.setattr(NoiseModel, "fit", None)
    models = kept.noise_models(photos, estimates, "sRGB", (2 * SAME).tolist(), 64)
    for i, model in zip(large, fitted, strict=True):
        known = NoiseModel.unpacked(models[i].ravel(), 3)
        for name, value in vars(model).items():
            np.testing.assert_array_equal(vars(known)[name], value, strict=True)
    settings = {"crop": 64, "places": range(2), "augment": False, "seed": 0, "among": large}
    Renoised(photos, estimates, models, how=PairSettings(mixed=1), **settings)[0]


@given(st.integers(1, 300), st.floats(0, 0.99), st.integers(0, 9))
def test_every_image_is_trained_on_or_held_back(count: int, share: float, seed: int) -> None:
    names = [f"{i}.png" for i in range(count)]
    training, held_back = split(names, share, seed)
    assert sorted([*training, *held_back]) == list(range(count))
    assert len(held_back) == min(round(share * count), count - 1)
    _, later = split(["0.jpg", *names], share, seed)
    assert len({i + 1 for i in held_back} - set(later)) <= 1, "what was held back stays so when images come"


def test_what_is_held_back_does_not_depend_on_the_batch(blocks: Path, tmp_path: Path) -> None:
    photos = cached_folder(blocks, tmp_path / "cache", 3)
    cut = partial(Crops, [photos], stride=5)
    seen = []
    for size in (1, 5, 40):
        fit = load_recipe(TrainRecipe, "cpu", [f"fit.batch={size}", "fit.hold_back=0.5"]).fit
        _, held_back = open_crops(cut, photos, fit, range(size))
        assert all(len(one) <= size for (one,) in held_back), "no more in memory at once than in a step"
        seen.append(torch.cat([one for (one,) in held_back]))
    assert len(seen[0]) == 128 and all(torch.equal(seen[0], other) for other in seen)
