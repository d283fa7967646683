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

__all__ = ["UPDATES", "op_of"]

# Distance of products and state from float64: 4e-7 in float32; up to 2e-4 in narrow formats, where a state
# half way between two of their values may be rounded to either; 4e-4 on a GPU, where a weight read once is
# rounded to TF32. Without the update they are 5e-2 off or more.
_UPDATED, _UPDATED64 = 2e-3, 1e-12


def op_of(name: str) -> str:
    """The op of a row: those of the updates are named after their rule, as in "adamw_sketch_"."""
    rule, _, kind = name.partition("_")
    return f"update_{kind}" if rule in ("adamw", "sgd") else name


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


def _own_of(head: Head, rule: str) -> tuple[_Own, Updated]:
    """What a rule updates, with the result in float64."""
    if rule == "adamw":
        return _own(head, head.moments, head.adamw_rule()), head.adamw
    return _own(head, head.moments[:1], head.sgd_rule()), head.sgd


def _taken_by(rule: str, op: Callable[..., Any], products: int) -> Callable[[Head], Problem]:
    """One of the ops that take an update and so many products."""

    def problem(head: Head) -> Problem:
        own, exact = _own_of(head, rule)
        V, write = head.V, _stores(head)
        updated = ops.Updated(own.M, head.grad, list(own.state), own.rule)
        return _taken(
            head,
            own,
            exact,
            2 + len(updated.state),
            products,
            call=lambda: op(updated, V, write=write),
            arguments=(updated, V, write),
            measure=lambda found: _measure(head, own, exact, (found,) if products == 1 else found),
        )

    return problem


def _updated_by(head: Head, rule: str) -> tuple[_Own, Updated, ops.Updated]:
    """With the state as the update leaves it, and the weight as it was."""
    own, exact = _own_of(head, rule)
    updated = ops.Updated(own.M, head.grad, list(own.state), own.rule)
    backends.declared()["update_sketch_"][0].run(updated, head.V, False)
    return own, exact, updated


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


def _projected_by(rule: str) -> Callable[[Head], Problem]:
    """Z = M'^T Y of a weight that was updated and not written."""

    def problem(head: Head) -> Problem:
        _, exact, updated = _updated_by(head, rule)
        Y = head.Y
        return _projected(
            head,
            exact,
            # Of SGD, without Nesterov's form, the gradient is in the buffer.
            1 + len(updated.state),
            call=lambda: ops.update_project(updated, Y),
            arguments=(updated, Y),
        )

    return problem


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


def _rebuilt_by(rule: str) -> Callable[[Head], Problem]:
    """The one write of a weight that was updated and not written."""

    def problem(head: Head) -> Problem:
        (own, exact, updated), s = _updated_by(head, rule), head.s.clone()
        A, B, ok, step = head.A, head.B, head.ok, head.step
        flags: dict[str, Any] = {"ok": ok, "step": step, "accumulate": True, "seed": 0}
        return _rebuilt(
            head,
            own,
            s,
            exact,
            1 + len(updated.state),
            call=lambda: ops.update_rebuild_(updated, A, s, B, **flags),
            arguments=(updated, A, s, B, ok, step, True, 0),
        )

    return problem


# The default kernel of one read calls two ops, whoever serves them.
UPDATES: dict[str, Callable[[Head], Problem]] = {
    f"{rule}_{kind}": problem
    for rule in ("adamw", "sgd")
    for kind, problem in {
        "sketch_": _taken_by(rule, ops.update_sketch_, 1),
        "one_read_": _taken_by(rule, ops.update_one_read_, 2),
        "project": _projected_by(rule),
        "rebuild_": _rebuilt_by(rule),
    }.items()
}
