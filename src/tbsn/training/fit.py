"""The one training loop."""

import json
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from lightning_fabric import Fabric
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from torch import Tensor, nn
from torch.optim import AdamW
from torch.utils.data import DataLoader, Dataset

from tbsn.errors import InputError
from tbsn.network.files import Network, build, save_network
from tbsn.training import checkpoint
from tbsn.training.recipe import FitSettings

Loss = Callable[[nn.Module, Sequence[Tensor]], Tensor]


def fit(
    network: Network,
    loss: Loss,
    batches: Dataset[tuple[Tensor, ...]],
    settings: FitSettings,
    run: Path,
    fabric: Fabric,
) -> Network:
    """Train a network on batch 0, 1, 2, ... and return it, with averaged weights if ``settings.ema`` is set.

    Goes on from the checkpoint in the folder ``run``, if there is one. Writes checkpoints, ``model.safetensors`` and
    ``log.jsonl`` there. Raises `InputError` if the loss is not finite: the last checkpoint stays.
    """
    average = {name: value.clone() for name, value in network.state_dict().items()}
    optimizer = AdamW(network.parameters(), lr=settings.lr, weight_decay=settings.weight_decay)
    start = 0
    if state := checkpoint.load(run):
        network.load_state_dict(state["network"])
        optimizer.load_state_dict(state["optimizer"])
        average, start = state["average"], state["step"]
    network.train()
    model, optimizer = fabric.setup(network, optimizer)
    average = {name: value.to(fabric.device) for name, value in average.items()}

    def save(step: int) -> None:
        if not all(value.isfinite().all() for value in network.state_dict().values()):
            raise InputError(run, f"the weights are not finite at step {step}", "lower fit.lr and resume")
        if fabric.is_global_zero:
            state = {
                "network": network.state_dict(),
                "optimizer": optimizer.state_dict(),
                "average": average,
                "step": step,
            }
            checkpoint.save(run, state)
            save_network(run / "model.safetensors", _averaged(network, average))

    mixed = settings.precision == "bf16" or (settings.precision == "auto" and computes_bf16(fabric.device))
    losses: list[Tensor] = []
    since = time.perf_counter()
    with progress(settings.steps, start, fabric.is_global_zero) as show:
        for step, batch in enumerate(_loader(batches, settings, start), start + 1):
            for group in optimizer.param_groups:
                group["lr"] = learning_rate(settings, step - 1)
            # Not Fabric's mixed precision, which would round the input image itself to bf16.
            with torch.autocast(fabric.device.type, torch.bfloat16, enabled=mixed):
                value = loss(model, [part.to(fabric.device) for part in batch])
            fabric.backward(value)
            optimizer.step()
            optimizer.zero_grad()
            _update(average, network, settings.ema, step)
            losses.append(value.detach())
            if step % settings.log_every == 0 or step == settings.steps:
                mean = float(torch.stack(losses).mean())
                rate = len(losses) / (time.perf_counter() - since)
                if not torch.isfinite(torch.tensor(mean)):
                    raise InputError(run, f"the loss is {mean} at step {step}", "lower fit.lr and resume")
                _log(run, fabric, step=step, loss=mean, steps_per_second=rate, lr=learning_rate(settings, step - 1))
                show(step, mean, rate)
                losses, since = [], time.perf_counter()
            if step % settings.checkpoint_every == 0 or step == settings.steps:
                save(step)
    return _averaged(network, average).eval()


def learning_rate(settings: FitSettings, step: int) -> float:
    """Linear warm-up, then a drop by ``gamma`` at each milestone."""
    passed = sum(step >= milestone * settings.steps for milestone in settings.milestones)
    return settings.lr * settings.gamma**passed * min(1.0, (step + 1) / (settings.warmup + 1))


def computes_bf16(device: torch.device) -> bool:
    """Whether a device has units for bf16, so that it is the faster precision there."""
    return torch.cuda.is_bf16_supported() if device.type == "cuda" else torch.cpu._is_avx512_bf16_supported()


def _loader(batches: Dataset[tuple[Tensor, ...]], settings: FitSettings, start: int) -> DataLoader[Any]:
    workers = {"multiprocessing_context": "spawn", "persistent_workers": True} if settings.workers else {}
    steps = range(start, settings.steps)
    return DataLoader(batches, batch_size=None, sampler=steps, num_workers=settings.workers, **workers)


@torch.no_grad()
def _update(average: dict[str, Tensor], network: nn.Module, decay: float, step: int) -> None:
    # Early on the average forgets faster: the first weights are random.
    weight = 1 - min(decay, (1 + step) / (10 + step))
    for name, value in network.state_dict().items():
        average[name].lerp_(value, weight)


def _averaged(network: Network, average: dict[str, Tensor]) -> Network:
    averaged = build(network.config)
    averaged.load_state_dict(average)
    return averaged


def _log(run: Path, fabric: Fabric, **values: float) -> None:
    if fabric.is_global_zero:
        with (run / "log.jsonl").open("a") as file:
            file.write(json.dumps(values) + "\n")


@contextmanager
def progress(total: int, done: int, visible: bool, unit: str = "step") -> Iterator[Callable[[int, float, float], None]]:
    """A bar on standard error with the loss, the rate and the time left."""
    columns = (
        TextColumn(unit),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn("loss {task.fields[loss]:.5f}  {task.fields[rate]:.2f}/s  left"),
        TimeRemainingColumn(),
    )
    with Progress(*columns, console=Console(stderr=True), disable=not visible) as bar:
        task = bar.add_task(unit, total=total, completed=done, loss=float("nan"), rate=0.0)
        yield lambda step, loss, rate: bar.update(task, completed=step, loss=loss, rate=rate)
