"""The update of a weight as a part of LIP's step, for any rule: :class:`lip_fast.world.Update`.

When the weight is written goes by what the kernels cost. A float32 weight is stored updated by the first
pass, for the second to read it and not the state again. One kernel takes both products of a large weight,
rounded to TF32, but not where the step writes the weight anew from them. Into a narrow format only what LIP
makes of it is written, from the updated weight in float32: rounded once, stochastically, where writing it in
between would round updates away.
"""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from lip_fast import ops
from lip_fast.backends.triton import MAX_COLUMNS, STORED
from lip_fast.rules import Rule
from lip_fast.sharded.tensors import is_sharded, local_part

__all__ = ["FusedUpdate", "can_fuse"]


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
        rule, counted = self._kind.next(self._group, self._kept, self._M, self._scaling.found_inf)
        self._updated = ops.Updated(self._M, self._grad, self._state, rule, self._scaling)
        Z = None
        if self._replaces:
            Y = ops.update_sketch_(self._updated, V, write=self._stored)
        else:
            Y, Z = ops.update_one_read_(self._updated, V, write=self._stored)
        for name, value in counted.items():
            # Where it lies, for captured steps.
            self._kept[name].copy_(value)
        self._taken, self._written = True, self._stored
        if Z is None:
            Z = ops.project(self._M, Y) if self._stored else ops.update_project(self._updated, Y)
        return Y, Z

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
