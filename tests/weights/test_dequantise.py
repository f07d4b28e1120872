"""An int8 ONNX file as safetensors: a hand-made file, and the shape of a message that is refused."""

import struct
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file

from qamoe.weights.dequantise import dequantise

FLOAT, UINT8, INT8, INT64 = 1, 2, 3, 7  # TensorProto.DataType


def varint(value: int) -> bytes:
    value &= (1 << 64) - 1  # protobuf writes a negative integer as 64 bits
    content = b""
    while value >= 0x80:
        content += bytes([value & 0x7F | 0x80])
        value >>= 7
    return content + bytes([value])


def field(number: int, value: int | bytes) -> bytes:
    if isinstance(value, int):
        return varint(number << 3) + varint(value)
    return varint(number << 3 | 2) + varint(len(value)) + value


def tensor(name: str, kind: int, shape: tuple[int, ...], *content: bytes) -> bytes:
    return b"".join([*(field(1, size) for size in shape), field(2, kind), field(8, name.encode()), *content])


def quantised(name: str, kind: int, integers: list[list[int]], zero: int, scale: float) -> list[bytes]:
    """Return an array in raw_data (9), its zero point in int32_data (5), its scale in float_data (4)."""
    raw = b"".join((number & 0xFF).to_bytes(1, "little") for row in integers for number in row)
    return [
        tensor(f"{name}_scale", FLOAT, (), field(4, struct.pack("<f", scale))),
        tensor(f"{name}_zero_point", kind, (), field(5, varint(zero))),
        tensor(f"{name}_quantized", kind, (len(integers), len(integers[0])), field(9, raw)),
    ]


def node(operator: str, name: str, *inputs: str) -> bytes:
    texts = [(1, text) for text in inputs] + [(2, "out"), (3, name), (4, operator)]
    return b"".join(field(number, text.encode()) for number, text in texts)


def model(nodes: list[bytes], tensors: list[bytes]) -> bytes:
    graph = b"".join([*(field(1, one) for one in nodes), field(2, b"graph"), *(field(5, one) for one in tensors)])
    # producer_name after a 64-bit and a 32-bit field of no meaning here: a reader has to step over both
    return varint(15 << 3 | 1) + bytes(8) + varint(15 << 3 | 5) + bytes(4) + field(2, b"test") + field(7, graph)


def test_weights_are_integers_minus_zero_point_times_scale(tmp_path: Path) -> None:
    matmul = "/encoder/layer.0/output/dense/MatMul_quant"
    nodes = [
        node("MatMulInteger", matmul, "x_quantized", "onnx::MatMul_7_quantized", "x_zero_point", "z"),
        node("MatMul", "/encoder/layer.0/other/MatMul", "q", "k"),
    ]
    tensors = [
        *quantised("embeddings.word_embeddings.weight", UINT8, [[0, 200], [255, 7], [70, 1]], 70, 0.5),
        *quantised("onnx::MatMul_7", INT8, [[-128, 127], [3, -2]], -2, 0.25),
        tensor("encoder.layer.0.output.dense.bias", FLOAT, (2,), field(9, struct.pack("<2f", 1.5, -3.0))),
    ]
    (tmp_path / "model.onnx").write_bytes(model(nodes, tensors))
    dequantise(tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["model.safetensors"]
    weights = load_file(tmp_path / "model.safetensors")
    expected = {
        "embeddings.word_embeddings.weight": [[-35, 65], [92.5, -31.5], [0, -34.5]],
        "encoder.layer.0.output.dense.weight": [[-31.5, 1.25], [32.25, 0]],  # transposed
        "encoder.layer.0.output.dense.bias": [1.5, -3],
    }
    assert {name: array.tolist() for name, array in weights.items()} == expected
    assert {array.dtype for array in weights.values()} == {np.dtype("float32")}


def test_the_same_file_gives_the_same_bytes(tmp_path: Path) -> None:
    """The digest of the result is pinned, so it must not depend on the order of the arrays in the source."""
    tensors = quantised("b", UINT8, [[1, 2]], 0, 0.1) + quantised("a", INT8, [[-1, 5]], 1, 0.3)
    written = []
    for order in (tensors, tensors[::-1]):
        (tmp_path / "model.onnx").write_bytes(model([], order))
        dequantise(tmp_path)
        written.append((tmp_path / "model.safetensors").read_bytes())
    assert written[0] == written[1]
    assert int.from_bytes(written[0][:8], "little") % 8 == 0


def test_an_array_of_another_type_is_refused(tmp_path: Path) -> None:
    (tmp_path / "model.onnx").write_bytes(model([], [tensor("positions", INT64, (1,), field(9, bytes(8)))]))
    with pytest.raises(ValueError, match=r"positions.* 7 "):
        dequantise(tmp_path)
    assert not (tmp_path / "model.safetensors").exists()
