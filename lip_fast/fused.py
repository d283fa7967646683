"""The update of a weight as a part of LIP's step, for any rule: :class:`lip_fast.world.Update`.

When the weight is written goes by what the kernels cost. A float32 weight is stored updated by the first
pass, for the second to read it and not the state again. One kernel takes both products of a large weight,
rounded to TF32, but not where the step writes the weight anew from them, nor where the second one is with
other columns than the first one gave. Into a narrow format only what LIP makes of it is written, from the
updated weight in float32: rounded once, stochastically, where writing it in between would round updates away.
"""

from collections.abc import Callable, Mapping
from typing import Any, TypeVar

import torch
from torch import Tensor

from lip_fast import ops
from lip_fast.backends.triton import MAX_COLUMNS, STORED
from lip_fast.rules import Rule
from lip_fast.sharded.tensors import is_sharded, local_part

__all__ = ["FusedUpdate", "can_fuse"]

_T = TypeVar("_T")


def can_fuse(weight: Tensor, columns: int) -> bool:
    """Whether kernels take the update of this weight together with products by so many columns."""
    grad = weight.grad
    return (
        ops.fuses_updates(weight.device)
        and columns <= MAX_COLUMNS
        and weight.dtype in STORED
        and grad is not None
        and grad.layout == torch.strided
        and _lies_alike(weight, grad)
        and grad.dtype in STORED
    )


def _lies_alike(weight: Tensor, grad: Tensor) -> bool:
    """Whether this process's parts of both are of the same entries, and there are some."""
    if not is_sharded(weight):
        return not is_sharded(grad)
    same = is_sharded(grad) and weight.placements == grad.placements  # type: ignore[attr-defined]
    return same and local_part(weight).numel() > 0


class FusedUpdate:
    """One update by an optimizer's rule: when the updated weight M' is written, and by what.

    Args:
        rule: of the optimizer.
        weight: (l, q), with its gradient; of a DTensor this process's part is updated.
        group: its group.
        state: its state in the optimizer, which fits the rule.
        scaling: of the gradient.
        replaces: whether the step writes the weight anew from the products.
    """

    def __init__(
        self,
        rule: type[Rule],
        weight: Tensor,
        group: Mapping[str, Any],
        state: Mapping[str, Any],
        scaling: ops.Scaling,
        *,
        replaces: bool,
    ) -> None:
        assert weight.grad is not None
        self._M, self._grad, self._scaling = local_part(weight), local_part(weight.grad), scaling
        self._kind, self._group, self._kept = rule, group, state
        self._state = [local_part(state[name]) for name in rule.held(group)]
        self._replaces = replaces
        # Whether M' is stored before LIP is.
        self._stored = self._M.dtype == torch.float32
        self._taken = self._written = False

    def products(self, V: Tensor) -> tuple[Tensor, Tensor]:
        """Y (l, m), Z (q, m). See :class:`lip_fast.world.Update`."""
        if not self._replaces:
            return self._take(ops.update_one_read_, V)
        Y = self.sketch(V)
        return Y, self.project(Y)

    def sketch(self, V: Tensor) -> Tensor:
        """(l, m). See :class:`lip_fast.world.Update`."""
        return self._take(ops.update_sketch_, V)

    def project(self, X: Tensor) -> Tensor:
        """(q, m). See :class:`lip_fast.world.Update`."""
        return ops.project(self._M, X) if self._stored else ops.update_project(self._updated, X)

    def _take(self, op: Callable[..., _T], V: Tensor) -> _T:
        """What an op returns that takes the update."""
        rule, counted = self._kind.next(self._group, self._kept, self._M, self._scaling.found_inf)
        self._updated = ops.Updated(self._M, self._grad, self._state, rule, self._scaling)
        products = op(self._updated, V, write=self._stored)
        for name, value in counted.items():
            # Where it lies, for captured steps.
            self._kept[name].copy_(value)
        self._taken, self._written = True, self._stored
        return products

    def rebuild_(
        self, A: Tensor, s: Tensor, B: Tensor, *, ok: Tensor, step: Tensor, accumulate: bool, seed: int
    ) -> Tensor:
        """Whether the factors were written. See :class:`lip_fast.world.Update`."""
        if not self._taken:
            # In a step of several processes this one failed before: there is no M' to write.
            return torch.zeros_like(ok)
        how: dict[str, Any] = {"ok": ok, "step": step, "accumulate": accumulate, "seed": seed}
        if self._stored:
            return ops.rebuild_(self._M, A, s, B, **how)
        written = ops.update_rebuild_(self._updated, A, s, B, **how)
        self._written = True
        return written

    def settle(self) -> bool:
        """Write M' where the step failed before :meth:`rebuild_`; False where it failed before the update."""
        if self._taken and not self._written:
            self.rebuild_(**_nothing(self._M))
        return self._taken


def _nothing(M: Tensor) -> dict[str, Any]:
    """Arguments of :meth:`FusedUpdate.rebuild_` that write M' and no factors."""
    l, q = M.shape
    empty = torch.zeros(0, dtype=torch.float32, device=M.device)
    return {
        "A": empty.reshape(l, 0),
        "s": empty,
        "B": empty.reshape(q, 0),
        "ok": torch.zeros((), dtype=torch.bool, device=M.device),
        "step": torch.zeros((), dtype=torch.int64, device=M.device),
        "accumulate": True,
        "seed": 0,
    }
