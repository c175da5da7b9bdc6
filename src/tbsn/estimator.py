"""Learn from noisy images and denoise them, in the manner of scikit-learn (needs torch)."""

import tempfile
from collections.abc import Iterable, Iterator, Sequence
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from signal import SIGINT
from typing import Self

import numpy as np

from tbsn import options
from tbsn.errors import InputError, Stopped
from tbsn.images import MAX_CHANNELS, open_photo
from tbsn.network.files import Network, load_network, save_network
from tbsn.noisy import noisy_images
from tbsn.settings import TeacherSettings
from tbsn.teacher import numpy_denoiser
from tbsn.training import runs
from tbsn.training.recipe import DistillRecipe, RenoiseRecipe, TrainRecipe, load_recipe


class SelfSupervisedDenoiser:
    """A denoiser for one kind of noise, learned from noisy images of that kind alone.

        denoiser = SelfSupervisedDenoiser().fit("folder")
        clean = denoiser.denoise(noisy)

    ``recipe`` trains the blind-spot network, ``distill`` its student, ``renoise`` the student of that; the last of them
    denoises, and None leaves one out. Each is a recipe of the package by name, a YAML file, or a recipe object. ``run``
    is the folder to keep the training in; the same call goes on with it. Without one it is temporary. ``init`` is a
    model that the last of the networks starts from, and ``max_time`` the longest that each is trained, as in "30m".
    """

    def __init__(
        self,
        recipe: str | Path | TrainRecipe = "cpu",
        distill: str | Path | DistillRecipe | None = "distill-cpu",
        renoise: str | Path | RenoiseRecipe | None = "renoise-cpu",
        *,
        run: str | Path | None = None,
        device: str = "auto",
        init: str | Path | None = None,
        max_time: str = "",
    ) -> None:
        self.recipe = load_recipe(TrainRecipe, str(recipe), []) if isinstance(recipe, str | Path) else recipe
        self.distill = load_recipe(DistillRecipe, str(distill), []) if isinstance(distill, str | Path) else distill
        self.renoise = load_recipe(RenoiseRecipe, str(renoise), []) if isinstance(renoise, str | Path) else renoise
        channels = {stage.network.channels for stage in (self.recipe, self.distill, self.renoise) if stage}
        if len(channels) > 1:
            raise InputError("recipes", f"are for {channels} channels", "give all the same network.channels")
        self.run, self.init = run, Path(init) if init else None
        self.start = runs.Start(device, max_seconds=options.seconds(str(max_time)))
        self._network: Network | None = None

    def fit(self, images: str | Path | np.ndarray | Sequence[str | Path] | Sequence[np.ndarray]) -> Self:
        """Learn from noisy images: a folder, a file, an array, or a list of files or arrays.

        Arrays are (h, w) or (h, w, c), of integers or of floats in [0, 1]. The networks are made for as many channels
        as the first image has, but a grey one is repeated. Raises `InputError` for images that cannot be used.
        """
        source = _source(images)
        stages = [_for_channels(stage, source) for stage in (self.recipe, self.distill, self.renoise) if stage]
        starts = [replace(self.start, init=self.init if stage is stages[-1] else None) for stage in stages]
        for stage, start in zip(stages, starts, strict=True):
            runs.check(stage, start)  # before hours are spent on the first of them
        with tempfile.TemporaryDirectory(prefix="tbsn-") as temporary:
            run = Path(self.run or temporary)
            try:
                *_, self._network = [self._train(source, *how, run) for how in zip(stages, starts, strict=True)]
            except Stopped as stopped:
                if self.run:
                    raise
                raise (KeyboardInterrupt if stopped.code == 128 + SIGINT else SystemExit(stopped.code)) from None
        return self

    def _train(self, source: runs.Source, stage: runs.Recipe, start: runs.Start, run: Path) -> Network:
        if isinstance(stage, TrainRecipe):
            return runs.train(source, run / "teacher", stage, start)
        if isinstance(stage, DistillRecipe):
            return runs.distill(source, [run / "teacher"], run / "student", stage, start)
        return runs.renoise(source, [run / ("student" if self.distill else "teacher")], run / "renoised", stage, start)

    def denoise(self, image: np.ndarray) -> np.ndarray:
        """Denoise an array (h, w) or (h, w, c) of any size: same shape and dtype back. Raises `InputError`."""
        return numpy_denoiser(self._learned(), TeacherSettings(), "fitted")(image)

    def save(self, path: str | Path) -> None:
        """Write what denoises to a .safetensors file; `tbsn denoise --model` takes it too. Raises `InputError`."""
        if Path(path).suffix != ".safetensors":
            raise InputError(path, "is not named .safetensors", "name it so; `tbsn export` makes .onnx files of it")
        save_network(Path(path), self._learned())

    @classmethod
    def load(cls, path: str | Path) -> Self:
        """What `save` wrote, or the folder of a run. Raises `InputError`."""
        denoiser = cls()
        denoiser._network = load_network(Path(path))
        return denoiser

    def _learned(self) -> Network:
        if self._network is None:
            raise InputError("SelfSupervisedDenoiser", "has learned nothing yet", "call fit, or load")
        return self._network


def _source(images: str | Path | np.ndarray | Sequence[str | Path] | Sequence[np.ndarray]) -> runs.Source:
    if isinstance(images, str | Path):
        return Path(images)
    if not isinstance(images, Iterable):
        raise _no_images("images", images)
    if not isinstance(images, np.ndarray) or images.ndim > 3:
        listed = [Path(one) if isinstance(one, str) else one for one in images]
        for number, one in enumerate(listed):
            if not isinstance(one, Path | np.ndarray):
                raise _no_images(f"image {number}", one)
            if isinstance(one, Path) != isinstance(listed[0], Path):
                raise InputError("images", "are files and arrays", "give all as files, or all as arrays")
        return [_plain(f"image {number}", one) for number, one in enumerate(listed)]  # type: ignore[return-value]
    if images.ndim == 3 and images.shape[2] > MAX_CHANNELS:
        remedy = "give list(stack), or one image (h, w) or (h, w, c)"
        raise InputError("images", f"has shape {images.shape}, that of a stack", remedy)
    return [_plain("images", images)]  # type: ignore[return-value]


def _plain(name: str, image: Path | np.ndarray) -> Path | np.ndarray:
    """A path, or an array that is no matrix. Raises `InputError` for a masked one, whose masked values would count."""
    if isinstance(image, np.ma.MaskedArray):
        raise InputError(name, "is a masked array", "fill it: image.filled(value)")
    return np.asarray(image) if isinstance(image, np.ndarray) else image


def _no_images(name: str, given: object) -> InputError:
    remedy = "give a folder, files, or numpy arrays (h, w) or (h, w, c): of a tensor (c, h, w), tensor.permute(1, 2, 0)"
    return InputError(name, f"is of type {type(given).__name__}", f"{remedy}.numpy()")


def _for_channels(recipe: runs.Recipe, source: runs.Source) -> runs.Recipe:
    """The recipe for the channels of the first image that can be opened; a grey one fits every recipe."""
    found = next(_channels(source, recipe.network.channels), 1)
    if found == 1:
        return recipe
    return recipe.model_copy(update={"network": recipe.network.model_copy(update={"channels": found})})


def _channels(source: runs.Source, expected: int) -> Iterator[int]:
    for one in [source] if isinstance(source, Path) else source:
        if not isinstance(one, Path):
            yield one.shape[2] if one.ndim == 3 else 1
            continue
        for path in noisy_images([one], lambda error: None):
            with suppress(InputError):
                yield open_photo(path, expected).shape[2]
