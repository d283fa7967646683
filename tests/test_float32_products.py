"""What a training allows its own float32 products, bfloat16 or TF32, does not reach ours."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import torch
from problems import linear, problem, relative_error
from torch import Tensor, nn

import lip_fast
from lip_fast import LabelStatistics, backends, ops, optim
from lip_fast.ops.op import OPS

Q, L, N = 24, 6, 300


@pytest.fixture
def plain_torch(monkeypatch: pytest.MonkeyPatch) -> None:
    """Every op runs its kernel in plain torch, which kernels of ours would hide."""
    for op, (_, *others) in backends.declared().items():
        for each in others:
            monkeypatch.setattr(each, "run", OPS[op].plain.run)


@contextmanager
def allowed(precision: str) -> Iterator[None]:
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision(precision)
    try:
        yield
    finally:
        torch.set_float32_matmul_precision(before)


PRODUCTS = (
    (torch, "matmul", 2),
    (torch, "mm", 2),
    (torch, "bmm", 2),
    (torch, "mv", 2),
    (torch, "addmm", 3),
    (torch, "baddbmm", 3),
    (Tensor, "__matmul__", 2),
    (Tensor, "matmul", 2),
    (Tensor, "mm", 2),
    (Tensor, "addmm", 3),
    (Tensor, "addmm_", 3),
    (Tensor, "baddbmm", 3),
)


class Rounding:
    """Products of torch as a GPU takes them: in TF32 where torch.backends.cuda.matmul allows it.

    Attributes:
        rounded: how many products were.
    """

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.rounded = 0
        for owner, name, operands in PRODUCTS:
            monkeypatch.setattr(owner, name, self._like(getattr(owner, name), operands))

    def _like(self, product: Callable[..., Any], operands: int) -> Callable[..., Any]:
        def taken(*arguments: Any, **options: Any) -> Any:
            if torch.backends.cuda.matmul.fp32_precision in ("ieee", "none"):
                return product(*arguments, **options)
            first = operands - 2
            rounded = [
                _tf32(a) if first <= i < operands and isinstance(a, Tensor) else a
                for i, a in enumerate(arguments)
            ]
            self.rounded += any(a is not b for a, b in zip(rounded, arguments, strict=True))
            return product(*rounded, **options)

        return taken


def _tf32(X: Tensor) -> Tensor:
    """Rounded to 10 bits after the first."""
    if X.dtype != torch.float32:
        return X
    bits = X.detach().contiguous().view(torch.int32)
    return ((bits + 0x1000) & ~0x1FFF).view(torch.float32)


@pytest.fixture
def tf32(monkeypatch: pytest.MonkeyPatch, plain_torch: None) -> Iterator[Rounding]:
    rounding = Rounding(monkeypatch)
    with allowed("high"):
        A = torch.full((2, 2), 1 + 2.0**-12)
        assert torch.equal(A @ A, torch.full((2, 2), 2.0))
        assert rounding.rounded == 1
        rounding.rounded = 0
        yield rounding


def _problem() -> tuple[Tensor, Tensor, Tensor, Tensor]:
    W, X, y, _, bias = problem(Q, L, N, dtype=torch.float32)
    return W, X, y, bias


def _path() -> Any:
    _, X, y, _ = _problem()
    return LabelStatistics(Q, L, dtype=torch.float32).update(X, y).ridge_path([1.0, 10.0])


def _lip_path() -> lip_fast.LIPPath:
    W, X, y, bias = _problem()
    return lip_fast.lip_path(W, X, y, bias=bias)


def _columns() -> Tensor:
    return problem(Q, 5, 1, dtype=torch.float32).W


def _stats() -> LabelStatistics:
    _, X, y, _ = _problem()
    Y = nn.functional.one_hot(y, L).float() + 0.1
    return LabelStatistics(Q, L, dtype=torch.float32).update(X, Y)


PUBLIC: dict[str, Callable[[], Any]] = {
    "update": lambda: _stats().G,
    "merge": lambda: _stats().merge(_stats()).update(*_problem()[1:3]).C,
    "refit": lambda: _stats().refit(torch.eye(L, 3), _columns()[:, :3], _problem()[3]),
    "truncate": lambda: _stats().truncate(3).abs(),
    "ridge_path, weight": lambda: _path()[0].M,
    "ridge_path, bias": lambda: _path()[0].bias,
    "ridge_path, logits": lambda: list(_path().logits(_problem()[1]))[1],
    "pcr_path": lambda: _stats().pcr_path([4])[0].M,
    "lip": lambda: lip_fast.lip(*_problem()[:3], 2, bias=_problem()[3]),
    "lip of statistics": lambda: lip_fast.lip(_problem()[0], _stats(), k=2),
    "lip_path": lambda: _lip_path().weight(3),
    "agreement": lambda: torch.tensor(
        list(_lip_path().agreement(_problem()[1:3], bias=_problem()[3]).values())
    ),
    "randomized_svd": lambda: lip_fast.randomized_svd(_problem()[0], 2, oversample=1)[1],
    "repair": lambda: (
        lip_fast.repair(linear(Q, L, bias=True), _stats(), "ridge", _problem()[1:3]).head.weight
    ),
    "ops.gram": lambda: ops.gram(_problem()[1]),
    "ops.orthonormalize": lambda: ops.orthonormalize(_columns())[0],
    "ops.finish_svd": lambda: ops.finish_svd(_columns(), torch.eye(Q, 5), rank=3)[1],
    "ops.tail_svd": lambda: ops.tail_svd(_columns(), rank=1)[1],
    "ops.warm_svd": lambda: ops.warm_svd(
        _problem()[0].mT.contiguous(),
        _columns()[:, :2].contiguous(),
        torch.zeros((), dtype=torch.int64),
        fresh=1,
        seed=0,
        tf32=False,
    )[1],
}


@pytest.mark.parametrize("name", PUBLIC)
@pytest.mark.parametrize("how", ["bfloat16", "autocast"])
def test_public_functions_multiply_in_float32(name: str, how: str) -> None:
    """A CPU with matrix instructions rounds to bfloat16 by either switch."""
    expected = PUBLIC[name]()
    if how == "autocast":
        with torch.autocast("cpu", dtype=torch.bfloat16):
            found = PUBLIC[name]()
    else:
        with allowed("medium"):
            found = PUBLIC[name]()
    assert found.dtype == expected.dtype
    assert torch.equal(found, expected)


@pytest.mark.parametrize("name", PUBLIC)
def test_public_functions_take_no_tf32(name: str, tf32: Rounding) -> None:
    found = PUBLIC[name]()
    assert not tf32.rounded
    with allowed("highest"):
        assert torch.equal(found, PUBLIC[name]())


@pytest.mark.filterwarnings("ignore:rest=.drop. removes:UserWarning")
@pytest.mark.parametrize("rest", ["keep", "drop"])
@pytest.mark.parametrize(("l", "q"), [(10, 512), (100, 512), (512, 100)])
def test_a_step_takes_no_tf32(l: int, q: int, rest: str, tf32: Rounding) -> None:
    """Where TF32 is allowed, each step acts and gives the weight that it gives where it is not."""

    def trained() -> tuple[Tensor, dict[str, dict[str, Any]], int]:
        _, X, y, _, _ = problem(q, l, 64, dtype=torch.float32)
        head = linear(q, l, bias=True)
        optimizer = optim.LIPAdamW(
            [head.weight], lr=1e-3, lip_rank=max(2, l // 8), lip_tail_rank=4, lip_rest=rest
        )
        g, rounded = torch.Generator().manual_seed(0), 0
        for _ in range(6):
            # The same gradients in both: products of the training itself may be rounded.
            head.weight.grad = torch.randn(head.weight.shape, generator=g)
            optimizer.observe(head, X, y)
            before = tf32.rounded
            optimizer.step()
            rounded += tf32.rounded - before
        return head.weight.detach().clone(), optimizer.lip.stats(), rounded

    weight, stats, rounded = trained()
    assert rounded == 0
    with allowed("highest"):
        expected, same, _ = trained()
    assert relative_error(weight, expected) < 1e-6
    assert stats == same
    (counted,) = stats.values()
    assert (counted["applied"], counted["not_orthogonal"], counted["rank_deficient"]) == (6, 0, 0)
