"""The update of a weight by SGD or AdamW as a part of LIP's step: :class:`lip_fast.world.Update`.

Both go by what the kernels cost. A float32 weight is stored updated by the first pass, for the second to read
it and not the state again; but not where one kernel takes both products and the step replaces the weight, not
adds to it. Into a narrow format only what LIP makes of it is written, from the updated weight in float32:
rounded once, stochastically, where writing it in between would round updates away.
"""

from typing import Any

import torch
from torch import Tensor

from lip_fast import ops
from lip_fast.sharded.tensors import is_sharded, local_part

__all__ = ["AdamWUpdate", "SGDUpdate", "can_fuse"]

_DTYPES = (torch.float32, torch.bfloat16, torch.float16)
# Widest products of the kernels.
_MAX_COLUMNS = 128


def can_fuse(weight: Tensor, columns: int) -> bool:
    """Whether kernels take the update of this weight together with products by so many columns."""
    grad = weight.grad
    return (
        ops.fuses_updates(weight.device)
        and columns <= _MAX_COLUMNS
        and weight.dtype in _DTYPES
        and grad is not None
        and grad.layout == torch.strided
        and _lies_alike(weight, grad)
        and grad.dtype in _DTYPES
    )


def _lies_alike(weight: Tensor, grad: Tensor) -> bool:
    """Whether this process's parts of both are of the same entries, and there are some."""
    if not is_sharded(weight):
        return not is_sharded(grad)
    same = is_sharded(grad) and weight.placements == grad.placements  # type: ignore[attr-defined]
    return same and local_part(weight).numel() > 0


class _Update:
    """What both have in common: when the updated weight M' is written, and by what.

    Args:
        weight: (l, q), with its gradient; of a DTensor this process's part is updated.
        group: its group.
        scaling: of the gradient.
    """

    def __init__(self, weight: Tensor, group: dict[str, Any], scaling: ops.Scaling) -> None:
        assert weight.grad is not None
        self._M, self._grad, self._scaling = local_part(weight), local_part(weight.grad), scaling
        # Whether M' is stored before LIP is.
        replaced_at_once = group["lip_rest"] == "drop" and ops.reads_once(self._M)
        self._stored = self._M.dtype == torch.float32 and not replaced_at_once
        self._taken = self._written = False

    def products(self, V: Tensor) -> tuple[Tensor, Tensor]:
        """Y (l, m), Z (q, m). See :class:`lip_fast.world.Update`."""
        products = self._take(V)
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
        written = self._write(A, s, B, found_inf=self._scaling.found_inf, **how)
        self._written = True
        return written

    def settle(self) -> bool:
        """Write M' where an error came before :meth:`rebuild_`; False where the update was not even taken."""
        if self._taken and not self._written:
            self.rebuild_(**_nothing(self._M))
        return self._taken

    def _take(self, V: Tensor) -> tuple[Tensor, Tensor]:
        """Update, and return both products of M'."""
        raise NotImplementedError

    def _write(self, A: Tensor, s: Tensor, B: Tensor, **how: Any) -> Tensor:
        """Write the factors or M', which is not stored."""
        raise NotImplementedError


class AdamWUpdate(_Update):
    """One update of :class:`torch.optim.AdamW`.

    Args:
        weight: (l, q), with its gradient.
        group: its group.
        state: its state in the optimizer, which an earlier step has made.
        scaling: of the gradient.
    """

    def __init__(
        self, weight: Tensor, group: dict[str, Any], state: dict[str, Any], scaling: ops.Scaling
    ) -> None:
        super().__init__(weight, group, scaling)
        # As torch, whatever else an earlier setting left in the state.
        largest = local_part(state["max_exp_avg_sq"]) if group["amsgrad"] else None
        moments = local_part(state["exp_avg"]), local_part(state["exp_avg_sq"])
        self._state = ops.AdamWState(*moments, largest)
        self._group, self._count = group, state["step"]

    def _take(self, V: Tensor) -> tuple[Tensor, Tensor]:
        M, group, found_inf = self._M, self._group, self._scaling.found_inf
        count = self._count + 1
        if found_inf is not None:
            count = count - found_inf.to(count.device)
        self._rule = ops.AdamWRule(
            _scalar(group["lr"], M),
            _scalar(count, M),
            group["betas"][0],
            group["betas"][1],
            group["eps"],
            group["weight_decay"],
            group["maximize"],
        )
        products = ops.adamw_one_read_(
            M, self._grad, self._state, V, self._rule, write=self._stored, scaling=self._scaling
        )
        # Where it lies, for captured steps.
        self._count.copy_(count)
        return products

    def _write(self, A: Tensor, s: Tensor, B: Tensor, **how: Any) -> Tensor:
        return ops.adamw_rebuild_(self._M, self._state, A, s, B, self._rule, **how)


class SGDUpdate(_Update):
    """One update of :class:`torch.optim.SGD`.

    Args:
        weight: (l, q), with its gradient.
        group: its group.
        state: its state in the optimizer, which an earlier step has made where there is momentum.
        scaling: of the gradient.
    """

    def __init__(
        self, weight: Tensor, group: dict[str, Any], state: dict[str, Any], scaling: ops.Scaling
    ) -> None:
        super().__init__(weight, group, scaling)
        self._buffer = local_part(state["momentum_buffer"]) if group["momentum"] else None
        self._rule = ops.SGDRule(
            _scalar(group["lr"], self._M),
            group["momentum"],
            group["dampening"],
            group["weight_decay"],
            group["nesterov"],
            group["maximize"],
        )

    def _take(self, V: Tensor) -> tuple[Tensor, Tensor]:
        return ops.sgd_one_read_(
            self._M,
            self._grad,
            self._buffer,
            V,
            self._rule,
            first=False,
            write=self._stored,
            scaling=self._scaling,
        )

    def _write(self, A: Tensor, s: Tensor, B: Tensor, **how: Any) -> Tensor:
        return ops.sgd_rebuild_(self._M, self._grad, self._buffer, A, s, B, self._rule, **how)


def _nothing(M: Tensor) -> dict[str, Any]:
    """Arguments of a write that is not to be: what is stored is M'."""
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


def _scalar(value: float | Tensor, like: Tensor) -> Tensor:
    """() float32 on the device of ``like``, without waiting for it."""
    if isinstance(value, Tensor) and value.device == like.device:
        return value.detach().reshape(()).float()
    return torch.full((), float(value), dtype=torch.float32, device=like.device)


class SGDRule:
    update = SGDUpdate

    @staticmethod
    def fits(group: Any, state: Any) -> bool:
        started = not group["momentum"] or state.get("momentum_buffer") is not None
        # torch looks at this pair in its constructor alone.
        known = not group["nesterov"] or (group["momentum"] > 0 and not group["dampening"])
        return started and known and not isinstance(group["weight_decay"], Tensor)


class AdamWRule:
    update = AdamWUpdate

    @staticmethod
    def fits(group: Any, state: Any) -> bool:
        settings = (*group["betas"], group["weight_decay"])
        # amsgrad may have been switched on since the state was made.
        started = bool(state) and (not group["amsgrad"] or "max_exp_avg_sq" in state)
        return started and not any(isinstance(value, Tensor) for value in settings)


FusedUpdate: Any = lambda rule, *a: rule.update(*a)  # noqa
