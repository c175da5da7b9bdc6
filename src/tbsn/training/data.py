"""Random strided crops of noisy photos."""

import hashlib
from collections.abc import Iterable, Sequence
from typing import cast

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset

from tbsn import images
from tbsn.training.photos import Photos


class Crops(Dataset[tuple[Tensor, ...]]):
    """Batch number ``step`` of random crops: every item of it a pure function of the seed, the step and its place.

    Every batch is one tensor (batch, c, crop / stride, crop / stride) in [0, 1] for each of the aligned ``stacks``, cut
    at the same places. ``stride`` takes one PD sub-image of the crop. Photos are drawn in proportion to their pixels.
    ``places`` are the places of the batch that this process computes: all processes together make the batch that one
    alone would. ``among`` are the photos to crop, all if not given; none may be smaller than the crop.
    """

    def __init__(
        self,
        stacks: Sequence[Photos],
        *,
        crop: int,
        places: Sequence[int],
        stride: int = 1,
        augment: bool,
        seed: int,
        among: np.ndarray | None = None,
    ) -> None:
        self.stacks, self.crop, self.places, self.stride = stacks, crop, places, stride
        self.augment, self.seed = augment, seed
        self._among = np.arange(len(stacks[0])) if among is None else among
        self._pixels = stacks[0].sizes[self._among].prod(axis=1, dtype=np.int64).cumsum()

    def __getitem__(self, step: int) -> tuple[Tensor, ...]:  # type: ignore[override]
        crops = [self._crops(np.random.default_rng([self.seed, step, place])) for place in self.places]
        return tuple(torch.from_numpy(np.stack(parts)) for parts in zip(*crops, strict=True))

    def _crops(self, random: np.random.Generator) -> list[np.ndarray]:
        chosen = np.searchsorted(self._pixels, random.integers(self._pixels[-1]), side="right")
        index = int(self._among[chosen])
        height, width = self.stacks[0][index].shape[:2]
        top = int(random.integers(height - self.crop + 1))
        left = int(random.integers(width - self.crop + 1))
        turn, flip = (int(random.integers(4)), bool(random.integers(2))) if self.augment else (0, False)
        crops = []
        for photos in self.stacks:
            crop = photos[index][top : top + self.crop : self.stride, left : left + self.crop : self.stride]
            crop = np.rot90(crop, turn)
            crop = images.to_float(crop[:, ::-1] if flip else crop)
            crops.append(np.ascontiguousarray(cast(np.ndarray, crop.transpose(2, 0, 1))))
        return crops


def split(names: Iterable[str], share: float, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Numbers of the images to train on, and of the share of them, rounded and never all, to hold back.

    At random, but the same where images come and go: the names decide.
    """
    order = np.argsort([hashlib.sha256(f"{seed} {name}".encode(errors="surrogateescape")).digest() for name in names])
    held_back = min(round(share * len(order)), len(order) - 1)
    return np.sort(order[held_back:]), np.sort(order[:held_back])
