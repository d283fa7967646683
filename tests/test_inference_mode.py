"""What is made or called inside of ``torch.inference_mode()`` works outside of it, and the reverse."""

import copy
from collections.abc import Callable

import pytest
import torch
from problems import linear, problem
from torch import Tensor, nn

import lip_fast
from lip_fast import LabelStatistics
from lip_fast.validation import outside_inference_mode

Q, L, N = 9, 4, 60


def _rows() -> tuple[Tensor, Tensor]:
    _, X, y, _, _ = problem(Q, L, N)
    return X, y


def _tensors(found: object) -> list[Tensor]:
    if isinstance(found, Tensor):
        return [found]
    if isinstance(found, dict):
        return [t for each in found.values() for t in _tensors(each)]
    if isinstance(found, tuple | list):
        return [t for each in found for t in _tensors(each)]
    if isinstance(found, nn.Module):
        return list(found.parameters())
    if isinstance(found, lip_fast.LIPPath):
        return [found.W, found.U, found.S, found.V, found.refitted, *(W for _, W in found)]
    return []


def _stats() -> LabelStatistics:
    return LabelStatistics(Q, L).update(*_rows())


def _head() -> nn.Linear:
    return linear(Q, L, bias=True, dtype=torch.float64)


def _weight() -> Tensor:
    return _head().weight.detach().mT.contiguous()


MADE: dict[str, Callable[[], object]] = {
    "update": lambda: _stats().state_dict(),
    "loader": lambda: LabelStatistics(Q, L).update([_rows(), _rows()]).state_dict(),
    "for_head": lambda: LabelStatistics.for_head(_head().weight).update(*_rows()).state_dict(),
    "merge": lambda: _stats().merge(_stats()).state_dict(),
    "C and G": lambda: (_stats().C, _stats().G),
    "truncate": lambda: _stats().truncate(3),
    "refit": lambda: _stats().refit(torch.eye(L, 2).double(), torch.eye(Q, 2).double(), _head().bias),
    "ridge_path": lambda: _stats().ridge_path([1.0])[0],
    "pcr_path": lambda: list(_stats().pcr_path([1, 2]).logits(_rows()[0])),
    "lip": lambda: lip_fast.lip(_weight(), *_rows(), 2),
    "lip of statistics": lambda: lip_fast.lip(_weight(), _stats(), k=2, bias=_head().bias),
    "lip_path": lambda: lip_fast.lip_path(_weight(), *_rows()),
    "randomized_svd": lambda: lip_fast.randomized_svd(_weight(), 2, oversample=0),
    "repair": lambda: lip_fast.repair(_head(), _stats(), "auto", _rows()).head,
    "repair by lip": lambda: lip_fast.repair(_head(), _stats(), "lip").head,
    "select_rank": lambda: lip_fast.select_rank(lip_fast.lip_path(_weight(), *_rows())),
}


@pytest.mark.parametrize("name", MADE)
def test_what_is_made_inside_is_no_inference_tensor(name: str) -> None:
    expected = MADE[name]()
    with torch.inference_mode():
        found = MADE[name]()
    own = [t for t in _tensors(found) if name != "lip_path" or t is not found.W]
    for got, same in zip(_tensors(found), _tensors(expected), strict=True):
        assert torch.equal(got.nan_to_num(), same.nan_to_num())
    assert not any(t.is_inference() for t in own)


def test_statistics_go_on_from_inside_to_outside_and_back() -> None:
    X, y = _rows()
    expected = LabelStatistics(Q, L, decay=0.9)
    for _ in range(4):
        expected.update(X, y)
    expected.merge(_stats())
    with torch.inference_mode():
        stats = LabelStatistics(Q, L, decay=0.9).update(X + 0, y + 0)
        other = copy.deepcopy(_stats())
    stats.update(X, y)
    with torch.inference_mode():
        stats.update(X, y)
        seen = X + 0, y + 0
        copied = copy.deepcopy(stats)
    for each in (stats, copied):
        each.update(*seen)
        each.merge(other)
        restored = LabelStatistics(Q, L)
        restored.load_state_dict(each.state_dict())
        for one in (each, restored):
            assert torch.equal(one.C, expected.C)
            assert torch.equal(one.G, expected.G)


def test_a_head_repaired_inside_can_be_trained_outside() -> None:
    X, y = _rows()
    with torch.inference_mode():
        repaired = lip_fast.repair(_head(), _stats(), "ridge", (X, y)).head
    optimizer = torch.optim.SGD(repaired.parameters(), lr=0.1)
    before = repaired.weight.detach().clone()
    nn.functional.cross_entropy(repaired(X), y).backward()
    optimizer.step()
    assert not torch.equal(repaired.weight, before)


def test_a_head_made_inside() -> None:
    with torch.inference_mode():
        head = _head()
    stats = _stats()
    repaired = lip_fast.repair(head, stats, "lip", parameters=[2]).head
    assert repaired.weight.requires_grad
    assert not repaired.weight.is_inference()
    before = head.weight.clone()
    for work in (
        lambda: lip_fast.repair(head, stats, "lip", inplace=True),
        torch.inference_mode()(lambda: lip_fast.repair(head, stats, "lip", inplace=True)),
    ):
        with pytest.raises(ValueError, match=r"made inside of torch\.inference_mode"):
            work()
    assert torch.equal(head.weight, before)


def test_in_place_on_an_ordinary_head() -> None:
    head, expected = _head(), lip_fast.repair(_head(), _stats(), "lip").head
    with torch.inference_mode():
        lip_fast.repair(head, _stats(), "lip", inplace=True)
    assert torch.equal(head.weight, expected.weight)
    assert head.weight.requires_grad


def test_gradients_stay_off() -> None:
    @outside_inference_mode
    def product(W: Tensor) -> Tensor:
        return W @ W.mT

    head = _head()
    assert product(head.weight).requires_grad
    with torch.inference_mode():
        made = product(head.weight)
        assert torch.is_inference_mode_enabled()
    assert not made.requires_grad
    assert not made.is_inference()


def test_batches_are_made_in_the_modes_of_whoever_hands_them_over() -> None:
    """A generator that runs a model does so under the caller's autocast, and in its inference mode."""
    X, y = _rows()
    W, seen = _weight().float(), []

    def batches() -> object:
        for i in (0, 30):
            seen.append((torch.is_autocast_enabled("cpu"), torch.is_inference_mode_enabled()))
            yield X[i : i + 30].float(), y[i : i + 30]

    expected = lip_fast.lip(W, batches(), k=2)
    with torch.autocast("cpu", dtype=torch.bfloat16), torch.inference_mode():
        assert torch.equal(lip_fast.lip(W, batches(), k=2), expected)
        LabelStatistics(Q, L).update(batches())
    assert seen == [(False, False)] * 2 + [(True, True)] * 4


# LIP in the step -----------------------------------------------------------------------------------------

OPTIONS: dict[str, dict] = {
    "exact": {"tail_rank": "all"},
    "tracked": {"tail_rank": 1},
    "averaged": {"tail_rank": 1, "decay": 0.9},
}


def _trained(options: dict, inside: str) -> Tensor:
    """The weight after six steps, of which ``inside`` names what is done in inference mode."""

    def mode(name: str) -> torch.inference_mode:
        return torch.inference_mode(bool(name) and name in inside.split(" and "))

    head = linear(Q, 6, bias=True)
    with mode("made"):
        optimizer = torch.optim.SGD(head.parameters(), lr=0.1, momentum=0.9)
        lip = lip_fast.LIP(head, 3, **options)
        lip.attach(optimizer)
    for i in range(6):
        g = torch.Generator().manual_seed(i)
        with mode("features"):
            X = torch.randn(N, Q, generator=g)
        y = torch.randint(0, 6, (N,), generator=g)
        nn.functional.cross_entropy(head(X.clone()), y).backward()
        with mode("observed"):
            lip.observe(X, y)
        # A training that evaluates and forgets to leave; the state of the optimizer is there then.
        with mode("stepped" if i in (2, 3) else ""):
            optimizer.step()
        if i == 4:
            with mode("loaded"):
                lip.load_state_dict(lip.state_dict())
        optimizer.zero_grad()
    with mode("applied"):
        lip.observe(X, y)
        lip.apply()
    assert lip.stats()["applied"] == 7
    return head.weight.detach()


@pytest.mark.parametrize("options", OPTIONS.values(), ids=OPTIONS)
@pytest.mark.parametrize(
    "inside", ["made", "features", "observed", "stepped", "loaded", "applied", "made and observed and loaded"]
)
def test_steps_do_not_depend_on_it(inside: str, options: dict) -> None:
    assert torch.equal(_trained(options, inside), _trained(options, ""))


def test_a_head_made_inside_is_refused() -> None:
    with torch.inference_mode():
        head = linear(Q, L)
    with pytest.raises(ValueError, match=r"got one made in torch.inference_mode\(\): make it outside"):
        lip_fast.LIP(head, 2)
