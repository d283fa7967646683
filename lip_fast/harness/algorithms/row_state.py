"""State that is a tensor of one row for each training row."""

from collections.abc import Mapping
from typing import Any

from torch import Tensor

__all__ = ["restore"]


def restore(table: Tensor, name: str, state: Mapping[str, Any]) -> None:
    """Fill ``table`` (n, l) with ``state[name]``, in place.

    Raises:
        ValueError: the state holds something else, or a tensor of another shape or dtype.
    """
    if set(state) != {name}:
        raise ValueError(f"expected a state of {name}, got {', '.join(state) or 'nothing'}")
    found = state[name]
    if not isinstance(found, Tensor) or (found.shape, found.dtype) != (table.shape, table.dtype):
        shape = f"{tuple(found.shape)} {found.dtype}" if isinstance(found, Tensor) else type(found).__name__
        raise ValueError(f"expected {name} {tuple(table.shape)} {table.dtype}, got {shape}")
    table.copy_(found)
