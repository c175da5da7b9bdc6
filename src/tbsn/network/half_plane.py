"""A network that is blind to a square around each pixel, so that correlated noise needs no PD.

One U-Net that sees the half-plane above a pixel runs on the four quarter turns of the image (Laine et al., arXiv
1901.10277, section 3). Each result is moved down by the radius of the hole, plus one, and the four are joined pixel by
pixel: together they see all but a square. Its size may be another in inference than in training (AT-BSN, arXiv
2303.14934, section 3).
"""

from functools import partial
from typing import Literal

import torch
from jaxtyping import Float
from pydantic import NonNegativeInt, PositiveInt
from torch import Tensor, nn
from torch.nn import functional as F

from tbsn.network.levels import SLOPE, Levels, LevelsConfig, for_leaky_relu


class HalfPlaneConfig(LevelsConfig):
    """Size and shape of a `HalfPlane` (1,065,219 parameters by default).

    ``head`` is the number of channels where the four directions meet, ``hole`` the radius of what it does not see: the
    (2 hole + 1) x (2 hole + 1) pixels around the one predicted.
    """

    kind: Literal["HalfPlane"] = "HalfPlane"
    widths: tuple[PositiveInt, ...] = (32, 64, 96, 128)
    blocks: tuple[NonNegativeInt, ...] = (0, 1, 1, 1)
    head: PositiveInt = 96
    hole: NonNegativeInt = 3

    @property
    def multiple(self) -> int:
        """Both sides of an input must be multiples of this."""
        return int(2 ** (len(self.widths) - 1))


class UpwardConv(nn.Conv2d):
    """3x3 convolution that sees the row of the output pixel and two rows above it, none below."""

    def __init__(self, before: int, after: int, stride: int = 1) -> None:
        super().__init__(before, after, 3, stride=stride, padding=(0, 1))
        nn.init.zeros_(for_leaky_relu(self).bias)  # type: ignore[arg-type]

    def forward(self, input: Float[Tensor, "b C h w"]) -> Float[Tensor, "b D H W"]:  # noqa: A002
        # Padded beforehand: the convolution's own padding of two rows, cut off below, falls out of the fast kernels.
        return super().forward(F.pad(input, (0, 0, 2, 0)))


class HalfPlane(Levels):
    """Predicts every pixel of an image from what lies outside a square around it."""

    def __init__(self, config: HalfPlaneConfig | None = None) -> None:
        config = config or HalfPlaneConfig()
        embed = UpwardConv(config.channels, config.widths[0])
        super().__init__(config, embed, UpwardConv, down=partial(UpwardConv, stride=2))
        self.config = config
        joined = ((4 * config.widths[0], config.head), (config.head, config.head))
        self.join = nn.ModuleList(for_leaky_relu(nn.Conv2d(before, after, 1)) for before, after in joined)
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
            turned = torch.cat([torch.rot90(image, turn, (-2, -1)) for turn in turns])
            x = self.features(turned.contiguous(memory_format=torch.channels_last))
            x = F.pad(x, (0, 0, hole + 1, 0))[..., : x.shape[-2], :]
            directions += [torch.rot90(part, -turn, (-2, -1)) for turn, part in zip(turns, x.chunk(2), strict=True)]
        x = torch.cat(directions, dim=1).contiguous(memory_format=torch.channels_last)
        for conv in self.join:
            x = F.leaky_relu(conv(x), SLOPE)
        with torch.autocast(image.device.type, enabled=False):  # eight bits of mantissa are too few for a pixel
            return self.output(x.to(image.dtype))
