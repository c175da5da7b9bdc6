"""Shapes are checked while the tests run; small real photos are at hand."""

import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import pyvips
from jaxtyping import install_import_hook

install_import_hook(["tbsn.network", "tbsn.teacher"], "beartype.beartype")

EXAMPLES = Path(__file__).parents[1] / "examples"


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
