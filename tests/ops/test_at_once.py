"""A step in one call: its parts one after another, in float64, whatever the vectors and threads."""

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from problems import gapped_matrix, linear, orthonormal, relative_error
from step_problems import SPECTRA, batch, each_number_of_threads, exactly, head_with, missed, train
from torch import Tensor

from lip_fast import LIP, ops
from lip_fast.backends.default import svd as by_library
from lip_fast.backends.native import at_once, library
from lip_fast.ops import at_once as declared
from lip_fast.optim import LIPSGD
from lip_fast.refitting import Refitting

pytestmark = [
    pytest.mark.skipif(library.cpu() is None, reason="the native kernels are not there"),
    pytest.mark.usefixtures("served"),
]

FRESH = 8
# Odd sizes, one more and one less than a tile of rows (48), a panel of columns (64) or a vector (16).
SHAPES = [(100, 512), (97, 131), (131, 97), (49, 65), (47, 63), (64, 64), (30, 1000), (700, 40)]


def weight(l: int, q: int, t: int, *, change: float = 1e-4) -> tuple[Tensor, Tensor]:
    """A weight (l, q) in float64 a small change after one of t directions, and the basis (q, t) of that one.

    The singular values differ: LIP depends on the basis where they do not.
    """
    d = min(l, q)
    s = 0.93 ** torch.arange(d, dtype=torch.float64)
    s[t:] = 0
    U, V = orthonormal(l, 1)[:, :d], orthonormal(q, 2)[:, :d]
    moved = torch.randn(l, q, dtype=torch.float64, generator=torch.Generator().manual_seed(3))
    return U * s @ V.mT + change * moved, V[:, :t]


def taken(
    M: Tensor, basis: Tensor, X: Tensor, y: Tensor, bias: Tensor | None, *how: Any
) -> declared.Step | None:
    step = torch.tensor(5)
    return ops.truncated_step_(M, basis, X, y, bias, Refitting(*how), fresh=FRESH, step=step, seed=7)


def in_parts(
    M: Tensor, basis: Tensor, X: Tensor, y: Tensor, bias: Tensor | None, k: int, drop: bool, clip: bool
) -> tuple[Tensor, int]:
    """What the weight becomes in the precision of the basis, and how many values were limited."""
    A, S, B, status = by_library.warm_svd(M, basis, torch.tensor(5), FRESH, 7)
    assert int(status) == 0
    A_r, B_r = A[:, k:], B[:, k:]
    P = X.to(B.dtype) @ B_r
    targets = A_r[y] if bias is None else A_r[y] - bias.to(A.dtype) @ A_r
    s = (P * targets).sum(0) / P.square().sum(0)
    limit = S[max(k - 1, 0)] if clip else math.inf
    clipped = int((s.abs() > limit).sum())
    s = s.clamp(-limit, limit)
    if drop:
        return A * torch.cat([S[:k], s]) @ B.mT, clipped
    return M + A_r * (s - S[k:]) @ B_r.mT, clipped


@pytest.mark.parametrize("drop", [False, True])
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_it_is_its_parts(shape: tuple[int, int], drop: bool, vector_bytes: int) -> None:
    l, q = shape
    for t, k, n, clip in ((min(l, q, 128) - FRESH, 7, 50, True), (13, 0, 20, False), (16, 16, 130, True)):
        M64, basis = weight(l, q, t)
        X, y, bias = batch(l, q, n)
        for offset in (None, bias):
            M = M64.float()
            done = taken(M, basis.float(), X, y, offset, k, drop, clip, 1e-7)
            expected, clipped = in_parts(M64, basis, X, y, offset, k, drop, clip)
            M32 = M64.float()
            budget, _ = in_parts(M32, basis.float(), X, y, offset, k, drop, clip)
            assert done is not None
            assert done.basis is not None
            # A library's rounding in float32, and as much as the order of a sum may make of it.
            assert relative_error(M, expected) < 3 * relative_error(budget, expected) + 1e-6
            assert abs(done.clipped - clipped) <= 1
            assert (done.basis.mT @ done.basis - torch.eye(t)).abs().max() < 3e-6


@pytest.mark.parametrize(
    "shape", [(10, 100), (100, 10), (24, 24), (3, 50), (2, 20), (64, 90), (83, 49)], ids=str
)
@pytest.mark.parametrize("drop", [False, True])
def test_an_exact_step_is_its_parts(shape: tuple[int, int], drop: bool, vector_bytes: int) -> None:
    l, q = shape
    d = min(shape)
    # Down to 1e-3 of the first one: below 1e-6 vectors are not resolved.
    M64 = gapped_matrix(l, q, gap=0.8 if d < 25 else 0.9)
    X, y, bias = batch(l, q, 60)
    k = d // 2
    for tail in {d - k, (d - k) // 2}:
        for offset in (None, bias):
            M = M64.float()
            done = ops.exact_step_(M, X, y, offset, Refitting(k, drop, True, 1e-7), tail=tail)
            assert done is not None
            expected = exactly(M64, X, y, offset, k, tail, drop=drop, clip=True)
            assert relative_error(M, expected) < 2e-6


@pytest.mark.parametrize("shape", [(100, 512), (97, 131), (1000, 200)], ids=str)
@pytest.mark.parametrize("drop", [False, True])
def test_the_number_of_threads_changes_no_bit(shape: tuple[int, int], drop: bool, vector_bytes: int) -> None:
    M64, basis = weight(*shape, 40)
    X, y, bias = batch(*shape, 130)
    results = []
    for _ in each_number_of_threads():
        M = M64.float()
        done = taken(M, basis.float(), X, y, bias, 20, drop, True, 1e-7)
        assert done is not None
        assert done.basis is not None
        results.append((M, done.basis))
    for M, following in results[1:]:
        assert torch.equal(M, results[0][0])
        assert torch.equal(following, results[0][1])


def test_rows_may_lie_apart_and_what_is_beside_them_is_not_touched(vector_bytes: int) -> None:
    l, q, t = 70, 90, 20
    M64, basis = weight(l, q, t)
    X, y, bias = batch(l, q, 40)
    for drop in (False, True):
        alone = M64.float()
        assert taken(alone, basis.float(), X, y, bias, 9, drop, True, 1e-7) is not None
        around = torch.full((l, q + 11), math.nan)
        M = around[:, 3 : 3 + q]
        M.copy_(M64)
        apart = torch.full((40, 2 * q), math.nan)[:, ::2]
        apart.copy_(X)
        columns = basis.float().mT.contiguous().mT
        assert taken(M, columns, apart, y.repeat_interleave(2)[::2], bias, 9, drop, True, 1e-7) is not None
        assert torch.equal(M, alone)
        assert around[:, :3].isnan().all()
        assert around[:, 3 + q :].isnan().all()


def test_rows_without_a_label_do_not_count() -> None:
    M64, basis = weight(60, 80, 20)
    X, y, bias = batch(60, 80, 40)
    few, all_rows = M64.float(), M64.float()
    assert taken(few, basis.float(), X[:30], y[:30], bias, 9, True, True, 1e-7) is not None
    y[30:], X[30:] = -100, math.nan
    done = taken(all_rows, basis.float(), X, y, bias, 9, True, True, 1e-7)
    assert done is not None
    assert relative_error(all_rows, few) < 1e-6
    assert done.masked == 0
    y[30:33] = torch.tensor([-1, 60, 1 << 40])
    done = taken(M64.float(), basis.float(), X, y, bias, 9, True, True, 1e-7)
    assert done is not None
    assert done.masked == 3


BROKEN: dict[str, Callable[[dict[str, Tensor]], Any]] = {
    "weight": lambda x: x["M"].__setitem__((3, 5), math.nan),
    "infinite weight": lambda x: x["M"].__setitem__((3, 5), math.inf),
    "features": lambda x: x["X"].__setitem__((3, 5), math.nan),
    "bias": lambda x: x["bias"].__setitem__(3, math.inf),
    "basis": lambda x: x["basis"].__setitem__((3, 5), math.nan),
    "zero weight": lambda x: x["M"].zero_(),
    "zero column of the basis": lambda x: x["basis"][:, 2].zero_(),
    "the same column twice": lambda x: x["basis"][:, 2].copy_(x["basis"][:, 3]),
    "huge weight": lambda x: x["M"].mul_(1e38),
}


@pytest.mark.parametrize("name", BROKEN)
@pytest.mark.parametrize("drop", [False, True])
def test_what_is_unsound_is_not_written(name: str, drop: bool, vector_bytes: int) -> None:
    M64, basis = weight(60, 80, 20)
    X, y, bias = batch(60, 80, 40)
    given = {"M": M64.float(), "basis": basis.float(), "X": X, "bias": bias}
    if name == "zero column of the basis":
        # Of a weight with as many directions, one is then found among the fresh columns, or missed.
        given["M"] = (M64 @ basis @ basis.mT).float()
    BROKEN[name](given)
    before = given["M"].clone()
    version = given["M"]._version
    done = taken(given["M"], given["basis"], X, y, bias, 9, drop, True, 1e-7)
    if done is None:
        assert torch.equal(given["M"].view(torch.int32), before.view(torch.int32))
        assert given["M"]._version == version
    else:
        assert name in ("zero column of the basis", "the same column twice")
        assert torch.isfinite(given["M"]).all()
        assert (done.basis.mT @ done.basis - torch.eye(20)).abs().max() < 3e-6


@pytest.mark.parametrize("scale", [1e-30, 1e-20, 1e-19, 1e-12, 1e12, 1e19, 1e20, 1e30])
@pytest.mark.parametrize("form", ["in one call", "in its parts"])
def test_a_weight_of_any_size_is_repaired_or_left_to_a_library(scale: float, form: str) -> None:
    M64, basis = weight(60, 80, 20)
    M = (scale * M64).float()
    X, y, _ = batch(60, 80, 40)
    if form == "in one call":
        if taken(M, basis.float(), X, y, None, 20, True, True, 1e-7) is None:
            assert not 1e-12 <= scale <= 1e12
            return
        found = M
    else:
        A, S, B, status = ops.warm_svd(M, basis.float(), torch.tensor(5), fresh=FRESH, seed=7)
        # Squares of a library's float32 columns in double reach farther than those of this step.
        assert int(status) == 0
        found = A * S @ B.mT
    U, S64, Vh = torch.linalg.svd(M64, full_matrices=False)
    best = U[:, :20] * S64[:20] @ Vh[:20]
    # One power step from the basis before the change.
    assert relative_error(found.double() / scale, best) < 1e-4


@pytest.mark.filterwarnings("ignore:rest=.drop. removes")
def test_without_a_direction_to_follow_the_step_is_taken_in_its_parts() -> None:
    head = linear(60, 50)
    X, y, _ = batch(50, 60, 20)
    lip = LIP(head, 0, tail_rank=0, rest="drop")
    for _ in range(3):
        lip.observe(X, y)
        lip.apply()
    assert lip.stats()["applied"] == 3
    assert not head.weight.any()


def test_a_step_that_wrote_the_weight_says_so_to_autograd() -> None:
    M64, basis = weight(60, 80, 20)
    M = M64.float()
    version = M._version
    assert taken(M, basis.float(), *batch(60, 80, 40), 9, True, True, 1e-7) is not None
    assert M._version > version


@pytest.mark.parametrize("rest", ["keep", "drop"])
@pytest.mark.parametrize("rate", [1e-3, 1e-5])
@pytest.mark.parametrize("name", SPECTRA)
@pytest.mark.filterwarnings("ignore:rest=.drop. removes")
def test_along_a_training_no_step_falls_back(
    name: str, rate: float, rest: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """And each is LIP in float64 of the weight that the optimizer left."""
    l, q, k, r, steps = 60, 96, 24, 16, 100
    head = head_with(name, l, q, k + r)
    optimizer = torch.optim.AdamW(head.parameters(), lr=rate)
    lip = LIP(head, k, tail_rank=r, rest=rest)
    lip.attach(optimizer)
    deviations, errors = [], []
    step_ = at_once.truncated_step_

    def watched(M: Tensor, *given: Any) -> Any:
        before = M.detach().double()
        result = step_(M, *given)
        assert result[1], (name, result)
        following = given[4].double()
        deviations.append(float((following.mT @ following - torch.eye(k + r)).abs().max()))
        # The weight without the tail, as near to the updated one as any of its rank.
        errors.append(missed(before, following[:, :k]))
        return result

    monkeypatch.setattr(declared.TRUNCATED, "run", watched)
    train(head, optimizer, lip, steps)
    assert lip.stats()["applied"] == steps
    assert len(errors) == steps - 1
    # What the step takes for orthonormal.
    assert max(deviations) < 1.1e-5
    # Of a warm step; a fresh head has no directions that stay.
    assert max(errors[5:]) < (1.02 if name == "fresh" else 1.005)


def test_an_optimizer_with_lip_takes_it_too() -> None:
    l, q = 40, 60
    X, y, _ = batch(l, q, 50)
    head = linear(q, l)
    optimizer = LIPSGD(head.parameters(), lr=0.1, lip_rank=10, lip_tail_rank=8, lip_rest="keep")
    for _ in range(3):
        optimizer.zero_grad()
        torch.nn.functional.cross_entropy(head(X), y).backward()
        optimizer.observe(head, X, y)
        optimizer.step()
    (stats,) = optimizer.lip.stats().values()
    assert stats["applied"] == 3
