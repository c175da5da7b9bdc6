"""Denoisers for numpy images: the ONNX students, and, if torch is there, every model file."""

from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from tbsn.errors import InputError
from tbsn.files import ONNX_FORMAT
from tbsn.images import from_float, to_float
from tbsn.settings import TeacherSettings
from tbsn.tiles import reflected, tiled

PRETRAINED = Path(__file__).parent / "pretrained"
DEFAULT = "default"
PICKLES = (".pth", ".pt", ".ckpt", ".pkl")


@dataclass(frozen=True)
class Denoiser:
    """Denoises numpy images (h, w) or (h, w, c) of any size and any integer or float dtype: same shape and dtype back.

    ``function`` maps float32 (h, w, c) in [0, 1] to the same; ``channels`` is the c it needs. Grey images pass through
    a colour model as three equal channels.
    """

    function: Callable[[np.ndarray], np.ndarray]
    channels: int
    name: str

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
        return from_float(grey, image.dtype).reshape(image.shape)

    def at(self, strength: float) -> "Denoiser":
        """The same denoiser, part of the way: 0 keeps all of the noise, 1 none. Raises `InputError` outside [0, 1]."""
        if not 0 <= strength <= 1:
            raise InputError(f"strength {strength}", "not from 0 to 1", "give 1 for all of the denoising, 0 for none")
        share = np.float32(strength)
        return replace(self, function=lambda image: image + share * (self.function(image) - image))


def load(model: str | Path = DEFAULT, teacher: TeacherSettings = TeacherSettings()) -> Denoiser:
    """A denoiser by name (``default`` and ``unet``: the students in the package, fast and of the paper's shape) or
    path: an ONNX file, or with torch a safetensors file or the folder of a run. A blind-spot network runs as a teacher
    with the settings ``teacher``.

    Raises `InputError` for a model that is missing, damaged, a pickle, or of another version.
    """
    path = find(model)
    if path.suffix in PICKLES:
        raise InputError(path, "is a pickle, which can run code", "make a safetensors file of it with `tbsn convert`")
    if path.suffix == ".onnx":
        return _load_onnx(path)
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


def _load_onnx(path: Path) -> Denoiser:
    import onnxruntime as ort

    if not path.is_file():
        raise InputError(path, "no such model", "check the name")
    options = ort.SessionOptions()
    options.log_severity_level = 4
    try:
        session = ort.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    except Exception as error:  # ONNX Runtime's exceptions share no public base
        reason = f"not an ONNX model, or damaged ({type(error).__name__})"
        raise InputError(path, reason, "get the file again, or export it with `tbsn export`") from error
    facts: dict[str, str] = session.get_modelmeta().custom_metadata_map
    if facts.get("format") != ONNX_FORMAT:
        found = facts.get("format", "none")
        raise InputError(path, f"model format is {found}, not {ONNX_FORMAT}", "export it with this version of tbsn")

    def run(image: np.ndarray) -> np.ndarray:
        batch = np.ascontiguousarray(image.transpose(2, 0, 1))[None]
        output: Any = session.run(None, {"noisy": batch})[0]
        return output[0].transpose(1, 2, 0)

    return Denoiser(reflected(run, int(facts["multiple"])), int(facts["channels"]), path.stem)
