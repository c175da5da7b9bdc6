"""The one training loop."""

import math
import signal
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import torch
from lightning_fabric import Fabric
from torch import Tensor, nn
from torch.optim import AdamW
from torch.utils.data import DataLoader, Dataset

from tbsn.errors import DivergedError, Stopped, unwritable
from tbsn.network.files import MODEL, Network, build, save_network
from tbsn.progress import progress
from tbsn.stopping import ignore_signals, remembered_signal
from tbsn.training import checkpoint, log
from tbsn.training.recipe import FitSettings

Loss = Callable[[nn.Module, Sequence[Tensor]], Tensor]
Watch = Callable[[int, Network], None]
Score = Callable[[Network], float]

LOWER = "the same command with a lower --set fit.lr=... and --accept-changes goes on from the last checkpoint"


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
        partial(mean_loss, loss=loss, batches=held_back, fabric=fabric, mixed=mixed)
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
    ):
        for batch in loader(batches, settings, state.step):
            fraction = max(state.step / settings.steps, state.seconds / max_seconds)
            state.set_learning_rate(learning_rate(settings, state.step, fraction))
            parts = zip(*(part.to(fabric.device).chunk(settings.accumulate) for part in batch), strict=True)
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


class State:
    """All that training changes, and a checkpoint holds: weights, their average, the optimizer, the step, the clock.

    And the average that had the least ``score`` at a checkpoint, if there is a score to choose by.
    """

    def __init__(
        self, network: Network, settings: FitSettings, run: Path, fabric: Fabric, score: Score | None = None
    ) -> None:
        self.network, self.settings, self.run, self.fabric, self.score = network, settings, run, fabric, score
        average = {name: value.clone() for name, value in network.state_dict().items()}
        optimizer = AdamW(network.parameters(), lr=settings.lr, weight_decay=settings.weight_decay, fused=True)
        self.step, self.seconds = 0, 0.0
        if found := checkpoint.load(run):
            network.load_state_dict(found["network"])
            optimizer.load_state_dict(found["optimizer"])
            average, self.step, self.seconds = found["average"], found["step"], found["seconds"]
        if fabric.is_global_zero:
            log.go_on(run, self.step)
        self.errors: list[BaseException] = []
        network.train()
        self.model, self.optimizer = fabric.setup(network, optimizer)
        self.average = {name: value.to(fabric.device) for name, value in average.items()}
        # Scored again, as the images that are held back may have changed since.
        self.chosen = found.get("chosen") if found and score else None
        self.least = score(self.of(self.chosen)) if score and self.chosen else math.inf

    @property
    def lr(self) -> float:
        return self.optimizer.param_groups[0]["lr"]

    def set_learning_rate(self, lr: float) -> None:
        for group in self.optimizer.param_groups:
            group["lr"] = lr

    @torch.no_grad()
    def advance(self) -> None:
        """One step of the optimizer by the gradients at hand, and of the average."""
        if self.settings.clip:
            self.fabric.clip_gradients(
                self.model, self.optimizer, max_norm=self.settings.clip, error_if_nonfinite=False
            )
        self.optimizer.step()
        self.optimizer.zero_grad()
        self.step += 1
        # Early on the average forgets faster: the first weights are random.
        weight = 1 - min(self.settings.ema, (1 + self.step) / (10 + self.step))
        for name, value in self.network.state_dict().items():
            self.average[name].lerp_(value, weight)

    def of(self, weights: dict[str, Tensor]) -> Network:
        """The network with these weights, on the CPU, for inference."""
        network = build(self.network.config)
        network.load_state_dict(weights)
        return network.eval()

    def result(self) -> Network:
        """What has been learned so far: the chosen network, or the averaged one if there was nothing to choose by."""
        return self.of(self.chosen or self.average)

    def choose(self) -> None:
        """Keep the average of now if it has the least score so far."""
        if not self.score:
            return
        score = self.score(self.of(self.average))
        self.log(held_back=score)
        if score < self.least:
            self.least, self.chosen = score, {name: value.cpu().clone() for name, value in self.average.items()}

    def finished(self) -> Network:
        """The result, in its file too, whenever the process that wrote the last checkpoint ended."""
        if self.fabric.is_global_zero:
            save_network(self.run / MODEL, self.result())
        return self.result()

    def save(self, watch: Watch | None, choose: bool = True) -> None:
        """Write the checkpoint and the model that is the result so far; from the first process only."""
        if not all(value.isfinite().all() for value in self.network.state_dict().values()):
            raise DivergedError(self.run, f"the weights are not finite at step {self.step}", LOWER)
        if not self.fabric.is_global_zero:
            return
        if choose:
            self.choose()
        parts = {"network": self.network.state_dict(), "optimizer": self.optimizer.state_dict()}
        facts = {"average": self.average, "chosen": self.chosen, "step": self.step, "seconds": self.seconds}
        try:
            checkpoint.save(self.run, parts | facts)
            save_network(self.run / MODEL, self.result())
            if watch:
                watch(self.step, self.of(self.average))
        except OSError as error:
            reason = f"the checkpoint of step {self.step} cannot be written"
            remedy = "make room there; the same command goes on from the one before"
            raise unwritable(self.run, error, remedy, reason) from error

    def log(self, **values: float) -> None:
        """Write a line to the log; from the first process only. A loss that is not finite ends all of them."""
        loss = values.get("loss", 0.0)
        if not math.isfinite(loss):
            raise DivergedError(self.run, f"the loss is {loss} at step {self.step}", LOWER)
        if not self.fabric.is_global_zero:
            return
        try:
            for error in self.errors:
                raise error
            log.append(self.run, self.step, values)
            self._log_to_tensorboard(values)
        except OSError as error:
            remedy = "make room there; the same command goes on from the last checkpoint"
            raise unwritable(self.run, error, remedy, "the log cannot be written") from error

    def _log_to_tensorboard(self, values: dict[str, float]) -> None:
        try:
            self.fabric.log_dict(values, self.step)
        except ValueError as error:  # whatever goes wrong with a logger of Fabric
            raise error.__cause__ or error from None


@contextmanager
def _errors_of_threads(errors: list[BaseException]) -> Iterator[None]:
    """What ends another thread joins ``errors``: without its writer the log of TensorBoard would wait for ever."""
    before = threading.excepthook
    threading.excepthook = lambda ended: errors.append(ended.exc_value or SystemExit())
    try:
        yield
    finally:
        threading.excepthook = before


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
def mean_loss(network: Network, loss: Loss, batches: Sequence[Sequence[Tensor]], fabric: Fabric, mixed: bool) -> float:
    """The loss of a network over batches."""
    network = network.to(fabric.device)
    with torch.autocast(fabric.device.type, torch.bfloat16, enabled=mixed):
        values = [loss(network, [part.to(fabric.device) for part in batch]) for batch in batches]
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


def loader(batches: Dataset[tuple[Tensor, ...]], settings: FitSettings, start: int) -> Iterator[Any]:
    """Batches from number ``start`` on; by ``settings.workers`` processes, or else by this one."""
    workers: dict[str, Any] = {}
    if settings.workers:
        workers = {"multiprocessing_context": "spawn", "persistent_workers": True, "worker_init_fn": ignore_signals}
    steps = range(start, settings.steps)
    try:
        yield from DataLoader(batches, batch_size=None, sampler=steps, num_workers=settings.workers, **workers)
    except BaseException as error:
        # Its traceback would keep the workers, and as they ignore SIGTERM this process would wait for them at its end.
        raise error.with_traceback(None)  # noqa: B904
