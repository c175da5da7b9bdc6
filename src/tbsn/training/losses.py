"""What training minimises: a function of the model and a batch, handed to `fit`."""

from collections.abc import Callable, Sequence

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional as F

LEAST_ERROR = 4e-6  # (0.5 / 255)²
LEAST_DISTANCE = 1e-6
SYMMETRIES = 8


def blind_spot(model: nn.Module, batch: Sequence[Tensor]) -> Tensor:
    """``|bsn(y) - y|₁``: a network that cannot see a pixel predicts it (TBSN, section 3.1)."""
    (noisy,) = batch
    return F.l1_loss(model(noisy), noisy)


def distillation(model: nn.Module, batch: Sequence[Tensor]) -> Tensor:
    """``|student(y) - t|₁``, the mean over the teacher's targets t on the channel axis (TBSN, section 3.4)."""
    noisy, targets = batch
    denoised = model(noisy)
    return F.l1_loss(denoised.repeat(1, targets.shape[1] // denoised.shape[1], 1, 1), targets)


def renoised(model: nn.Module, batch: Sequence[Tensor]) -> Tensor:
    """``log |student(x + z) - x|²``, the mean over the images: a decibel counts the same in every one."""
    noisy, clean = batch
    error = (model(noisy) - clean).square().mean(dim=(1, 2, 3))
    return (error + LEAST_ERROR).log().mean()


def ensembled(teachers: Sequence[nn.Module], count: int) -> Callable[[nn.Module, Sequence[Tensor]], Tensor]:
    """``log |student(y) - t|²``, t the mean of what teachers make of ``count`` of the flips and quarter turns of y.

    Which, the values of y decide, all alike: on average t is their self-ensemble. It holds no noise, and a student that
    nears it has in one pass what its teachers have in eight. The clean images have no part in this.
    """

    def loss(model: nn.Module, batch: Sequence[Tensor]) -> Tensor:
        noisy, _ = batch
        with torch.no_grad():
            target = _mean_over_some([teacher.to(noisy.device) for teacher in teachers], noisy, count)
        return ((model(noisy) - target).square().mean(dim=(1, 2, 3)) + LEAST_DISTANCE).log().mean()

    return loss


def _mean_over_some(teachers: Sequence[nn.Module], noisy: Float[Tensor, "b c s s"], count: int) -> Tensor:
    first = (255 * noisy).round().sum(dim=(1, 2, 3)).long() % SYMMETRIES
    total = torch.zeros_like(noisy)
    for k in range(count):
        symmetries = ((first + k * SYMMETRIES // count) % SYMMETRIES).tolist()
        turned = torch.stack([_turned(*pair) for pair in zip(noisy, symmetries, strict=True)])
        for teacher in teachers:
            total += torch.stack([_turned_back(*pair) for pair in zip(teacher(turned), symmetries, strict=True)])
    return total / (count * len(teachers))


def _turned(image: Tensor, symmetry: int) -> Tensor:
    turned = torch.rot90(image, symmetry % 4, (-2, -1))
    return turned.flip(-1) if symmetry >= 4 else turned


def _turned_back(image: Tensor, symmetry: int) -> Tensor:
    return torch.rot90(image.flip(-1) if symmetry >= 4 else image, -(symmetry % 4), (-2, -1))
