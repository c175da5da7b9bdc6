"""Many files: streams, signals, records, and what one bad file or a full disk does to the others."""

import errno
import hashlib
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from unittest.mock import Mock

import numpy as np
import pytest
import tifffile

import tbsn as package
from conftest import EXAMPLES, save, tbsn
from tbsn import batch, images, session
from tbsn.denoiser import Denoiser
from tbsn.errors import NoRoomError
from tbsn.plan import Job
from test_one_file import SAME, integers

SHOWN = {"capture_output": True, "text": True, "check": False}


def test_standard_input_goes_to_standard_output_in_its_format(tmp_path: Path, photo: Path) -> None:
    command = [sys.executable, "-m", "tbsn", "denoise", "-"]
    done = subprocess.run(command, input=photo.read_bytes(), capture_output=True, check=True)
    assert not done.stderr
    (tmp_path / "out.png").write_bytes(done.stdout)
    assert np.array_equal(images.read(tmp_path / "out.png").pixels, package.load()(images.read(photo).pixels))
    done = subprocess.run([*command, "--format", "webp"], input=photo.read_bytes(), capture_output=True, check=True)
    assert done.stdout[8:12] == b"WEBP"
    done = subprocess.run([*command, "-o", tmp_path / "out"], input=photo.read_bytes(), capture_output=True, check=True)
    assert (tmp_path / "out" / "standard-input.png").read_bytes() == (tmp_path / "out.png").read_bytes()
    done = subprocess.run(command, input=b"<html>", capture_output=True, check=False)
    assert done.returncode == 2 and not done.stdout and done.stderr.count(b"\n") == 1
    assert done.stderr.startswith(b"error: standard input: is HTML")
    assert json.loads((tmp_path / "out" / "run.jsonl").read_text())["input"] == "standard input"
    command += ["-o", str(tmp_path / "cut.png")]
    done = subprocess.run(command, input=photo.read_bytes()[:9000], capture_output=True, check=False)
    assert done.returncode == 3 and done.stderr.startswith(b"error: standard input: damaged")
    done = subprocess.run([*command, "--dry-run"], input=photo.read_bytes(), capture_output=True, check=True)
    assert done.stdout.decode() == f"standard input -> {tmp_path / 'cut.png'}\n" and not done.stderr


@pytest.mark.parametrize(("output", "code"), [("> /dev/full", 5), ("| true", 2)])
def test_standard_output_that_takes_nothing_is_named(photo: Path, output: str, code: int) -> None:
    command = f"{sys.executable} -m tbsn denoise - < {photo} {output}; exit ${{PIPESTATUS[0]}}"
    done = subprocess.run(["bash", "-c", command], **SHOWN)
    assert done.returncode == code and done.stderr.startswith("error: standard output: cannot be written (")
    assert done.stderr.count("\n") == 1


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_while_standard_input_is_read_leaves_nothing(tmp_path: Path, number: int) -> None:
    command = [sys.executable, "-m", "tbsn", "denoise", "-", "-o", str(tmp_path / "out.png")]
    (tmp_path / "temporary").mkdir()
    environment = os.environ | {"TMPDIR": str(tmp_path / "temporary")}
    process = subprocess.Popen(command, stdin=subprocess.PIPE, stderr=subprocess.PIPE, env=environment)
    while not list(tmp_path.glob("temporary/*/*")):
        assert process.poll() is None
        time.sleep(0.01)
    process.send_signal(number)
    assert process.wait(20) == 128 + number
    assert process.stdin and process.stderr and not process.stderr.read()
    process.stdin.close()
    process.stderr.close()
    assert not list(tmp_path.glob("temporary/*")) and not (tmp_path / "out.png").exists()


def test_the_log_says_what_was_done(folder: Path, tmp_path: Path) -> None:
    (folder / "bad.png").write_bytes(b"no image")
    out = tmp_path / "out"
    assert tbsn("denoise", folder, "-o", out, "--quiet").returncode == 3
    (out / "01_14.png").unlink()
    again = tbsn("denoise", folder, "-o", out, "--skip-existing")
    assert again.returncode == 3 and "1 done, 2 skipped, 1 failed" in again.stderr
    assert tbsn("denoise", folder / "01_14.png", "-o", out).returncode == 3
    lines = [json.loads(line) for line in (out / "run.jsonl").read_text().splitlines()]
    assert [line["status"] for line in lines[:4]] == ["done", "failed", "done", "done"]
    digest = hashlib.sha256((folder / "01_14.png").read_bytes()).hexdigest()
    assert "exists already" in lines[-1]["error"] and lines[-1]["input_sha256"] is None
    assert lines[0]["input_sha256"] == digest and lines[0]["model"] == "default" and len(lines[0]["model_sha256"]) == 64


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143), (signal.SIGHUP, 129)])
def test_a_batch_that_is_stopped_goes_on(tmp_path: Path, number: int, code: int) -> None:
    (tmp_path / "in").mkdir()
    for i in range(12):
        shutil.copy(EXAMPLES / "letters.png", tmp_path / "in" / f"{i:02}.png")
    command = [sys.executable, "-m", "tbsn", "denoise", str(tmp_path / "in"), "-o", str(tmp_path / "out")]
    command = ["env", "--default-signal=HUP", *command]  # whoever runs the tests may ignore it
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    while not list((tmp_path / "out").glob("[0-9]*.png")):
        time.sleep(0.02)
    process.send_signal(number)
    _, errors = process.communicate(timeout=60)
    assert process.returncode == code and " left; " in errors.splitlines()[-1]
    done = {path.name for path in (tmp_path / "out").iterdir()} - {"run.jsonl"}
    assert 0 < len(done) < 12 and all(name.endswith(".png") and not name.startswith(".") for name in done)
    assert subprocess.run([*command, "--skip-existing"], capture_output=True, check=False).returncode == 0
    assert len(list((tmp_path / "out").glob("[0-9]*.png"))) == 12


def test_nohup_is_heeded() -> None:
    code = "from tbsn.stopping import *\nwith remembered_signal() as received: signal.raise_signal(signal.SIGHUP)"
    done = subprocess.run(["env", "--ignore-signal=HUP", sys.executable, "-c", f"{code}\nprint(received())"], **SHOWN)
    assert done.stdout == "0\n" and not done.stderr


@pytest.mark.parametrize("output", ["| true", "2>&1 | true", "> /dev/full", "> /dev/full 2>&1"])
def test_a_batch_goes_on_though_nobody_reads_what_it_says(folder: Path, tmp_path: Path, output: str) -> None:
    (folder / "bad.png").write_bytes(b"no image")
    command = f"{sys.executable} -m tbsn denoise {folder} -o {tmp_path / 'out'} {output}; exit ${{PIPESTATUS[0]}}"
    assert subprocess.run(["bash", "-c", command], **SHOWN).returncode == 3
    assert len((tmp_path / "out" / "run.jsonl").read_text().splitlines()) == 4


def test_a_signal_is_heeded_before_the_next_tile(tmp_path: Path) -> None:
    np.save(tmp_path / "wide.npy", integers(90, 2000))
    tiles: list[np.ndarray] = []
    counting = replace(SAME, function=lambda image: tiles.append(image) or image)
    jobs = [Job(tmp_path / "wide.npy", tmp_path / f"{i}.npy") for i in range(9)]
    results = list(batch.denoise_files(counting, jobs, received=lambda: signal.SIGINT * (len(tiles) == 3)))
    assert len(tiles) == 3 and [result.status for result in results] == ["stopped"] * 2


@pytest.mark.parametrize("times", [1, 2, 3])
def test_ctrl_c_keeps_the_summary_however_often(tmp_path: Path, capsys: pytest.CaptureFixture[str], times: int) -> None:
    def work(denoise: object, jobs: list[Job], *more: object) -> Iterator[batch.Result]:
        yield batch.Result(jobs[0], pixels=10)
        try:
            signal.raise_signal(signal.SIGINT)
            signal.raise_signal(signal.SIGINT) if times > 1 else None
        finally:
            signal.raise_signal(signal.SIGINT) if times > 2 else None

    jobs = [Job("a", tmp_path / f"{i}") for i in range(3)]
    assert session.run(SAME, jobs, batch.Settings(), None, 1, work) == 130
    assert capsys.readouterr().err.splitlines()[-1].startswith("1 done, 2 left; ")


@pytest.mark.parametrize("module", ["typer", "numpy", "tbsn.session"])
def test_ctrl_c_while_the_program_starts_is_silent(module: str, photo: Path) -> None:
    interrupted = f"""if True:
        import signal, sys
        signal.signal(signal.SIGINT, signal.default_int_handler)  # in the background it is ignored
        class Finder:
            def find_spec(self, name, *_):
                name == {module!r} and signal.raise_signal(signal.SIGINT)
        sys.meta_path.insert(0, Finder())
        from tbsn.__main__ import run
        run()"""
    command = [sys.executable, "-c", interrupted, "denoise", str(photo)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 130 and not done.stderr and not done.stdout


@pytest.mark.parametrize(("both", "plain"), [(False, False), (True, False), (True, True)])
def test_on_a_terminal_there_is_a_bar_and_results_are_whole_lines(tmp_path: Path, both: bool, plain: bool) -> None:
    """On standard output they stay, if that is a file; else they stand above the bar."""
    pty = pytest.importorskip("pty")
    stack, out = tmp_path / "in" / f"{'long' * 30}.tif", tmp_path / "out"
    stack.parent.mkdir()
    tifffile.imwrite(stack, integers(40, 90, 90), metadata={"axes": "ZYX"}, photometric="minisblack")
    shutil.copy(EXAMPLES / "01_14.png", stack.with_name("b.png"))
    main, terminal = pty.openpty()
    command = [sys.executable, "-m", "tbsn", "denoise", stack.parent, "-o", out]
    environment = os.environ | {"TERM": "xterm"} | ({"NO_COLOR": "1"} if plain else {})
    with (tmp_path / "results").open("wb") as file, os.fdopen(main, "rb", buffering=0) as screen:
        process = subprocess.Popen(command, stdout=terminal if both else file, stderr=terminal, env=environment)
        os.close(terminal)
        said = ""
        with suppress(OSError):  # how Linux tells that it ends
            while part := screen.read(1 << 16):
                said += part.decode(errors="replace")
    assert process.wait() == 0, said
    lines = [f"{stack.parent / name} -> {out / name}" for name in ("b.png", stack.name)]
    assert (tmp_path / "results").read_text().splitlines() == ([] if both else lines)
    assert [line in re.split(r"\r\n|\x1b\[2K", said) for line in lines] == [both, both]
    speeds = re.findall(r"page (\d+)/40 (\d\.\d\d) MP/s", said)
    assert len(speeds) > 1 and all(float(speed) for _, speed in speeds)
    assert bool(re.search(r"\x1b\[[\d;]*3\d", said)) != plain  # colours


def test_memory_and_unexpected_errors_are_the_files_alone(tmp_path: Path, photo: Path) -> None:
    def fails(error: Exception) -> Denoiser:
        def function(image: np.ndarray) -> np.ndarray:
            raise error

        return Denoiser(function, 3, "fails")

    jobs = [Job(photo, tmp_path / f"{i}.png") for i in range(3)]
    for error, code in ((MemoryError(), 5), (RuntimeError("std::bad_alloc"), 5), (KeyError("x"), 1)):
        results = list(batch.denoise_files(fails(error), jobs))
        assert [result.error and result.error.code for result in results] == [code] * 3
        assert not list(tmp_path.glob("[.0-9]*.png"))


def test_quiet_and_verbose(folder: Path, tmp_path: Path) -> None:
    quiet = tbsn("denoise", folder, "-o", tmp_path / "out", "-q")
    assert (quiet.returncode, quiet.stdout, quiet.stderr) == (0, "", "")
    verbose = tbsn("denoise", folder, "-o", tmp_path / "out", "-v", "--skip-existing")
    assert verbose.returncode == 0 and verbose.stdout.count(" is there already\n") == 3
    verbose = tbsn("denoise", folder, "-o", tmp_path / "out", "-v", "--overwrite")
    assert len(re.findall(r"\.\w+  0\.\d\d megapixels in \d+\.\d\d s\n", verbose.stdout)) == 3


@pytest.mark.parametrize("error", [OSError(errno.EIO, "Input/output error"), FileNotFoundError()])
def test_a_file_that_cannot_be_hashed_is_denoised_all_the_same(
    tmp_path: Path, photo: Path, monkeypatch: pytest.MonkeyPatch, error: OSError
) -> None:
    monkeypatch.setattr(batch, "sha256", Mock(side_effect=error))
    results = list(batch.denoise_files(SAME, [Job(photo, tmp_path / f"{i}.png") for i in range(3)]))
    assert [(result.status, batch.record(result)["input_sha256"]) for result in results] == [("done", None)] * 3


def test_a_full_disk_ends_the_batch(tmp_path: Path, photo: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*arguments: object) -> None:
        raise NoRoomError("out", "cannot be written (No space left on device)", "make room")

    monkeypatch.setattr(batch, "write_rows", full)
    jobs = [Job(photo, tmp_path / f"{i}.png") for i in range(20)]
    results = list(batch.denoise_files(SAME, jobs))
    assert len(results) < 4 and all(result.error and result.error.code == 5 for result in results)


@pytest.mark.parametrize("closed", ["0<&-", "1>&-", "2>&-"])
def test_a_daemons_closed_streams_are_no_files(tmp_path: Path, closed: str) -> None:
    save(tmp_path / "a.png", noise := np.random.default_rng(0).integers(0, 255, (64, 64, 3), np.uint8))
    command = f"exec {sys.executable} -m tbsn denoise a.png -o b.png {closed}"
    done = subprocess.run(["sh", "-c", command], cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 0 and not done.stderr
    assert images.read(tmp_path / "b.png").pixels.shape == noise.shape
