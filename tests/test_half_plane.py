"""The network with a hole: what it sees, at any hole, size and batch."""

from pathlib import Path

import pytest
import torch
from pydantic import ValidationError

from tbsn.network import TBSN, HalfPlane, HalfPlaneConfig, TBSNConfig
from tbsn.network.files import load_network, parameters, save_network
from tbsn.settings import TeacherSettings
from tbsn.teacher import of_network, targets

TINY = HalfPlaneConfig(widths=(8, 8, 8), blocks=(1, 1, 1), head=8)


def network(config: HalfPlaneConfig = TINY) -> HalfPlane:
    torch.manual_seed(0)
    return HalfPlane(config).double()


@pytest.mark.parametrize("hole", [0, 1, 3, None])
@pytest.mark.parametrize("place", [(17, 20), (0, 0), (31, 39)])
def test_it_sees_all_but_a_square(hole: int | None, place: tuple[int, int]) -> None:
    net = network()
    image = torch.rand(2, 3, 32, 40, dtype=torch.float64, requires_grad=True)
    row, col = place
    net(image, hole)[0, :, row, col].sum().backward()
    assert image.grad is not None
    seen = image.grad[0].abs().sum(0) > 0
    radius = TINY.hole if hole is None else hole
    rows, cols = (torch.arange(size) - at for size, at in ((32, row), (40, col)))
    square = (rows.abs() <= radius)[:, None] & (cols.abs() <= radius)
    assert not seen[square].any()
    assert not image.grad[1].any()
    near = (rows.abs() <= radius + 1)[:, None] & (cols.abs() <= radius + 1)
    assert seen[near & ~square].all()


def test_images_of_a_batch_and_turned_images_keep_apart() -> None:
    net = network()
    images = torch.rand(3, 3, 16, 24, dtype=torch.float64)
    together = net(images)
    for image, result in zip(images, together, strict=True):
        torch.testing.assert_close(net(image[None])[0], result)


def test_any_size_and_the_hole_of_the_settings() -> None:
    net = network().eval()
    image = torch.rand(1, 3, 7, 13, dtype=torch.float64)
    wide, narrow = (of_network(net, TeacherSettings(hole=hole))(image) for hole in (None, 0))
    assert wide.shape == narrow.shape == image.shape
    assert not torch.equal(wide, narrow)
    assert torch.equal(wide, of_network(net, TeacherSettings(hole=TINY.hole))(image))


def test_one_target_for_each_hole_beside_those_of_another_teacher() -> None:
    net = network().eval()
    other = TBSN(TBSNConfig(width=8, group_channels=8, blocks=(1, 1, 1), refinement=1)).double().eval()
    image = torch.rand(1, 3, 64, 128, dtype=torch.float64)
    taught = targets([net, other], 2, True, [0.5], [0, 2], seed=0)(image)
    others = targets([other], 2, True, [0.5], [], seed=0)(image)
    assert torch.equal(taught, torch.cat([net(image, 0), net(image, 2), others], dim=1))


def test_its_file_carries_its_configuration(tmp_path: Path) -> None:
    path = tmp_path / "model.safetensors"
    net = network().float()
    save_network(path, net)
    loaded = load_network(path)
    assert isinstance(loaded, HalfPlane)
    assert loaded.config == TINY
    image = torch.rand(1, 3, 16, 16)
    assert torch.equal(loaded(image), net(image))


def test_sizes() -> None:
    assert parameters(HalfPlane()) == 1_065_219
    with pytest.raises(ValidationError, match="one entry a level"):
        HalfPlaneConfig(widths=(8, 8), blocks=(1,))
