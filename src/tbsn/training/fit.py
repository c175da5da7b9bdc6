"""The one training loop."""

import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing, contextmanager, nullcontext
from functools import partial
from pathlib import Path
from typing import Any

import torch
from lightning_fabric import Fabric
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset

from tbsn.errors import Stopped
from tbsn.network.files import Network
from tbsn.progress import progress
from tbsn.stopping import ignore_signals, remembered_signal
from tbsn.training.recipe import FitSettings
from tbsn.training.state import State, Watch

Loss = Callable[[nn.Module, Sequence[Tensor]], Tensor]


def fit(
    network: Network,
    loss: Loss,
    batches: Dataset[tuple[Tensor, ...]],
    settings: FitSettings,
    run: Path,
    fabric: Fabric,
    max_seconds: float = float("inf"),
    held_back: Sequence[Sequence[Tensor]] = (),
    watch: Watch | None = None,
) -> Network:
    """Train a network on batch 0, 1, 2, ... and return it, with averaged weights if ``settings.ema`` is set.

    With batches ``held_back`` from training, the result is the (averaged) network of the checkpoint that has the least
    loss on them, else of the last: no clean image has a part in that. The first process chooses and writes.

    Goes on from the checkpoint in the folder ``run``, if there is one: on the CPU to the same weights, bit for bit, as
    if it had never stopped, for a batch depends on nothing but its number. Writes checkpoints, ``model.safetensors``
    and ``log.jsonl`` there, and hands the averaged network of each checkpoint to ``watch``. With ``max_seconds`` of
    training in all, the schedule of the learning rate runs by the clock where that is ahead of the steps.

    Raises `DivergedError` if the loss or the weights are not finite, `Stopped` after SIGTERM or Ctrl-C, and
    `InputError` if a checkpoint cannot be written; the last whole checkpoint stays.
    """
    mixed = precision(settings, fabric.device) == "bf16"
    score = (
        partial(mean_loss, loss=loss, batches=held_back, device=fabric.device, mixed=mixed)
        if held_back and fabric.is_global_zero
        else None
    )
    state = State(network, settings, run, fabric, score)
    if state.seconds >= max_seconds:
        return state.finished()
    losses: list[Tensor] = []
    began, logged = time.monotonic() - state.seconds, time.monotonic()
    with (
        progress("step", settings.steps, state.step, fabric.is_global_zero, max_seconds - state.seconds) as report,
        remembered_signal() as received,
        _errors_of_threads(state.errors),
        closing(state),
    ):
        for batch in loader(batches, settings, state.step, fabric.device):
            fraction = max(state.step / settings.steps, state.seconds / max_seconds)
            state.set_learning_rate(learning_rate(settings, state.step, fraction))
            moved = (part.to(fabric.device, non_blocking=True) for part in batch)
            parts = zip(*(part.chunk(settings.accumulate) for part in moved), strict=True)
            losses.append(gradients(state.model, loss, list(parts), fabric, mixed))
            state.advance()
            stop, state.seconds = _agreed(fabric, received(), time.monotonic() - began)
            last = bool(stop) or state.step == settings.steps or state.seconds >= max_seconds
            if last or state.step % settings.log_every == 0:
                rate = len(losses) / (time.monotonic() - logged)
                mean = float(fabric.all_reduce(torch.stack(losses).mean()))  # type: ignore[arg-type]
                state.log(loss=mean, steps_per_second=rate, lr=state.lr)
                report(state.step, f"loss {mean:.5f}  {rate:.2f}/s")
                losses, logged = [], time.monotonic()
            regular = state.step % settings.checkpoint_every == 0
            if last or regular:
                ends = state.step == settings.steps or state.seconds >= max_seconds
                state.save(watch, choose=regular or ends)
            if stop:
                reason = f"{signal.Signals(stop).name} at step {state.step}; a checkpoint is written"
                raise Stopped(run, reason, "the same command goes on", stop)
            if last:
                break
    return state.finished()


@contextmanager
def _errors_of_threads(errors: list[BaseException]) -> Iterator[None]:
    """What ends the writer of TensorBoard's log joins ``errors``: without it the log would wait for ever."""
    before = threading.excepthook

    def ended(what: threading.ExceptHookArgs) -> None:
        if type(what.thread).__module__.startswith("tensorboard"):
            errors.append(what.exc_value or SystemExit())
        else:
            before(what)

    threading.excepthook = ended
    try:
        yield
    finally:
        threading.excepthook = before


@contextmanager
def _main_left_out() -> Iterator[None]:
    """Processes that start in this block do not import the program that trains, which could be one that would train."""
    main = sys.modules["__main__"]
    before = {name: vars(main)[name] for name in ("__file__", "__spec__") if name in vars(main)}
    vars(main).pop("__file__", None)
    main.__spec__ = None
    try:
        yield
    finally:
        vars(main).update(before)


def learning_rate(settings: FitSettings, step: int, fraction: float) -> float:
    """Linear warm-up by steps, then a drop by ``gamma`` at each milestone: fractions of the run."""
    passed = sum(fraction >= milestone for milestone in settings.milestones)
    return settings.lr * settings.gamma**passed * min(1.0, (step + 1) / (settings.warmup + 1))


def precision(settings: FitSettings, device: torch.device) -> str:
    """That which is meant, on this device: "auto" is bf16 where the processor computes in it, else float32."""
    if settings.precision == "auto":
        return "bf16" if computes_bf16(device) else "float32"
    return settings.precision


def computes_bf16(device: torch.device) -> bool:
    """Whether a device has units for bf16, so that it is the faster precision there."""
    return torch.cuda.is_bf16_supported() if device.type == "cuda" else torch.cpu._is_avx512_bf16_supported()


def gradients(model: Any, loss: Loss, parts: Sequence[Sequence[Tensor]], fabric: Fabric, mixed: bool) -> Tensor:
    """Add up the gradients of the mean loss over equal parts of a batch, one part in memory at a time."""
    total = torch.zeros((), device=fabric.device)
    for index, part in enumerate(parts, 1):
        with fabric.no_backward_sync(model, enabled=index < len(parts)):
            # Not Fabric's mixed precision, which would round the input image itself to bf16.
            with torch.autocast(fabric.device.type, torch.bfloat16, enabled=mixed):
                value = loss(model, part) / len(parts)
            fabric.backward(value)
        total += value.detach()
    return total


@torch.no_grad()
def mean_loss(
    network: Network, loss: Loss, batches: Sequence[Sequence[Tensor]], device: torch.device, mixed: bool
) -> float:
    """The loss of a network over batches."""
    network = network.to(device)
    with torch.autocast(device.type, torch.bfloat16, enabled=mixed):
        values = [loss(network, [part.to(device) for part in batch]) for batch in batches]
    return float(torch.stack(values).mean())


def _agreed(fabric: Fabric, stop: int, seconds: float) -> tuple[int, float]:
    """The largest of all processes' signal numbers and clocks, so that all end at the same step, if they end.

    It takes a third of a millisecond: a step of any use takes hundreds.
    """
    if fabric.world_size == 1:
        return stop, seconds
    values = torch.tensor([stop, seconds], device=fabric.device)
    values = fabric.all_reduce(values, reduce_op="max")  # type: ignore[assignment]
    return int(values[0]), float(values[1])


def loader(
    batches: Dataset[tuple[Tensor, ...]], settings: FitSettings, start: int, device: torch.device
) -> Iterator[Any]:
    """Batches from number ``start`` on, for a device; by ``settings.workers`` processes, or else by this one."""
    how: dict[str, Any] = {"num_workers": settings.workers, "pin_memory": device.type == "cuda"}
    if settings.workers:
        how |= {"multiprocessing_context": "spawn", "persistent_workers": True, "worker_init_fn": ignore_signals}
    steps = range(start, settings.steps)
    try:
        with nullcontext() if type(batches).__module__ == "__main__" else _main_left_out():
            loaded = [iter(DataLoader(batches, batch_size=None, sampler=steps, **how))]
        yield from loaded.pop()  # and no name here holds it, see below
    except BaseException as error:
        # Its traceback, and what has a name here, would keep the workers, and as they ignore SIGTERM this process would
        # wait for them at its end.
        raise error.with_traceback(None)  # noqa: B904
