"""An optimizer's update with both products in one op: the update and the product as two ops give them."""

from typing import Any

import pytest
import torch
from update_rules import CASES, RULES, SHAPES, Exact, Fused, case_name, close, gradients, head, sketched

from lip_fast import ops
from lip_fast.rules import SGD


@pytest.mark.parametrize("write", [True, False])
@pytest.mark.parametrize(("rule", "options"), CASES, ids=case_name)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_both_products_are_those_of_float64(
    shape: tuple[int, int, int], rule: str, options: dict[str, Any], write: bool, arithmetic: str
) -> None:
    M, _, V, *factors = head(*shape)
    exact, fused = Exact(rule, options, M), Fused(rule, options, M)
    for grad in gradients(M):
        exact.update(grad)
        before = fused.M.clone()
        Y, Z = fused.one_read(grad, V, write=write)
        assert torch.equal(fused.M, before) != write
        sketched(Y, exact.M, V)
        sketched(Z, exact.M.mT, Y)
        if not write:
            assert not fused.rebuild(grad, tuple(factors), ok=False)
    for name, X in fused.tensors().items():
        close(X, exact.tensors()[name])


@pytest.mark.parametrize("write", [True, False])
@pytest.mark.parametrize("rule", RULES)
def test_found_inf_leaves_every_bit(rule: str, write: bool, arithmetic: str) -> None:
    options = {"momentum": 0.9} if rule == "sgd" else {}
    M, grad, V, *_ = head(7, 29, 3)
    fused = Fused(rule, options, M)
    grad[2, 3] = torch.inf
    before, grad_before = fused.copies(), grad.clone()
    scaling = ops.Scaling(torch.tensor(4.0), torch.ones(()))
    Y, Z = fused.one_read(grad, V, write=write, scaling=scaling)
    assert torch.equal(grad, grad_before)
    for name, X in fused.tensors().items():
        assert torch.equal(X.view(torch.int32), before[name].view(torch.int32)), name
    sketched(Y, M.double(), V)
    sketched(Z, M.double().mT, Y)


@pytest.mark.parametrize("shape", [(0, 5), (5, 0)], ids=str)
@pytest.mark.parametrize("rule", RULES)
def test_empty_weights(rule: str, shape: tuple[int, int]) -> None:
    l, q = shape
    Y, Z = Fused(rule, {}, torch.empty(l, q)).one_read(torch.empty(l, q), torch.ones(q, 3), write=True)
    assert torch.equal(Y, torch.zeros(l, 3))
    assert torch.equal(Z, torch.zeros(q, 3))


@pytest.mark.parametrize("rule", RULES)
def test_versions_say_what_was_written(rule: str) -> None:
    options = {"sgd": {"momentum": 0.9}, "adamw": {"amsgrad": True}}.get(rule, {})
    M, grad, V, *_ = head(3, 5, 2)
    fused = Fused(rule, options, M)
    state = {name: X for name, X in fused.tensors().items() if name != "M"}
    named = {"M": M, "grad": grad, "V": V, **state}
    for write in (True, False):
        for scale in (None, torch.tensor(2.0)):
            versions = {name: X._version for name, X in named.items()}
            fused.one_read(grad, V, write=write, scaling=ops.Scaling(scale))
            written = {name for name, X in named.items() if X._version > versions[name]}
            expected = {*state} | ({"M"} if write else set()) | ({"grad"} if scale is not None else set())
            assert written == expected


def test_bad_arguments_are_refused_before_anything_is_written() -> None:
    M, grad, V, *_ = head(3, 5, 2)
    adamw, sgd = Fused("adamw", {}, M), Fused("sgd", {"momentum": 0.9}, M)
    before = M.clone()
    with pytest.raises(ValueError, match=r"expected grad of shape \(3, 5\), got \(5, 3\)"):
        adamw.one_read(grad.mT, V, write=True)
    with pytest.raises(ValueError, match=r"expected V with 5 rows \(the columns of M\), got \(3, 2\)"):
        sgd.one_read(grad, V[:3], write=True)
    assert torch.equal(M, before)


@pytest.mark.parametrize("options", [{"amsgrad": True}, {}], ids=str)
def test_opcheck(options: dict[str, Any]) -> None:
    M, grad, V, *_ = head(5, 6, 2)
    fused, one = Fused("adamw", options, M), torch.ones(())
    fused.count()
    scaling = ops.Scaling(one, 0 * one) if options else ops.Scaling()
    sgd = ops.Updated(M, grad, [], SGD(torch.tensor(0.1), weight_decay=0.1), scaling)
    torch.library.opcheck(
        torch.ops.lip_fast.update_one_read_.default,
        (*fused.updated(grad, scaling).operands(), V, bool(options)),
    )
    torch.library.opcheck(torch.ops.lip_fast.update_one_read_.default, (*sgd.operands(), V, False))
