"""Learn from noisy images and denoise them, in the manner of scikit-learn (needs torch)."""

import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Self

import numpy as np

from tbsn.errors import InputError
from tbsn.network.files import Network, load_network, save_network
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
    is the folder to keep the training in; the same call goes on with it. Without one it is temporary.
    """

    def __init__(
        self,
        recipe: str | TrainRecipe = "cpu",
        distill: str | DistillRecipe | None = "distill-cpu",
        renoise: str | RenoiseRecipe | None = "renoise-cpu",
        *,
        run: str | Path | None = None,
        device: str = "auto",
    ) -> None:
        self.recipe = load_recipe(TrainRecipe, recipe, []) if isinstance(recipe, str) else recipe
        self.distill = load_recipe(DistillRecipe, distill, []) if isinstance(distill, str) else distill
        self.renoise = load_recipe(RenoiseRecipe, renoise, []) if isinstance(renoise, str) else renoise
        channels = {stage.network.channels for stage in (self.recipe, self.distill, self.renoise) if stage}
        if len(channels) > 1:
            raise InputError("recipes", f"are for {channels} channels", "give all the same network.channels")
        self.run, self.start = run, runs.Start(device)
        self._network: Network | None = None

    def fit(self, images: str | Path | Sequence[np.ndarray]) -> Self:
        """Learn from a folder of noisy images, or from arrays (h, w) or (h, w, c), of integers or of floats in [0, 1].

        Raises `InputError` for images that cannot be used.
        """
        source = Path(images) if isinstance(images, str | Path) else images
        with tempfile.TemporaryDirectory(prefix="tbsn-") as temporary:
            run, last = Path(self.run or temporary), "teacher"
            self._network = runs.train(source, run / last, self.recipe, self.start)
            if self.distill:
                last = "student"
                self._network = runs.distill(source, [run / "teacher"], run / last, self.distill, self.start)
            if self.renoise:
                self._network = runs.renoise(source, [run / last], run / "renoised", self.renoise, self.start)
        return self

    def denoise(self, image: np.ndarray) -> np.ndarray:
        """Denoise an array (h, w) or (h, w, c) of any size: same shape and dtype back. Raises `InputError`."""
        return numpy_denoiser(self._learned(), TeacherSettings(), "fitted")(image)

    def save(self, path: str | Path) -> None:
        """Write what denoises to a .safetensors file; `tbsn denoise --model` takes it too."""
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
