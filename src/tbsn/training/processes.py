"""The processes of a run: one, or as many as torchrun has started. Only the first of them writes."""

import atexit
import json
import os
import platform
import shlex
import sys
import time
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import timedelta
from importlib.metadata import version
from pathlib import Path
from typing import Any, TypeVar, cast

import torch
from lightning_fabric import Fabric
from lightning_fabric.strategies.ddp import DDPStrategy
from lightning_fabric.utilities.exceptions import MisconfigurationException
from torch import distributed

from tbsn.errors import InputError
from tbsn.memory import keep_freed_memory

T = TypeVar("T")

PATIENCE = timedelta(days=7)  # for the first process, which decodes and teaches while the others wait
SILENCE = timedelta(minutes=5)  # of a process that trains: longer than any step, or score, should take


def open_fabric(device: str) -> Fabric:
    """One process, or as many as torchrun has started."""
    world, local = (int(os.environ.get(name, "1")) for name in ("WORLD_SIZE", "LOCAL_WORLD_SIZE"))
    spread: dict[str, Any] = {"devices": local, "num_nodes": world // local}
    if world > 1:
        # The weights are laid out channels last, and the gradients come so too or not: the sum is the same.
        warnings.filterwarnings("ignore", "Grad strides do not match bucket view strides")
        spread["strategy"] = DDPStrategy(timeout=SILENCE)
    try:
        fabric = Fabric(accelerator=device, **spread)
    except (ValueError, RuntimeError, MisconfigurationException) as error:
        raise InputError(f"--device {device}", str(error).splitlines()[0], "use auto or cpu") from error
    fabric.launch()
    if world > 1:
        atexit.register(_leave)
    if fabric.device.type == "cpu":
        keep_freed_memory()
    return fabric


def _leave() -> None:
    """The threads of gloo have to end before the process does: now and then it would abort, its work done."""
    if distributed.is_initialized():
        distributed.destroy_process_group()


def made_by_first(fabric: Fabric, make: Callable[[], T]) -> T:
    """What the first process makes, for all: the others wait. `Photos` are on a file system that they share."""
    if fabric.world_size == 1:
        return make()
    patient = distributed.new_group(timeout=PATIENCE, backend="gloo")
    made = [make() if fabric.is_global_zero else None]
    distributed.broadcast_object_list(made, group=cast(distributed.ProcessGroup, patient))
    return cast(T, made[0])


@contextmanager
def ended_with_others(run: Path, fabric: Fabric) -> Iterator[None]:
    """Raises `InputError` if this block ends because another process of the run has ended, or says nothing."""
    try:
        yield
    except RuntimeError as error:
        if fabric.world_size == 1 or not (isinstance(error, distributed.DistError) or "gloo" in str(error)):
            raise
        remedy = "the same command goes on from the last checkpoint"
        raise InputError(run, "another process of this run has ended, or is silent", remedy) from error


def record_start(run: Path, fabric: Fabric, precision: str) -> None:
    """A line in started.jsonl: when, by which command, with what."""
    device = torch.cuda.get_device_name(fabric.device) if fabric.device.type == "cuda" else _processor()
    facts = {
        "time": time.strftime("%Y-%m-%d %H:%M:%S%z"),
        "command": shlex.join(["tbsn", *sys.argv[1:]]),
        "tbsn": version("tbsn"),
        "torch": torch.__version__,
        "python": platform.python_version(),
        "system": platform.platform(),
        "device": f"{fabric.device} {device}".strip(),
        "precision": precision,
        "processes": fabric.world_size,
        "threads": torch.get_num_threads(),
    }
    with (run / "started.jsonl").open("a") as file:
        file.write(json.dumps(facts) + "\n")


def _processor() -> str:
    """The name of the processor; on Linux, where Python knows its architecture at most, as the system tells it."""
    told = Path("/proc/cpuinfo")
    lines = told.read_text().splitlines() if told.exists() else []
    names = (line.partition(": ")[2] for line in lines if line.startswith("model name"))
    return next(names, platform.processor())
