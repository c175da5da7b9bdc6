"""Exported fast students in ncnn, whose Winograd convolutions (arXiv 1509.09308) take fewer operations, in float32."""

import os
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from threading import Lock
from typing import Any

import ncnn
import numpy as np
import onnx
from onnx import helper, numpy_helper

PROCESS = os.getpid()
MAGIC, FLOAT32 = 7767517, bytes(4)  # of ncnn's two files
NO_MEMORY = -100
INPUT, OUTPUT = "noisy", "denoised"
OF_SHAPES = ("Shape", "Div", "Mul", "Concat")
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


def start(model: bytes, threads: int) -> Callable[[np.ndarray], np.ndarray]:
    """A student as a function of images (c, h, w), one at a time; ``threads`` 0 is one for each core.

    Raises `ValueError` as `translated` does, and in a forked process, where it would wait for ever, `RuntimeError`.
    """
    net, one = _net(with_copies(translated(model)), threads), Lock()

    def run(image: np.ndarray) -> np.ndarray:
        _check_process()
        with one, net.create_extractor() as extractor:
            extractor.input(INPUT, ncnn.Mat(image))  # type: ignore[attr-defined]
            failed, result = extractor.extract(OUTPUT)
            if failed:
                raise RuntimeError("out of memory" if failed == NO_MEMORY else f"ncnn says {failed}")
            return np.array(result)

    return run


def _net(layers: list[Layer], threads: int) -> Any:
    _check_process()
    net = ncnn.Net()  # type: ignore[attr-defined]
    for lossy in LOSSY:
        setattr(net.opt, f"use_{lossy}", False)
    if threads:
        net.opt.num_threads = threads
    names = {name for layer in layers for name in layer.outputs}
    lines = [str(MAGIC), f"{len(layers)} {len(names)}", *map(str, layers)]
    with TemporaryDirectory() as folder:  # from memory, ncnn would not keep the weights alive
        text, weights = Path(folder, "param"), Path(folder, "bin")
        text.write_text("\n".join(lines) + "\n")
        weights.write_bytes(b"".join(layer.weights for layer in layers))
        if net.load_param(str(text)) or net.load_model(str(weights)):
            raise ValueError("ncnn could not load it")
    return net


def _check_process() -> None:
    if os.getpid() != PROCESS:
        raise RuntimeError("its threads do not outlive a fork: start processes by spawn")


def translated(model: bytes) -> list[Layer]:
    """The layers of an ONNX model: a `FastUNet` that `tbsn export` wrote.

    Raises `ValueError` for what is in no such network: ncnn checks nothing, and would read beyond its weights.
    """
    whole = onnx.load_from_string(model)
    graph, facts = whole.graph, {entry.key: entry.value for entry in whole.metadata_props}
    weights = {one.name: numpy_helper.to_array(one) for one in graph.initializer}
    layers, same, depth = [Layer("Input", [], [INPUT])], dict[str, str](), {INPUT: int(facts["channels"])}
    for node in graph.node:
        how = {one.name: helper.get_attribute_value(one) for one in node.attribute}
        inputs = [same.get(name, name) for name in node.input if name not in weights]
        (output,) = node.output
        before = [depth.get(name, 0) for name in inputs]
        match node.op_type, inputs, before:
            case kind, _, _ if kind in OF_SHAPES:
                continue  # of a layer, what they make is no input: see below
            case "Reshape", [name, _], _ if len(layers) == 1 or layers[-1].kind == "Reorg":
                same[output] = name  # parts of the image's 2x2 pixels: the layer that does so comes between
                continue
            case "Transpose", [_], [channels] if list(how["perm"]) == [0, 1, 3, 5, 2, 4]:
                layer, depth[output] = Layer("Reorg", inputs, [output], "0=2"), 4 * channels
            case "Conv", [_], [channels]:
                layer, depth[output] = _convolution([weights[name] for name in node.input[1:]], how, channels)
                layer.inputs, layer.outputs = inputs, [output]
            case "LeakyRelu", [_], [channels] if layers[-1].outputs == inputs and layers[-1].kind == "Convolution":
                layer, depth[output] = layers.pop(), channels
                layer.parameters += f" 9=2 -23310=1,{how['alpha']:.8g}"
                layer.outputs = [output]
            case "DepthToSpace", [_], [channels] if (how["mode"], how["blocksize"]) == (b"CRD", 2):
                layer, depth[output] = Layer("PixelShuffle", inputs, [output], "0=2"), channels // 4
            case "Add", [_, _], [channels, others] if channels == others:
                layer, depth[output] = Layer("BinaryOp", inputs, [output], "0=0"), channels
            case _:
                raise ValueError(f"it is for fast students, which have no such {node.op_type}")
        layers.append(layer)
    used, made = ({name for layer in layers for name in getattr(layer, part)} for part in ("inputs", "outputs"))
    # Names that are no words could say more in ncnn's file than a name.
    if not used <= made or not all(map(str.isidentifier, made)) or depth.get(OUTPUT) != depth[INPUT]:
        raise ValueError("it is for fast students")
    return layers


def with_copies(layers: list[Layer]) -> list[Layer]:
    """The same with a name of its own for every use of a result, in ``layers`` too: ncnn knows no other."""
    uses = Counter(name for layer in layers for name in layer.inputs)
    copies = {name: [f"{name}:{i}" for i in range(count)] for name, count in uses.items() if count > 1}
    left = {name: iter(names) for name, names in copies.items()}
    done = []
    for layer in layers:
        layer.inputs = [next(left[name]) if name in left else name for name in layer.inputs]
        done.append(layer)
        done += [Layer("Split", [name], copies[name]) for name in layer.outputs if name in copies]
    return done


def _convolution(values: list[np.ndarray], how: dict[str, Any], channels: int) -> tuple[Layer, int]:
    """Layer, and channels of its result, of a convolution by a kernel (o, i, height, width) and perhaps a bias (o)."""
    kernel, *bias = (value.astype(np.float32) for value in values)
    out, into, height, width = kernel.shape
    pads, strides = set(how["pads"]), set(how["strides"])
    simple = how["group"] == 1 and set(how["dilations"]) == {1} and how.get("auto_pad", b"NOTSET") == b"NOTSET"
    if not simple or into != channels or len(pads) > 1 or len(strides) > 1 or any(one.shape != (out,) for one in bias):
        raise ValueError("it is for fast students, which have no such Conv")
    sizes = f"0={out} 1={width} 11={height} 3={strides.pop()} 4={pads.pop()} 5={len(bias)} 6={kernel.size}"
    return Layer("Convolution", [], [], sizes, FLOAT32 + b"".join(one.tobytes() for one in (kernel, *bias))), out
