"""Exported students in ncnn, whose Winograd convolutions (arXiv 1509.09308) take fewer operations, in float32."""

from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import ncnn
import numpy as np
import onnx
from onnx import helper, numpy_helper

MAGIC, FLOAT32 = 7767517, bytes(4)  # of ncnn's two files
INPUT, OUTPUT = "noisy", "denoised"
OF_SHAPES = ("Shape", "Div", "Mul")
LOSSY = ("fp16_packed", "fp16_storage", "fp16_arithmetic", "bf16_storage", "bf16_packed", "int8_inference")


@dataclass
class Layer:
    """One of ncnn's layers: its parameters by number, and its weights as they lie in the file."""

    kind: str
    inputs: list[str]
    outputs: list[str]
    parameters: str = ""
    weights: bytes = b""

    def __str__(self) -> str:
        names = " ".join([*self.inputs, *self.outputs])
        return f"{self.kind} {self.outputs[0]} {len(self.inputs)} {len(self.outputs)} {names} {self.parameters}"


def load(model: bytes, threads: int) -> "ncnn.Net":  # type: ignore[name-defined]
    """A student in ncnn, from image `INPUT` to image `OUTPUT` (c, h, w). Raises `ValueError` as `translated` does."""
    layers = translated(model)
    net = ncnn.Net()  # type: ignore[attr-defined]
    for lossy in LOSSY:
        setattr(net.opt, f"use_{lossy}", False)
    if threads:
        net.opt.num_threads = threads
    names = {name for layer in layers for name in layer.outputs}
    lines = [str(MAGIC), f"{len(layers)} {len(names)}", *map(str, layers)]
    with TemporaryDirectory() as folder:  # in memory, ncnn would not keep the weights alive
        text, weights = Path(folder, "param"), Path(folder, "bin")
        text.write_text("\n".join(lines) + "\n")
        weights.write_bytes(b"".join(layer.weights for layer in layers))
        if net.load_param(str(text)) or net.load_model(str(weights)):
            raise ValueError("ncnn could not load it")
    return net


def translated(model: bytes) -> list[Layer]:
    """The layers of an ONNX model that `tbsn export` wrote. Raises `ValueError` for an operator that no student has."""
    graph = onnx.load_from_string(model).graph
    weights = {one.name: numpy_helper.to_array(one) for one in graph.initializer}
    layers, same = [Layer("Input", [], [INPUT])], dict[str, str]()
    for node in graph.node:
        how = {one.name: helper.get_attribute_value(one) for one in node.attribute}
        inputs = [same.get(name, name) for name in node.input if name and name not in weights]
        (output,) = node.output
        if node.op_type in OF_SHAPES or (node.op_type, how.get("axis")) == ("Concat", 0):
            continue
        if node.op_type == "Reshape":
            same[output] = inputs[0]
        elif node.op_type == "LeakyRelu" and layers[-1].outputs == inputs and layers[-1].kind == "Convolution":
            layers[-1].parameters += f" 9=2 -23310=1,{how['alpha']:.8g}"
            layers[-1].outputs = [output]
        elif node.op_type == "Conv":
            kernel, *bias = (weights[name].astype(np.float32) for name in node.input[1:])
            parameters = f"{_convolution(kernel, how)} 5={len(bias)}"
            values = b"".join(one.tobytes() for one in (kernel, *bias))
            layers.append(Layer("Convolution", inputs, [output], parameters, FLOAT32 + values))
        else:
            kind, parameters = _simple(node.op_type, how)
            layers.append(Layer(kind, inputs, [output], parameters))
    return _split(layers)


def _convolution(kernel: np.ndarray, how: dict[str, Any]) -> str:
    """Parameters of a convolution with a ``kernel`` (o, i, height, width)."""
    (height, width), pads, strides = kernel.shape[2:], set(how["pads"]), set(how["strides"])
    if how["group"] != 1 or set(how["dilations"]) != {1} or len(pads) > 1 or len(strides) > 1:
        raise ValueError("no such convolution in a student")
    return f"0={len(kernel)} 1={width} 11={height} 3={strides.pop()} 4={pads.pop()} 6={kernel.size}"


def _simple(kind: str, how: dict[str, Any]) -> tuple[str, str]:
    """Layer and parameters of an operator without weights."""
    match kind, how:
        case "Add", _:
            return "BinaryOp", "0=0"
        case "Concat", {"axis": 1}:
            return "Concat", "0=0"
        case "DepthToSpace", {"mode": b"CRD", "blocksize": size}:
            return "PixelShuffle", f"0={size}"
        case "Transpose", {"perm": [0, 1, 3, 5, 2, 4]}:
            return "Reorg", "0=2"
        case "MaxPool", {"kernel_shape": [2, 2], "strides": [2, 2]}:
            return "Pooling", "0=0 1=2 2=2"
        case "Resize", {"mode": b"nearest"}:
            return "Interp", "0=1 1=2 2=2"
    raise ValueError(f"no student has the operator {kind}")


def _split(layers: list[Layer]) -> list[Layer]:
    """The same, each result with one name for each of its uses: ncnn knows no other."""
    uses = Counter(name for layer in layers for name in layer.inputs)
    copies = {name: [f"{name}:{i}" for i in range(count)] for name, count in uses.items() if count > 1}
    left = {name: iter(names) for name, names in copies.items()}
    done = []
    for layer in layers:
        layer.inputs = [next(left[name]) if name in left else name for name in layer.inputs]
        done.append(layer)
        done += [Layer("Split", [name], copies[name]) for name in layer.outputs if name in copies]
    return done
