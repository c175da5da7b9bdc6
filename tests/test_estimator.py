"""The Python class for people's own images."""

import signal
import subprocess
import sys
import threading
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml

import tbsn
from conftest import EXAMPLES, save
from tbsn import images
from tbsn.errors import InputError
from tbsn.training.data import Crops
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
    denoiser = tbsn.SelfSupervisedDenoiser(recipe, student, last, run=tmp_path, device="cpu").fit(noisy)
    shown = images.read(tmp_path / "teacher" / "samples" / "step-000002.png").pixels
    assert shown.shape == (256, 512, 3 if channels == 3 else 1)
    clean = denoiser.denoise(noisy[0])
    assert clean.shape == noisy[0].shape and clean.dtype == noisy[0].dtype
    denoiser.save(tmp_path / "mine.safetensors")
    again = tbsn.SelfSupervisedDenoiser.load(tmp_path / "mine.safetensors")
    assert np.array_equal(again.denoise(noisy[0]), clean)


def short_teacher(*more: str) -> TrainRecipe:
    return load_recipe(TrainRecipe, "cpu", [*TINY, *SHORT, "fit.steps=1", *more])


def test_one_image_is_enough_and_the_network_has_its_channels(photo: Path, tmp_path: Path) -> None:
    five = np.concatenate([NOISY, NOISY[..., :2]], axis=2)
    save(tmp_path / "five.tif", five)
    for source, channels in ((photo, 3), ([str(photo)], 3), (NOISY, 3), (NOISY[..., 0], 3), (tmp_path / "five.tif", 5)):
        denoiser = tbsn.SelfSupervisedDenoiser(short_teacher(), None, None, device="cpu", max_time="1h").fit(source)
        assert denoiser._learned().config.channels == channels
    with pytest.raises(InputError, match=r"give list\(stack\)"):
        denoiser.fit(np.stack([NOISY[..., 0]] * 3))


def test_the_last_network_starts_from_a_model(tmp_path: Path) -> None:
    first = tbsn.SelfSupervisedDenoiser(short_teacher(), None, None, device="cpu").fit(NOISY)
    first.save(tmp_path / "first.safetensors")
    still = short_teacher("fit.lr=1e-12", "fit.seed=1")
    again = tbsn.SelfSupervisedDenoiser(still, None, None, init=tmp_path / "first.safetensors", device="cpu").fit(NOISY)
    assert np.abs(again.denoise(NOISY).astype(int) - first.denoise(NOISY)).max() <= 1


@pytest.mark.parametrize(("number", "raised"), [(signal.SIGINT, KeyboardInterrupt), (signal.SIGTERM, SystemExit)])
def test_a_signal_is_itself_where_nothing_is_kept(
    number: signal.Signals, raised: type[BaseException], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Crops, "__getitem__", lambda *_: signal.raise_signal(number) or (torch.zeros(2, 3, 32, 32),))
    with pytest.raises(raised):
        tbsn.SelfSupervisedDenoiser(short_teacher("fit.steps=9"), None, None, device="cpu").fit(NOISY)


def test_a_run_that_is_kept_goes_on(tmp_path: Path, folder: Path) -> None:
    recipe = load_recipe(TrainRecipe, "cpu", [*TINY, *SHORT, "fit.steps=2"])
    for _ in range(2):
        denoiser = tbsn.SelfSupervisedDenoiser(recipe, None, None, run=tmp_path / "run", device="cpu").fit(folder)
    assert denoiser.denoise(NOISY[:50, :60, 0]).shape == (50, 60)
    assert len((tmp_path / "run" / "teacher" / "started.jsonl").read_text().splitlines()) == 2
    with pytest.raises(InputError, match=r"images .*noisy -> list"):
        denoiser.fit([NOISY])


def test_recipes_of_other_channels_are_refused_before_training() -> None:
    grey = load_recipe(TrainRecipe, "cpu", ["network.channels=1"])
    with pytest.raises(InputError, match="give all the same"):
        tbsn.SelfSupervisedDenoiser(grey)


def test_what_the_last_network_lacks_is_told_before_the_first_is_trained(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Crops, "__getitem__", lambda *_: pytest.fail("trained"))
    odd = load_recipe(DistillRecipe, "distill-cpu", [*SHORT, "fit.crop=100"])
    for recipes, init, complaint in (
        ((odd, None), None, "fit.crop=100: not a multiple"),
        ((None, "renoise-cpu"), "nowhere.safetensors", "no such model"),
    ):
        with pytest.raises(InputError, match=complaint):
            tbsn.SelfSupervisedDenoiser(short_teacher(), *recipes, init=init, device="cpu").fit(NOISY)


SCRIPT = """
import sys, tbsn
from pathlib import Path
print("begun", flush=True)
tbsn.SelfSupervisedDenoiser(Path(sys.argv[1]), None, None, device="cpu").fit(sys.argv[2]).save(sys.argv[3])
"""


def test_a_script_without_a_guard_runs_once_where_workers_load(photo: Path, tmp_path: Path) -> None:
    (tmp_path / "script.py").write_text(SCRIPT)
    (tmp_path / "recipe.yaml").write_text(yaml.safe_dump(short_teacher("fit.workers=1").model_dump(mode="json")))
    command = [sys.executable, tmp_path / "script.py", tmp_path / "recipe.yaml", photo, tmp_path / "mine.safetensors"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0 and done.stdout == "begun\n", done.stderr
    assert (tmp_path / "mine.safetensors").exists()


def test_an_error_in_another_thread_is_that_threads(monkeypatch: pytest.MonkeyPatch) -> None:
    told: list[threading.ExceptHookArgs] = []
    monkeypatch.setattr(threading, "excepthook", told.append)
    begin = Crops.__getitem__

    def meanwhile(crops: Crops, step: int) -> tuple[torch.Tensor, ...]:
        other = threading.Thread(target=int, args=("no number",))
        other.start()
        other.join()
        return begin(crops, step)

    monkeypatch.setattr(Crops, "__getitem__", meanwhile)
    tbsn.SelfSupervisedDenoiser(short_teacher(), None, None, device="cpu").fit(NOISY)
    assert isinstance(told[0].exc_value, ValueError)


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
        ([NOISY, np.zeros((0, 5), np.uint16)], "image 1: is empty"),
        (None, "images: is of type NoneType; give a folder"),
        (torch.zeros(4, 3, 8, 8), r"image 0: is of type Tensor; .*\.numpy\(\)"),
        ([NOISY, torch.zeros(3, 8, 8)], "image 1: is of type Tensor"),
        ([NOISY, "photo.png"], "are files and arrays"),
        ([NOISY > 0], "image 0: is an array of bool"),
        (np.ma.masked_equal(NOISY, 0), "images: is a masked array"),
    ):
        with pytest.raises(InputError, match=complaint):
            denoiser.fit(wrong)  # type: ignore[arg-type]
