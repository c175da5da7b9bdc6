import json
from pathlib import Path
from typing import Any
from unittest.mock import Mock

import numpy as np
import pytest
import torch
from tensorboardX.proto.event_pb2 import Event, SessionLog  # type: ignore[attr-defined]

from conftest import save
from tbsn import progress
from tbsn.errors import InputError, NoRoomError
from tbsn.network import TBSN, FastUNet, UNet
from tbsn.network.files import build, load_network, save_network
from tbsn.training import checkpoint, fit, losses, runs
from tbsn.training.data import Crops
from tbsn.training.photos import facts
from tbsn.training.recipe import DistillRecipe, RenoiseRecipe, TrainRecipe, load_recipe
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


def shown(run: Path) -> dict[str, list[int]]:
    """The steps of what TensorBoard shows: not those that a start says it measures again."""
    steps: dict[str, list[int]] = {}
    for file in sorted((run / "tensorboard").iterdir()):
        data, at = file.read_bytes(), 0
        while at < len(data):
            length = int.from_bytes(data[at : at + 8], "little")
            event = Event.FromString(data[at + 12 : at + 12 + length])
            at += length + 16
            if event.session_log.status == SessionLog.START:
                steps = {name: [step for step in known if step < event.step] for name, known in steps.items()}
            for value in event.summary.value:
                steps.setdefault(value.tag, []).append(event.step)
    return steps


def test_images_left_out_are_counted_and_listed(
    blocks: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(progress, "SECONDS_BETWEEN_LINES", 0)
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


def test_a_student_learns_from_renoised_estimates(blocks: Path, tmp_path: Path) -> None:
    tiny = ["network.widths=[8,8]", "network.blocks=[1,1]", "fit.crop=64", "fit.lr=1e-2", "fit.warmup=0"]
    seen = ["fit.steps=42", "fit.checkpoint_every=2", "fit.hold_back=0.3"]
    recipe = load_recipe(RenoiseRecipe, "renoise-cpu", [*SHORT, *tiny, *seen])
    save(blocks / "a-line.png", np.zeros((1, 200, 3), np.uint8))
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
        if step == stop and crops.augment:  # not of the images that are held back
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
    assert shown(tmp_path / "parts") == shown(tmp_path / "whole")


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
    other = load_recipe(TrainRecipe, "cpu", [*TINY, *SHORT, "fit.steps=3"])
    with pytest.raises(InputError, match=r"fit.steps 2 -> 3; .*--accept-changes"):
        open_run(tmp_path / "run", other, Start(resume=True), {}).close()
    (tmp_path / "run" / "targets").mkdir()  # they would be made anew
    with pytest.raises(InputError, match=r"fit.steps 2 -> 3; .*--accept-changes"):
        open_run(tmp_path / "run", other, Start(), {}).close()
    (tmp_path / "run" / "targets").rmdir()
    checkpoint.save(tmp_path / "run", {"step": 1})
    with pytest.raises(InputError, match=r"fit.steps 2 -> 3; .*--accept-changes"):
        open_run(tmp_path / "run", other, Start(), {}).close()
    open_run(tmp_path / "run", other, Start(accept_changes=True), {}).close()
    open_run(tmp_path / "run", other, Start(), {}).close()


def test_accepted_changes_are_those_of_the_optimizer_too(blocks: Path, tmp_path: Path) -> None:
    for steps, changed in ((1, []), (2, ["fit.weight_decay=0.5", "fit.beta2=0.75"])):
        recipe = load_recipe(TrainRecipe, "cpu", [*TINY, *SHORT, f"fit.steps={steps}", *changed])
        runs.train(blocks, tmp_path, recipe, Start("cpu", accept_changes=True))
    found = checkpoint.load(tmp_path)
    assert found and found["optimizer"]["param_groups"][0]["weight_decay"] == 0.5
    assert found["optimizer"]["param_groups"][0]["betas"] == (0.9, 0.75)


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


def test_full_memory_is_told_in_one_line(blocks: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    error = RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 655360000 bytes.")
    monkeypatch.setattr(losses, "blind_spot", Mock(side_effect=error))
    with pytest.raises(NoRoomError, match="does not fit into memory; make fit") as caught:
        runs.train(blocks, tmp_path / "run", load_recipe(TrainRecipe, "cpu", [*TINY, *SHORT]), Start("cpu"))
    assert caught.value.code == 5


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
