"""Fuzz the reader of models: any bytes named .onnx are a model, or bad input that says so in one line.

    python fuzz/model.py -max_total_time=120

A file that breaks the rule stays, as `build/fuzz/model-crash-*`.
"""

import sys
import tempfile
from pathlib import Path

import atheris

with atheris.instrument_imports(include=["tbsn"]):
    from tbsn import denoiser
    from tbsn.errors import InputError

import numpy as np
from onnx import TensorProto, helper


def seed() -> bytes:
    """A model that gives back what it gets."""
    shape = ["batch", 3, "height", "width"]
    ends = [helper.make_tensor_value_info(name, TensorProto.FLOAT, shape) for name in ("noisy", "denoised")]
    graph = helper.make_graph([helper.make_node("Identity", ["noisy"], ["denoised"])], "identity", ends[:1], ends[1:])
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    helper.set_model_props(model, {"format": "tbsn-onnx-1", "channels": "3", "multiple": "1"})
    return model.SerializeToString()


def check(path: Path) -> None:
    """What holds for any model."""
    image = np.full((3, 4, 1), 128, np.uint8)
    try:
        denoised = denoiser.load(path)(image)
    except InputError as error:
        assert "\n" not in str(error) and "; " in str(error), error
        return
    assert denoised.shape == image.shape and denoised.dtype == image.dtype


def main() -> None:
    Path("build/fuzz").mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        (folder / "corpus").mkdir()
        (folder / "corpus" / "identity").write_bytes(seed())

        def one(data: bytes) -> None:
            (folder / "model.onnx").write_bytes(data)
            check(folder / "model.onnx")

        limits = ["-rss_limit_mb=2048", "-timeout=20", "-max_len=2000", "-artifact_prefix=build/fuzz/model-"]
        atheris.Setup([sys.argv[0], *limits, *sys.argv[1:], str(folder / "corpus")], one)
        atheris.Fuzz()


if __name__ == "__main__":
    main()
