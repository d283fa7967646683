"""Seven ways in which code that rewrites weights in a step hook breaks, each as a check that asserts.

Each takes what makes the plug-in of a head, the name of an optimizer, and the comparison of weights.
"""

import copy
import pickle
from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from contract.changed_bytes import ChangedBytes
from contract.runs import KINDS, Run
from torch import nn
from torch.distributed.checkpoint.state_dict import get_optimizer_state_dict, get_state_dict

Plugin = Callable[[nn.Linear], Any]
# Once as torch has it by default on a CPU and once fused: hooks are called alike by the others.
OPTIMIZERS = [f"{kind} {implementation}" for kind in KINDS for implementation in ("for-loop", "fused")]
FUSED = [name for name in OPTIMIZERS if name.endswith("fused")]


class Trap(NamedTuple):
    """A check, the message of its failure, and the optimizers with which a naive hook fails it.

    Distributed checkpoints take no step of an optimizer that has state: there the hook keeps its own sums.
    """

    check: Callable[[Plugin, str, ChangedBytes], None]
    message: str
    springs: list[str]
    own_sums: bool = False


class LikeAccelerate(torch.optim.Optimizer):
    """A wrapper as accelerate has one: it is an optimizer by type only, and loads the state it was given."""

    def __init__(self, optimizer: torch.optim.Optimizer) -> None:
        self.optimizer = optimizer
        self.optimizer.load_state_dict(self.optimizer.state_dict())

    def step(self, closure: Any = None) -> None:
        self.optimizer.step(closure)

    def zero_grad(self, set_to_none: bool = True) -> None:
        self.optimizer.zero_grad(set_to_none)


class Wrapper:
    """A wrapper that is no optimizer."""

    def __init__(self, optimizer: torch.optim.Optimizer) -> None:
        self.optimizer = optimizer

    def step(self) -> None:
        self.optimizer.step()


def _save_optimizer(run: Run) -> None:
    get_optimizer_state_dict(run.model, run.optimizer)


def _save_model_and_optimizer(run: Run) -> None:
    get_state_dict(run.model, run.optimizer)


def _saved_first(save: Callable[[Run], None], plugin: Plugin, name: str, weights: ChangedBytes) -> None:
    # Saving itself counts as a step of Adam: the run to compare with saves before anything is attached.
    expected = Run(name)
    save(expected)
    expected.plugin = plugin(expected.model.head)
    expected.plugin.attach(expected.optimizer)
    run = Run(name, plugin)
    before = run.weights
    run.observe(0)
    save(run)
    weights.check(run.weights, before, "a save before the first step changed the weights")
    expected.observe(0)
    for r in (expected, run):
        r.backward(0)
        r.update()
        r.steps(1, 3)
    weights.check(run.weights, expected.weights, "the steps after a save are others than without it")


def save_of_the_optimizer(plugin: Plugin, name: str, weights: ChangedBytes) -> None:
    _saved_first(_save_optimizer, plugin, name, weights)


def save_of_model_and_optimizer(plugin: Plugin, name: str, weights: ChangedBytes) -> None:
    _saved_first(_save_model_and_optimizer, plugin, name, weights)


def saves_at_any_time(plugin: Plugin, name: str, weights: ChangedBytes) -> None:
    expected = Run(name, plugin).steps(0, 4)
    run = Run(name, plugin).steps(0, 1)
    for i in range(1, 4):
        _save_optimizer(run)  # without gradients: optimizers without state take another step each time
        run.observe(i)
        _save_model_and_optimizer(run)
        run.backward(i)
        _save_optimizer(run)
        run.optimizer.step()
        _save_model_and_optimizer(run)
        run.optimizer.zero_grad()
        _save_model_and_optimizer(run)
    weights.check(run.weights, expected.weights, "saves in the middle of a run changed the weights")


def _copied(duplicate: Callable[[Any], Any], plugin: Plugin, name: str, weights: ChangedBytes) -> None:
    expected = Run(name, plugin).steps(0, 4)
    run = Run(name, plugin).steps(0, 2)
    optimizer = duplicate(run.optimizer)
    before = run.weights
    told = ""
    for i in range(80):
        try:
            run.observe(i % 4)
        except RuntimeError as error:
            told = str(error)
            break
        for group in optimizer.param_groups:
            for p in group["params"]:
                p.grad = torch.zeros_like(p)
        optimizer.step()
    weights.check(run.weights, before, "steps of a copy changed the weights of the original")
    assert "attach(copy)" in told, "nothing told that the copy of an optimizer has no hook"
    run = Run(name, plugin).steps(0, 2)
    duplicate(run.optimizer)
    weights.check(run.steps(2, 4).weights, expected.weights, "a copy changed the run of the original")


def deepcopy_of_the_optimizer(plugin: Plugin, name: str, weights: ChangedBytes) -> None:
    _copied(copy.deepcopy, plugin, name, weights)


def pickle_of_the_optimizer(plugin: Plugin, name: str, weights: ChangedBytes) -> None:
    _copied(lambda optimizer: pickle.loads(pickle.dumps(optimizer)), plugin, name, weights)


def overflow_found_by_the_scaler(plugin: Plugin, name: str, weights: ChangedBytes) -> None:
    run = Run(name, plugin)
    scaler = torch.amp.GradScaler("cpu", init_scale=2.0**10)
    for i in range(6):
        run.observe(i)
        run.backward(i, scaler.scale)
        overflow = i in (2, 4)
        if overflow:
            run.model.body.weight.grad[0, 0] = torch.inf
        if i == 4:
            scaler.unscale_(run.optimizer)  # as for clipping
        before = run.weights
        scaler.step(run.optimizer)
        scaler.update()
        run.optimizer.zero_grad()
        if overflow:
            weights.check(run.weights, before, "a step that was left out for an overflow changed the weights")
    assert scaler.get_scale() == 2.0**8
    assert not torch.equal(run.weights["head.weight"], before["head.weight"])


def cast_of_the_state(plugin: Plugin, name: str, weights: ChangedBytes) -> None:
    if name == "momentum fused":
        # torch 2.13's kernel reads memory that nothing was written to, at the end of bfloat16 buffers on CPU:
        # two runs of it differ.
        name = "momentum foreach"
    expected = Run(name, plugin, dtype=torch.bfloat16).steps(0, 4)
    run = Run(name, plugin, dtype=torch.bfloat16).steps(0, 2)
    before = run.plugin.statistics()
    run.optimizer.load_state_dict(copy.deepcopy(run.optimizer.state_dict()))
    weights.check(run.plugin.statistics(), before, "load_state_dict changed the statistics")
    weights.check(run.steps(2, 4).weights, expected.weights, "the run is another after load_state_dict")


def missing_gradients(plugin: Plugin, name: str, weights: ChangedBytes) -> None:
    run = Run(name, plugin)
    for observed in (False, True):
        before = run.weights
        if observed:
            run.observe(0)
        run.optimizer.step()
        weights.check(run.weights, before, "a step without gradients changed the weights")
        run.steps(0, 2)


def zero_gradients(plugin: Plugin, name: str, weights: ChangedBytes) -> None:
    base, run = Run(name), Run(name, plugin)
    for r in (base, run) * 2:
        for p in r.model.parameters():
            p.grad = torch.zeros_like(p)
        r.optimizer.step()
    weights.check(run.weights, base.weights, "a step with zero gradients is not the base optimizer's")


def wrapper_that_loads_the_state(plugin: Plugin, name: str, weights: ChangedBytes) -> None:
    expected = Run(name, plugin).steps(0, 4)
    run = Run(name, plugin).steps(0, 2)
    before = run.plugin.statistics()
    wrapped = LikeAccelerate(run.optimizer)
    weights.check(run.plugin.statistics(), before, "a wrapper changed the statistics")
    for i in (2, 3):
        run.observe(i)
        run.backward(i)
        wrapped.step()
        wrapped.zero_grad()
    weights.check(run.weights, expected.weights, "steps through a wrapper are others than without it")


def attaching_to_a_wrapper(plugin: Plugin, name: str, weights: ChangedBytes) -> None:
    run = Run(name)
    before = run.weights
    for wrapped in (LikeAccelerate(run.optimizer), Wrapper(run.optimizer)):
        told = ""
        try:
            plugin(run.model.head).attach(wrapped)
        except (TypeError, AttributeError) as error:
            told = str(error)
        assert "inner optimizer" in told, "nothing told to attach to the inner optimizer"
    weights.check(run.weights, before)
    run.plugin = plugin(run.model.head)
    run.plugin.attach(wrapped.optimizer)
    weights.check(run.steps(0, 2).weights, Run(name, plugin).steps(0, 2).weights)


NO_STATE = [name for name in OPTIMIZERS if name.startswith("sgd ")]
TRAPS = {
    "save of the optimizer": Trap(save_of_the_optimizer, "a save before the first step", OPTIMIZERS),
    "save of model and optimizer": Trap(
        save_of_model_and_optimizer, "a save before the first step", OPTIMIZERS
    ),
    "saves at any time": Trap(saves_at_any_time, "saves in the middle of a run", NO_STATE, own_sums=True),
    "deepcopy": Trap(deepcopy_of_the_optimizer, "nothing told that the copy", OPTIMIZERS),
    "pickle": Trap(pickle_of_the_optimizer, "nothing told that the copy", OPTIMIZERS),
    "overflow": Trap(overflow_found_by_the_scaler, "left out for an overflow changed", FUSED),
    "cast of the state": Trap(cast_of_the_state, "load_state_dict changed the statistics", OPTIMIZERS),
    "missing gradients": Trap(missing_gradients, "a step without gradients changed", OPTIMIZERS),
    "zero gradients": Trap(zero_gradients, "a step with zero gradients is not", OPTIMIZERS),
    "wrapper": Trap(wrapper_that_loads_the_state, "a wrapper changed the statistics", OPTIMIZERS),
    "attaching to a wrapper": Trap(attaching_to_a_wrapper, "nothing told to attach to the inner", OPTIMIZERS),
}
