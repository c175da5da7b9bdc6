"""The teacher: the blind-spot network as a denoiser. Every function here takes a denoiser and returns one.

A denoiser maps images (b, c, h, w) with values in [0, 1] to images of the same shape.
"""

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Bool, Float
from torch import Tensor

from tbsn import denoiser
from tbsn.network import TBSN, HalfPlane
from tbsn.network.files import Network, load_network
from tbsn.network.phases import inverse_pd, pd
from tbsn.settings import PASSES, TeacherSettings
from tbsn.tiles import Tiling

# Channel attention is global: another size is another network. With PD-2, 128x128, as in the paper's training.
ATTENTIVE = Tiling(size=256, margin=24, feather=16)

Denoiser = Callable[[Tensor], Tensor]
BlindNetwork = TBSN | HalfPlane
# What they can be told in use, of `TeacherSettings`; a student nothing.
USES = {TBSN: ("stride", "passes"), HalfPlane: ("hole",)}
Masks = Callable[[torch.Size], Iterator[Bool[Tensor, "b c h w"]]]


def padded(denoiser: Denoiser, multiple: int) -> Denoiser:
    """Reflect images of any size, from 1x1, to multiples of ``multiple`` on both sides, and crop back."""

    def run(image: Float[Tensor, "b c h w"]) -> Float[Tensor, "b k h w"]:
        height, width = image.shape[-2:]
        rows, cols = (np.pad(np.arange(n), (0, -n % multiple), mode="reflect") for n in (height, width))
        return denoiser(image[..., rows[:, None], cols])[..., :height, :width]

    return run


def downsampled(denoiser: Denoiser, stride: int) -> Denoiser:
    """PD, the denoiser on all sub-images, inverse PD (AP-BSN, section 3.1)."""
    return lambda image: inverse_pd(denoiser(pd(image, stride)), stride)


def random_masks(passes: int, probability: float, seed: int) -> Masks:
    """``passes`` masks, True with ``probability`` for each value of each channel: the same ones for the same seed."""

    def draw(shape: torch.Size) -> Iterator[Tensor]:
        generator = torch.Generator().manual_seed(seed)
        for _ in range(passes):
            yield torch.rand(shape, generator=generator) < probability

    return draw


def refined(first: Denoiser, denoiser: Denoiser, masks: Masks) -> Denoiser:
    """R3, random-replacing refinement (AP-BSN, section 3.3).

    For each mask: where it is True the noisy value takes the place of the ``first`` estimate, and ``denoiser`` runs on
    that; the mean of these results.
    """

    def run(noisy: Float[Tensor, "b c h w"]) -> Float[Tensor, "b c h w"]:
        estimate = first(noisy)
        total, passes = torch.zeros_like(estimate), 0
        for mask in masks(noisy.shape):
            total += denoiser(torch.where(mask.to(noisy.device), noisy, estimate))
            passes += 1
        return total / passes if passes else estimate

    return run


def teacher(bsn: TBSN, settings: TeacherSettings) -> Denoiser:
    """PD, the blind-spot network, inverse PD and R3, for images of any size (TBSN, section 3.4)."""
    stride = settings.stride or bsn.config.pd
    passes = settings.passes if settings.passes is not None else PASSES * (stride > 1)
    masks = random_masks(passes, settings.probability, settings.seed)
    denoiser = padded(refined(downsampled(bsn, stride), bsn, masks), bsn.multiple * stride)
    return torch.no_grad()(denoiser)


def targets(
    teachers: Sequence[BlindNetwork],
    stride: int | None,
    estimate: bool,
    refinements: Sequence[float],
    holes: Sequence[int],
    seed: int,
) -> Denoiser:
    """What a student learns from, for an image of any size: the targets one after another on the channel axis.

    Of a `TBSN` the PD pass itself if ``estimate``, then for each probability in ``refinements`` one pass over it with
    that share of the noisy values put back; the paper's target is probability 0 alone (TBSN, section 3.4). ``stride``
    is that of PD, by default its own. Of a `HalfPlane` one pass for each of the ``holes`` (AT-BSN, arXiv 2303.14934,
    section 3).
    """

    def taught(bsn: BlindNetwork, noisy: Tensor) -> list[Tensor]:
        if isinstance(bsn, HalfPlane):
            return [bsn(noisy, hole) for hole in holes]
        first = downsampled(bsn, stride or bsn.config.pd)(noisy)
        masks = (next(random_masks(1, share, seed + i)(noisy.shape)) for i, share in enumerate(refinements))
        passes = [bsn(torch.where(mask.to(noisy.device), noisy, first)) for mask in masks]
        return [first, *passes] if estimate else passes

    def run(noisy: Float[Tensor, "b c h w"]) -> Float[Tensor, "b tc h w"]:
        return torch.cat([target for bsn in teachers for target in taught(bsn, noisy)], dim=1)

    strides = (1 if isinstance(bsn, HalfPlane) else stride or bsn.config.pd for bsn in teachers)
    multiple = math.lcm(*(bsn.multiple * own for bsn, own in zip(teachers, strides, strict=True)))
    return torch.no_grad()(padded(run, multiple))


def as_numpy(denoiser: Denoiser, device: torch.device) -> Callable[[np.ndarray], np.ndarray]:
    """The denoiser for one numpy image (h, w, c) in [0, 1], as on the ground floor."""

    def run(image: np.ndarray) -> np.ndarray:
        batch = torch.from_numpy(np.ascontiguousarray(image.transpose(2, 0, 1)))[None].to(device)
        return denoiser(batch)[0].float().cpu().numpy().transpose(1, 2, 0)

    return run


def load_denoiser(path: Path, settings: TeacherSettings) -> denoiser.Denoiser:
    """A model file or the folder of a run as a denoiser of numpy images, on the CPU."""
    network = load_network(path)
    settings.only(path, *USES.get(type(network), ()))
    return numpy_denoiser(network, settings, path.stem)


def numpy_denoiser(network: Network, settings: TeacherSettings, name: str) -> denoiser.Denoiser:
    """`of_network` for numpy images, on the CPU; a `TBSN` for larger ones in tiles of what it is trained on."""
    local = not isinstance(network, TBSN)
    tiling = Tiling() if local else ATTENTIVE
    return denoiser.Denoiser(OnCPU(network, settings), network.config.channels, name, tiling=tiling, local=local)


@dataclass(frozen=True)
class OnCPU:
    """`of_network` as a function of one numpy image (h, w, c) in [0, 1]; picklable, with its weights."""

    network: Network
    settings: TeacherSettings

    def __call__(self, image: np.ndarray) -> np.ndarray:
        return as_numpy(of_network(self.network, self.settings), torch.device("cpu"))(image)


def of_network(network: Network, settings: TeacherSettings) -> Denoiser:
    """A blind-spot network as a denoiser with the given settings; a student as it is, for images of any size."""
    if isinstance(network, TBSN):
        return teacher(network, settings)
    denoiser: Denoiser = network
    if isinstance(network, HalfPlane):
        denoiser = partial(network, hole=settings.hole)
    return torch.no_grad()(padded(denoiser, network.multiple))
