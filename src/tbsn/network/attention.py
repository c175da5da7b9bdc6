"""The two attentions of TBSN, on the parity phases of the features (TBSN, arXiv 2404.07846, sections 3.2 and 3.3).

Everything here sees a batch of phases, ``(b p) c h w`` with the four phases of an image side by side. On one phase the
paper's dilated convolution is a plain one, and its window attention with a parity mask is a dense one.
"""

import torch
from einops import rearrange
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional as F

PHASES = 4


class ChannelAttention(nn.Module):
    """G-CSA, grouped channel-wise self-attention, its statistics summed over the phases of an image.

    In two steps, so that a large image need not be in memory at once: the statistics of every phase, then the attention
    itself, which is one product with a small matrix.
    """

    def __init__(self, channels: int, groups: int) -> None:
        super().__init__()
        self.groups = groups
        self.temperature = nn.Parameter(torch.ones(groups, 1, 1))
        self.qkv = nn.Conv2d(channels, 3 * channels, 1, bias=False)
        self.depthwise = nn.Conv2d(3 * channels, 3 * channels, 3, padding=1, groups=3 * channels, bias=False)
        self.project = nn.Conv2d(channels, channels, 1, bias=False)

    def forward(self, x: Float[Tensor, "B C h w"]) -> Float[Tensor, "B C h w"]:
        return self.attend(x, self.folded(self.statistics(x)))

    def statistics(self, x: Float[Tensor, "B C h w"]) -> Float[Tensor, "B g c c_and_2"]:
        """``q kᵀ`` of every group and phase; in two more columns the squared lengths of q and of k."""
        qk = self._project_in(x, slice(2 * x.shape[1]))
        q, k = rearrange(qk, "B n (two g c) -> two B g c n", two=2, g=self.groups)
        squares = rearrange(qk.square().sum(1), "B (two g c) -> B g c two", two=2, g=self.groups)
        return torch.cat([q @ k.mT, squares], dim=-1)

    def folded(self, statistics: Float[Tensor, "B g c c_and_2"]) -> Float[Tensor, "B C C"]:
        """The attention of every phase's image, multiplied into the weight of the projection behind it."""
        total = rearrange(statistics, "(b p) g c d -> b p g c d", p=PHASES).sum(1)
        project = rearrange(self.project.weight, "o (g c) 1 1 -> g o c", g=self.groups)
        folded = project.to(total.dtype) @ channel_attention_matrix(total, self.temperature)
        return rearrange(folded, "b g o c -> b (g c) o").repeat_interleave(PHASES, 0)

    def attend(self, x: Float[Tensor, "B C h w"], folded: Float[Tensor, "B C C"]) -> Float[Tensor, "B C h w"]:
        """Values times the matrices of `folded`."""
        h, w = x.shape[-2:]
        values = self._project_in(x, slice(2 * x.shape[1], None))
        return rearrange(values @ folded.to(values.dtype), "B (h w) o -> B o h w", h=h, w=w)

    def _project_in(self, x: Tensor, part: slice) -> Tensor:
        weight, depthwise = self.qkv.weight[part], self.depthwise.weight[part]
        projected = F.conv2d(F.conv2d(x, weight), depthwise, padding=1, groups=len(weight))
        return rearrange(projected, "B c h w -> B (h w) c")


def channel_attention_matrix(
    statistics: Float[Tensor, "b g c c_and_2"], temperature: Float[Tensor, "g 1 1"]
) -> Float[Tensor, "b g c c"]:
    """``softmax(q kᵀ · temperature)`` of every group, q and k L2-normalised over all pixels of an image.

    This matrix is the one place where a pixel can reach its own prediction: a global statistic of c² numbers, so the
    groups are kept narrower than there are pixels (TBSN, section 3.2).
    """
    gram, lengths = statistics[..., :-2], statistics[..., -2:].clamp_min(1e-24).sqrt()
    return (gram / (lengths[..., :1] * lengths[..., 1:].mT) * temperature).softmax(dim=-1)


class WindowAttention(nn.Module):
    """M-WSA, masked window self-attention: queries in windows, keys and values in windows half as wide again.

    A window of 8x8 pixels that sees 12x12 of them at even offsets is, on one phase, a window of 4x4 that sees 6x6.
    Beyond the border keys and values are zero, and stay in the softmax.
    """

    positions: Tensor

    def __init__(self, channels: int, heads: int, head_dim: int, window: int) -> None:
        super().__init__()
        self.heads, self.scale = heads, head_dim**-0.5
        self.window, self.halo = window // 2, window // 8
        self.qkv = nn.Conv2d(channels, 3 * heads * head_dim, 1, bias=False)
        self.project = nn.Conv2d(heads * head_dim, channels, 1, bias=False)
        reach = 3 * window // 2
        self.rel_row = nn.Parameter(torch.randn(2 * reach - 1, head_dim) * self.scale)
        self.rel_col = nn.Parameter(torch.randn(2 * reach - 1, head_dim) * self.scale)
        query, key = torch.arange(self.window), torch.arange(self.window + 2 * self.halo)
        self.register_buffer("positions", 2 * (key - query[:, None]) + reach - 1, persistent=False)

    def forward(self, x: Float[Tensor, "B C h w"]) -> Float[Tensor, "B C h w"]:
        size, rows = self.window, x.shape[-2] // self.window
        q, k, v = self.qkv(x).chunk(3, dim=1)
        q = rearrange(q, "b (n d) (i h) (j w) -> (b i j) n h w d", n=self.heads, h=size, w=size) * self.scale
        k, v = self.overlapping_windows(k), self.overlapping_windows(v)
        # Relative position is a product with q: appended to q, picked by a one-hot key of row and column.
        row = torch.einsum("znhwd,hkd->znhwk", q, self.rel_row[self.positions])
        col = torch.einsum("znhwd,wkd->znhwk", q, self.rel_col[self.positions])
        logits = torch.einsum("znhwd,znkld->znhwkl", q, k) + row[..., :, None] + col[..., None, :]
        weights = rearrange(logits, "z n h w k l -> z n (h w) (k l)").softmax(dim=-1)
        out = weights @ rearrange(v, "z n k l d -> z n (k l) d")
        out = rearrange(out, "(b i j) n (h w) d -> b (n d) (i h) (j w)", i=rows, h=size, b=x.shape[0])
        return self.project(out)

    def overlapping_windows(self, x: Float[Tensor, "B nd h w"]) -> Float[Tensor, "z n k l d"]:
        x = rearrange(F.pad(x, (self.halo,) * 4), "b (n d) h w -> b n h w d", n=self.heads)
        x = _overlapping(_overlapping(x, 3, self.window, self.halo), 2, self.window, self.halo)
        return rearrange(x, "b n i k j l d -> (b i j) n k l d")


def _overlapping(padded: Tensor, dim: int, window: int, halo: int) -> Tensor:
    """Cut one padded axis into windows and their halos: ``unfold``, with slices whose backward pass is a copy."""
    length = padded.shape[dim] - 2 * halo
    before, core, after = (padded.narrow(dim, i * halo, length).unflatten(dim, (-1, window)) for i in range(3))
    edges = (before.narrow(dim + 1, 0, halo), core, after.narrow(dim + 1, window - halo, halo))
    return torch.cat(edges, dim + 1)
