"""Which LIP acts on which weight: two on one weight would undo each other's work."""

import weakref
from collections.abc import Callable
from typing import Any, Protocol

from torch import Tensor

__all__ = ["Caller", "Claim"]


class Caller(Protocol):
    """What makes an optimizer call a LIP in its steps."""

    @property
    def calls(self) -> bool:
        """Whether the optimizer is still there and calls the LIP."""
        ...

    @property
    def is_orphaned(self) -> bool:
        """Whether the optimizer is gone that was to call the LIP."""
        ...

    def yields_to(self, other: "Caller") -> bool:
        """Whether what ``other`` calls may take the place of this LIP."""
        ...

    def stop(self) -> None:
        """Leave the place to another, with no hook behind."""
        ...


class Claim:
    """The claim of one LIP on a weight, held as long as an optimizer calls it.

    Args:
        tensor: returns what is in the place of the weight at the moment.

    Attributes:
        known: the weight that is known to have no other LIP, None where none is.
    """

    def __init__(self, tensor: Callable[[], object]) -> None:
        self._tensor = tensor
        # Not by a weak reference, which a parameter must not have that torch swaps for another.
        self.known: Tensor | None = None
        # None where no optimizer ever called this LIP.
        self._caller: Caller | None = None

    def __getstate__(self) -> dict[str, Any]:
        # A copy of a LIP is called by no optimizer.
        return {"_tensor": self._tensor, "known": None, "_caller": None}

    @property
    def in_use(self) -> bool:
        """Whether an optimizer that is still there calls this LIP after its steps."""
        return self._caller is not None and self._caller.calls

    @property
    def is_orphaned(self) -> bool:
        """Whether the optimizer is gone that was to call this LIP, and nobody said that it should stop."""
        return self._caller is not None and self._caller.is_orphaned

    @property
    def made(self) -> bool:
        """Whether an optimizer was named that calls this LIP, be it still there or not."""
        return self._caller is not None

    @property
    def is_announced(self) -> bool:
        """Whether an optimizer was named, and the weight not taken yet."""
        return self.made and self.known is None

    def announce(self, weight: Tensor, caller: Caller) -> None:
        """Name what is to call this LIP; what would yield to it goes on until :meth:`take`.

        Raises:
            ValueError: another LIP acts on the weight, and does not yield.
        """
        self._check(weight, caller)
        self._caller, self.known = caller, None
        _CLAIMS.add(self)

    def take(self, weight: Tensor) -> None:
        """Take the place of what yields; at first, and of a weight that was replaced.

        Raises:
            ValueError: another LIP acts on the weight, and does not yield.
        """
        # Once it has its place, it takes none from others.
        self._check(weight, self._caller if self.is_announced else None)
        for other in self._others(weight):
            if other._caller is not None and other._caller.calls:
                other._caller.stop()
            # It must not start again beside this LIP.
            other.release()
        self.known = weight

    def release(self) -> None:
        """Hold no weight any more."""
        self._caller = None

    def _others(self, weight: Tensor) -> list["Claim"]:
        return [other for other in _CLAIMS if other is not self and other._tensor() is weight]

    def _check(self, weight: Tensor, new: Caller | None) -> None:
        for other in self._others(weight):
            caller = other._caller
            if caller is None or not caller.calls or (new is not None and caller.yields_to(new)):
                continue
            raise ValueError(
                "expected a weight that no other LIP acts on, got one with a LIP that is attached to an "
                "optimizer, or part of one: call detach() of that LIP first, or take the weight out of the "
                "group with a lip_rank, or delete that optimizer"
            )


# Every claim that was held once and whose LIP is still there.
_CLAIMS: "weakref.WeakSet[Claim]" = weakref.WeakSet()
