"""The step by products in training: beside exact LIP, through pauses and formats, and from its state."""

import copy
import warnings
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from lip_fast import LIP, flops, reference

SHAPES = [(140, 180), (180, 140)]
"""Larger than what is decomposed exactly by default."""
FEW = 12
"""Kept directions that are tracked together with the tail: 12 + 104 + 8 columns."""


@pytest.fixture(autouse=True)
def _by_products(monkeypatch: pytest.MonkeyPatch) -> None:
    """Also of heads so small that a host decomposes them exactly in less time."""
    monkeypatch.setattr(flops, "products_pay", lambda *_: True)


class _Training:
    """A linear head on features with clusters, 40% of its labels wrong, and LIP with a rank of ``k``."""

    def __init__(
        self,
        shape: tuple[int, int],
        k: int,
        optimizer: str = "adamw",
        lr: float = 1e-3,
        dtype: torch.dtype = torch.float32,
        perturbed: float = 0.0,
        **settings: Any,
    ) -> None:
        l, q = shape
        g = torch.Generator().manual_seed(0)
        centres = torch.randn(l, q, generator=g)
        self.labels = torch.randint(0, l, (4000,), generator=g)
        self.features = torch.relu(centres[self.labels] + 2 * torch.randn(4000, q, generator=g)).to(dtype)
        wrong = torch.rand(4000, generator=g) < 0.4
        self.labels[wrong] = torch.randint(0, l, (int(wrong.sum()),), generator=g)
        with torch.random.fork_rng():
            self.head = nn.Linear(q, l)
        with torch.no_grad():
            for p in self.head.parameters():
                p.copy_(torch.randn(p.shape, generator=g) / q**0.5)
                p.mul_(1 + perturbed * torch.randn(p.shape, generator=g))
        self.head.to(dtype)
        self.optimizer: torch.optim.Optimizer
        if optimizer == "adamw":
            self.optimizer = torch.optim.AdamW(self.head.parameters(), lr)
        else:
            self.optimizer = torch.optim.SGD(self.head.parameters(), lr, momentum=0.9)
        self.lip = LIP(self.head, k, **settings)
        self.lip.attach(self.optimizer)

    def batch(self, step: int) -> tuple[Tensor, Tensor]:
        rows = torch.randint(0, 4000, (128,), generator=torch.Generator().manual_seed(step))
        return self.features[rows], self.labels[rows]

    def step(self, step: int) -> None:
        features, labels = self.batch(step)
        self.optimizer.zero_grad()
        nn.functional.cross_entropy(self.head(features).float(), labels).backward()
        self.lip.observe(features, labels)
        self.optimizer.step()

    def run(self, steps: int, first: int = 0) -> Tensor:
        for step in range(first, first + steps):
            self.step(step)
        return self.head.weight.detach().clone()


def _distance(X: Tensor, Y: Tensor) -> float:
    X, Y = X.double(), Y.double()
    return float(torch.linalg.vector_norm(X - Y) / torch.linalg.vector_norm(Y))


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize(("optimizer", "lr"), [("adamw", 1e-3), ("adamw", 1e-5), ("sgd", 0.1)])
@pytest.mark.parametrize("k", [FEW, 70, 126])
def test_it_goes_where_exact_lip_goes(shape: tuple[int, int], optimizer: str, lr: float, k: int) -> None:
    def run(**settings: Any) -> Tensor:
        return _Training(shape, k, optimizer, lr, **settings).run(60)

    exact = run(tail_rank="all")
    # What a start that is off by 1e-6 makes of exact LIP, and what LIP makes of the optimizer's run.
    chaos, effect = _distance(run(tail_rank="all", perturbed=1e-6), exact), _distance(run(start=1000), exact)
    split = _distance(run(), exact)
    assert split < max(2 * chaos, 1e-4)
    assert split < 0.2 * effect


@pytest.mark.parametrize("shape", SHAPES)
def test_the_first_step_is_the_reference(shape: tuple[int, int]) -> None:
    training = _Training(shape, 100)
    weight: list[Tensor] = []
    training.lip.detach()
    training.optimizer.register_step_post_hook(
        lambda *_: weight.append(training.head.weight.detach().clone())
    )
    training.lip.attach(training.optimizer)
    training.step(0)
    X, y = training.batch(0)
    Y = reference.one_hot(y, shape[0], torch.float64)
    bias = training.head.bias.detach().double()
    expected = reference.lip_step(weight[0].double(), X.double(), Y, 100, bias=bias)
    assert _distance(training.head.weight.detach().double(), expected) < 1e-5


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize(
    "settings", [{}, {"tail": "zero"}, {"decay": 0.9}, {"tail_rank": 30, "rest": "drop"}]
)
def test_the_kept_part_has_no_part_in_the_tail(shape: tuple[int, int], settings: dict[str, Any]) -> None:
    k = 100
    training = _Training(shape, k, **settings)
    W = training.run(20)
    assert training.lip.stats()["applied"] == 20
    directions = training.lip._step.directions
    assert directions is not None
    assert directions.projects
    S = torch.linalg.svdvals(W.double())
    rank = k if settings.get("tail") == "zero" else k + directions.tail_rank
    # What is deeper than the tail is gone, and the tail is far below what is kept.
    assert S[rank:].square().sum() < 1e-10 * S.square().sum()
    assert S[k] < 0.2 * S[k - 1]


@pytest.mark.parametrize("rest", ["keep", "drop"])
@pytest.mark.filterwarnings("ignore:rest=.drop. removes")
def test_a_tail_of_a_given_length_is_split_off_too(rest: str) -> None:
    def run(*, exactly: bool, perturbed: float = 0.0) -> Tensor:
        training = _Training((180, 140), 100, tail_rank=24, rest=rest, perturbed=perturbed)
        training.run(1)
        directions = training.lip._step.directions
        assert directions is not None
        assert directions.projects
        directions.projects, directions.exact = not exactly, exactly
        W = training.run(30, first=1)
        assert training.lip.stats()["skipped"] == 0
        return W

    exact = run(exactly=True)
    chaos, split = _distance(run(exactly=True, perturbed=1e-6), exact), _distance(run(exactly=False), exact)
    # Where the rest is kept there is no gap below the tail, which the guards do not make up for.
    assert split < (2 * chaos if rest == "drop" else 0.05)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64])
def test_other_formats(dtype: torch.dtype) -> None:
    shape = (140, 180)
    training = _Training(shape, 70, "sgd", lr=0.1, dtype=dtype)
    exact = _Training(shape, 70, "sgd", lr=0.1, dtype=dtype, tail_rank="all")
    W, E = training.run(10), exact.run(10)
    assert training.lip.stats()["applied"] == 10
    directions = training.lip._step.directions
    assert directions is not None
    assert (directions.basis is None) == (dtype == torch.float64)
    effect = _distance(_Training(shape, 70, "sgd", lr=0.1, dtype=dtype, start=1000).run(10), E)
    assert _distance(W, E) <= (0 if dtype == torch.float64 else 0.2 * effect)


@pytest.mark.parametrize("k", [FEW, 60])
def test_a_pause_is_told_and_made_good_exactly(k: int) -> None:
    shape = (240, 260)
    training, exact = _Training(shape, k), _Training(shape, k)  # the first step is exact
    training.run(3)
    with torch.no_grad():
        training.head.weight.add_(0.05 * torch.randn(shape, generator=torch.Generator().manual_seed(1)))
    exact.head.load_state_dict(training.head.state_dict())
    exact.optimizer.load_state_dict(copy.deepcopy(training.optimizer.state_dict()))
    with pytest.warns(UserWarning, match=r"of \|\|M\|\|_F\^2 grew below"):
        W = training.run(1, first=3)
    assert _distance(W, exact.run(1, first=3)) < 1e-6
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        training.run(3, first=4)


@pytest.mark.parametrize("every", [2, 4])
def test_it_may_act_every_few_steps(every: int) -> None:
    W = _Training(SHAPES[0], 100, every=every).run(40)
    E = _Training(SHAPES[0], 100, every=every, tail_rank="all").run(40)
    plain = _Training(SHAPES[0], 100, start=1000).run(40)
    assert _distance(W, E) < 0.1 * _distance(plain, E)


@pytest.mark.parametrize("k", [FEW, 100])
def test_a_run_goes_on_from_its_state_to_the_same_bits(k: int) -> None:
    training = _Training(SHAPES[0], k)
    training.run(5)
    states = copy.deepcopy([x.state_dict() for x in (training.head, training.optimizer, training.lip)])
    W = training.run(5, first=5)
    again = _Training(SHAPES[0], k)
    for x, state in zip((again.head, again.optimizer, again.lip), states, strict=True):
        x.load_state_dict(state)  # type: ignore[arg-type]
    assert torch.equal(again.run(5, first=5), W)


def test_a_state_of_exact_steps_is_gone_on_from() -> None:
    """Such as version 0.1.0 saved with tail_rank=None."""
    # 120 are left.
    exact, training, first = (_Training(SHAPES[0], 20, **how) for how in ({"tail_rank": "all"}, {}, {}))
    exact.run(3)
    for other in (training, first):
        other.head.load_state_dict(exact.head.state_dict())
        other.optimizer.load_state_dict(copy.deepcopy(exact.optimizer.state_dict()))
    training.lip.load_state_dict(copy.deepcopy(exact.lip.state_dict()))
    assert torch.equal(training.run(1, first=3), first.run(1, first=3))
    with pytest.raises(ValueError, match="tail_rank"):
        exact.lip.load_state_dict(training.lip.state_dict())


@pytest.mark.usefixtures("arithmetic")
@pytest.mark.parametrize("tail", ["refit", "zero"])
@pytest.mark.parametrize(("k", "rows"), [(100, 128), (120, 16), (60, 8), (FEW, 8)])
@pytest.mark.parametrize("optimizer", ["adamw", "sgd"])
@pytest.mark.filterwarnings("ignore:.* grew below")
def test_more_directions_than_the_weight_has_are_no_accident(
    k: int, rows: int, tail: str, optimizer: str
) -> None:
    """A head that starts from zeros, as in fine-tuning."""
    training = _Training(SHAPES[0], k, optimizer, 1e-3 if optimizer == "adamw" else 0.1, tail=tail)
    with torch.no_grad():
        for p in training.head.parameters():
            p.zero_()
    training.features, training.labels = training.features[:rows], training.labels[:rows]
    for _ in range(12):
        training.optimizer.zero_grad()
        nn.functional.cross_entropy(training.head(training.features), training.labels).backward()
        training.lip.observe(training.features, training.labels)
        training.optimizer.step()
    assert bool(torch.isfinite(training.head.weight).all())
    assert training.lip.stats()["applied"] == 12


def test_a_longer_tail_than_is_refitted_says_so() -> None:
    with pytest.warns(UserWarning, match='tail_rank of at most 104 .* got 110.*tail_rank="all"'):
        _Training(SHAPES[0], 20, tail_rank=110).run(1)


@pytest.mark.parametrize("k", [FEW, 100])
def test_a_basis_that_is_nothing_is_replaced(k: int) -> None:
    training = _Training(SHAPES[0], k)
    training.run(3)
    directions = training.lip._step.directions
    assert directions is not None
    assert directions.basis is not None
    directions.basis = torch.full_like(directions.basis, torch.nan)
    W = training.run(1, first=3)
    assert bool(torch.isfinite(W).all())
    assert training.lip.stats()["skipped"] == 0


@pytest.mark.parametrize("k", [FEW, 100])
def test_what_is_not_finite_is_skipped_and_counted(k: int) -> None:
    training = _Training(SHAPES[0], k)
    training.run(3)
    state = copy.deepcopy([training.head.state_dict(), training.optimizer.state_dict()])
    with torch.no_grad():
        training.head.weight[3, 4] = torch.nan
    training.run(1, first=3)
    stats = training.lip.stats()
    assert (stats["applied"], stats["skipped"], stats["not_finite"]) == (3, 1, 1)
    training.head.load_state_dict(state[0])
    training.optimizer.load_state_dict(state[1])
    training.run(2, first=3)
    assert training.lip.stats()["applied"] == 5
