"""An optimizer's update of a weight with the products of the step, and the write of what it did not write.

As :mod:`lip_fast.fused` calls them: a weight in float32 is stored updated, a narrow one is not.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from benchmarks.op_cases.head import Head, Updated, times
from benchmarks.op_cases.problem import FAILED, SETTLED, Problem, factors
from benchmarks.op_cases.products import rebuilt_bound
from lip_fast import backends, ops
from lip_fast.bench.gates import distance

__all__ = [
    "adamw_one_read_",
    "adamw_project",
    "adamw_rebuild_",
    "adamw_sketch_",
    "sgd_one_read_",
    "sgd_project",
    "sgd_rebuild_",
    "sgd_sketch_",
]

# Distance of products and state from float64: 4e-7 in float32; up to 2e-4 in narrow formats, where a state
# half way between two of their values may be rounded to either; 4e-4 on a GPU, where a weight read once is
# rounded to TF32. Without the update they are 5e-2 off or more.
_UPDATED, _UPDATED64 = 2e-3, 1e-12


def _bound(head: Head) -> float:
    return _UPDATED64 if head.skinny == torch.float64 else _UPDATED


@dataclass(frozen=True)
class _Own:
    """Copies of what an update writes, with what they were made from, and a rule of their own."""

    M: Tensor
    state: tuple[Tensor, ...]
    rule: Any
    written: Sequence[tuple[Tensor, Tensor]]

    def settle(self) -> None:
        """Further updates then leave the weight as it is; the state tends to the gradient."""
        self.rule.lr.mul_(SETTLED)


def _own(head: Head, state: tuple[Tensor, ...], rule: Any) -> _Own:
    sources = (head.M, *state)
    M, *copies = (source.clone() for source in sources)
    return _Own(M, tuple(copies), rule, tuple(zip((M, *copies), sources, strict=True)))


def _stores(head: Head) -> bool:
    return head.dtype in (torch.float32, torch.float64)


def _measure(head: Head, own: _Own, exact: Updated, products: tuple[Tensor, ...]) -> float:
    """Of Y, and Z where there is one, of the state, and of the weight where it is written."""
    Y = products[0].double()
    found = [distance(Y, exact.V)]
    if len(products) > 1:
        found.append(distance(products[1].double().mT @ head.probes, Y.mT @ exact.X))
    states = zip(own.state, exact.state, strict=True)
    found += [distance(times(each, head.probes), expected) for each, expected in states]
    found.append(distance(times(own.M, head.probes), exact.X if _stores(head) else head.probed))
    return max(found)


def _taken(head: Head, own: _Own, exact: Updated, reads: int, products: int, **how: Any) -> Problem:
    """A problem of an update with ``products`` products that reads ``reads`` tensors like the weight."""
    l, q, m = head.l, head.q, head.m
    # The state is written again, and the weight where it is stored.
    values = (reads + len(own.state) + _stores(head)) * l * q
    # V is read, Y and perhaps Z are written.
    small = m * (q + l + (products - 1) * q)
    return Problem(
        bound=_bound(head),
        control=distance(head.product, exact.V),
        size=own.M.itemsize * values + head.V.itemsize * small,
        flops=2 * products * l * q * m,
        written=own.written,
        settle=own.settle,
        **how,
    )


def _adamw_own(head: Head) -> tuple[_Own, ops.AdamWState]:
    own = _own(head, head.moments, head.adamw_rule())
    return own, ops.AdamWState(*own.state)


def _adamw_taken(head: Head, op: Callable[..., Any], products: int) -> Problem:
    """One of the ops that take AdamW's update and so many products."""
    own, state = _adamw_own(head)
    M, g, V, rule, write = own.M, head.grad, head.V, own.rule, _stores(head)
    return _taken(
        head,
        own,
        head.adamw,
        4,
        products,
        call=lambda: op(M, g, state, V, rule, write=write),
        arguments=(M, g, *state, V, rule.lr, rule.update_count, None, None, *rule[2:], write),
        measure=lambda found: _measure(head, own, head.adamw, (found,) if products == 1 else found),
    )


def adamw_sketch_(head: Head) -> Problem:
    """AdamW's update and Y = M' V."""
    return _adamw_taken(head, ops.adamw_sketch_, 1)


def adamw_one_read_(head: Head) -> Problem:
    """AdamW's update with Y = M' V and Z = M'^T Y. The default kernel calls two ops, whoever serves them."""
    return _adamw_taken(head, ops.adamw_one_read_, 2)


def _sgd_taken(head: Head, op: Callable[..., Any], products: int) -> Problem:
    """One of the ops that take the update of SGD and so many products."""
    own = _own(head, head.moments[:1], head.sgd_rule())
    M, g, (buffer,), V, rule, write = own.M, head.grad, own.state, head.V, own.rule, _stores(head)
    return _taken(
        head,
        own,
        head.sgd,
        3,
        products,
        call=lambda: op(M, g, buffer, V, rule, first=False, write=write),
        arguments=(M, g, buffer, V, rule.lr, None, None, *rule[1:], False, write),
        measure=lambda found: _measure(head, own, head.sgd, (found,) if products == 1 else found),
    )


def sgd_sketch_(head: Head) -> Problem:
    """The update of SGD and Y = M' V."""
    return _sgd_taken(head, ops.sgd_sketch_, 1)


def sgd_one_read_(head: Head) -> Problem:
    """The update of SGD with Y = M' V and Z = M'^T Y. The default kernel is as AdamW's."""
    return _sgd_taken(head, ops.sgd_one_read_, 2)


def _adamw_updated(head: Head) -> tuple[_Own, ops.AdamWState]:
    """With the state as the update leaves it, and the weight as it was."""
    own, state = _adamw_own(head)
    rule = own.rule
    backends.declared()["adamw_sketch_"][0].run(
        own.M, head.grad, *state, head.V, rule.lr, rule.update_count, None, None, *rule[2:], False
    )
    return own, state


def _sgd_updated(head: Head) -> _Own:
    own = _own(head, head.moments[:1], head.sgd_rule())
    rule = own.rule
    backends.declared()["sgd_sketch_"][0].run(
        own.M, head.grad, *own.state, head.V, rule.lr, None, None, *rule[1:], False, False
    )
    return own


def _projected(head: Head, exact: Updated, reads: int, **how: Any) -> Problem:
    """A problem of Z = M'^T Y from ``reads`` tensors like the weight."""
    l, q, m, Y = head.l, head.q, head.m, head.Y
    expected = Y.double().mT @ exact.X
    return Problem(
        measure=lambda Z: distance(Z.double().mT @ head.probes, expected),
        bound=_bound(head),
        control=distance(Y.double().mT @ head.probed, expected),
        # Y is read, Z is written.
        size=head.M.itemsize * reads * l * q + Y.itemsize * m * (l + q),
        flops=2 * l * q * m,
        **how,
    )


def adamw_project(head: Head) -> Problem:
    """Z = M'^T Y of a weight that AdamW updated and did not write."""
    own, state = _adamw_updated(head)
    M, Y, rule = own.M, head.Y, own.rule
    return _projected(
        head,
        head.adamw,
        3,
        call=lambda: ops.adamw_project(M, state, Y, rule),
        arguments=(M, *state, Y, rule.lr, rule.update_count, None, *rule[2:6]),
    )


def sgd_project(head: Head) -> Problem:
    """Z = M'^T Y of a weight that SGD updated and did not write."""
    own = _sgd_updated(head)
    M, g, (buffer,), Y, rule = own.M, head.grad, own.state, head.Y, own.rule
    return _projected(
        head,
        head.sgd,
        # Without Nesterov's form the gradient is in the buffer.
        2,
        call=lambda: ops.sgd_project(M, g, buffer, Y, rule),
        arguments=(M, g, buffer, Y, rule.lr, None, rule.momentum, *rule[3:6]),
    )


def _rebuilt(head: Head, own: _Own, s: Tensor, exact: Updated, reads: int, **how: Any) -> Problem:
    """A problem of M = M' + A diag(s) B^T, where M' comes from ``reads`` tensors like the weight."""
    l, q, t, A, B, X = head.l, head.q, head.t, head.A, head.B, head.probes
    added = factors(A, s, B, X)
    expected = exact.X + added

    def measure(written: Tensor) -> float:
        return distance(times(own.M, X), expected) if bool(written) else FAILED

    def settle() -> None:
        own.settle()
        s.mul_(SETTLED)

    return Problem(
        measure=measure,
        bound=rebuilt_bound(head),
        control=distance(head.probed + added, expected),
        # The factors are read, the weight is written.
        size=own.M.itemsize * (reads + 1) * l * q + A.itemsize * t * (l + q + 1),
        flops=2 * l * q * t,
        written=own.written[:1],
        settle=settle,
        **how,
    )


def adamw_rebuild_(head: Head) -> Problem:
    """The one write of a weight that AdamW updated and did not write."""
    (own, state), s = _adamw_updated(head), head.s.clone()
    M, A, B, rule, ok, step = own.M, head.A, head.B, own.rule, head.ok, head.step
    how: dict[str, Any] = {"ok": ok, "step": step, "accumulate": True, "seed": 0}
    count = rule.update_count
    return _rebuilt(
        head,
        own,
        s,
        head.adamw,
        3,
        call=lambda: ops.adamw_rebuild_(M, state, A, s, B, rule, **how),
        arguments=(M, *state, A, s, B, ok, rule.lr, count, step, None, *rule[2:6], True, 0),
    )


def sgd_rebuild_(head: Head) -> Problem:
    """The one write of a weight that SGD updated and did not write."""
    own, s = _sgd_updated(head), head.s.clone()
    M, g, (buffer,), A, B, rule = own.M, head.grad, own.state, head.A, head.B, own.rule
    ok, step = head.ok, head.step
    how: dict[str, Any] = {"ok": ok, "step": step, "accumulate": True, "seed": 0}
    return _rebuilt(
        head,
        own,
        s,
        head.sgd,
        2,
        call=lambda: ops.sgd_rebuild_(M, g, buffer, A, s, B, rule, **how),
        arguments=(M, g, buffer, A, s, B, ok, rule.lr, step, None, rule.momentum, *rule[3:6], True, 0),
    )
