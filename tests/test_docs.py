"""What the docs tell people to type works as it stands."""

import json
import os
import re
import shlex
import shutil
import subprocess
import sys
from collections.abc import Iterator
from contextlib import redirect_stdout
from io import StringIO
from pathlib import Path

import numpy as np
import pytest
import tifffile
import torch
import yaml

from conftest import EXAMPLES
from tbsn import encoding, images
from test_training import SHORT, TINY

DOCS = Path(__file__).parents[1] / "docs"
NOT_RUN = ("pip ", "tbsn serve", "parallel ", "g++ ", "./tile ", "npm ", "node ")
STEPS = re.compile(r"^```(\w+)\n(.*?)^```$|^    (\S[^\n]*)$", re.MULTILINE | re.DOTALL)
COLOUR = images.read(EXAMPLES / "12_14.png").pixels[:160, :170]

# A cluster of one process; torchrun reads its options as ever.
TORCHRUN = f"""#!{sys.executable}
import os, sys
from torch.distributed.run import get_args_parser

asked = get_args_parser().parse_args()
assert asked.module
os.execv(sys.executable, [sys.executable, "-m", asked.training_script, *asked.training_script_args])
"""
CLUSTER = {"torchrun": TORCHRUN, "srun": '#!/bin/sh\nexec "$@"\n', "scontrol": "#!/bin/sh\necho localhost\n"}

# Training takes seconds then.
ONE_STEP = [*SHORT, "fit.steps=1", "fit.batch=1"]
SETTINGS = {"tbsn train": [*TINY, *ONE_STEP], "tbsn renoise": ONE_STEP}
FEW_STEPS = ["fit.steps=40", "fit.batch=2", "fit.warmup=0", "fit.ema=0.9"]
LEARNS = {"train": [*TINY, *FEW_STEPS], "distill": ["network.width=12", *FEW_STEPS], "renoise": FEW_STEPS}
FIT = f"""
from tbsn.training.recipe import TrainRecipe, load_recipe
small = (load_recipe(TrainRecipe, "cpu", {SETTINGS["tbsn train"]}), None, None)
"""


class Reader:
    """Someone who does what a page says in the working folder: shell lines, scripts, and Python in one session."""

    def __init__(self) -> None:
        self.names: dict[str, object] = {}
        self.done: list[str] = []
        exec(FIT, self.names)
        for name, command in (("tbsn", "-m tbsn"), ("python", "")):
            self.install(name, f'#!/bin/sh\nexec {shlex.quote(sys.executable)} {command} "$@"\n')
        for name, script in CLUSTER.items():
            self.install(name, script)

    def install(self, name: str, script: str) -> None:
        program = Path("bin", name)
        program.parent.mkdir(exist_ok=True)
        program.write_text(script)
        program.chmod(0o755)

    def read(self, page: str) -> None:
        """Do all that a page says, in order."""
        for language, block, line in STEPS.findall((DOCS / page).read_text()):
            if language == "python":
                self.run(block)
            elif line and not line.startswith(NOT_RUN):
                settings = SETTINGS.get(" ".join(line.split()[:2]), [])
                self.shell(" ".join([line, *(f"--set {setting}" for setting in settings)]))

    def shell(self, command: str, **environment: str) -> None:
        path = os.pathsep.join([str(Path("bin").absolute()), os.environ["PATH"]])
        done = subprocess.run(
            ["bash", "-euo", "pipefail", "-c", command],
            env=os.environ | {"PATH": path} | environment,
            capture_output=True,
            text=True,
            check=False,
        )
        assert done.returncode == 0, f"{command}\n{done.stdout}{done.stderr}"
        self.done.append(command)

    def run(self, block: str) -> None:
        """Run a block, and see that it prints what the comments beside its prints say."""
        with redirect_stdout(StringIO()) as said:
            exec(block.replace("SelfSupervisedDenoiser(", "SelfSupervisedDenoiser(*small, "), self.names)
        expected = re.findall(r"^ *print\(.*\)  # (.*)$", block, re.MULTILINE)
        assert not expected or said.getvalue().splitlines() == expected, block
        self.done.append(said.getvalue())


@pytest.fixture
def reader(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Reader]:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("OMP_NUM_THREADS", "1")  # with so little to do, several threads mostly wait for each other
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield Reader()
    torch.set_num_threads(threads)


def test_a_newcomers_first_steps(tmp_path: Path) -> None:
    (tmp_path / "photos").mkdir()
    photo = images.read(EXAMPLES / "pepper.png").pixels
    for i in range(20):
        top, left = 200 * (i // 5), 200 * (i % 5)
        encoding.write(tmp_path / "photos" / f"{i:02}.png", photo[top : top + 200, left : left + 200])
    lines = re.findall(r"^    (tbsn .*)$", (DOCS / "first-steps.md").read_text(), re.MULTILINE)
    verbs = [line.split()[1] for line in lines]
    assert verbs == ["diagnose", "denoise", "train", "distill", "renoise", "export", "denoise"]
    for verb, line in zip(verbs, lines, strict=True):
        settings = [f"--set={setting}" for setting in LEARNS.get(verb, [])]
        command = [sys.executable, "-m", *shlex.split(line), *settings]
        done = subprocess.run(command, cwd=tmp_path, env=os.environ, capture_output=True, text=True, check=False)
        assert done.returncode == 0, f"{line}\n{done.stderr}"
    noisy, clean = (images.to_float(images.read(tmp_path / name / "00.png").pixels) for name in ("photos", "denoised"))
    assert clean.shape == noisy.shape and np.std(np.diff(clean, axis=0)) < np.std(np.diff(noisy, axis=0))
    assert (tmp_path / "noise.png").exists() and list((tmp_path / "runs" / "teacher" / "samples").iterdir())


def test_a_photographers_page(reader: Reader) -> None:
    Path("photos", "2024").mkdir(parents=True)
    Path("raw").mkdir()
    encoding.write(Path("photo.jpg"), COLOUR)
    encoding.write(Path("photos", "b.png"), COLOUR[:, ::-1])
    shutil.copy("photo.jpg", "photos/2024/a.jpg")
    negative(Path("raw", "a.dng"))
    reader.read("photographer.md")
    assert len(reader.done) == 13
    made = ["photo_denoised.jpg", "denoised/2024/a.jpg", "denoised/b.png", "webp/b.webp", "softer.jpg", "mine/b.png"]
    assert [name for name in made if rough(images.read(Path(name)).pixels) > 0.8 * rough(COLOUR)] == []
    assert images.read(Path("developed/a.tif")).pixels.dtype == np.uint16


def test_a_microscopists_page(reader: Reader) -> None:
    stack = np.stack([COLOUR[..., 1], COLOUR[::-1, :, 1]]).astype(np.uint16) * 16
    tifffile.imwrite("stack.ome.tif", stack, metadata={"axes": "ZYX", "PhysicalSizeX": 0.1}, photometric="minisblack")
    hollow = COLOUR[..., 1].astype(np.float64) * 13 + 100
    hollow[20:30, 40:60] = np.nan
    np.save("map.npy", hollow)
    reader.read("microscopist.md")
    with tifffile.TiffFile("clean.ome.tif") as file:
        assert file.series[0].axes == "ZYX" and file.asarray().shape == stack.shape
    assert np.array_equal(np.isnan(np.load("map_denoised.npy")), np.isnan(hollow))
    made = ["removed.tif", "softer.ome.tif", "mine.ome.tif", "mine.safetensors"]
    assert [name for name in made if not Path(name).exists()] == []


def test_an_integrators_page(reader: Reader) -> None:
    Path("in").mkdir()
    for name in ("a", "b", "c"):
        encoding.write(Path("in", f"{name}.png"), COLOUR)
    reader.read("integrator.md")
    assert Path("sharded", "c.png").exists()
    facts = json.loads(Path("out", "run.jsonl").read_text().splitlines()[0])
    page = (DOCS / "integrator.md").read_text()
    assert [
        key for key in {**facts, **facts["settings"], **facts["settings"]["encoding"]} if f"`{key}`" not in page
    ] == []
    files = ["clean.png", "clean.jpg", "small.png"]
    assert [images.open_photo(Path(name)).shape for name in files] == [COLOUR.shape] * 3


def test_the_cluster_examples_do_their_share(reader: Reader) -> None:
    Path("noisy").mkdir()
    for name in ("a", "b", "c"):
        encoding.write(Path("noisy", f"{name}.png"), COLOUR)
    where = {"PHOTOS": "noisy", "DENOISED": "slurm", "SLURM_CPUS_PER_TASK": "1"}
    script = (EXAMPLES / "cluster" / "denoise.slurm").read_text()
    reader.shell(script, SLURM_ARRAY_TASK_ID="2", SLURM_ARRAY_TASK_COUNT="4", **where)
    job = yaml.safe_load((EXAMPLES / "cluster" / "denoise.kubernetes.yaml").read_text())
    container = job["spec"]["template"]["spec"]["containers"][0]
    reader.shell(shlex.join([*container["command"], *container["args"]]), JOB_COMPLETION_INDEX="2")
    assert sorted(str(path) for path in Path().glob("*/*.png") if path.parts[0] != "noisy") == [
        "denoised/c.png",
        "slurm/b.png",
    ]


@pytest.mark.parametrize("name", ["train.slurm", "train.kubernetes.yaml"])
def test_the_training_examples_train(name: str, folder: Path, reader: Reader) -> None:
    text = (EXAMPLES / "cluster" / name).read_text()
    small = shlex.join(word for setting in (*SETTINGS["tbsn train"], "fit.crop=160") for word in ("--set", setting))
    if name.endswith(".slurm"):
        reader.shell(f"{text.rstrip()} {small}", FOLDER=str(folder), RUN="run", SLURM_NNODES="2", SLURM_JOB_ID="1")
    else:
        _, job = yaml.safe_load_all(text)
        (container,) = job["spec"]["template"]["spec"]["containers"]
        command = shlex.join([*container["command"], *container["args"]])
        for known, here in (("$(JOB_COMPLETION_INDEX)", "0"), ("/photos/noisy", folder), ("/photos/run", "run")):
            command = command.replace(known, str(here))
        reader.shell(f"{command} {small}")
    assert Path("run", "model.safetensors").exists()


def rough(pixels: np.ndarray) -> float:
    """How unlike neighbouring rows are."""
    return float(np.diff(images.to_float(pixels), axis=0).std())


def negative(path: Path) -> None:
    """Write a photo as the least DNG there can be: one value a pixel, red and green in the one row, green and blue in
    the next.
    """
    sensor = COLOUR[..., 1].astype(np.uint16) * 16
    sensor[::2, ::2], sensor[1::2, 1::2] = COLOUR[::2, ::2, 0] * np.uint16(16), COLOUR[1::2, 1::2, 2] * np.uint16(16)
    unit = tuple(int(value) for row in np.eye(3) for entry in row for value in (entry, 1))
    tags = [
        (50706, "B", 4, b"\x01\x04\x00\x00", True),  # DNGVersion
        (33421, "H", 2, (2, 2), True),  # CFARepeatPatternDim
        (33422, "B", 4, b"\x00\x01\x01\x02", True),  # CFAPattern
        (50708, "s", 0, "None", True),  # UniqueCameraModel
        (50717, "I", 1, 4095, True),  # WhiteLevel
        (50721, "2i", 9, unit, True),  # ColorMatrix1
        (50728, "2I", 3, (1, 1) * 3, True),  # AsShotNeutral
    ]
    tifffile.imwrite(path, sensor, photometric="CFA", extratags=tags, metadata=None)
