"""One call of `tbsn denoise`: what it shows, what it records, and how it ends."""

import json
import os
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, nullcontext, suppress
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Self

from tbsn import formats
from tbsn.batch import Report, Result, Settings, Step, denoise_files, record, sha256
from tbsn.denoiser import Denoiser, find
from tbsn.encoding import Encoding
from tbsn.errors import SOME_FAILED, InputError, unwritable
from tbsn.files import MODEL
from tbsn.images import left_out
from tbsn.lines import say, warn
from tbsn.plan import Job, Output
from tbsn.stopping import remembered_signal

Work = Callable[[Denoiser, list[Job], Settings, Callable[[], int], Report], Iterator[Result]]
Called = Callable[[Result], Result]


@dataclass
class Tally:
    """How many files came to what, how large they were, and the exit code that follows from it."""

    counts: dict[str, int] = field(default_factory=lambda: {"done": 0, "skipped": 0, "failed": 0, "stopped": 0})
    pixels: int = 0
    code: int = 0
    began: float = field(default_factory=time.monotonic)

    def add(self, result: Result) -> None:
        """Count one; of several exit codes that of a signal counts most, then 1 and 5, then 3."""
        self.counts[result.status] += 1
        self.pixels += result.pixels
        if result.error:
            self.fail(result.error)

    def fail(self, error: InputError) -> None:
        """Count one that is of no file alone, as `add` does."""
        code = error.code if error.code in (1, 5) or error.code > 128 else SOME_FAILED
        self.code = max(self.code, code, key=[0, SOME_FAILED, 5, 1, 129, 130, 143].index)

    @property
    def count(self) -> int:
        """Files so far."""
        return sum(self.counts.values())

    def speed(self, more: float = 0) -> str:
        """Megapixels per second so far, with some ``more`` of files that are not done."""
        return f"{(self.pixels + more) / 1e6 / max(1e-9, time.monotonic() - self.began):.2f} MP/s"

    def __str__(self) -> str:
        counts = ", ".join(f"{count} {status}" for status, count in self.counts.items() if count)
        return f"{counts or 'nothing done'}; {self.pixels / 1e6:.1f} megapixels, {self.speed()}"


@dataclass(frozen=True)
class Log:
    """A file with a line for each result: what was done to which content, how, and what came of it."""

    path: Path
    facts: dict[str, Any]

    @classmethod
    def of(cls, output: Output, shard: str, model: str, **facts: Any) -> Self | None:
        """``run.jsonl`` in the output folder, one for each shard; none if there is no such folder."""
        if output.path is None or output.is_file:
            return None
        name = "run.jsonl" if shard == "1/1" else f"run-{shard.replace('/', '-of-')}.jsonl"
        file = find(model)
        digest = sha256(file / MODEL if file.is_dir() else file)
        return cls(output.path / name, facts | {"model": model, "model_sha256": digest})

    def add(self, result: Result) -> None:
        """Append one line. Raises `InputError` if that cannot be written."""
        try:
            with self.path.open("a") as file:
                file.write(json.dumps(record(result) | self.facts) + "\n")
        except OSError as error:
            raise unwritable(self.path, error, "the images are written without it") from error


def settings(quality: int, strip_metadata: bool, nan: str, memory: float) -> Settings:
    """The settings of a batch, checked; ``memory`` 0 is the default. Raises `InputError`."""
    if nan not in ("error", "keep"):
        raise InputError(f"--nan {nan}", "unknown", "use error or keep")
    chosen = Settings(Encoding(quality, not strip_metadata), nan)  # type: ignore[arg-type]
    return replace(chosen, memory=memory) if memory else chosen


def run(
    denoise: Denoiser,
    jobs: list[Job],
    settings: Settings,
    log: Log | None,
    loudness: int,
    work: Work = denoise_files,
    called: Called = lambda result: result,
) -> int:
    """Denoise, with a bar on a terminal, and return the exit code.

    ``loudness`` 0 shows errors alone, 1 results too, 2 also their size and time. ``work`` may be done elsewhere;
    what is shown is ``called`` by the names that users know.
    """
    tally, begun = Tally(), dict[Path | str, tuple[float, int]]()
    if loudness and not denoise.local:
        side = denoise.tiling.size
        note = f"{denoise.name} attends to all that it sees: it is shown a large image in tiles of {side}x{side}"
        warn(f"note: {note}")
    with remembered_signal() as received, _bar(len(jobs), loudness) as show:

        def report(job: Job, step: Step) -> None:
            share, _ = begun.get(job.source, (0.0, 0))
            begun[job.source] = share + step.share, step.pixels
            shares = list(begun.values())
            speed = tally.speed(sum(share * pixels for share, pixels in shares))
            show(tally.count + sum(share for share, _ in shares), f"{step.page} {speed}".strip())

        with suppress(KeyboardInterrupt):  # a second signal; the first has its code
            for result in work(denoise, jobs, settings, received, report):
                begun.pop(result.job.source, None)
                result = called(result)
                tally.add(result)
                tell(result, loudness)
                log = log and _logged(log, result, tally)
                show(tally.count, tally.speed())
        if number := received():
            tally.code = 128 + number
    tally.counts["left"] = len(jobs) - tally.count
    if loudness and (tally.code > 128 or len(jobs) > 1):
        warn(tally)
    return tally.code


def _logged(log: Log, result: Result, tally: Tally) -> Log | None:
    """The log, with a line more; none from when on it cannot be written."""
    try:
        log.add(result)
    except InputError as error:
        warn(f"{error.label}: {error}")
        tally.fail(error)
        return None
    return log


def _bar(total: int, loudness: int) -> AbstractContextManager[Callable[[float, str], None]]:
    if not (loudness and sys.stderr.isatty()):
        return nullcontext(lambda completed, note: None)
    from tbsn.progress import progress  # only here, since it takes a while to import

    return progress("file", total)


def tell(result: Result, loudness: int) -> None:
    """Show what became of one file: errors always, what goes well on standard output."""
    job = result.job
    if result.error:
        warn(f"{result.error.label}: {result.error}")
    elif loudness and not job.skipped:
        more = f"  {result.pixels / 1e6:.2f} megapixels in {result.seconds:.2f} s" if loudness > 1 else ""
        say(f"{job.source} -> {job.target}{more}")
        if note := formats.misnamed(Path(job.source)):
            warn(f"note: {note}")
    elif loudness > 1:
        say(f"{job.source}: {job.target} is there already")


def tell_left_out(inputs: list[Path], recursive: bool) -> None:
    """Note how many images in folders are of formats that are not read."""
    if counts := left_out(inputs, recursive):
        found = ", ".join(f"{count} {suffix}" for suffix, count in sorted(counts.items()))
        warn(f"note: left out {found}; convert them to {', '.join(formats.SUFFIXES)}")


def show(jobs: list[Job], called: Called = lambda result: result) -> int:
    """Show what would be done, and return the exit code that this is worth."""
    errors = [job.refused or _missing(job) for job in jobs]
    for job, error in zip(jobs, errors, strict=True):
        tell(called(Result(job, error)), loudness=2 if job.skipped else 1)
    return SOME_FAILED if any(errors) else 0


def _missing(job: Job) -> InputError | None:
    there = job.skipped or isinstance(job.source, str) or os.path.exists(job.source)
    return None if there else InputError(job.source, "no such file", "check the name")
