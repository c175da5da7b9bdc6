"""Model files: safetensors whose metadata carry the kind, the configuration and a format version. Never a pickle."""

import json
from pathlib import Path

import pydantic
import safetensors
import torch
from safetensors.torch import load_file, save
from torch import nn

from tbsn.errors import InputError
from tbsn.files import atomic
from tbsn.network.fast import FastUNet, FastUNetConfig
from tbsn.network.half_plane import HalfPlane, HalfPlaneConfig
from tbsn.network.tbsn import TBSN, TBSNConfig
from tbsn.network.unet import UNet, UNetConfig

FORMAT = "tbsn-model-1"
MODEL = "model.safetensors"
Student = UNet | FastUNet
Network = TBSN | HalfPlane | Student
Config = TBSNConfig | HalfPlaneConfig | UNetConfig | FastUNetConfig
NETWORKS: dict[str, tuple[type[Config], type[Network]]] = {
    "TBSN": (TBSNConfig, TBSN),
    "HalfPlane": (HalfPlaneConfig, HalfPlane),
    "UNet": (UNetConfig, UNet),
    "FastUNet": (FastUNetConfig, FastUNet),
}


def build(config: Config) -> Network:
    """The network of a configuration, its weights laid out channels last, which convolutions are faster on."""
    network = NETWORKS[config.kind][1](config)  # type: ignore[arg-type]
    return network.to(memory_format=torch.channels_last)  # type: ignore[call-overload]


def save_network(path: Path, network: Network) -> None:
    """Write weights and configuration, whole or not at all."""
    metadata = {"format": FORMAT, "kind": type(network).__name__, "config": network.config.model_dump_json()}
    weights = {name: value.detach().cpu().contiguous() for name, value in network.state_dict().items()}
    data = save(weights, metadata)  # written by safetensors itself, a full disk would not show as OSError
    with atomic(path) as partial:
        partial.write_bytes(data)


def load_network(path: Path) -> Network:
    """Read a network, in evaluation mode, on the CPU. ``path`` may be the folder of a run.

    Raises `InputError` for a file that is missing, damaged, of another version or not a model.
    """
    path = path / MODEL if path.is_dir() else path
    if not path.is_file():
        raise InputError(path, "no such model", "name a .safetensors file or the folder of a run")
    try:
        with safetensors.safe_open(path, "pt") as file:
            metadata = file.metadata() or {}
        state = load_file(path)
    except safetensors.SafetensorError as error:
        remedy = "convert released weights with `tbsn convert`, or copy the file again"
        raise InputError(path, f"not a safetensors file, or damaged ({error})", remedy) from error
    if metadata.get("format") != FORMAT:
        found = metadata.get("format", "no version")
        raise InputError(
            path, f"model format is {found}, not {FORMAT}", "use `tbsn convert`, or a matching tbsn version"
        )
    try:
        kind, _ = NETWORKS[metadata["kind"]]
        network = build(kind(**json.loads(metadata["config"])))
        network.load_state_dict(state)
    except (KeyError, ValueError, RuntimeError, pydantic.ValidationError) as error:
        raise InputError(path, f"weights do not fit their description ({error})", "get the model file again") from error
    if not all(value.isfinite().all() for value in network.state_dict().values() if isinstance(value, torch.Tensor)):
        raise InputError(path, "weights are not finite", "train again, or take an earlier checkpoint")
    return network.eval()


def parameters(network: nn.Module) -> int:
    """Number of trainable parameters."""
    return sum(p.numel() for p in network.parameters() if p.requires_grad)
