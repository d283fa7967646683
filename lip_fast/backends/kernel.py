"""What the table of a backend says of a kernel."""

from collections.abc import Callable
from typing import Any, NamedTuple

__all__ = ["Kernel"]


class Kernel(NamedTuple):
    """One kernel: what it runs, which arguments it can take, which it should take (None: none)."""

    run: Callable[..., Any]
    can: Callable[..., bool]
    pays: Callable[..., bool] | None
    reason: str
