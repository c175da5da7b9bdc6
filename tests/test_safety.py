"""Training that is interrupted, starved or misled: nothing is lost. Real processes, real signals."""

import itertools
import json
import os
import random
import resource
import shutil
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

from conftest import tbsn
from tbsn.errors import InputError, NoRoomError
from tbsn.network.files import load_network
from tbsn.training import checkpoint, fit, runs
from tbsn.training.data import Crops
from tbsn.training.photos import ENTRY
from tbsn.training.recipe import TrainRecipe, load_recipe
from tbsn.training.runs import Start

TINY = {
    "network": "{width: 8, group_channels: 8, blocks: [1, 1, 1], refinement: 1}",
    "fit.batch": "2",
    "fit.log_every": "1",
    "fit.checkpoint_every": "1",
    "fit.precision": "float32",
}


def command(folder: Path, run: Path, *more: str, **settings: str) -> list[str]:
    """The command line of a small run; ``fit_steps`` sets ``fit.steps``."""
    changed = TINY | {name.replace("_", ".", 1): value for name, value in settings.items()}
    overrides = [part for name, value in changed.items() for part in ("--set", f"{name}={value}")]
    return [sys.executable, "-m", "tbsn", "train", str(folder), "-o", str(run), "--device", "cpu", *overrides, *more]


def started(arguments: list[str], **options: Any) -> subprocess.Popen[str]:
    return subprocess.Popen(arguments, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, **options)


def wait_for(run: Path, step: int, process: subprocess.Popen[str]) -> None:
    while not (log := run / "log.jsonl").exists() or len(log.read_text().splitlines()) < step:
        assert process.poll() is None, process.communicate()
        time.sleep(0.02)


def step_of(run: Path) -> int:
    state = checkpoint.load(run)
    return 0 if state is None else state["step"]


def same_weights(one: Path, other: Path) -> bool:
    mine, theirs = (load_network(run).state_dict() for run in (one, other))
    return all(torch.equal(value, theirs[name]) for name, value in mine.items())


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_stops_with_a_checkpoint_and_the_same_command_goes_on(
    blocks: Path, tmp_path: Path, number: signal.Signals
) -> None:
    again = command(blocks, tmp_path / "run", fit_steps="12", fit_checkpoint_every="100")
    process = started(again)
    wait_for(tmp_path / "run", 3, process)
    process.send_signal(number)
    _, said = process.communicate(timeout=60)
    assert process.returncode == 128 + number
    assert said.splitlines()[-1].startswith(f"stopped: {tmp_path / 'run'}: {number.name} at step ")
    assert 3 <= step_of(tmp_path / "run") < 12
    assert subprocess.run(again, capture_output=True, check=False).returncode == 0
    whole = command(blocks, tmp_path / "whole", fit_steps="12", fit_checkpoint_every="100")
    assert subprocess.run(whole, capture_output=True, check=False).returncode == 0
    assert same_weights(tmp_path / "run", tmp_path / "whole")


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_before_the_first_step_is_one_line(photo: Path, tmp_path: Path, number: signal.Signals) -> None:
    (tmp_path / "many").mkdir()
    for i in range(5000):
        (tmp_path / "many" / f"{i}.png").hardlink_to(photo)
    process = started(command(tmp_path / "many", tmp_path / "run"))
    pixels = tmp_path / "run" / "cache" / "pixels.bin"
    while not (pixels.exists() and pixels.stat().st_size):
        time.sleep(0.02)
    process.send_signal(number)
    _, said = process.communicate(timeout=60)
    assert process.returncode == 128 + number
    assert said == f"stopped: {tmp_path / 'run'}: by {number.name}; the same command goes on\n"
    assert len(np.fromfile(tmp_path / "run" / "cache" / "index.bin", ENTRY)) > 0


def test_a_second_sigterm_is_still_one(blocks: Path, tmp_path: Path) -> None:
    process = started(command(blocks, tmp_path / "run", fit_steps="100000"))
    wait_for(tmp_path / "run", 1, process)
    process.send_signal(signal.SIGTERM)
    time.sleep(0.05)
    process.send_signal(signal.SIGTERM)
    _, said = process.communicate()
    assert process.returncode == 128 + signal.SIGTERM and "SIGTERM" in said, said


def test_what_others_write_below_a_run_is_left_alone(blocks: Path, tmp_path: Path) -> None:
    others = [tmp_path / "run" / name for name in ("other/.partial-01234567-x.pt", ".partial-notes.txt")]
    ours = [tmp_path / "run" / name for name in (".partial-01234567-x.pt", "cache/.partial-01234567-facts.json")]
    for path in (*others, *ours):
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()
    assert subprocess.run(command(blocks, tmp_path / "run", fit_steps="1"), check=False).returncode == 0
    assert all(path.exists() for path in others) and not any(path.exists() for path in ours)


def test_one_run_is_the_work_of_one_command(blocks: Path, tmp_path: Path) -> None:
    again = command(blocks, tmp_path / "run", "--accept-changes", fit_steps="100000")
    process = started(again)
    wait_for(tmp_path / "run", 1, process)
    second = subprocess.run(again, capture_output=True, text=True, check=False)
    assert second.returncode == 2 and second.stderr.count("\n") == 1
    assert "another process is at work on this run" in second.stderr
    process.kill()
    process.communicate()


@pytest.mark.slow
def test_kill_at_any_moment_leaves_a_checkpoint_that_loads(blocks: Path, tmp_path: Path) -> None:
    moments = random.Random(0)
    run, reached = tmp_path / "run", 0
    for _ in range(50):
        process = started(command(blocks, run, fit_steps="100000"))
        wait_for(run, 1, process)
        steps = step_of(run)
        while process.poll() is None and step_of(run) == steps:
            time.sleep(0.01)
        time.sleep(moments.uniform(0, 0.3))
        process.kill()
        process.communicate()
        assert step_of(run) >= reached
        reached = step_of(run)
        load_network(run)
    assert reached >= 50
    partial = list(run.glob(".partial-*"))
    assert len(partial) <= 1, "what killed processes leave behind is removed by the next start"


def test_a_full_disk_keeps_the_last_checkpoint(blocks: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    assert subprocess.run(command(blocks, run, fit_steps="2"), capture_output=True, check=False).returncode == 0
    size = (run / checkpoint.NEWEST).stat().st_size

    def starve() -> None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (size // 2, size // 2))

    process = started(command(blocks, run, "--accept-changes", fit_steps="4"), preexec_fn=starve)
    _, said = process.communicate()
    assert process.returncode == 5
    assert "the checkpoint of step 3 cannot be written (File too large); make room" in said.splitlines()[-1]
    assert step_of(run) == 2 and not list(run.glob(".partial-*"))


def test_a_folder_that_goes_away_is_named(blocks: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    get, recipe = Crops.__getitem__, load_recipe(TrainRecipe, "cpu", [f"{k}={v}" for k, v in TINY.items()])

    def lose(crops: Crops, step: int) -> Any:
        if step == 2:
            shutil.rmtree(tmp_path / "run")
        return get(crops, step)

    monkeypatch.setattr(Crops, "__getitem__", lose)
    with pytest.raises(InputError, match=r"run: the log cannot be written \(No such file or directory\)"):
        runs.train(blocks, tmp_path / "run", recipe, Start("cpu"))


def test_weights_that_diverge_end_with_code_4(blocks: Path, tmp_path: Path) -> None:
    done = subprocess.run(
        command(blocks, tmp_path / "run", fit_steps="9", fit_lr="1e30", fit_warmup="0"),
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 4 and ("not finite" in done.stderr or "the loss is nan" in done.stderr)
    assert "--accept-changes" in done.stderr
    state = checkpoint.load(tmp_path / "run")
    assert state is None or all(value.isfinite().all() for value in state["network"].values())


def test_an_error_in_a_data_worker_ends_the_run(tmp_path: Path) -> None:
    script = Path(__file__).with_name("failing_worker.py")
    done = subprocess.run(
        [sys.executable, str(script), str(tmp_path)], capture_output=True, text=True, check=False, timeout=90
    )
    assert done.returncode == 1 and "no such crop" in done.stderr


def test_max_time_ends_with_the_schedule_finished(
    blocks: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    clock = itertools.count(0, 0.5)
    monkeypatch.setattr(fit, "time", SimpleNamespace(monotonic=lambda: next(clock)))
    settings = ["fit.steps=1000000", "fit.warmup=0", "fit.milestones=[0.5]", "fit.checkpoint_every=1000"]
    recipe = load_recipe(TrainRecipe, "cpu", [f"{name}={value}" for name, value in TINY.items()] + settings)
    for _ in range(2):
        runs.train(blocks, tmp_path / "run", recipe, Start("cpu", max_seconds=10))
        log = [json.loads(line) for line in (tmp_path / "run" / "log.jsonl").read_text().splitlines()]
        assert log[0]["lr"] == pytest.approx(10 * log[-1]["lr"])
        state = checkpoint.load(tmp_path / "run")
        assert state is not None and 10 <= state["seconds"] < 12 and state["step"] == log[-1]["step"] == len(log)


def test_max_time_is_a_duration(blocks: Path, tmp_path: Path) -> None:
    timed = command(blocks, tmp_path / "run", "--max-time", "1s", fit_steps="1000000")
    assert subprocess.run(timed, capture_output=True, check=False).returncode == 0
    for wrong in ("soon", "0s"):
        done = tbsn("train", blocks, "--max-time", wrong)
        assert done.returncode == 2 and "with its unit" in done.stderr


def test_the_run_explains_itself(blocks: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    assert subprocess.run(command(blocks, run, fit_steps="2"), capture_output=True, check=False).returncode == 0
    facts = json.loads((run / "started.jsonl").read_text())
    assert facts["command"].startswith(f"tbsn train {blocks} -o {run}") and facts["torch"] == torch.__version__
    assert list((run / "tensorboard").iterdir()) and (run / "samples" / "step-000002.png").exists()
    kept = {path.name for path in run.iterdir()}
    assert {"recipe.yaml", "log.jsonl", "model.safetensors", checkpoint.NEWEST, checkpoint.PREVIOUS} <= kept


def test_a_run_can_start_from_a_model(blocks: Path, tmp_path: Path) -> None:
    assert (
        subprocess.run(command(blocks, tmp_path / "a", fit_steps="2"), capture_output=True, check=False).returncode == 0
    )
    tuned = command(
        blocks, tmp_path / "b", "--init", str(tmp_path / "a"), network_pd="1", fit_steps="1", fit_lr="1e-12"
    )
    assert subprocess.run(tuned, capture_output=True, check=False).returncode == 0
    first, after = (load_network(tmp_path / name).state_dict() for name in "ab")
    for name, value in first.items():
        torch.testing.assert_close(after[name], value, rtol=0, atol=1e-6)
    other = command(blocks, tmp_path / "c", "--init", str(tmp_path / "a"), network_width="16")
    refused = subprocess.run(other, capture_output=True, text=True, check=False)
    assert refused.returncode == 2 and "width 8 -> 16" in refused.stderr


def torchrun(processes: int, arguments: list[str]) -> list[str]:
    return [
        sys.executable, "-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={processes}", *arguments[1:]
    ]  # fmt: skip


def succeeds(arguments: list[str]) -> None:
    done = subprocess.run(arguments, capture_output=True, text=True, check=False, env=one_thread())
    assert done.returncode == 0, done.stderr


@pytest.mark.slow
def test_two_processes_have_the_gradient_of_one(blocks: Path, tmp_path: Path) -> None:
    script = Path(__file__).with_name("gradients.py")
    gradients = []
    for processes in (1, 2):
        file = tmp_path / f"{processes}.pt"
        arguments = [sys.executable, str(script), str(blocks), str(tmp_path / f"run{processes}"), str(file)]
        succeeds(torchrun(processes, arguments))
        gradients.append(torch.load(file, weights_only=True))
    for one, two in zip(*gradients, strict=True):
        assert (one - two).abs().max() <= 1e-6 * one.abs().max()


@pytest.mark.slow
def test_another_number_of_processes_goes_on(blocks: Path, tmp_path: Path) -> None:
    def run(processes: int, name: str, steps: int) -> None:
        arguments = command(blocks, tmp_path / name, "--accept-changes", fit_steps=str(steps))
        succeeds(torchrun(processes, arguments))

    run(1, "one", 4)
    run(2, "both", 2)
    run(1, "both", 4)
    assert step_of(tmp_path / "both") == 4
    one, both = (load_network(tmp_path / name).state_dict() for name in ("one", "both"))
    for name, value in one.items():
        torch.testing.assert_close(both[name], value, rtol=1e-2, atol=1e-3)


@pytest.mark.slow
def test_a_killed_process_ends_all_within_a_minute(blocks: Path, tmp_path: Path) -> None:
    process = started(torchrun(2, command(blocks, tmp_path / "run", fit_steps="100000")), env=one_thread())
    wait_for(tmp_path / "run", 2, process)
    found = subprocess.run(["pgrep", "-P", str(process.pid)], capture_output=True, text=True, check=True)
    os.kill(int(found.stdout.split()[-1]), signal.SIGKILL)
    killed = time.monotonic()
    _, said = process.communicate(timeout=90)
    assert process.returncode != 0 and time.monotonic() - killed < 60
    assert "SIGKILL" in said
    assert step_of(tmp_path / "run") >= 1


@pytest.mark.slow
@pytest.mark.parametrize("rank", [0, 1])
def test_a_process_that_is_lost_elsewhere_is_told_in_one_line(blocks: Path, tmp_path: Path, rank: int) -> None:
    arguments = command(blocks, tmp_path / "run", fit_steps="100000")
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
    shared = {"WORLD_SIZE": 2, "LOCAL_WORLD_SIZE": 1, "LOCAL_RANK": 0, "TORCHELASTIC_RUN_ID": 1}
    shared |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
    both = [
        started(arguments, env=one_thread() | {name: str(value) for name, value in (shared | {"RANK": rank}).items()})
        for rank in range(2)
    ]
    wait_for(tmp_path / "run", 2, both[0])
    both[rank].kill()
    both[rank].communicate()
    _, said = both[1 - rank].communicate(timeout=60)
    assert both[1 - rank].returncode == 2 and "another process of this run has ended" in said.splitlines()[-1]
    assert "Traceback" not in said and "Grad strides" not in said


@pytest.mark.slow
def test_sigterm_ends_all_processes_with_a_checkpoint(blocks: Path, tmp_path: Path) -> None:
    run, settings = tmp_path / "run", {"fit_steps": "100000", "fit_log_every": "100000"}
    process = started(torchrun(2, command(blocks, run, **settings)), env=one_thread())
    while not step_of(run):
        assert process.poll() is None, process.communicate()
        time.sleep(0.1)
    process.terminate()
    _, said = process.communicate(timeout=20)
    assert f"SIGTERM at step {step_of(run)}; a checkpoint is written" in said


def one_thread() -> dict[str, str]:
    return os.environ | {"OMP_NUM_THREADS": "1"}


FULL = """
import errno, sys, threading
from tensorboardX.record_writer import RecordWriter
write, at_once = RecordWriter.write, sys.argv.pop(1) == "at once"
def full(*record):
    if at_once or threading.current_thread() is not threading.main_thread():
        raise OSError(errno.ENOSPC, "No space left on device")
    write(*record)
RecordWriter.write = full
sys.argv[0] = "tbsn"
from tbsn.cli import run
run()
"""


@pytest.mark.parametrize("when", ["at once", "later"])
def test_training_ends_when_the_writer_of_its_log_has(blocks: Path, tmp_path: Path, when: str) -> None:
    """Full before a checkpoint is due: TensorBoard's thread would end, and its queue wait for ever."""
    _, _, _, *arguments = command(blocks, tmp_path / "run", fit_steps="100000", fit_checkpoint_every="100000")
    program = [sys.executable, "-c", FULL, when, *arguments]
    done = subprocess.run(program, capture_output=True, text=True, check=False, timeout=200)
    assert done.returncode == NoRoomError.code and done.stderr.splitlines()[-1].startswith("error: ")
    assert "No space left on device" in done.stderr and "Traceback" not in done.stderr


def test_a_start_that_failed_does_not_stand_in_the_way(blocks: Path, tmp_path: Path) -> None:
    failed = tbsn("train", blocks, "-o", tmp_path / "run", "--recipe", "sidd", "--device", "cpu")
    assert failed.returncode == 2 and "--set fit.crop=" in failed.stderr
    mended = command(blocks, tmp_path / "run", fit_steps="1")
    assert subprocess.run(mended, capture_output=True, check=False).returncode == 0


def test_a_model_to_start_from_is_checked_first(blocks: Path, tmp_path: Path) -> None:
    done = tbsn("train", blocks, "-o", tmp_path / "run", "--init", "default", "--device", "cpu")
    assert done.returncode == 2 and "is a FastUNet, the recipe's network a TBSN" in done.stderr
    assert not (tmp_path / "run").exists()
