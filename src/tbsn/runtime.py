"""Exported students (ONNX) on a device: ONNX Runtime on the CPU, or what is faster and computes the same."""

import hashlib
import os
import sys
import warnings
from collections.abc import Callable, Mapping
from importlib.util import find_spec
from pathlib import Path
from threading import Lock
from typing import Any

import numpy as np
import onnxruntime as ort

from tbsn.errors import InputError
from tbsn.files import ONNX_FORMAT
from tbsn.images import MAX_CHANNELS
from tbsn.tiles import reflected

AUTO, CPU, OPENVINO, NCNN = "auto", "cpu", "openvino", "ncnn"
ACCELERATORS = ("cuda", "rocm", "dml", "coreml")
LARGE = 512 * 512
LARGE_FOR_NCNN = 256 * 256 + 1  # it starts sooner than others
TOLERANCE = 1 / 256
MAX_MULTIPLE = 256
PICKLED = (*(bytes((0x80, version)) for version in range(2, 6)), b"PK\x03\x04")
SEAL = "sha256"
PIXEL_BYTES = {"FastUNet": 340, "UNet": 1400}  # of memory, of what is computed at a time
PIXEL_BYTES_OF_NCNN = 1100  # 640 to 880, measured; the rest keeps photos of 50 megapixels under a gigabyte

Run = Callable[[np.ndarray], np.ndarray]
Start = Callable[[bytes], Run]


class Student:
    """A function of images (h, w, c), float32 in [0, 1], of any size; from any thread, and picklable: as its bytes.

    A device is trusted if on a fixed patch it is within 1/256 of the CPU (root mean square): bf16 differs by a third of
    that, a result that is only 1 % brighter by more. If it is not, or cannot start, or fails later, a warning says so,
    and the CPU takes its place. ``auto`` starts the fastest device for tiles of at least 512x512 pixels, ncnn for all
    above 256x256; smaller ones are done on the CPU before a device has started. Size alone decides, so that an image
    always gives the same.
    """

    def __init__(self, model: bytes, name: str, device: str = AUTO) -> None:
        """Raises `InputError` for a model that is no sound student, and a device that is not there."""
        self.model, self.name, self.device = model, name, device
        self.channels, self.multiple, kind, self._cpu = _open(model, name)
        self._chosen = fastest(kind) if device == AUTO else device
        self.pixel_bytes = PIXEL_BYTES_OF_NCNN if self._chosen == NCNN else PIXEL_BYTES.get(kind, PIXEL_BYTES["UNet"])
        self._large = LARGE_FOR_NCNN if self._chosen == NCNN else LARGE
        self._fast = self._cpu if self._chosen == CPU else None
        self._starting = Lock()
        if device != AUTO:
            self._started()

    def __reduce__(self) -> tuple[type["Student"], tuple[bytes, str, str]]:
        return Student, (self.model, self.name, self.device)

    def __call__(self, image: np.ndarray) -> np.ndarray:
        small = self.device == AUTO and image.shape[0] * image.shape[1] < self._large
        run = self._cpu if small else self._started()
        try:
            result = run(image)
            if result.shape != image.shape:  # OpenVINO without memory for its tensors gives those of the image before
                raise RuntimeError("its result has another size")
            return result
        except Exception as error:
            if run is self._cpu:
                raise
            self._fast = self._fallen_back(f"failed ({error})")
        del run  # and with it the device's memory
        return self._cpu(image)

    def _started(self) -> Run:
        with self._starting:
            if self._fast is None:
                self._fast = self._checked()
            return self._fast

    def _checked(self) -> Run:
        start = provider(self._chosen)
        try:
            run = reflected(start(self.model), self.multiple)
            difference = np.sqrt(np.mean((run(_patch(self.channels)) - self._cpu(_patch(self.channels))) ** 2))
        except Exception as error:  # the runtimes' exceptions share no public base
            return self._fallen_back(f"cannot start ({error})")
        return run if difference <= TOLERANCE else self._fallen_back(f"differs from the CPU by {difference:.2g}")

    def _fallen_back(self, reason: str) -> Run:
        line = InputError(f"device {self._chosen}", reason, "the CPU is used instead")
        warnings.warn(str(line), RuntimeWarning, stacklevel=2)
        return self._cpu


def open_student(path: Path, device: str = AUTO) -> Student:
    """An ONNX file that `tbsn export` wrote, on a device: ``auto``, ``cpu``, ``openvino``, ``ncnn`` or, by its name, an
    execution provider of ONNX Runtime, such as ``cuda``.

    Raises `InputError` for a file that is missing, damaged, a pickle, of another version, or that refers to others, and
    for a device that is not there.
    """
    if not path.is_file():
        raise InputError(path, "no such model", "check the name")
    return Student(path.read_bytes(), str(path), device)


def fastest(kind: str) -> str:
    """The device that ``auto`` is for a kind of network: an accelerator, else OpenVINO, else ncnn, else the CPU."""
    beside = [name for name in _installed() if name != NCNN or kind == "FastUNet"]
    return [*(name for name in ACCELERATORS if name in _providers()), *beside, CPU][0]


def provider(device: str) -> Start:
    """What starts a model on a device. Raises `InputError` if it is not there."""
    if device in _installed():
        return _installed()[device]
    if device in (OPENVINO, NCNN):
        raise InputError(f"device {device}", "not installed", f"pip install 'tbsn[{device}]'")
    if device not in _providers():
        there = ", ".join((AUTO, *_providers(), *_installed()))
        raise InputError(f"device {device}", "not there", f"use {there}, or install an ONNX Runtime that has it")
    return lambda model: _runner(_session(model, _providers()[device]))


def sealed(model: bytes) -> bytes:
    """The bytes of an ONNX model with their own hash behind them, as one more entry of its metadata."""
    # In protobuf, a field that is appended is one more of its kind: 14 is ModelProto's metadata, a key and a value.
    value = hashlib.sha256(model).hexdigest().encode()
    entry = b"\x0a" + bytes([len(SEAL)]) + SEAL.encode() + b"\x12" + bytes([len(value)]) + value
    return model + b"\x72" + bytes([len(entry)]) + entry


def is_intact(model: bytes, facts: Mapping[str, str]) -> bool:
    """Whether the bytes of an ONNX model with these ``facts`` are those that were `sealed`, if they were."""
    return SEAL not in facts or sealed(model[: len(model) - len(sealed(b""))]) == model


def _open(model: bytes, name: str) -> tuple[int, int, str, Run]:
    """Channels, multiple, kind of network and, on the CPU, function of a student. Raises `InputError`."""
    if model.startswith(PICKLED):
        raise InputError(name, "is a pickle, which can run code", "make a safetensors file of it with `tbsn convert`")
    again = "get the file again, or export it with `tbsn export`"
    try:
        session = _session(model, "CPUExecutionProvider")
        facts: dict[str, str] = session.get_modelmeta().custom_metadata_map
    except Exception as error:  # ONNX Runtime's exceptions share no public base
        raise InputError(name, f"not an ONNX model, or damaged ({type(error).__name__})", again) from error
    if facts.get("format") != ONNX_FORMAT:
        found = facts.get("format", "none")
        raise InputError(name, f"model format is {found}, not {ONNX_FORMAT}", "export it with this version of tbsn")
    if not is_intact(model, facts):
        raise InputError(name, "damaged: not the bytes that were exported", again)
    try:
        channels, multiple = int(facts["channels"]), int(facts["multiple"])
        if not (0 < channels <= MAX_CHANNELS and 0 < multiple <= MAX_MULTIPLE):
            raise ValueError(f"{channels} channels, multiple {multiple}")
        run = reflected(_runner(session), multiple)
        patch = _patch(channels)
        denoised = run(patch)
    except Exception as error:
        raise InputError(name, f"not a student ({type(error).__name__})", again) from error
    if denoised.shape != patch.shape or not np.isfinite(denoised).all():
        raise InputError(name, "damaged: its results are not finite, or no images", again)
    return channels, multiple, facts.get("kind", ""), run


def _patch(channels: int) -> np.ndarray:
    """Noise on a light that goes from 0 to 1; the sides are no multiples of 8."""
    light = np.linspace(0, 1, 100, dtype=np.float32)[:, None]
    return light + np.float32(0.1) * np.random.default_rng(0).standard_normal((70, 100, channels), np.float32)


def _providers() -> dict[str, str]:
    """ONNX Runtime's by the names of devices."""
    names = {name.removesuffix("ExecutionProvider").lower(): name for name in ort.get_available_providers()}
    names.pop("azure", None)  # computes elsewhere
    return names


def _installed() -> dict[str, Start]:
    """What starts a model elsewhere than in ONNX Runtime, by the names of devices."""
    known = {OPENVINO: (_openvino, "openvino"), NCNN: (_ncnn, "ncnn", "onnx")}
    return {name: start for name, (start, *needed) in known.items() if all(map(find_spec, needed))}


def _threads() -> int:
    """What schedulers tell each of several processes on a machine in this variable; 0 is one for each core."""
    threads = os.environ.get("OMP_NUM_THREADS", "")
    return int(threads) if threads.isdecimal() else 0


def _session(model: bytes, name: str) -> ort.InferenceSession:
    """A model in ONNX Runtime, by bytes: nothing in it can name a file or code of others."""
    options = ort.SessionOptions()
    options.log_severity_level = 4
    options.intra_op_num_threads = _threads()
    options.enable_mem_pattern = False  # no gain in time, and twice the memory
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")  # leaves the cores to others between
    options.add_session_config_entry("session.model_external_initializers_file_folder_path", os.devnull)
    # It would print that it falls back.
    session = ort.InferenceSession(model, options, providers=[name], enable_fallback=0)
    if session.get_providers()[0] != name:
        raise RuntimeError("ONNX Runtime could not load it")
    return session


def _runner(session: ort.InferenceSession) -> Run:
    def run(image: np.ndarray) -> np.ndarray:
        output: Any = session.run(None, {"noisy": _batch(image)})[0]
        return output[0].transpose(1, 2, 0)

    return run


def _openvino(model: bytes) -> Run:
    sys.modules.setdefault("openvino_telemetry", None)  # type: ignore[arg-type]  (it would tell its maker of our use)
    import openvino

    core = openvino.Core()
    # Pinned threads would wait for whatever else runs on their cores: files are read and written meanwhile.
    settings = {"INFERENCE_NUM_THREADS": _threads(), "ENABLE_CPU_PINNING": False}
    compiled = core.compile_model(core.read_model(model), "CPU", settings)
    one = Lock()  # a compiled model takes one image at a time, on all cores

    def run(image: np.ndarray) -> np.ndarray:
        with one:
            return compiled([_batch(image)])[0][0].transpose(1, 2, 0)

    return run


def _ncnn(model: bytes) -> Run:
    from tbsn import in_ncnn

    compute = in_ncnn.start(model, _threads())
    return lambda image: compute(_batch(image)[0]).transpose(1, 2, 0)


def _batch(image: np.ndarray) -> np.ndarray:
    return np.ascontiguousarray(image.transpose(2, 0, 1))[None]
