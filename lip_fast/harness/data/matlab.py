"""Numeric matrices from MATLAB files, versions 5 to 7.

A reader of its own, because ``scipy.io.loadmat`` trusts the sizes in a file: of a damaged one it ends the
whole process with a bus error. Here every size is held against the bytes that are there.
"""

import struct
import zlib
from collections.abc import Collection, Iterator

import numpy as np

__all__ = ["matlab_matrices"]

HEADER = 128
MATRIX, COMPRESSED = 14, 15
TYPES = {1: "i1", 2: "u1", 3: "i2", 4: "u2", 5: "i4", 6: "u4", 7: "f4", 9: "f8", 12: "i8", 13: "u8"}
SPARSE, NUMERIC = 5, range(6, 16)  # classes of arrays; below are cells, structures, objects and text
COMPLEX = 0x08  # of the flags
# Elements of a sparse matrix made dense; its header can ask for any number.
LARGEST = 2**28


def matlab_matrices(content: bytes, names: Collection[str]) -> dict[str, np.ndarray]:
    """The matrices of a MATLAB file that have one of the names; sparse ones are made dense.

    Args:
        content: the file.
        names: those wanted; others are left unread.

    Returns:
        real arrays of two dimensions, by name.

    Raises:
        ValueError: damage, a file of version 7.3 (which is HDF5), or a wanted variable that is no real
            matrix.
        struct.error, zlib.error: damage.
    """
    if len(content) < HEADER:
        raise ValueError(f"expected a header of {HEADER} bytes, found {len(content)}")
    order = {b"IM": "<", b"MI": ">"}.get(content[126:128])
    if order is None:
        raise ValueError("found no header of MATLAB 5 to 7")
    (version,) = struct.unpack_from(order + "H", content, 124)
    if version != 0x0100:
        raise ValueError(f"expected version 1.0 (save with -v7), found {version >> 8}.{version & 255}")
    matrices: dict[str, np.ndarray] = {}
    for kind, body in _elements(content[HEADER:], order):
        if kind == COMPRESSED:
            kind, body = next(_elements(zlib.decompress(body), order))
        if kind == MATRIX:
            parts = list(_elements(body, order))
            name = bytes(_part(parts, 2)[1]).decode("latin-1")
            if name in names:
                matrices[name] = _matrix(parts, order)
    return matrices


def _elements(content: bytes, order: str) -> Iterator[tuple[int, bytes]]:
    """Type and bytes of each data element."""
    at = 0
    while at < len(content):
        kind, size = struct.unpack_from(order + "II", content, at)
        if kind >> 16:  # a small element: both halves in the first word, up to four bytes in the second
            kind, size, start, following = kind & 0xFFFF, kind >> 16, at + 4, at + 8
            end = following
        else:
            start = at + 8
            # All but compressed elements are filled up to eight bytes.
            end = following = start + size if kind == COMPRESSED else start + size + (-size % 8)
        if start + size > min(end, len(content)):
            raise ValueError(f"expected {size} bytes in an element, found {min(end, len(content)) - start}")
        yield kind, content[start : start + size]
        at = following


def _matrix(parts: list[tuple[int, bytes]], order: str) -> np.ndarray:
    """The array of a matrix element: flags, dimensions, name, [row indices, column starts,] values."""
    flags = _numbers(parts, 0, order)
    array_class, bits = int(flags[0]) & 0xFF, int(flags[0]) >> 8 & 0xFF
    shape = [int(size) for size in _numbers(parts, 1, order)]
    if array_class != SPARSE and array_class not in NUMERIC:
        raise ValueError(f"expected a matrix of numbers, found an array of class {array_class}")
    if bits & COMPLEX or len(shape) != 2 or min(shape) < 0:
        raise ValueError(f"expected a real matrix, found {'a complex one' if bits & COMPLEX else shape}")
    if array_class == SPARSE:
        rows, starts, values = (_numbers(parts, index, order) for index in (3, 4, 5))
        return _dense(shape, rows.astype(np.int64), starts.astype(np.int64), values)
    values = _numbers(parts, 3, order)
    if len(values) != shape[0] * shape[1]:
        raise ValueError(f"expected {shape[0]} x {shape[1]} values, found {len(values)}")
    return values.reshape(shape, order="F")


def _dense(shape: list[int], rows: np.ndarray, starts: np.ndarray, values: np.ndarray) -> np.ndarray:
    """A matrix from the compressed columns of a sparse one."""
    if shape[0] * shape[1] > LARGEST:
        raise ValueError(f"expected a sparse matrix of at most {LARGEST} elements, found shape {shape}")
    counts = np.diff(starts)
    if len(starts) != shape[1] + 1 or starts[0] != 0 or (counts < 0).any():
        raise ValueError(f"expected ascending starts of {shape[1]} columns")
    stored = starts[-1]
    rows, values = rows[:stored], values[:stored]
    if len(rows) != stored or len(values) != stored or ((rows < 0) | (rows >= shape[0])).any():
        raise ValueError(f"expected {stored} values in {shape[0]} rows, found {len(values)} or other rows")
    matrix = np.zeros(shape, dtype=values.dtype)
    matrix[rows, np.repeat(np.arange(shape[1]), counts)] = values
    return matrix


def _part(parts: list[tuple[int, bytes]], index: int) -> tuple[int, bytes]:
    if index >= len(parts):
        raise ValueError(f"expected at least {index + 1} parts of a matrix, found {len(parts)}")
    return parts[index]


def _numbers(parts: list[tuple[int, bytes]], index: int, order: str) -> np.ndarray:
    """One part as numbers in the machine's byte order."""
    kind, content = _part(parts, index)
    if kind not in TYPES:
        raise ValueError(f"expected numbers in part {index + 1} of a matrix, found type {kind}")
    numbers = np.frombuffer(content, np.dtype(order + TYPES[kind]))
    if index < 3 and not len(numbers):
        raise ValueError(f"expected part {index + 1} of a matrix to hold something")
    return numbers.astype(numbers.dtype.newbyteorder("="))
