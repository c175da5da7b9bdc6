"""The transformer-based blind-spot network (TBSN, arXiv 2404.07846), on the parity lattices.

After the embedding every spatial operator of the paper moves by even offsets, so the four parity phases of the features
never mix: they are split once, pass an ordinary U-shaped transformer side by side, and are merged once. This is an
identity, not an approximation.
"""

from typing import Annotated, Any, Literal

import torch
from jaxtyping import Float
from pydantic import BaseModel, BeforeValidator, ConfigDict, PositiveInt, model_validator
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

from tbsn.network.attention import ChannelAttention, WindowAttention
from tbsn.network.phases import inverse_pd, pd
from tbsn.settings import STRIDE

PIXELS_AT_ONCE, PIXELS_AT_ONCE_CPU = 2**20, 2**14  # in inference, per layer


def _off(value: object) -> object:
    return "off" if value is False else value  # as YAML reads off


class TBSNConfig(BaseModel):
    """Size and shape of a `TBSN`; the defaults are the paper's (12,746,780 parameters).

    ``blocks`` and ``heads`` are per level, finest first. A level has ``width * 2**level / group_channels`` channel
    groups. ``channel_attention`` and ``spatial_attention`` are the ablation of the paper's table 5: a part that is off
    leaves its feed-forward network in place. ``pd`` is the PD stride that it is to be used with.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    kind: Literal["TBSN"] = "TBSN"
    channels: PositiveInt = 3
    width: PositiveInt = 48
    blocks: tuple[PositiveInt, PositiveInt, PositiveInt] = (4, 4, 4)
    refinement: PositiveInt = 4
    heads: tuple[PositiveInt, PositiveInt, PositiveInt] = (2, 2, 3)
    head_dim: PositiveInt = 16
    window: PositiveInt = 8
    group_channels: PositiveInt = 48
    channel_attention: Annotated[Literal["grouped", "ungrouped", "off"], BeforeValidator(_off)] = "grouped"
    spatial_attention: bool = True
    pd: PositiveInt = STRIDE

    @model_validator(mode="after")
    def _fits(self) -> "TBSNConfig":
        if self.width % 2 or self.width % self.group_channels:
            raise ValueError(f"width {self.width} must be even and a multiple of group_channels {self.group_channels}")
        if self.window % 8:
            raise ValueError(f"window {self.window} must be a multiple of 8")
        return self

    @property
    def multiple(self) -> int:
        """Both sides of an input must be multiples of this: windows, halved twice."""
        return 4 * self.window

    def groups(self, level: int) -> int:
        """Channel groups of the attention at a level."""
        return self.width * 2**level // self.group_channels if self.channel_attention == "grouped" else 1


class Norm(nn.Module):
    """Across channels at each pixel, ``x / sqrt(var(x) + 1e-5) * weight``: the mean is not subtracted."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(channels, 1, 1))

    def forward(self, x: Float[Tensor, "B C h w"]) -> Float[Tensor, "B C h w"]:
        device = x.device.type
        dtype = torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else x.dtype
        return _Normalise.apply(x, self.weight, dtype)  # type: ignore[no-any-return]


class _Normalise(torch.autograd.Function):
    """The norm; its backward pass keeps the input and two numbers a pixel, where autograd would keep five images.

    With r = (var(x) + e)^-1/2 and y = x r w: dx = g w r - r³ (x - mean(x)) mean(g w x).
    """

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, dtype: torch.dtype) -> Tensor:
        wide = x.to(torch.promote_types(x.dtype, torch.float32))  # the difference below cancels digits
        mean, mean_square = wide.mean(1, keepdim=True), wide.square().mean(1, keepdim=True)
        inverse = torch.rsqrt((mean_square - mean.square()).clamp_min(0) + 1e-5)
        ctx.save_for_backward(x, weight, mean, inverse)
        return (wide * inverse * weight).to(dtype)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, Tensor, None]:  # type: ignore[override]
        x, weight, mean, inverse = ctx.saved_tensors
        (g,) = gradients
        product = g * x
        weight_gradient = (product * inverse).sum((0, 2, 3))[:, None, None]
        shared = (product * weight).mean(1, keepdim=True) * inverse**3
        x_gradient = g * (weight * inverse) - (x - mean) * shared
        return x_gradient.to(x.dtype), weight_gradient.to(weight.dtype), None


def feed_forward(channels: int) -> nn.Sequential:
    """Two 3x3 convolutions around a GELU: of dilation 2 in the paper, plain on a phase."""
    return nn.Sequential(
        nn.Conv2d(channels, channels, 3, padding=1, bias=False),
        nn.GELU(),
        nn.Conv2d(channels, channels, 3, padding=1, bias=False),
    )


class Block(nn.Module):
    """``x = x + f(norm(x))`` for channel attention, feed-forward, window attention, feed-forward."""

    recompute = False

    def __init__(self, config: TBSNConfig, channels: int, level: int) -> None:
        super().__init__()
        parts: list[nn.Module] = []
        if config.channel_attention != "off":
            parts.append(ChannelAttention(channels, config.groups(level)))
        parts.append(feed_forward(channels))
        if config.spatial_attention:
            parts.append(WindowAttention(channels, config.heads[level], config.head_dim, config.window))
        parts.append(feed_forward(channels))
        self.parts = nn.ModuleList(parts)
        self.norms = nn.ModuleList(Norm(channels) for _ in parts)

    def forward(self, x: Float[Tensor, "B C h w"]) -> Float[Tensor, "B C h w"]:
        add = _added_in_place if not torch.is_grad_enabled() else _added_recomputing if self.recompute else _added
        for norm, part in zip(self.norms, self.parts, strict=True):
            x = add(x, norm, part)
        return x


def _added(x: Tensor, norm: nn.Module, part: nn.Module) -> Tensor:
    return x + part(norm(x))


def _added_recomputing(x: Tensor, norm: nn.Module, part: nn.Module) -> Tensor:
    """The same with activation checkpointing (arXiv 1604.06174): only the inputs of each stage are kept.

    A stage ends with a convolution, which is not computed again: recomputing stops when its input is there.
    """
    stages = (part[:1], part[1:]) if isinstance(part, nn.Sequential) else (part,)
    branch: Tensor = x
    for stage in (nn.Sequential(norm, stages[0]), *stages[1:]):
        branch = checkpoint(stage, branch, use_reentrant=False, preserve_rng_state=False)  # type: ignore[assignment]
    return x + branch


def _added_in_place(x: Tensor, norm: nn.Module, part: nn.Module) -> Tensor:
    """The same without gradients: over ``x`` itself, and a few phases at a time, so that they stay in the cache.

    Phases meet nowhere but in the statistics of the channel attention.
    """
    at_once = PIXELS_AT_ONCE_CPU if x.device.type == "cpu" else PIXELS_AT_ONCE
    pieces = x.split(max(1, at_once // x[0, 0].numel()))
    if not isinstance(part, ChannelAttention):
        for piece in pieces:
            piece += part(norm(piece))
        return x
    matrices = part.folded(torch.cat([part.statistics(norm(piece)) for piece in pieces]))
    for piece, matrix in zip(pieces, matrices.split(len(pieces[0])), strict=True):
        piece += part.attend(norm(piece), matrix)
    return x


class BlindConv(nn.Conv2d):
    """3x3 convolution that never sees its own centre: the blind spot (TBSN, section 3.1)."""

    mask: Tensor

    def __init__(self, channels: int, width: int) -> None:
        super().__init__(channels, width, 3, padding=1, bias=False)
        mask = torch.ones(3, 3)
        mask[1, 1] = 0
        self.register_buffer("mask", mask, persistent=False)

    def forward(self, input: Float[Tensor, "b c H W"]) -> Float[Tensor, "b C H W"]:  # noqa: A002
        return F.conv2d(input, self.weight * self.mask, padding=1)


class TBSN(nn.Module):
    """Predicts every pixel of an image from its surroundings and never from itself."""

    def __init__(self, config: TBSNConfig | None = None) -> None:
        super().__init__()
        self.config = config = config or TBSNConfig()
        width, (high, middle, low) = config.width, config.blocks

        def blocks(count: int, channels: int, level: int) -> nn.Sequential:
            return nn.Sequential(*(Block(config, channels, level) for _ in range(count)))

        def down(channels: int) -> nn.Sequential:
            return nn.Sequential(nn.Conv2d(channels, channels // 2, 1, bias=False), nn.PixelUnshuffle(2))

        def up(channels: int) -> nn.Sequential:
            return nn.Sequential(nn.Conv2d(channels, 2 * channels, 1, bias=False), nn.PixelShuffle(2))

        self.embed = BlindConv(config.channels, width)
        self.encoder = nn.ModuleList([blocks(high, width, 0), blocks(middle, 2 * width, 1)])
        self.downs = nn.ModuleList([down(width), down(2 * width)])
        self.latent = blocks(low, 4 * width, 2)
        self.ups = nn.ModuleList([up(4 * width), up(2 * width)])
        self.reduces = nn.ModuleList([nn.Conv2d(4 * width, 2 * width, 1, bias=False), nn.Identity()])
        self.decoder = nn.ModuleList([blocks(middle, 2 * width, 1), blocks(high + config.refinement, 2 * width, 0)])
        self.output = nn.Conv2d(2 * width, config.channels, 1, bias=False)

    def set_recompute(self, recompute: bool) -> None:
        """Whether the backward pass computes again what is cheap, to save memory, instead of keeping it."""
        for module in self.modules():
            if isinstance(module, Block):
                module.recompute = recompute

    @property
    def multiple(self) -> int:
        """Both sides of an input must be multiples of this."""
        return self.config.multiple

    def forward(self, image: Float[Tensor, "b c H W"]) -> Float[Tensor, "b c H W"]:
        """Denoise images with values in [0, 1], blind to each pixel itself; the output is not clipped.

        Raises `ValueError` if a side is not a multiple of `multiple`.
        """
        height, width = image.shape[-2:]
        if height % self.multiple or width % self.multiple:
            raise ValueError(
                f"image is {width}x{height}; both sides must be multiples of {self.multiple}: use padded()"
            )
        # The paper's values run in 0..255. In mixed precision the first and the last layer keep full precision, as do
        # the residual sums of the finest level: eight bits of mantissa are too few for a pixel.
        with torch.autocast(image.device.type, enabled=False):
            x = pd(self.embed(255 * image), 2).contiguous(memory_format=torch.channels_last)
        skips = []
        for encoder, down in zip(self.encoder, self.downs, strict=True):
            x = encoder(x)
            skips.append(x)
            x = down(x)
        x = self.latent(x)
        for up, reduce, decoder in zip(self.ups, self.reduces, self.decoder, strict=True):
            x = decoder(reduce(torch.cat([up(x), skips.pop()], dim=1)))
        with torch.autocast(image.device.type, enabled=False):
            return inverse_pd(self.output(x), 2) / 255
