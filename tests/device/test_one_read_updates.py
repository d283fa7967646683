"""The updates on the one-read kernel, on a GPU: against float64, and against what is computed again."""

from typing import Any

import pytest
import torch
from torch import Tensor
from update_rules import EPS, ROUNDINGS, STEPS, Exact, Fused

from lip_fast import ops
from lip_fast.backends.default.update import update_rebuild_
from lip_fast.backends.native import library
from lip_fast.backends.native.update_one_read_ import update_one_read_

DEVICE = torch.device("cuda", 0)
LR = 0.01
# Half a unit of the last of the ten bits that TF32 keeps of a mantissa.
TF32 = 2**-11
# Odd numbers of rows and columns, one block and several, all 16, more rows than run at once.
SHAPES = [(1, 1, 1), (33, 256, 48), (150, 67, 13), (1000, 257, 80), (40, 4096, 48), (20011, 260, 48)]
CASES: list[tuple[str, dict[str, Any]]] = [
    ("adamw", {}),
    ("adamw", {"weight_decay": 0.1, "maximize": True, "beta2": 0.95}),
    ("sgd", {"weight_decay": 0.1, "maximize": True}),
    ("sgd", {"momentum": 0.9, "dampening": 0.3}),
    ("sgd", {"momentum": 0.9, "nesterov": True, "weight_decay": 0.1}),
    ("nadam", {"weight_decay": 0.1, "maximize": True}),
    ("nadam", {"weight_decay": 0.1, "decoupled_weight_decay": True}),
]


def _randn(*shape: int, seed: int) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def _padded(X: Tensor) -> Tensor:
    """X on the device, its rows on 16-byte boundaries with NaN between them."""
    l, q = X.shape
    wide = torch.full((l, (q + 3) // 4 * 4), torch.nan)
    wide[:, :q] = X
    return wide.to(DEVICE)[:, :q]


class Weight(Fused):
    """A weight with its state and the native kernel of its rule; NaN between the rows."""

    def __init__(self, rule: str, options: dict[str, Any], M: Tensor) -> None:
        super().__init__(rule, options, _padded(M), lr=LR)
        self.state = {name: _padded(X.cpu()) for name, X in self.state.items()}

    def step(
        self, grad: Tensor, V: Tensor, *, write: bool, scaling: ops.Scaling | None = None
    ) -> tuple[Tensor, Tensor]:
        self.count()
        return update_one_read_(self.updated(grad, scaling), V, write)

    def write_later(self, grad: Tensor) -> None:
        """M' as the default kernel computes it from the old weight and the updated state."""
        l, q = self.M.shape
        none, no = torch.zeros(0, device=DEVICE), torch.tensor(False, device=DEVICE)
        nothing = (none.new_zeros(l, 0), none, none.new_zeros(q, 0))
        how = (no, torch.tensor(0, device=DEVICE), False, 0)
        update_rebuild_(self.updated(grad), *nothing, *how)


def _equal_bits(a: Tensor, b: Tensor) -> bool:
    return torch.equal(a.contiguous().view(torch.int32), b.contiguous().view(torch.int32))


def _tf32(X: Tensor) -> Tensor:
    """The nearest numbers of TF32, ties away from zero, in float64."""
    bits = (X.contiguous().view(torch.int32) + 0x1000) & ~0x1FFF
    return bits.view(torch.float32).double()


def _assert_products(M: Tensor, V: Tensor, Y: Tensor, Z: Tensor) -> None:
    """Y and Z as :func:`lip_fast.ops.sketch` says: of rounded operands, Y rounded, Z for that Y."""
    M, V, Y, Z = _tf32(M.cpu()), _tf32(V.cpu()), Y.cpu(), Z.cpu()
    exact, size = M @ V, M.abs() @ V.abs()
    assert ((Y.double() - exact).abs() <= 1.01 * TF32 * exact.abs() + 1e-5 * size).all()
    assert torch.equal(_tf32(Y), Y.double())
    assert ((Z.double() - M.mT @ Y.double()).abs() <= 1e-5 * (M.abs().mT @ Y.double().abs())).all()


def _require(rule: str, options: dict[str, Any], shape: tuple[int, int, int]) -> None:
    held = 1 + len(Fused(rule, options, torch.zeros(1, 1)).state)
    if library.cuda().update_one_read_workspace(rule, held, *shape) < 0:
        pytest.skip("this device cannot run it for this shape")


def _name(value: Any) -> str | None:
    return ",".join(f"{k}={v}" for k, v in value.items()) or "plain" if isinstance(value, dict) else None


@pytest.mark.parametrize(("rule", "options"), CASES, ids=_name)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_steps_are_those_of_float64(shape: tuple[int, int, int], rule: str, options: dict[str, Any]) -> None:
    l, q, m = shape
    _require(rule, options, shape)
    M, V = _randn(l, q, seed=0), _randn(m, q, seed=1).to(DEVICE).mT
    exact = Exact(rule, options, M, lr=LR)
    now, later = Weight(rule, options, M), Weight(rule, options, M)
    for i in range(STEPS):
        grad = 0.1 * _randn(l, q, seed=2 + i)
        exact.update(grad)
        on_device = _padded(grad)
        Y, Z = now.step(on_device, V, write=True)
        _assert_products(now.M, V, Y, Z)
        before = later.M.clone()
        assert _equal_bits(torch.cat(later.step(on_device, V, write=False)), torch.cat((Y, Z)))
        assert _equal_bits(later.M, before)
        later.write_later(on_device)
        assert _equal_bits(later.M, now.M)
        assert _equal_bits(on_device, grad.to(DEVICE))
    for name, X in now.tensors().items():
        expected = exact.tensors()[name]
        budget = STEPS * ROUNDINGS * EPS * max(float(expected.abs().max()), 1e-3)
        assert float((X.cpu().double() - expected).abs().max()) <= budget


@pytest.mark.parametrize("rule", ["adamw", "nadam", "sgd"])
def test_found_inf_leaves_every_bit(rule: str) -> None:
    shape = (150, 67, 13)
    options = {"momentum": 0.9} if rule == "sgd" else {}
    _require(rule, options, shape)
    weight, V = Weight(rule, options, _randn(150, 67, seed=0)), _randn(13, 67, seed=1).to(DEVICE).mT
    grad = _padded(_randn(150, 67, seed=2))
    weight.step(grad, V, write=True)
    grad[5, 6] = torch.inf
    before = [X.clone() for X in (weight.M, grad, *weight.state.values())]
    scaling = ops.Scaling(torch.full((), 4.0, device=DEVICE), torch.ones((), device=DEVICE))
    arguments = (weight.M, grad, *weight.state.values())
    Y, Z = weight.step(grad, V, write=True, scaling=scaling)
    assert all(_equal_bits(X, b) for X, b in zip(arguments, before, strict=True))
    _assert_products(weight.M, V, Y, Z)


@pytest.mark.parametrize("rule", ["adamw", "nadam", "sgd"])
def test_the_gradient_is_unscaled_in_place(rule: str) -> None:
    shape = (97, 130, 48)
    options = {"momentum": 0.9} if rule == "sgd" else {}
    _require(rule, options, shape)
    M, V = _randn(97, 130, seed=0), _randn(48, 130, seed=1).to(DEVICE).mT
    plain, scaled = Weight(rule, options, M), Weight(rule, options, M)
    grad, times_eight = _padded(_randn(97, 130, seed=2)), _padded(8 * _randn(97, 130, seed=2))
    Y, _ = plain.step(grad, V, write=True)
    scaling = ops.Scaling(torch.full((), 8.0, device=DEVICE), torch.zeros((), device=DEVICE))
    assert _equal_bits(scaled.step(times_eight, V, write=True, scaling=scaling)[0], Y)
    assert _equal_bits(times_eight, grad)
    assert _equal_bits(scaled.M, plain.M)


def test_the_same_bits_each_time() -> None:
    shape = (1000, 257, 80)
    _require("adamw", {}, shape)
    M, grad, V = _randn(1000, 257, seed=0), _padded(_randn(1000, 257, seed=2)), _randn(80, 257, seed=1)
    results = [torch.cat(Weight("adamw", {}, M).step(grad, V.to(DEVICE).mT, write=False)) for _ in range(5)]
    assert all(_equal_bits(result, results[0]) for result in results)


def test_what_the_kernel_does_not_take_is_done_op_by_op() -> None:
    M, V = _randn(40, 64, seed=0), _randn(81, 64, seed=1).to(DEVICE).mT
    grad = _randn(40, 64, seed=2).to(DEVICE)
    # More directions than one pass holds, and rows that do not lie on 16 bytes.
    wide = Weight("adamw", {}, M)
    Y, Z = wide.step(grad, V, write=True)
    assert float((Y.double() - wide.M.double() @ V.double()).abs().max()) < 1e-4
    shifted = Weight("adamw", {}, M)
    shifted.M = torch.zeros(40 * 64 + 1, device=DEVICE)[1:].view(40, 64).copy_(M.to(DEVICE))
    Y, Z = shifted.step(grad, V[:, :8], write=True)
    assert float((Z.double() - shifted.M.double().mT @ Y.double()).abs().max()) < 1e-3
    assert _equal_bits(shifted.M, wide.M)
