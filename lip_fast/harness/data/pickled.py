"""Pickles of plain values and arrays, read without running anything that they name.

A pickle is a program for a stack machine, and ``pickle.load`` lets it import and call. Here the standard
library's machine may look up the names in ``_ALLOWED`` and no other, as the library's documentation advises.
Even those are not imported: a class of ours, which checks what it is given, takes the place of each.
"""

import io
import math
import pickle
import pickletools
from typing import Any

import numpy as np

from lip_fast.harness.files.numpy_values import Dtype

__all__ = ["unpickle_arrays"]


class _Array:
    """An array, which a pickle makes empty and then gives a shape, a dtype and bytes."""

    value: np.ndarray | None = None

    def __init__(self, *_: Any) -> None:
        pass

    def __setstate__(self, state: Any) -> None:
        _, shape, dtype, fortran, content = state
        if isinstance(content, str):  # Python 2 wrote bytes as text in latin-1
            content = content.encode("latin-1")
        if not all(type(size) is int and size >= 0 for size in shape):
            raise ValueError(f"expected the shape of an array, found {shape!r}")
        if len(content) != math.prod(shape) * dtype.value.itemsize:
            raise ValueError(f"expected bytes for shape {shape} of {dtype.value}, found {len(content)}")
        array = np.frombuffer(content, dtype.value).reshape(shape, order="F" if fortran else "C")
        self.value = array.astype(dtype.value.newbyteorder("="))


class _Encode:
    """Bytes that protocols before 3 write as text."""

    __slots__ = ()  # nothing for a pickle to set

    def __call__(self, text: str, encoding: str) -> bytes:
        if encoding != "latin1":
            raise ValueError(f"expected bytes as latin1, found {encoding!r}")
        return text.encode("latin-1")


# What takes the place of the names that a pickle may hold.
_ALLOWED = {
    ("numpy.core.multiarray", "_reconstruct"): _Array,
    ("numpy._core.multiarray", "_reconstruct"): _Array,
    ("numpy", "ndarray"): _Array,
    ("numpy", "dtype"): Dtype,
    ("_codecs", "encode"): _Encode(),
}
# What arrays and plain values have no need of: objects of other kinds, names from a registry of the process,
# and bytes that are made room for before they are there.
_REFUSED = {
    *("INST", "OBJ", "NEWOBJ", "NEWOBJ_EX", "EXT1", "EXT2", "EXT4", "PERSID", "BINPERSID"),
    *("BYTEARRAY8", "NEXT_BUFFER", "READONLY_BUFFER"),
}


# The one in Python: that in C makes room for as many places of its memo as a damaged number says.
class _Unpickler(pickle._Unpickler):
    def find_class(self, module: str, name: str) -> Any:
        if (module, name) not in _ALLOWED:
            raise ValueError(f"the pickle names {f'{module} {name}'!r}, which only code could need")
        return _ALLOWED[module, name]


def unpickle_arrays(content: bytes) -> dict[str, Any]:
    """The dict in a pickle; its arrays are those of its own values, deeper ones are not looked for.

    Args:
        content: the pickle, of any protocol.

    Raises:
        Exception: of many kinds (the caller says which file it was): the pickle is damaged, holds anything
            else than plain values and arrays of numbers, or no dict of them.
    """
    for opcode, _, _ in pickletools.genops(content):
        if opcode.name in _REFUSED:
            raise ValueError(f"the pickle uses {opcode.name}, which plain values and arrays do not need")
    # Python 2 wrote text and bytes alike.
    result = _Unpickler(io.BytesIO(content), encoding="latin-1").load()
    if not isinstance(result, dict) or not all(isinstance(key, str) for key in result):
        raise ValueError(f"expected a dict with names, found {type(result).__name__}")
    return {key: value.value if isinstance(value, _Array) else value for key, value in result.items()}
