import json
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from pydantic import ValidationError
from safetensors.torch import load_file, save_file
from torch import Tensor

from conftest import reference
from literal import LiteralTBSN
from tbsn.errors import InputError
from tbsn.network import TBSN, TBSNConfig, UNet, attention, released
from tbsn.network.files import parameters
from tbsn.network.phases import pd
from tbsn.network.tbsn import Norm
from tbsn.teacher import downsampled, refined

TINY = TBSNConfig(width=8, group_channels=8, blocks=(1, 1, 1), refinement=1)


def network(config: TBSNConfig = TINY, seed: int = 0) -> TBSN:
    torch.manual_seed(seed)
    net = TBSN(config).double()
    for name, value in net.named_parameters():
        if "norms" in name or "temperature" in name:
            torch.nn.init.uniform_(value, 0.5, 1.5)
    return net


def test_default_sizes_are_the_papers() -> None:
    assert parameters(TBSN()) == 12_746_780
    assert parameters(UNet()) == 1_083_747


CASES = [
    (TINY, (1, 3, 32, 32)),
    (TINY, (2, 3, 64, 32)),
    (TINY.model_copy(update={"blocks": (1, 2, 1), "refinement": 2}), (1, 3, 32, 96)),
    (TINY.model_copy(update={"width": 16, "heads": (1, 2, 2), "head_dim": 8}), (3, 3, 32, 32)),
    (TINY.model_copy(update={"channels": 1}), (1, 1, 64, 64)),
    (TINY.model_copy(update={"channels": 4}), (1, 4, 32, 64)),
    (TINY.model_copy(update={"window": 16}), (1, 3, 64, 128)),
    (TINY.model_copy(update={"channel_attention": "ungrouped"}), (1, 3, 32, 32)),
    (TINY.model_copy(update={"channel_attention": "off"}), (1, 3, 32, 32)),
    (TINY.model_copy(update={"spatial_attention": False}), (1, 3, 32, 32)),
    (TINY.model_copy(update={"spatial_attention": False, "channel_attention": "off"}), (2, 3, 32, 32)),
]


@pytest.mark.parametrize("recompute", [False, True])
@pytest.mark.parametrize(("config", "shape"), CASES)
def test_lattice_equals_literal(config: TBSNConfig, shape: tuple[int, ...], recompute: bool) -> None:
    net = network(config)
    net.set_recompute(recompute)
    image = torch.rand(shape, dtype=torch.float64, requires_grad=True)
    target = torch.rand(shape, dtype=torch.float64)
    inputs = [image, *net.parameters()]

    def outcome(form: torch.nn.Module) -> Iterator[Tensor]:
        output = form(image)
        yield output
        yield from torch.autograd.grad(((output - target) ** 2).sum(), inputs)

    for ours, literal in zip(outcome(net), outcome(LiteralTBSN(net)), strict=True):
        assert (ours - literal).abs().max() <= 1e-12 * literal.abs().max()


@pytest.mark.parametrize("at_once", [1, 3 * 16 * 16, 2**20])
@pytest.mark.parametrize(("config", "shape"), CASES)
def test_inference_in_pieces_equals_the_training_pass(
    config: TBSNConfig, shape: tuple[int, ...], at_once: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("tbsn.network.tbsn.PIXELS_AT_ONCE_CPU", at_once)
    net, image = network(config), torch.rand(shape, dtype=torch.float64)
    before = image.clone()
    whole = net(image)
    with torch.no_grad():
        assert (net(image) - whole).abs().max() <= 1e-12 * whole.abs().max()
    assert torch.equal(image, before)


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float64, 1e-12), (torch.float32, 1e-5)])
def test_reproduces_the_released_outputs(dtype: torch.dtype, tolerance: float) -> None:
    stored = np.load(reference("tbsn_tiny_io.npz"))
    net = released.load_released(reference("tbsn_tiny_weights.safetensors")).to(dtype)
    shape = stored["replace_masks_shape"]
    masks = np.unpackbits(stored["replace_masks"])[: shape.prod()].reshape(shape).astype(bool)
    image = torch.from_numpy(stored["image"]).to(dtype) / 255
    pd2 = downsampled(net, 2)
    results = {
        "y": net(torch.from_numpy(stored["x"]).to(dtype) / 255),
        "pd2": pd2(image),
        "r3_mean": refined(pd2, net, lambda _: map(torch.from_numpy, masks))(image),
        "teacher_target": refined(pd2, net, lambda size: iter([torch.zeros(size, dtype=torch.bool)]))(image),
    }
    for name, result in results.items():
        error = np.abs(255 * result.detach().numpy() - stored[name]).max()
        assert error <= tolerance * np.abs(stored[name]).max(), name


def full_size_state() -> dict[str, Tensor]:
    shapes = json.loads(reference("released_state_dict.json").read_text())
    return {name: torch.randn(shape) for name, shape in shapes.items()}


def test_loads_every_entry_of_the_released_layout() -> None:
    state = full_size_state()
    config, weights = released.convert_released(state)
    assert config == TBSNConfig()
    TBSN(config).load_state_dict(weights, strict=True)
    taken = sum(not name.endswith(released.CONSTANTS) for name in state)
    assert len(weights) == taken and len({value.data_ptr() for value in weights.values()}) == taken


@pytest.mark.parametrize(
    "missing", ["patch_embed.proj.weight", "down2_3.body.0.weight", "encoder_level2.1.spatial_ffn.project_in.weight"]
)
def test_conversion_names_a_missing_entry(missing: str) -> None:
    state = load_file(reference("tbsn_tiny_weights.safetensors"))
    del state[missing]
    with pytest.raises(ValueError, match=missing):
        released.convert_released(state)


def test_conversion_refuses_levels_that_do_not_match() -> None:
    state = load_file(reference("tbsn_tiny_weights.safetensors"))
    short = {name: value for name, value in state.items() if not name.startswith("encoder_level2.1.")}
    with pytest.raises(ValueError, match=r"decoder_level2\.1\."):
        released.convert_released(short)


def test_conversion_names_an_unknown_entry() -> None:
    state = load_file(reference("tbsn_tiny_weights.safetensors"))
    with pytest.raises(ValueError, match=r"stranger\.weight"):
        released.convert_released({**state, "stranger.weight": torch.zeros(1)})


def test_wrapped_and_prefixed_checkpoints_are_found(tmp_path: Path) -> None:
    state = load_file(reference("tbsn_tiny_weights.safetensors"))
    wrapped = {"epoch": 3, "params": {f"module.bsn.{name}": value for name, value in state.items()}}
    torch.save(wrapped, tmp_path / "wrapped.pth")
    net = released.load_released(tmp_path / "wrapped.pth")
    assert torch.equal(net.embed.weight, state["patch_embed.proj.weight"])


class Evil:
    def __reduce__(self) -> tuple[object, ...]:
        return (Path.touch, (Path("evil-was-run"),))


def test_what_is_not_a_released_checkpoint_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    state = load_file(reference("tbsn_tiny_weights.safetensors"))
    save_file({**state, "stranger.weight": torch.zeros(1)}, tmp_path / "unknown.safetensors")
    save_file({name: value for name, value in state.items() if "down2_3" not in name}, tmp_path / "short.safetensors")
    save_file({"weight": torch.zeros(1)}, tmp_path / "other.safetensors")
    torch.save({"state": Evil()}, tmp_path / "evil.pth")
    (tmp_path / "empty.pth").write_bytes(b"")
    complaints = {
        "unknown.safetensors": "stranger.weight",
        "short.safetensors": "down2_3.body.0.weight",
        "other.safetensors": "patch_embed",
        "evil.pth": "cannot be read",
        "empty.pth": "cannot be read",
        "absent.pth": "no such file",
    }
    for name, complaint in complaints.items():
        with pytest.raises(InputError, match=complaint):
            released.load_released(tmp_path / name)
    assert not (tmp_path / "evil-was-run").exists()


POSITIONS = [(0, 0), (0, 31), (63, 0), (63, 31), (0, 17), (40, 31), (32, 16), (29, 14)]


def own_and_all(net: TBSN, position: tuple[int, int]) -> Tensor:
    """The gradient of one output pixel's channels, summed, with respect to the image."""
    image = torch.rand(1, 3, 64, 32, dtype=torch.float64, requires_grad=True)
    weights = torch.tensor([1.0, -0.7, 0.4], dtype=torch.float64)
    (gradient,) = torch.autograd.grad((net(image)[0, :, position[0], position[1]] * weights).sum(), image)
    return gradient[0]


@pytest.mark.parametrize("position", POSITIONS)
def test_a_pixel_never_sees_itself(position: tuple[int, int], monkeypatch: pytest.MonkeyPatch) -> None:
    matrix = attention.channel_attention_matrix
    monkeypatch.setattr(attention, "channel_attention_matrix", lambda *qkt: matrix(*qkt).detach())
    gradient = own_and_all(network(), position)
    assert torch.equal(gradient[:, position[0], position[1]], torch.zeros(3, dtype=torch.float64))
    reached = gradient.abs().roll((-position[0], -position[1]), (1, 2))
    assert not reached[:, ::2, ::2].any()  # odd plus even is never even: nor any other pixel of its parity
    for row, col in ((0, 1), (1, 0), (1, 1)):
        assert reached[:, row::2, col::2].max() > 0


@pytest.mark.parametrize("position", POSITIONS)
def test_the_leak_of_channel_attention_is_small(position: tuple[int, int]) -> None:
    gradient = own_and_all(network(), position).abs()
    leak = gradient[:, position[0], position[1]].max() / gradient.max()
    assert 0 < leak < 1e-2


def test_the_phases_are_the_parity_classes() -> None:
    x = torch.rand(2, 3, 8, 6)
    for index, phase in enumerate(pd(x, 2)):
        image, parity = divmod(index, 4)
        assert torch.equal(phase, x[image, :, parity // 2 :: 2, parity % 2 :: 2])


def test_the_norm_does_not_subtract_the_mean() -> None:
    x = torch.randn(2, 8, 4, 4, dtype=torch.float64)
    norm = Norm(8).double()
    expected = (x + 5) / torch.sqrt(x.var(1, keepdim=True, unbiased=False) + 1e-5)
    torch.testing.assert_close(norm(x + 5), expected)


@pytest.mark.parametrize(
    "wrong", [{"window": 12}, {"width": 20}, {"width": 0}, {"widht": 48}, {"channel_attention": "on"}]
)
def test_impossible_configurations_are_refused(wrong: dict[str, object]) -> None:
    with pytest.raises(ValidationError, match=next(iter(wrong))):
        TBSNConfig(**wrong)


@pytest.mark.parametrize("size", [(32, 48), (48, 32)])
def test_sides_must_be_multiples(size: tuple[int, int]) -> None:
    with pytest.raises(ValueError, match="multiples of 32"):
        TBSN(TINY)(torch.zeros(1, 3, *size))
