"""Many machines: the jobs of `tbsn denoise` by the workers of a Ray cluster, paths and URLs alike."""

import logging
import os
import signal
import socket
import threading
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from tbsn.batch import Report, Result, Settings, attempt
from tbsn.denoiser import Denoiser
from tbsn.errors import InputError, UnexpectedError
from tbsn.files import remove_partial_of
from tbsn.memory import return_freed_memory
from tbsn.plan import Job
from tbsn.stopping import SIGNALS
from tbsn.urls import as_files, exists

LOCAL = "local"
QUIET = {
    "RAY_USAGE_STATS_ENABLED": "0",  # Ray would tell its maker of every use
    "RAY_DATA_LOG_LEVEL": "CRITICAL",
    "RAY_BACKEND_LOG_LEVEL": "fatal",
}
LOOPBACK = {"RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0"}  # with clusters off, Ray listens on 127.0.0.1, on any system
MOST_TASKS = 10_000  # of Ray; it keeps books about each of them
RETRIES = 3
PATIENCE = 10.0


def denoise_everywhere(
    address: str,
    denoise: Denoiser,
    jobs: list[Job],
    settings: Settings = Settings(),
    received: Callable[[], int] = lambda: 0,
    report: Report = lambda job, step: None,
) -> Iterator[Result]:
    """`tbsn.batch.denoise_files` by a Ray cluster at an ``address``, or ``local`` for one of this machine alone.

    Each core has a worker, if there is also the memory of ``settings`` for it. Results come as they are ready, in no
    order, and shares of files are not reported. What a worker that died had not done is done by another; a job that
    kills one after another is given up. Raises `InputError` if there is no such cluster, or no worker can start.
    """
    left = {job.target: job for job in jobs if not (job.refused or job.skipped)}
    yield from (Result(job, job.refused) for job in jobs if job.refused or job.skipped)
    if not left:
        return
    targets = [target for target in left if isinstance(target, Path)]
    try:
        with _connected(address):
            for row in _rows(denoise, list(left.values()), settings):
                result = row["result"]
                del left[result.job.target]
                yield result
                if received() or result.disk_full:
                    return
    finally:
        remove_partial_of(targets)  # of workers that were killed, as all are now
    for job in left.values():
        reason = "whatever worked on it died"
        yield Result(job, UnexpectedError(job.source, reason, "give --max-memory, or leave it out and report it"))


class Worker:
    """Holds the model, in a process of its own, and takes one job after another."""

    def __init__(self, denoise: Denoiser, settings: Settings) -> None:
        self.denoise, self.settings = denoise, settings
        return_freed_memory()

    def __call__(self, row: dict[str, Any]) -> dict[str, Any]:
        return {"result": attempt_anywhere(self.denoise, row["job"], self.settings)}


def attempt_anywhere(denoise: Denoiser, job: Job, settings: Settings) -> Result:
    """`tbsn.batch.attempt` for paths and URLs.

    A target that was not there when the jobs were planned comes from a worker that died before it could say so.
    """
    try:
        if not job.replaces and exists(job.target):
            return Result(job)
        with as_files(job) as local:
            names = {Path(local.source): job.source, Path(local.target): job.target}
            return attempt(denoise, local, settings).called(names)
    except InputError as error:
        return Result(job, error)


def _rows(denoise: Denoiser, jobs: list[Job], settings: Settings) -> Iterator[dict[str, Any]]:
    import ray
    import ray.data

    needs, there = {"CPU": 1, "memory": settings.memory}, ray.cluster_resources()
    workers = min(len(jobs), *(int(there.get(what, 0) / amount) for what, amount in needs.items()))
    if not workers:
        room = f"{needs['CPU']} core and {settings.memory / 1e9:.1f} GB for a worker"
        raise InputError("Ray", f"has not {room}", "add machines, or give a smaller --max-memory")
    context = ray.data.DataContext.get_current()
    context.enable_progress_bars = False
    context.max_errored_blocks = -1  # a file that kills its workers is not to stop the others
    rows = ray.data.from_items([{"job": job} for job in jobs], override_num_blocks=min(len(jobs), MOST_TASKS))
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "`ray_remote_args` is deprecated")  # there is no other way to bound retries
        # One task at a time in each worker: what waits behind another must not count its deaths as its own.
        results = rows.map(
            Worker,  # type: ignore[arg-type]  (Ray makes one of it in each process)
            fn_constructor_args=(denoise, settings),
            compute=ray.data.ActorPoolStrategy(size=workers, max_tasks_in_flight_per_actor=1),
            num_cpus=needs["CPU"],
            memory=needs["memory"],
            max_task_retries=RETRIES,
        )
    return iter(results.iter_rows())


@contextmanager
def _connected(address: str) -> Iterator[None]:
    """To a cluster; a local one is there for the block alone, and listens to this machine alone."""
    environment = QUIET | (LOOPBACK if address == LOCAL else {})
    for name, value in environment.items():
        os.environ.setdefault(name, value)
    import ray  # only here, since it reads those when it is imported
    import ray.exceptions

    try:
        host, _, port = address.rpartition(":")
        if port.isdecimal():  # Ray would try for ever
            socket.create_connection((host.rpartition("/")[2], int(port)), PATIENCE).close()
        with _silence(), _same_signals():
            ray.init(address, include_dashboard=False, log_to_driver=False, logging_level=logging.ERROR)
    except (OSError, ValueError, RuntimeError) as error:
        raise InputError(f"--ray {address}", f"no cluster ({error})", "start one, or use --ray local") from error
    try:
        yield
    except ray.exceptions.RayError as error:
        reason = str(error).strip().splitlines()[-1]
        raise InputError(f"--ray {address}", reason, "install the same tbsn on every machine") from error
    finally:
        ray.shutdown()


@contextmanager
def _same_signals() -> Iterator[None]:
    """What signals do stays as it is: Ray would end the process at once, with a code of its own."""
    handlers = {number: signal.getsignal(number) for number in SIGNALS}
    yield
    if threading.current_thread() is threading.main_thread():
        for number, handler in handlers.items():
            signal.signal(number, handler)


@contextmanager
def _silence() -> Iterator[None]:
    """Nothing on standard error, not from C++ either: Ray tells there how it logs, and what it tries."""
    with open(os.devnull, "w") as nowhere:
        kept = os.dup(2)
        os.dup2(nowhere.fileno(), 2)
        try:
            yield
        finally:
            os.dup2(kept, 2)
            os.close(kept)
