"""The command line, as a user types it."""

import importlib.metadata
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import pyvips
import torch

import tbsn as package
from conftest import EXAMPLES, save, tbsn
from tbsn import images
from tbsn.network.files import load_network
from test_images import bad_files

WITHOUT_TORCH = "import sys; sys.modules['torch'] = None; from tbsn.cli import run; run()"
TINY = ("network.width=8", "network.group_channels=8", "network.blocks=[1,1,1]", "network.refinement=1")
SHORT = ("fit.steps=2", "fit.batch=2", "fit.log_every=1", "fit.workers=0")


def settings(*values: str) -> list[str]:
    return [part for value in values for part in ("--set", value)]


def test_version_and_help() -> None:
    assert tbsn("--version").stdout.split() == ["tbsn", importlib.metadata.version("tbsn")]
    for verb in ("", "denoise", "train", "distill", "evaluate", "serve", "export", "convert"):
        shown = tbsn(*([verb] if verb else []), "--help")
        assert shown.returncode == 0 and "Usage" in shown.stdout
        if verb:
            assert "[default:" in shown.stdout, verb


def test_denoise_writes_beside_the_input_without_torch(photo: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-c", WITHOUT_TORCH, "denoise", str(photo)], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    output = photo.with_name("photo_denoised.png")
    assert done.stdout.strip() == f"{photo} -> {output}"
    expected = package.load()(images.read(photo).pixels)
    assert np.array_equal(images.read(output).pixels, expected)


@pytest.mark.parametrize("suffix", [".png", ".tif"])
def test_sixteen_bits_stay_sixteen_bits(tmp_path: Path, suffix: str) -> None:
    deep = images.read(EXAMPLES / "01_14.png").pixels[:64, :80].astype(np.uint16) * 257
    pyvips.Image.new_from_array(deep, interpretation="rgb16").write_to_file(str(tmp_path / f"deep{suffix}"))
    assert tbsn("denoise", tmp_path / f"deep{suffix}", "-o", tmp_path / f"out{suffix}").returncode == 0
    result = images.read(tmp_path / f"out{suffix}").pixels
    assert result.dtype == np.uint16 and len(np.unique(result)) > 256


def test_grey_comes_back_grey_and_alpha_untouched(tmp_path: Path) -> None:
    alpha = np.random.default_rng(0).integers(0, 255, (40, 50, 1), dtype=np.uint8)
    pixels = images.read(EXAMPLES / "01_14.png").pixels[:40, :50]
    colour = np.concatenate([pixels, alpha], axis=2)
    pyvips.Image.new_from_array(colour, interpretation="srgb").write_to_file(str(tmp_path / "alpha.png"))
    save(tmp_path / "grey.png", pixels[..., 1])
    assert tbsn("denoise", tmp_path / "alpha.png", tmp_path / "grey.png", "-o", tmp_path / "out").returncode == 0
    result = pyvips.Image.new_from_file(str(tmp_path / "out" / "alpha.png")).numpy()
    assert np.array_equal(result[..., 3:], alpha)
    assert images.read(tmp_path / "out" / "grey.png").pixels.shape == (40, 50, 1)


def test_folders_are_mirrored(folder: Path, tmp_path: Path) -> None:
    done = tbsn("denoise", folder, "-o", tmp_path / "out")
    assert done.returncode == 0, done.stderr
    written = {str(path.relative_to(tmp_path / "out")) for path in (tmp_path / "out").rglob("*.*")}
    assert written == {"run.jsonl", "01_14.png", "letters.jpg", os.path.join("more", "12_14.png")}


def test_bad_files_do_not_stop_the_batch(photo: Path, tmp_path: Path) -> None:
    bad = bad_files(tmp_path, photo)
    done = tbsn("denoise", *bad.values(), photo, "-o", tmp_path / "out")
    assert done.returncode == 3
    *lines, summary = done.stderr.splitlines()
    assert summary.startswith(f"1 done, {len(bad)} failed") and len(lines) == len(bad)
    for line, path in zip(lines, bad.values(), strict=True):
        assert line.startswith(f"error: {path}: ") and "; " in line
    assert {path.name for path in (tmp_path / "out").iterdir()} == {"photo.png", "run.jsonl"}


def test_outputs_are_not_overwritten_unless_asked(photo: Path) -> None:
    output = photo.with_name("photo_denoised.png")
    output.write_bytes(b"precious")
    refused = tbsn("denoise", photo)
    assert refused.returncode == 3 and "--overwrite" in refused.stderr and output.read_bytes() == b"precious"
    assert tbsn("denoise", photo, "--overwrite").returncode == 0
    assert images.read(output).pixels.shape == (256, 256, 3)


def test_an_input_is_never_its_own_output(photo: Path) -> None:
    before = photo.read_bytes()
    done = tbsn("denoise", photo, "-o", photo.parent, "--overwrite")
    assert done.returncode == 3 and "same file" in done.stderr and photo.read_bytes() == before


def test_inputs_that_would_collide_are_refused(photo: Path, tmp_path: Path) -> None:
    (tmp_path / "other").mkdir()
    other = Path(shutil.copy(photo, tmp_path / "other"))
    done = tbsn("denoise", photo, other, "-o", tmp_path / "out")
    assert done.returncode == 3 and str(other) in done.stderr and "would be written" in done.stderr
    assert tbsn("denoise", photo, other, "-o", tmp_path / "one.png").returncode == 2


def test_an_unwritable_output_is_named(photo: Path, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("not a folder")
    done = tbsn("denoise", photo, "-o", tmp_path / "file" / "out.png")
    assert done.returncode == 2 and done.stderr.count("\n") == 1 and "cannot write" in done.stderr


@pytest.mark.parametrize("content", [b"", b"\x80\x04N.", b"not a model"])
def test_bad_models_give_one_line(photo: Path, tmp_path: Path, content: bytes) -> None:
    for name in ("model.onnx", "model.safetensors", "model.pth"):
        (tmp_path / name).write_bytes(content)
        done = tbsn("denoise", photo, "--model", tmp_path / name)
        assert done.returncode == 2 and done.stderr.count("\n") == 1 and str(tmp_path / name) in done.stderr
    assert not photo.with_name("photo_denoised.png").exists()


def test_from_noisy_photos_to_an_exported_student(folder: Path, tmp_path: Path) -> None:
    teacher, student, onnx = tmp_path / "teacher", tmp_path / "student", tmp_path / "student.onnx"
    done = tbsn("train", folder, "-o", teacher, *settings(*TINY, *SHORT))
    assert done.returncode == 0, done.stderr
    again = tbsn("train", folder, "-o", teacher, *settings(*TINY, *SHORT, "fit.lr=1e-5"))
    assert again.returncode == 2 and "fit.lr 0.001 -> 1e-05" in again.stderr and again.stderr.count("\n") == 1
    assert tbsn("train", folder, "-o", teacher, *settings(*TINY, *SHORT), "--resume").returncode == 0
    done = tbsn("distill", folder, "--teacher", teacher, "-o", student, *settings("network.width=8", *SHORT))
    assert done.returncode == 0, done.stderr
    done = tbsn("export", student, "-o", onnx)
    assert done.returncode == 0 and "largest difference" in done.stdout and not done.stderr, done.stderr
    assert tbsn("export", onnx, "-o", tmp_path / "again.safetensors").returncode == 0
    before, after = (load_network(path).state_dict() for path in (student, tmp_path / "again.safetensors"))
    assert all(torch.equal(value, after[name]) for name, value in before.items())
    refused = tbsn("export", teacher, "-o", tmp_path / "teacher.onnx")
    assert refused.returncode == 2 and "not a student" in refused.stderr
    assert tbsn("export", teacher, "-o", tmp_path / "half.safetensors", "--half").returncode == 0
    halved = load_network(tmp_path / "half.safetensors").state_dict()
    for name, value in load_network(teacher).state_dict().items():
        assert torch.equal(halved[name], value.half().float())
    assert (tmp_path / "half.safetensors").stat().st_size < 0.6 * (teacher / "model.safetensors").stat().st_size
    assert tbsn("export", student, "-o", tmp_path / "half.onnx", "--half").returncode == 2
    assert tbsn("denoise", folder / "letters.jpg", "--model", onnx).returncode == 0
    assert tbsn("denoise", folder / "01_14.png", "--model", teacher, "-o", tmp_path / "by_teacher.png").returncode == 0


@pytest.mark.parametrize("dtype", [np.uint16, np.float32])
def test_images_of_five_channels_train_and_are_denoised(tmp_path: Path, dtype: type) -> None:
    stack = np.random.default_rng(0).random((170, 180, 5))
    pixels = images.from_float(stack.astype(np.float32), np.dtype(dtype))
    (tmp_path / "stacks").mkdir()
    save(tmp_path / "stacks" / "a.tif", pixels)
    five = settings("network.channels=5", *SHORT)
    for verb, more in (
        ("train", settings(*TINY)),
        ("distill", ["--teacher", tmp_path / "train", *settings("network.width=8")]),
    ):
        done = tbsn(verb, tmp_path / "stacks", "-o", tmp_path / verb, *five, *more)
        assert done.returncode == 0, done.stderr
    assert tbsn("export", tmp_path / "distill", "-o", tmp_path / "five.onnx").returncode == 0
    done = tbsn("denoise", tmp_path / "stacks", "-o", tmp_path / "out", "--model", tmp_path / "five.onnx")
    assert done.returncode == 0, done.stderr
    out = images.read(tmp_path / "out" / "a.tif", 5)
    assert out.pixels.shape == pixels.shape and out.pixels.dtype == dtype
    refused = tbsn("denoise", tmp_path / "stacks", "-o", tmp_path / "other")
    assert refused.returncode == 3 and "a.tif: has 5 channels, the model 3" in refused.stderr
    assert tbsn("diagnose", tmp_path / "stacks", "--picture", tmp_path / "noise.png").returncode == 0


def test_floats_beyond_one_are_not_clipped_silently(tmp_path: Path) -> None:
    (tmp_path / "counts").mkdir()
    save(tmp_path / "counts" / "a.tif", np.full((170, 180, 3), 900, np.float32))
    done = tbsn("train", tmp_path / "counts", "-o", tmp_path / "run", *settings(*TINY, *SHORT))
    assert done.returncode == 2 and "a.tif: has values from 900 to 900; scale floats to 0 to 1" in done.stderr


def test_evaluate_shows_every_image_and_the_mean(folder: Path, tmp_path: Path) -> None:
    (folder / "letters.jpg").unlink()
    done = tbsn("evaluate", "noisy", folder, folder, "--json", tmp_path / "scores.json")
    assert done.returncode == 0 and "inf" in done.stdout and "protocol sidd" in done.stdout
    scores = json.loads((tmp_path / "scores.json").read_text())
    assert [score["name"] for score in scores["images"]] == ["01_14.png", "12_14.png"]
    assert tbsn("evaluate", "blur", folder, folder, "--protocol", "dnd").returncode == 0
    (folder / "01_14.png").rename(tmp_path / "01_14.png")
    for arguments in ((tmp_path / "absent", folder), (folder, folder / "more"), (folder, tmp_path)):
        done = tbsn("evaluate", "noisy", *arguments)
        assert done.returncode == 2 and done.stderr.count("\n") == 1
    for more in (
        ("--protocol", "kaggle"),
        ("--ensemble",),
        ("--pd", 2),
        ("--json", tmp_path / "absent" / "scores.json"),
    ):
        done = tbsn("evaluate", "noisy", folder, folder, *more)
        assert done.returncode == 2 and done.stderr.count("\n") == 1 and not done.stdout
    done = tbsn("evaluate", "default", folder, folder, "--pd", 3, "--hole", 1)
    assert done.returncode == 2 and "has no use for --pd, --hole; leave that out" in done.stderr


def test_training_errors_are_one_line(folder: Path, tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    for arguments in (
        (tmp_path / "empty",),
        (folder, "--set", "fit.stepz=1"),
        (folder, "--recipe", "nothing"),
        (folder, "--set", "fit.crop=480"),
        (folder, "--device", "abacus"),
    ):
        done = tbsn("train", *arguments, "-o", tmp_path / f"run{len(arguments)}{arguments[-1]!s:.3}".replace("/", ""))
        assert done.returncode == 2 and done.stderr.count("\n") == 1 and "error: " in done.stderr, done.stderr
