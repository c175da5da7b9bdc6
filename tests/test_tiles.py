import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tbsn.tiles import plan, reflected, tiled


@given(st.integers(1, 5000), st.integers(400, 800), st.integers(0, 60), st.integers(1, 60))
def test_weights_sum_to_one_everywhere(length: int, size: int, margin: int, feather: int) -> None:
    total = np.zeros(length)
    for place, weight in plan(length, size, margin, feather):
        assert 0 < place.stop - place.start <= size
        total[place] += weight
    np.testing.assert_allclose(total, 1, atol=1e-6)


def test_a_local_function_is_the_same_in_tiles() -> None:
    image = np.random.default_rng(0).random((301, 423, 3), np.float32)

    def shifts(x: np.ndarray) -> np.ndarray:
        return (
            sum(np.roll(np.pad(x, ((9, 9), (9, 9), (0, 0)), "reflect"), s, (0, 1))[9:-9, 9:-9] for s in (-9, 0, 9)) / 3
        )

    np.testing.assert_allclose(tiled(shifts, size=128, margin=16, feather=16)(image), shifts(image), atol=1e-6)


def test_tiles_start_where_a_network_that_halves_its_input_can() -> None:
    assert all(place.start % 32 == 0 for place, _ in plan(10_000, 896, 48, 32))


def test_too_large_an_overlap_is_refused() -> None:
    with pytest.raises(ValueError, match="overlap"):
        plan(100, 64, 32, 8)


@pytest.mark.parametrize("shape", [(1, 1, 3), (1, 9, 1), (7, 5, 3), (64, 33, 3)])
def test_reflected_gives_multiples_and_crops_back(shape: tuple[int, int, int]) -> None:
    image = np.random.default_rng(0).random(shape, np.float32)

    def check(padded: np.ndarray) -> np.ndarray:
        assert padded.shape[0] % 32 == padded.shape[1] % 32 == 0
        return padded

    assert np.array_equal(reflected(check, 32)(image), image)
