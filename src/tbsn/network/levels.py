"""Residual blocks on levels, each of half the resolution of the one before: all is local."""

from collections.abc import Callable
from itertools import pairwise
from typing import TypeVar

import torch
from jaxtyping import Float
from pydantic import BaseModel, ConfigDict, NonNegativeInt, PositiveInt, model_validator
from torch import Tensor, nn
from torch.nn import functional as F

SLOPE = 0.1
Conv = TypeVar("Conv", bound=nn.Conv2d)
Convs = Callable[[int, int], nn.Conv2d]


class LevelsConfig(BaseModel):
    """Their size: ``widths`` are the channels of the levels, finest first.

    ``blocks`` are the residual blocks of each, as many again on the way up.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    channels: PositiveInt = 3
    widths: tuple[PositiveInt, ...]
    blocks: tuple[NonNegativeInt, ...]

    @model_validator(mode="after")
    def _fits(self) -> "LevelsConfig":
        if not self.widths or len(self.widths) != len(self.blocks):
            raise ValueError("widths and blocks must have one entry a level each")
        return self


def for_leaky_relu(conv: Conv) -> Conv:
    """The same, with the first weights of He et al. (arXiv 1502.01852, section 2.2)."""
    nn.init.kaiming_normal_(conv.weight, a=SLOPE)
    return conv


class Residual(nn.Module):
    def __init__(self, channels: int, conv: Convs) -> None:
        super().__init__()
        self.first, self.second = conv(channels, channels), conv(channels, channels)
        with torch.no_grad():
            self.second.weight.mul_(0.3)

    def forward(self, x: Float[Tensor, "b C h w"]) -> Float[Tensor, "b C h w"]:
        return x + self.second(F.leaky_relu(self.first(x), SLOPE, inplace=True))


class Levels(nn.Module):
    """A U-Net of residual blocks of ``conv``; ``embed`` leads to its finest level, ``down`` from each to the next."""

    def __init__(self, config: LevelsConfig, embed: nn.Conv2d, conv: Convs, down: Convs) -> None:
        super().__init__()
        widths, levels = config.widths, list(zip(config.widths, config.blocks, strict=True))

        def blocks(channels: int, count: int) -> nn.Sequential:
            return nn.Sequential(*(Residual(channels, conv) for _ in range(count)))

        def up(fine: int, coarse: int) -> nn.Sequential:
            return nn.Sequential(nn.Conv2d(coarse, 4 * fine, 1), nn.PixelShuffle(2))

        self.embed = embed
        self.encoder = nn.ModuleList(blocks(*level) for level in levels[:-1])
        self.downs = nn.ModuleList(down(fine, coarse) for fine, coarse in pairwise(widths))
        self.bottom = blocks(*levels[-1])
        self.ups = nn.ModuleList(up(fine, coarse) for fine, coarse in reversed(list(pairwise(widths))))
        self.decoder = nn.ModuleList(blocks(*level) for level in reversed(levels[:-1]))

    def features(self, x: Float[Tensor, "b c h w"]) -> Float[Tensor, "b C h w"]:
        """Of the finest level, from all levels."""
        x, skips = self.embed(x), []
        for encoder, down in zip(self.encoder, self.downs, strict=True):
            x = encoder(x)
            skips.append(x)
            x = down(x)
        x = self.bottom(x)
        for up, decoder in zip(self.ups, self.decoder, strict=True):
            x = decoder(up(x) + skips.pop())
        return x
