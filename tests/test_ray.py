"""Many workers, one of which dies; images at URLs."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import fsspec
import numpy as np
import pytest
import pyvips

import tbsn as package
from conftest import EXAMPLES, tbsn
from tbsn import images
from tbsn.batch import Settings
from tbsn.cluster import attempt_anywhere
from tbsn.errors import InputError, NoRoomError
from tbsn.files import remove_partial_of
from tbsn.plan import Job, Output
from tbsn.urls import plan_urls

WITHOUT_RAY = "import sys; sys.modules['ray'] = sys.modules['fsspec'] = None; from tbsn.cli import run; run()"
CHILDREN = "/proc/{0}/task/{0}/children"


@pytest.fixture
def crops(tmp_path: Path) -> Path:
    """A folder with twelve real noisy photos, and a file that is none."""
    whole = pyvips.Image.new_from_file(str(EXAMPLES / "pepper.png"))
    (tmp_path / "in" / "more").mkdir(parents=True)
    for i in range(12):
        whole.crop(60 * i, 40 * i, 300, 300).write_to_file(str(tmp_path / "in" / "more" / f"{i:02}.png"))
    (tmp_path / "in" / "bad.png").write_bytes(b"no image")
    return tmp_path / "in"


def workers(process: int) -> list[int]:
    """The processes below one that hold a model for Ray."""
    children = [int(child) for child in Path(CHILDREN.format(process)).read_text().split()]
    named = [child for child in children if "MapWorker" in Path(f"/proc/{child}/cmdline").read_text()]
    return named + [worker for child in children for worker in workers(child)]


def records(folder: Path) -> dict[str, str]:
    """What came of each input, each of which is there once."""
    lines = [json.loads(line) for line in (folder / "run.jsonl").read_text().splitlines()]
    inputs = {line["input"]: line["status"] for line in lines}
    assert len(inputs) == len(lines)
    return inputs


@pytest.mark.slow
@pytest.mark.parametrize("scheme", ["", "file://"])
def test_a_worker_that_is_killed_loses_nothing_and_nothing_is_done_twice(
    crops: Path, tmp_path: Path, scheme: str
) -> None:
    assert tbsn("denoise", crops, "-o", tmp_path / "alone", "--quiet").returncode == 3
    command = [sys.executable, "-m", "tbsn", "denoise", f"{scheme}{crops}", "-o", f"{scheme}{tmp_path}/out"]
    pipe = subprocess.PIPE
    process = subprocess.Popen([*command, "--ray", "local"], stdout=pipe, stderr=pipe, text=True, cwd=tmp_path)
    while not (held := workers(process.pid)):
        assert process.poll() is None, process.communicate()
        time.sleep(0.02)
    while not list((tmp_path / "out").rglob("[0-9]*.png")):
        time.sleep(0.005)
    os.kill(held[0], signal.SIGKILL)
    output, errors = process.communicate(timeout=100)
    assert process.returncode == 3, errors
    assert output.count(" -> ") == 12 and "12 done, 1 failed" in errors  # Ray itself says there that a worker died
    assert errors.count("\n") == 2 and "bad.png: not a readable image" in errors
    statuses = records(tmp_path if scheme else tmp_path / "out")
    assert sorted(statuses.values()) == ["done"] * 12 + ["failed"]
    assert not list((tmp_path / "out").rglob(".partial-*"))
    for path in (tmp_path / "alone").rglob("*.png"):
        again = tmp_path / "out" / path.relative_to(tmp_path / "alone")
        assert again.read_bytes() == path.read_bytes()


def test_what_killed_workers_left_goes_and_nothing_else(tmp_path: Path) -> None:
    names = ["a.png", "b.png", "c-d.png"]
    killed = "import os, sys; from pathlib import Path; from tbsn.files import atomic\n"
    killed += "with atomic(Path(sys.argv[1])): os._exit(9)"
    for name in names:
        assert subprocess.run([sys.executable, "-c", killed, tmp_path / name]).returncode == 9
    (tmp_path / ".partial-of-another").touch()
    for done, left in ((["none.png"], 4), (["a.png"], 3), (names, 1)):
        remove_partial_of(tmp_path / name for name in done)
        assert len(list(tmp_path.glob(".partial-*"))) == left


def test_urls_go_in_and_out(photo: Path, tmp_path: Path) -> None:
    memory = fsspec.filesystem("memory")
    for name in ("a.png", "more/b.png", "more/.hidden.png", ".trash/c.png", "out/more/b.png", "notes.txt"):
        memory.pipe(f"/urls/{name}", photo.read_bytes())
    memory.pipe("/urls/bad.png", b"no image")
    with pytest.raises(InputError, match="exists already"):
        raise next(job.refused for job in plan_urls(["memory://urls"], "memory://urls/out", Output()) if job.refused)
    jobs = plan_urls(["memory://urls"], "memory://urls/out", Output(exists="skip"))
    assert [job.source for job in jobs if job.skipped] == ["memory:///urls/more/b.png"]
    results = [attempt_anywhere(package.load(), job, Settings()) for job in jobs if not job.skipped]
    assert [(result.job.source, result.status) for result in results] == [
        ("memory:///urls/a.png", "done"),
        ("memory:///urls/bad.png", "failed"),
    ]
    assert str(results[1].error).startswith("memory:///urls/bad.png: not a readable image")
    memory.get_file("/urls/out/a.png", str(tmp_path / "a.png"))
    assert np.array_equal(images.read(tmp_path / "a.png").pixels, package.load()(images.read(photo).pixels))
    assert memory.ls("/urls/out", detail=False) == ["/urls/out/a.png", "/urls/out/more"]


def test_what_a_dead_worker_has_done_is_not_done_again(photo: Path, tmp_path: Path) -> None:
    target = Path(shutil.copy(photo, tmp_path / "out.png"))
    for replaces in (False, True):
        result = attempt_anywhere(package.load(), Job(photo, target, replaces=replaces), Settings())
        assert result.status == "done" and (target.read_bytes() == photo.read_bytes()) is not replaces


def test_bad_urls_are_one_line_each(photo: Path, tmp_path: Path) -> None:
    for arguments in (["memory://a"], ["memory://a", "-o", tmp_path], ["nothing://a", "-o", tmp_path]):
        done = tbsn("denoise", *arguments, "--ray", "local")
        assert done.returncode == 2 and done.stderr.count("\n") == 1, done.stderr
    done = tbsn("denoise", "s3://bucket/a", "-o", tmp_path)
    assert done.returncode == 2 and "--ray local" in done.stderr
    lost = attempt_anywhere(package.load(), Job("memory://lost.png", tmp_path / "out.png"), Settings())
    assert str(lost.error).startswith("memory://lost.png: cannot be read (FileNotFoundError")


def test_without_ray_one_line_says_how_to_get_it(photo: Path) -> None:
    command = [sys.executable, "-c", WITHOUT_RAY, "denoise", str(photo)]
    assert subprocess.run([*command, "--help"], capture_output=True, check=False).returncode == 0
    done = subprocess.run([*command, "--ray", "local"], capture_output=True, text=True, check=False)
    assert done.returncode == 2 and done.stderr.endswith("pip install 'tbsn[ray]'\n") and done.stderr.count("\n") == 1


def test_errors_travel() -> None:
    import pickle

    error = pickle.loads(pickle.dumps(NoRoomError("a.png", "is large", "make room", disk=False)))
    assert str(error) == "a.png: is large; make room" and error.code == 5 and not error.disk
