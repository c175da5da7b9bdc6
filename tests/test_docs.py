"""What the docs tell a newcomer to type works as it stands."""

import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import numpy as np

from conftest import EXAMPLES
from tbsn import encoding, images

DOCS = Path(__file__).parents[1] / "docs"
SECONDS = {"1h": "8s", "30m": "12s"}


def test_a_newcomers_first_steps(tmp_path: Path) -> None:
    (tmp_path / "photos").mkdir()
    photo = images.read(EXAMPLES / "pepper.png").pixels
    for i in range(20):
        top, left = 200 * (i // 5), 200 * (i % 5)
        encoding.write(tmp_path / "photos" / f"{i:02}.png", photo[top : top + 200, left : left + 200])
    lines = re.findall(r"^    (tbsn .*)$", (DOCS / "first-steps.md").read_text(), re.MULTILINE)
    assert [line.split()[1] for line in lines] == [
        "diagnose",
        "denoise",
        "train",
        "distill",
        "renoise",
        "export",
        "denoise",
    ]
    for line in lines:
        arguments = [SECONDS.get(word, word) for word in shlex.split(line)]
        command = [sys.executable, "-m", *arguments]
        done = subprocess.run(command, cwd=tmp_path, env=os.environ, capture_output=True, text=True, check=False)
        assert done.returncode == 0, f"{line}\n{done.stderr}"
    noisy, clean = (images.to_float(images.read(tmp_path / name / "00.png").pixels) for name in ("photos", "denoised"))
    assert clean.shape == noisy.shape and np.std(np.diff(clean, axis=0)) < np.std(np.diff(noisy, axis=0))
    assert (tmp_path / "noise.png").exists() and list((tmp_path / "runs" / "teacher" / "samples").iterdir())
