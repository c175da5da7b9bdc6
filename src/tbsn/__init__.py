"""Denoise images with networks that learned from noisy images alone.

``tbsn.load()`` gives a denoiser for numpy images.
"""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from tbsn.denoiser import Denoiser, load
    from tbsn.errors import InputError

__all__ = ["Denoiser", "InputError", "load"]


def __getattr__(name: str) -> Any:
    # Lazily, so that `tbsn --help` imports neither numpy nor ONNX Runtime.
    if name in ("Denoiser", "load"):
        from tbsn import denoiser

        return getattr(denoiser, name)
    if name == "InputError":
        from tbsn.errors import InputError

        return InputError
    raise AttributeError(f"module 'tbsn' has no attribute {name!r}")
