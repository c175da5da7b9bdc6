"""The processes of a run: one, or as many as torchrun has started. Only the first of them writes."""

import json
import os
import platform
import shlex
import sys
import time
from collections.abc import Callable
from datetime import timedelta
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from lightning_fabric import Fabric
from lightning_fabric.loggers.tensorboard import TensorBoardLogger
from lightning_fabric.strategies.ddp import DDPStrategy
from lightning_fabric.utilities.exceptions import MisconfigurationException

from tbsn.errors import InputError
from tbsn.memory import keep_freed_memory
from tbsn.training.photos import Photos

PATIENCE = timedelta(days=7)  # for the first process, which decodes and teaches while the others wait


def open_fabric(device: str, run: Path) -> Fabric:
    """One process, or as many as torchrun has started."""
    world, local = (int(os.environ.get(name, "1")) for name in ("WORLD_SIZE", "LOCAL_WORLD_SIZE"))
    spread: dict[str, Any] = {"devices": local, "num_nodes": world // local}
    if world > 1:
        spread["strategy"] = DDPStrategy(timeout=PATIENCE)
    logger = TensorBoardLogger(run, name="", version="tensorboard")
    try:
        fabric = Fabric(accelerator=device, loggers=logger, **spread)
    except (ValueError, RuntimeError, MisconfigurationException) as error:
        raise InputError(f"--device {device}", str(error).splitlines()[0], "use auto or cpu") from error
    fabric.launch()
    if fabric.device.type == "cpu":
        keep_freed_memory()
    return fabric


def made_by_first(fabric: Fabric, make: Callable[[], Photos]) -> Photos:
    """Photos that the first process makes, and the others open when they are whole (on a file system they share)."""
    photos = make() if fabric.is_global_zero else None
    directory: Path = fabric.broadcast(photos.directory if photos else None)  # type: ignore[assignment]
    return photos or Photos(directory)


def record_start(run: Path, fabric: Fabric) -> None:
    """A line in started.jsonl: when, by which command, with what."""
    device = torch.cuda.get_device_name(fabric.device) if fabric.device.type == "cuda" else platform.processor()
    facts = {
        "time": time.strftime("%Y-%m-%d %H:%M:%S%z"),
        "command": shlex.join(["tbsn", *sys.argv[1:]]),
        "tbsn": version("tbsn"),
        "torch": torch.__version__,
        "python": platform.python_version(),
        "system": platform.platform(),
        "device": f"{fabric.device} {device}".strip(),
        "processes": fabric.world_size,
        "threads": torch.get_num_threads(),
    }
    with (run / "started.jsonl").open("a") as file:
        file.write(json.dumps(facts) + "\n")
