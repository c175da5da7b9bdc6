"""All that training changes: what a checkpoint holds, and what is written of it."""

import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from lightning_fabric import Fabric
from tensorboardX import SummaryWriter
from torch import Tensor
from torch.optim import AdamW
from torch.optim.swa_utils import get_ema_multi_avg_fn

from tbsn.errors import DivergedError, unwritable
from tbsn.network.files import MODEL, Network, build, save_network
from tbsn.training import checkpoint, log
from tbsn.training.recipe import FitSettings

Watch = Callable[[int, Network], None]
Score = Callable[[Network], float]

LOWER = "the same with a lower --set fit.lr=... and --accept-changes goes on, from the last checkpoint if there is one"


class State:
    """All that training changes, and a checkpoint holds: weights, their average, the optimizer, the step, the clock.

    And the average that had the least ``score`` at a checkpoint, if there is a score to choose by.
    """

    def __init__(
        self, network: Network, settings: FitSettings, run: Path, fabric: Fabric, score: Score | None = None
    ) -> None:
        self.network, self.settings, self.run, self.fabric, self.score = network, settings, run, fabric, score
        network.to(fabric.device)  # before the optimizer: what it loads goes to where the weights are
        average = {name: value.clone() for name, value in network.state_dict().items()}
        how: dict[str, Any] = {"lr": settings.lr, "betas": (0.9, settings.beta2), "weight_decay": settings.weight_decay}
        optimizer = AdamW(network.parameters(), **how, fused=True)
        self.step, self.seconds = 0, 0.0
        if found := checkpoint.load(run):
            network.load_state_dict(found["network"])
            optimizer.load_state_dict(found["optimizer"])
            optimizer.param_groups[0].update(how)  # those of now, not of the checkpoint
            average, self.step, self.seconds = found["average"], found["step"], found["seconds"]
        self.first = self.step
        if fabric.is_global_zero:
            log.go_on(run, self.step)
        self.errors: list[BaseException] = []
        network.train()
        self.model, self.optimizer = fabric.setup(network, optimizer)
        self.average = {name: value.to(fabric.device) for name, value in average.items()}
        # Scored again, as the images that are held back may have changed since.
        self.chosen = found.get("chosen") if found and score else None
        self.least = score(self.of(self.chosen)) if score and self.chosen else math.inf

    @cached_property
    def _events(self) -> SummaryWriter:
        """TensorBoard's log. It leaves out what earlier starts measured after the step that this one went on from."""
        folder = str(self.run / "tensorboard")
        return SummaryWriter(folder, purge_step=self.first + 1, filename_suffix=f".{self.first}")

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
        averaged = get_ema_multi_avg_fn(min(self.settings.ema, (1 + self.step) / (10 + self.step)))
        values = self.network.state_dict()
        averaged([self.average[name] for name in values], list(values.values()), self.step)

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
        with self._writing_the_log():
            for error in self.errors:
                raise error
            log.append(self.run, self.step, values)
            for name, value in values.items():
                self._events.add_scalar(name, value, self.step)

    def close(self) -> None:
        """Write what TensorBoard's log holds back, if the thread that writes it has not ended."""
        with self._writing_the_log():
            if "_events" in vars(self) and not self.errors:
                self._events.close()

    @contextmanager
    def _writing_the_log(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            remedy = "make room there; the same command goes on from the last checkpoint"
            raise unwritable(self.run, error, remedy, "the log cannot be written") from error
