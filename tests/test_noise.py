"""The noise as measured from noisy images, against the truth; the advice; the verb as a user types it.

No test knows a clean photo: truth is noise that was added here. The drawn scenes are not those of the calibration.
Noise weaker than 15 of 255 on them, or scenes of more and coarser texture, miss the bars: see docs/noise.md.
"""

import json
import re
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import pyvips

import tbsn as tbsn_package
from conftest import EXAMPLES, save, tbsn
from tbsn import advice, images, noise
from tbsn.diagnose import _conclude, describe, diagnose, pd_strides
from tbsn.errors import InputError
from tbsn.grid import grid_strength
from tbsn.spectrum import LAGS, autocovariance, basis
from tbsn.training.recipe import TrainRecipe, load_recipe
from test_images import bad_files

SIDE = 256
LEVEL, CORRELATION = 0.10, 0.07  # the bars: relative, absolute


def scene(seed: int, side: int = SIDE) -> np.ndarray:
    """A clean picture (side, side, 3) of shaded, partly textured discs that hide each other, without any noise."""
    rng = np.random.default_rng(seed)
    y, x = np.mgrid[:side, :side] / side
    picture = np.full((side, side, 3), 0.5)
    for _ in range(20):
        radius, (cy, cx), colour = 0.4 * rng.power(2), rng.random(2), rng.uniform(0.15, 0.85, 3)
        shade = 0.1 * (rng.normal() * (x - cx) + rng.normal() * (y - cy))
        texture = 0.02 * (rng.random() < 0.3) * np.sin(side * rng.uniform(0.2, 1) * (x + rng.normal() * y))
        inside = (x - cx) ** 2 + (y - cy) ** 2 < radius**2
        picture[inside] = (colour + (shade + texture)[..., None])[inside]
    return np.clip(picture, 0.1, 0.9)


def kernel(name: str) -> np.ndarray:
    """A separable blur of unit noise power (k, k)."""
    line = {"white": [1], "gauss": np.exp(-(np.arange(-4, 5) ** 2) / (2 * 0.8**2)), "box": [1, 1, 1]}[name]
    line = np.asarray(line, float) / np.linalg.norm(line)
    return np.outer(line, line)


def blurred(white: np.ndarray, shape: np.ndarray) -> np.ndarray:
    """White noise (h, w, c) filtered by a kernel, periodically."""
    spectrum = np.fft.rfft2(shape, white.shape[:2])[..., None] * np.fft.rfft2(white, axes=(0, 1))
    return np.fft.irfft2(spectrum, white.shape[:2], axes=(0, 1))


def true_autocorrelation(shape: np.ndarray) -> np.ndarray:
    full = np.fft.irfft2(np.abs(np.fft.rfft2(shape, (64, 64))) ** 2, (64, 64))
    return (full / full[0, 0])[: LAGS + 1, : LAGS + 1]


def measured(pictures: list[np.ndarray]) -> noise.Noise:
    return noise.combine([noise.survey(images.from_float(one, np.dtype(np.uint8))) for one in pictures])


def shared(folder: str) -> Path:
    """Real data beside the checkout, which is not part of it."""
    path = Path(__file__).parents[2] / "shared" / "data" / folder
    if not path.is_dir():
        pytest.skip(f"no data at {path}")
    return path


@pytest.mark.parametrize("sigma", [15, 25])
@pytest.mark.parametrize("name", ["white", "gauss", "box"])
def test_known_noise_on_scenes_is_found(name: str, sigma: int) -> None:
    rng = np.random.default_rng(0)
    added = [sigma / 255 * blurred(rng.normal(size=(SIDE, SIDE, 3)), kernel(name)) for _ in range(6)]
    found = measured([scene(seed) + one for seed, one in enumerate(added)])
    assert np.allclose(255 * found.level, sigma, rtol=LEVEL)
    error = (found.autocorrelation - true_autocorrelation(kernel(name)))[:, :4, :4]
    assert np.abs(error).max() < CORRELATION
    strides = advice.pd_strides(found.autocorrelation.mean(axis=0))
    assert strides is not None and (strides[0] == 1 if name == "white" else 3 <= strides[0] <= 5)


def test_dependence_on_brightness_is_found() -> None:
    rng = np.random.default_rng(1)
    pictures = [scene(seed) for seed in range(6)]
    found = measured([one + np.sqrt(1e-3 + 0.01 * one) * rng.normal(size=one.shape) for one in pictures])
    for brightness, level in zip((np.arange(10) + 0.5) / 10, found.curve, strict=True):
        if 0.25 <= brightness <= 0.75:
            assert np.allclose(level, np.sqrt(1e-3 + 0.01 * brightness), rtol=LEVEL)


def test_autocovariance_inverts_the_expected_power_of_the_transform() -> None:
    wanted = true_autocorrelation(kernel("box"))
    distance = np.abs(np.subtract.outer(np.arange(noise.METHOD.patch), np.arange(noise.METHOD.patch)))
    line = np.where(distance <= LAGS, wanted[0, np.minimum(distance, LAGS)], 0)
    power = np.diag(basis(noise.METHOD.patch) @ line @ basis(noise.METHOD.patch).T)
    assert np.allclose(autocovariance(np.outer(power, power), content=-1), wanted, atol=0.001)


def test_clean_scenes_are_not_called_noisy() -> None:
    for pictures in ([scene(seed) for seed in range(4)], [np.full((64, 64, 3), 0.4)]):
        found = measured(pictures)
        assert found.floor < advice.INVISIBLE / 1.25 and np.isfinite(found.autocorrelation).all()
        advised = advice.advise(found.autocorrelation.mean(axis=0), found.floor, 10**8, 10**8, 256)
        assert not advised.suits and "clean" in advised.sentences[0]
    rng = np.random.default_rng(0)
    noisy = measured([scene(seed) + 5 / 255 * rng.normal(size=(SIDE, SIDE, 3)) for seed in range(4)])
    assert noisy.floor > 1.25 * advice.INVISIBLE


def test_denoised_photos_are_not_called_noisy() -> None:
    denoise = tbsn_package.load()
    paths = sorted(shared("sidd/train").glob("*.png"))[::80]
    found = noise.combine([noise.survey(denoise(images.read(path).pixels)) for path in paths])
    assert found.floor < advice.INVISIBLE


def test_variances_of_real_and_added_noise_add_up() -> None:
    rng = np.random.default_rng(0)
    photos = [images.to_float(images.read(path).pixels) for path in sorted(shared("sidd/train").glob("*.png"))[::40]]
    photos = [0.1 + 0.8 * one for one in photos]  # or what is added would be clipped
    before, after = measured(photos), measured([one + 20 / 255 * rng.normal(size=one.shape) for one in photos])
    assert np.allclose(255 * np.sqrt(after.level**2 - before.level**2), 20, rtol=0.15)
    shared_before = before.level**2 * before.autocorrelation[:, 0, 1]
    shared_after = after.level**2 * after.autocorrelation[:, 0, 1]
    assert np.all(np.abs(shared_after - shared_before) < 0.12 * after.level**2)  # photos whose noise differs


def test_widely_correlated_noise_is_refused() -> None:
    rng = np.random.default_rng(0)
    wide = np.exp(-(np.arange(-9, 10) ** 2) / (2 * 2.5**2))
    wide = np.outer(wide, wide) / np.linalg.norm(np.outer(wide, wide))
    found = measured([scene(seed) + 20 / 255 * blurred(rng.normal(size=(SIDE, SIDE, 3)), wide) for seed in range(6)])
    advised = advice.advise(found.autocorrelation.mean(axis=0), found.floor, 10**8, 10**8, 256)
    assert advised.pd_train is None and not advised.suits and "BM3D" in advised.sentences[0]


def test_smartphone_photos_are_correlated_and_suit() -> None:
    result = diagnose([shared("sidd/train")], print)
    assert result.found == 640 and result.measured == 256 and result.advice.suits
    train, inference = result.advice.pd_train, result.advice.pd_inference
    assert train is not None and inference is not None and 1 < inference <= train
    assert pd_strides(shared("sidd/train"))[0] == train


def test_jpeg_grid_is_seen_at_any_offset_and_only_there() -> None:
    clean = images.from_float(scene(0) + np.random.default_rng(0).normal(0, 0.01, (SIDE, SIDE, 3)), np.dtype(np.uint8))
    assert grid_strength(clean) == 0
    compressed = pyvips.Image.new_from_buffer(pyvips.Image.new_from_array(clean).jpegsave_buffer(Q=80), "").numpy()
    assert grid_strength(compressed) > 0.2
    assert grid_strength(compressed[3:, 5:]) > 0.2
    assert grid_strength(np.full((64, 64, 1), 7, np.uint8)) == 0


def test_clipping_is_counted() -> None:
    picture = np.random.default_rng(0).integers(1, 255, (64, 64, 3), dtype=np.uint8)
    picture[:16] = 0
    picture[-8:, :, 0] = 255
    one = noise.survey(picture)
    assert one.black == 0.25 and one.white == pytest.approx(8 / 64 / 3) and one.usable == 40 * 64


@pytest.mark.parametrize("share", [0.1, 0.3])
@pytest.mark.parametrize("value", [0, 1])
def test_what_is_blown_out_or_masked_does_not_make_an_image_clean(value: int, share: float) -> None:
    noisy = np.clip(scene(0) + np.random.default_rng(0).normal(0, 0.08, (SIDE, SIDE, 3)), 0, 1)
    noisy[: round(share * SIDE)] = value
    found = noise.combine([noise.survey(images.from_float(noisy, np.dtype(np.uint8)))])
    assert np.allclose(found.level, 0.08, rtol=LEVEL) and found.floor > 0.05


def test_empty_channels_do_not_count() -> None:
    """As in fluorescence of one colour."""
    noisy = np.clip(
        scene(0) + blurred(np.random.default_rng(0).normal(0, 1, (SIDE, SIDE, 3)), kernel("gauss")) * 0.1, 0, 1
    )
    noisy[..., ::2] = 0
    whole, seen = (noise.survey(images.from_float(part, np.dtype(np.uint8))) for part in (noisy, noisy[..., 1:2]))
    result, alone = _conclude([whole], 1, 1, 0), noise.combine([seen])
    assert result.noise.floor == alone.floor > 0.05
    assert np.array_equal(result.noise.mean_autocorrelation, alone.autocorrelation[0])
    assert result.usable > 0.9 * SIDE**2


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16, np.float32])
def test_any_depth_and_grey_measure_alike(dtype: type) -> None:
    noisy = np.clip(scene(0) + np.random.default_rng(0).normal(0, 0.08, (SIDE, SIDE, 3)), 0, 1)
    grey = noisy[..., :1]
    found = noise.combine([noise.survey(images.from_float(one, np.dtype(dtype))) for one in (noisy, grey)])
    assert found.level.shape == (3,) and np.allclose(found.level, 0.08, rtol=LEVEL)


def test_advice_follows_the_autocorrelation() -> None:
    white = np.zeros((9, 9))
    white[0, 0] = 1
    assert advice.pd_strides(white) == (1, 1)
    wide = np.maximum(white, 0.25)
    assert advice.pd_strides(wide) is None
    mosaic = white.copy()
    mosaic[0, 2] = mosaic[2, 0] = 0.5
    assert advice.pd_strides(mosaic) == (5, 3), "with stride 1 or 2 the network would see a neighbour with its noise"
    few = advice.advise(white, 0.1, 1000, 1000, 256)
    assert not few.suits and "too few" in few.sentences[0]
    good = advice.advise(white, 0.1, 10**8, 10**8, 256)
    assert good.suits and good.pd_train == 1 and "stride 1" in good.sentences[0]
    assert not any("network.channels" in one or "So few" in one for one in good.sentences)
    other = advice.advise(white, 0.1, 10**8, 10**8, 256, channels=5, measured=1).sentences
    assert sum("--set network.channels=5" in one for one in other) == 2 and "So few images" in other[-1]


def test_the_time_grows_with_the_pixels(monkeypatch: pytest.MonkeyPatch) -> None:
    white = np.zeros((9, 9))
    white[0, 0] = 1
    monkeypatch.setattr(advice, "_cores", lambda: 2)
    monkeypatch.setattr(advice.shutil, "which", lambda name: None)
    few, many = (advice.advise(white, 0.1, pixels, 10**7, 256) for pixels in (10**7, 48 * 10**7))
    assert few.minutes == many.minutes and few.preparation is not None
    assert many.preparation == pytest.approx(48 * few.preparation) == pytest.approx(480 * advice.TARGET_SECONDS / 120)
    assert "after 3 minutes" in few.sentences[-1] and "after 2.7 hours" in many.sentences[-1]


def test_a_brightness_is_printed_if_any_channel_is_seen_there() -> None:
    picture = np.clip(np.random.default_rng(0).normal([60, 60, 150], 10, (SIDE, SIDE, 3)), 0, 255).astype(np.uint8)
    result = _conclude([noise.survey(picture)], 1, 1, 0)
    (line,) = (line for line in describe(result) if "by brightness" in line)
    red, _, blue = (255 * np.nanmax(result.noise.curve[:, channel]) for channel in range(3))
    assert f"{red:.1f} at 25 %" in line and f"{blue:.1f} at 55 %" in line and line.count("%") == 2


def test_the_verb_prints_and_writes(tmp_path: Path) -> None:
    code = "import sys; sys.modules['torch'] = None; from tbsn.cli import run; run()"
    done = subprocess.run([sys.executable, "-c", code, "diagnose", str(EXAMPLES)], capture_output=True, text=True)
    assert done.returncode == 0 and not done.stderr
    for word in ("noise level", "autocorrelation", "JPEG grid", "clipping", "usable", "too few"):
        assert word in done.stdout
    done = tbsn("diagnose", EXAMPLES, "--json", tmp_path / "d.json", "--picture", tmp_path / "d.png")
    assert done.returncode == 0, done.stderr
    written = json.loads((tmp_path / "d.json").read_text())
    assert np.shape(written["noise"]["autocorrelation"]) == (3, 9, 9) and written["advice"]["pd_train"] == 5
    assert re.search(rf"red {255 * written['noise']['level'][0]:.1f}", done.stdout)
    assert images.read(tmp_path / "d.png").pixels.shape[1] > 1000


def test_bad_input_is_one_line_and_the_rest_goes_on(photo: Path, tmp_path: Path) -> None:
    bad = bad_files(tmp_path, photo)
    save(tmp_path / "tiny.png", np.zeros((8, 8, 3), np.uint8))
    done = tbsn("diagnose", photo, tmp_path / "tiny.png", *bad.values())
    assert done.returncode == 3 and "noise level" in done.stdout
    assert len(done.stderr.splitlines()) == len(bad) + 1
    (tmp_path / "empty").mkdir()
    (tmp_path / "folder.json").mkdir()
    unwritable = [(photo, "--json", photo / "d"), (photo, "--json", tmp_path / "folder.json")]
    unwritable += [(photo, "--picture", photo / "d.png"), (photo, "--picture", tmp_path / "d.docx")]
    for arguments in ((tmp_path / "empty",), (tmp_path / "absent.png",), (tmp_path / "tiny.png",), *unwritable):
        done = tbsn("diagnose", *arguments)
        assert done.returncode == 2 and done.stderr.count("\n") == 1 and "error: " in done.stderr
        assert " -o" not in done.stderr and ("cannot write" not in done.stderr or f"with {arguments[1]}" in done.stderr)


def test_training_takes_the_advised_stride(blocks: Path, tmp_path: Path) -> None:
    small = ("--set", "network={width: 8, group_channels: 8, blocks: [1, 1, 1], refinement: 1}", "--set", "fit.steps=1")
    for stride, said in (("auto", "warning: There are too few"), ("1", ""), ("none", "not a PD stride")):
        run = tmp_path / stride
        done = tbsn("train", blocks, "-o", run, "--pd", stride, "--device", "cpu", *small, "--set", "fit.batch=1")
        assert said in done.stderr
        assert done.returncode == (2 if stride == "none" else 0), done.stderr
    recipes = [load_recipe(TrainRecipe, str(tmp_path / name / "recipe.yaml"), []) for name in ("auto", "1")]
    assert [(one.pd, one.fit.crop) for one in recipes] == [(5, 160), (1, 32)]


def test_auto_stride_refuses_in_one_line(folder: Path, tmp_path: Path) -> None:
    save(folder / "flat.png", np.full((SIDE, SIDE, 3), 99, np.uint8))
    for path in folder.rglob("*"):
        if path.is_file() and path.name != "flat.png":
            path.unlink()
    with pytest.raises(InputError, match="clean, or nearly"):
        pd_strides(folder)
    shutil.rmtree(folder)
    with pytest.raises(InputError):
        pd_strides(folder)
