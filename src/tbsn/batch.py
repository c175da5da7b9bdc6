"""Files in, files out: one bad file never stops the rest."""

import hashlib
import os
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import cache, partial
from itertools import islice
from pathlib import Path
from threading import Lock
from typing import Any, Literal, Self

import numpy as np

from tbsn.denoiser import Denoiser
from tbsn.encoding import Encoding, check_holds, check_kept, write_rows
from tbsn.errors import InputError, NoRoomError, Stopped, UnexpectedError, is_out_of_memory
from tbsn.files import make_folder
from tbsn.images import Photo, check_values, open_photo
from tbsn.memory import return_freed_memory
from tbsn.plan import Job
from tbsn.scale import scale_of
from tbsn.tiles import Rows

AHEAD = 16  # strips of rows that wait to be written
AT_ONCE = 2  # one is read or written while the other is computed
STRIP = 512


@dataclass(frozen=True)
class Step:
    """Another ``share`` of a file of so many ``pixels`` is done; ``page`` says of which of its pages, if it has any."""

    share: float
    pixels: int
    page: str = ""


Report = Callable[[Job, Step], None]
Watch = Callable[[Step], None]


@dataclass(frozen=True)
class Settings:
    """How files are denoised: their ``encoding``; ``nan`` and infinite values are an "error", or "keep" theirs.

    Tiles are made as small as about ``memory`` bytes need it, for as many files as are worked on at once.
    """

    encoding: Encoding = Encoding()
    nan: Literal["error", "keep"] = "error"
    memory: float = 1.5e9


@dataclass(frozen=True)
class Result:
    """What became of a job: nothing went wrong, or an ``error``; of so many ``pixels``, in so many ``seconds``.

    ``sha256`` is of the content of its source, if that was read.
    """

    job: Job
    error: InputError | None = None
    pixels: int = 0
    seconds: float = 0.0
    sha256: str | None = None

    def called(self, names: Mapping[Path, Path | str]) -> Self:
        """The same, with files named by what they stand in for."""
        if self.error:
            self.error.called(names)
        source, target = (names.get(Path(place), place) for place in (self.job.source, self.job.target))
        return replace(self, job=replace(self.job, source=source, target=target))

    @property
    def disk_full(self) -> bool:
        """Whether no other job can end well either."""
        return isinstance(self.error, NoRoomError) and self.error.disk

    @property
    def status(self) -> Literal["done", "skipped", "stopped", "failed"]:
        """In one word."""
        if self.error is None:
            return "skipped" if self.job.skipped else "done"
        return "stopped" if isinstance(self.error, Stopped) else "failed"


def denoise_file(
    denoise: Denoiser,
    source: Path,
    target: Path,
    settings: Settings = Settings(),
    watch: Watch = lambda step: None,
) -> int:
    """Denoise one image file into another of the same depth, with its metadata, and return how many pixels it has.

    Only some rows of it are in memory at a time. ``watch`` is told of each step, and may raise. Raises `InputError`;
    then there is no ``target``.
    """
    photo = open_photo(source, denoise.channels)
    height, width, channels = photo.shape
    if channels not in (1, denoise.channels):
        raise InputError(
            source, f"has {channels} channels, the model {denoise.channels}", "train a model on such images"
        )
    check_holds(target, photo.dtype, photo.shape, photo.pages, photo.alpha)
    check_kept(target, photo)
    pixels = height * width * photo.pages
    scale = scale_of(photo.dtype, pixels * channels, _strips(photo, settings))
    seen = cache(partial(_checked, photo, settings))  # one more reading at most, page after page: to see the noise
    none, trust_for = photo.no_data, denoise.trust_for
    denoise = denoise.within(settings.memory, AT_ONCE * width)  # always, that an image always gives the same
    share = 1 / (len(denoise.tiling.plan(height)) * len(denoise.tiling.plan(width)) * photo.pages)

    def watched(tile: np.ndarray, note: str) -> np.ndarray:
        denoised = denoise.function(tile)
        watch(Step(share, pixels, note))
        return denoised

    def parts() -> Iterator[np.ndarray]:
        rows = _checked(photo, settings)
        for number in range(photo.pages):
            page = _shifted(lambda: rows, number * height)
            trust = trust_for(partial(_shifted, seen, number * height), (height, width), scale)
            note = f"page {number + 1}/{photo.pages}" if photo.pages > 1 else ""
            function = partial(watched, note=note)
            for part in replace(denoise, function=function).stream(page, (height, width), scale, trust):
                yield part if none is None else np.where(np.isnan(part), none, part)

    make_folder(target.parent)
    with ahead(parts(), AHEAD) as computed:
        write_rows(target, computed, photo.shape, photo.dtype, photo, settings.encoding)
    return pixels


@contextmanager
def ahead(parts: Iterator[np.ndarray], count: int) -> Iterator[Iterator[np.ndarray]]:
    """The same parts, up to ``count`` of which are made by another thread before they are asked for."""
    with ThreadPoolExecutor(1) as maker:
        made = deque(maker.submit(next, parts, None) for _ in range(count))

        def taken() -> Iterator[np.ndarray]:
            while (part := made.popleft().result()) is not None:
                made.append(maker.submit(next, parts, None))
                yield part

        try:
            yield taken()
        finally:
            for future in made:
                future.cancel()


def denoise_files(
    denoise: Denoiser,
    jobs: Iterable[Job],
    settings: Settings = Settings(),
    received: Callable[[], int] = lambda: 0,
    report: Report = lambda job, step: None,
) -> Iterator[Result]:
    """Work through jobs, and give the result of each in order; reading, computing and writing overlap.

    ``received`` is the number of a signal once there is one: then files that were begun are given up before their next
    tile, none of them half written, and no other is begun. ``report`` is told of each step. A full disk ends the work.
    """
    one_at_a_time = Lock()  # the network uses all cores by itself: two of them would only be in each other's way

    def work(job: Job) -> Result:
        def function(image: np.ndarray) -> np.ndarray:
            with one_at_a_time:
                if number := received():
                    raise Stopped(job.source, "not finished", "the same command with --skip-existing goes on", number)
                return denoise.function(image)

        return attempt(replace(denoise, function=function), job, settings, partial(report, job))

    return_freed_memory()
    with ThreadPoolExecutor(AT_ONCE) as pool:
        waiting, running = iter(jobs), deque[Future[Result]]()
        while True:
            room = 0 if received() else AT_ONCE - len(running)
            running.extend(pool.submit(work, job) for job in islice(waiting, room))
            if not running:
                return
            result = running.popleft().result()
            if result.disk_full:
                waiting = iter(())
            yield result


def attempt(denoise: Denoiser, job: Job, settings: Settings, watch: Watch = lambda step: None) -> Result:
    """What becomes of one job, whatever goes wrong; the arguments are those of `denoise_file`."""
    began, source, pixels, error = time.monotonic(), Path(job.source), 0, job.refused
    try:
        if not (job.skipped or error):
            pixels = denoise_file(denoise, source, Path(job.target), settings, watch)
    except InputError as known:
        error = known
    except Exception as unknown:  # of a library: one file must not stop the others, and its message is not ours
        error = _unexpected(source, unknown)
    seconds = time.monotonic() - began
    untouched = job.skipped or job.refused or isinstance(error, Stopped)
    return Result(job, error, pixels, seconds, None if untouched else _sha256_if_readable(source))


def record(result: Result) -> dict[str, Any]:
    """What was done to which content, when, and what came of it."""
    return {
        "time": time.strftime("%Y-%m-%dT%H:%M:%S%z"),
        "input": os.fspath(result.job.source),
        "input_sha256": result.sha256,
        "output": os.fspath(result.job.target),
        "status": result.status,
        "error": str(result.error) if result.error else None,
        "pixels": result.pixels,
        "seconds": round(result.seconds, 3),
    }


def sha256(path: Path) -> str:
    """Of the content of a file."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _sha256_if_readable(path: Path) -> str | None:
    try:
        return sha256(path) if os.path.isfile(path) else None
    except OSError:  # it is gone since, or its disk fails
        return None


def _unexpected(source: Path, error: Exception) -> InputError:
    reason = f"{type(error).__name__}: {error}"
    if is_out_of_memory(error):
        return NoRoomError(source, "does not fit into memory", "give --max-memory, for smaller tiles", disk=False)
    return UnexpectedError(source, reason, "please report this, with the file if you can")


def _shifted(begin: Callable[[], Rows], first: int) -> Rows:
    """The rows from the ``first`` on."""
    rows = begin()
    return lambda top, bottom: rows(first + top, first + bottom)


def _checked(photo: Photo, settings: Settings) -> Rows:
    """The rows of a photo, NaN where it says that there is no value. Raises `InputError` for what else is none."""
    rows, none, remedy = photo.rows(), photo.no_data, "replace them, or add --nan keep"

    def read(top: int, bottom: int) -> np.ndarray:
        part = rows(top, bottom)
        if none is None:
            check_values(photo.path, part, settings.nan == "keep", remedy)
            return part
        is_none = (part == none) | (np.isnan(part) & np.isnan(none))
        check_values(photo.path, part[~is_none], settings.nan == "keep", remedy)
        return np.where(is_none, part.dtype.type(np.nan), part)

    return read


def _strips(photo: Photo, settings: Settings) -> Iterator[np.ndarray]:
    rows, height = _checked(photo, settings), photo.shape[0] * photo.pages
    for top in range(0, height, STRIP):
        yield rows(top, min(top + STRIP, height))
