"""The student: a small plain U-Net (the shape of Noise2Noise, arXiv 1803.04189; TBSN, section 3.4)."""

import itertools
from typing import Literal

import torch
from jaxtyping import Float
from pydantic import BaseModel, ConfigDict, PositiveInt
from torch import Tensor, nn
from torch.nn import functional as F


class UNetConfig(BaseModel):
    """Size of a `UNet`; the defaults are the paper's (1,083,747 parameters)."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    kind: Literal["UNet"] = "UNet"
    channels: PositiveInt = 3
    width: PositiveInt = 48
    depth: PositiveInt = 5

    @property
    def multiple(self) -> int:
        """Both sides of an input must be multiples of this."""
        return int(2**self.depth)


def convolutions(*channels: int) -> nn.Sequential:
    """3x3 convolutions through the given channel counts, a LeakyReLU behind each."""
    layers: list[nn.Module] = []
    for before, after in itertools.pairwise(channels):
        conv = nn.Conv2d(before, after, 3, padding=1)
        nn.init.kaiming_normal_(conv.weight, a=0.1)
        nn.init.zeros_(conv.bias)  # type: ignore[arg-type]
        layers += [conv, nn.LeakyReLU(0.1)]
    return nn.Sequential(*layers)


class UNet(nn.Module):
    """A denoiser that sees every pixel, itself included: what users run."""

    def __init__(self, config: UNetConfig | None = None) -> None:
        super().__init__()
        self.config = config = config or UNetConfig()
        width = config.width
        self.encoder = nn.ModuleList([convolutions(config.channels, width, width)])
        self.encoder.extend(convolutions(width, width) for _ in range(config.depth - 1))
        self.bottom = convolutions(width, width)
        self.decoder = nn.ModuleList()
        below = width
        for level in reversed(range(config.depth)):
            skip = width if level else config.channels
            self.decoder.append(convolutions(below + skip, 2 * width, 2 * width))
            below = 2 * width
        self.output = nn.Conv2d(2 * width, config.channels, 1)

    @property
    def multiple(self) -> int:
        """Both sides of an input must be multiples of this."""
        return self.config.multiple

    def forward(self, image: Float[Tensor, "b c H W"]) -> Float[Tensor, "b c H W"]:
        """Denoise images with values in [0, 1]; the output is not clipped."""
        skips, x = [image], image.contiguous(memory_format=torch.channels_last)
        for encoder in self.encoder:
            x = F.max_pool2d(encoder(x), 2)
            skips.append(x)
        x = self.bottom(skips.pop())
        for decoder in self.decoder:
            x = F.interpolate(x, scale_factor=2.0, mode="nearest")
            x = decoder(torch.cat([x, skips.pop()], dim=1))
        with torch.autocast(image.device.type, enabled=False):  # eight bits of mantissa are too few for a pixel
            return self.output(x.to(image.dtype))
