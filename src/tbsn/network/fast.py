"""A fast student: its finest level is half the resolution, and all it does is local: it sees 67 pixels far."""

from functools import partial
from typing import Literal

import torch
from jaxtyping import Float
from pydantic import NonNegativeInt, PositiveInt
from torch import Tensor, nn
from torch.nn import functional as F

from tbsn.network.levels import Levels, LevelsConfig, for_leaky_relu


class FastUNetConfig(LevelsConfig):
    """Size of a `FastUNet` (1,321,068 parameters and 7.8 GFLOP per 256x256 image by default)."""

    kind: Literal["FastUNet"] = "FastUNet"
    widths: tuple[PositiveInt, ...] = (48, 96, 144)
    blocks: tuple[NonNegativeInt, ...] = (1, 1, 2)

    @property
    def multiple(self) -> int:
        """Both sides of an input must be multiples of this."""
        return int(2 ** len(self.widths))


def conv(before: int, after: int) -> nn.Conv2d:
    made = for_leaky_relu(nn.Conv2d(before, after, 3, padding=1))
    nn.init.zeros_(made.bias)  # type: ignore[arg-type]
    return made


class FastUNet(Levels):
    """A U-Net on 2x2 pixels at a time that predicts the noise; it begins as the identity."""

    def __init__(self, config: FastUNetConfig | None = None) -> None:
        config = config or FastUNetConfig()
        embed = nn.Conv2d(4 * config.channels, config.widths[0], 3, padding=1)
        super().__init__(config, embed, conv, down=partial(nn.Conv2d, kernel_size=2, stride=2))
        self.config = config
        self.output = nn.Conv2d(config.widths[0], 4 * config.channels, 3, padding=1)
        nn.init.zeros_(self.output.weight)
        nn.init.zeros_(self.output.bias)  # type: ignore[arg-type]

    @property
    def multiple(self) -> int:
        """Both sides of an input must be multiples of this."""
        return self.config.multiple

    def forward(self, image: Float[Tensor, "b c H W"]) -> Float[Tensor, "b c H W"]:
        """Denoise images with values in [0, 1]; the output is not clipped."""
        x = self.features(F.pixel_unshuffle(image.contiguous(memory_format=torch.channels_last), 2))
        with torch.autocast(image.device.type, enabled=False):  # eight bits of mantissa are too few for a pixel
            return image + F.pixel_shuffle(self.output(x.to(image.dtype)), 2)
