"""IDX files, the format of MNIST and its kin."""

import gzip
import math
from pathlib import Path

import numpy as np

from lip_fast.cli.errors import UserError
from lip_fast.harness.files.reading import reading

__all__ = ["read_idx"]

UNSIGNED_BYTES = 8  # the code of the only element type these data sets use


def read_idx(folder: Path, name: str, dimensions: int) -> np.ndarray:
    """Read ``folder/name`` or ``folder/name.gz``: uint8 of as many dimensions.

    Raises:
        UserError: neither file is there, or its bytes are not what its header says.
    """
    path = next((p for p in (folder / name, folder / f"{name}.gz") if p.exists()), None)
    if path is None:
        raise UserError(f"expected {name} or {name}.gz in {folder}, found neither")
    with reading(path, "an IDX file"):
        content = path.read_bytes()
        if path.suffix == ".gz":
            content = gzip.decompress(content)
    magic = bytes([0, 0, UNSIGNED_BYTES, dimensions])
    if content[:4] != magic:
        raise UserError(
            f"expected {path} to begin with {magic.hex()}, found {content[:4].hex() or 'nothing'}"
        )
    start = 4 + 4 * dimensions
    shape = tuple(int.from_bytes(content[at : at + 4], "big") for at in range(4, start, 4))
    if 0 in shape:
        raise UserError(f"expected {path} to hold something, found shape {shape}")
    size = start + math.prod(shape)
    if len(content) != size:
        raise UserError(f"expected {size} bytes in {path} for shape {shape}, found {len(content)}")
    return np.frombuffer(content, np.uint8, offset=start).reshape(shape)
