"""What training minimises: a function of the model and a batch, handed to `fit`."""

from collections.abc import Sequence

from torch import Tensor, nn
from torch.nn import functional as F

LEAST_ERROR = 4e-6  # (0.5 / 255)²


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
