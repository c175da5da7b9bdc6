"""Reads the layout of the released TBSN checkpoints into ours."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch import Tensor

from tbsn.errors import InputError
from tbsn.network.tbsn import TBSN, TBSNConfig

State = dict[str, Tensor]

PARTS = {
    "channel_attn.temperature": "parts.0.temperature",
    "channel_attn.qkv.weight": "parts.0.qkv.weight",
    "channel_attn.qkv_dwconv.weight": "parts.0.depthwise.weight",
    "channel_attn.project_out.weight": "parts.0.project.weight",
    "channel_ffn.project_in.weight": "parts.1.0.weight",
    "channel_ffn.project_out.weight": "parts.1.2.weight",
    "spatial_attn.qkv.weight": "parts.2.qkv.weight",
    "spatial_attn.project_out.weight": "parts.2.project.weight",
    "spatial_attn.rel_pos_emb.rel_height": "parts.2.rel_row",
    "spatial_attn.rel_pos_emb.rel_width": "parts.2.rel_col",
    "spatial_ffn.project_in.weight": "parts.3.0.weight",
    "spatial_ffn.project_out.weight": "parts.3.2.weight",
    **{f"norm{i + 1}.body.weight": f"norms.{i}.weight" for i in range(4)},
}
TRUNK = {
    "patch_embed.proj.weight": "embed.weight",
    "down1_2.body.0.weight": "downs.0.0.weight",
    "down2_3.body.0.weight": "downs.1.0.weight",
    "up3_2.body.0.weight": "ups.0.0.weight",
    "up2_1.body.0.weight": "ups.1.0.weight",
    "reduce_chan_level2.weight": "reduces.0.weight",
    "output.weight": "output.weight",
}
CONSTANTS = ("attention_mask", "proj.mask")
MARK = "patch_embed.proj.weight"


def load_released(path: Path) -> TBSN:
    """Read a released checkpoint, .pth or .safetensors, as a network; pickles are read as tensors only.

    Raises `InputError` for a file that is missing, damaged, or holds something else.
    """
    if not path.is_file():
        raise InputError(path, "no such file", "check the name")
    try:
        is_pickle = path.suffix != ".safetensors"
        checkpoint = torch.load(path, map_location="cpu", weights_only=True) if is_pickle else load_file(path)
    except Exception as error:  # torch raises many types for a damaged or unsafe pickle
        reason = (str(error) or type(error).__name__).splitlines()[0]
        raise InputError(path, f"cannot be read as weights ({reason})", "download it again") from error
    state = find_released(checkpoint)
    if state is None:
        raise InputError(path, f"holds no {MARK}", "name the weights of a released TBSN")
    try:
        config, weights = convert_released(state)
        network = TBSN(config)
        network.load_state_dict(weights)
    except (ValueError, RuntimeError) as error:
        raise InputError(path, str(error), "name the weights of a released TBSN") from error
    return network


def find_released(checkpoint: object) -> State | None:
    """The flat state inside a checkpoint that may wrap it in dictionaries and prefixes; None if there is none."""
    if not isinstance(checkpoint, Mapping):
        return None
    marks = [key for key in checkpoint if isinstance(key, str) and key.endswith(MARK)]
    if marks:
        prefix = marks[0].removesuffix(MARK)
        return {key.removeprefix(prefix): value for key, value in checkpoint.items() if key.startswith(prefix)}
    found = (find_released(value) for value in checkpoint.values())
    return next((state for state in found if state is not None), None)


def convert_released(state: Mapping[str, Any]) -> tuple[TBSNConfig, State]:
    """The configuration and the weights, under our names, of a flat released state.

    Raises `ValueError` that names an entry if it is unknown or missing.
    """
    try:
        config = _config(state)
        names = _names(config)
        weights = {ours: state[theirs] for theirs, ours in names.items()}
    except KeyError as missing:
        raise ValueError(f"not a released TBSN checkpoint: {missing} is missing") from None
    for key in state:
        if key not in names and not key.endswith(CONSTANTS):
            raise ValueError(f"not a released TBSN checkpoint: {key} is unknown")
    return config, {name: value.reshape(-1, 1, 1) if ".norms." in name else value for name, value in weights.items()}


def _names(config: TBSNConfig) -> dict[str, str]:
    """Every released name with ours."""
    high, middle, low = config.blocks
    levels = [
        ("encoder_level1", "encoder.0", 0, high),
        ("encoder_level2", "encoder.1", 0, middle),
        ("latent", "latent", 0, low),
        ("decoder_level2", "decoder.0", 0, middle),
        ("decoder_level1", "decoder.1", 0, high),
        ("refinement", "decoder.1", high, config.refinement),
    ]
    return TRUNK | {
        f"{theirs}.{i}.{part}": f"{ours}.{first + i}.{our_part}"
        for theirs, ours, first, count in levels
        for i in range(count)
        for part, our_part in PARTS.items()
    }


def _config(state: Mapping[str, Any]) -> TBSNConfig:
    def count(level: str) -> int:
        return sum(key.startswith(f"{level}.") and key.endswith("norm1.body.weight") for key in state)

    def heads(level: str) -> int:
        return state[f"{level}.0.spatial_attn.qkv.weight"].shape[0] // (3 * head_dim)

    width, channels = state[MARK].shape[:2]
    reach, head_dim = state["latent.0.spatial_attn.rel_pos_emb.rel_height"].shape
    return TBSNConfig(
        channels=channels,
        width=width,
        blocks=(count("encoder_level1"), count("encoder_level2"), count("latent")),
        refinement=count("refinement"),
        heads=(heads("encoder_level1"), heads("encoder_level2"), heads("latent")),
        head_dim=head_dim,
        window=(reach + 1) // 3,
        group_channels=4 * width // state["latent.0.channel_attn.temperature"].shape[0],
    )
