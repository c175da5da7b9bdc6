"""Denoisers for numpy images: the ONNX students, and, if torch is there, every model file."""

from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from tbsn.errors import InputError
from tbsn.images import from_float, to_float
from tbsn.noise import METHOD, combine, survey
from tbsn.runtime import AUTO, CPU, open_student
from tbsn.settings import TeacherSettings
from tbsn.tiles import tiled

PRETRAINED = Path(__file__).parent / "pretrained"
DEFAULT = "default"
TRUST = 1.5
PICKLES = (".pth", ".pt", ".ckpt", ".pkl")


@dataclass(frozen=True)
class Denoiser:
    """Denoises numpy images (h, w) or (h, w, c) of any size and any integer or float dtype: same shape and dtype back.

    ``function`` maps float32 (h, w, c) in [0, 1] to the same; ``channels`` is the c it needs. Grey images pass through
    a colour model as three equal channels. ``strength`` is how much of what the function takes out is taken, from 0 to
    1; None is as much as there can be noise, see `trusted`.
    """

    function: Callable[[np.ndarray], np.ndarray]
    channels: int
    name: str
    strength: float | None = 1.0

    def __call__(self, image: np.ndarray) -> np.ndarray:
        """Raises `InputError` for NaN or infinite values and a number of channels that the model does not know."""
        values = to_float(image[..., None] if image.ndim == 2 else image)
        if values.ndim != 3 or 0 in values.shape or values.shape[2] not in (1, self.channels):
            raise InputError("image", f"has shape {image.shape}", f"give (h, w), (h, w, 1) or (h, w, {self.channels})")
        if not np.isfinite(values).all():
            raise InputError("image", "has NaN or infinite values", "replace them by finite ones")
        colour = np.repeat(values, self.channels // values.shape[2], axis=2)
        denoised = tiled(self.function)(colour)
        grey = denoised.mean(axis=2, keepdims=True) if values.shape[2] < self.channels else denoised
        strength = trusted(values, grey) if self.strength is None else self.strength
        blended = grey if strength == 1 else values + np.float32(strength) * (grey - values)
        return from_float(blended, image.dtype).reshape(image.shape)


def trusted(noisy: np.ndarray, denoised: np.ndarray) -> float:
    """How much of what was taken out of an image (h, w, c) can have been noise, from 0 to 1.

    A student that takes more than TRUST times the noise that is measured there (`tbsn.noise`) takes texture for noise.
    """
    if min(noisy.shape[:2]) < METHOD.patch:
        return 1.0
    most = TRUST * float(np.sqrt((combine([survey(noisy)]).level ** 2).mean()))
    removed = float(np.sqrt(np.mean((noisy - denoised) ** 2)))
    return most / removed if removed > most else 1.0


def load(
    model: str | Path = DEFAULT,
    teacher: TeacherSettings = TeacherSettings(),
    strength: float | None = None,
    device: str = AUTO,
) -> Denoiser:
    """A denoiser by name (``default`` and ``unet``: the students in the package, fast and of the paper's shape) or
    path: an ONNX file, or with torch a safetensors file or the folder of a run. A blind-spot network runs as a teacher
    with the settings ``teacher``. ``strength`` is how much of the noise to take, from 0 to 1; by default as much as
    there can be, see `trusted`. ``device`` is where an ONNX file runs, see `tbsn.runtime`.

    Raises `InputError` for a model that is missing, damaged, a pickle, or of another version, for a strength outside
    [0, 1], and for a device that is not there.
    """
    if strength is not None and not 0 <= strength <= 1:
        raise InputError(f"strength {strength}", "not from 0 to 1", "give 1 for all of the noise, 0 for none")
    return replace(_load(find(model), teacher, device), strength=strength)


def _load(path: Path, teacher: TeacherSettings, device: str) -> Denoiser:
    if path.suffix in PICKLES:
        raise InputError(path, "is a pickle, which can run code", "make a safetensors file of it with `tbsn convert`")
    if path.suffix == ".onnx":
        student = open_student(path, device)
        return Denoiser(student, student.channels, path.stem)
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
    path = PRETRAINED / f"{model}.onnx"
    return path if path.is_file() else Path(model)
