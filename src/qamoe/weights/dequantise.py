"""An int8 BERT of ONNX Runtime's quantiser as the float32 safetensors file that torch and transformers read.

Neither onnx nor onnxruntime is needed: of the file, a protobuf message (onnx.proto3), only names and arrays matter.
"""

import json
import struct
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from qamoe.files import write_bytes

_GRAPH = 7  # of ModelProto
_NODE, _INITIALIZER = 1, 5  # of GraphProto
_INPUT, _NAME, _OPERATOR = 1, 3, 4  # of NodeProto
_DIMENSION, _TYPE, _FLOATS, _INTEGERS, _TENSOR_NAME, _RAW = 1, 2, 4, 5, 8, 9  # of TensorProto
_DTYPES = {1: "<f4", 2: "u1", 3: "i1"}  # TensorProto.DataType


def dequantise(folder: Path) -> None:
    """Replace a folder's model.onnx by model.safetensors: weight = (integer - zero point) x scale, in float32.

    A matrix of a MatMulInteger gets the name of its node's layer, and its transpose is stored, as torch has it. Raises
    ValueError for an array of another type.
    """
    source = folder / "model.onnx"
    tensors, matrices = read(source.read_bytes())
    weights = {}
    for name in tensors:
        if name.endswith("_quantized"):
            stem = name.removesuffix("_quantized")
            integers, zero, scale = (tensors[f"{stem}_{part}"] for part in ("quantized", "zero_point", "scale"))
            values = (integers.astype(np.float32) - zero.astype(np.float32)) * scale
            weights[matrices.get(name, stem)] = values.T if name in matrices else values
        elif not name.endswith(("_scale", "_zero_point")):
            weights[name] = tensors[name]
    write_bytes(folder / "model.safetensors", safetensors(weights))
    source.unlink()


def read(model: bytes) -> tuple[dict[str, np.ndarray], dict[str, str]]:
    """Return a model's arrays by name, and for the second input of each MatMulInteger the name of its layer's weight.

    A node is named after its layer: /encoder/layer.0/output/dense/MatMul_quant.
    """
    tensors, matrices = {}, {}
    for key, graph in _fields(memoryview(model)):
        if key != _GRAPH or isinstance(graph, int):
            continue
        for part, message in _fields(graph):
            if part == _INITIALIZER:
                name, array = _tensor(message)
                tensors[name] = array
            elif part == _NODE:
                node = [(field, bytes(value).decode()) for field, value in _fields(message) if field <= _OPERATOR]
                if (_OPERATOR, "MatMulInteger") in node:
                    inputs = [value for field, value in node if field == _INPUT]
                    layer = next(value for field, value in node if field == _NAME).rpartition("/")[0]
                    matrices[inputs[1]] = layer.strip("/").replace("/", ".") + ".weight"
    return tensors, matrices


def _tensor(message: memoryview) -> tuple[str, np.ndarray]:
    name, shape, kind, content = "", [], 0, memoryview(b"")
    for field, value in _fields(message):
        if field == _DIMENSION:
            shape += [value] if isinstance(value, int) else list(_varints(value))
        elif field == _TYPE:
            kind = value
        elif field == _TENSOR_NAME:
            name = bytes(value).decode()
        elif field in (_RAW, _FLOATS):
            content = value
        elif field == _INTEGERS:
            content = memoryview(bytes(number & 0xFF for number in _varints(value)))
    if kind not in _DTYPES:
        raise ValueError(f"array {name} has the type {kind} of ONNX, must be one of {sorted(_DTYPES)}")
    return name, np.frombuffer(content, _DTYPES[kind]).reshape(shape)


def _fields(message: memoryview) -> Iterator[tuple[int, Any]]:
    """Yield the fields of a protobuf message: number, and an integer or the bytes."""
    at = 0
    while at < len(message):
        key, at = _varint(message, at)
        number, wire = key >> 3, key & 7
        if wire == 0:
            value, at = _varint(message, at)
            yield number, value
            continue
        length, at = {1: (8, at), 5: (4, at)}.get(wire) or _varint(message, at)
        yield number, message[at : at + length]
        at += length


def _varint(message: memoryview, at: int) -> tuple[int, int]:
    value = shift = 0
    while True:
        byte = message[at]
        value, shift, at = value | (byte & 0x7F) << shift, shift + 7, at + 1
        if byte < 0x80:
            return value, at


def _varints(message: memoryview) -> Iterator[int]:
    at = 0
    while at < len(message):
        value, at = _varint(message, at)
        yield value


def safetensors(weights: dict[str, np.ndarray]) -> bytes:
    """Return float32 arrays as a safetensors file.

    Written here because the digest is pinned, and the library may order or pad its header otherwise one day.
    """
    header: dict[str, object] = {"__metadata__": {"format": "pt"}}
    start = 0
    for name in sorted(weights):
        end = start + weights[name].nbytes
        header[name] = {"dtype": "F32", "shape": list(weights[name].shape), "data_offsets": [start, end]}
        start = end
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    return struct.pack("<Q", len(text)) + text + b"".join(weights[name].tobytes() for name in sorted(weights))
