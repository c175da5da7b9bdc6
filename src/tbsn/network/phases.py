"""Pixel-shuffle downsampling (PD) and its inverse.

AP-BSN (arXiv 2203.11799), section 3: the same operator whitens the noise of an image (stride 5 in training, 2 in
inference) and splits the features of TBSN into their four parity phases (stride 2).
"""

from einops import rearrange
from jaxtyping import Float
from torch import Tensor


def pd(image: Float[Tensor, "b c H W"], stride: int) -> Float[Tensor, "B c h w"]:
    """Split an image into the ``stride**2`` sub-images ``image[..., i::stride, j::stride]``.

    The sub-images of one image lie next to each other on the batch axis, B = b * stride**2, in row-major order of
    (i, j). Raises ``einops.EinopsError`` if a side is not a multiple of the stride.
    """
    return rearrange(image, "b c (h p) (w q) -> (b p q) c h w", p=stride, q=stride)


def inverse_pd(sub_images: Float[Tensor, "B c h w"], stride: int) -> Float[Tensor, "b c H W"]:
    """Put the sub-images of `pd` back in place: ``inverse_pd(pd(x, s), s)`` is ``x``, exactly."""
    return rearrange(sub_images, "(b p q) c h w -> b c (h p) (w q)", p=stride, q=stride)
