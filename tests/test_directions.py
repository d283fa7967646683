"""The step against the oracle, and the quality of the tracked directions over real training."""

import warnings
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from problems import gapped_matrix, linear, problem, relative_error
from sklearn.datasets import load_digits

from lip_fast import LIP, flops, ops, reference
from lip_fast.directions import Directions
from lip_fast.projected import FRESH
from lip_fast.settings import Settings
from lip_fast.sharded import decompose
from lip_fast.world import Alone, Operand, Peers

TRUE = torch.tensor(True)


def _directions(M: torch.Tensor, rank: int, tail_rank: int | None = None, **options: Any) -> Directions:
    return Directions(*M.shape, rank=rank, settings=Settings(tail_rank=tail_rank, **options), device=M.device)


def _alone(X: torch.Tensor, y: torch.Tensor, ok: torch.Tensor = TRUE) -> Alone:
    return Alone([(X, y)], ok)


SHAPES = [(12, 5), (5, 12), (9, 9), (1, 6), (6, 1), (1, 1), (23, 31)]


@pytest.mark.parametrize(("q", "l"), SHAPES)
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float64, 1e-11), (torch.float32, 1e-4)])
@pytest.mark.parametrize("tail", ["refit", "zero"])
@pytest.mark.parametrize("rest", ["keep", "drop"])
@pytest.mark.parametrize("ranks", ["none", "some", "all", "some and a tail"])
@pytest.mark.filterwarnings("ignore:rest=.drop. removes")
def test_the_exact_step_is_the_reference(
    q: int, l: int, dtype: torch.dtype, tolerance: float, tail: str, rest: str, ranks: str
) -> None:
    exact = problem(q, l, 40)
    W, X, y, _, bias = problem(q, l, 40, dtype=dtype)
    M = W.mT.contiguous()
    d = min(q, l)
    k, r = {"none": (0, None), "some": (d // 2, None), "all": (d, None), "some and a tail": (d // 2, d // 3)}[
        ranks
    ]
    directions = _directions(M, k, r, tail=tail, rest=rest)
    assert directions.exact
    report = directions.step_(M, _alone(X, y), bias)
    assert bool(report.ok)
    expected = reference.lip_step(exact.W.mT, exact.X, exact.Y, k, r, tail=tail, rest=rest, bias=exact.bias)
    scale = torch.linalg.vector_norm(exact.W)
    assert torch.linalg.vector_norm(M.double() - expected) < tolerance * scale


@pytest.mark.parametrize(("q", "l"), [(60, 40), (40, 60), (50, 50)])
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float64, 1e-9), (torch.float32, 1e-4)])
@pytest.mark.parametrize("tail", ["refit", "zero"])
@pytest.mark.parametrize("rest", ["keep", "drop"])
@pytest.mark.filterwarnings("ignore:rest=.drop. removes")
def test_the_truncated_step_is_the_reference_once_converged(
    q: int, l: int, dtype: torch.dtype, tolerance: float, tail: str, rest: str
) -> None:
    exact = problem(q, l, 200, gap=0.7)
    W, X, y, _, bias = problem(q, l, 200, dtype=dtype, gap=0.7)
    M = W.mT.contiguous()
    directions = _directions(M, 6, 5, tail=tail, rest=rest)
    assert not directions.exact
    # Steps that are not taken leave the basis alone; a no-op weight lets it converge first.
    for _ in range(6):
        directions.basis = directions.decompose(Operand(M, directions.step, 0), Alone((), TRUE)).basis
    report = directions.step_(M, _alone(X, y), bias)
    assert bool(report.ok)
    expected = reference.lip_step(exact.W.mT, exact.X, exact.Y, 6, 5, tail=tail, rest=rest, bias=exact.bias)
    assert relative_error(M, expected) < tolerance


def test_a_step_that_is_not_ok_changes_nothing() -> None:
    W, X, y, _, _ = problem(60, 40, 100, dtype=torch.float32)
    M = W.mT.contiguous()
    directions = _directions(M, 6, 5)
    directions.step_(M, _alone(X, y))
    before, basis = M.clone(), directions.basis.clone()
    for broken_X, broken_M, ok in [
        (X * float("nan"), M, TRUE),
        (X, M, torch.tensor(False)),
    ]:
        report = directions.step_(broken_M, _alone(broken_X, y, ok))
        assert not bool(report.ok)
        assert torch.equal(M, before)
        assert torch.equal(directions.basis, basis)
    M[3, 4] = float("inf")
    before = M.clone()
    assert not bool(directions.step_(M, _alone(X, y)).ok)
    assert torch.equal(M, before)
    assert torch.equal(directions.basis, basis)


def test_a_weight_broken_at_the_first_step_is_survived() -> None:
    W, X, y, _, _ = problem(60, 40, 100, dtype=torch.float32)
    M = W.mT.contiguous()
    directions = _directions(M, 6, 5)
    broken = M.clone()
    broken[0, 0] = float("nan")
    assert not bool(directions.step_(broken, _alone(X, y)).ok)
    assert bool(directions.step_(M, _alone(X, y)).ok)


def test_drop_warns_once_when_it_removes_much() -> None:
    M = gapped_matrix(30, 40, gap=0.98).float()
    X, y = torch.ones(3, 40), torch.zeros(3, dtype=torch.int64)
    directions = _directions(M, 4, 4, rest="drop")
    with pytest.warns(UserWarning, match=r"removes [5-9]\d\.\d% of .* below rank \+ tail_rank = 8"):
        directions.step_(M.clone(), _alone(X, y))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        directions.step_(M.clone(), _alone(X, y))
        steep = gapped_matrix(30, 40, gap=0.5).float()
        _directions(steep, 4, 4, rest="drop").step_(steep, _alone(X, y))


@pytest.mark.parametrize(("noise", "exact_capture"), [(0.0, 0.597), (0.01, 0.599)])
def test_a_direction_that_emerges_is_captured(noise: float, exact_capture: float) -> None:
    """A new direction of 0.02 a step, orthogonal to all others, in a weight truncated at every step."""
    l, q, k, r, steps, increment = 300, 512, 32, 8, 30, 0.02
    g = torch.Generator().manual_seed(0)
    U = torch.linalg.qr(torch.randn(l, k + 1, generator=g)).Q
    V = torch.linalg.qr(torch.randn(q, k + 1, generator=g)).Q
    a, b = U[:, k], V[:, k]
    M = U[:, :k] * torch.linspace(2, 1, k) @ V[:, :k].mT
    exact = M.clone()
    directions = _directions(M, k, r, tail="refit", rest="drop", clip=False)

    class OwnValues(Alone):
        """A refit that asks for the values the weight has: what is left is the truncation."""

        def label_sums(self, A: torch.Tensor, B: torch.Tensor, bias: torch.Tensor | None) -> ops.Sums:
            value = torch.linalg.vecdot(A, M @ B, dim=0).double()
            one = torch.ones_like(value)
            return ops.Sums(value, one, one.sum(), torch.tensor(0))

    for _ in range(steps):
        update = increment * torch.outer(a, b)
        update += noise * torch.randn(l, q, generator=g) / (l + q) ** 0.5
        M += update
        exact += update
        u, s, vh = torch.linalg.svd(exact, full_matrices=False)
        exact = u[:, : k + r] * s[: k + r] @ vh[: k + r]
        directions.step_(M, OwnValues((), TRUE))
    reached = float(a @ exact @ b)
    assert reached == pytest.approx(exact_capture, rel=0.02)
    assert float(a @ M @ b) > 0.85 * reached


def _digit_pairs(generator: torch.Generator) -> tuple[torch.Tensor, torch.Tensor]:
    """Real images, many classes: two handwritten digits side by side are one of a hundred numbers."""
    images, digits = load_digits(return_X_y=True)
    X, y = torch.from_numpy(images).float() / 16, torch.from_numpy(digits)
    pick = torch.randint(0, len(X), (2, 20000), generator=generator)
    return torch.cat([X[pick[0]], X[pick[1]]], 1), 10 * y[pick[0]] + y[pick[1]]


@pytest.mark.parametrize("lr", [1e-3, 1e-5])
@pytest.mark.parametrize("rest", ["keep", "drop"])
@pytest.mark.filterwarnings("ignore:rest=.drop. removes")
def test_the_tracked_directions_over_a_training_run(lr: float, rest: str) -> None:
    g = torch.Generator().manual_seed(0)
    X, y = _digit_pairs(g)
    noisy = torch.where(torch.rand(len(y), generator=g) < 0.4, torch.randint(0, 100, y.shape, generator=g), y)
    first, head = linear(128, 256, bias=True), linear(256, 100, seed=1, bias=True)
    optimizer = torch.optim.AdamW([*first.parameters(), *head.parameters()], lr=lr)
    k, r = 32, 24
    lip = LIP(head, k, tail_rank=r, rest=rest)
    worst = {"error": 0.0, "A": 0.0, "B": 0.0}

    def watch(*_: object) -> None:
        """Before LIP acts on it: how good is the decomposition of the freshly updated weight?"""
        directions = lip._step.directions
        if directions is None or int(directions.step) < 100:
            return
        M = head.weight.detach()
        svd = Alone.warm_svd(Operand(M, directions.step, 0), directions.basis, k + r, FRESH)
        optimum = torch.linalg.svdvals(M.double())[k:].norm()
        A, S, B = svd.A[:, :k].double(), svd.S[:k].double(), svd.B[:, :k].double()
        error = torch.linalg.vector_norm(M.double() - A * S @ B.mT)
        worst["error"] = max(worst["error"], float(error / optimum))
        for name, F in (("A", svd.A.double()), ("B", svd.B.double())):
            deviation = (F.mT @ F - torch.eye(k + r, dtype=torch.float64)).abs().max()
            worst[name] = max(worst[name], float(deviation))

    optimizer.register_step_post_hook(watch)
    lip.attach(optimizer)
    for _ in range(200):
        batch = torch.randint(0, len(X), (128,), generator=g)
        features = torch.relu(first(X[batch]))
        torch.nn.functional.cross_entropy(head(features), noisy[batch]).backward()
        lip.observe(features, noisy[batch])
        optimizer.step()
        optimizer.zero_grad()
    assert lip.stats()["applied"] == 200
    assert 1 - 1e-6 <= worst["error"] < 1.001
    assert worst["A"] < 1e-4
    assert worst["B"] < 1e-4


def test_ranks_are_limited_to_the_small_side() -> None:
    M = torch.ones(10, 40)
    assert _directions(M, 4, 100).tail_rank == 6
    assert _directions(M, 4).tail_rank == 6
    assert _directions(M, 0, 1).exact is (1 + FRESH >= 10)
    assert not _directions(torch.ones(20, 40), 5, 6).exact


def test_state_round_trip_is_bit_exact() -> None:
    W, X, y, _, _ = problem(60, 40, 100, dtype=torch.float32)
    M = W.mT.contiguous()
    directions = _directions(M, 6, 5)
    directions.step_(M, _alone(X, y))
    copy, other = M.clone(), _directions(M, 6, 5)
    other.load_state_dict(directions.state_dict())
    directions.step_(M, _alone(X, y))
    other.step_(copy, _alone(X, y))
    assert torch.equal(M, copy)
    assert torch.equal(directions.basis, other.basis)
    with pytest.raises(ValueError, match=r"basis of shape \(60, 12\), got a tensor of shape \(60, 11\)"):
        _directions(M, 7, 5).check_state_dict(directions.state_dict())


@pytest.mark.parametrize(("rest", "tf32"), [("keep", True), ("drop", False)])
@pytest.mark.filterwarnings("ignore:rest=.drop. removes")
def test_what_a_weight_is_written_from_is_never_in_tf32(
    rest: str, tf32: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen = []
    warm_svd = ops.warm_svd

    def spy(*arguments: Any, **options: Any) -> Any:
        seen.append(options["tf32"])
        return warm_svd(*arguments, **options)

    monkeypatch.setattr(ops, "warm_svd", spy)
    head = linear(60, 40, seed=1)
    # Not class indices, with which a step on a host is one call.
    X, Y = torch.randn(30, 60, generator=torch.Generator().manual_seed(0)), torch.eye(30, 40)
    lip = LIP(head, 6, tail_rank=5, rest=rest)
    for _ in range(2):
        lip.observe(X, Y)
        lip.apply()
    assert seen == [tf32] * 2


@pytest.mark.parametrize("replaced", [False, True])
def test_nor_of_a_weight_that_several_processes_hold(replaced: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    seen = []
    monkeypatch.setattr(ops, "sketch", lambda M, V, *, tf32: seen.append(tf32))
    monkeypatch.setattr(decompose, "warm_svd", lambda *given, products, **how: products(torch.ones(3, 1)))
    peer: Any = SimpleNamespace(sharding=SimpleNamespace(dim=0, shape=(8, 3)))
    on = Operand(torch.ones(4, 3), torch.tensor(0), 0, replaced=replaced)
    Peers.warm_svd(peer, on, torch.ones(3, 1), 1, 1)
    assert seen == [not replaced]


@pytest.mark.parametrize(
    ("rank", "tail_rank", "whole", "expected", "refitted"),
    [
        (16, None, True, "truncated", 104),
        (17, None, True, "by products", 104),
        (16, None, False, "by products", 104),
        (50, 70, True, "truncated", 70),
        (50, 71, True, "by products", 71),
        (50, "all", True, "exact", 90),
        (100, None, False, "by products", 40),
    ],
)
def test_a_step_takes_the_path_of_its_columns(
    rank: int,
    tail_rank: int | str | None,
    whole: bool,
    expected: str,
    refitted: int,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(flops, "products_pay", lambda *_: True)
    settings = Settings(tail_rank=tail_rank)
    directions = Directions(140, 180, rank=rank, settings=settings, device=torch.device("cpu"), whole=whole)
    assert directions.path(torch.float32) == expected
    assert directions.path(torch.float64) == ("truncated" if tail_rank == 70 else "exact")
    assert directions.tail_rank == refitted
    # With nothing below the tail the weight is not written anew.
    assert directions.drops == (tail_rank is None and rank + refitted < 140)
