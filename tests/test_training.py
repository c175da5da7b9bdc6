import json
import pickle
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from scipy.ndimage import gaussian_filter
from torch import nn

from conftest import save
from tbsn import teacher
from tbsn.denoiser import mean_over_symmetries
from tbsn.errors import InputError
from tbsn.images import to_float
from tbsn.network import TBSN, FastUNet, FastUNetConfig, TBSNConfig, UNet, UNetConfig
from tbsn.network.files import build, load_network, save_network
from tbsn.training import checkpoint, fit, kept, losses, runs
from tbsn.training.data import Crops, Renoised, split
from tbsn.training.decoded import cached_arrays, cached_folder
from tbsn.training.fit import learning_rate
from tbsn.training.noise_model import SAME, NoiseModel
from tbsn.training.photos import facts
from tbsn.training.recipe import DistillRecipe, FitSettings, PairSettings, RenoiseRecipe, TrainRecipe, load_recipe
from tbsn.training.start import Start, open_run

TINY = ["network.width=8", "network.group_channels=8", "network.blocks=[1,1,1]", "network.refinement=1"]
TINY_HOLE = ["network.widths=[8,8,8]", "network.blocks=[1,1,1]", "network.head=8"]
SHORT = ["fit.steps=6", "fit.batch=2", "fit.checkpoint_every=2", "fit.log_every=2", "fit.warmup=0", "fit.workers=0"]


class StoppedError(Exception):
    pass


def weights(run: Path) -> dict[str, torch.Tensor]:
    return load_network(run).state_dict()


def same(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> bool:
    return all(torch.equal(value, other[name]) for name, value in one.items())


def test_images_left_out_are_counted_and_listed(
    blocks: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (blocks / "broken.png").write_bytes(b"\x89PNG\r\n\x1a\n")
    save(blocks / "small.png", np.zeros((100, 300, 3), np.uint8))
    recipe = load_recipe(TrainRecipe, "cpu", [*TINY, *SHORT, "fit.steps=1"])
    runs.train(blocks, tmp_path / "run", recipe, Start("cpu"))
    said = capsys.readouterr().err
    count = len(list(blocks.iterdir()))
    assert f"image {count}/{count}" in said and "2 images or folders cannot be used and are left out" in said
    broken, small = (tmp_path / "run" / "skipped.txt").read_text().splitlines()
    assert broken.startswith(str(blocks / "broken.png"))
    assert small.endswith("small.png: is 300x100, under the crop of 160")
    for name in ("broken.png", "small.png"):
        (blocks / name).unlink()
    runs.train(blocks, tmp_path / "run", recipe, Start("cpu"))
    assert "the images have changed" in capsys.readouterr().err
    assert not (tmp_path / "run" / "skipped.txt").exists()


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
    moved = NoiseModel.fit(to_float(photos[0]), to_float(estimates[0]), 128).unbiased(to_float(estimates[0]))
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
    fitted = [NoiseModel.fit(to_float(photos[i]), to_float(estimates[i]), 64, 2 * SAME) for i in large]
    kept.noise_models(photos, estimates, "sRGB", (2 * SAME).tolist(), 64)
    monkeypatch.setattr(NoiseModel, "fit", None)
    models = kept.noise_models(photos, estimates, "sRGB", (2 * SAME).tolist(), 64)
    for i, model in zip(large, fitted, strict=True):
        known = NoiseModel.unpacked(models[i].ravel(), 64, 3)
        for name, value in vars(model).items():
            np.testing.assert_array_equal(vars(known)[name], value, strict=True)
    settings = {"crop": 64, "places": range(2), "augment": False, "seed": 0, "among": large}
    Renoised(photos, estimates, models, how=PairSettings(mixed=1), **settings)[0]


def test_a_student_learns_from_renoised_estimates(blocks: Path, tmp_path: Path) -> None:
    tiny = ["network.widths=[8,8]", "network.blocks=[1,1]", "fit.crop=64", "fit.lr=1e-2", "fit.warmup=0"]
    seen = ["fit.steps=42", "fit.checkpoint_every=2", "fit.hold_back=0.3"]
    recipe = load_recipe(RenoiseRecipe, "renoise-cpu", [*SHORT, *tiny, *seen])
    network = runs.renoise(blocks, ["default"], tmp_path / "first", recipe, Start("cpu"))
    assert isinstance(network, FastUNet)
    log = [json.loads(line) for line in (tmp_path / "first" / "log.jsonl").read_text().splitlines()]
    losses = [line["held_back"] for line in log if "held_back" in line]
    assert losses[-1] < losses[0] + np.log(0.8)
    again = load_recipe(RenoiseRecipe, "renoise-cpu", [*SHORT, *tiny, "fit.steps=1", "ensemble=2"])
    runs.renoise(
        blocks, ["default", tmp_path / "first"], tmp_path / "second", again, Start("cpu", init=tmp_path / "first")
    )
    first, second = (facts(tmp_path / run / "estimates")["stamp"] for run in ("first", "second"))
    assert first != second, "the estimates are those of the model"
    blind = load_recipe(
        RenoiseRecipe, "renoise-cpu", [*SHORT, *TINY, "network.kind=TBSN", "network.pd=1", "fit.crop=64"]
    )
    assert isinstance(runs.renoise(blocks, ["default"], tmp_path / "third", blind, Start("cpu")), TBSN)


@pytest.mark.parametrize("name", ["sidd", "dnd", "cpu", "hole"])
def test_packaged_recipes_are_valid(name: str) -> None:
    recipe = load_recipe(TrainRecipe, name, [])
    assert recipe.fit.crop % (recipe.pd * recipe.network.multiple) == 0
    load_recipe(DistillRecipe, "distill", [])
    load_recipe(DistillRecipe, "distill-cpu", [])
    assert isinstance(load_recipe(RenoiseRecipe, "renoise-cpu", []).network, FastUNetConfig)


def test_the_sidd_recipe_is_the_papers() -> None:
    recipe = load_recipe(TrainRecipe, "sidd", [])
    assert recipe == TrainRecipe() and (recipe.pd, recipe.fit.crop, recipe.fit.batch) == (5, 640, 4)
    rates = [learning_rate(recipe.fit, step, step / 100_000) for step in (0, 39_999, 40_000, 79_999, 80_000, 99_999)]
    assert rates == pytest.approx([3e-4, 3e-4, 3e-5, 3e-5, 3e-6, 3e-6])


@pytest.mark.parametrize(
    ("overrides", "named"),
    [
        (["fit.stepz=3"], "fit.stepz"),
        (["fit.steps=many"], "fit.steps"),
        (["network.window=12"], "network"),
        (["network.kind=UNet"], "network"),
        (["network.kind=HalfPlane"], "network.HalfPlane.width"),
        (["network={kind: HalfPlane}", "recompute=true"], "recompute"),
        (["fit.steps.more=1"], "fit.steps.more"),
        (["fit.steps"], "fit.steps"),
    ],
)
def test_wrong_settings_are_named(overrides: list[str], named: str) -> None:
    with pytest.raises(InputError, match=named):
        load_recipe(TrainRecipe, "cpu", overrides)


def test_an_unknown_recipe_lists_the_known_ones() -> None:
    with pytest.raises(InputError, match="cpu, distill"):
        load_recipe(TrainRecipe, "sid", [])


@pytest.mark.parametrize("stop", [1, 3, 4])
def test_resumed_equals_uninterrupted(blocks: Path, tmp_path: Path, stop: int, monkeypatch: pytest.MonkeyPatch) -> None:
    recipe = load_recipe(TrainRecipe, "cpu", [*TINY, *SHORT, "fit.hold_back=0.5", "fit.log_every=1"])
    scores, seen = [2.0, 1.0, 3.0], []

    def score(network: torch.nn.Module, **_: Any) -> float:
        for known, value in seen:
            if same(known, network.state_dict()):
                return value
        seen.append((network.state_dict(), scores[len(seen)]))
        return seen[-1][1]

    monkeypatch.setattr(fit, "mean_loss", score)
    runs.train(blocks, tmp_path / "whole", recipe, Start("cpu"))
    assert same(weights(tmp_path / "whole"), seen[1][0])
    get = Crops.__getitem__

    def interrupted(crops: Crops, step: int) -> Any:
        if step == stop:
            raise StoppedError
        return get(crops, step)

    with monkeypatch.context() as patch, pytest.raises(StoppedError):
        patch.setattr(Crops, "__getitem__", interrupted)
        runs.train(blocks, tmp_path / "parts", recipe, Start("cpu"))
    with (tmp_path / "parts" / "log.jsonl").open("a") as file:
        file.write('{"step": 1, "los')  # killed while it wrote
    runs.train(blocks, tmp_path / "parts", recipe, Start("cpu", resume=True))
    assert same(weights(tmp_path / "whole"), weights(tmp_path / "parts"))
    whole, parts = (
        [json.loads(line) for line in (tmp_path / run / "log.jsonl").read_text().splitlines()]
        for run in ("whole", "parts")
    )
    for line in (*whole, *parts):
        line.pop("steps_per_second", None)
    assert parts == whole


def test_a_batch_in_parts_has_the_gradient_of_the_whole(
    blocks: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[list[torch.Tensor]] = []
    advance = fit.State.advance

    def watched(state: fit.State) -> None:
        seen.append([value.grad.clone() for value in state.network.parameters() if value.grad is not None])
        advance(state)

    monkeypatch.setattr(fit.State, "advance", watched)
    for parts in (1, 2):
        settings = ["fit.steps=1", "fit.batch=4", f"fit.accumulate={parts}", "fit.precision=float32"]
        runs.train(
            blocks, tmp_path / str(parts), load_recipe(TrainRecipe, "cpu", [*TINY, *SHORT, *settings]), Start("cpu")
        )
    whole, halves = seen
    assert any(gradient.any() for gradient in whole)
    for one, other in zip(whole, halves, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("wanted", ["float32", "auto"])
def test_a_start_is_recorded_with_the_precision_in_use(
    wanted: str, blocks: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(fit, "computes_bf16", lambda device: True)
    recipe = load_recipe(TrainRecipe, "cpu", [*TINY, *SHORT, "fit.steps=1", f"fit.precision={wanted}"])
    runs.train(blocks, tmp_path / "run", recipe, Start("cpu"))
    (started,) = map(json.loads, (tmp_path / "run" / "started.jsonl").read_text().splitlines())
    assert started["precision"] == {"float32": "float32", "auto": "bf16"}[wanted]
    assert started["device"].startswith("cpu") and started["device"] != "cpu", "its processor's name"


def test_the_result_has_the_least_loss_on_images_held_back(
    blocks: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    averages: dict[int, dict[str, torch.Tensor]] = {}
    given_losses = iter([3.0, 1.0, 2.0])

    def score(network: torch.nn.Module, **_: Any) -> float:
        averages[2 * len(averages) + 2] = network.state_dict()
        return next(given_losses)

    monkeypatch.setattr(fit, "mean_loss", score)
    recipe = load_recipe(TrainRecipe, "cpu", [*TINY, *SHORT, "fit.hold_back=0.5"])
    network = runs.train(blocks, tmp_path / "run", recipe, Start("cpu"))
    log = [json.loads(line) for line in (tmp_path / "run" / "log.jsonl").read_text().splitlines()]
    assert {line["step"]: line["held_back"] for line in log if "held_back" in line} == {2: 3.0, 4: 1.0, 6: 2.0}
    assert same(weights(tmp_path / "run"), averages[4]) and same(network.state_dict(), averages[4])
    assert not same(averages[4], averages[6])


@given(st.integers(1, 300), st.floats(0, 0.99), st.integers(0, 9))
def test_every_image_is_trained_on_or_held_back(count: int, share: float, seed: int) -> None:
    names = [f"{i}.png" for i in range(count)]
    training, held_back = split(names, share, seed)
    assert sorted([*training, *held_back]) == list(range(count))
    assert len(held_back) == min(round(share * count), count - 1)
    _, later = split(["0.jpg", *names], share, seed)
    assert len({i + 1 for i in held_back} - set(later)) <= 1, "what was held back stays so when images come"


def test_runs_differ_by_seed_alone(blocks: Path, tmp_path: Path) -> None:
    for name, seed in (("a", 0), ("b", 0), ("c", 1)):
        recipe = load_recipe(TrainRecipe, "cpu", [*TINY, *SHORT, "fit.steps=2", f"fit.seed={seed}"])
        runs.train(blocks, tmp_path / name, recipe, Start("cpu"))
    assert same(weights(tmp_path / "a"), weights(tmp_path / "b"))
    assert not same(weights(tmp_path / "a"), weights(tmp_path / "c"))


@pytest.mark.parametrize(
    ("name", "tiny", "targets"),
    [("cpu", TINY, []), ("hole", TINY_HOLE, ["targets.holes=[0,1]"])],
)
def test_training_lowers_the_loss_and_distillation_follows(
    name: str, tiny: list[str], targets: list[str], blocks: Path, tmp_path: Path
) -> None:
    recipe = load_recipe(TrainRecipe, name, [*tiny, *SHORT, "fit.steps=60", "fit.log_every=10", "fit.lr=3e-3"])
    runs.train(blocks, tmp_path / "teacher", recipe, Start("cpu"))
    student = ["network.width=8", *targets, *SHORT, "fit.crop=64", "fit.steps=60", "fit.log_every=10"]
    distilled = load_recipe(DistillRecipe, "distill-cpu", student)
    network = runs.distill(blocks, [tmp_path / "teacher"], tmp_path / "student", distilled, Start("cpu"))
    assert isinstance(network, UNet)
    for run in ("teacher", "student"):
        log = [json.loads(line) for line in (tmp_path / run / "log.jsonl").read_text().splitlines()]
        assert [entry["step"] for entry in log] == [10, 20, 30, 40, 50, 60]
        assert log[-1]["loss"] < 0.8 * log[0]["loss"]
    assert same(weights(tmp_path / "student"), network.state_dict())
    assert not (tmp_path / "student" / "cache").exists(), "the teacher's run has decoded the images"


def test_a_run_is_neither_overwritten_nor_mixed(blocks: Path, tmp_path: Path) -> None:
    recipe = load_recipe(TrainRecipe, "cpu", [*TINY, *SHORT, "fit.steps=2"])
    with pytest.raises(InputError, match="no run to go on with"):
        open_run(tmp_path / "run", recipe, Start(resume=True), {}).close()
    open_run(tmp_path / "run", recipe, Start(), {}).close()
    open_run(tmp_path / "run", recipe, Start(resume=True), {}).close()
    checkpoint.save(tmp_path / "run", {"step": 1})
    other = load_recipe(TrainRecipe, "cpu", [*TINY, *SHORT, "fit.steps=3"])
    with pytest.raises(InputError, match=r"fit.steps 2 -> 3; .*--accept-changes"):
        open_run(tmp_path / "run", other, Start(), {}).close()
    open_run(tmp_path / "run", other, Start(accept_changes=True), {}).close()
    open_run(tmp_path / "run", other, Start(), {}).close()


@pytest.mark.parametrize("changed", ["images", "model", "init"])
def test_a_run_does_not_go_on_with_other_inputs(changed: str, blocks: Path, tmp_path: Path) -> None:
    small = ["network.widths=[8,8]", "network.blocks=[1,1]", "fit.crop=64", "fit.steps=1"]
    recipe = load_recipe(RenoiseRecipe, "renoise-cpu", [*SHORT, *small])
    save_network(tmp_path / "first.safetensors", build(recipe.network))
    inputs = {"images": blocks, "model": "default", "init": tmp_path / "first.safetensors"}

    def renoise(images: Path, model: str | Path, init: Path | None, accept_changes: bool = False) -> None:
        runs.renoise(images, [model], tmp_path / "run", recipe, Start("cpu", False, accept_changes, init))

    for _ in range(2):
        renoise(**inputs)
    other = {"images": blocks / "more", "model": "unet", "init": None}
    inputs[changed] = other[changed]
    with pytest.raises(InputError, match=rf"{changed}s? .* -> .*--accept-changes"):
        renoise(**inputs)
    renoise(**inputs, accept_changes=True)


def test_the_network_of_a_checkpoint_cannot_be_changed(tmp_path: Path) -> None:
    first, wider = (load_recipe(TrainRecipe, "cpu", [*TINY, f"network.width={width}"]) for width in (8, 16))
    open_run(tmp_path, first, Start(), {}).close()
    checkpoint.save(tmp_path, {"step": 1})
    with pytest.raises(InputError, match=r"network.width 8 -> 16; .*-o$"):
        open_run(tmp_path, wider, Start(accept_changes=True), {}).close()
    open_run(tmp_path, first, Start(), {}).close()


def test_the_previous_checkpoint_stands_in_for_a_damaged_one(tmp_path: Path) -> None:
    for step in (1, 2):
        checkpoint.save(tmp_path, {"step": step})
    newest = tmp_path / checkpoint.NEWEST
    newest.write_bytes(newest.read_bytes()[:50])
    assert checkpoint.load(tmp_path) == {"step": 1}
    (tmp_path / checkpoint.PREVIOUS).write_bytes(b"")
    with pytest.raises(InputError, match="cannot be read"):
        checkpoint.load(tmp_path)


@pytest.mark.parametrize("clip", [0, 1])
def test_a_loss_that_is_not_finite_stops_the_run(
    clip: int, blocks: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    recipe = load_recipe(TrainRecipe, "cpu", [*TINY, *SHORT, f"fit.clip={clip}"])
    finite, calls = losses.blind_spot, iter(range(100))

    def broken(model: torch.nn.Module, batch: Any) -> torch.Tensor:
        return finite(model, batch) * (float("nan") if next(calls) >= 4 else 1)

    monkeypatch.setattr(losses, "blind_spot", broken)
    with pytest.raises(InputError, match="loss is nan at step 6"):
        runs.train(blocks, tmp_path / "run", recipe, Start("cpu"))
    state = checkpoint.load(tmp_path / "run")
    assert state is not None and state["step"] == 4
    assert all(value.isfinite().all() for value in state["network"].values())


def test_what_cannot_be_trained_on_is_named(folder: Path, tmp_path: Path) -> None:
    recipe = load_recipe(TrainRecipe, "cpu", [*TINY, *SHORT])
    (tmp_path / "empty").mkdir()
    (tmp_path / "small").mkdir()
    save(tmp_path / "small" / "small.png", np.zeros((100, 300, 3), np.uint8))
    for place, complaint in (
        (tmp_path / "empty", "no images"),
        (tmp_path / "absent", "no images"),
        (tmp_path / "small", "small.png: is 300x100"),
    ):
        with pytest.raises(InputError, match=complaint):
            runs.train(place, tmp_path / f"run-{place.name}", recipe, Start("cpu"))
    with pytest.raises(InputError, match="multiple of 160"):
        runs.train(folder, tmp_path / "run", load_recipe(TrainRecipe, "cpu", ["fit.crop=250"]), Start("cpu"))
    with pytest.raises(InputError, match="is a student"):
        save_network(tmp_path / "student.safetensors", UNet(UNetConfig(width=4)))
        distilled = DistillRecipe(fit=FitSettings(crop=128))
        runs.distill(folder, [tmp_path / "student.safetensors"], tmp_path / "d", distilled, Start())
    save_network(tmp_path / "grey.safetensors", build(TBSNConfig(channels=1)))
    with pytest.raises(InputError, match="has 1 channels, the student 3"):
        runs.distill(folder, [tmp_path / "grey.safetensors"], tmp_path / "d", distilled, Start())
    with pytest.raises(InputError, match="teacher: has 3 channels, the student 1"):  # the package's, by its name
        runs.distill(folder, [Path("teacher")], tmp_path / "d", DistillRecipe(network=UNetConfig(channels=1)), Start())
    with pytest.raises(InputError, match="instead of PD"):
        load_recipe(TrainRecipe, "hole", []).with_pd(5)
    with pytest.raises(InputError, match=r"network\.pd=1"):
        load_recipe(RenoiseRecipe, "renoise-cpu", ["network.kind=TBSN"])
    ensemble = load_recipe(RenoiseRecipe, "renoise-cpu", ["ensemble=2"])
    with pytest.raises(InputError, match="is no student"):
        runs.renoise(folder, [tmp_path / "grey.safetensors"], tmp_path / "r", ensemble, Start("cpu"))


def test_a_network_is_not_used_with_a_larger_stride_than_it_was_trained_with(blocks: Path, tmp_path: Path) -> None:
    recipe = load_recipe(TrainRecipe, "cpu", [])
    assert [recipe.with_pd(stride).network.pd for stride in (1, 2, 5)] == [1, 2, 2]
    assert recipe.with_pd(5, 3).network.pd == 3
    settings = [*SHORT, *TINY, "pd=1", "fit.crop=32"]
    trained = runs.train(blocks, tmp_path / "run", load_recipe(TrainRecipe, "cpu", settings), Start("cpu"))
    assert isinstance(trained, TBSN) and trained.config.pd == 1
    noisy, first = torch.rand(1, 3, 32, 32), teacher.targets([trained], None, True, (), (), 0)
    assert torch.equal(first(noisy), trained(noisy))


def test_targets_of_an_ensemble_are_what_teachers_make_of_symmetries_that_the_values_decide() -> None:
    noisy = torch.randint(0, 256, (6, 3, 16, 16), generator=torch.Generator().manual_seed(0)) / 255
    torch.manual_seed(0)
    teacher, student = (FastUNet(FastUNetConfig(widths=(8, 8), blocks=(1, 1))) for _ in range(2))
    for network in (teacher, student):
        nn.init.normal_(network.output.weight)
    of_all = [mean_over_symmetries(_as_numpy(teacher), one.permute(1, 2, 0).numpy()) for one in noisy]
    whole = torch.from_numpy(np.stack(of_all)).permute(0, 3, 1, 2)
    distance = (student(noisy) - whole).square().mean(dim=(1, 2, 3)) + losses.LEAST_DISTANCE
    torch.testing.assert_close(losses.ensembled([teacher], 8)(student, (noisy, noisy)), distance.log().mean())
    of_two = losses.ensembled([teacher, teacher], 2)
    together = of_two(student, (noisy, noisy))
    alone = torch.stack([of_two(student, (one[None], one[None])) for one in noisy])
    torch.testing.assert_close(together, alone.mean())
    together.backward()
    assert student.output.weight.grad is not None and teacher.output.weight.grad is None


def _as_numpy(network: nn.Module) -> Callable[[np.ndarray], np.ndarray]:
    def run(image: np.ndarray) -> np.ndarray:
        batch = torch.from_numpy(np.ascontiguousarray(image.transpose(2, 0, 1)))[None]
        return network(batch)[0].detach().permute(1, 2, 0).numpy()

    return run
