import multiprocessing
import os
import pickle
import subprocess
import sys
import zipfile
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx.numpy_helper
import pytest
import torch

import tbsn
from conftest import EXAMPLES
from conftest import tbsn as command
from tbsn import images, runtime
from tbsn.denoiser import PRETRAINED, find
from tbsn.errors import InputError
from tbsn.export import export
from tbsn.network import FastUNet, FastUNetConfig
from tbsn.network.files import load_network

MODEL = PRETRAINED / "default.onnx"
NEEDS = {name: pytest.mark.skipif(not find_spec(name), reason="not installed") for name in ("openvino", "ncnn")}
DEVICES = ["cpu", *(pytest.param(name, marks=needed) for name, needed in NEEDS.items())]
Start = Callable[[bytes], runtime.Run]


@pytest.fixture(scope="module")
def noisy() -> np.ndarray:
    return images.to_float(images.read(EXAMPLES / "01_14.png").pixels)


def starts(monkeypatch: pytest.MonkeyPatch, start: Start, device: str = "other") -> None:
    """A device that starts a model by ``start``, and is the fastest."""
    monkeypatch.setattr(runtime, "provider", lambda _: start)
    monkeypatch.setattr(runtime, "fastest", lambda _: device)


def on_cpu(change: Callable[[np.ndarray], np.ndarray]) -> Start:
    """A device that computes as the CPU does, and then changes the result."""

    def start(model: bytes) -> runtime.Run:
        run = runtime._runner(runtime._session(model, "CPUExecutionProvider"))
        return lambda image: change(run(image))

    return start


def refuse(_: bytes) -> runtime.Run:
    raise RuntimeError("no such\ndriver")


@pytest.mark.parametrize("device", DEVICES)
def test_the_same_image_gives_the_same_in_every_call_thread_and_process(device: str, noisy: np.ndarray) -> None:
    denoise = tbsn.load(device=device)
    once = denoise(noisy)
    with ThreadPoolExecutor(3) as threads:
        assert all(np.array_equal(once, again) for again in threads.map(denoise, [noisy] * 4))
    with ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as process:
        assert np.array_equal(once, process.submit(denoise, noisy).result())


def test_a_pickled_denoiser_needs_no_file(noisy: np.ndarray, tmp_path: Path) -> None:
    path = tmp_path / "mine.onnx"
    path.write_bytes(MODEL.read_bytes())
    denoise = tbsn.load(path, strength=0.5)
    path.unlink()
    again = pickle.loads(pickle.dumps(denoise))
    assert (again.name, again.strength) == ("mine", 0.5)
    assert np.array_equal(again(noisy), denoise(noisy))


@NEEDS["openvino"]
def test_openvino_is_within_the_tolerance_and_tells_nobody(noisy: np.ndarray) -> None:
    difference = tbsn.load(device="openvino")(noisy) - tbsn.load(device="cpu")(noisy)
    assert 0 < np.sqrt(np.mean(difference**2)) < runtime.TOLERANCE
    code = "import sys, tbsn; tbsn.load(device='openvino'); sys.exit('openvino_telemetry.main' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


@NEEDS["ncnn"]
@pytest.mark.parametrize("settings", [{}, {"channels": 1, "widths": (5, 3), "blocks": (0, 2)}, {"channels": 4}])
def test_ncnn_computes_what_the_cpu_does(settings: dict[str, Any], tmp_path: Path) -> None:
    torch.manual_seed(0)
    network = FastUNet(FastUNetConfig(**settings))
    torch.nn.init.normal_(network.output.weight, std=0.1)
    export(network, tmp_path / "student.onnx")
    image = np.random.default_rng(0).random((70, 101, network.config.channels), np.float32)
    one, other = (tbsn.load(tmp_path / "student.onnx", device=device)(image) for device in ("cpu", "ncnn"))
    assert abs(one - image).max() > 0.01
    np.testing.assert_allclose(one, other, atol=1e-5)


def resealed(model: onnx.ModelProto) -> bytes:
    facts = {entry.key: entry.value for entry in model.metadata_props if entry.key != runtime.SEAL}
    onnx.helper.set_model_props(model, facts)
    return runtime.sealed(model.SerializeToString())


def no_fast_students() -> dict[str, bytes]:
    """Sound models of images, in which ncnn would read beyond what there is, or compute something else."""
    of_constant, other, moved = (onnx.load(MODEL) for _ in range(3))
    of_constant.graph.initializer.append(onnx.numpy_helper.from_array(np.ones((1, 3, 1, 1), np.float32), "one"))
    of_constant.graph.node[-1].input[1] = "one"
    other.graph.node[-1].op_type = "Sub"
    last, shuffle = moved.graph.node[-1], moved.graph.node[-2]
    shuffle.attribute[[one.name for one in shuffle.attribute].index("mode")].s = b"DCR"
    assert (last.op_type, shuffle.op_type) == ("Add", "DepthToSpace")
    return {
        "Add": resealed(of_constant),
        "Sub": resealed(other),
        "DepthToSpace": resealed(moved),
        "MaxPool": (PRETRAINED / "unet.onnx").read_bytes(),
    }


@NEEDS["ncnn"]
@pytest.mark.parametrize("operator", no_fast_students())
def test_what_is_no_fast_student_ncnn_leaves_to_the_cpu(operator: str, noisy: np.ndarray, tmp_path: Path) -> None:
    path, small = tmp_path / "other.onnx", noisy[:40, :50]
    path.write_bytes(no_fast_students()[operator])
    with pytest.warns(
        RuntimeWarning, match=rf"device ncnn: cannot start \(it is for fast .* no such {operator}\); the CPU is"
    ):
        denoise = tbsn.load(path, device="ncnn")
    assert np.array_equal(denoise(small), tbsn.load(path, device="cpu")(small))


@NEEDS["ncnn"]
def test_ncnn_is_left_for_the_cpu_in_a_forked_process(noisy: np.ndarray) -> None:
    code = """
import multiprocessing, sys, warnings
import numpy as np, tbsn
warnings.simplefilter("ignore")
image = np.random.default_rng(0).random((40, 50, 3), np.float32)
denoise = tbsn.load(device="ncnn")
with multiprocessing.get_context("fork").Pool(1) as pool:
    sys.exit(not np.allclose(pool.map(denoise, [image])[0], denoise(image), atol=1e-5))
"""
    run = [sys.executable, "-c", code]
    assert subprocess.run(run, env=os.environ | {"OMP_NUM_THREADS": "2"}, timeout=60, check=False).returncode == 0


@NEEDS["ncnn"]
@pytest.mark.parametrize("memory", [1.5e9, 5e8])
def test_auto_takes_tiles_that_reach_ncnn(memory: float, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(runtime, "find_spec", lambda name: None if name == "openvino" else find_spec(name))
    denoiser = tbsn.load().within(memory, 8000)
    assert isinstance(student := denoiser.function, runtime.Student)
    assert denoiser.tiling.size**2 >= student._large and student._chosen == "ncnn"
    tilings = [tbsn.load("unet", device=device).within(memory, 8000).tiling for device in ("auto", "cpu")]
    assert tilings[0] == tilings[1]


@pytest.mark.parametrize(
    ("start", "reason"),
    [
        (refuse, r"cannot start \(no such driver\)"),
        (on_cpu(lambda result: 1.01 * result), "differs from the CPU by 0.00"),
        (on_cpu(lambda result: result[..., ::-1]), "differs from the CPU by"),
        (on_cpu(lambda result: result[1:-1]), "differs from the CPU by"),
        (on_cpu(lambda result: result[:, :30]), "cannot start"),
        (on_cpu(lambda result: result * np.nan), "differs from the CPU by nan"),
    ],
)
def test_a_device_that_cannot_start_or_computes_wrong_is_left_for_the_cpu(
    start: Start, reason: str, noisy: np.ndarray, monkeypatch: pytest.MonkeyPatch
) -> None:
    starts(monkeypatch, start)
    with pytest.warns(RuntimeWarning, match=f"^device other: {reason}.*; the CPU is used instead$"):
        denoise = tbsn.load(device="other")
    assert np.array_equal(denoise(noisy), tbsn.load(device="cpu")(noisy))


def test_a_device_that_fails_later_is_left_for_the_cpu(noisy: np.ndarray, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(result: np.ndarray) -> np.ndarray:
        if result.size > noisy.size // 2:
            raise RuntimeError("out of memory")
        return result

    starts(monkeypatch, on_cpu(full))
    denoise = tbsn.load(device="other")
    with pytest.warns(RuntimeWarning, match="out of memory"):
        denoised = denoise(noisy)
    assert np.array_equal(denoised, denoise(noisy))


def test_a_result_of_another_size_is_left_for_the_cpu(noisy: np.ndarray, monkeypatch: pytest.MonkeyPatch) -> None:
    small = noisy[:70, :100]
    starts(monkeypatch, on_cpu(lambda result: result[:70, :100]))
    denoise = tbsn.load(device="other")
    denoise(small)
    with pytest.warns(RuntimeWarning, match="another size"):
        assert np.array_equal(denoise(noisy), tbsn.load(device="cpu")(noisy))


def test_auto_starts_a_device_for_large_tiles_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    begun: list[int] = []
    monkeypatch.setattr(runtime, "LARGE", 64 * 64)
    starts(monkeypatch, lambda model: begun.append(1) or on_cpu(lambda result: result + np.float32(0.001))(model))
    denoise, cpu = tbsn.load(), tbsn.load(device="cpu")
    small, large = (np.random.default_rng(0).random((64, width, 3), np.float32) for width in (63, 64))
    assert np.array_equal(denoise(small), cpu(small)) and not begun
    assert not np.array_equal(denoise(large), cpu(large)) and begun == [1]
    assert np.array_equal(denoise(small), cpu(small))


def test_the_command_tells_of_the_fallback_in_one_line(photo: Path) -> None:
    code = "from tbsn import cli, runtime; runtime.provider = lambda _: None; cli.run()"
    arguments = ["denoise", str(photo), "--device", "other"]
    done = subprocess.run([sys.executable, "-c", code, *arguments], capture_output=True, text=True, check=False)
    assert done.returncode == 0 and done.stderr.count("\n") == 1
    assert done.stderr.startswith("warning: device other: cannot start")


def test_a_device_that_is_not_there_is_refused(photo: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked = command("denoise", photo, "--device", "abacus")
    assert asked.returncode == 2 and asked.stderr.startswith("error: device abacus: not there; use auto, cpu")
    assert asked.stderr.count("\n") == 1
    monkeypatch.setattr(runtime, "find_spec", lambda _: None)
    for device in ("openvino", "ncnn"):
        with pytest.raises(InputError, match=f"device {device}: not installed; pip install"):
            tbsn.load(device=device)
    assert runtime.fastest("FastUNet") == "cpu"


@pytest.mark.parametrize("name", ["default", "unet"])
def test_a_flipped_bit_anywhere_in_what_ships_is_found(name: str, tmp_path: Path) -> None:
    whole, path = find(name).read_bytes(), tmp_path / "flipped.onnx"
    for place in (0, len(whole) // 3, len(whole) // 2, len(whole) - 1):
        path.write_bytes(whole[:place] + bytes([whole[place] ^ 16]) + whole[place + 1 :])
        for read in (tbsn.load, load_network):
            with pytest.raises(InputError, match="damaged"):
                read(path)


def bad_models(folder: Path) -> dict[str, tuple[bytes, str]]:
    """Files that are no sound student, and what is said of them."""

    def changed(change: Callable[[onnx.ModelProto], object]) -> bytes:
        model = onnx.load(MODEL)
        change(model)
        facts = {entry.key: entry.value for entry in model.metadata_props if entry.key != runtime.SEAL}
        onnx.helper.set_model_props(model, facts)
        return runtime.sealed(model.SerializeToString())

    def set_weight(model: onnx.ModelProto, value: float) -> None:
        weights = model.graph.initializer[0]
        weights.CopyFrom(onnx.numpy_helper.from_array(np.full(weights.dims, value, np.float32), weights.name))

    def outside(model: onnx.ModelProto, location: Path) -> None:
        weights = model.graph.initializer[0]
        (folder / location.name).write_bytes(weights.raw_data)
        weights.ClearField("raw_data")
        weights.data_location = onnx.TensorProto.EXTERNAL
        weights.external_data.add(key="location", value=str(location))

    def foreign(model: onnx.ModelProto) -> None:
        model.graph.node[-1].domain = "elsewhere"
        model.opset_import.add(domain="elsewhere", version=1)

    def facts(**changes: str) -> Callable[[onnx.ModelProto], None]:
        known = {entry.key: entry.value for entry in onnx.load(MODEL).metadata_props}
        return lambda model: onnx.helper.set_model_props(model, known | changes)

    archive = folder / "archive.zip"
    with zipfile.ZipFile(archive, "w") as file:
        file.writestr("data.pkl", pickle.dumps({"a": 1}))
    whole = MODEL.read_bytes()
    return {
        "empty": (b"", "damaged"),
        "truncated": (whole[:-1000], "damaged"),
        "text": (b"no model\n" * 100, "damaged"),
        "pickle": (pickle.dumps({"a": 1}), "is a pickle"),
        "torch": (archive.read_bytes(), "is a pickle"),
        "newer format": (changed(facts(format="tbsn-onnx-99")), "model format is tbsn-onnx-99"),
        "newer onnx": (changed(lambda model: setattr(model, "ir_version", 99)), "damaged"),
        "channels": (changed(facts(channels="4")), "not a student"),
        "multiple": (changed(facts(multiple="1000000")), "not a student"),
        "words": (changed(facts(multiple="many")), "not a student"),
        "nan": (changed(lambda model: set_weight(model, np.nan)), "not finite"),
        "infinite": (changed(lambda model: set_weight(model, 1e38)), "not finite"),
        "outside": (changed(lambda model: outside(model, Path("weights.bin"))), "damaged"),
        "elsewhere": (changed(lambda model: outside(model, folder / "weights.bin")), "damaged"),
        "foreign": (changed(foreign), "damaged"),
    }


def test_bad_models_are_refused_in_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)  # where ONNX Runtime would look for the weights of a model that it has no path of
    for name, (data, reason) in bad_models(tmp_path).items():
        path = tmp_path / f"{name}.onnx"
        path.write_bytes(data)
        with pytest.raises(InputError, match=reason) as refused:
            tbsn.load(path)
        assert str(refused.value).startswith(f"{path}: ") and "\n" not in str(refused.value)
