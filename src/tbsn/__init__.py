"""Denoise images with networks that learned from noisy images alone.

``tbsn.load()`` gives a denoiser for numpy images; ``tbsn.SelfSupervisedDenoiser`` learns one from your own.
"""

import os
from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from tbsn.denoiser import Denoiser, load
    from tbsn.errors import InputError
    from tbsn.estimator import SelfSupervisedDenoiser

# ONNX Runtime would tell its maker of every use, the model's name included. It looks here when it is imported.
os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")

__all__ = ["Denoiser", "InputError", "SelfSupervisedDenoiser", "load"]

HOMES = {"Denoiser": "denoiser", "InputError": "errors", "SelfSupervisedDenoiser": "estimator", "load": "denoiser"}


def __getattr__(name: str) -> Any:
    # Lazily, so that `tbsn --help` imports neither numpy nor ONNX Runtime.
    if name not in HOMES:
        raise AttributeError(f"module 'tbsn' has no attribute {name!r}")
    return getattr(import_module(f"tbsn.{HOMES[name]}"), name)
