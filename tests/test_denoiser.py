import hashlib
import pickle
import re
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch

import tbsn
from conftest import EXAMPLES
from tbsn import denoiser, export, images
from tbsn.denoiser import STILL, mean_over_symmetries, still
from tbsn.errors import InputError
from tbsn.network import TBSN, TBSNConfig, UNet, UNetConfig
from tbsn.network.files import load_network, save_network
from tbsn.runtime import SEAL
from tbsn.tiles import Tiling
from tbsn.training.noise_model import NoiseModel


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> tuple[UNet, Path]:
    """A student of random weights, and its ONNX file."""
    torch.manual_seed(0)
    student, path = UNet(UNetConfig(width=8)), tmp_path_factory.mktemp("small") / "small.onnx"
    assert export.export(student, path) < export.TOLERANCE
    return student, path


def test_an_exported_student_does_not_tell_where_it_was_made(small: tuple[UNet, Path]) -> None:
    shipped = [small[1], *denoiser.PRETRAINED.glob("*.onnx")]
    assert len(shipped) == 3
    for path in shipped:
        assert not re.search(rb"File \"|\.py\"|site-packages", path.read_bytes())


def noisy(*shape: int, dtype: type = np.uint8) -> np.ndarray:
    values = np.random.default_rng(0).random(shape)
    return images.from_float(values, np.dtype(dtype))


@pytest.mark.parametrize("shape", [(1, 1), (1, 1, 3), (1, 40, 3), (7, 5, 1), (31, 64, 3), (100, 97)])
@pytest.mark.parametrize("dtype", [np.uint8, np.uint16, np.float32, np.float64])
def test_shape_and_dtype_come_back(small: tuple[UNet, Path], shape: tuple[int, ...], dtype: type) -> None:
    image = noisy(*shape, dtype=dtype)
    before = image.copy()
    denoised = tbsn.load(small[1])(image)
    assert denoised.shape == image.shape and denoised.dtype == image.dtype
    assert np.array_equal(image, before)


def test_onnx_equals_torch(small: tuple[UNet, Path], tmp_path: Path) -> None:
    save_network(tmp_path / "small.safetensors", small[0])
    image = noisy(50, 70, 3, dtype=np.float32)
    np.testing.assert_allclose(tbsn.load(small[1])(image), tbsn.load(tmp_path / "small.safetensors")(image), atol=1e-4)


def test_depths_agree(small: tuple[UNet, Path]) -> None:
    model, image = tbsn.load(small[1]), noisy(40, 40, 3)
    eight, sixteen = model(image) / 255, model(image.astype(np.uint16) * 257) / 65535
    assert np.abs(eight - sixteen).max() <= 0.51 / 255


def test_tiled_equals_whole() -> None:
    photo = images.read(EXAMPLES / "pepper.png").pixels
    model = tbsn.load(strength=1)
    tiled = model(photo).astype(int)
    whole = images.from_float(model.function(images.to_float(photo)), np.dtype(np.uint8))
    assert photo.shape[0] > Tiling().size  # or there would be one tile alone
    assert np.abs(tiled - whole).max() <= 1


@pytest.mark.parametrize("name", ["letters", "pepper", "01_14", "12_14"])
def test_the_default_student_removes_noise_and_keeps_the_light(name: str) -> None:
    photo = images.read(EXAMPLES / f"{name}.png").pixels
    denoised = tbsn.load()(photo)

    def roughness(image: np.ndarray) -> float:
        return float(np.abs(np.diff(image.astype(float), axis=1)).mean())

    assert roughness(denoised) < 0.4 * roughness(photo)
    noisy, clean = images.to_float(photo), images.to_float(denoised)
    # Where noise was cut off at black, the photo is brighter than what it shows.
    expected = NoiseModel.fit(noisy, clean).unbiased(clean)
    light = [255 * (image**2.2).mean((0, 1)) ** (1 / 2.2) for image in (clean, expected)]
    assert np.abs(light[0] - light[1]).max() < 1


@pytest.mark.parametrize("bad", [np.zeros((4, 4, 2)), np.zeros((0, 4, 3)), np.zeros(7), np.full((4, 4, 3), np.nan)])
def test_arrays_that_are_no_image_are_refused(small: tuple[UNet, Path], bad: np.ndarray) -> None:
    with pytest.raises(InputError, match="image: has"):
        tbsn.load(small[1])(bad)


def test_an_export_that_differs_is_not_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    student = UNet(UNetConfig(width=4))
    run = type(student).forward
    exported = torch.onnx.export

    def export_then_change(*arguments: object, **options: object) -> object:
        program = exported(*arguments, **options)
        monkeypatch.setattr(type(student), "forward", lambda self, image: run(self, image) + 1e-3)
        return program

    monkeypatch.setattr(torch.onnx, "export", export_then_change)
    with pytest.raises(InputError, match="differs from torch"):
        export.export(student, tmp_path / "student.onnx")
    assert not list(tmp_path.iterdir())


def test_bad_models_are_refused_by_name(small: tuple[UNet, Path], tmp_path: Path) -> None:
    whole = small[1].read_bytes()
    (tmp_path / "truncated.onnx").write_bytes(whole[: len(whole) // 2])
    (tmp_path / "empty.onnx").write_bytes(b"")
    (tmp_path / "pickle.onnx").write_bytes(pickle.dumps({"a": 1}))
    newer = onnx.load_from_string(whole)
    onnx.helper.set_model_props(newer, {"format": "tbsn-onnx-99"})
    onnx.save(newer, tmp_path / "newer.onnx")
    (tmp_path / "weights.pth").write_bytes(pickle.dumps({"a": 1}))
    (tmp_path / "pickle.safetensors").write_bytes(pickle.dumps({"a": 1}))
    (tmp_path / "empty.safetensors").write_bytes(b"")
    names = [path.name for path in tmp_path.iterdir()]
    for name in [*names, "missing.onnx", "missing.safetensors", "no-such-name"]:
        with pytest.raises(InputError) as refused:
            tbsn.load(tmp_path / name)
        assert str(refused.value).startswith(str(tmp_path / name))


def test_models_that_do_not_do_what_they_say_are_refused(tmp_path: Path, identity: Path) -> None:
    model = onnx.load(identity)
    for facts in ({}, {"channels": "3"}, {"channels": "3", "multiple": "0"}, {"channels": "x", "multiple": "1"}):
        onnx.helper.set_model_props(model, {"format": "tbsn-onnx-1"} | facts)
        onnx.save(model, tmp_path / "bad.onnx")
        with pytest.raises(InputError, match=r"bad.onnx: not a student"):
            tbsn.load(tmp_path / "bad.onnx")


def test_weights_that_do_not_fit_or_are_not_finite_are_refused(tmp_path: Path) -> None:
    import safetensors.torch

    path = tmp_path / "model.safetensors"
    network = UNet(UNetConfig(width=4))
    save_network(path, network)
    with safetensors.safe_open(path, "pt") as file:
        metadata = {name: value for name, value in file.metadata().items() if name != SEAL}
    state = safetensors.torch.load_file(path)
    changes = {
        "format": (state, metadata | {"format": "tbsn-model-99"}),
        "do not fit": (state, metadata | {"config": '{"width": 8}'}),
        "do not fit their": (state, metadata | {"config": '{"wide": 8}'}),
        "not finite": ({name: value * np.nan for name, value in state.items()}, metadata),
    }
    for complaint, (weights, facts) in changes.items():
        safetensors.torch.save_file(weights, path, facts)
        with pytest.raises(InputError, match=complaint):
            load_network(path)


def test_model_files_carry_their_configuration(tmp_path: Path) -> None:
    config = TBSNConfig(width=8, group_channels=8, blocks=(1, 1, 1), refinement=1, channels=1)
    network = TBSN(config)
    save_network(tmp_path / "a.safetensors", network)
    again = load_network(tmp_path / "a.safetensors")
    assert again.config == config
    assert all(torch.equal(value, again.state_dict()[name]) for name, value in network.state_dict().items())


@pytest.mark.parametrize("name", ["default", "unet"])
def test_the_students_of_the_package_can_be_trained_further(name: str, tmp_path: Path) -> None:
    assert export.largest_difference(load_network(denoiser.find(name)), denoiser.find(name).read_bytes()) < 1e-4  # type: ignore[arg-type]
    broken = tmp_path / "broken.onnx"
    broken.write_bytes(denoiser.find(name).read_bytes()[:1000])
    with pytest.raises(InputError, match="damaged"):
        load_network(broken)


def test_strength_goes_from_the_image_to_the_denoised_one(small: tuple[UNet, Path]) -> None:
    image = noisy(40, 40, 3, dtype=np.float32)
    none, part, whole = (tbsn.load(small[1], strength=strength)(image) for strength in (0, 0.25, 1))
    np.testing.assert_allclose(none, image, atol=1e-6)
    np.testing.assert_allclose(part, 0.75 * image + 0.25 * whole, atol=1e-6)
    for wrong in (-0.1, 1.5, float("nan"), "0.5"):
        with pytest.raises(InputError, match="not from 0 to 1"):
            tbsn.load(small[1], strength=wrong)


@pytest.mark.parametrize("value", [0, 128, 255])
@pytest.mark.parametrize("side", [40, 64, 200])
def test_flat_images_are_trusted_too(small: tuple[UNet, Path], value: int, side: int) -> None:
    flat = np.full((side, side, 3), value, np.uint8)
    assert np.array_equal(tbsn.load(small[1], strength=None)(flat), flat)


@pytest.mark.parametrize("shape", [(1, 1, 3), (2, 9, 1), (3, 2, 1), (40, 30, 3)])
def test_a_pixel_is_still_if_nothing_changes_near_it(shape: tuple[int, int, int]) -> None:
    image = (np.random.default_rng(1).random(shape) < 0.01).astype(np.uint8)
    reached = np.pad(image, ((STILL, STILL), (STILL, STILL), (0, 0)), mode="edge")
    for (row, column), found in np.ndenumerate(still(image)):
        down = reached[row : row + 2 * STILL + 1, column + STILL]
        right = reached[row + STILL, column : column + 2 * STILL + 1]
        assert found == all((line == image[row, column]).all() for line in (down, right)), (row, column)


def test_the_mean_over_symmetries_turns_with_the_image() -> None:
    image = np.random.default_rng(0).random((12, 20, 3), dtype=np.float32)

    def shifted(image: np.ndarray, by: int, axis: int) -> np.ndarray:
        return mean_over_symmetries(lambda one: np.roll(one, by, axis), image)

    np.testing.assert_allclose(shifted(image, 1, 1), shifted(image, -1, 0), atol=1e-6)
    np.testing.assert_allclose(np.rot90(shifted(image, 1, 1)), shifted(np.rot90(image), 1, 1), atol=1e-6)
    np.testing.assert_allclose(mean_over_symmetries(lambda one: one, image), image, atol=1e-6)


def test_a_self_ensemble_turns_with_the_image_and_may_be_sent_to_other_processes(small: tuple[UNet, Path]) -> None:
    denoise = pickle.loads(pickle.dumps(denoiser.load(small[1], strength=1, ensemble=True)))
    image = np.random.default_rng(0).integers(0, 256, (64, 128, 3), np.uint8)
    turned = denoise(np.ascontiguousarray(np.rot90(image)))
    np.testing.assert_allclose(np.rot90(denoise(image).astype(int)), turned.astype(int), atol=1)
    assert not np.array_equal(denoise(image), denoiser.load(small[1], strength=1)(image))


def test_many_images_stream(small: tuple[UNet, Path]) -> None:
    denoise, asked = tbsn.load(small[1]), []

    def images_() -> Iterator[np.ndarray]:
        for seed in range(3):
            asked.append(seed)
            yield np.random.default_rng(seed).integers(0, 256, (20, 30, 3), np.uint8)

    made = denoise.map(images_())
    assert asked == []
    first = next(made)
    assert asked == [0] and len(list(made)) == 2
    assert np.array_equal(first, next(iter(denoise.map(list(images_())))))


@pytest.mark.parametrize(
    ("image", "reason"),
    [
        (np.ma.masked_less(noisy(9, 9), 9), "masked"),
        (1e300 * noisy(9, 9, dtype=np.float64), "beyond"),
        (np.where(noisy(9, 9) > 99, 3e38, -3e38).astype(np.float32), "beyond"),
    ],
)
def test_values_that_would_be_taken_for_others_are_refused(small: tuple[UNet, Path], image: Any, reason: str) -> None:
    with pytest.raises(InputError, match=reason):
        tbsn.load(small[1])(image)


@pytest.mark.filterwarnings("ignore:the matrix subclass")
def test_a_matrix_is_a_grey_image(small: tuple[UNet, Path]) -> None:
    image, model = noisy(20, 30), tbsn.load(small[1])
    assert np.array_equal(model(np.matrix(image)), model(image))


@pytest.mark.parametrize("image", [[np.zeros((8, 8))], "photo.png", np.zeros((8, 8), bool), np.zeros((8, 8), complex)])
def test_what_is_no_image_is_refused(small: tuple[UNet, Path], image: Any) -> None:
    with pytest.raises(InputError, match="give a numpy array"):
        tbsn.load(small[1])(image)


@pytest.mark.parametrize("size", [(300, 395), (256, 521)])
def test_a_self_ensemble_in_tiles_equals_that_of_the_whole(size: tuple[int, int]) -> None:
    noisy = np.random.default_rng(0).integers(0, 255, (*size, 3), dtype=np.uint8)
    denoise = denoiser.load(strength=1, ensemble=True)
    tiles = replace(denoise, tiling=replace(denoise.tiling, size=256))
    assert np.abs(denoise(noisy).astype(int) - tiles(noisy)).max() <= 1


def test_a_flipped_bit_in_a_model_file_is_damage(tmp_path: Path) -> None:
    save_network(tmp_path / "a.safetensors", UNet(UNetConfig(width=4)))
    whole = (tmp_path / "a.safetensors").read_bytes()
    random = np.random.default_rng(0)
    for at in random.integers(len(whole) - 9000, len(whole), 40).tolist():
        bad = tmp_path / "bad.safetensors"
        bad.write_bytes(whole[:at] + bytes([whole[at] ^ 1 << int(random.integers(8))]) + whole[at + 1 :])
        with pytest.raises(InputError, match="damaged"):
            load_network(bad)


def test_the_teacher_of_the_package_denoises_at_full_resolution() -> None:
    photo = images.read(EXAMPLES / "01_14.png").pixels[:120, :90]
    teacher, student = (tbsn.load(name, strength=1)(photo).astype(float) for name in ("teacher", "default"))
    assert np.std(teacher - student) < 0.3 * np.std(photo - student)
    network = load_network(denoiser.find("teacher"))
    assert isinstance(network, TBSN) and network.config.pd == 1


@pytest.mark.parametrize("card", sorted(denoiser.PRETRAINED.glob("*.md")), ids=lambda card: card.stem)
def test_model_cards_are_of_the_files_beside_them(card: Path) -> None:
    found = dict(re.findall(r"SHA-256 of `(.*)`: `([0-9a-f]{64})`", card.read_text()))
    for name, digest in found.items():
        assert hashlib.sha256((card.parent / name).read_bytes()).hexdigest() == digest
    students = {f"{card.stem}.onnx", f"../../../weights/{card.stem}.safetensors"}
    assert found.keys() == (students if f"{card.stem}.onnx" in found else {f"{card.stem}.safetensors"})


@pytest.mark.parametrize("student", sorted(path.stem for path in denoiser.PRETRAINED.glob("*.onnx")))
def test_a_student_is_the_same_in_safetensors(student: str) -> None:
    kept = load_network(Path(__file__).parents[1] / "weights" / f"{student}.safetensors")
    network = load_network(denoiser.find(student))
    assert kept.config == network.config
    torch.testing.assert_close(kept.state_dict(), network.state_dict(), rtol=0, atol=0)
