"""Copies of optimizers, models and plug-ins: what acts in them, and what does not."""

import copy
import gc
import pickle
import weakref
from collections.abc import Callable
from typing import Any

import pytest
import torch
from capture_runs import same
from contract.changed_bytes import ChangedBytes
from contract.runs import EXACT, OPTIMIZERS, TRACKED, Run

from lip_fast import LIP

pytestmark = pytest.mark.contract

COPIES = {"deepcopy": copy.deepcopy, "pickle": lambda value: pickle.loads(pickle.dumps(value))}
OPTIONS = {"exact": EXACT, "tracked": TRACKED}


def _run(name: str, options: dict, steps: int) -> Run:
    return Run(name, lambda head: LIP(head, **options)).steps(0, steps)


def _copy_of(run: Run, model: Any, optimizer: Any, plugin: LIP | None) -> Run:
    """A run of what was copied, on the batches of ``run``."""
    other = copy.copy(run)
    other.model, other.optimizer, other.plugin = model, optimizer, plugin
    return other


@pytest.mark.parametrize("name", OPTIMIZERS)
@pytest.mark.parametrize("duplicate", COPIES.values(), ids=COPIES)
def test_an_optimizer_copied_with_its_model_is_the_base_optimizer(
    duplicate: Callable[[Any], Any], name: str, weights: ChangedBytes
) -> None:
    run = _run(name, EXACT, 3)
    copied = _copy_of(run, *duplicate((run.model, run.optimizer)), None)
    base = Run(name)
    base.model.load_state_dict(run.model.state_dict())
    base.optimizer.load_state_dict(copy.deepcopy(run.optimizer.state_dict()))
    weights.check(copied.steps(3, 6).weights, base.steps(3, 6).weights)


@pytest.mark.parametrize("name", OPTIMIZERS)
@pytest.mark.parametrize("options", OPTIONS.values(), ids=OPTIONS)
@pytest.mark.parametrize("duplicate", COPIES.values(), ids=COPIES)
def test_a_lip_attached_to_a_copy_goes_on_as_the_original_does(
    duplicate: Callable[[Any], Any], options: dict, name: str, weights: ChangedBytes
) -> None:
    run = _run(name, options, 3)
    run.observe(3)
    model, optimizer = duplicate((run.model, run.optimizer))
    lip = LIP(model.head, **options)
    lip.attach(optimizer)
    lip.load_state_dict(run.plugin.state_dict())
    copied = _copy_of(run, model, optimizer, lip)
    for r in (run, copied):
        r.backward(3)
        r.update()
        r.steps(4, 7)
    weights.check(copied.weights, run.weights)
    assert same(copied.plugin.state_dict(), run.plugin.state_dict())


@pytest.mark.parametrize("options", OPTIONS.values(), ids=OPTIONS)
def test_a_lip_copied_with_all_the_rest_is_not_attached_and_goes_on_once_it_is(
    options: dict, weights: ChangedBytes
) -> None:
    run = _run("adamw fused", options, 3)
    run.observe(3)
    copied = _copy_of(run, *copy.deepcopy((run.model, run.optimizer, run.plugin)))
    copied.plugin.attach(copied.optimizer)
    for r in (run, copied):
        r.backward(3)
        r.update()
        r.steps(4, 7)
    weights.check(copied.weights, run.weights)
    assert same(copied.plugin.state_dict(), run.plugin.state_dict())
    assert copied.plugin.stats()["applied"] == 7


def test_a_lip_is_not_pickled() -> None:
    """Files would have the head twice, and one that reads them needs to trust them: there is state_dict()."""
    with pytest.raises(TypeError, match=r"expected a LIP not to be pickled.*save state_dict\(\)"):
        pickle.dumps(_run("adamw fused", TRACKED, 1).plugin)


def test_nothing_outlives_the_optimizer_and_the_model() -> None:
    run = _run("adamw fused", TRACKED, 2)
    gone = [weakref.ref(x) for x in (run.plugin, run.optimizer, run.model, run.model.head.weight)]
    gc.disable()  # without the collector: no cycle keeps a model in memory
    try:
        del run
        assert [ref() for ref in gone] == [None] * 4
    finally:
        gc.enable()


@pytest.mark.parametrize("unscaled", [False, True])
@pytest.mark.parametrize("name", [name for name in OPTIMIZERS if name.endswith("fused")])
def test_a_step_left_out_for_an_overflow_leaves_no_trace(
    name: str, unscaled: bool, weights: ChangedBytes
) -> None:
    expected = _run(name, EXACT, 3)
    run = Run(name, lambda head: LIP(head, **EXACT))
    scaler = torch.amp.GradScaler("cpu", init_scale=4.0)
    for i, overflow in ((0, False), (1, False), (5, True), (2, False)):
        run.observe(i)
        run.backward(i, scaler.scale)
        if overflow:
            run.model.head.weight.grad[3, 3] = torch.nan
        if unscaled:
            scaler.unscale_(run.optimizer)
        scaler.step(run.optimizer)
        scaler.update()
        run.optimizer.zero_grad()
    weights.check(run.weights, expected.weights)
    stats = run.plugin.stats()
    assert (stats["steps"], stats["applied"], stats["skipped"], stats["not_finite"]) == (4, 3, 1, 0)
    assert same(run.plugin.state_dict()["statistics"], expected.plugin.state_dict()["statistics"])
