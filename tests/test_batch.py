"""Files in, files out: rows, pages, streams, batches, as a user types it."""

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
from contextlib import nullcontext, suppress
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryFile
from typing import Any
from unittest.mock import Mock

import numpy as np
import pytest
import pyvips
import tifffile

import tbsn as package
from conftest import EXAMPLES, save, tbsn
from tbsn import batch, images, session, tiff
from tbsn import plan as planning
from tbsn.denoiser import Denoiser
from tbsn.errors import InputError, NoRoomError
from tbsn.images import open_photo
from tbsn.plan import Job, Output, plan
from tbsn.tiles import Tiling
from test_docs import negative

RANDOM = np.random.default_rng(0)
SAME = Denoiser(lambda image: image, 3, "identity", tiling=Tiling(96, 16, 8))
DARKER = Denoiser(lambda image: image / 2, 3, "half", tiling=Tiling(96, 16, 8))


def integers(*shape: int, dtype: type = np.uint8) -> np.ndarray:
    return RANDOM.integers(0, np.iinfo(dtype).max, shape, dtype=dtype, endpoint=True)


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16, np.int16, np.uint32, np.float16, np.float32, np.float64])
@pytest.mark.parametrize("shape", [(1, 1), (130, 70), (101, 1), (60, 50, 1), (200, 300, 3)])
def test_what_does_nothing_changes_nothing(tmp_path: Path, dtype: type, shape: tuple[int, ...]) -> None:
    values = RANDOM.normal(100, 300, shape) if np.dtype(dtype).kind == "f" else integers(*shape, dtype=dtype)
    np.save(tmp_path / "a.npy", values.astype(dtype))
    batch.denoise_file(SAME, tmp_path / "a.npy", tmp_path / "b.npy")
    result = np.load(tmp_path / "b.npy")
    assert result.dtype == dtype and np.array_equal(result, values.astype(dtype))


def test_a_stack_of_arrays_is_no_image_of_many_channels(tmp_path: Path) -> None:
    np.save(tmp_path / "a.npy", integers(5, 20, 30))
    with pytest.raises(InputError, match="plane by plane"):
        batch.denoise_file(SAME, tmp_path / "a.npy", tmp_path / "b.npy")


def test_rows_that_come_in_parts_are_the_image(tmp_path: Path, photo: Path) -> None:
    batch.denoise_file(package.load(), photo, tmp_path / "parts.png")
    assert np.array_equal(images.read(tmp_path / "parts.png").pixels, package.load()(images.read(photo).pixels))


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16, np.float32])
def test_stacks_are_denoised_page_by_page(tmp_path: Path, dtype: type) -> None:
    stack = integers(4, 120, 100, dtype=np.uint8).astype(dtype) * (257 if dtype == np.uint16 else 1)
    tifffile.imwrite(tmp_path / "a.ome.tif", stack, metadata={"axes": "ZYX", "PhysicalSizeX": 0.1})
    tifffile.imwrite(tmp_path / "b.tif", stack, imagej=True, compression="zlib", metadata={"axes": "ZYX", "fps": 7.0})
    for name in ("a.ome.tif", "b.tif"):
        steps: list[batch.Step] = []
        pixels = batch.denoise_file(DARKER, tmp_path / name, tmp_path / f"out-{name}", watch=steps.append)
        assert pixels == stack.size and sum(step.share for step in steps) == pytest.approx(1)
        assert list(dict.fromkeys(step.page for step in steps)) == [f"page {k}/4" for k in range(1, 5)]
        with tifffile.TiffFile(tmp_path / name) as before, tifffile.TiffFile(tmp_path / f"out-{name}") as after:
            assert after.series[0].axes == "ZYX" and after.asarray().dtype == dtype
            assert after.is_ome == before.is_ome and after.imagej_metadata == before.imagej_metadata
            np.testing.assert_allclose(after.asarray(), stack / 2, atol=0.5)


def test_every_tile_is_a_step(tmp_path: Path) -> None:
    steps: list[batch.Step] = []
    save(tmp_path / "a.png", integers(100, 1700))
    batch.denoise_file(replace(SAME, tiling=Tiling()), tmp_path / "a.png", tmp_path / "b.png", watch=steps.append)
    assert [step.share for step in steps] == pytest.approx([1 / 3] * 3)


@pytest.mark.parametrize("name", ["a.dng", "a.tif", "a.nrw", "standard-input"])
def test_raw_is_developed_whatever_it_is_called(tmp_path: Path, name: str) -> None:
    negative(tmp_path / name)
    photo = open_photo(tmp_path / name)
    assert photo.shape == (160, 170, 3) and photo.dtype == np.uint16 and photo.suffix == ".tif"


def test_raw_is_known_by_what_is_below_its_preview(tmp_path: Path) -> None:
    with tifffile.TiffWriter(tmp_path / "a.tif") as file:
        file.write(integers(20, 30, 3), photometric="rgb", subifds=1)
        file.write(integers(80, 120, dtype=np.uint16), photometric="CFA", metadata=None)
    assert tiff.is_raw(tmp_path / "a.tif")
    tifffile.imwrite(tmp_path / "b.tif", integers(20, 30), extratags=[(330, "H", 3, (1, 2, 3), True)])
    assert not tiff.is_raw(tmp_path / "b.tif")


@pytest.mark.parametrize("kind", ["imagej", "shaped", "ome", "volume"])
def test_planes_without_pages_are_not_lost(tmp_path: Path, kind: str) -> None:
    path, stack = tmp_path / "a.tif", integers(16, 32, 48)
    if kind == "volume":
        tifffile.imwrite(path, stack, photometric="minisblack", volumetric=True, tile=(16, 16, 16))
    elif kind == "ome":
        sizes = 'SizeC="2" SizeT="1" SizeX="48" SizeY="32" SizeZ="8"'
        tifffile.imwrite(path, stack[0], metadata=None, description=f'<OME><Pixels ID="a" {sizes} Type="uint8"/></OME>')
        path.write_bytes(path.read_bytes() + stack[1:].tobytes())
    else:
        tifffile.imwrite(path, stack, imagej=kind == "imagej", photometric="minisblack", truncate=True)
    with pytest.raises(InputError, match=r"a\.tif: holds several planes in one page; save it with a page for each"):
        open_photo(path)
    tifffile.imwrite(path, stack[0], metadata=None, description="ImageJ=1.11a\nimages=16\nslices=16\n")
    assert open_photo(path).shape == (32, 48, 1)


def test_pages_of_different_sizes_are_refused(tmp_path: Path) -> None:
    with tifffile.TiffWriter(tmp_path / "a.tif") as file:
        file.write(integers(20, 20))
        file.write(integers(30, 20))
    with pytest.raises(InputError, match=r"a\.tif"):
        open_photo(tmp_path / "a.tif")


def test_floats_keep_their_range(tmp_path: Path) -> None:
    counts = RANDOM.normal(500, 100, (150, 140)).astype(np.float32)
    counts[3, 4], counts[5, 6] = 1e6, -1e6
    half = Denoiser(lambda image: (image + 0.5) / 2, 3, "flatter")
    flatter = half(counts)
    assert flatter[3, 4] > 0.9e6 and flatter[5, 6] < -0.9e6
    assert np.corrcoef(flatter[10:].ravel(), counts[10:].ravel())[0, 1] > 0.99
    np.testing.assert_allclose(half(counts * 3 - 7), flatter * 3 - 7, rtol=1e-3)


def test_nan_is_an_error_or_kept(tmp_path: Path) -> None:
    values = RANDOM.random((90, 80, 3)).astype(np.float32)
    values[3, 4, 1], values[5, 6] = np.nan, np.inf
    save(tmp_path / "a.tif", values)
    refused = tbsn("denoise", tmp_path / "a.tif", "-o", tmp_path / "b.tif")
    assert refused.returncode == 3 and "--nan keep" in refused.stderr and not (tmp_path / "b.tif").exists()
    assert tbsn("denoise", tmp_path / "a.tif", "-o", tmp_path / "b.tif", "--nan", "keep").returncode == 0
    kept = pyvips.Image.new_from_file(str(tmp_path / "b.tif")).numpy()
    assert np.array_equal(np.isnan(kept), np.isnan(values)) and np.isinf(kept[5, 6]).all()


@pytest.mark.parametrize("nan", ["error", "keep"])
def test_floats_that_float32_does_not_hold_are_refused(tmp_path: Path, nan: Any) -> None:
    np.save(tmp_path / "a.npy", np.where(integers(20, 30) > 99, 1e300, np.nan if nan == "keep" else 0))
    with pytest.raises(InputError, match="beyond 1e\\+38"):
        batch.denoise_file(SAME, tmp_path / "a.npy", tmp_path / "b.npy", batch.Settings(nan=nan))
    assert not (tmp_path / "b.npy").exists()


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


def test_formats_and_privacy(tmp_path: Path) -> None:
    image = pyvips.Image.new_from_array(integers(60, 50, 3)).copy(interpretation="srgb")
    image.set_type(pyvips.GValue.blob_type, "xmp-data", b"<x:xmpmeta xmlns:x='adobe:ns:meta/'/>")
    image.set_type(pyvips.GValue.gint_type, "orientation", 6)
    image.write_to_file(str(tmp_path / "a.png"))
    done = tbsn("denoise", tmp_path / "a.png", "-o", tmp_path / "out", "--format", "jpg", "--strip-metadata")
    assert done.returncode == 0, done.stderr
    bare = pyvips.Image.new_from_file(str(tmp_path / "out" / "a.jpg"))
    assert "xmp-data" not in bare.get_fields() and bare.get("orientation") == 6
    sizes = {}
    for quality in ("30", "95"):
        assert (
            tbsn("denoise", tmp_path / "a.png", "--format", "jpg", "--quality", quality, "--overwrite").returncode == 0
        )
        sizes[quality] = (tmp_path / "a_denoised.jpg").stat().st_size
    assert sizes["30"] < 0.7 * sizes["95"]


def test_shards_are_a_partition(folder: Path, tmp_path: Path) -> None:
    output = Output(tmp_path / "out")
    whole = {job.source for job in plan([folder], output)}
    shards = [plan([folder], output, share=(k, 2)) for k in (1, 2)]
    assert sorted(job.source for shard in shards for job in shard) == sorted(whole)
    done = tbsn("denoise", folder, "-o", tmp_path / "out", "--shard", "2/2")
    assert done.returncode == 0 and (tmp_path / "out" / "run-2-of-2.jsonl").exists()
    assert len(done.stdout.splitlines()) == len(shards[1])
    assert tbsn("denoise", folder, "-o", tmp_path / "out", "--shard", "3/2").returncode == 2


def test_what_cannot_be_read_is_named(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (folder / "link.png").symlink_to(tmp_path / "absent")
    (tmp_path / "empty").mkdir()
    done = tbsn("denoise", folder, tmp_path / "empty", "-o", tmp_path / "out")
    assert done.returncode == 3 and "3 done, 2 failed" in done.stderr
    assert f"{folder / 'link.png'}: no such file" in done.stderr and f"{tmp_path / 'empty'}: no images" in done.stderr
    scan = os.scandir

    def locked(path: str | Path) -> object:
        if str(path).endswith("more"):
            raise PermissionError(13, "Permission denied", str(path))
        return scan(path)

    monkeypatch.setattr(os, "scandir", locked)
    jobs = plan([folder], Output(tmp_path / "other"))
    refused = [job for job in jobs if job.refused]
    assert [str(job.source) for job in refused] == [str(folder / "more")] and "Permission" in str(refused[0].refused)
    assert len(jobs) == 4
    with pytest.raises(InputError, match="cannot be read"):
        list(images.find([folder]))


def test_a_dry_run_writes_nothing_and_loads_no_model(folder: Path, tmp_path: Path) -> None:
    shown = tbsn("denoise", folder, "-o", tmp_path / "out", "--dry-run", "--no-recursive", "--model", "none.onnx")
    assert shown.returncode == 0 and not (tmp_path / "out").exists()
    assert shown.stdout.splitlines() == [
        f"{folder / name} -> {tmp_path / 'out' / name}" for name in ("01_14.png", "letters.jpg")
    ]


def test_the_log_says_what_was_done(folder: Path, tmp_path: Path) -> None:
    (folder / "bad.png").write_bytes(b"no image")
    out = tmp_path / "out"
    assert tbsn("denoise", folder, "-o", out, "--quiet").returncode == 3
    (out / "01_14.png").unlink()
    again = tbsn("denoise", folder, "-o", out, "--skip-existing")
    assert again.returncode == 3 and "1 done, 2 skipped, 1 failed" in again.stderr
    lines = [json.loads(line) for line in (out / "run.jsonl").read_text().splitlines()]
    assert [line["status"] for line in lines[:4]] == ["done", "failed", "done", "done"]
    digest = hashlib.sha256((folder / "01_14.png").read_bytes()).hexdigest()
    assert lines[0]["input_sha256"] == digest and lines[0]["model"] == "default" and len(lines[0]["model_sha256"]) == 64


def test_results_inside_the_input_folder_are_no_inputs(folder: Path) -> None:
    for _ in range(2):
        done = tbsn("denoise", folder, "-o", folder / "out", "--overwrite")
        assert done.returncode == 0 and len(done.stdout.splitlines()) == 3
    for _ in range(2):
        done = tbsn("denoise", folder / "more", "--overwrite", "--suffix", ".clean")
        assert done.returncode == 0 and done.stdout.strip().endswith("12_14.clean.png")


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The current folder, with an image ``a.png``, and one in each of the folders ``q`` and ``y``."""
    monkeypatch.chdir(tmp_path)
    for name in ("a.png", "q/a.png", "y/a.png"):
        Path(name).parent.mkdir(exist_ok=True)
        shutil.copy(EXAMPLES / "01_14.png", name)
    return tmp_path


def test_no_input_is_written_over(here: Path) -> None:
    (here / "hard.png").hardlink_to(here / "y" / "a.png")
    (here / "link").symlink_to("y")
    for other in ("y", "y/a.png", "hard.png", "link"):
        jobs = plan([Path("q/a.png"), Path(other)], Output(here / "y", exists="replace"))
        assert jobs[0].refused and str(here / "y" / "a.png") in jobs[0].refused.args[1]
    shutil.copy("a.png", "a_denoised.png")
    refused, follows = plan([Path("a.png"), Path("a_denoised.png")], Output(exists="replace"))
    assert refused.refused and not follows.refused


def test_what_is_named_twice_is_done_once(here: Path) -> None:
    for inputs in (["q/a.png", "q"], ["q", "q/../q/a.png", here / "q" / "a.png"]):
        (job,) = plan([*map(Path, inputs)], Output(Path("out")))
        assert not job.refused and job.target == Path("out/a.png")


@pytest.mark.parametrize("output", ["out", "y/../out", "{here}/out"])
def test_results_are_no_inputs_by_whatever_name(here: Path, output: str) -> None:
    shutil.copytree("q", "out/q")
    jobs = plan([Path()], Output(Path(output.format(here=here)), exists="skip"))
    assert [(str(job.source), job.skipped) for job in jobs] == [("a.png", False), ("q/a.png", True), ("y/a.png", False)]


def test_results_that_are_named_are_skipped_with_what_has_them(here: Path) -> None:
    shutil.copy("a.png", "a_denoised.png")
    (job,) = plan([Path("a.png"), Path("a_denoised.png")], Output(exists="skip"))
    assert job.source == Path("a.png") and job.skipped
    (job,) = plan([Path("a_denoised.png")], Output(exists="skip"))
    assert not job.skipped and job.target == Path("a_denoised_denoised.png")


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_a_batch_that_is_stopped_goes_on(tmp_path: Path, number: int, code: int) -> None:
    (tmp_path / "in").mkdir()
    for i in range(12):
        shutil.copy(EXAMPLES / "letters.png", tmp_path / "in" / f"{i:02}.png")
    command = [sys.executable, "-m", "tbsn", "denoise", str(tmp_path / "in"), "-o", str(tmp_path / "out")]
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


@pytest.mark.parametrize("both", [False, True])
def test_on_a_terminal_there_is_a_bar_and_results_are_whole_lines(tmp_path: Path, both: bool) -> None:
    """On standard output they stay, if that is a file; else they stand above the bar."""
    pty = pytest.importorskip("pty")
    stack, out = tmp_path / "in" / f"{'long' * 30}.tif", tmp_path / "out"
    stack.parent.mkdir()
    tifffile.imwrite(stack, integers(40, 90, 90), metadata={"axes": "ZYX"}, photometric="minisblack")
    shutil.copy(EXAMPLES / "01_14.png", stack.with_name("b.png"))
    main, terminal = pty.openpty()
    command = [sys.executable, "-m", "tbsn", "denoise", stack.parent, "-o", out]
    with (tmp_path / "results").open("wb") as file, os.fdopen(main, "rb", buffering=0) as screen:
        process = subprocess.Popen(
            command, stdout=terminal if both else file, stderr=terminal, env=os.environ | {"TERM": "xterm"}
        )
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


def test_tiles_are_as_small_as_memory_needs() -> None:
    model = package.load()
    sizes = [model.within(memory, 12_000).tiling.size for memory in (8e9, 1e9, 5e8, 1e6)]
    assert sizes[0] == Tiling().size and sizes == sorted(sizes, reverse=True) and sizes[-1] == 256


def test_raw_files_are_developed(tmp_path: Path) -> None:
    pytest.importorskip("rawpy")
    (tmp_path / "a.dng").write_bytes(b"II*\0no raw file")
    done = tbsn("denoise", tmp_path / "a.dng", "-o", tmp_path / "out")
    assert done.returncode == 3 and "not a RAW file" in done.stderr


def test_parts_made_ahead_come_in_order_and_their_failure_at_its_place() -> None:
    begun: list[int] = []

    def parts(failing: int) -> Iterator[np.ndarray]:
        for number in range(9):
            begun.append(number)
            if number == failing:
                raise ValueError("here")
            yield np.array(number)

    with batch.ahead(parts(9), 3) as made:
        assert [int(part) for part in made] == list(range(9))
    with batch.ahead(parts(4), 3) as made:
        assert [int(next(made)) for _ in range(4)] == list(range(4))
        with pytest.raises(ValueError, match="here"):
            next(made)
    begun.clear()
    with pytest.raises(KeyError), batch.ahead(parts(9), 3) as made:
        next(made)
        raise KeyError("gone")
    assert len(begun) <= 5


@pytest.mark.parametrize("closed", ["0<&-", "1>&-", "2>&-"])
def test_a_daemons_closed_streams_are_no_files(tmp_path: Path, closed: str) -> None:
    save(tmp_path / "a.png", noise := np.random.default_rng(0).integers(0, 255, (64, 64, 3), np.uint8))
    command = f"exec {sys.executable} -m tbsn denoise a.png -o b.png {closed}"
    done = subprocess.run(["sh", "-c", command], cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 0 and not done.stderr
    assert images.read(tmp_path / "b.png").pixels.shape == noise.shape


def test_folders_that_nothing_can_be_written_to_are_noticed_first(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        save(tmp_path / name / "photo.png", np.zeros((8, 8, 3), np.uint8))

    def refuse(**where: Path) -> Any:
        if where["dir"].name in refused:
            raise PermissionError(errno.EACCES, "Permission denied")
        return TemporaryFile(**where)

    monkeypatch.setattr(planning.tempfile, "TemporaryFile", refuse)
    jobs, refused = plan([tmp_path], Output()), {"a"}
    planning.check_writable(Output(), jobs)
    refused.add("b")
    with pytest.raises(InputError, match="Permission denied"):
        planning.check_writable(Output(), jobs)
    full = Mock(side_effect=OSError(errno.ENOSPC, "No space left on device"))
    monkeypatch.setattr(planning.tempfile, "TemporaryFile", lambda **_: nullcontext(Mock(write=full)))
    with pytest.raises(NoRoomError):
        planning.check_writable(Output(tmp_path / "out"), jobs)


@pytest.mark.slow
def test_a_photo_of_144_megapixels_takes_less_than_a_gigabyte(tmp_path: Path) -> None:
    light = pyvips.Image.xyz(12000, 12000)[0] / 12000 * 255
    noisy = light.bandjoin([light, light]) + pyvips.Image.gaussnoise(12000, 12000, sigma=15)
    noisy.cast("uchar").copy(interpretation="srgb").write_to_file(str(tmp_path / "large.png"), compression=1)
    command = [sys.executable, "-m", "tbsn", "denoise", str(tmp_path / "large.png"), "-o", str(tmp_path / "out.png")]
    # Started by a small process: what is told of a child counts the memory of who has started it.
    small = "import resource, subprocess, sys; subprocess.run(sys.argv[1:], check=True)"
    tell = "print(resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss)"
    program = [sys.executable, "-c", f"{small}; {tell}", *command]
    done = subprocess.run(program, capture_output=True, text=True, check=True)
    assert 1e8 < 1024 * int(done.stdout.split()[-1]) < 1e9
    assert images.open_photo(tmp_path / "out.png").shape == (12000, 12000, 3)
