"""Random strided crops of noisy photos."""

import hashlib
from collections.abc import Iterable, Sequence
from typing import Any, cast

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset

from tbsn import images
from tbsn.training.leaves import dead_leaves, shrunk
from tbsn.training.light import exposed
from tbsn.training.noise_model import NoiseModel, plain_noise
from tbsn.training.photos import Photos
from tbsn.training.recipe import PairSettings


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
        crops = self._cut(index, random)
        turn, flip = (int(random.integers(4)), bool(random.integers(2))) if self.augment else (0, False)
        turned = (np.rot90(crop, turn)[:, :: -1 if flip else 1] for crop in crops)
        return [np.ascontiguousarray(cast(np.ndarray, crop.transpose(2, 0, 1))) for crop in turned]

    def _cut(self, index: int, random: np.random.Generator) -> list[np.ndarray]:
        where = self._place(index, self.crop, random)
        return [images.to_float(photos[index][where][:: self.stride, :: self.stride]) for photos in self.stacks]

    def _place(self, index: int, side: int, random: np.random.Generator) -> tuple[slice, slice]:
        rows, columns = (int(random.integers(size - side + 1)) for size in self.stacks[0].sizes[index])
        return slice(rows, rows + side), slice(columns, columns + side)


class Renoised(Crops):
    """Pairs of a noisy and a clean crop from noisy photos and their estimates.

    The clean one is an estimate, the noisy one the same with noise drawn from the model of a photo; ``models`` are
    those of all photos (see `kept.noise_models`). ``how`` says what else may be changed.
    """

    def __init__(
        self, photos: Photos, estimates: Photos, models: Photos, *, how: PairSettings, **settings: Any
    ) -> None:
        super().__init__([photos, estimates], **settings)
        self.models, self.how = models, how

    def _cut(self, index: int, random: np.random.Generator) -> list[np.ndarray]:
        (photos, estimates), how = self.stacks, self.how
        loud = index
        if random.random() < how.mixed:
            index, loud = sorted((index, int(random.choice(self._among))), key=lambda i: self._model(i).strength)
        zoom = 2 if random.random() < how.halved and min(photos.sizes[index]) >= 2 * self.crop else 1
        where = self._place(index, zoom * self.crop, random)
        seen = self._model(index).unbiased(images.to_float(estimates[index][where]))
        clean = shrunk(seen, zoom)
        if random.random() < how.leaves:
            clean = dead_leaves().draw(seen.reshape(-1, seen.shape[2]), self.crop, random)
        if random.random() < how.plain:
            noisy = clean + plain_noise(clean, random)
        else:
            noisy = clean + self._model(loud).draw(clean, random)
            noisy, clean = exposed(noisy, clean, how.curve, how.stops, how.weak, random)
        if random.random() < how.grey:
            channel = int(random.integers(clean.shape[2]))
            noisy, clean = (np.repeat(one[..., channel, None], one.shape[2], axis=2) for one in (noisy, clean))
        return [images.to_float(images.from_float(noisy, photos[index].dtype)), clean]

    def _model(self, index: int) -> NoiseModel:
        return NoiseModel.unpacked(self.models[index].ravel(), self.stacks[0][index].shape[2])


def split(names: Iterable[str], share: float, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Numbers of the images to train on, and of the share of them, rounded and never all, to hold back.

    At random, but the same where images come and go: the names decide.
    """
    order = np.argsort([hashlib.sha256(f"{seed} {name}".encode(errors="surrogateescape")).digest() for name in names])
    held_back = min(round(share * len(order)), len(order) - 1)
    return np.sort(order[held_back:]), np.sort(order[:held_back])
