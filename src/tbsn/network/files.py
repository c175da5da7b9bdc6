"""Model files: safetensors whose metadata carry the kind, the configuration and a format version. Never a pickle."""

import hashlib
import json
from pathlib import Path

import onnx
import onnx.numpy_helper
import pydantic
import safetensors
import torch
from google.protobuf.message import DecodeError
from safetensors.torch import load_file, save
from torch import Tensor, nn

from tbsn.errors import InputError
from tbsn.files import MODEL, ONNX_FORMAT, atomic
from tbsn.network.fast import FastUNet, FastUNetConfig
from tbsn.network.half_plane import HalfPlane, HalfPlaneConfig
from tbsn.network.tbsn import TBSN, TBSNConfig
from tbsn.network.unet import UNet, UNetConfig
from tbsn.runtime import SEAL, is_intact

FORMAT = "tbsn-model-1"
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


def description(network: Network) -> dict[str, str]:
    """What a model file says of its network, for `load_network`."""
    return {"kind": type(network).__name__, "config": network.config.model_dump_json()}


def save_network(path: Path, network: Network) -> None:
    """Write weights and configuration, whole or not at all."""
    weights = {name: value.detach().cpu().contiguous() for name, value in network.state_dict().items()}
    metadata = {"format": FORMAT} | description(network)
    # Written by safetensors itself, a full disk would not show as OSError.
    data = save(weights, metadata | {SEAL: _hash(weights, metadata)})
    with atomic(path) as partial:
        partial.write_bytes(data)


def load_network(path: Path) -> Network:
    """Read a network, in evaluation mode, on the CPU: a safetensors file, the folder of a run, or an exported student.

    Raises `InputError` for a file that is missing, damaged, of another version or not a model.
    """
    path = path / MODEL if path.is_dir() else path
    if not path.is_file():
        raise InputError(path, "no such model", "name a .safetensors file or the folder of a run")
    read, version = (_read_onnx, ONNX_FORMAT) if path.suffix == ".onnx" else (_read_safetensors, FORMAT)
    state, metadata = read(path)
    if metadata.get("format") != version:
        found = metadata.get("format", "no version")
        raise InputError(
            path, f"model format is {found}, not {version}", "use `tbsn convert`, or a matching tbsn version"
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


def _read_safetensors(path: Path) -> tuple[dict[str, Tensor], dict[str, str]]:
    try:
        with safetensors.safe_open(path, "pt") as file:
            metadata = file.metadata() or {}
        weights = load_file(path)
    except safetensors.SafetensorError as error:
        remedy = "convert released weights with `tbsn convert`, or copy the file again"
        raise InputError(path, f"not a safetensors file, or damaged ({error})", remedy) from error
    seal = metadata.pop(SEAL, None)
    if seal and metadata.get("format") == FORMAT and seal != _hash(weights, metadata):
        raise InputError(path, "damaged: not what was written", "copy the file again")
    return weights, metadata


def _hash(weights: dict[str, Tensor], metadata: dict[str, str]) -> str:
    digest = hashlib.sha256(json.dumps(metadata, sort_keys=True).encode())
    for name, value in sorted(weights.items()):
        digest.update(name.encode() + value.flatten().view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()


def _read_onnx(path: Path) -> tuple[dict[str, Tensor], dict[str, str]]:
    """The weights keep their names in an export; what else is constant there has names without one."""
    try:
        data = path.read_bytes()
        model = onnx.load_from_string(data)
    except (DecodeError, OSError) as error:
        raise InputError(path, f"not an ONNX model, or damaged ({error})", "get the file again") from error
    facts = {entry.key: entry.value for entry in model.metadata_props}
    if not is_intact(data, facts):
        raise InputError(path, "damaged: not the bytes that were exported", "get the file again")
    arrays = {one.name: onnx.numpy_helper.to_array(one) for one in model.graph.initializer if "." in one.name}
    state = {name: torch.from_numpy(array.copy()) for name, array in arrays.items()}
    return state, facts


def parameters(network: nn.Module) -> int:
    """Number of trainable parameters."""
    return sum(p.numel() for p in network.parameters() if p.requires_grad)
