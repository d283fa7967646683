"""The update of ``torch.optim.SGD``."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from lip_fast.rounding import compute_dtype
from lip_fast.rules.rule import Rule, write

__all__ = ["SGD"]


@dataclass(frozen=True)
class SGD(Rule):
    """SGD, with momentum or without.

    ::

        d = g (-g to maximize) + weight_decay M
        b = momentum b + (1 - dampening) d                    b = d in the first step
        M' = M - lr b                                         M - lr (d + momentum b) with nesterov

    (without momentum, M - lr d).
    """

    NAME = "sgd"
    STATE = ("momentum_buffer",)
    NEEDED = 0
    SCALARS = ("lr",)

    lr: Tensor
    momentum: float = 0.0
    dampening: float = 0.0
    weight_decay: float = 0.0
    nesterov: bool = False
    maximize: bool = False
    first: bool = False
    """The buffer holds nothing yet, and is not read."""

    @classmethod
    def fits(cls, group: Mapping[str, Any], state: Mapping[str, Any]) -> bool:
        started = not group["momentum"] or state.get("momentum_buffer") is not None
        # torch looks at this pair in its constructor alone.
        known = not group["nesterov"] or (group["momentum"] > 0 and not group["dampening"])
        return started and known and not isinstance(group["weight_decay"], Tensor)

    @classmethod
    def held(cls, group: Mapping[str, Any]) -> tuple[str, ...]:
        return cls.STATE if group["momentum"] else ()

    @classmethod
    def next(
        cls, group: Mapping[str, Any], state: Mapping[str, Any], like: Tensor, found_inf: Tensor | None
    ) -> tuple["SGD", dict[str, Tensor]]:
        return cls.of_group(group, like), {}

    def check(self, state: Sequence[Tensor]) -> None:
        needed = self.momentum != 0
        if needed != (len(state) > 0):
            expected, got = ("a", "none") if needed else ("no", "one")
            raise ValueError(f"expected {expected} momentum_buffer with momentum {self.momentum}, got {got}")
        if self.nesterov and not (needed and self.dampening == 0):
            raise ValueError(
                "expected momentum and no dampening with nesterov, "
                f"got momentum {self.momentum} and dampening {self.dampening}"
            )

    def advance(self, M: Tensor, grad: Tensor, state: Sequence[Tensor], skip: Tensor | bool) -> None:
        for buffer in state:
            direction = self._direction(M, grad)
            if not self.first:
                direction = self.momentum * buffer.to(direction.dtype) + (1 - self.dampening) * direction
            write(buffer, direction, skip)

    def updated(self, M: Tensor, grad: Tensor, state: Sequence[Tensor]) -> Tensor:
        old = M.to(compute_dtype(M))
        if not state:
            direction = self._direction(M, grad)
        else:
            direction = state[0].to(old.dtype)
            if self.nesterov:
                direction = self._direction(M, grad) + self.momentum * direction
        return old - self.lr.to(old.dtype) * direction

    def _direction(self, M: Tensor, grad: Tensor) -> Tensor:
        dtype = compute_dtype(M)
        direction = -grad.to(dtype) if self.maximize else grad.to(dtype)
        return direction + self.weight_decay * M.to(dtype) if self.weight_decay else direction
