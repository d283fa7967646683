"""Updates that are a part of a step by products: off the host, torch's step and then LIP, up to rounding.

Runs with the kernels in torch, and once more in Triton's interpreter (tests/triton_kernels).
"""

import copy
import os
from typing import Any

import pytest
import torch
from graph_capture import Graph
from optim.fused_runs import BASES, RULES, Run, break_step, unfused
from problems import relative_error
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from lip_fast import flops, host, ops, reference
from lip_fast.fused import FusedUpdate

INTERPRETED = bool(os.environ.get("TRITON_INTERPRET"))
# In the interpreter, where a step takes seconds, what the kernels compute.
STEPPED = ["adamw"] if INTERPRETED else ["nesterov", "adamw", "nadam"]
STEPS = 2 if INTERPRETED else 5
whatever_the_kernels = pytest.mark.skipif(INTERPRETED, reason="asks nothing of the kernels")
SHAPES = [(132, 150), (150, 132)]
"""Larger than what is decomposed exactly by default; wide and tall."""
LIPS: dict[str, dict[str, Any]] = {
    "keep": {"lip_rank": 12},
    "drop": {"lip_rank": 16, "lip_rest": "drop"},
    # No more kept directions than there are guards.
    "few": {"lip_rank": 3, "lip_tail": "zero"},
    # Of which 104 are refitted: what LIP changes is added to the weight.
    "added": {"lip_rank": 12, "lip_tail_rank": 115},
    "decay": {"lip_rank": 12, "lip_decay": 0.9, "lip_every": 2},
}
pytestmark = [
    pytest.mark.filterwarnings("ignore:rest=.drop. removes"),
    pytest.mark.filterwarnings("ignore:expected a tail_rank of at most"),
    # numpy, of casts in the interpreter.
    pytest.mark.filterwarnings("ignore:invalid value encountered:RuntimeWarning"),
]


@pytest.fixture(autouse=True)
def _device(monkeypatch: pytest.MonkeyPatch) -> None:
    """Everything takes the ways of devices whose values are not there to be read."""
    monkeypatch.setattr(host, "READABLE", frozenset())


def _run(rule: str, lip: str, shape: tuple[int, int] = SHAPES[0], **options: Any) -> Run:
    return Run(rule, LIPS[lip], shape=shape, gap=0.97, **options)


class _Touching(TorchDispatchMode):
    """What is called with a tensor in the memory of another, but for views."""

    def __init__(self, memory: Tensor) -> None:
        super().__init__()
        self._memory, self.names = memory.untyped_storage().data_ptr(), []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        given = [X for X in torch.utils._pytree.tree_leaves((args, kwargs)) if isinstance(X, Tensor)]
        if any(X.untyped_storage().data_ptr() == self._memory for X in given) and not func.is_view:
            self.names.append(func._schema.name.removeprefix("lip_fast::"))
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize("narrow", [False, True], ids=["float32", "bfloat16"])
@pytest.mark.parametrize("lip", ["keep", "added"])
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_the_weight_is_read_with_its_update_and_once_more(
    shape: tuple[int, int], lip: str, narrow: bool, fused: list[str]
) -> None:
    options = {"dtype": torch.bfloat16} if narrow else {}
    run = _run("adamw", lip, shape, **options).steps(0, 2)
    run.backward(2)
    fused.clear()
    with _Touching(run.head.weight) as touching:
        run.optimizer.step()
    if narrow:
        assert touching.names == ["update_sketch_", "update_project", "update_rebuild_"]
    else:
        assert touching.names == ["update_sketch_", "project", "rebuild_"]
    assert fused == [name for name in touching.names if name.startswith("update_")]
    assert run.optimizer.lip.stats()["3"]["applied"] == 3


@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("lip", ["few"] if INTERPRETED else LIPS)
@pytest.mark.parametrize("rule", STEPPED)
def test_each_step_is_that_of_the_plain_loop(
    rule: str, lip: str, shape: tuple[int, int], fused: list[str]
) -> None:
    plain = _run(rule, lip, shape)
    for i in range(STEPS):
        run, before, called = copy.deepcopy(plain), plain.weight, len(fused)
        run.step(i)
        with unfused():
            plain.step(i)
        moved = torch.linalg.vector_norm(plain.weight - before)
        # Rounding (1e-6) over the gaps between the directions that are refitted.
        assert torch.linalg.vector_norm(run.weight - plain.weight) < 1e-3 * moved, i
        for name, value in plain.state.items():
            assert relative_error(run.state[name], value) < 1e-6, name
        acts = i > 0 and not ("lip_every" in LIPS[lip] and i % 2)
        # The first step has no basis, and decomposes the weight that torch updated.
        assert fused[called:] == (["update_sketch_"] if acts else [])
        if acts:
            _assert_alike(_stats(run), _stats(plain))


def _stats(run: Run) -> dict[str, Any]:
    return run.optimizer.lip.stats()["3"]


def _assert_alike(stats: dict[str, Any], expected: dict[str, Any]) -> None:
    stats, expected = dict(stats), dict(expected)
    gamma, removed = (stats.pop(name) for name in ("gamma", "removed"))
    assert gamma == pytest.approx(expected.pop("gamma"), rel=0.01)
    # Of a few directions, eight random columns tell the size. Below, it is the rounding of ||M||_F^2.
    known = expected.pop("removed")
    assert known / 4 - 1e-6 <= removed <= 4 * known + 1e-6
    assert stats == expected


@pytest.mark.parametrize("lip", ["keep"] if INTERPRETED else ["keep", "added"])
@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("rule", STEPPED)
def test_narrow_weights_are_written_once(
    rule: str, shape: tuple[int, int], lip: str, fused: list[str]
) -> None:
    plain = _run(rule, lip, shape, dtype=torch.bfloat16)
    for i in range(STEPS):
        run, called = copy.deepcopy(plain), len(fused)
        run.step(i)
        with unfused():
            plain.step(i)
        names = ["update_sketch_", "update_project", "update_rebuild_"]
        assert fused[called:] == (names if i else [])
        # Drawn from the two neighbours of nearly the same number; torch's was rounded once more before, and
        # with that rounding the directions turn that are refitted: by 3 to 10 units of rounding.
        assert run.weight.dtype == torch.bfloat16
        assert relative_error(run.weight, plain.weight) < 16 * torch.finfo(torch.bfloat16).eps


@whatever_the_kernels
@pytest.mark.parametrize("lip", ["keep", "few"])
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_the_first_step_is_the_reference(shape: tuple[int, int], lip: str, fused: list[str]) -> None:
    run, plain = _run("adamw", lip, shape), _run("adamw", lip, shape)
    for r in (run, plain):
        r.backward(0)
    features = torch.tanh(run.body(run.x[0])).detach().double()
    run.optimizer.step()
    assert not fused
    weight = plain.head.weight
    torch.optim.AdamW([weight, plain.head.bias], **RULES["adamw"][1]).step()
    Y = reference.one_hot(run.y[0], shape[0], torch.float64)
    how = {
        "tail": LIPS[lip].get("lip_tail", "refit"),
        "rest": "drop",
        "bias": plain.head.bias.detach().double(),
    }
    expected = reference.lip_step(weight.detach().double(), features, Y, LIPS[lip]["lip_rank"], 104, **how)
    assert relative_error(run.weight, expected) < 1e-4


@pytest.mark.parametrize("narrow", [False, True], ids=["float32", "bfloat16"])
@pytest.mark.parametrize("lip", ["keep", "added"])
@pytest.mark.parametrize("rule", STEPPED)
def test_where_lip_is_skipped_the_step_is_the_update_alone(
    rule: str, lip: str, narrow: bool, fused: list[str]
) -> None:
    run = _run(rule, lip, **({"dtype": torch.bfloat16} if narrow else {})).steps(0, 2)
    run.backward(2)
    # Features that are not finite, seen by LIP alone.
    nan = torch.full((2, SHAPES[0][1]), torch.nan, dtype=run.head.weight.dtype)
    run.optimizer.observe(run.head, nan, torch.zeros(2, dtype=torch.int64))
    alone, torchs = copy.deepcopy(run.head.weight), copy.deepcopy(run.head.weight)
    for weight in (alone, torchs):
        weight.grad = run.head.weight.grad.clone()
    state = run.optimizer.state[run.head.weight]
    base = BASES[RULES[rule][0]]([torchs], **RULES[rule][1])
    base.state[torchs] = copy.deepcopy(state)
    base.step()
    kept = copy.deepcopy(state)
    group = run.optimizer.param_groups[1]
    update = FusedUpdate(type(run.optimizer).RULE, alone, group, kept, ops.Scaling(), replaces=True)
    basis = _basis(run).clone()
    called = len(fused)
    run.optimizer.step()
    assert fused[called] == "update_sketch_"
    stats = _stats(run)
    assert (stats["applied"], stats["skipped"], stats["not_finite"]) == (2, 1, 1)
    assert torch.equal(_basis(run), basis)
    # The bits of the update by the same kernel, and those of torch's but for the last.
    update.sketch(torch.zeros(SHAPES[0][1], 8))
    assert update.settle()
    assert torch.equal(run.weight, alone.detach())
    for name, value in run.state.items():
        assert torch.equal(value, kept[name]), name
    assert relative_error(run.weight, torchs) < (torch.finfo(torch.bfloat16).eps if narrow else 2e-7)
    # And training goes on.
    run.optimizer.zero_grad()
    run.step(3)
    assert _stats(run)["applied"] == 3


def _basis(run: Run) -> Tensor:
    return run.optimizer.lip.state_dict()["3"]["subspace"]["basis"][0]


@whatever_the_kernels
def test_a_weight_that_is_not_finite_is_told(fused: list[str]) -> None:
    run = _run("adamw", "keep").steps(0, 2)
    basis = _basis(run).clone()
    with torch.no_grad():
        run.head.weight[3, 4] = torch.inf
    run.step(2)
    assert fused[-1:] == ["update_sketch_"]
    stats = _stats(run)
    assert (stats["applied"], stats["not_finite"]) == (2, 1)
    assert torch.equal(_basis(run), basis)


def test_an_overflow_leaves_every_bit(fused: list[str]) -> None:
    run = _run("adamw", "keep", fused=True)
    for i in range(3):
        run.optimizer.grad_scale, run.optimizer.found_inf = torch.tensor(4.0), torch.tensor(float(i == 2))
        before, state = run.weight, run.state if i else {}
        run.backward(i, scale=4.0)
        run.optimizer.step()
        run.optimizer.zero_grad()
    assert fused == ["update_sketch_"] * 2
    assert torch.equal(run.weight, before)
    assert all(torch.equal(run.state[name], value) for name, value in state.items())
    assert _stats(run)["skipped"] == 1


@whatever_the_kernels
def test_a_learning_rate_of_zero_is_no_step_to_fuse(fused: list[str]) -> None:
    run = _run("adamw", "keep").steps(0, 2)
    called, before = len(fused), run.weight
    for group in run.optimizer.param_groups:
        group["lr"] = 0.0
    run.backward(2)
    run.optimizer.step()
    assert torch.equal(run.weight, before)
    assert len(fused) == called


@whatever_the_kernels
@pytest.mark.parametrize("narrow", [False, True], ids=["float32", "bfloat16"])
@pytest.mark.parametrize("where", ["fresh_columns", "update_sketch_", "project", "finish_svd", "label_sums"])
def test_an_error_half_way_leaves_a_whole_step(where: str, narrow: bool, fused: list[str]) -> None:
    options = {"dtype": torch.bfloat16} if narrow else {}
    run, plain = (_run("adamw", "keep", **options).steps(0, 2) for _ in range(2))
    for r in (run, plain):
        r.backward(2)
    break_step(run, where)
    plain.take_base_step()
    assert relative_error(run.weight, plain.weight) < (torch.finfo(torch.bfloat16).eps if narrow else 2e-7)
    run.optimizer.zero_grad()
    run.step(3)
    assert _stats(run)["applied"] == 3


@whatever_the_kernels
@pytest.mark.parametrize("narrow", [False, True], ids=["float32", "bfloat16"])
@pytest.mark.parametrize("lip", ["keep", "added", "decay"])
def test_a_run_goes_on_from_its_state_to_the_same_bits(lip: str, narrow: bool, fused: list[str]) -> None:
    options = {"dtype": torch.bfloat16} if narrow else {}
    run, again = _run("adamw", lip, **options).steps(0, 3), _run("adamw", lip, **options)
    for name in ("body", "head", "optimizer"):
        getattr(again, name).load_state_dict(copy.deepcopy(getattr(run, name).state_dict()))
    again.optimizer.lip.load_state_dict(copy.deepcopy(run.optimizer.lip.state_dict()))
    called = len(fused)
    run.steps(3, 6)
    half = len(fused)
    again.steps(3, 6)
    assert fused[called:half] == fused[half:] != []
    assert torch.equal(again.weight, run.weight)
    assert torch.equal(_basis(again), _basis(run))


@whatever_the_kernels
@pytest.mark.parametrize("narrow", [False, True], ids=["float32", "bfloat16"])
def test_replays_are_eager_steps_bit_for_bit(narrow: bool, fused: list[str]) -> None:
    options = {"dtype": torch.bfloat16} if narrow else {}
    eager, captured = (_run("momentum", "keep", **options).steps(0, 2) for _ in range(2))
    graph = Graph()
    for run in (eager, captured):
        run.backward(2)
    gradients = [p.grad for p in captured.head.parameters()]
    fused.clear()
    with graph.capture():
        captured.optimizer.step()
    assert fused[0] == "update_sketch_"
    for i in range(2, 5):
        if i > 2:
            eager.optimizer.zero_grad()
            eager.backward(i)
            for ours, theirs in zip(captured.head.parameters(), eager.head.parameters(), strict=True):
                ours.grad.copy_(theirs.grad)
            for ours, theirs in zip(captured.body.parameters(), eager.body.parameters(), strict=True):
                ours.grad.copy_(theirs.grad)
            captured.optimizer.observe(captured.head, torch.tanh(captured.body(captured.x[i])), captured.y[i])
        graph.replay()
        eager.optimizer.step()
        assert torch.equal(captured.weight, eager.weight), i
    assert [p.grad for p in captured.head.parameters()] == gradients
    assert _stats(captured) == _stats(eager)
    assert _stats(eager)["applied"] == 5


@whatever_the_kernels
def test_a_host_and_more_columns_go_the_plain_way(fused: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(flops, "products_pay", lambda *_: True)
    Run("adamw", {"lip_rank": 17}, shape=SHAPES[0], gap=0.97).steps(0, 3)
    monkeypatch.setattr(host, "READABLE", frozenset({"cpu"}))
    # What is tracked there, and what is split by products.
    for lip in ("keep", "added"):
        assert _basis(_run("adamw", lip).steps(0, 3)) is not None
    assert not fused
