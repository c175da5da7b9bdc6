"""The fast student."""

from pathlib import Path

import pytest
import torch
from pydantic import ValidationError
from torch.utils.flop_counter import FlopCounterMode

from tbsn import denoiser
from tbsn.export import export
from tbsn.network import FastUNet, FastUNetConfig
from tbsn.network.files import load_network, parameters, save_network
from tbsn.settings import TeacherSettings
from tbsn.teacher import of_network

TINY = FastUNetConfig(widths=(8, 8), blocks=(1, 1))


def network() -> FastUNet:
    """A small one with weights as if it had learned something."""
    torch.manual_seed(0)
    net = FastUNet(TINY)
    torch.nn.init.normal_(net.output.weight, std=0.1)
    return net.eval()


def test_it_begins_as_the_identity() -> None:
    image = torch.rand(2, 3, 32, 48)
    assert torch.equal(FastUNet()(image), image)


def test_sizes_and_cost() -> None:
    assert parameters(FastUNet()) == 1_321_068
    with FlopCounterMode(display=False) as counter:
        FastUNet()(torch.rand(1, 3, 256, 256))
    assert round(counter.get_total_flops() / 1e9, 1) == 7.8
    with pytest.raises(ValidationError, match="one entry a level"):
        FastUNetConfig(widths=(8, 8), blocks=(1,))


def test_it_is_local() -> None:
    image = torch.rand(1, 3, 96, 96, requires_grad=True)
    network()(image)[0, :, 48, 48].sum().backward()
    assert image.grad is not None
    seen = image.grad[0].abs().sum(0) > 0
    reach = 40
    assert seen[48, 48] and not seen[: 48 - reach].any() and not seen[:, 48 + reach :].any()


def test_file_and_export_compute_the_same(tmp_path: Path) -> None:
    net = network()
    save_network(tmp_path / "model.safetensors", net)
    loaded = load_network(tmp_path / "model.safetensors")
    assert isinstance(loaded, FastUNet) and loaded.config == TINY
    assert export(loaded, tmp_path / "model.onnx") < 1e-5
    image = torch.rand(1, 3, 37, 51)
    in_torch = of_network(loaded, TeacherSettings())(image)[0].permute(1, 2, 0)
    in_onnx = denoiser.load(tmp_path / "model.onnx")(image[0].permute(1, 2, 0).numpy())
    torch.testing.assert_close(torch.from_numpy(in_onnx), in_torch, rtol=0, atol=1e-4)
