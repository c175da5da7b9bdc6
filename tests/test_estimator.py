"""The Python class for people's own images."""

from pathlib import Path

import numpy as np
import pytest

import tbsn
from conftest import EXAMPLES
from tbsn import images
from tbsn.errors import InputError
from tbsn.training.recipe import DistillRecipe, RenoiseRecipe, TrainRecipe, load_recipe
from test_training import SHORT, TINY

NOISY = images.read(EXAMPLES / "01_14.png").pixels


@pytest.mark.parametrize("channels", [1, 2, 3, 5])
def test_any_number_of_channels_is_learned_and_denoised(channels: int, tmp_path: Path) -> None:
    noisy = [np.repeat(NOISY, 2, axis=2)[..., :channels], images.to_float(np.repeat(NOISY, 2, axis=2)[..., :channels])]
    recipe = load_recipe(TrainRecipe, "cpu", [*TINY, *SHORT, "fit.steps=2", f"network.channels={channels}"])
    student = load_recipe(
        DistillRecipe, "distill-cpu", [*SHORT, "fit.steps=2", "network.width=8", f"network.channels={channels}"]
    )
    small = ["network.widths=[8,8]", "network.blocks=[1,1]", "fit.steps=2", f"network.channels={channels}"]
    last = load_recipe(RenoiseRecipe, "renoise-cpu", [*SHORT, *small])
    denoiser = tbsn.SelfSupervisedDenoiser(recipe, student, last, device="cpu").fit(noisy)
    clean = denoiser.denoise(noisy[0])
    assert clean.shape == noisy[0].shape and clean.dtype == noisy[0].dtype
    denoiser.save(tmp_path / "mine.safetensors")
    again = tbsn.SelfSupervisedDenoiser.load(tmp_path / "mine.safetensors")
    assert np.array_equal(again.denoise(noisy[0]), clean)


def test_a_run_that_is_kept_goes_on(tmp_path: Path, folder: Path) -> None:
    recipe = load_recipe(TrainRecipe, "cpu", [*TINY, *SHORT, "fit.steps=2"])
    for _ in range(2):
        denoiser = tbsn.SelfSupervisedDenoiser(recipe, None, None, run=tmp_path / "run", device="cpu").fit(folder)
    assert denoiser.denoise(NOISY[:50, :60, 0]).shape == (50, 60)
    assert len((tmp_path / "run" / "teacher" / "started.jsonl").read_text().splitlines()) == 2
    with pytest.raises(InputError, match=r"images .*noisy -> arrays"):
        denoiser.fit([NOISY])


def test_recipes_of_other_channels_are_refused_before_training() -> None:
    grey = load_recipe(TrainRecipe, "cpu", ["network.channels=1"])
    with pytest.raises(InputError, match="give all the same"):
        tbsn.SelfSupervisedDenoiser(grey)


def test_what_cannot_be_learned_from_is_named() -> None:
    recipe = load_recipe(TrainRecipe, "cpu", [*TINY, *SHORT])
    denoiser = tbsn.SelfSupervisedDenoiser(recipe, None, None, device="cpu")
    with pytest.raises(InputError, match="learned nothing"):
        denoiser.denoise(NOISY)
    for wrong, complaint in (
        ([], "there are none"),
        ([np.full((200, 200), np.nan)], "image 0: has NaN"),
        ([NOISY, NOISY[..., :2]], "image 1: has 2 channels"),
        ([NOISY[:100]], "under the crop"),
        ([np.zeros(9, np.uint8)], "has shape"),
    ):
        with pytest.raises(InputError, match=complaint):
            denoiser.fit(wrong)
