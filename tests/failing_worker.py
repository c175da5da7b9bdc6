"""Training whose data fails in a worker process. Argument: folder of the run."""

import sys
from pathlib import Path

import torch
from torch import Tensor
from torch.utils.data import Dataset

from tbsn.network.files import build
from tbsn.network.unet import UNetConfig
from tbsn.training import losses
from tbsn.training.fit import fit
from tbsn.training.processes import open_fabric
from tbsn.training.recipe import FitSettings


class Failing(Dataset[tuple[Tensor, ...]]):
    def __getitem__(self, step: int) -> tuple[Tensor, ...]:  # type: ignore[override]
        if step == 2:
            raise IndexError("no such crop")
        return torch.rand(1, 3, 32, 32), torch.rand(1, 3, 32, 32)


if __name__ == "__main__":
    run = Path(sys.argv[1])
    settings = FitSettings(steps=9, batch=1, crop=32, workers=1)
    fit(build(UNetConfig(width=4)), losses.renoised, Failing(), settings, run, open_fabric("cpu"))
