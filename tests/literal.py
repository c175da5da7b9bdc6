"""The paper's network, literally: every operator on the full pixel grid, as section 3 of TBSN describes it.

The oracle of the tests and the baseline of the benchmarks. `LiteralTBSN` computes with the parameters of one of our
networks, by reference, so that gradients compare too.
"""

import torch
from einops import rearrange
from torch import Tensor, nn
from torch.nn import functional as F

from tbsn.network import TBSN
from tbsn.network.attention import ChannelAttention, WindowAttention
from tbsn.network.tbsn import Block, Norm


class LiteralTBSN(nn.Module):
    """Dilated convolutions, a parity mask, patch-unshuffle: the same function as ``network``, another way."""

    def __init__(self, network: TBSN) -> None:
        super().__init__()
        self.network = network

    def forward(self, image: Tensor) -> Tensor:
        net = self.network
        x = F.conv2d(255 * image, net.embed.weight * net.embed.mask, padding=1)
        skips = []
        for encoder, down in zip(net.encoder, net.downs, strict=True):
            x = blocks(x, encoder)
            skips.append(x)
            x = patch_unshuffle(F.conv2d(x, down[0].weight))
        x = blocks(x, net.latent)
        for up, reduce, decoder in zip(net.ups, net.reduces, net.decoder, strict=True):
            x = torch.cat([patch_shuffle(F.conv2d(x, up[0].weight)), skips.pop()], dim=1)
            x = blocks(reduce(x), decoder)
        return F.conv2d(x, net.output.weight) / 255


def patch_unshuffle(x: Tensor) -> Tensor:
    return rearrange(x, "b c (h s p) (w t q) -> b (c s t) (h p) (w q)", p=2, q=2, s=2, t=2)


def patch_shuffle(x: Tensor) -> Tensor:
    return rearrange(x, "b (c s t) (h p) (w q) -> b c (h s p) (w t q)", p=2, q=2, s=2, t=2)


def blocks(x: Tensor, sequence: nn.Sequential) -> Tensor:
    for block in sequence:
        assert isinstance(block, Block)
        for norm, part in zip(block.norms, block.parts, strict=True):
            assert isinstance(norm, Norm)
            x = x + apply(part, normalise(x, norm))
    return x


def normalise(x: Tensor, norm: Norm) -> Tensor:
    return x / torch.sqrt(x.var(1, keepdim=True, unbiased=False) + 1e-5) * norm.weight


def apply(part: nn.Module, x: Tensor) -> Tensor:
    if isinstance(part, ChannelAttention):
        return channel_attention(x, part)
    if isinstance(part, WindowAttention):
        return window_attention(x, part)
    assert isinstance(part, nn.Sequential)
    hidden = F.gelu(F.conv2d(x, part[0].weight, padding=2, dilation=2))
    return F.conv2d(hidden, part[2].weight, padding=2, dilation=2)


def channel_attention(x: Tensor, part: ChannelAttention) -> Tensor:
    h, w = x.shape[-2:]
    qkv = F.conv2d(x, part.qkv.weight)
    qkv = F.conv2d(qkv, part.depthwise.weight, padding=2, dilation=2, groups=qkv.shape[1])
    q, k, v = (rearrange(t, "b (g c) h w -> b g c (h w)", g=part.groups) for t in qkv.chunk(3, dim=1))
    q, k = F.normalize(q, dim=-1), F.normalize(k, dim=-1)
    attention = (q @ k.transpose(-2, -1) * part.temperature).softmax(dim=-1)
    return F.conv2d(rearrange(attention @ v, "b g c (h w) -> b (g c) h w", h=h, w=w), part.project.weight)


def window_attention(x: Tensor, part: WindowAttention) -> Tensor:
    h, w = x.shape[-2:]
    size, heads, dim = 2 * part.window, part.heads, part.rel_row.shape[1]
    reach = 3 * size // 2
    q, k, v = F.conv2d(x, part.qkv.weight).chunk(3, dim=1)
    q = rearrange(q, "b (n d) (i h) (j w) -> (b i j) n (h w) d", n=heads, h=size, w=size) * dim**-0.5
    k, v = (
        rearrange(
            F.unfold(t, reach, padding=size // 4, stride=size), "b (n d k) z -> (b z) n k d", n=heads, k=reach * reach
        )
        for t in (k, v)
    )
    query, key = torch.arange(size), torch.arange(reach)
    offset = key - query[:, None]
    row, col = part.rel_row[offset + reach - 1], part.rel_col[offset + reach - 1]
    grid = rearrange(q, "z n (h w) d -> z n h w d", h=size)
    relative = torch.einsum("znhwd,hkd->znhwk", grid, row)[..., :, None]
    relative = relative + torch.einsum("znhwd,wld->znhwl", grid, col)[..., None, :]
    odd = offset % 2 == 1
    mask = rearrange(odd[:, None, :, None] | odd[None, :, None, :], "h w k l -> (h w) (k l)")
    logits = q @ k.transpose(-2, -1) + rearrange(relative, "z n h w k l -> z n (h w) (k l)")
    out = logits.masked_fill(mask, -torch.inf).softmax(dim=-1) @ v
    out = rearrange(out, "(b i j) n (h w) d -> b (n d) (i h) (j w)", i=h // size, j=w // size, h=size)
    return F.conv2d(out, part.project.weight)
