"""Read the weights of a CTranslate2 model (model.bin) as torch tensors, without CTranslate2.

Source of the format: CTranslate2's own writer (its module specs.model_spec), binary version 6. All numbers are
little-endian; a string is its length with a final zero byte (u16), then its bytes.
"""

import struct
from pathlib import Path
from typing import TYPE_CHECKING

from qamoe.errors import UserError

if TYPE_CHECKING:
    import torch

BINARY_VERSION = 6
_TYPES = ("float32", "int8", "int16", "int32", "float16", "bfloat16")  # by the number that stands for it


def read_variables(path: Path, spec: str, prefix: str = "") -> "dict[str, torch.Tensor]":
    """Return the variables of a model.bin whose name begins with `prefix`, in their stored shapes and types.

    Raises UserError for a file that is damaged, of another binary version, or of another kind of model than `spec`.
    """
    import torch

    content = memoryview(bytearray(path.read_bytes()))
    position = 0

    def take(size: int) -> memoryview:
        nonlocal position
        position += size
        if position > len(content):
            raise ValueError
        return content[position - size : position]

    def number(form: str) -> int:
        (value,) = struct.unpack(f"<{form}", take(struct.calcsize(form)))
        return int(value)

    def string() -> str:
        return bytes(take(number("H"))[:-1]).decode()

    variables = {}
    try:
        if (version := number("I")) != BINARY_VERSION:
            raise UserError(f"{path} has binary version {version}; this reader knows version {BINARY_VERSION}.")
        if (found := string()) != spec:
            raise UserError(f"{path} is a model of kind {found!r}; a {spec} is expected.")
        number("I")  # revision of the kind, which only CTranslate2's own runtime uses
        for _ in range(number("I")):
            name = string()
            shape = [number("I") for _ in range(number("B"))]
            kind = getattr(torch, _TYPES[number("B")])
            values = take(number("I"))
            if name.startswith(prefix):
                variables[name] = torch.frombuffer(values, dtype=kind).reshape(shape)
        number("I")  # of aliases, which the encoder has none of
    except (IndexError, ValueError, RuntimeError):
        raise UserError(f"{path} is damaged: it breaks off or is not a CTranslate2 model at byte {position}.") from None
    return variables
