"""A step by products in one call: LIP in float64, and its parts by a library, for all vectors and threads."""

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from problems import linear, orthonormal, relative_error
from step_problems import SPECTRA, batch, each_number_of_threads, exactly, head_with, missed, train
from torch import Tensor

from lip_fast import LIP, flops, ops
from lip_fast.backends.native import at_once, library
from lip_fast.directions import Directions
from lip_fast.ops import at_once as declared
from lip_fast.optim import LIPAdamW
from lip_fast.projected import FRESH, GUARDS, first_basis, split
from lip_fast.refitting import Refitting
from lip_fast.settings import Settings
from lip_fast.world import Alone

pytestmark = [
    pytest.mark.skipif(library.cpu() is None, reason="the native kernels are not there"),
    pytest.mark.usefixtures("served"),
]

# More and fewer kept directions than a block of 64 or two; one more row than a tile of 96 and than 384 deep;
# a tail down to the last direction, and one with deeper ones.
CASES = [
    (150, 161, 73, 77),
    (150, 161, 73, 20),
    (97, 400, 70, 9),
    (400, 97, 72, 25),
    (141, 141, 9, 104),
    (33, 50, 10, 1),
]


def weight(l: int, q: int, k: int, r: int) -> tuple[Tensor, Tensor]:
    """A weight (l, q) in float64 whose tail was squashed a small change ago, and the basis of before."""
    d = min(l, q)
    s = torch.linspace(2, 1, d, dtype=torch.float64)
    s[k:] *= 0.05
    U, V = orthonormal(l, 1)[:, :d], orthonormal(q, 2)[:, :d]
    moved = torch.randn(l, q, dtype=torch.float64, generator=torch.Generator().manual_seed(3))
    return U * s @ V.mT + 1e-4 * moved, first_basis(s, V, k, r)


def taken(
    M: Tensor,
    basis: Tensor,
    X: Tensor,
    y: Tensor,
    bias: Tensor | None,
    k: int,
    drop: bool,
    clip: bool = True,
    most_removed: float = 1.0,
) -> declared.Step | None:
    return ops.projected_step_(
        M,
        basis,
        X,
        y,
        bias,
        Refitting(k, drop, clip, 1e-7),
        guards=GUARDS,
        fresh=FRESH,
        step=torch.tensor(5),
        seed=7,
        most_removed=most_removed,
    )


@pytest.fixture
def by_a_library() -> Callable[..., Any]:
    """Calls what it is given without any step in one call."""

    def call(work: Callable[[], Any]) -> Any:
        with pytest.MonkeyPatch.context() as patched:
            for name in ("projected_step_", "split"):
                patched.setattr(ops, name, lambda *arguments, **options: None)
            return work()

    return call


@pytest.mark.parametrize("drop", [False, True])
@pytest.mark.parametrize("case", CASES, ids=str)
def test_it_is_lip(
    case: tuple[int, int, int, int], drop: bool, vector_bytes: int, by_a_library: Callable[..., Any]
) -> None:
    l, q, k, r = case
    M64, basis = weight(l, q, k, r)
    for n, clip, biased in ((50, True, True), (17, False, False), (130, True, False)):
        X, y, bias = batch(l, q, n)
        offset = bias if biased else None
        M = M64.float()
        done = taken(M, basis.float(), X, y, offset, k, drop, clip)
        assert done is not None
        library_step = _of_directions(l, q, k, r, drop, clip, basis.float())
        other = M64.float()
        assert by_a_library(lambda: library_step.step_(other, _alone(X, y), offset)).ok  # noqa: B023
        expected = exactly(M64, X, y, offset, k, r, drop=drop, clip=clip)
        # What one power step leaves, and rounding in another order. Some directions of the tail are found
        # less well than all of it.
        if k + r == min(l, q):
            assert relative_error(M, expected) < 1.5 * relative_error(other, expected) + 1e-6
        assert relative_error(M, other) < 2e-4 * relative_error(M64, other) + 2e-6
        assert done.told is not None
        assert float(library_step.told[0]) == pytest.approx(done.told[0], rel=1e-3, abs=1e-6)
        assert float(library_step.told[1]) == pytest.approx(done.told[1] if drop else 0, abs=1e-5)


def _of_directions(l: int, q: int, k: int, r: int, drop: bool, clip: bool, basis: Tensor) -> Directions:
    """The parts of such a step, which the sizes of a real weight would choose."""
    settings = Settings(tail_rank=r, rest="drop" if drop else "keep", clip=clip, seed=7)
    found = Directions(l, q, rank=k, settings=settings, device=torch.device("cpu"))
    found.is_wide = found.projects = True
    found.exact, found.drops, found.tail_rank, found.basis = False, drop, r, basis
    found.step.fill_(5)
    found._warned = True
    return found


def _alone(X: Tensor, y: Tensor) -> Alone:
    return Alone([(X, y)], torch.tensor(True))


@pytest.mark.parametrize("case", CASES[:4], ids=str)
def test_the_number_of_threads_changes_no_bit(case: tuple[int, int, int, int], vector_bytes: int) -> None:
    l, q, k, r = case
    M64, basis = weight(l, q, k, r)
    X, y, bias = batch(l, q, 130)
    results = []
    for _ in each_number_of_threads():
        M = M64.float()
        done = taken(M, basis.float(), X, y, bias, k, True)
        assert done is not None
        results.append((M, done.basis, done.told))
    for M, following, told in results[1:]:
        assert torch.equal(M, results[0][0])
        assert torch.equal(following, results[0][1])
        assert told == results[0][2]


def test_rows_may_lie_apart_and_what_is_beside_them_is_not_touched(vector_bytes: int) -> None:
    l, q, k, r = CASES[1]
    M64, basis = weight(l, q, k, r)
    X, y, bias = batch(l, q, 40)
    for drop in (False, True):
        alone = M64.float()
        assert taken(alone, basis.float(), X, y, bias, k, drop) is not None
        around = torch.full((l, q + 11), math.nan)
        M = around[:, 3 : 3 + q]
        M.copy_(M64)
        apart = torch.full((40, 2 * q), math.nan)[:, ::2]
        apart.copy_(X)
        by_rows = basis.float().contiguous()
        assert taken(M, by_rows, apart, y.repeat_interleave(2)[::2], bias, k, drop) is not None
        assert torch.equal(M, alone)
        assert around[:, :3].isnan().all()
        assert around[:, 3 + q :].isnan().all()


def test_rows_without_a_label_do_not_count() -> None:
    l, q, k, r = CASES[0]
    M64, basis = weight(l, q, k, r)
    X, y, bias = batch(l, q, 40)
    few, all_rows = M64.float(), M64.float()
    assert taken(few, basis.float(), X[:30], y[:30], bias, k, True) is not None
    y[30:], X[30:] = -100, math.nan
    done = taken(all_rows, basis.float(), X, y, bias, k, True)
    assert done is not None
    assert relative_error(all_rows, few) < 1e-6
    assert done.masked == 0
    y[30:33] = torch.tensor([-1, l, 1 << 40])
    done = taken(M64.float(), basis.float(), X, y, bias, k, True)
    assert done is not None
    assert done.masked == 3


BROKEN: dict[str, Callable[[dict[str, Tensor]], Any]] = {
    "weight": lambda x: x["M"].__setitem__((3, 5), math.nan),
    "infinite weight": lambda x: x["M"].__setitem__((3, 5), math.inf),
    "features": lambda x: x["X"].__setitem__((3, 5), math.nan),
    "bias": lambda x: x["bias"].__setitem__(3, math.inf),
    "basis": lambda x: x["basis"].__setitem__((3, 5), math.nan),
    "basis of the tail": lambda x: x["basis"].__setitem__((3, -1), math.inf),
    "zero weight": lambda x: x["M"].zero_(),
    "zero column of the basis": lambda x: x["basis"][:, 2].zero_(),
    "zero column of the tail": lambda x: x["basis"][:, -2].zero_(),
    "the same column twice": lambda x: x["basis"][:, 2].copy_(x["basis"][:, 3]),
    # Independent, but of one pass not orthonormal enough.
    "two columns that are nearly the same": lambda x: x["basis"][:, 2].mul_(0.03).add_(x["basis"][:, 3]),
    "one column twice in the tail": lambda x: x["basis"][:, -2].copy_(x["basis"][:, -1]),
    "huge weight": lambda x: x["M"].mul_(1e30),
}


@pytest.mark.parametrize("name", BROKEN)
@pytest.mark.parametrize("drop", [False, True])
def test_what_is_unsound_is_not_written(name: str, drop: bool, vector_bytes: int) -> None:
    l, q, k, r = CASES[1]
    M64, basis = weight(l, q, k, r)
    X, y, bias = batch(l, q, 40)
    given = {"M": M64.float(), "basis": basis.float().clone(), "X": X, "bias": bias}
    BROKEN[name](given)
    before, basis_before = given["M"].clone(), given["basis"].clone()
    version = given["M"]._version
    assert taken(given["M"], given["basis"], X, y, bias, k, drop) is None
    assert torch.equal(given["M"].view(torch.int32), before.view(torch.int32))
    assert torch.equal(given["basis"].view(torch.int32), basis_before.view(torch.int32))
    assert given["M"]._version == version


@pytest.mark.parametrize("scale", [1e-30, 1e-18, 1e-12, 1e12, 1e18, 1e30])
def test_a_weight_of_any_size_is_repaired_or_left_to_its_parts(scale: float) -> None:
    l, q, k, r = CASES[0]
    M64, basis = weight(l, q, k, r)
    M = (scale * M64).float()
    basis[:, :k] /= scale
    X, y, _ = batch(l, q, 40)
    if taken(M, basis.float(), X, y, None, k, True) is None:
        assert not 1e-12 <= scale <= 1e12
        return
    expected = exactly(scale * M64, X, y, None, k, r, drop=True, clip=True)
    # Of very small weights the squares underflow that the rotation is made of.
    assert relative_error(M.double(), expected) < (1e-4 if scale > 1e-20 else 1e-3)


def test_a_weight_without_more_directions_than_are_followed_is_split_too(vector_bytes: int) -> None:
    """Nothing is left for the fresh columns, as in a second step without one of the optimizer."""
    l, q, k, r = CASES[1]
    M64, basis = weight(l, q, k, r)
    U, S, Vh = torch.linalg.svd(M64, full_matrices=False)
    M64 = U[:, : k + r] * S[: k + r] @ Vh[: k + r]
    X, y, bias = batch(l, q, 40)
    M = M64.float()
    done = taken(M, basis.float(), X, y, bias, k, True)
    assert done is not None
    assert relative_error(M, exactly(M64, X, y, bias, k, r, drop=True, clip=True)) < 1e-5
    again = taken(M, done.basis, X, y, bias, k, True)
    assert again is not None
    assert torch.isfinite(again.basis).all()


def test_nothing_is_written_where_much_would_be_removed() -> None:
    l, q, k, r = CASES[1]
    M64, basis = weight(l, q, k, r)
    U, S, Vh = torch.linalg.svd(M64, full_matrices=False)
    S[k:] *= 4
    M64 = U * S @ Vh
    X, y, bias = batch(l, q, 40)
    share = float(S[k + r :].square().sum() / S.square().sum())
    M = M64.float()
    assert taken(M, basis.float(), X, y, bias, k, True, most_removed=0.9 * share) is None
    assert torch.equal(M, M64.float())
    assert taken(M, basis.float(), X, y, bias, k, False, most_removed=0.9 * share) is not None
    done = taken(M64.float(), basis.float(), X, y, bias, k, True, most_removed=1.2 * share)
    assert done is not None
    assert done.told is not None
    assert done.told[1] == pytest.approx(share, rel=0.1)


def test_a_step_that_wrote_the_weight_says_so_to_autograd() -> None:
    l, q, k, r = CASES[0]
    M64, basis = weight(l, q, k, r)
    M = M64.float()
    version = M._version
    assert taken(M, basis.float(), *batch(l, q, 40), k, True) is not None
    assert M._version > version


def test_a_split_leaves_the_weight_and_is_that_of_a_library(by_a_library: Callable[..., Any]) -> None:
    l, q, k, r = CASES[0]
    M64, basis = weight(l, q, k, r)
    M, B = M64.float(), basis.float()
    arguments = {"step": torch.tensor(5), "seed": 7}
    found = split(M, B, k, **arguments)
    other = by_a_library(lambda: split(M, B, k, **arguments))
    assert torch.equal(M, M64.float())
    assert int(found.status) == int(other.status) == 0
    for name in ("S", "s_1", "s_k", "gamma"):
        assert torch.allclose(getattr(found, name), getattr(other, name), rtol=1e-3, atol=1e-6), name
    for mine, theirs in ((found.left, found.right), (other.left, other.right)):
        whole = sum(A.double() @ B.double().mT for A, B in zip(mine[:-1], theirs[:-1], strict=True))
        assert relative_error(whole, M64) < 1e-5
    kept = [
        sum(A.double() @ B.double().mT for A, B in zip(x.left[:-1], x.right[:-1], strict=True))
        - (x.A * x.S).double() @ x.B.double().mT
        for x in (found, other)
    ]
    assert relative_error(kept[0], kept[1]) < 1e-5


@pytest.mark.parametrize("rate", [1e-3, 1e-5])
@pytest.mark.parametrize("name", SPECTRA)
@pytest.mark.parametrize("shape", [(140, 200), (200, 140)], ids=str)
def test_along_a_training_no_step_falls_back(
    name: str, rate: float, shape: tuple[int, int], monkeypatch: pytest.MonkeyPatch
) -> None:
    """And each keeps what is best kept of the weight that the optimizer left."""
    (l, q), k, steps = shape, 80, 100
    monkeypatch.setattr(flops, "products_pay", lambda *_: True)
    head = head_with(name, l, q, min(l, q))
    optimizer = torch.optim.AdamW(head.parameters(), lr=rate)
    lip = LIP(head, k)
    lip.attach(optimizer)
    errors = []
    step_ = at_once.projected_step_

    def watched(M: Tensor, basis: Tensor, *given: Any) -> Any:
        before = M.detach().double()
        result = step_(M, basis, *given)
        assert result.applied, (name, result)
        errors.append(missed(before, torch.linalg.qr(given[3][:, :k].double())[0]))
        return result

    monkeypatch.setattr(declared.PROJECTED, "run", watched)
    train(head, optimizer, lip, steps)
    assert lip.stats()["applied"] == steps
    assert len(errors) == steps - 1
    assert max(errors[5:]) < 1.02


@pytest.mark.parametrize("batches", [1, 2])
@pytest.mark.parametrize("default", [torch.float64, torch.bfloat16, "meta"], ids=str)
def test_it_does_not_depend_on_the_defaults_of_torch(
    batches: int, default: torch.dtype | str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One batch is one call; of two, the split alone is."""
    monkeypatch.setattr(flops, "products_pay", lambda *_: True)
    heads = [linear(160, 140) for _ in range(2)]
    for head, other in zip(heads, (False, True), strict=True):
        lip = LIP(head, 70)
        for step in range(3):
            given = [batch(140, 160, 20 + step + i)[:2] for i in range(batches)]
            before = torch.get_default_dtype()
            try:
                if other and isinstance(default, torch.dtype):
                    torch.set_default_dtype(default)
                with torch.device(default if other and isinstance(default, str) else "cpu"):
                    for X, y in given:
                        lip.observe(X, y)
                    lip.apply()
            finally:
                torch.set_default_dtype(before)
        stats = lip.stats()
        assert stats["applied"] == 3
        assert stats["gamma"] >= 0
    assert torch.equal(heads[0].weight, heads[1].weight)


def test_features_whose_signs_are_turned_are_read_as_they_are() -> None:
    l, q, k, r = CASES[1]
    M64, basis = weight(l, q, k, r)
    X, y, bias = batch(l, q, 40)
    M, other = M64.float(), M64.float()
    assert taken(M, basis.float(), X, y, bias, k, True) is not None
    assert taken(other, basis.float(), torch._neg_view(-X), y, bias, k, True) is not None
    assert torch.equal(M, other)


def test_an_optimizer_with_lip_takes_it_too(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(flops, "products_pay", lambda *_: True)
    l, q = 140, 160
    X, y, _ = batch(l, q, 50)
    head = linear(q, l)
    optimizer = LIPAdamW(head.parameters(), lr=1e-3, lip_rank=70)
    calls = []
    step_ = at_once.projected_step_
    monkeypatch.setattr(declared.PROJECTED, "run", lambda *given: calls.append(1) or step_(*given))
    for _ in range(3):
        optimizer.zero_grad()
        torch.nn.functional.cross_entropy(head(X), y).backward()
        optimizer.observe(head, X, y)
        optimizer.step()
    (stats,) = optimizer.lip.stats().values()
    assert stats["applied"] == 3
    assert len(calls) == 2
