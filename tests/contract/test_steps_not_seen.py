"""Steps that LIP does not see are told of; what only looks like it, and odd learning rates, are taken."""

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
from contract.runs import OPTIMIZERS, TRACKED, Run, make_optimizer
from torch import Tensor
from torch.nn.functional import cross_entropy

from lip_fast import LIP

pytestmark = pytest.mark.contract

MOST = 64


def _loop(run: Run, step: Callable[[], Any], steps: int) -> int:
    """README's order: backward, observe, step, zero_grad; how many observations were kept at most."""
    most = 0
    for i in range(steps):
        run.backward(i % 4)
        run.observe(i % 4)
        step()
        run.optimizer.zero_grad()
        most = max(most, len(run.plugin.state_dict()["pending"]))
    return most


def _forgotten(run: Run) -> Callable[[], Any]:
    run.plugin = LIP(run.model.head, **TRACKED)
    return run.optimizer.step


def _removed(run: Run) -> Callable[[], Any]:
    run.handle.remove()
    return run.optimizer.step


def _new(run: Run) -> Callable[[], Any]:
    # The first one is still there, and calls LIP where somebody calls it.
    run.first, run.optimizer = run.optimizer, make_optimizer("adamw fused", run.model.parameters())
    return run.optimizer.step


def _copied(run: Run) -> Callable[[], Any]:
    """A copy of the optimizer that is given the parameters of the original, as a wrapper may do."""
    made = copy.deepcopy(run.optimizer)
    for group, original in zip(made.param_groups, run.optimizer.param_groups, strict=True):
        group["params"] = original["params"]
    made.state.clear()
    return made.step


class SAM(torch.optim.Optimizer):
    """Sharpness-aware minimisation (arXiv:2010.01412), as its public implementations are: two half steps."""

    def __init__(self, params: Any, base: torch.optim.Optimizer) -> None:
        super().__init__(params, {"lr": 0.1})
        self.base = base

    @torch.no_grad()
    def first_step(self) -> None:
        for p in (p for group in self.param_groups for p in group["params"]):
            self.state[p]["old"] = p.clone()
            p.add_(p.grad, alpha=0.05)

    @torch.no_grad()
    def second_step(self) -> None:
        for p in (p for group in self.param_groups for p in group["params"]):
            p.data = self.state[p]["old"]
        self.base.step()


def _sam(run: Run) -> Callable[[], Any]:
    """LIP on the outer optimizer, whose step() nobody calls."""
    run.handle.remove()
    outer = SAM(run.model.parameters(), run.optimizer)
    run.plugin = LIP(run.model.head, **TRACKED)
    run.plugin.attach(outer)
    run.outer = outer
    return lambda: (outer.first_step(), outer.second_step())


UNSEEN = {
    "attach forgotten": _forgotten,
    "handle removed": _removed,
    "new optimizer": _new,
    "copied optimizer": _copied,
    "SAM's half steps": _sam,
}


@pytest.mark.parametrize("name", OPTIMIZERS)
@pytest.mark.parametrize("unseen", UNSEEN.values(), ids=UNSEEN)
def test_steps_that_are_not_seen_are_told_of(unseen: Callable, name: str) -> None:
    run = Run(name, lambda head: LIP(head, **TRACKED))
    step = unseen(run)
    with pytest.raises(
        RuntimeError, match=rf"observe\(\) was called {MOST} times.*the weight changed.*attach"
    ):
        _loop(run, step, 300)
    assert len(run.plugin.state_dict()["pending"]) == MOST
    # It is said again, and nothing more is kept.
    with pytest.raises(RuntimeError, match="the weight changed"):
        run.observe(0)
    assert len(run.plugin.state_dict()["pending"]) == MOST


@pytest.mark.parametrize("name", ["sgd foreach", "adamw fused"])
def test_sam_with_lip_on_its_inner_optimizer(name: str) -> None:
    run = Run(name, lambda head: LIP(head, **TRACKED))
    outer = SAM(run.model.parameters(), run.optimizer)
    for i in range(100):
        run.backward(i % 4)
        run.plugin.observe(run.y[i % 4])
        outer.first_step()
        run.optimizer.zero_grad()
        run.backward(i % 4)
        outer.second_step()
        run.optimizer.zero_grad()
    assert run.plugin.stats()["applied"] == 100


def test_a_step_may_evaluate_the_model_any_number_of_times() -> None:
    run = Run("sgd foreach")
    head = run.model.head
    optimizer = torch.optim.LBFGS(head.parameters(), lr=0.5, max_iter=100, max_eval=150, tolerance_change=0)
    lip = LIP(head, **TRACKED)
    lip.attach(optimizer)
    features, y = run.model.features(run.x[0]).detach(), run.y[0]
    evaluations = 0

    def closure() -> Tensor:
        nonlocal evaluations
        evaluations += 1
        optimizer.zero_grad()
        loss = cross_entropy(head(features), y) + 1e-3 * head.weight.square().sum()
        loss.backward()
        lip.observe(y)
        return loss

    optimizer.step(closure)
    assert evaluations >= 100
    assert lip.stats()["applied"] == 1
    assert lip.state_dict()["pending"] == ()


# Learning rates -----------------------------------------------------------------------------------------


class Chosen(torch.optim.Optimizer):
    """An optimizer that chooses its learning rate; ``lr`` is what its groups say of it."""

    def __init__(self, params: Any, **lr: Any) -> None:
        super().__init__(params, lr)

    def step(self, closure: Any = None) -> None:
        with torch.no_grad():
            for group in self.param_groups:
                for p in group["params"]:
                    p.sub_(p.grad, alpha=0.1)


RATES = {
    "none": {"lr": None},
    "missing": {},
    "a word": {"lr": "auto"},
    "of each row": {"lr": torch.tensor([0.0, 0.1])},
    "a tensor": {"lr": torch.tensor(0.1)},
}


@pytest.mark.parametrize("rate", RATES.values(), ids=RATES)
def test_a_learning_rate_that_is_not_known_is_not_known_to_be_zero(rate: dict[str, Any]) -> None:
    run = Run("sgd foreach")
    run.optimizer = Chosen(run.model.parameters(), **rate)
    run.plugin = LIP(run.model.head, **TRACKED)
    run.plugin.attach(run.optimizer)
    assert run.steps(0, 3).plugin.stats()["applied"] == 3


@pytest.mark.parametrize("zero", [0, 0.0, torch.tensor(0.0), torch.zeros(2)], ids=str)
def test_of_a_learning_rate_of_zero_observations_wait(zero: Any) -> None:
    run = Run("sgd foreach")
    run.optimizer = Chosen(run.model.parameters(), lr=zero)
    run.plugin = LIP(run.model.head, **TRACKED)
    run.plugin.attach(run.optimizer)
    assert run.steps(0, 3).plugin.stats()["applied"] == 0
    assert len(run.plugin.state_dict()["pending"]) == 3


def test_adafactor_with_a_learning_rate_of_its_own() -> None:
    transformers = pytest.importorskip(
        "transformers", reason="needs transformers, of the extra 'integrations'"
    )
    run = Run("sgd foreach")
    run.optimizer = transformers.Adafactor(run.model.parameters(), lr=None, warmup_init=True)
    run.plugin = LIP(run.model.head, **TRACKED)
    run.plugin.attach(run.optimizer)
    assert run.steps(0, 3).plugin.stats()["applied"] == 3
