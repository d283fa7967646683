"""An optimizer's update within the step: against torch and float64, written at once, later, or not at all."""

from dataclasses import replace
from typing import Any

import pytest
import torch
from update_rules import (
    CASES,
    EPS,
    ROUNDINGS,
    RULES,
    SHAPES,
    STEPS,
    Exact,
    Fused,
    case_name,
    close,
    gradients,
    head,
    like_torch,
    of_torch,
    sketched,
    with_extremes,
)

from lip_fast import ops
from lip_fast.rules import SGD, rule_of

# All the state that a rule may keep.
OPTIONS: dict[str, dict[str, Any]] = {
    "adamw": {"amsgrad": True},
    "nadam": {"weight_decay": 0.1},
    "sgd": {"momentum": 0.9, "weight_decay": 0.1},
}


@pytest.mark.parametrize("write", [True, False])
@pytest.mark.parametrize(("rule", "options"), CASES, ids=case_name)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_steps_are_those_of_float64(
    shape: tuple[int, int, int], rule: str, options: dict[str, Any], write: bool, arithmetic: str
) -> None:
    M, _, V, *factors = head(*shape)
    exact, fused = Exact(rule, options, M), Fused(rule, options, M)
    for grad in gradients(M):
        before = grad.clone()
        exact.update(grad)
        sketched(fused.sketch(grad, V, write=write), exact.M, V)
        if not write:
            assert not fused.rebuild(grad, tuple(factors), ok=False)
        assert torch.equal(grad, before)
    for name, X in fused.tensors().items():
        close(X, exact.tensors()[name])


@pytest.mark.parametrize("kind", [{"fused": True}, {"foreach": True}, {"foreach": False}], ids=str)
@pytest.mark.parametrize(("rule", "options"), CASES, ids=case_name)
def test_steps_are_those_of_torch(rule: str, options: dict[str, Any], kind: dict[str, bool]) -> None:
    if rule == "nadam" and "fused" in kind:
        pytest.skip("torch has no fused NAdam")
    M, _, V, *_ = head(7, 129, 9)
    parameter, optimizer = of_torch(rule, options, M, **kind)
    fused = Fused(rule, options, M)
    for grad in gradients(M):
        parameter.grad = grad.clone()
        optimizer.step()
        fused.sketch(grad, V, write=True)
    for name, X in fused.tensors().items():
        expected = parameter.detach() if name == "M" else optimizer.state[parameter][name]
        # Twice: theirs are rounded too.
        close(X, expected.double(), 2 * STEPS * ROUNDINGS)


@pytest.mark.parametrize("rule", RULES)
def test_float64_stays_float64(rule: str) -> None:
    options = OPTIONS[rule]
    M, _, V, *_ = head(7, 31, 5, dtype=torch.float64)
    exact, fused = Exact(rule, options, M, lr=0.5), Fused(rule, options, M, lr=0.5)
    for grad in gradients(M):
        exact.update(grad)
        sketched(fused.sketch(grad, V.double(), write=True), exact.M, V, 2.0**-53)
    for name, X in fused.tensors().items():
        close(X, exact.tensors()[name], eps=2.0**-53)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize(("rule", "options"), CASES, ids=case_name)
def test_what_is_not_rebuilt_is_what_the_update_writes(
    rule: str, options: dict[str, Any], dtype: torch.dtype, arithmetic: str
) -> None:
    M, _, V, *factors = head(7, 129, 9, dtype=dtype)
    now, later = Fused(rule, options, M.clone()), Fused(rule, options, M.clone())
    for grad in gradients(M):
        Y = now.sketch(grad, V, write=True)
        before = later.M.clone()
        Y_later = later.sketch(grad, V, write=False)
        assert torch.equal(later.M, before)
        Z = later.project(grad, Y_later)
        later.rebuild(grad, tuple(factors), ok=False)
        for name, X in now.tensors().items():
            assert torch.equal(X, later.tensors()[name]), name
        if dtype == torch.float32:
            assert torch.equal(Y, Y_later)
        # Z belongs to M', of which the stored weight is the rounding.
        unit = EPS if dtype == torch.float32 else torch.finfo(dtype).eps / 2
        bound = (M.shape[0] * EPS + unit) * (later.M.double().abs().mT @ Y_later.double().abs())
        assert ((Z.double() - later.M.double().mT @ Y_later.double()).abs() <= 1.01 * bound).all()
        assert Z.mT.is_contiguous()


@pytest.mark.parametrize("accumulate", [False, True])
@pytest.mark.parametrize("rule", RULES)
@pytest.mark.parametrize("shape", [*SHAPES, (6, 7, 0)], ids=str)
def test_what_is_rebuilt(shape: tuple[int, int, int], rule: str, accumulate: bool, arithmetic: str) -> None:
    M, grad, V, A, s, B = head(*shape)
    exact, fused = Exact(rule, {}, M), Fused(rule, {}, M)
    exact.update(grad)
    fused.sketch(grad, V, write=False)
    assert fused.rebuild(grad, (A, s, B), accumulate=accumulate)
    product = A.double() * s.double() @ B.double().mT
    bound = (A.double().abs() * s.double().abs()) @ B.double().abs().mT * (shape[2] + 2)
    if accumulate:
        product, bound = product + exact.M, bound + (ROUNDINGS + 1) * M.double().abs() + 1
    assert ((fused.M.double() - product).abs() <= EPS * bound).all()


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("rule", RULES)
def test_an_update_below_the_rounding_of_the_weight_is_not_lost_in_the_mean(
    rule: str, dtype: torch.dtype
) -> None:
    share = 1 / 16  # of a unit in the last place at 1
    lr = share * torch.finfo(dtype).eps
    M = torch.ones(100, 200, dtype=dtype)
    fused = Fused(rule, {"weight_decay": 0.0}, M, lr=lr)
    grad = torch.full_like(M, -1)
    fused.sketch(grad, torch.ones(200, 1), write=False)
    nothing = (torch.zeros(100, 1), torch.zeros(1), torch.zeros(200, 1))
    assert fused.rebuild(grad, nothing, accumulate=True)
    assert set(M.float().unique().tolist()) == {1.0, 1 + torch.finfo(dtype).eps}
    # Six standard deviations of the mean of 20000 roundings.
    spread = torch.finfo(dtype).eps * (share * (1 - share) / 20000) ** 0.5
    assert abs(float(M.double().mean()) - 1 - lr) < 6 * spread


@pytest.mark.parametrize("write", [True, False])
@pytest.mark.parametrize("rule", RULES)
def test_what_is_stored_is_what_is_sketched(rule: str, write: bool) -> None:
    M, grad, V, *_ = head(7, 33, 4, dtype=torch.bfloat16)
    fused, exact = Fused(rule, {}, M, state_dtype=torch.float32), Exact(rule, {}, M)
    exact.update(grad)
    Y = fused.sketch(grad, V, write=write)
    sketched(Y, M.double() if write else exact.M, V)
    assert torch.equal(M.double(), exact.M) is False


@pytest.mark.parametrize("write", [True, False])
@pytest.mark.parametrize(("rule", "options"), CASES, ids=case_name)
def test_found_inf_leaves_every_bit(rule: str, options: dict[str, Any], write: bool, arithmetic: str) -> None:
    M, grad, V, *factors = head(7, 29, 3)
    fused = Fused(rule, options, M)
    grad[2, 3] = torch.inf
    before, grad_before = fused.copies(), grad.clone()
    found = torch.ones(())
    Y = fused.sketch(grad, V, write=write, scaling=ops.Scaling(torch.tensor(4.0), found))
    Z = fused.project(grad, Y, found_inf=found)
    for ok in (True, False):
        for accumulate in (True, False):
            flags = {"ok": ok, "accumulate": accumulate, "found_inf": found}
            assert not fused.rebuild(grad, tuple(factors), **flags)
    assert torch.equal(grad, grad_before)
    for name, X in fused.tensors().items():
        assert torch.equal(X.view(torch.int32), before[name].view(torch.int32)), name
    sketched(Y, M.double(), V)
    close(Z, M.double().mT @ Y.double(), 64)


@pytest.mark.parametrize("rule", RULES)
def test_the_gradient_is_unscaled_in_place(rule: str, arithmetic: str) -> None:
    options = {"momentum": 0.9} if rule == "sgd" else {}
    M, grad, V, *_ = head(7, 29, 3)
    plain, scaled = Fused(rule, options, M.clone()), Fused(rule, options, M.clone())
    times_eight = grad * 8
    Y = plain.sketch(grad, V, write=True)
    scaling = ops.Scaling(torch.tensor(8.0), torch.zeros(()))
    assert torch.equal(scaled.sketch(times_eight, V, write=True, scaling=scaling), Y)
    assert torch.equal(times_eight, grad)
    for name, X in plain.tensors().items():
        assert torch.equal(X, scaled.tensors()[name]), name


@pytest.mark.parametrize("rule", RULES)
def test_strided_tensors(rule: str) -> None:
    options = {"momentum": 0.9} if rule == "sgd" else {}
    M, grad, V, *factors = head(13, 29, 5)
    storage = torch.stack([M, M], 2)
    plain = Fused(rule, options, M.clone())
    Y = plain.sketch(grad, V, write=False)
    plain.rebuild(grad, tuple(factors), accumulate=True)
    for view in (M.mT.contiguous().mT, storage[:, :, 0]):
        strided = Fused(rule, options, view)
        transposed = grad.mT.contiguous().mT
        Y_strided = strided.sketch(transposed, V.contiguous(), write=False)
        close(Y_strided, Y.double(), ROUNDINGS + V.shape[0])
        A, s, B = factors
        assert strided.rebuild(transposed, (A.mT.contiguous().mT, s, B.mT.contiguous().mT), accumulate=True)
        close(view, plain.M.double())
    assert torch.equal(storage[:, :, 1], M)


@pytest.mark.parametrize("shape", [(0, 5), (5, 0)], ids=str)
@pytest.mark.parametrize("rule", RULES)
def test_empty_weights(rule: str, shape: tuple[int, int]) -> None:
    l, q = shape
    fused = Fused(rule, {}, torch.empty(l, q))
    Y = fused.sketch(torch.empty(l, q), torch.ones(q, 3), write=False)
    Z = fused.project(torch.empty(l, q), Y)
    assert torch.equal(Y, torch.zeros(l, 3))
    assert torch.equal(Z, torch.zeros(q, 3))
    fused.rebuild(torch.empty(l, q), (torch.ones(l, 3), torch.ones(3), torch.ones(q, 3)))


def test_the_buffer_of_a_first_step_is_not_read() -> None:
    M, grad, V, *_ = head(3, 5, 2)
    fused = Fused("sgd", {"momentum": 0.9, "dampening": 0.5}, M)
    assert torch.isnan(fused.state["momentum_buffer"]).all()
    fused.sketch(grad, V, write=True)
    assert torch.equal(fused.state["momentum_buffer"], grad)


@pytest.mark.parametrize("write", [True, False])
@pytest.mark.parametrize(("rule", "options"), CASES, ids=case_name)
def test_infinite_and_huge_weights_are_those_of_torch(
    rule: str, options: dict[str, Any], write: bool, arithmetic: str
) -> None:
    M, _, V, *factors = head(7, 29, 3)
    with_extremes(M)
    # The other kinds take decay * M from M, which makes infinite weights NaN.
    parameter, optimizer = of_torch(rule, options, M, foreach=True)
    fused = Fused(rule, options, M)
    for grad in gradients(M, 2):
        parameter.grad = grad.clone()
        optimizer.step()
        fused.sketch(grad, V, write=write)
        if not write:
            assert not fused.rebuild(grad, tuple(factors), ok=False)
    for name, X in fused.tensors().items():
        like_torch(X, parameter.detach() if name == "M" else optimizer.state[parameter][name])
    if rule == "adamw" or (rule == "sgd" and not options.get("weight_decay")):
        assert (float(M[0, 1]), float(M[1, 4])) == (torch.inf, -torch.inf)


def test_a_maximum_of_squares_passes_nan_on(arithmetic: str) -> None:
    M, grad, V, *_ = head(3, 5, 2)
    fused = Fused("adamw", {"amsgrad": True}, M)
    # On either side.
    fused.state["max_exp_avg_sq"][0, 1] = torch.nan
    fused.state["exp_avg_sq"][2, 3] = torch.nan
    expected = torch.zeros(3, 5, dtype=torch.bool)
    expected[0, 1] = expected[2, 3] = True
    fused.sketch(grad, V, write=True)
    assert torch.equal(fused.state["max_exp_avg_sq"].isnan(), expected)
    assert torch.equal(M.isnan(), expected)


@pytest.mark.parametrize("rule", RULES)
def test_a_float16_overflow_is_not_rebuilt(rule: str, arithmetic: str) -> None:
    M, grad, V, *_ = head(3, 4, 1, dtype=torch.float16)
    now, later = Fused(rule, {}, M.clone()), Fused(rule, {}, M.clone())
    now.sketch(grad, V, write=True)
    later.sketch(grad, V, write=False)
    large = (torch.ones(3, 1), torch.full((1,), 1e6), torch.ones(4, 1))
    assert not later.rebuild(grad, large)
    assert torch.equal(later.M, now.M)


@pytest.mark.parametrize("rule", RULES)
def test_versions_say_what_was_written(rule: str) -> None:
    options = OPTIONS[rule]
    M, grad, V, *factors = head(3, 5, 2)
    fused = Fused(rule, options, M)
    state = {name: X for name, X in fused.tensors().items() if name != "M"}

    def written(call) -> set[str]:
        named = {"M": M, "grad": grad, "V": V, **state}
        versions = {name: X._version for name, X in named.items()}
        call()
        return {name for name, X in named.items() if X._version > versions[name]}

    scaling = ops.Scaling(torch.tensor(2.0))
    assert written(lambda: fused.sketch(grad, V, write=False)) == set(state)
    assert written(lambda: fused.sketch(grad, V, write=True)) == {"M", *state}
    assert written(lambda: fused.sketch(grad, V, write=False, scaling=scaling)) == {"grad", *state}
    assert written(lambda: fused.project(grad, torch.ones(3, 2))) == set()
    assert written(lambda: fused.rebuild(grad, tuple(factors))) == {"M"}


def test_bad_arguments_are_refused_before_anything_is_written() -> None:
    M, grad, V, *_ = head(3, 5, 2)
    adamw, sgd = Fused("adamw", {}, M), Fused("sgd", {"momentum": 0.9}, M)
    before = M.clone()
    with pytest.raises(ValueError, match=r"expected grad of shape \(3, 5\), got \(5, 3\)"):
        adamw.sketch(grad.mT, V, write=True)
    with pytest.raises(ValueError, match=r"expected V with 5 rows \(the columns of M\), got \(3, 2\)"):
        adamw.sketch(grad, V[:3], write=True)
    state = [*adamw.state.values()]
    with pytest.raises(ValueError, match=r"expected lr of shape \(\), got \(1,\)"):
        ops.update_sketch_(ops.Updated(M, grad, state, replace(adamw.rule, lr=torch.ones(1))), V, write=True)
    with pytest.raises(TypeError, match="expected update_count in a floating-point dtype"):
        ops.update_sketch_(
            ops.Updated(M, grad, state, replace(adamw.rule, update_count=torch.tensor(1))), V, write=True
        )
    with pytest.raises(ValueError, match=r"expected beta2 in \[0, 1\), got 1\.0"):
        ops.update_project(ops.Updated(M, grad, state, replace(adamw.rule, beta2=1.0)), torch.ones(3, 2))
    for wrong in (state[:1], [*state, *state]):
        with pytest.raises(ValueError, match=r"expected 2 to 3 tensors of state \(exp_avg, .*\), got [14]$"):
            ops.update_sketch_(ops.Updated(M, grad, wrong, adamw.rule), V, write=True)
    with pytest.raises(ValueError, match=r"expected 2 to 2 tensors of state \(exp_avg, exp_avg_sq\), got 1"):
        ops.update_sketch_(ops.Updated(M, grad, state[:1], Fused("nadam", {}, M).rule), V, write=True)
    lr, settings = [adamw.rule.lr], adamw.rule.settings()
    for rule, scalars, told in (
        ("lion", lr, r"expected a rule among \['adamw', 'nadam', 'sgd'\], got 'lion'"),
        ("adamw", lr, r"expected 2 scalars and 5 settings of 'adamw', got 1 and 5"),
    ):
        with pytest.raises(ValueError, match=told):
            rule_of(rule, scalars, settings)
    with pytest.raises(ValueError, match=r"expected Y with 3 rows \(the rows of M\), got \(5, 2\)"):
        adamw.project(grad, torch.ones(5, 2))
    with pytest.raises(ValueError, match=r"expected M of shape \(3, 6\), got \(3, 5\)"):
        adamw.rebuild(grad, (torch.ones(3, 2), torch.ones(2), torch.ones(6, 2)))
    with pytest.raises(ValueError, match=r"expected a momentum_buffer with momentum 0\.9, got none"):
        ops.update_sketch_(ops.Updated(M, grad, [], sgd.rule), V, write=True)
    buffer = [*sgd.state.values()]
    with pytest.raises(ValueError, match=r"expected no momentum_buffer with momentum 0\.0, got one"):
        ops.update_project(ops.Updated(M, grad, buffer, SGD(sgd.rule.lr)), torch.ones(3, 2))
    with pytest.raises(ValueError, match="expected momentum and no dampening with nesterov"):
        ops.update_sketch_(
            ops.Updated(M, grad, buffer, replace(sgd.rule, nesterov=True, dampening=0.1)), V, write=True
        )
    assert torch.equal(M, before)


@pytest.mark.parametrize("fills_all", [True, False])
@pytest.mark.parametrize("rule", RULES)
def test_opcheck(rule: str, fills_all: bool) -> None:
    M, grad, V, *factors = head(5, 6, 2)
    fused = Fused(rule, OPTIONS[rule] if fills_all else {}, M)
    fused.count()
    # Not NaN, which equals nothing.
    state = [torch.full_like(X, 0.5) for X in fused.state.values()]
    ok, step, one = torch.tensor(True), torch.tensor(4), torch.ones(())
    scaling = ops.Scaling(one, 0 * one) if fills_all else ops.Scaling()
    operands = ops.Updated(M, grad, state, fused.rule, scaling).operands()
    torch.library.opcheck(torch.ops.lip_fast.update_sketch_.default, (*operands, V, fills_all))
    torch.library.opcheck(torch.ops.lip_fast.update_project.default, (*operands, M @ V))
    torch.library.opcheck(
        torch.ops.lip_fast.update_rebuild_.default, (*operands, *factors, ok, step, fills_all, 0)
    )
