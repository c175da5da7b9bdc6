"""What training minimises: a function of the model and a batch, handed to `fit`."""

from collections.abc import Sequence

from torch import Tensor, nn
from torch.nn import functional as F


def blind_spot(model: nn.Module, batch: Sequence[Tensor]) -> Tensor:
    """``|bsn(y) - y|₁``: a network that cannot see a pixel predicts it (TBSN, section 3.1)."""
    (noisy,) = batch
    return F.l1_loss(model(noisy), noisy)


def distillation(model: nn.Module, batch: Sequence[Tensor]) -> Tensor:
    """``|student(y) - t|₁``, the mean over all targets t of the teacher (TBSN, section 3.4)."""
    noisy, *targets = batch
    denoised = model(noisy)
    return sum((F.l1_loss(denoised, target) for target in targets), start=denoised.new_zeros(())) / len(targets)
