"""Shapes are checked while the tests run; small real photos and the command line are at hand."""

import os
import re
import shutil
import struct
import subprocess
import sys
import zlib
from pathlib import Path

import numpy as np
import onnx
import pytest
import pyvips
from jaxtyping import install_import_hook
from onnx import TensorProto, helper

install_import_hook(["tbsn.network", "tbsn.teacher"], "beartype.beartype")

from tbsn import cli, images  # noqa: E402 (the hook comes first)
from tbsn.encoding import write  # noqa: E402

EXAMPLES = Path(__file__).parents[1] / "examples"
ONE_LINE = re.compile(r"error: (?P<name>.+?): (?P<reason>.+); (?P<remedy>.+)")
SUFFIXES = (".png", ".jpg", ".tif", ".webp")


@pytest.fixture
def photo(tmp_path: Path) -> Path:
    """A real noisy photo, 256x256, 8-bit PNG."""
    return Path(shutil.copy(EXAMPLES / "01_14.png", tmp_path / "photo.png"))


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A folder with two real noisy photos, one of them in a subfolder, and one as JPEG."""
    (tmp_path / "noisy" / "more").mkdir(parents=True)
    shutil.copy(EXAMPLES / "01_14.png", tmp_path / "noisy")
    shutil.copy(EXAMPLES / "12_14.png", tmp_path / "noisy" / "more")
    image = pyvips.Image.new_from_file(str(EXAMPLES / "letters.png"))
    image.crop(0, 0, 200, 180).write_to_file(str(tmp_path / "noisy" / "letters.jpg"), Q=98)
    return tmp_path / "noisy"


@pytest.fixture
def blocks(folder: Path) -> Path:
    """A folder of blocks of 256x256 alone."""
    (folder / "letters.jpg").unlink()
    return folder


def save(path: Path, pixels: np.ndarray, **options: object) -> Path:
    """Write an array as an image file."""
    pyvips.Image.new_from_array(pixels).write_to_file(str(path), **options)
    return path


def tbsn(*arguments: object, timeout: float = 300) -> subprocess.CompletedProcess[str]:
    """The command line as a user types it."""
    command = [sys.executable, "-m", "tbsn", *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, timeout=timeout, check=False)


def reference(name: str) -> Path:
    """A stored output of the released implementation; they lie beside the checkout, and are not part of it."""
    folder = Path(__file__).parents[2] / "shared" / "reference"
    if not folder.is_dir():
        pytest.skip(f"no reference outputs at {folder}")
    return folder / name


class Command:
    """The command line in this process, which saves the start of one for each case."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
        self.monkeypatch, self.capsys = monkeypatch, capsys

    def __call__(self, *arguments: object) -> tuple[int, str]:
        """Exit code, and what stood on standard error."""
        self.monkeypatch.setattr(sys, "argv", ["tbsn", "denoise", *map(str, arguments)])
        with pytest.raises(SystemExit) as ended:
            cli.run()
        return int(ended.value.code or 0), self.capsys.readouterr().err

    def refused(self, *arguments: object) -> list[dict[str, str]]:
        """The errors of one call in their parts, each a line; nothing else is said of a file that failed."""
        code, said = self(*arguments)
        found = [ONE_LINE.fullmatch(line) for line in said.splitlines() if line.startswith("error")]
        assert code != 0 and found and all(found), said
        assert "Traceback" not in said
        return [match.groupdict() for match in found if match]


@pytest.fixture
def denoise(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Command:
    return Command(monkeypatch, capsys)


@pytest.fixture
def identity(tmp_path: Path) -> Path:
    """A model that gives back what it gets."""
    shape = ["batch", 3, "height", "width"]
    ends = [helper.make_tensor_value_info(name, TensorProto.FLOAT, shape) for name in ("noisy", "denoised")]
    graph = helper.make_graph([helper.make_node("Identity", ["noisy"], ["denoised"])], "identity", ends[:1], ends[1:])
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    helper.set_model_props(model, {"format": "tbsn-onnx-1", "channels": "3", "multiple": "1"})
    onnx.save(model, tmp_path / "identity.onnx")
    return tmp_path / "identity.onnx"


@pytest.fixture
def small(tmp_path: Path) -> Path:
    """A photo of 40x30."""
    path = tmp_path / "small.png"
    write(path, images.read(EXAMPLES / "01_14.png").pixels[:30, :40])
    return path


def outputs(folder: Path) -> list[str]:
    """The files in a folder, but for the log of the run."""
    return sorted(path.name for path in folder.rglob("*") if path.is_file() and path.name != "run.jsonl")


def chunk(name: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))


def child(code: str, *arguments: object, **options: object) -> subprocess.CompletedProcess[str]:
    """The command line in a process of its own, after some ``code``."""
    command = [sys.executable, "-c", f"{code}\nfrom tbsn.cli import run\nrun()", "denoise", *map(os.fspath, arguments)]
    return subprocess.run(command, capture_output=True, text=True, check=False, timeout=300, **options)
