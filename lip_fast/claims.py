"""Which LIP acts on which weight: two on one weight would undo each other's work."""

import weakref
from collections.abc import Callable
from typing import Any

from torch import Tensor

__all__ = ["Claim"]


def _no_weight() -> None:
    return None


class Claim:
    """The claim of one LIP on a weight, held as long as an optimizer calls it.

    Args:
        tensor: returns what is in the place of the weight at the moment.

    Attributes:
        known: returns the weight that is known to have no other LIP, None where none is.
    """

    def __init__(self, tensor: Callable[[], object]) -> None:
        self._tensor = tensor
        self.known: Callable[[], Tensor | None] = _no_weight
        # Whether an optimizer still calls this LIP; None where none ever did.
        self._is_called: Callable[[], bool] | None = None

    def __getstate__(self) -> dict[str, Any]:
        # A copy of a LIP is called by no optimizer.
        return {"_tensor": self._tensor, "known": _no_weight, "_is_called": None}

    @property
    def in_use(self) -> bool:
        """Whether an optimizer that is still there calls this LIP after its steps."""
        return self._is_called is not None and self._is_called()

    @property
    def made(self) -> bool:
        """Whether an optimizer was named that calls this LIP, be it still there or not."""
        return self._is_called is not None

    def hold(self, weight: Tensor, is_called: Callable[[], bool]) -> None:
        """Hold the weight for an optimizer that calls this LIP as long as ``is_called`` says so.

        Raises:
            ValueError: another LIP acts on the weight.
        """
        self.check(weight)
        self._is_called = is_called
        _CLAIMS.add(self)

    def release(self) -> None:
        """Hold no weight any more."""
        self._is_called = None

    def check(self, weight: Tensor) -> None:
        """ValueError where another LIP acts on this weight."""
        for other in _CLAIMS:
            if other is self or other._tensor() is not weight:
                continue
            if other.in_use:
                raise ValueError(
                    "expected a weight that no other LIP acts on, got one with a LIP that is attached to an "
                    "optimizer, or part of one: call remove() of the handle that its attach() returned "
                    "first, or take the weight out of the group with a lip_rank, or delete that optimizer"
                )
            # Its optimizer has stopped calling it, and must not start again beside this LIP.
            other.release()
        self.known = weakref.ref(weight)


# Every claim that was held once and whose LIP is still there.
_CLAIMS: "weakref.WeakSet[Claim]" = weakref.WeakSet()
