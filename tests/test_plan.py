"""Which file goes where, decided before any work begins."""

import errno
import os
import shutil
from contextlib import nullcontext
from pathlib import Path
from tempfile import TemporaryFile
from typing import Any
from unittest.mock import Mock

import numpy as np
import pytest
import tifffile

from conftest import EXAMPLES, save, tbsn
from tbsn import images
from tbsn import plan as planning
from tbsn.errors import InputError, NoRoomError
from tbsn.plan import Output, plan


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


def test_results_inside_the_input_folder_are_no_inputs(folder: Path) -> None:
    for _ in range(2):
        done = tbsn("denoise", folder, "-o", folder / "out", "--overwrite")
        assert done.returncode == 0 and len(done.stdout.splitlines()) == 3
    for _ in range(2):
        done = tbsn("denoise", folder / "more", "--overwrite", "--suffix", ".clean")
        assert done.returncode == 0 and done.stdout.strip().endswith("12_14.clean.png")


def test_results_may_go_where_the_inputs_folder_lies(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(folder)
    jobs = plan([Path("more")], Output(Path(), format=".tif"))
    assert [str(job.target) for job in jobs] == ["12_14.tif"]
    shutil.move(folder / "more" / "12_14.png", folder / "more" / "12_14_denoised.png")
    with pytest.raises(InputError, match="named like results"):
        plan([Path("more")], Output())


def test_a_folder_is_no_image_for_standard_output(folder: Path) -> None:
    done = tbsn("denoise", folder, "-o", "-")
    assert done.returncode == 2 and "is a folder" in done.stderr


def test_images_in_formats_that_are_not_read_are_told_of(folder: Path, tmp_path: Path) -> None:
    for name in ("IMG_1.HEIC", "more/IMG_2.heic", "b.avif", ".hidden.gif", "notes.txt"):
        (folder / name).touch()
    note = "note: left out 1 .avif, 2 .heic; convert them to PNG, JPEG, TIFF, WebP, NumPy\n"
    for more, expected in ((("--dry-run",), note), (("--dry-run", "--no-recursive"), note.replace("2", "1"))):
        done = tbsn("denoise", folder, "-o", tmp_path / "out", *more)
        assert done.returncode == 0 and done.stderr == expected
    assert tbsn("denoise", folder, "-o", tmp_path / "out", "--dry-run", "--quiet").stderr == ""


def test_ome_tiff_keeps_its_suffix_and_its_siblings(tmp_path: Path) -> None:
    def write(name: str, *uuids: str) -> None:
        planes = "".join(
            f'<TiffData IFD="0"><UUID FileName="{uuid}.ome.tif">{uuid}</UUID></TiffData>' for uuid in uuids
        )
        tifffile.imwrite(tmp_path / name, np.zeros((8, 8), np.uint8), description=f"<OME>{planes}</OME>", metadata=None)

    write("one.ome.tif", "a", "a")
    for _ in range(2):
        done = tbsn("denoise", tmp_path, "--overwrite")
        assert done.returncode == 0 and done.stdout.strip().endswith("one_denoised.ome.tif")
    write("z0.ome.tif", "z0", "z1")
    done = tbsn("denoise", tmp_path / "z0.ome.tif")
    assert done.returncode == 3 and "name each other" in done.stderr and not list(tmp_path.glob("z0_*"))
    assert tbsn("denoise", tmp_path / "z0.ome.tif", "-o", tmp_path / "out").returncode == 0


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


def test_what_cannot_be_done_is_told_first(here: Path) -> None:
    jobs = plan([Path("a.png"), Path("q/a.png"), Path("y/a.png")], Output(here / "q", exists="replace"))
    assert [bool(job.refused) for job in jobs] == [True, True, True]
    jobs = plan([Path("q"), Path("y")], Output(here / "out"))
    assert [(job.source, bool(job.refused)) for job in jobs] == [(Path("y/a.png"), True), (Path("q/a.png"), False)]


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
