"""The views of a photo are what the eye should see of it, pixel for pixel."""

from pathlib import Path

import numpy as np
import pytest
import pyvips

from conftest import save
from tbsn import images
from tbsn.errors import InputError
from tbsn.web import preview
from tbsn.web.sessions import Files

RANDOM = np.random.default_rng(0)


def shown(photo: Path) -> np.ndarray:
    preview.show(photo, photo, photo.parent)
    return images.read(photo.parent / "before.png").pixels


@pytest.mark.parametrize("shape", [(30, 40), (30, 40, 3), (30, 40, 5)])
@pytest.mark.parametrize(("dtype", "scale"), [(np.uint8, 1), (np.uint16, 257), (np.float32, 1 / 255)])
def test_every_depth_is_seen_as_8_bits(tmp_path: Path, shape: tuple[int, ...], dtype: type, scale: float) -> None:
    levels = RANDOM.integers(0, 256, shape)
    view = shown(save(tmp_path / "a.tif", (levels * scale).astype(dtype)))
    assert view.dtype == np.uint8 and np.array_equal(view, levels.reshape(30, 40, -1)[..., :3])


def test_floats_beyond_one_are_not_white(tmp_path: Path) -> None:
    counts = np.linspace(100, 900, 30 * 40, dtype=np.float32).reshape(30, 40)
    view = shown(save(tmp_path / "counts.tif", counts))
    assert view[0, 0, 0] == 0 and view[-1, -1, 0] == 255


@pytest.mark.parametrize(("named", "saved"), [("a.jpg", "a_denoised.png"), ("a.ome.tif", "a_denoised.ome.tif")])
def test_a_result_is_named_as_the_command_names_it(photo: Path, tmp_path: Path, named: str, saved: str) -> None:
    if named.endswith(".tif"):
        photo = save(tmp_path / "photo.tif", images.read(photo).pixels)
    files = Files(tmp_path / "session")
    files.take(photo.rename(tmp_path / named))
    assert files.result.name == saved


def test_alpha_does_not_make_a_photo_dark(tmp_path: Path) -> None:
    levels = RANDOM.integers(0, 4096, (30, 40, 4)).astype(np.uint16)
    levels[..., 3] = 65535
    assert shown(save(tmp_path / "a.tif", levels))[..., :3].max() == 255


def test_a_photo_stands_as_it_was_taken(tmp_path: Path) -> None:
    levels = RANDOM.integers(0, 256, (30, 40, 3)).astype(np.uint8)
    image = pyvips.Image.new_from_array(levels)
    image.set_type(pyvips.GValue.gint_type, "orientation", 6)
    image.write_to_file(str(tmp_path / "a.tif"))
    assert np.array_equal(shown(tmp_path / "a.tif"), np.rot90(levels, -1))


def test_of_a_large_photo_a_window_is_shown(tmp_path: Path) -> None:
    levels = RANDOM.integers(0, 256, (1700, 2000)).astype(np.uint8)
    photo = save(tmp_path / "a.png", levels)
    window = preview.show(photo, photo, tmp_path, 1, 0)
    assert (window.left, window.top, window.width, window.height) == (400, 0, 1600, 1600)
    assert np.array_equal(images.read(tmp_path / "after.png").pixels[..., 0], levels[:1600, 400:])
    overview = images.read(tmp_path / "overview.jpg").pixels
    assert max(overview.shape) == preview.OVERVIEW_SIDE


def test_what_claims_too_many_pixels_is_refused(tmp_path: Path) -> None:
    pyvips.Image.black(20_000, 5_001).write_to_file(str(tmp_path / "a.png"))
    with pytest.raises(InputError, match="claims 20000x5001 pixels, over 100 million; "):
        preview.check(tmp_path / "a.png")
