"""The split by products against the decomposition in float64, and where it has no gap to go by."""

from collections.abc import Callable, Sequence
from typing import Any

import pytest
import torch
from torch import Tensor

from lip_fast import ops, status
from lip_fast.projected import FRESH, GUARDS, Split, first_basis, of_columns, split, split_of_products
from lip_fast.sharded import decompose

SHAPES = [(40, 70), (70, 40), (50, 50)]


Splitter = Callable[[Tensor, Tensor, int, int], Split]


class _OneOfOne:
    """Stands for the processes that hold the parts of a weight, and for its layout: there is one part."""

    offset = 0

    def __init__(self, shape: tuple[int, int], dim: int) -> None:
        self.shape, self.dim, self.sharding = shape, dim, self

    def sum(self, make: Callable[[], Sequence[Tensor]], shapes: Sequence[tuple[int, ...]]) -> list[Tensor]:
        sums = [part.double() for part in make()]
        assert [tuple(s.shape) for s in sums] == shapes
        return sums

    def compute_or(self, work: Callable[[], Tensor], instead: Callable[[], Tensor]) -> Tensor:
        return work()

    def joins(self) -> bool:
        return True

    def part(self, whole: Tensor) -> Tensor:
        return whole

    def own_seed(self, seed: int) -> int:
        return seed

    def gather(self, part: Tensor, length: int) -> Tensor:
        assert len(part) == length
        return part


@pytest.fixture(params=["whole", "by a library", "by two products", "by class", "by feature"])
def splitter(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Splitter:
    """The split of a weight that one process has, of one that is not stored, and of one that several have."""
    if request.param == "by a library":
        monkeypatch.setattr(ops, "split", lambda *arguments, **options: None)
    if request.param in ("whole", "by a library"):
        return _split
    if request.param == "by two products":
        return _split_of_products
    dim = 0 if request.param == "by class" else 1

    def split_parts(M: Tensor, basis: Tensor, k: int, step: int) -> Split:
        group: Any = _OneOfOne((M.shape[0], M.shape[1]), dim)
        return decompose.split(group, M, basis, k, step=torch.tensor(step), seed=0)

    return split_parts


def _random(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def _gapped(l: int, q: int, k: int, gap: float = 0.03, seed: int = 0) -> Tensor:
    """(l, q) float64 whose singular values fall by ``gap`` below the k-th, as those of a squashed tail do."""
    U, S, Vh = torch.linalg.svd(_random(l, q, seed=seed) / (l + q) ** 0.5, full_matrices=False)
    S[k:] *= gap
    return U * S @ Vh


def _split(M: Tensor, basis: Tensor, k: int, step: int) -> Split:
    return split(M, basis, k, step=torch.tensor(step), seed=0)


def _split_of_products(M: Tensor, basis: Tensor, k: int, step: int) -> Split:
    called = []

    def sketch(V: Tensor) -> Tensor:
        called.append("sketch")
        return M @ V

    def project(X: Tensor) -> Tensor:
        called.append("project")
        return M.mT @ X

    if basis.shape[1] + FRESH > min(M.shape):
        pytest.skip("asked of weights with more directions than columns")
    found = split_of_products(sketch, project, basis, k, step=torch.tensor(step), seed=0)
    assert called == ["sketch", "project"]
    return found


def _basis(M: Tensor, k: int, r: int) -> Tensor:
    _, S, Vh = torch.linalg.svd(M, full_matrices=False)
    return first_basis(S.float(), Vh.mT.float(), k, r)


def _steps(before: Tensor, weights: list[Tensor], k: int, r: int, splitter: Splitter = _split) -> list[Split]:
    """The split of each weight, from the basis that the one before left; all are sound and finite."""
    basis, splits = _basis(before, k, r), []
    for i, M in enumerate(weights):
        found = splitter(M.float(), basis, k, i)
        assert int(found.status) == 0
        assert all(bool(torch.isfinite(X).all()) for X in (*found.left, *found.right, *found[2:]))
        _check_orthogonal(found, r)
        basis = found.basis
        splits.append(found)
    return splits


def _check_orthogonal(found: Split, r: int) -> None:
    A = found.A[:, :r]
    assert torch.allclose(A.mT @ A, torch.eye(r), atol=1e-4)
    Q = _columns(found)[0]
    # Fresh columns beside the tail may have found nothing: they are zeros then.
    there = (Q != 0).any(0)
    assert there[: Q.shape[1] - FRESH].all()
    assert torch.allclose(Q.mT @ Q, there.diag().float(), atol=1e-4)


def _kept(found: Split) -> Tensor:
    Q, Z = _columns(found)
    return Q.double() @ Z.double().mT - (found.A * found.S).double() @ found.B.double().mT


def _columns(found: Split) -> tuple[Tensor, Tensor]:
    """Q and Z: all columns but those of the tail."""
    return torch.cat(found.left[:-1], dim=1), torch.cat(found.right[:-1], dim=1)


def _top(M: Tensor, k: int) -> Tensor:
    U, S, Vh = torch.linalg.svd(M, full_matrices=False)
    return U[:, :k] * S[:k] @ Vh[:k]


def _error(X: Tensor, Y: Tensor, scale: Tensor) -> float:
    return float(torch.linalg.vector_norm(X - Y) / torch.linalg.vector_norm(scale))


@pytest.mark.usefixtures("arithmetic")
@pytest.mark.parametrize(("l", "q"), SHAPES)
@pytest.mark.parametrize("k", [0, 1, GUARDS, GUARDS + 1, 20, 38, 39])
@pytest.mark.parametrize("r", [1, 9, 40])
def test_one_step_finds_what_the_decomposition_finds(
    l: int, q: int, k: int, r: int, splitter: Splitter
) -> None:
    d = min(l, q)
    r = min(r, d - k)
    before = _gapped(l, q, k)
    M = before + 1e-4 * _random(l, q, seed=1)
    (found,) = _steps(before, [M], k, r, splitter)
    # One power step from a basis that is 1e-3 off: once over the gap, and squared by the rotation.
    assert _error(_kept(found), _top(M, k), M) < 1e-5
    U, S, _ = torch.linalg.svd(M, full_matrices=False)
    # Without a gap below it, the last directions of the tail are found in part.
    certain = r if k + r == d else max(r - FRESH, 1)
    assert torch.allclose(found.S[:certain].double(), S[k : k + certain], rtol=0.05)
    if k:
        assert S[0] / k**0.5 <= found.s_1 * (1 + 1e-4) <= S[0] * (1 + 2e-4)
        assert torch.allclose(found.s_k.double(), S[k - 1], rtol=1e-3)
        overlap = torch.linalg.matrix_norm(U[:, :k].mT @ found.A[:, :r].double(), 2)
        assert overlap < 1e-4
    deeper = S[k + r :].square().sum() / S.square().sum()
    about = 0.5 if splitter is _split_of_products else 0.1
    assert abs(found.deeper - deeper) < about * deeper + 2e-6
    # What is left out of all columns is below what is left out of the tail.
    Q, Z = _columns(found)
    assert _error(Q.double() @ Z.double().mT, M, M) < deeper**0.5 * 1.1 + 1e-6


@pytest.mark.parametrize(("l", "q"), SHAPES)
def test_the_kept_part_stays_as_good_step_after_step(l: int, q: int, splitter: Splitter) -> None:
    k, r = 20, 16
    M = _gapped(l, q, k)
    basis = _basis(M, k, r)
    for i in range(30):
        M = M + 2e-3 * _random(l, q, seed=i)
        found = splitter(M.float(), basis, k, i)
        assert _error(_kept(found), _top(M, k), M) < 2e-4
        M, basis = _kept(found) + 0.02 * _random(l, q, seed=99 + i) / (l + q) ** 0.5, found.basis


@pytest.mark.parametrize(("l", "q"), [(200, 320), (320, 200)])
def test_a_weight_neither_grows_nor_shrinks_by_being_written(l: int, q: int, splitter: Splitter) -> None:
    """Rounding that is the same in every step adds up: 1e-7 of it to a hundredth in 1e5 steps."""
    k, r = 150, 50
    weight = _gapped(l, q, k).float()
    before, basis = weight.double(), _basis(weight.double(), k, r)
    for i in range(40):
        found = splitter(weight, basis, k, i)
        Q, Z = _columns(found)
        weight, basis = Q @ Z.mT, found.basis
    grown = float((weight.double() * before).sum() / before.square().sum()) - 1
    assert abs(grown) < 40 * 2e-8


def test_the_rotation_is_what_makes_one_power_step_enough(monkeypatch: pytest.MonkeyPatch) -> None:
    l, q, k, r = 40, 70, 20, 12
    before = _gapped(l, q, k, gap=0.2)
    M = before + 5e-3 * _random(l, q, seed=1)
    (rotated,) = _steps(before, [M], k, r)
    monkeypatch.setattr(ops, "split", lambda *arguments, **options: None)
    monkeypatch.setattr("lip_fast.projected._rotated", lambda Q, Z, A, C, *rest: (A, C))
    (plain,) = _steps(before, [M], k, r)
    assert float(rotated.gamma) > 1e-3
    assert _error(_kept(rotated), _top(M, k), M) * 10 < _error(_kept(plain), _top(M, k), M)


@pytest.mark.parametrize(("l", "q"), SHAPES)
def test_a_new_strong_direction_is_caught_in_one_step(l: int, q: int) -> None:
    k, r = 20, 12
    before = _gapped(l, q, k)
    s_k = torch.linalg.svdvals(before)[k - 1]
    u, v = (torch.linalg.qr(_random(n, 1, seed=5))[0] for n in (l, q))
    (found,) = _steps(before, [before + 2 * s_k * u @ v.mT], k, r)
    kept = _kept(found)
    assert float((u.mT @ kept @ v).squeeze()) > 1.9 * s_k


@pytest.mark.parametrize(("l", "q"), SHAPES)
def test_a_kept_direction_that_dies_is_replaced_in_one_step(l: int, q: int) -> None:
    k, r = 20, 12
    before = _gapped(l, q, k)
    U, S, Vh = torch.linalg.svd(before, full_matrices=False)
    S[3] = 0
    M = U * S @ Vh + 1e-5 * _random(l, q, seed=1)
    first, second = _steps(before, [M, M], k, r)
    # Of the guards one takes its place; the dead one points anywhere for a step.
    assert _error(_kept(first), _top(M, k), M) < 1e-2
    assert torch.linalg.svdvals(_kept(first))[k - 1] > 0.3 * torch.linalg.svdvals(M)[k - 1]
    assert _error(_kept(second), _top(M, k), M) < 1e-4


HARD = ["zero", "from zero", "deficient", "overwritten", "ten die", "equal", "no gap", "outlier"]


@pytest.mark.usefixtures("arithmetic")
@pytest.mark.parametrize(("l", "q"), SHAPES)
@pytest.mark.parametrize("case", HARD)
def test_where_there_is_no_gap_it_stays_sound_and_recovers(
    l: int, q: int, case: str, splitter: Splitter
) -> None:
    k, r = 20, 12
    before = _gapped(l, q, k)
    U, S, Vh = torch.linalg.svd(before, full_matrices=False)
    noise = 1e-4 * _random(l, q, seed=1)
    if case == "zero":
        before = M = torch.zeros(l, q, dtype=torch.float64)
    elif case == "from zero":
        before, M = torch.zeros(l, q, dtype=torch.float64), _gapped(l, q, k, seed=3)
    elif case == "deficient":
        S[k // 2 :] = 0
        before = U * S @ Vh
        M = before + noise
    elif case == "overwritten":
        M = _gapped(l, q, k, seed=3)
    elif case == "ten die":
        S[3:13] = 0
        M = U * S @ Vh + noise
    elif case == "equal":
        S[:k] = 1
        before = U * S @ Vh
        M = before + noise
    elif case == "no gap":
        before = _random(l, q)
        M = before + noise
    else:
        before = before + 300 * U[:, 30:31] @ Vh[30:31]
        M = before + noise
    found = _steps(before, [M] * 8, k, r, splitter)[-1]
    values = torch.linalg.svdvals(M)
    # As good as the gap between the kept directions and the others allows.
    allowed = 1e-5 if values[k] < 0.1 * values[k - 1] else 0.02
    assert _error(_kept(found), _top(M, k), M + 1e-30) < allowed


@pytest.mark.parametrize("k", [3, 20])
def test_what_is_deeper_is_estimated_without_bias(k: int) -> None:
    l, q, r = 70, 90, 12
    before = _gapped(l, q, k, gap=0.3)
    M, basis = (before + 1e-3 * _random(l, q, seed=1)).float(), _basis(before, k, r)
    both = [(_split_of_products(M, basis, k, i), _split(M, basis, k, i)) for i in range(60)]
    estimates, exact = (torch.stack([found.deeper for found in each]) for each in zip(*both, strict=True))
    assert abs(estimates.mean() / exact.mean() - 1) < 0.03
    # Each is of some use as well.
    assert ((estimates / exact - 1).abs() < 0.5).all()
    for estimate, found in both:
        assert torch.allclose(estimate.S, found.S, rtol=1e-4)


@pytest.mark.usefixtures("arithmetic")
@pytest.mark.parametrize("value", [torch.nan, torch.inf, 1e30])
def test_numbers_that_are_not_finite_are_told(value: float, splitter: Splitter) -> None:
    M = _gapped(40, 70, 20)
    basis = _basis(M, 20, 12)
    M[3, 4] = value
    assert int(splitter(M.float(), basis, 20, 0).status) & status.NOT_FINITE


def test_a_column_that_depends_on_others_is_left_out() -> None:
    M, k, r = _gapped(40, 70, 20).float(), 20, 12
    X = torch.linalg.qr(_random(40, k + r + FRESH, seed=2)).Q.float()
    X[:, 7] = X[:, 2]
    total = M.double().square().sum()
    found = of_columns(X, M.mT @ X, X.double().mT @ X.double(), k, r, total)
    assert int(found.status) == 0
    Q = found.left[0]
    expected = torch.eye(k - GUARDS)
    expected[7, 7] = 0
    assert torch.allclose(Q.mT @ Q, expected, atol=1e-5)
    assert all(bool(torch.isfinite(block).all()) for block in (*found.left, *found.right, found.basis))
