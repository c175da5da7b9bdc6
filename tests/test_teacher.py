import pickle

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from tbsn import load
from tbsn import teacher as t
from tbsn.errors import InputError
from tbsn.network import TBSN, TBSNConfig
from tbsn.network.phases import inverse_pd, pd
from tbsn.settings import TeacherSettings


def identity(image: Tensor) -> Tensor:
    return image


@given(st.integers(1, 7), st.integers(1, 3), st.integers(1, 4), st.integers(1, 4), st.integers(1, 4))
def test_pd_is_strided_slices_and_inverts(stride: int, batch: int, channels: int, rows: int, cols: int) -> None:
    image = torch.rand(batch, channels, rows * stride, cols * stride)
    parts = pd(image, stride)
    for index, part in enumerate(parts):
        b, place = divmod(index, stride**2)
        i, j = divmod(place, stride)
        assert torch.equal(part, image[b, :, i::stride, j::stride])
    assert torch.equal(inverse_pd(parts, stride), image)


@pytest.mark.parametrize("shape", [(1, 3, 1, 1), (1, 3, 1, 7), (2, 1, 7, 5), (1, 3, 31, 64), (1, 3, 65, 130)])
def test_any_size_is_padded_to_multiples_and_cropped_back(shape: tuple[int, ...]) -> None:
    image = torch.rand(shape)

    def check(padded: Tensor) -> Tensor:
        assert padded.shape[-2] % 64 == padded.shape[-1] % 64 == 0
        assert set(padded.unique().tolist()) == set(image.unique().tolist())
        return padded

    assert torch.equal(t.padded(check, 64)(image), image)


def test_padding_reflects() -> None:
    row = torch.arange(4.0).reshape(1, 1, 1, 4)
    seen = []
    t.padded(lambda x: seen.append(x) or x, 8)(row)
    assert seen[0][0, 0, 0].tolist() == [0, 1, 2, 3, 2, 1, 0, 1]


@pytest.mark.parametrize(("probability", "seen"), [(0.0, "first"), (1.0, "noisy")])
def test_refinement_puts_back_nothing_or_everything(probability: float, seen: str) -> None:
    noisy = torch.rand(1, 3, 8, 8)
    run = t.refined(lambda x: x / 2, lambda x: x**2, t.random_masks(3, probability, seed=0))
    torch.testing.assert_close(run(noisy), (noisy / 2 if seen == "first" else noisy) ** 2)


def test_masks_are_drawn_for_each_value_and_follow_the_seed() -> None:
    shape = torch.Size((1, 3, 100, 100))
    one, two = t.random_masks(2, 0.16, seed=1)(shape)
    again, _ = t.random_masks(2, 0.16, seed=1)(shape)
    (other,) = t.random_masks(1, 0.16, seed=2)(shape)
    assert torch.equal(one, again) and not torch.equal(one, two) and not torch.equal(one, other)
    assert abs(one.float().mean() - 0.16) < 0.01
    assert not torch.equal(one[:, 0], one[:, 1])


def test_the_teacher_of_numpy_images_can_be_sent_to_other_processes_and_keeps_its_tiles(bsn: TBSN) -> None:
    denoise = t.numpy_denoiser(bsn, TeacherSettings(passes=0), "bsn")
    again = pickle.loads(pickle.dumps(denoise))
    image = np.random.default_rng(0).integers(0, 256, (30, 20, 3), np.uint8)
    assert np.array_equal(again(image), denoise(image))
    assert again.within(0, 1000).tiling == t.ATTENTIVE


@pytest.fixture(scope="module")
def bsn() -> TBSN:
    torch.manual_seed(0)
    return TBSN(TBSNConfig(width=8, group_channels=8, blocks=(1, 1, 1), refinement=1)).eval()


@pytest.mark.parametrize("size", [(1, 1), (37, 50)])
def test_the_teacher_takes_any_size_and_is_reproducible(bsn: TBSN, size: tuple[int, int]) -> None:
    image = torch.rand(1, 3, *size)
    one, again, other = (t.teacher(bsn, TeacherSettings(passes=2, seed=seed))(image) for seed in (0, 0, 1))
    assert one.shape == image.shape and not one.requires_grad
    assert torch.equal(one, again) and not torch.equal(one, other)


def test_a_network_brings_its_stride_and_at_full_resolution_there_is_no_refinement(bsn: TBSN) -> None:
    image = torch.rand(1, 3, 64, 64)
    whole = TBSN(bsn.config.model_copy(update={"pd": 1})).eval()
    whole.load_state_dict(bsn.state_dict())
    torch.testing.assert_close(t.teacher(whole, TeacherSettings())(image), bsn(image))
    papers = TeacherSettings(stride=2, passes=8)
    torch.testing.assert_close(t.teacher(bsn, TeacherSettings())(image), t.teacher(bsn, papers)(image))


def test_targets_are_the_pass_and_its_refinements(bsn: TBSN) -> None:
    image = torch.rand(1, 3, 64, 64)
    estimate, smooth, sharp = t.targets([bsn], 2, True, [0.0, 0.5], [], seed=0)(image).chunk(3, dim=1)
    torch.testing.assert_close(estimate, t.teacher(bsn, TeacherSettings(passes=0))(image))
    torch.testing.assert_close(smooth, t.teacher(bsn, TeacherSettings(passes=1, probability=0.0))(image))
    torch.testing.assert_close(sharp, t.teacher(bsn, TeacherSettings(passes=1, probability=0.5, seed=1))(image))


def test_a_teacher_is_told_nothing_that_it_has_no_use_for() -> None:
    with pytest.raises(InputError, match="no use for --hole"):
        load("teacher", TeacherSettings(hole=1))
