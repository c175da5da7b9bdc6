"""A fast student: its finest level is half the resolution, and all it does is local: it sees 67 pixels far."""

from itertools import pairwise
from typing import Literal

import torch
from jaxtyping import Float
from pydantic import BaseModel, ConfigDict, NonNegativeInt, PositiveInt, model_validator
from torch import Tensor, nn
from torch.nn import functional as F

SLOPE = 0.1


class FastUNetConfig(BaseModel):
    """Size of a `FastUNet` (1,321,068 parameters and 7.8 GFLOP per 256x256 image by default).

    ``widths`` are the channels of the levels, finest first; ``blocks`` the residual blocks of each, as many again on
    the way up.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    kind: Literal["FastUNet"] = "FastUNet"
    channels: PositiveInt = 3
    widths: tuple[PositiveInt, ...] = (48, 96, 144)
    blocks: tuple[NonNegativeInt, ...] = (1, 1, 2)

    @model_validator(mode="after")
    def _fits(self) -> "FastUNetConfig":
        if not self.widths or len(self.widths) != len(self.blocks):
            raise ValueError("widths and blocks must have one entry a level each")
        return self

    @property
    def multiple(self) -> int:
        """Both sides of an input must be multiples of this."""
        return int(2 ** len(self.widths))


class Residual(nn.Module):
    def __init__(self, channels: int) -> None:
        super().__init__()
        self.first, self.second = (nn.Conv2d(channels, channels, 3, padding=1) for _ in range(2))
        for conv in (self.first, self.second):
            nn.init.kaiming_normal_(conv.weight, a=SLOPE)
            nn.init.zeros_(conv.bias)  # type: ignore[arg-type]
        with torch.no_grad():
            self.second.weight.mul_(0.3)

    def forward(self, x: Float[Tensor, "b C h w"]) -> Float[Tensor, "b C h w"]:
        return x + self.second(F.leaky_relu(self.first(x), SLOPE, inplace=True))


class FastUNet(nn.Module):
    """A U-Net on 2x2 pixels at a time that predicts the noise; it begins as the identity."""

    def __init__(self, config: FastUNetConfig | None = None) -> None:
        super().__init__()
        self.config = config = config or FastUNetConfig()
        widths, levels = config.widths, list(zip(config.widths, config.blocks, strict=True))

        def blocks(channels: int, count: int) -> nn.Sequential:
            return nn.Sequential(*(Residual(channels) for _ in range(count)))

        def up(fine: int, coarse: int) -> nn.Sequential:
            return nn.Sequential(nn.Conv2d(coarse, 4 * fine, 1), nn.PixelShuffle(2))

        self.embed = nn.Conv2d(4 * config.channels, widths[0], 3, padding=1)
        self.encoder = nn.ModuleList(blocks(*level) for level in levels[:-1])
        self.downs = nn.ModuleList(nn.Conv2d(fine, coarse, 2, stride=2) for fine, coarse in pairwise(widths))
        self.bottom = blocks(*levels[-1])
        self.ups = nn.ModuleList(up(fine, coarse) for fine, coarse in reversed(list(pairwise(widths))))
        self.decoder = nn.ModuleList(blocks(*level) for level in reversed(levels[:-1]))
        self.output = nn.Conv2d(widths[0], 4 * config.channels, 3, padding=1)
        nn.init.zeros_(self.output.weight)
        nn.init.zeros_(self.output.bias)  # type: ignore[arg-type]

    @property
    def multiple(self) -> int:
        """Both sides of an input must be multiples of this."""
        return self.config.multiple

    def forward(self, image: Float[Tensor, "b c H W"]) -> Float[Tensor, "b c H W"]:
        """Denoise images with values in [0, 1]; the output is not clipped."""
        x, skips = F.pixel_unshuffle(image.contiguous(memory_format=torch.channels_last), 2), []
        x = self.embed(x)
        for encoder, down in zip(self.encoder, self.downs, strict=True):
            x = encoder(x)
            skips.append(x)
            x = down(x)
        x = self.bottom(x)
        for up, decoder in zip(self.ups, self.decoder, strict=True):
            x = decoder(up(x) + skips.pop())
        with torch.autocast(image.device.type, enabled=False):  # eight bits of mantissa are too few for a pixel
            return image + F.pixel_shuffle(self.output(x.to(image.dtype)), 2)
