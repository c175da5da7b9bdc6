"""Denoisers for numpy images: the ONNX students, and, if torch is there, every model file."""

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, replace
from functools import partial
from numbers import Real
from pathlib import Path
from typing import Self

import numpy as np

from tbsn.errors import InputError
from tbsn.images import check_values
from tbsn.runtime import AUTO, CPU, PIXEL_BYTES, open_student
from tbsn.scale import Scale, scale_of
from tbsn.settings import TeacherSettings
from tbsn.tiles import Rows, Tiling, reflected, stream, tiled
from tbsn.trust import Trust, measure

PRETRAINED = Path(__file__).parent / "pretrained"
DEFAULT = "default"
SAMPLE = 192
STILL = 2
GRID = 64
ROW_BYTES = 60  # of each pixel in a row of tiles: the image, the change, the result
PROCESS_BYTES = 1.5e8
LEAST_BYTES = 2e8  # of a process, and of small tiles of narrow images
PICKLES = (".pth", ".pt", ".ckpt", ".pkl")


@dataclass(frozen=True)
class Denoiser:
    """Denoises numpy images (h, w) or (h, w, c) of any size and any integer or float dtype: same shape and dtype back.

    ``function`` maps float32 (h, w, c) in [0, 1] to the same; ``channels`` is the c it needs. Grey images pass through
    a colour model as three equal channels. ``strength`` is how much of what the function takes out is taken, from 0 to
    1; None is as much as can be noise, place by place, see `tbsn.trust`. Large images go through in the tiles of
    ``tiling``, each pixel of which takes about ``pixel_bytes`` of memory; ``local`` says that what is beyond a tile
    does not matter, so that they may be smaller.
    """

    function: Callable[[np.ndarray], np.ndarray]
    channels: int
    name: str
    strength: float | None = 1.0
    tiling: Tiling = Tiling()
    pixel_bytes: int = PIXEL_BYTES["UNet"]
    local: bool = True

    def __call__(self, image: np.ndarray) -> np.ndarray:
        """Raises `InputError` for what is no array of numbers, masked arrays, values that are NaN, infinite or beyond
        1e38, and channels that the model does not know.
        """
        if isinstance(image, np.ma.MaskedArray):
            raise InputError("image", "is a masked array", "fill it: image.filled(value)")
        if not isinstance(image, np.ndarray) or image.dtype.kind not in "iuf":
            kind = f"an array of {image.dtype}" if isinstance(image, np.ndarray) else f"of type {type(image).__name__}"
            raise InputError("image", f"is {kind}", "give a numpy array of integers or floats; of many images, use map")
        pixels = np.asarray(image)  # a matrix would stay one
        pixels = pixels[..., None] if pixels.ndim == 2 else pixels
        if pixels.ndim != 3 or 0 in pixels.shape or pixels.shape[2] not in (1, self.channels):
            raise InputError("image", f"has shape {image.shape}", f"give (h, w), (h, w, 1) or (h, w, {self.channels})")
        check_values("image", pixels)
        size, scale = pixels.shape[:2], scale_of(pixels.dtype, pixels.size, [pixels])

        def rows(top: int, bottom: int) -> np.ndarray:
            return pixels[top:bottom]

        parts = self.stream(rows, size, scale, self.trust_for(lambda: rows, size, scale))
        return np.concatenate(list(parts), dtype=image.dtype).reshape(image.shape)

    def map(self, images: Iterable[np.ndarray]) -> Iterator[np.ndarray]:
        """Denoise images of a list or a generator one after another, each when it is asked for."""
        return map(self, images)

    def stream(self, rows: Rows, size: tuple[int, int], scale: Scale, trust: Trust | None) -> Iterator[np.ndarray]:
        """The denoised rows of an image of ``size`` (height, width), as its ``rows`` (see `tbsn.tiles.stream`) come."""
        change = partial(self._change, scale=scale, trust=trust)
        strength = np.float32(1 if self.strength is None else self.strength)
        for noisy, changed in stream(change, rows, size, self.tiling):
            yield scale.changed(noisy, strength * changed)

    def trust_for(self, begin: Callable[[], Rows], size: tuple[int, int], scale: Scale) -> Trust | None:
        """What can be noise in an image, if there is no ``strength``: seen in nine parts of it, or in all if small.

        ``begin`` gives its rows, and may begin to decode: with a ``strength`` it is not called.
        """
        if self.strength is not None:
            return None
        rows, (down, across) = begin(), map(samples, size)
        strips = (rows(place.start, place.stop) for place in down)
        parts = (strip[:, place] for strip in strips for place in across)
        change = tiled(partial(self._change, scale=scale), self.tiling)
        return measure((values := scale.unit(part), values + change(part)) for part in parts)

    def self_ensemble(self) -> Self:
        """The same, of `mean_over_symmetries`: better, and eight times the work."""
        return replace(self, function=partial(_on_one_grid, self.function))

    def within(self, memory: float, width: int) -> Self:
        """The same with tiles that need about ``memory`` bytes at most, for images of this ``width``; if ``local``."""
        if not self.local:
            return self
        sizes = range(self.tiling.size, 2 * self.tiling.overlap - 1, -64)
        needed = ((size, PROCESS_BYTES + size * (size * self.pixel_bytes + width * ROW_BYTES)) for size in sizes)
        size = next((size for size, bytes_ in needed if bytes_ <= memory), sizes[-1])
        return replace(self, tiling=replace(self.tiling, size=size))

    def _change(self, noisy: np.ndarray, scale: Scale, trust: Trust | None = None) -> np.ndarray:
        # Plane by plane in memory, as networks take and give images: all else is several times as fast, too.
        planes = np.ascontiguousarray(noisy.transpose(2, 0, 1)).transpose(1, 2, 0)
        values = scale.unit(planes)
        grey = values.shape[2] < self.channels
        change = self.function(np.repeat(values, self.channels, axis=2) if grey else values) - values
        np.copyto(change, 0, where=still(planes)[..., None])
        change = change.mean(axis=2, keepdims=True) if grey else change
        return trust.limited(values, change) if trust else change


def mean_over_symmetries(denoise: Callable[[np.ndarray], np.ndarray], image: np.ndarray) -> np.ndarray:
    """What ``denoise`` makes of an image (h, w, c) and its flips and quarter turns, each turned back, on average.

    The field calls it self-ensemble (Timofte et al., CVPR 2016, section 3.5).
    """
    total = np.zeros_like(image)
    for turns in range(4):
        turned = np.rot90(image, turns)
        total += np.rot90(denoise(turned), -turns) + np.rot90(denoise(turned[:, ::-1])[:, ::-1], -turns)
    return total / 8


def _on_one_grid(denoise: Callable[[np.ndarray], np.ndarray], image: np.ndarray) -> np.ndarray:
    """The same, of an image reflected to multiples of GRID.

    However it is turned, a pixel has the same place in the grid of a network that halves, in tiles as in the whole.
    """
    return reflected(partial(mean_over_symmetries, denoise), GRID)(image)


def still(image: np.ndarray) -> np.ndarray:
    """Where nothing changes for STILL pixels up, down, left and right: there is no noise. (h, w) of (h, w, c)."""
    (height, width), where = image.shape[:2], np.ones(image.shape[:2], bool)
    for down, right in ((1, 0), (0, 1)):
        equal = np.ones((height + 2 * STILL * down - down, width + 2 * STILL * right - right), bool)
        inside = equal[STILL * down : height + STILL * down - down, STILL * right : width + STILL * right - right]
        for plane in np.moveaxis(image, 2, 0):
            inside &= plane[down:, right:] == plane[: height - down, : width - right]
        for shift in range(2 * STILL):
            where &= equal[shift * down : shift * down + height, shift * right : shift * right + width]
    return where


def samples(length: int) -> list[slice]:
    """Parts of one side of an image that stand for it: three of SAMPLE pixels, or all of it if that is not more."""
    if length <= 3 * SAMPLE:
        return [slice(0, length)]
    return [slice(start, start + SAMPLE) for start in (0, (length - SAMPLE) // 2, length - SAMPLE)]


def load(
    model: str | Path = DEFAULT,
    teacher: TeacherSettings = TeacherSettings(),
    strength: float | None = None,
    device: str = AUTO,
    ensemble: bool = False,
) -> Denoiser:
    """A denoiser by name or path.

    By name ``default`` and ``unet``, the students in the package, fast and of the paper's shape, and ``teacher``, a
    blind-spot network; by path an ONNX file, or with torch, as ``teacher`` too, a safetensors file or the folder of a
    run. A blind-spot network runs with the settings ``teacher``. ``strength`` is how much to take out, from 0 to 1; by
    default as much as can be noise, see `tbsn.trust`. ``device`` is where an ONNX file runs, see `tbsn.runtime`.
    ``ensemble`` takes the mean over the flips and quarter turns of an image: better, and eight times the work.

    Raises `InputError` for a model that is missing, damaged, a pickle, or of another version, for a strength outside
    [0, 1], for a device that is not there, and for settings that are not of this kind of network.
    """
    if strength is not None and not (isinstance(strength, Real) and 0 <= strength <= 1):
        raise InputError(f"strength {strength}", "not from 0 to 1", "give 1 for all of the noise, 0 for none")
    denoiser = replace(_load(find(model), teacher, device), strength=strength)
    return denoiser.self_ensemble() if ensemble else denoiser


def _load(path: Path, teacher: TeacherSettings, device: str) -> Denoiser:
    if path.suffix in PICKLES:
        raise InputError(path, "is a pickle, which can run code", "make a safetensors file of it with `tbsn convert`")
    if path.suffix == ".onnx":
        teacher.only(path)
        student = open_student(path, device)
        return Denoiser(student, student.channels, path.stem, pixel_bytes=student.pixel_bytes)
    if device not in (AUTO, CPU):
        raise InputError(f"device {device}", "is for exported students alone", "export the model with `tbsn export`")
    if path.suffix == ".safetensors" or path.is_dir():
        try:
            from tbsn.teacher import load_denoiser
        except ImportError as error:
            raise InputError(path, f"needs {error.name}", "pip install 'tbsn[train]'") from error
        return load_denoiser(path, teacher)
    raise InputError(path, "no such model", "name `default`, an .onnx or .safetensors file, or the folder of a run")


def find(model: str | Path) -> Path:
    """Where a model is that is given by its name or path."""
    named = (PRETRAINED / f"{model}{suffix}" for suffix in (".onnx", ".safetensors"))
    return next((path for path in named if path.is_file()), Path(model))
