"""A network that is blind to a square around each pixel, so that correlated noise needs no PD.

One U-Net that sees the half-plane above a pixel runs on the four quarter turns of the image (Laine et al., arXiv
1901.10277, section 3). Each result is moved down by the radius of the hole, plus one, and the four are joined pixel by
pixel: together they see all but a square. Its size may be another in inference than in training (AT-BSN, arXiv
2303.14934, section 3).
"""

from itertools import pairwise
from typing import Literal

import torch
from jaxtyping import Float
from pydantic import BaseModel, ConfigDict, NonNegativeInt, PositiveInt, model_validator
from torch import Tensor, nn
from torch.nn import functional as F

SLOPE = 0.1


class HalfPlaneConfig(BaseModel):
    """Size and shape of a `HalfPlane` (1,065,219 parameters by default).

    ``widths`` are the channels of the levels, finest first; ``blocks`` the residual blocks of each, as many again on
    the way up; ``head`` the channels where the four directions meet. ``hole`` is the radius of what it does not see:
    the (2 hole + 1) x (2 hole + 1) pixels around the one predicted.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    kind: Literal["HalfPlane"] = "HalfPlane"
    channels: PositiveInt = 3
    widths: tuple[PositiveInt, ...] = (32, 64, 96, 128)
    blocks: tuple[NonNegativeInt, ...] = (0, 1, 1, 1)
    head: PositiveInt = 96
    hole: NonNegativeInt = 3

    @model_validator(mode="after")
    def _fits(self) -> "HalfPlaneConfig":
        if not self.widths or len(self.widths) != len(self.blocks):
            raise ValueError("widths and blocks must have one entry a level each")
        return self

    @property
    def multiple(self) -> int:
        """Both sides of an input must be multiples of this."""
        return int(2 ** (len(self.widths) - 1))


class UpwardConv(nn.Conv2d):
    """3x3 convolution that sees the row of the output pixel and two rows above it, none below."""

    def __init__(self, before: int, after: int, stride: int = 1, gain: float = 1.0) -> None:
        super().__init__(before, after, 3, stride=stride, padding=(0, 1))
        nn.init.kaiming_normal_(self.weight, a=SLOPE)
        nn.init.zeros_(self.bias)  # type: ignore[arg-type]
        with torch.no_grad():
            self.weight.mul_(gain)

    def forward(self, input: Float[Tensor, "b C h w"]) -> Float[Tensor, "b D H W"]:  # noqa: A002
        # Padded beforehand: the convolution's own padding of two rows, cut off below, falls out of the fast kernels.
        return super().forward(F.pad(input, (0, 0, 2, 0)))


class ResidualBlock(nn.Module):
    def __init__(self, channels: int) -> None:
        super().__init__()
        self.first, self.second = UpwardConv(channels, channels), UpwardConv(channels, channels, gain=0.3)

    def forward(self, x: Float[Tensor, "b C h w"]) -> Float[Tensor, "b C h w"]:
        return x + self.second(F.leaky_relu(self.first(x), SLOPE, inplace=True))


class HalfPlane(nn.Module):
    """Predicts every pixel of an image from what lies outside a square around it."""

    def __init__(self, config: HalfPlaneConfig | None = None) -> None:
        super().__init__()
        self.config = config = config or HalfPlaneConfig()
        widths, levels = config.widths, list(zip(config.widths, config.blocks, strict=True))

        def blocks(channels: int, count: int) -> nn.Sequential:
            return nn.Sequential(*(ResidualBlock(channels) for _ in range(count)))

        def up(fine: int, coarse: int) -> nn.Sequential:
            return nn.Sequential(nn.Conv2d(coarse, 4 * fine, 1), nn.PixelShuffle(2))

        def joined(before: int, after: int) -> nn.Conv2d:
            conv = nn.Conv2d(before, after, 1)
            nn.init.kaiming_normal_(conv.weight, a=SLOPE)
            return conv

        self.embed = UpwardConv(config.channels, widths[0])
        self.encoder = nn.ModuleList(blocks(*level) for level in levels[:-1])
        self.downs = nn.ModuleList(UpwardConv(fine, coarse, stride=2) for fine, coarse in pairwise(widths))
        self.bottom = blocks(*levels[-1])
        self.ups = nn.ModuleList(up(fine, coarse) for fine, coarse in reversed(list(pairwise(widths))))
        self.decoder = nn.ModuleList(blocks(*level) for level in reversed(levels[:-1]))
        self.join = nn.ModuleList([joined(4 * widths[0], config.head), joined(config.head, config.head)])
        self.output = nn.Conv2d(config.head, config.channels, 1)

    @property
    def multiple(self) -> int:
        """Both sides of an input must be multiples of this."""
        return self.config.multiple

    def forward(self, image: Float[Tensor, "b c H W"], hole: int | None = None) -> Float[Tensor, "b c H W"]:
        """Denoise images with values in [0, 1]; the output is not clipped.

        ``hole`` is the radius of the square that is not seen, the configuration's if not given.
        """
        hole = self.config.hole if hole is None else hole
        # Two turns at once: where an image is not square, the other two have another shape.
        directions = []
        for turns in ((0, 2), (1, 3)):
            x = self.above(torch.cat([torch.rot90(image, turn, (-2, -1)) for turn in turns]))
            x = F.pad(x, (0, 0, hole + 1, 0))[..., : x.shape[-2], :]
            directions += [torch.rot90(part, -turn, (-2, -1)) for turn, part in zip(turns, x.chunk(2), strict=True)]
        x = torch.cat(directions, dim=1).contiguous(memory_format=torch.channels_last)
        for conv in self.join:
            x = F.leaky_relu(conv(x), SLOPE)
        with torch.autocast(image.device.type, enabled=False):  # eight bits of mantissa are too few for a pixel
            return self.output(x.to(image.dtype))

    def above(self, image: Float[Tensor, "b c H W"]) -> Float[Tensor, "b C H W"]:
        """Features of each pixel from its own row and those above."""
        x, skips = self.embed(image.contiguous(memory_format=torch.channels_last)), []
        for encoder, down in zip(self.encoder, self.downs, strict=True):
            x = encoder(x)
            skips.append(x)
            x = down(x)
        x = self.bottom(x)
        for up, decoder in zip(self.ups, self.decoder, strict=True):
            x = decoder(up(x) + skips.pop())
        return x
