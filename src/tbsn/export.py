"""From a trained student to the ONNX file of the ground floor (needs torch)."""

import logging
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime as ort
import torch

from tbsn.errors import InputError
from tbsn.files import ONNX_FORMAT, atomic
from tbsn.network.files import Student, description
from tbsn.runtime import sealed

TOLERANCE = 1e-4


def export(student: Student, path: Path) -> float:
    """Write a student as ONNX for any batch and size, and return its largest difference to torch.

    Checked at three shapes, one of them not square. Raises `InputError`, and writes nothing, if the two differ by more
    than 1e-4 (values in [0, 1]).
    """
    student = student.eval()
    channels, multiple = student.config.channels, student.multiple
    model = _to_onnx(student)
    facts = {"format": ONNX_FORMAT, "channels": str(channels), "multiple": str(multiple)} | description(student)
    onnx.helper.set_model_props(model, facts)
    data = sealed(model.SerializeToString())
    difference = largest_difference(student, data)
    if not difference <= TOLERANCE:
        raise InputError(path, f"the export differs from torch by {difference:.1e}", "report this with your versions")
    with atomic(path) as partial:
        partial.write_bytes(data)
    return difference


def _to_onnx(student: Student) -> onnx.ModelProto:
    unit = student.multiple
    sizes = {0: torch.export.Dim("batch"), 2: unit * torch.export.Dim("rows"), 3: unit * torch.export.Dim("cols")}
    example = torch.rand(2, student.config.channels, 2 * unit, 3 * unit)
    names: dict[str, Any] = {"input_names": ["noisy"], "output_names": ["denoised"]}
    # The exporter speaks of its own inside: of operators of packages that are not needed, and of its deprecations.
    logging.getLogger("torch.onnx").setLevel(logging.ERROR)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)
        program = torch.onnx.export(
            student, (example,), dynamic_shapes=(sizes,), dynamo=True, verbose=False, optimize=True, **names
        )
    assert program is not None
    model = program.model_proto
    for described in (model.graph, *model.graph.node, *model.graph.value_info):
        described.ClearField("metadata_props")  # where the exporter says which lines, in which folders here, made it
    return model


@torch.no_grad()
def largest_difference(student: Student, model: bytes) -> float:
    """Between a torch student and its ONNX form, over three shapes."""
    session = ort.InferenceSession(model, providers=["CPUExecutionProvider"])
    unit = student.multiple
    generator = torch.Generator().manual_seed(0)
    differences = []
    for shape in ((1, unit, unit), (2, 2 * unit, 5 * unit), (1, 8 * unit, 8 * unit)):
        noisy = torch.rand(shape[0], student.config.channels, *shape[1:], generator=generator)
        denoised = np.asarray(session.run(None, {"noisy": noisy.numpy()})[0])
        differences.append(np.abs(student(noisy).numpy() - denoised).max())
    return float(max(differences))
