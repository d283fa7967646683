"""The updates in Triton: within rounding of float64, and one weight to the bit in all the kernels."""

import importlib
from typing import Any

import pytest
import torch
from torch import Tensor
from update_rules import (
    CASES,
    EPS,
    ROUNDINGS,
    RULES,
    SHAPES,
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

from lip_fast import backends, ops
from lip_fast.backends.default.rebuild_ import DROPPED_BITS

# What overflows on purpose is a warning of numpy in the interpreter.
pytestmark = pytest.mark.filterwarnings("ignore:(overflow|invalid value|divide by zero):RuntimeWarning")

STEPS = 2
# Many columns of the sketch, and several parts of both sums.
LARGE = [(33, 70, 100), (40, 300, 3), (150, 40, 7)]
# Every shape with AdamW and SGD. NAdam differs from them entry by entry alone: an odd shape, and one with
# several parts of a sum.
OF_NADAM = [(7, 129, 9), (40, 300, 3)]
STEPPED = [
    (shape, rule, options) for rule, options in CASES for shape in (OF_NADAM if rule == "nadam" else SHAPES)
]
# "tf32x3" leaves out the product of the two small parts, each at most 2^-11 of its entry.
PRODUCT = 2.0**-22


@pytest.fixture(autouse=True)
def _served_by_triton(device: torch.device) -> None:
    names = {"update_sketch_", "update_project", "update_rebuild_"}
    rows = [row for row in backends.served() if row.op in names and row.device == device.type]
    assert {row.op for row in rows} == names
    assert {row.backend for row in rows} == {"triton"}


def _bits(X: Tensor) -> Tensor:
    return X.contiguous().view({2: torch.int16, 4: torch.int32}[X.element_size()])


def _projected(Z: Tensor, M: Tensor, Y: Tensor, unit: float = 0.0) -> None:
    """Z is M^T Y, to the rounding of a sum of l products and of M in units of ``unit``."""
    bound = (2 * M.shape[0] * EPS + 2 * PRODUCT + unit) * (M.double().abs().mT @ Y.double().abs())
    assert ((Z.double() - M.double().mT @ Y.double()).abs() <= bound).all()
    assert Z.mT.is_contiguous()


@pytest.mark.parametrize("write", [True, False])
@pytest.mark.parametrize(("shape", "rule", "options"), STEPPED, ids=case_name)
def test_steps_are_those_of_float64(
    shape: tuple[int, int, int], rule: str, options: dict[str, Any], write: bool, device: torch.device
) -> None:
    M, _, V, *factors = head(*shape, device=device)
    exact, fused = Exact(rule, options, M), Fused(rule, options, M)
    for grad in gradients(M, STEPS):
        before = grad.clone()
        exact.update(grad)
        Y = fused.sketch(grad, V, write=write)
        sketched(Y, exact.M, V)
        if not write:
            Z = fused.project(grad, Y)
            assert not fused.rebuild(grad, tuple(factors), ok=False)
            _projected(Z, fused.M, Y)
        assert torch.equal(grad, before)
    for name, X in fused.tensors().items():
        close(X, exact.tensors()[name])


@pytest.mark.parametrize("many_rows", [False, True])
@pytest.mark.parametrize("accumulate", [False, True])
@pytest.mark.parametrize(
    ("rule", "shape"),
    [
        *((rule, shape) for rule in ("adamw", "sgd") for shape in (*SHAPES, *LARGE, (6, 7, 0))),
        *(("nadam", shape) for shape in OF_NADAM),
    ],
    ids=str,
)
def test_what_is_rebuilt(
    shape: tuple[int, int, int],
    rule: str,
    accumulate: bool,
    many_rows: bool,
    device: torch.device,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    if many_rows:
        # Such a weight has tiles of its own, and would take the interpreter minutes.
        monkeypatch.setattr(importlib.import_module("lip_fast.backends.triton.update"), "_MANY_ROWS", 0)
    M, grad, V, A, s, B = head(*shape, device=device)
    exact, fused = Exact(rule, {}, M), Fused(rule, {}, M)
    exact.update(grad)
    Y = fused.sketch(grad, V, write=False)
    sketched(Y, exact.M, V)
    Z = fused.project(grad, Y)
    _projected(Z, exact.M, Y, ROUNDINGS * EPS * 10)
    assert fused.rebuild(grad, (A, s, B), accumulate=accumulate)
    product = A.double() * s.double() @ B.double().mT
    bound = (A.double().abs() * s.double().abs()) @ B.double().abs().mT * (EPS * (shape[2] + 2) + PRODUCT)
    if accumulate:
        product, bound = product + exact.M, bound + EPS * ((ROUNDINGS + 1) * M.double().abs() + 1)
    assert ((fused.M.double() - product).abs() <= bound).all()


@pytest.mark.parametrize(
    ("dtype", "state_dtype"),
    [
        (torch.float32, torch.float32),
        (torch.float16, torch.float16),
        (torch.float16, torch.float32),
        (torch.bfloat16, torch.bfloat16),
        (torch.bfloat16, torch.float32),
    ],
    ids=str,
)
@pytest.mark.parametrize(("rule", "options"), CASES, ids=case_name)
def test_what_is_not_rebuilt_is_what_the_update_writes(
    rule: str, options: dict[str, Any], dtype: torch.dtype, state_dtype: torch.dtype, device: torch.device
) -> None:
    if device.type == "cpu" and torch.bfloat16 in (dtype, state_dtype):
        pytest.skip("Triton's interpreter rounds bfloat16 otherwise than a device does")
    # A quotient of AdamW or NAdam must not leave float16 where squares are too small for it.
    options = options if rule == "sgd" else options | {"eps": 1e-3}
    M, _, V, *factors = head(7, 129, 9, dtype=dtype, device=device)
    now = Fused(rule, options, M.clone(), state_dtype=state_dtype)
    later = Fused(rule, options, M.clone(), state_dtype=state_dtype)
    for grad in gradients(M, STEPS):
        Y = now.sketch(grad, V, write=True)
        before = later.M.clone()
        Y_later = later.sketch(grad, V, write=False)
        assert torch.equal(later.M, before)
        Z = later.project(grad, Y_later)
        assert not later.rebuild(grad, tuple(factors), ok=False)
        for name, X in now.tensors().items():
            assert torch.equal(_bits(X), _bits(later.tensors()[name])), name
        if dtype == torch.float32:
            assert torch.equal(Y, Y_later)
        _projected(Z, later.M, Y_later, 0.0 if dtype == torch.float32 else torch.finfo(dtype).eps)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
@pytest.mark.parametrize("rule", RULES)
def test_narrow_steps_are_those_of_float64(rule: str, dtype: torch.dtype, device: torch.device) -> None:
    if device.type == "cpu" and dtype == torch.bfloat16:
        pytest.skip("Triton's interpreter rounds bfloat16 otherwise than a device does")
    M, grad, V, *_ = head(7, 129, 9, dtype=dtype, device=device)
    exact, fused = Exact(rule, {}, M), Fused(rule, {}, M, state_dtype=torch.float32)
    exact.update(grad)
    sketched(fused.sketch(grad, V, write=False), exact.M, V)
    zeros = (
        torch.zeros(7, 9, device=device),
        torch.zeros(9, device=device),
        torch.zeros(129, 9, device=device),
    )
    assert fused.rebuild(grad, zeros, accumulate=True)
    # Up or down, by less than a unit in the last place.
    unit = torch.finfo(dtype).eps * torch.exp2(exact.M.abs().log2().floor())
    assert ((fused.M.double() - exact.M).abs() <= unit * (1 + 1e-3)).all()
    nearest = exact.M.to(dtype)
    assert not torch.equal(fused.M, nearest)


@pytest.mark.parametrize("rule", RULES)
def test_rounding_bits_are_those_of_the_rebuild_alone(rule: str, device: torch.device) -> None:
    dtype = torch.float16
    assert dtype in DROPPED_BITS
    M, grad, V, A, s, B = head(33, 70, 5, dtype=dtype, device=device)
    alone = torch.empty_like(M)
    step, ok = torch.tensor(3, device=device), torch.tensor(True, device=device)
    assert ops.rebuild_(alone, A, s, B, ok=ok, step=step, accumulate=False, seed=5)
    fused = Fused(rule, {}, M)
    fused.sketch(grad, V, write=False)
    assert fused.rebuild(grad, (A, s, B))
    # Their products may differ in the last place, and then carry here and there.
    assert float((fused.M == alone).double().mean()) > 0.99
    assert fused.rebuild(grad, (A, s, B), seed=6)
    assert float((fused.M == alone).double().mean()) < 0.9


@pytest.mark.parametrize("write", [True, False])
@pytest.mark.parametrize(("rule", "options"), CASES, ids=case_name)
def test_found_inf_leaves_every_bit(
    rule: str, options: dict[str, Any], write: bool, device: torch.device
) -> None:
    M, grad, V, *factors = head(7, 29, 3, device=device)
    fused = Fused(rule, options, M)
    grad[2, 3] = torch.inf
    before, grad_before = fused.copies(), grad.clone()
    found = torch.ones((), device=device)
    scaling = ops.Scaling(torch.tensor(4.0, device=device), found)
    Y = fused.sketch(grad, V, write=write, scaling=scaling)
    Z = fused.project(grad, Y, found_inf=found)
    for ok in (True, False):
        for accumulate in (True, False):
            flags = {"ok": ok, "accumulate": accumulate, "found_inf": found}
            assert not fused.rebuild(grad, tuple(factors), **flags)
    assert torch.equal(grad, grad_before)
    for name, X in fused.tensors().items():
        assert torch.equal(_bits(X), _bits(before[name])), name
    sketched(Y, M.double(), V)
    _projected(Z, M, Y)


@pytest.mark.parametrize("rule", RULES)
def test_the_gradient_is_unscaled_in_place(rule: str, device: torch.device) -> None:
    options = {"momentum": 0.9, "nesterov": True} if rule == "sgd" else {}
    M, grad, V, *_ = head(7, 29, 3, device=device)
    plain, scaled = Fused(rule, options, M.clone()), Fused(rule, options, M.clone())
    times_eight = grad * 8
    Y = plain.sketch(grad, V, write=True)
    scaling = ops.Scaling(torch.tensor(8.0, device=device), torch.zeros((), device=device))
    assert torch.equal(scaled.sketch(times_eight, V, write=True, scaling=scaling), Y)
    assert torch.equal(times_eight, grad)
    for name, X in plain.tensors().items():
        assert torch.equal(X, scaled.tensors()[name]), name


@pytest.mark.parametrize("rule", RULES)
def test_strided_tensors(rule: str, device: torch.device) -> None:
    options = {"momentum": 0.9, "nesterov": True} if rule == "sgd" else {}
    M, grad, V, A, s, B = head(13, 70, 5, device=device)
    storage = torch.stack([M, M], 2)
    plain = Fused(rule, options, M.clone())
    Y, Z = plain.sketch(grad, V, write=False), None
    Z = plain.project(grad, Y)
    plain.rebuild(grad, (A, s, B), accumulate=True)
    for view in (M.mT.contiguous().mT, storage[:, :, 0]):
        strided = Fused(rule, options, view)
        for name, X in strided.tensors().items():
            # As a view of a storage is not: the state of it is dense.
            if X.stride() != view.stride():
                wide = torch.stack([X, X], 2)[:, :, 0]
                strided.state[name] = wide
        transposed = grad.mT.contiguous().mT
        Y_strided = strided.sketch(transposed, V.contiguous(), write=False)
        close(Y_strided, Y, 2 * V.shape[0])
        close(strided.project(transposed, Y.contiguous()), Z, 2 * M.shape[0])
        assert strided.rebuild(transposed, (A.mT.contiguous().mT, s, B.mT.contiguous().mT), accumulate=True)
        close(view, plain.M)
    assert torch.equal(storage[:, :, 1], M)


@pytest.mark.parametrize("shape", [(0, 5), (5, 0)], ids=str)
@pytest.mark.parametrize("rule", RULES)
def test_empty_weights(rule: str, shape: tuple[int, int], device: torch.device) -> None:
    l, q = shape
    grad = torch.empty(l, q, device=device)
    fused = Fused(rule, {}, torch.empty(l, q, device=device))
    V, A, s, B = (torch.ones(*size, device=device) for size in ((q, 3), (l, 3), (3,), (q, 3)))
    Y = fused.sketch(grad, V, write=False)
    Z = fused.project(grad, Y)
    assert torch.equal(Y, torch.zeros(l, 3, device=device))
    assert torch.equal(Z, torch.zeros(q, 3, device=device))
    assert fused.rebuild(grad, (A, s, B))


def test_the_state_is_updated_without_a_sketch_to_take(device: torch.device) -> None:
    M, grad, V, *_ = head(3, 5, 0, device=device)
    fused = Fused("sgd", {"momentum": 0.9, "dampening": 0.5}, M)
    assert torch.isnan(fused.state["momentum_buffer"]).all()
    assert fused.sketch(grad, V, write=True).shape == (3, 0)
    # The buffer of a first step is not read.
    assert torch.equal(fused.state["momentum_buffer"], grad)


@pytest.mark.parametrize("rule", RULES)
def test_a_float16_overflow_is_not_rebuilt(rule: str, device: torch.device) -> None:
    M, grad, V, *_ = head(70, 75, 1, dtype=torch.float16, device=device)
    now, later = Fused(rule, {}, M.clone()), Fused(rule, {}, M.clone())
    now.sketch(grad, V, write=True)
    later.sketch(grad, V, write=False)
    # One entry of the last tile.
    A, B = torch.zeros(70, 1, device=device), torch.zeros(75, 1, device=device)
    A[69], B[74] = 1e3, 1e3
    assert not later.rebuild(grad, (A, torch.ones(1, device=device), B), accumulate=True)
    assert torch.equal(later.M, now.M)
    assert later.rebuild(grad, (A / 1e3, torch.ones(1, device=device), B))
    assert float(later.M[69, 74]) == 1e3


@pytest.mark.parametrize("write", [True, False])
@pytest.mark.parametrize(("rule", "options"), CASES, ids=case_name)
def test_infinite_and_huge_weights_are_those_of_torch(
    rule: str, options: dict[str, Any], write: bool, device: torch.device
) -> None:
    M, _, V, *factors = head(7, 29, 3, device=device)
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


def test_a_maximum_of_squares_passes_nan_on(device: torch.device) -> None:
    M, grad, V, *_ = head(3, 5, 2, device=device)
    fused = Fused("adamw", {"amsgrad": True}, M)
    # On either side.
    fused.state["max_exp_avg_sq"][0, 1] = torch.nan
    fused.state["exp_avg_sq"][2, 3] = torch.nan
    expected = torch.zeros(3, 5, dtype=torch.bool, device=device)
    expected[0, 1] = expected[2, 3] = True
    fused.sketch(grad, V, write=True)
    assert torch.equal(fused.state["max_exp_avg_sq"].isnan(), expected)
    assert torch.equal(M.isnan(), expected)


@pytest.mark.parametrize("many_rows", [False, True])
@pytest.mark.parametrize("write", [True, False])
@pytest.mark.parametrize("shape", [(7, 129, 9), (33, 70, 3)], ids=str)
def test_what_lies_beyond_the_weight_is_no_nan(
    shape: tuple[int, int, int],
    write: bool,
    many_rows: bool,
    device: torch.device,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    if many_rows:
        monkeypatch.setattr(importlib.import_module("lip_fast.backends.triton.update"), "_MANY_ROWS", 0)
    # Without eps an entry of nothing but zeros is 0 / 0, and such entries fill the tiles up.
    options = {"eps": 0.0, "weight_decay": 0.1}
    M, grad, V, *factors = head(*shape, device=device)
    assert grad.all()
    exact, fused = Exact("adamw", options, M), Fused("adamw", options, M)
    exact.update(grad)
    Y = fused.sketch(grad, V, write=write)
    sketched(Y, exact.M, V)
    if not write:
        Z = fused.project(grad, Y)
        assert not fused.rebuild(grad, tuple(factors), ok=False)
        _projected(Z, fused.M, Y)
    close(fused.M, exact.M)


def test_a_square_that_overflowed_stays_infinite(device: torch.device) -> None:
    M, grad, V, *_ = head(3, 5, 2, device=device)
    fused = Fused("adamw", {"weight_decay": 0.0}, M.clone())
    grad[1, 2] = 1e30
    for _ in range(2):
        fused.sketch(grad, V, write=True)
    assert fused.state["exp_avg_sq"][1, 2] == torch.inf
    assert float(fused.M[1, 2]) == float(M[1, 2])
    assert torch.isfinite(fused.M).all()


@pytest.mark.parametrize("n", [1, 2, 10, 1000, 100_000])
def test_bias_corrections_hold_to_float32(n: int, device: torch.device) -> None:
    fused = Fused("adamw", {"eps": 0.0}, torch.zeros(3, 5, device=device), lr=1.0)
    # A mean and a square of 1 with the bias of n steps.
    fused.state["exp_avg"].fill_(1 - 0.9**n)
    fused.state["exp_avg_sq"].fill_(1 - 0.999**n)
    fused.rule.update_count.fill_(n)
    nothing = (
        torch.zeros(3, 1, device=device),
        torch.zeros(1, device=device),
        torch.zeros(5, 1, device=device),
    )
    assert not fused.rebuild(fused.M, nothing, ok=False)
    # The state, the powers and their logarithms, and what is done with them, are rounded. 1 - 0.999^n taken
    # from a float32 power would be off by 500 of these at n = 1.
    assert float((fused.M + 1).abs().max()) <= 12 * EPS


@pytest.mark.parametrize("rule", RULES)
def test_the_same_inputs_give_the_same_bits(rule: str, device: torch.device) -> None:
    results = []
    for _ in range(2):
        M, grad, V, *factors = head(40, 300, 3, device=device)
        fused = Fused(rule, {}, M)
        Y = fused.sketch(grad, V, write=False)
        Z = fused.project(grad, Y)
        fused.rebuild(grad, tuple(factors), accumulate=True)
        results.append((Y, Z, fused.M))
    for one, two in zip(*results, strict=True):
        assert torch.equal(_bits(one), _bits(two))
