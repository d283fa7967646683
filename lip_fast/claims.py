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

    def hold(self, weight: Tensor, caller: Caller, *, later: bool = False) -> None:
        """Hold the weight for an optimizer that calls this LIP, as long as it does.

        Args:
            weight: in the place of which no other LIP acts.
            caller: that makes the optimizer call this LIP.
            later: whether what yields to it may go on until it is held again.

        Raises:
            ValueError: another LIP acts on the weight.
        """
        self.check(weight, caller, only=later)
        self._caller = caller
        _CLAIMS.add(self)

    def release(self) -> None:
        """Hold no weight any more."""
        self._caller = None

    def check(self, weight: Tensor, new: Caller | None = None, *, only: bool = False) -> None:
        """ValueError where another LIP acts on this weight, and does not yield to a ``new`` one.

        One that yields stops, unless this is ``only`` a question.
        """
        for other in list(_CLAIMS):
            if other is self or other._tensor() is not weight:
                continue
            caller = other._caller
            calls = caller is not None and caller.calls
            if caller is not None and calls and (new is None or not caller.yields_to(new)):
                raise ValueError(
                    "expected a weight that no other LIP acts on, got one with a LIP that is attached to an "
                    "optimizer, or part of one: call detach() of that LIP first, or take the weight out of "
                    "the group with a lip_rank, or delete that optimizer"
                )
            if not only:
                # Its optimizer has stopped calling it, or does now, and must not start again beside this LIP.
                if caller is not None and calls:
                    caller.stop()
                other.release()
        if not only:
            self.known = weight


# Every claim that was held once and whose LIP is still there.
_CLAIMS: "weakref.WeakSet[Claim]" = weakref.WeakSet()
