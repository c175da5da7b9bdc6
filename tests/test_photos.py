"""The cache of decoded images: what it holds, and that neither interruptions nor a changing folder spoil it."""

import contextlib
import errno
import itertools
import os
import pickle
import shutil
import tracemalloc
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import numpy as np
import pytest

from conftest import save
from tbsn import images
from tbsn.diagnose import diagnose
from tbsn.errors import InputError
from tbsn.images import raised
from tbsn.noisy import bits_of, noisy_images
from tbsn.scale import Bits
from tbsn.training import decoded
from tbsn.training.decoded import cached_folder
from tbsn.training.photos import Photos, cached


class StoppedError(Exception):
    pass


def test_cache_holds_the_files_of_any_format_and_size(folder: Path, tmp_path: Path) -> None:
    deep = np.random.default_rng(0).integers(0, 2**16, (190, 170), dtype=np.uint16)
    save(folder / "grey.tif", deep)
    (folder / "broken.png").write_bytes(b"\x89PNG\r\n\x1a\n")
    (folder / "link.png").symlink_to(folder / "nowhere.png")
    photos = cached_folder(folder, tmp_path / "cache", channels=3)
    names = [Path(photos.name(i)).name for i in range(len(photos))]
    assert set(names) == {"01_14.png", "12_14.png", "letters.jpg", "grey.tif"} and photos.unusable == 2
    reasons = sorted(photos.skipped())
    assert str(folder / "broken.png") in reasons[0] and reasons[1].startswith(f"{folder / 'link.png'}: no such file")
    grey = photos[names.index("grey.tif")]
    assert grey.dtype == np.uint16 and all(np.array_equal(grey[..., c], deep) for c in range(3))
    assert len(pickle.dumps(photos)) < 1000, "a worker opens the cache; it is not sent the pixels"


def test_cache_is_made_anew_only_when_the_folder_changes(folder: Path, tmp_path: Path) -> None:
    cached_folder(folder, tmp_path / "cache", 3)
    made = (tmp_path / "cache" / "pixels.bin").stat().st_mtime_ns
    cached_folder(folder, tmp_path / "cache", 3)
    assert (tmp_path / "cache" / "pixels.bin").stat().st_mtime_ns == made
    before = Photos(tmp_path / "cache")
    (folder / "letters.jpg").unlink()
    assert len(cached_folder(folder, tmp_path / "cache", 3)) == 2
    assert all(before[i].any() for i in range(3)), "who had opened it keeps what was there"


@pytest.mark.parametrize("place", ["runs/teacher", "more", "."])
def test_what_the_program_has_written_is_not_learned_from(
    blocks: Path, tmp_path: Path, place: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(blocks)
    (blocks / "photo_denoised.png").write_bytes((blocks / "01_14.png").read_bytes())
    before = cached_folder(Path(), tmp_path / "cache", 3)
    assert len(before) == 3, "its source is not here: a photo may be called so"
    for result in (Path(place) / "samples" / "step-1.png", Path("01_14_denoised.jpg"), Path("more/12_14_denoised.png")):
        result.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy("01_14.png", result)
    for name in ("scan.ome.tif", "scan_denoised.ome.tif", ".thumbnails/thumbnail.png"):
        Path(name).parent.mkdir(exist_ok=True)
        shutil.copy("01_14.png", name)
    for name in ("recipe.yaml", "started.jsonl"):
        Path(place, name).touch()
    after = cached_folder(Path(), tmp_path / "cache", 3)
    found = {after.name(i) for i in range(len(after))}
    assert found == {"01_14.png", "photo_denoised.png", "scan.ome.tif"} | (
        {"more/12_14.png"} if place != "more" else set()
    )
    assert diagnose([Path()], print).found == len(found)
    assert list(noisy_images([Path("01_14_denoised.jpg")], raised)) == [Path("01_14_denoised.jpg")], "it was asked for"


def test_a_folder_that_cannot_be_read_is_left_out_and_listed(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    closed, scandir = folder / "closed", os.scandir
    closed.mkdir()

    def scan(place: Path | str) -> object:
        if Path(place) == closed:
            raise PermissionError(errno.EACCES, "Permission denied", str(place))
        return scandir(place)

    monkeypatch.setattr(os, "scandir", scan)  # root may read all
    photos = cached_folder(folder, tmp_path / "cache", 3)
    assert len(photos) == 3 and photos.unusable == 1
    assert list(photos.skipped()) == [f"{closed}: cannot be read (Permission denied); check its permissions"]
    failures: list[InputError] = []
    result = diagnose([folder], failures.append)
    assert [error.args[0] for error in failures] == [str(closed)]
    assert (result.found, result.measured, result.failed) == (3, 3, 1)
    for alone in (lambda: cached_folder(closed, tmp_path / "other", 3), lambda: diagnose([closed], print)):
        with pytest.raises(InputError, match=r"closed: cannot be read"):
            alone()


@pytest.mark.parametrize("event", ["gone", "new"])
def test_a_folder_may_change_while_it_is_read(
    folder: Path, tmp_path: Path, event: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    read = images.read

    def meanwhile(path: Path, channels: int) -> images.Photo:
        if path.name == "01_14.png" and event == "gone":
            (folder / "letters.jpg").unlink(missing_ok=True)
        elif path.name == "01_14.png":
            shutil.copy(path, folder / "new.png")
        return read(path, channels)

    monkeypatch.setattr(images, "read", meanwhile)
    photos = cached_folder(folder, tmp_path / "cache", 3)
    assert len(photos) == (2 if event == "gone" else 3) and not photos.unusable
    again = cached_folder(folder, tmp_path / "cache", 3)
    assert {Path(again.name(i)) for i in range(len(again))} == set(images.find([folder])) and not again.unusable


def test_an_image_that_arrives_with_more_bits_is_not_cut_off(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "in").mkdir()
    dark = np.random.default_rng(0).integers(0, 1024, (40, 40, 3), dtype=np.uint16)
    save(tmp_path / "in" / "a.tif", dark)

    def meanwhile(paths: Iterator[Path], channels: int) -> Bits:
        found = bits_of(paths, channels)
        save(tmp_path / "in" / "b.tif", dark * 4)
        return found

    monkeypatch.setattr(decoded, "bits_of", meanwhile)
    photos = cached_folder(tmp_path / "in", tmp_path / "cache", 3)
    assert len(photos) == 1 and "more than the 10 bits" in next(photos.skipped(), "")
    again = cached_folder(tmp_path / "in", tmp_path / "cache", 3)
    assert len(again) == 2 and again[0].max() < 16400 and again[1].max() > 65000


def test_a_process_that_is_sent_photos_has_those_or_none(folder: Path, tmp_path: Path) -> None:
    sent = pickle.dumps(cached_folder(folder, tmp_path / "cache", 3))
    assert len(pickle.loads(sent)) == 3
    (folder / "letters.jpg").unlink()
    cached_folder(folder, tmp_path / "cache", 3)
    with pytest.raises(InputError, match="made anew"):
        pickle.loads(sent)


def test_decoding_goes_on_where_it_was_stopped(tmp_path: Path) -> None:
    random = np.random.default_rng(0)
    arrays = [random.integers(0, 256, (5, 7 + i, 3), dtype=np.uint8) for i in range(6)]
    asked: list[int] = []

    def decode(first: int, stop: int = 99) -> Iterator[tuple[str, np.ndarray | None]]:
        for i in range(first, 6):
            if i == stop:
                raise StoppedError
            asked.append(i)
            yield (f"image {i}", arrays[i]) if i != 1 else ("image 1 is broken", None)

    for stop in (3, 5):
        with pytest.raises(StoppedError):
            cached(partial(decode, stop=stop), tmp_path, "stamp")
        with (tmp_path / "pixels.bin").open("ab") as file:
            file.write(b"half an image")
    photos = cached(decode, tmp_path, "stamp")
    assert asked == [0, 1, 2, 3, 4, 5]
    assert list(photos.skipped()) == ["image 1 is broken"]
    assert all(np.array_equal(one, other) for one, other in zip(photos, arrays[:1] + arrays[2:], strict=True))
    with pytest.raises(StoppedError):
        cached(partial(decode, stop=0), tmp_path, "another stamp")


@pytest.mark.parametrize("moment", range(1, 16))
def test_an_interrupted_write_neither_doubles_nor_loses_an_image(
    tmp_path: Path, moment: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    arrays = [np.full((3, 4, 3), i, np.uint8) for i in range(5)]
    decode = partial(_named, arrays)
    calls, fsync = itertools.count(), os.fsync

    def interrupted(handle: int) -> None:
        if next(calls) == moment:
            raise KeyboardInterrupt
        fsync(handle)

    with monkeypatch.context() as patch, contextlib.suppress(KeyboardInterrupt):
        patch.setattr("tbsn.training.photos.SECONDS_BETWEEN_SYNCS", 0)
        patch.setattr(os, "fsync", interrupted)
        cached(decode, tmp_path, "stamp")
    photos = cached(decode, tmp_path, "stamp")
    assert [int(photo[0, 0, 0]) for photo in photos] == [0, 1, 2, 3, 4]


def _named(arrays: list[np.ndarray], first: int) -> Iterator[tuple[str, np.ndarray | None]]:
    return ((f"image {i}", arrays[i]) for i in range(first, len(arrays)))


def test_memory_does_not_grow_with_the_number_of_images(tmp_path: Path) -> None:
    save(tmp_path / "one.png", np.zeros((2, 2, 3), np.uint8))
    peaks = []
    for count in (100, 3000):
        # Kept, as pathlib interns their parts: at any new one the table of all that is interned may grow by megabytes.
        links = [tmp_path / f"{count}" / f"{i // 100}" / f"{i}.png" for i in range(count)]
        for link in links:
            link.parent.mkdir(parents=True, exist_ok=True)
            link.hardlink_to(tmp_path / "one.png")
        tracemalloc.start()
        photos = cached_folder(tmp_path / f"{count}", tmp_path / f"cache{count}", 3)
        peaks.append(tracemalloc.get_traced_memory()[1])
        tracemalloc.stop()
        assert len(photos) == count
    assert peaks[1] - peaks[0] < 200 * 2900, "bytes an image: what the index holds of it, and little else"
