"""A user who sets nothing, or a rank that leaves nothing to repair: LIP acts, or says that it does not."""

import warnings
from typing import Any

import pytest
import torch
from torch import nn

from lip_fast import LIP
from lip_fast.settings import Settings


def _head(l: int, q: int) -> nn.Linear:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return nn.Linear(q, l)


def _train(head: nn.Linear, steps: int = 3, **settings: Any) -> LIP:
    optimizer = torch.optim.AdamW(head.parameters())
    lip = LIP(head, **settings)
    lip.attach(optimizer)
    g = torch.Generator().manual_seed(0)
    for _ in range(steps):
        features = torch.randn(32, head.in_features, generator=g)
        labels = torch.randint(0, head.out_features, (32,), generator=g)
        optimizer.zero_grad()
        nn.functional.cross_entropy(head(features), labels).backward()
        lip.observe(features, labels)
        optimizer.step()
    return lip


@pytest.mark.parametrize(("l", "q"), [(4, 9), (10, 64), (100, 30), (150, 200)])
def test_auto_leaves_two_directions_at_least_and_a_tenth(l: int, q: int) -> None:
    d = min(l, q)
    head = _head(l, q)
    plain = _head(l, q)
    lip = _train(head, rank="auto", start=1)
    _train(plain, rank=1, start=100)
    rank = lip.stats()["rank"]
    assert rank <= d - 2
    assert rank <= 0.9 * d
    assert lip.stats()["applied"] == 2
    assert not torch.equal(head.weight, plain.weight)


@pytest.mark.parametrize(("l", "q"), [(1, 9), (2, 9), (3, 9), (9, 3)])
def test_auto_refuses_a_head_without_a_tail(l: int, q: int) -> None:
    with pytest.raises(ValueError, match=r'at least 4 classes and features for rank="auto", got \d.*rank=1'):
        LIP(_head(l, q), "auto")
    LIP(_head(l, q), 1)


def test_auto_at_the_first_step_names_start() -> None:
    with pytest.warns(UserWarning, match=r'rank="auto" keeps \d+ of 10 directions.*Pass start='):
        _train(_head(10, 64), steps=1, rank="auto")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        _train(_head(10, 64), steps=3, rank="auto", start=2)


@pytest.mark.parametrize("settings", [{"rank": 10}, {"rank": 1.0}, {"rank": 3, "tail_rank": 0}])
def test_what_changes_nothing_says_so_and_is_not_applied(settings: dict[str, Any]) -> None:
    head, plain = _head(10, 64), _head(10, 64)
    with pytest.warns(UserWarning, match=r"changes nothing: it keeps \d+ of the 10 .* rank of at most 8"):
        lip = _train(head, **settings)
    _train(plain, rank=1, start=100)
    assert torch.equal(head.weight, plain.weight)
    stats = lip.stats()
    assert (stats["applied"], stats["skipped"], stats["empty"]) == (0, 0, 3)


def test_what_changes_something_is_not_empty() -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        stats = _train(_head(10, 64), rank=9).stats()
    assert (stats["applied"], stats["empty"]) == (3, 0)


@pytest.mark.parametrize("d", range(2, 12))
@pytest.mark.parametrize("rank", [0.01, 0.5, 0.9, 0.999])
def test_a_fraction_never_keeps_every_direction(d: int, rank: float) -> None:
    kept = Settings(rank=rank).kept(d)
    assert kept is not None
    assert 1 <= kept < d
    assert rank * d <= kept or kept == d - 1


@pytest.mark.parametrize("tail_rank", ["every", "none", 2.5, -1])
def test_a_tail_rank_is_a_number_or_all(tail_rank: Any) -> None:
    with pytest.raises((TypeError, ValueError), match="tail_rank"):
        LIP(_head(10, 64), 3, tail_rank=tail_rank)


def test_all_is_what_none_is_for_a_small_head() -> None:
    one, other = _head(10, 64), _head(10, 64)
    _train(one, rank=3)
    _train(other, rank=3, tail_rank="all")
    assert torch.equal(one.weight, other.weight)
