"""Wherever files are, whatever they are called: one line for what cannot be used, and the rest goes on."""

import os
import re
import shutil
import socket
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import pyvips

from conftest import ONE_LINE, SUFFIXES, Command, child, outputs
from tbsn import denoiser, images


def test_outputs_that_cannot_be_written_give_one_line(
    tmp_path: Path, denoise: Command, small: Path, identity: Path
) -> None:
    (tmp_path / "file").write_text("no folder")
    (tmp_path / "loop").symlink_to(tmp_path / "loop")
    for output in ("/proc/nowhere", tmp_path / "file", tmp_path / "loop", tmp_path / ("n" * 300)):
        assert len(denoise.refused(small, "-o", output, "--model", identity)) == 1
    if os.getuid():
        (tmp_path / "locked").mkdir(mode=0o500)
        assert "cannot write" in denoise.refused(small, "-o", tmp_path / "locked", "--model", identity)[0]["reason"]


@pytest.mark.parametrize("suffix", [*SUFFIXES, ".npy"])
@pytest.mark.parametrize("room", [1, 500])
def test_a_full_disk_gives_one_line_and_leaves_nothing(
    tmp_path: Path, small: Path, identity: Path, suffix: str, room: int
) -> None:
    """Of an image, and of the record if that has no room either."""
    limit = f"import resource; resource.setrlimit(resource.RLIMIT_FSIZE, ({room}, {room}))"
    out, record = tmp_path / "out", tmp_path / "out" / "run.jsonl"
    options = ("-o", out, "--model", identity, "--format", suffix[1:])
    out.mkdir()
    record.write_text("." * 400)
    done = child(limit, *(shutil.copy(small, tmp_path / f"{i}.png") for i in range(9)), *options)
    *errors, summary = done.stderr.splitlines()
    assert done.returncode == 5 and errors and all("File too large" in line for line in errors), done.stderr
    assert all(map(ONE_LINE.fullmatch, errors)) and re.match(r"[1-4] failed", summary)
    assert sum(str(record) in line for line in errors) == 1 and not outputs(out)


def test_a_disk_without_a_byte_is_noticed_before_the_work(tmp_path: Path, small: Path, identity: Path) -> None:
    limit = "import resource; resource.setrlimit(resource.RLIMIT_FSIZE, (0, 0))"
    done = child(limit, small, "-o", tmp_path / "out", "--model", identity)
    assert done.returncode == 5 and done.stderr.count("\n") == 1 and ONE_LINE.fullmatch(done.stderr.strip())
    assert not outputs(tmp_path / "out")


def test_an_input_is_never_written_over(tmp_path: Path, denoise: Command, small: Path, identity: Path) -> None:
    before = small.read_bytes()
    (tmp_path / "link.png").symlink_to(small)
    (tmp_path / "hard.png").hardlink_to(small)
    (tmp_path / "folder").symlink_to(tmp_path)
    for output in (
        small,
        tmp_path / "link.png",
        tmp_path / "hard.png",
        tmp_path / "folder" / "small.png",
        tmp_path / "folder",
    ):
        (error,) = denoise.refused(small, "-o", output, "--model", identity, "--overwrite")
        assert "same file" in error["reason"]
    assert small.read_bytes() == before and (tmp_path / "link.png").is_symlink()


def test_links_are_followed_in_and_replaced_out(tmp_path: Path, denoise: Command, small: Path, identity: Path) -> None:
    (tmp_path / "link.png").symlink_to(small)
    (tmp_path / "precious").write_bytes(b"precious")
    (tmp_path / "out.png").symlink_to(tmp_path / "precious")
    (tmp_path / "dangling.png").symlink_to(tmp_path / "absent")
    for output in ("out.png", "dangling.png"):
        (error,) = denoise.refused(tmp_path / "link.png", "-o", tmp_path / output, "--model", identity)
        assert "exists already" in error["reason"]
        assert denoise(tmp_path / "link.png", "-o", tmp_path / output, "--model", identity, "--overwrite")[0] == 0
        assert not (tmp_path / output).is_symlink() and images.read(tmp_path / output).pixels.shape == (30, 40, 3)
    assert (tmp_path / "precious").read_bytes() == b"precious" and not (tmp_path / "absent").exists()
    assert denoise(tmp_path / "link.png", "--model", identity)[0] == 0 and (tmp_path / "link_denoised.png").is_file()


@pytest.mark.parametrize(
    ("arguments", "reason"),
    [
        (["--suffix", "/x"], "no part of a name"),
        (["--suffix", "../x"], "no part of a name"),
        (["--max-memory", "²GB"], "not an amount"),
        (["--max-memory", "20MB"], "less than it takes"),
        (["-o", ""], "is no name"),
        ([""], "is no name"),
        (["-o", "c.png", "--format", "jpg"], "is not .jpg"),
        (["-o", "c.gif"], ".gif cannot be written"),
        (["missing.png", "--dry-run"], "no such file"),
    ],
)
def test_what_cannot_be_meant_is_refused(
    denoise: Command, small: Path, monkeypatch: pytest.MonkeyPatch, arguments: list[str], reason: str
) -> None:
    monkeypatch.chdir(small.parent)
    (error,) = denoise.refused(small, *arguments)
    assert reason in error["reason"] and [*small.parent.iterdir()] == [small]


def test_of_two_names_of_a_format_either_will_do(tmp_path: Path, denoise: Command, small: Path, identity: Path) -> None:
    (tmp_path / "c.gif").mkdir()
    for output in ("c.jpeg", "c.gif"):
        assert denoise(small, "-o", tmp_path / output, "--format", "jpg", "--model", identity)[0] == 0
    assert (tmp_path / "c.jpeg").is_file() and (tmp_path / "c.gif" / "small.jpg").is_file()


def test_when_nobody_reads_the_results_any_more_the_work_goes_on(tmp_path: Path, small: Path, identity: Path) -> None:
    copies = [shutil.copy(small, tmp_path / f"{i}.png") for i in range(9)]
    unread = "import os, sys; here, there = os.pipe(); os.close(here); os.dup2(there, 1); os.close(there)"
    done = child(unread, *copies, "-o", tmp_path / "out", "--model", identity)
    assert done.returncode == 0 and done.stderr.startswith("9 done; ") and done.stderr.count("\n") == 1
    assert len(outputs(tmp_path / "out")) == 9


NAMES = [
    "größe 写真.png",
    " spaces at both ends .png",
    "-o.png",
    "two.dots.png",
    "100%d%s.png",
    "a[page=1].png",
    "[n=-1]",
    "new\nline.png",
    "quote'\"$(x).png",
    "UPPER.PNG",
    "l" * 251 + ".png",
    os.fsdecode(b"not \xff utf-8.png"),
]


def test_any_name_will_do(tmp_path: Path, small: Path, identity: Path) -> None:
    folder = tmp_path / os.fsdecode(b"in \xff [x=1]")
    folder.mkdir()
    for name in NAMES:
        shutil.copy(small, folder / name)
    out = tmp_path / os.fsdecode(b"out \xfe [page=2]")
    done = child("", folder, "-o", out, "--model", identity, errors="surrogateescape")
    assert done.returncode == 0 and done.stderr.startswith("11 done;"), done.stderr
    assert outputs(out) == sorted(name for name in NAMES if "." in name)
    named = [folder / name for name in NAMES if "." in name and len(name) < 200]
    done = child("", "--model", identity, "--", *named, errors="surrogateescape")
    assert done.returncode == 0 and done.stderr.startswith("10 done;"), done.stderr
    assert len(outputs(folder)) == len(NAMES) + len(named)
    done = child(
        "",
        "--model",
        identity,
        "--",
        "-o.png",
        cwd=shutil.copytree(folder, tmp_path / "again"),
        errors="surrogateescape",
    )
    assert done.returncode == 3 and "-o_denoised.png: exists already" in done.stderr


def test_names_too_long_are_one_line_and_the_rest_goes_on(
    tmp_path: Path, denoise: Command, small: Path, identity: Path
) -> None:
    longest = Path(shutil.copy(small, tmp_path / ("l" * 251 + ".png")))
    absent = (tmp_path / ("m" * 300 + ".png"), tmp_path / "new\nline.png")
    errors = denoise.refused(*absent, longest, small, "--model", identity)
    assert len(errors) == 3 and (tmp_path / "small_denoised.png").is_file()


def test_the_same_stem_twice_is_two_files(tmp_path: Path, denoise: Command, small: Path, identity: Path) -> None:
    (tmp_path / "in").mkdir()
    shutil.copy(small, tmp_path / "in" / "a.png")
    pyvips.Image.new_from_file(str(small)).write_to_file(str(tmp_path / "in" / "a.jpg"))
    assert denoise(tmp_path / "in", "-o", tmp_path / "out", "--model", identity)[0] == 0
    assert outputs(tmp_path / "out") == ["a.jpg", "a.png"]


def test_a_file_that_vanishes_midway_is_one_line(
    tmp_path: Path, denoise: Command, small: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "in").mkdir()
    for number in range(6):
        shutil.copy(small, tmp_path / "in" / f"{number}.png")

    def vanish(image: np.ndarray) -> np.ndarray:
        (tmp_path / "in" / "5.png").unlink(missing_ok=True)
        return image

    real = denoiser.load
    monkeypatch.setattr(denoiser, "load", lambda *args, **kwargs: replace(real(*args, **kwargs), function=vanish))
    (error,) = denoise.refused(tmp_path / "in", "-o", tmp_path / "out")
    assert error["name"].endswith("5.png") and "no such file" in error["reason"]
    assert outputs(tmp_path / "out") == [f"{number}.png" for number in range(5)]


def test_pipes_devices_and_sockets_are_refused_at_once(
    tmp_path: Path, denoise: Command, small: Path, identity: Path
) -> None:
    os.mkfifo(tmp_path / "pipe.png")
    with socket.socket(socket.AF_UNIX) as listening:
        listening.bind(os.path.relpath(tmp_path / "socket.png"))
        bad = [tmp_path / "pipe.png", tmp_path / "socket.png", "/dev/zero", "/dev/null"]
        errors = denoise.refused(*bad, small, "-o", tmp_path / "out", "--model", identity)
    assert [error["reason"] for error in errors] == ["not a file"] * 4
    assert outputs(tmp_path / "out") == ["small.png"]


def test_no_network_no_home_no_folder_for_temporary_files(tmp_path: Path, small: Path) -> None:
    offline = "import socket\ndef refuse(*_, **__): raise OSError\nsocket.socket = socket.getaddrinfo = refuse"
    kept = {name: value for name, value in os.environ.items() if name in ("PATH", "PYTHONPATH", "LANG")}
    kept["TMPDIR"] = "/nonexistent"
    (tmp_path / "home").mkdir()
    for number, home in enumerate(({}, {"HOME": "/proc"}, {"HOME": str(tmp_path / "home")})):
        done = child(offline, small, "-o", tmp_path / f"{number}.png", env=kept | home)
        assert done.returncode == 0 and not done.stderr, done.stderr
    # ONNX Runtime would leave a name for this computer here, under which it reports each use.
    assert not list((tmp_path / "home").iterdir())
