"""From what a user names to a denoiser of float images."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from tbsn import denoiser
from tbsn.evaluation.baselines import BASELINES


def resolve(name: str, teacher_settings: dict[str, Any]) -> Callable[[np.ndarray], np.ndarray]:
    """A baseline, or a model by name or path; a blind-spot network becomes a teacher with the given settings."""
    if name in BASELINES:
        return BASELINES[name]
    path = Path(name)
    if path.suffix == ".safetensors" or path.is_dir():
        from tbsn.teacher import load_denoiser

        return load_denoiser(path, **teacher_settings)
    return denoiser.load(name)
