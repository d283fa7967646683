"""What does not fit is told, with what to do about it, and no byte of a weight is changed by it."""

import copy
import gc
import re
import weakref
from collections.abc import Callable
from typing import Any

import pytest
import torch
from capture_runs import same
from contract.changed_bytes import ChangedBytes
from contract.runs import EXACT, OPTIMIZERS, TRACKED, L, N, Network, Q, Run, make_optimizer
from contract.traps import LikeAccelerate, Wrapper
from problems import linear
from torch import Tensor, nn

from lip_fast import LIP

pytestmark = pytest.mark.hostile

OPTIONS = {"exact": EXACT, "tracked": TRACKED}


def _run(name: str = "adamw fused", steps: int = 2, **options: Any) -> Run:
    return Run(name, lambda head: LIP(head, **(TRACKED | options))).steps(0, steps)


def _refused(error: type[Exception], *parts: str) -> Any:
    """The error names what was expected, what came and what to do: its parts, in this order."""
    return pytest.raises(error, match="(?s)" + ".*".join(map(re.escape, parts)))


def _without_lip(run: Run) -> Run:
    """What the base optimizer alone makes of the run from here on."""
    base = Run.__new__(Run)
    base.__dict__ |= run.__dict__
    base.model, base.optimizer = copy.deepcopy((run.model, run.optimizer))
    base.plugin = None
    return base


# The handle ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_after_its_handle_was_removed_a_lip_does_nothing_and_then_says_so(
    name: str, weights: ChangedBytes
) -> None:
    run = _run(name)
    base = _without_lip(run)
    handle = run.handle
    handle.remove()
    handle.remove()  # once more is no error
    for i in range(64):
        run.step(i % 4)
        base.step(i % 4)
    weights.check(run.weights, base.weights)
    with _refused(RuntimeError, "64 times without a step", "the weight changed", "attach(optimizer), again"):
        run.step(0)
    weights.check(run.weights, base.weights)


@pytest.mark.parametrize("calls", [0, 3, 64])
@pytest.mark.parametrize("options", OPTIONS.values(), ids=OPTIONS)
def test_attached_again_it_goes_on_without_what_it_has_seen_meanwhile(
    options: dict, calls: int, weights: ChangedBytes
) -> None:
    expected, run = (Run("adamw fused", lambda head: LIP(head, **options)).steps(0, 2) for _ in range(2))
    for r, shown in ((expected, 0), (run, calls)):
        r.handle.remove()
        for i in range(shown):
            r.plugin.observe(torch.full((N, Q), float(i)), r.y[i % 4])
        for i in (2, 3):
            r.backward(i)
            r.update()
        r.plugin.attach(r.optimizer)
        r.steps(4, 6)
    weights.check(run.weights, expected.weights)
    assert run.plugin.stats()["applied"] == 4


def test_a_lip_that_was_forgotten_to_be_attached_can_be_after_it_said_so(weights: ChangedBytes) -> None:
    run, expected = Run("adamw fused"), _run(steps=0)
    run.plugin = LIP(run.model.head, **TRACKED)
    begun = copy.deepcopy((run.model.state_dict(), run.optimizer.state_dict()))
    for i in range(64):
        run.step(i % 4)
    with _refused(RuntimeError, "64 times", "the weight changed", "attach"):
        run.step(0)
    run.model.load_state_dict(begun[0])
    run.optimizer.load_state_dict(begun[1])
    run.plugin.attach(run.optimizer)
    weights.check(run.steps(0, 2).weights, expected.steps(0, 2).weights)


def test_a_lip_whose_optimizer_is_gone_is_attached_to_the_next(weights: ChangedBytes) -> None:
    run = _run()
    before = run.weights
    run.optimizer = None
    gc.collect()
    run.optimizer = make_optimizer("sgd foreach", run.model.parameters())
    run.plugin.attach(run.optimizer)
    weights.check(run.weights, before)
    assert run.steps(2, 4).plugin.stats()["applied"] == 4


def test_a_lip_that_is_attached_is_not_attached_again(weights: ChangedBytes) -> None:
    run, expected = _run(), _run()
    other = make_optimizer("sgd foreach", run.model.parameters())
    for optimizer in (run.optimizer, other):
        with _refused(RuntimeError, "expected a LIP that is not attached, got", "detach()"):
            run.plugin.attach(optimizer)
    weights.check(run.steps(2, 4).weights, expected.steps(2, 4).weights)
    assert not other._optimizer_step_post_hooks


# Another weight -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_a_weight_that_was_replaced_by_one_of_its_shape(name: str, weights: ChangedBytes) -> None:
    run = _run(name)
    base = _without_lip(run)
    old = run.model.head.weight
    replaced = nn.Parameter(old.detach() * 2)
    expected = {"weight": replaced.detach().clone()}
    run.model.head.weight = replaced
    run.observe(2)
    for r, weight in ((run, old), (base, base.model.head.weight)):
        for p in (weight, r.model.head.bias, *r.model.body.parameters()):
            p.grad = torch.full_like(p, 0.25)
    with _refused(RuntimeError, "to hold the head's weight", "replaced", "detach()", "optimizer made for"):
        run.optimizer.step()
    base.optimizer.step()
    weights.check({"weight": replaced}, expected)
    weights.check(run.weights | {"head.weight": old}, base.weights)
    run.handle.remove()
    run.optimizer = make_optimizer(name, run.model.parameters())
    run.plugin.attach(run.optimizer)
    run.steps(2, 4)
    assert run.plugin.stats()["applied"] == 4


@pytest.mark.parametrize("held", [False, True], ids=["in no optimizer", "in the optimizer"])
@pytest.mark.parametrize("name", OPTIMIZERS)
def test_a_weight_that_was_replaced_by_one_of_another_shape(
    name: str, held: bool, weights: ChangedBytes
) -> None:
    run = _run(name)
    wider = nn.Parameter(torch.ones(L + 3, Q))
    expected = {"weight": wider.detach().clone()}
    run.observe(2)
    run.model.head.weight = wider
    if held:
        run.optimizer.add_param_group({"params": [wider], "lr": 0.5})
        wider.grad = torch.zeros_like(wider)
        if "adamw" in name:
            run.optimizer.param_groups[-1]["weight_decay"] = 0.0
    told = ("in the shape (40, 60)", "got (43, 60)", "detach()", "make a LIP for the new weight")
    state = run.plugin.state_dict()
    for call in (
        run.optimizer.step,
        lambda: run.plugin.observe(torch.zeros(N, Q), run.y[0]),
        run.plugin.apply,
        lambda: run.plugin.load_state_dict(state),
    ):
        with _refused(ValueError, *told):
            call()
    run.handle.remove()
    with _refused(ValueError, *told):
        run.plugin.attach(run.optimizer)
    weights.check({"weight": wider}, expected)
    assert same(run.plugin.state_dict(), state)


@pytest.mark.parametrize(
    ("replacement", "told"),
    [
        (None, ("2-D weight", "got Linear")),
        (nn.Parameter(torch.ones(Q)), ("2-D weight", "shape (60,)")),
        (nn.Parameter(torch.ones(L, Q, dtype=torch.complex64)), ("dense weight", "complex64")),
    ],
)
def test_a_weight_that_was_replaced_by_none(
    replacement: Any, told: tuple[str, ...], weights: ChangedBytes
) -> None:
    run = _run()
    before = run.weights
    run.model.head.weight = replacement
    with _refused(TypeError, *told):
        run.plugin.observe(torch.zeros(N, Q), run.y[0])
    with _refused(TypeError, *told):
        run.optimizer.step()
    unchanged = {name: p for name, p in run.model.named_parameters() if name != "head.weight"}
    weights.check(unchanged, {name: before[name] for name in unchanged})


def test_a_head_that_was_replaced_in_the_model(weights: ChangedBytes) -> None:
    run = _run()
    run.model.head = linear(Q, L, seed=5, bias=True)
    before = run.weights
    optimizer = make_optimizer("adamw fused", run.model.parameters())
    run.handle.remove()
    with _refused(ValueError, "holds the head's weight", "got AdamW without it", "parameters", "the LIP of"):
        run.plugin.attach(optimizer)
    weights.check(run.weights, before)


def test_a_head_that_was_replaced_in_the_model_is_told_by_its_missing_gradient(weights: ChangedBytes) -> None:
    run = _run()
    old, run.model.head = run.model.head, linear(Q, L, seed=5, bias=True)
    before = old.weight.detach().clone()
    for i in range(64):
        run.step(i % 4)
    with _refused(RuntimeError, "a gradient on the head's weight", "got none in 64 steps", "LIP of the new"):
        run.observe(0)
    weights.check({"old": old.weight}, {"old": before})


def test_a_head_that_is_frozen_may_be_observed(weights: ChangedBytes) -> None:
    run, expected = _run(), _run()
    for frozen in (True, False):
        for r in (run, expected):
            r.model.head.weight.requires_grad_(not frozen)
        for i in range(70 if frozen else 0):
            run.step(i % 4)
            base, expected.plugin = expected.plugin, None
            expected.step(i % 4)
            expected.plugin = base
    # What was seen in between says nothing of the next step.
    weights.check(run.steps(2, 4).weights, expected.steps(2, 4).weights)
    assert run.plugin.stats() == expected.plugin.stats()


@pytest.mark.parametrize("bias", [nn.Parameter(torch.zeros(L + 1)), nn.Parameter(torch.zeros(1, L))])
def test_a_bias_that_was_replaced_by_one_of_another_shape(bias: nn.Parameter, weights: ChangedBytes) -> None:
    run = _run()
    before = run.weights
    run.observe(2)
    run.model.head.bias = bias
    told = ("with a bias of shape (40,) or None", f"got a tensor of shape {tuple(bias.shape)}")
    with _refused(TypeError, *told):
        run.plugin.apply()
    with _refused(TypeError, *told):
        LIP(run.model.head, 3)
    weights.check({"weight": run.model.head.weight}, {"weight": before["head.weight"]})


def test_a_weight_on_meta_is_to_be_materialized() -> None:
    with _refused(ValueError, "holds numbers", "got one on meta", "materialize"):
        LIP(nn.Linear(Q, L, device="meta"), 5)


# Two LIPs -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_a_second_lip_on_a_weight_is_refused(name: str, weights: ChangedBytes) -> None:
    run, expected = _run(name), _run(name)
    other = make_optimizer(name, run.model.parameters())
    for head in (run.model.head, _tied(run.model.head)):
        with _refused(ValueError, "no other LIP acts on", "got one with a LIP", "detach()"):
            LIP(head, 3).attach(other)
    assert not other._optimizer_step_post_hooks
    assert not other._optimizer_step_pre_hooks
    weights.check(run.steps(2, 4).weights, expected.steps(2, 4).weights)


def test_a_cell_that_runs_again_attaches_its_new_lip_in_place_of_the_old(weights: ChangedBytes) -> None:
    run, expected = Run("adamw fused"), _run(steps=0)
    for _ in range(3):
        old, run.plugin = run.plugin, LIP(run.model.head, **TRACKED)
        run.plugin.attach(run.optimizer)
    assert len(run.optimizer._optimizer_step_post_hooks) == 1
    weights.check(run.steps(0, 3).weights, expected.steps(0, 3).weights)
    assert old.stats()["steps"] == 0


def test_after_detach_nothing_of_a_lip_is_left(weights: ChangedBytes) -> None:
    run = _run()
    base = _without_lip(run)
    run.plugin.detach()
    run.plugin.detach()  # once more is no error
    for hooks in ("_optimizer_step_post_hooks", "_optimizer_step_pre_hooks"):
        assert not getattr(run.optimizer, hooks)
    assert not run.model.head._forward_hooks
    weights.check(run.steps(2, 4).weights, base.steps(2, 4).weights)
    run.plugin.attach(run.optimizer)
    assert run.steps(4, 6).plugin.stats()["applied"] == 4


def _tied(head: nn.Linear) -> nn.Linear:
    """Another module with the same weight."""
    tied = linear(Q, L)
    tied.weight = head.weight
    return tied


def test_the_next_lip_is_attached_once_the_first_is_not(weights: ChangedBytes) -> None:
    run = _run()
    run.handle.remove()
    first, run.plugin = run.plugin, LIP(run.model.head, 3)
    other = make_optimizer("adamw fused", run.model.parameters())
    with run.plugin.attach(other), _refused(ValueError, "no other LIP"):
        first.attach(run.optimizer)
    first.attach(run.optimizer)
    with _refused(ValueError, "no other LIP"):
        run.plugin.attach(other)
    run.plugin = first
    weights.check(run.steps(2, 4).weights, _run(steps=4).weights)


def test_weights_that_are_tied_after_attach_are_told(weights: ChangedBytes) -> None:
    run, other = _run(), _run()
    other.model.head.weight = run.model.head.weight
    before = run.weights
    for act in (lambda: other.observe(0), other.optimizer.step):
        with _refused(ValueError, "no other LIP acts on", "got one with a LIP", "detach()"):
            act()
    weights.check(run.weights, before)


def test_an_optimizer_that_is_gone_hinders_no_other_lip() -> None:
    run = _run()
    first = run.plugin
    run.optimizer = None
    gc.collect()
    run.optimizer = make_optimizer("sgd fused", run.model.parameters())
    run.plugin = LIP(run.model.head, 3)
    run.plugin.attach(run.optimizer)
    assert run.steps(0, 2).plugin.stats()["applied"] == 2
    assert first.stats()["applied"] == 2


def test_two_heads_have_a_lip_each(weights: ChangedBytes) -> None:
    heads = [linear(Q, L, seed=seed) for seed in (0, 1)]
    together = torch.optim.SGD([head.weight for head in heads], lr=0.1)
    lips = [LIP(head, 5) for head in heads]
    for lip in lips:
        lip.attach(together)
    alone = [linear(Q, L, seed=seed) for seed in (0, 1)]
    batches = [torch.randn(N, Q, generator=torch.Generator().manual_seed(seed)) for seed in (0, 1)]
    y = torch.arange(N)
    for head, one, lip, X in zip(heads, alone, lips, batches, strict=True):
        optimizer = torch.optim.SGD([one.weight], lr=0.1)
        other = LIP(one, 5)
        other.attach(optimizer)
        other.observe(X, y)
        one.weight.grad = torch.ones_like(one.weight)
        optimizer.step()
        head.weight.grad = torch.ones_like(head.weight)
        lip.observe(X, y)
    together.step()
    for head, one in zip(heads, alone, strict=True):
        weights.check({"weight": head.weight}, {"weight": one.weight})


def test_what_is_known_of_attached_lips_keeps_nothing_in_memory() -> None:
    gone = []
    for _ in range(3):
        run = _run()
        run.handle.remove()
        with _refused(ValueError, "holds the head's weight"):
            run.plugin.attach(make_optimizer("sgd fused", Network().parameters()))
        gone += [weakref.ref(run.plugin), weakref.ref(run.model.head.weight)]
    del run
    gc.collect()
    assert [ref() for ref in gone] == [None] * 6


# What attach() is given ---------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("make", "error", "told"),
    [
        (lambda run: LikeAccelerate(run.optimizer), TypeError, ("inner optimizer", "got LikeAccelerate")),
        (lambda run: Wrapper(run.optimizer), TypeError, ("inner optimizer", "got Wrapper")),
        (lambda run: torch.optim.SGD, TypeError, ("expected a torch.optim.Optimizer", "got type")),
        (lambda run: None, TypeError, ("expected a torch.optim.Optimizer", "got NoneType")),
        (lambda run: run.model, TypeError, ("expected a torch.optim.Optimizer", "got Network")),
        (lambda run: [run.optimizer], TypeError, ("expected a torch.optim.Optimizer", "got list")),
        (
            lambda run: torch.optim.SGD(run.model.body.parameters(), lr=0.1),
            ValueError,
            ("holds the head's weight", "got SGD without it", "parameters that the model has now"),
        ),
        (
            lambda run: torch.optim.Adam(copy.deepcopy(run.model).parameters()),
            ValueError,
            ("holds the head's weight", "got Adam without it"),
        ),
        (
            lambda run: torch.optim.Adam([run.model.head.bias]),
            ValueError,
            ("holds the head's weight", "got Adam without it"),
        ),
    ],
)
def test_what_is_no_optimizer_of_the_head_is_refused(
    make: Callable[[Run], Any], error: type[Exception], told: tuple[str, ...], weights: ChangedBytes
) -> None:
    run = Run("adamw fused")
    before = run.weights
    lip = run.plugin = LIP(run.model.head, **TRACKED)
    with _refused(error, *told):
        lip.attach(make(run))
    weights.check(run.weights, before)
    lip.attach(run.optimizer)
    weights.check(run.steps(0, 2).weights, _run().weights)


# What observe() is given --------------------------------------------------------------------------------


def _observation(**other: Any) -> dict[str, Any]:
    return {"features": torch.ones(4, Q), "targets": torch.zeros(4, dtype=torch.int64)} | other


def _coo(rows: int, columns: int, **options: Any) -> Tensor:
    return torch.ones(rows, columns, **options).to_sparse()


INDICES = torch.int64
WRONG: dict[str, tuple[dict[str, Any], type[Exception], tuple[str, ...]]] = {
    "more labels": (
        {"targets": torch.zeros(5, dtype=INDICES)},
        ValueError,
        ("expected 4 class indices, one a feature row", "got 5"),
    ),
    "fewer labels": ({"targets": torch.zeros(3, dtype=INDICES)}, ValueError, ("expected 4", "got 3")),
    "one label": ({"targets": torch.tensor(1)}, ValueError, ("(4,) or (4, 40)", "got ()")),
    "no rows for labels": ({"features": torch.ones(0, Q)}, ValueError, ("expected 0", "got 4")),
    "rows of another layer": ({"features": torch.ones(4, Q + 1)}, ValueError, ("(..., 60)", "(4, 61)")),
    "the logits": ({"features": torch.ones(4, L)}, ValueError, ("(..., 60)", "(4, 40)")),
    "transposed": ({"features": torch.ones(Q, 4)}, ValueError, ("(..., 60)", "(60, 4)")),
    "one row": ({"features": torch.ones(Q)}, ValueError, ("(..., 60)", "(60,)")),
    "indices for features": ({"features": torch.ones(4, Q, dtype=INDICES)}, TypeError, ("floating-point",)),
    "complex features": (
        {"features": torch.ones(4, Q, dtype=torch.complex64)},
        TypeError,
        ("floating-point features", "complex64"),
    ),
    "a list": ({"features": [[1.0] * Q] * 4}, TypeError, ("floating-point features", "got list")),
    "no features": ({"features": None}, TypeError, ("floating-point features", "got NoneType")),
    "no labels": ({"targets": None}, TypeError, ("labels as a torch.Tensor", "got NoneType")),
    "a list of labels": ({"targets": [0] * 4}, TypeError, ("labels as a torch.Tensor", "got list")),
    "int32 labels": ({"targets": torch.zeros(4, dtype=torch.int32)}, TypeError, ("int64", "int32")),
    "float labels": ({"targets": torch.zeros(4)}, TypeError, ("int64", "float32")),
    "a class too many": ({"targets": torch.full((4,), L)}, ValueError, ("0..39", "got 40 at row 0")),
    "a negative class": ({"targets": torch.tensor([0, 1, -7, 2])}, ValueError, ("0..39", "got -7 at row 2")),
    "labels of fewer classes": ({"targets": torch.zeros(4, L - 1)}, ValueError, ("(4, 40)", "got (4, 39)")),
    "transposed labels": ({"targets": torch.zeros(L, 4)}, ValueError, ("(4, 40)", "got (40, 4)")),
    "sparse labels of more rows": ({"targets": _coo(5, L)}, ValueError, ("(4, 40)", "got (5, 40)")),
    "complex labels": (
        {"targets": torch.ones(4, L, dtype=torch.complex64)},
        TypeError,
        ("real dtype", "complex64"),
    ),
    "deeper features with flat labels": (
        {"features": torch.ones(2, 2, Q)},
        ValueError,
        ("class indices of shape (2, 2)", "got (4,)"),
    ),
    "deeper features with a matrix": (
        {"features": torch.ones(2, 2, Q), "targets": torch.zeros(4, L)},
        ValueError,
        ("class indices of shape (2, 2)", "got (4, 40)"),
    ),
    "features elsewhere": (
        {"features": torch.ones(4, Q, device="meta")},
        ValueError,
        ("features on cpu, where the head is", "got meta"),
    ),
    "labels elsewhere": (
        {"targets": torch.zeros(4, dtype=INDICES, device="meta")},
        ValueError,
        ("labels on cpu, where the features are", "got meta"),
    ),
    "both elsewhere": (
        {
            "features": torch.ones(4, Q, device="meta"),
            "targets": torch.zeros(4, dtype=INDICES, device="meta"),
        },
        ValueError,
        ("features on cpu", "got meta"),
    ),
    "sparse features": ({"features": _coo(4, Q)}, TypeError, ("dense", "sparse_coo")),
    "features of eight bits": (
        {"features": torch.ones(4, Q).to(torch.float8_e4m3fn)},
        TypeError,
        ("floating-point features (float32", "float8_e4m3fn"),
    ),
}


@pytest.mark.parametrize("name", ["sgd for-loop", "adamw fused"])
@pytest.mark.parametrize(("other", "error", "told"), WRONG.values(), ids=WRONG)
def test_a_wrong_batch_is_refused_and_leaves_no_trace(
    other: dict, error: type[Exception], told: tuple[str, ...], name: str, weights: ChangedBytes
) -> None:
    run, expected = _run(name), _run(name)
    before, state = run.weights, run.plugin.state_dict()
    with _refused(error, *told):
        run.plugin.observe(**_observation(**other))
    weights.check(run.weights, before)
    assert same(run.plugin.state_dict(), state)
    weights.check(run.steps(2, 4).weights, expected.steps(2, 4).weights)


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), -float("inf"), 1e38], ids=str)
@pytest.mark.parametrize("where", ["features", "targets"])
@pytest.mark.parametrize("options", OPTIONS.values(), ids=OPTIONS)
@pytest.mark.parametrize("name", OPTIMIZERS)
def test_a_batch_that_is_not_finite_leaves_the_base_step(
    name: str, options: dict, where: str, bad: float, weights: ChangedBytes
) -> None:
    run = Run(name, lambda head: LIP(head, **options)).steps(0, 2)
    base = _without_lip(run)
    batch = {"features": torch.ones(4, Q), "targets": torch.zeros(4, L)}
    batch[where][2, 3] = bad
    run.plugin.observe(**batch)
    for r in (run, base):
        r.backward(2)
        r.update()
    if bad == 1e38 and where == "targets":
        assert all(torch.isfinite(p).all() for p in run.model.parameters())  # large, but numbers
        return
    weights.check(run.weights, base.weights)
    assert run.plugin.stats()["not_finite"] == 1


# What load_state_dict() is given ------------------------------------------------------------------------


def _paths(state: Any, path: tuple = ()) -> list[tuple]:
    """Every key of a nested state."""
    if not isinstance(state, dict):
        return [path]
    inner = [p for key, value in state.items() for p in _paths(value, (*path, key))]
    return [path, *inner] if path else inner


def _pending_run() -> Run:
    run = _run()
    run.plugin.observe(torch.ones(4, Q), torch.zeros(4, dtype=INDICES))
    run.plugin.observe(torch.ones(4, Q), _coo(4, L))
    return run


def _rows_of_labels(crow: list[int], col: list[int]) -> tuple[torch.Tensor, ...]:
    return torch.tensor(crow), torch.tensor(col), torch.ones(len(col))


def _changed(state: dict[str, Any], path: tuple, change: Callable[[dict, Any], None]) -> dict[str, Any]:
    state = copy.deepcopy(state)
    inner = state
    for key in path[:-1]:
        inner = inner[key]
    change(inner, path[-1])
    return state


PATHS = _paths(_pending_run().plugin.state_dict())


@pytest.mark.parametrize("damage", ["missing", "a string", "a tensor of another shape"])
@pytest.mark.parametrize("path", PATHS, ids=lambda path: ".".join(path))
def test_a_damaged_state_is_refused_and_changes_nothing(
    path: tuple, damage: str, weights: ChangedBytes
) -> None:
    if (*path, damage) == ("statistics", "shift", "missing"):
        pytest.skip("states of before there was a shift load")
    run = _pending_run()
    before, state = run.weights, run.plugin.state_dict()
    other = _run(steps=5).plugin.state_dict()
    change = {
        "missing": lambda inner, key: inner.pop(key),
        "a string": lambda inner, key: inner.__setitem__(key, "7"),
        "a tensor of another shape": lambda inner, key: inner.__setitem__(key, torch.ones(2, 3, 5)),
    }[damage]
    with _refused(ValueError, "expected"):
        run.plugin.load_state_dict(_changed(other, path, change))
    assert same(run.plugin.state_dict(), state)
    weights.check(run.weights, before)


@pytest.mark.parametrize(
    "pending",
    [
        ({"features": torch.ones(4, Q)},),
        ({"features": torch.ones(4, Q + 1), "targets": torch.zeros(4, dtype=INDICES)},),
        ({"features": torch.ones(4, Q), "targets": torch.zeros(5, dtype=INDICES)},),
        ({"features": torch.ones(4, Q), "targets": (torch.zeros(5, dtype=INDICES),)},),
        ({"features": torch.ones(4, Q), "targets": (torch.zeros(4), torch.zeros(1), torch.zeros(1))},),
        ({"features": "none", "targets": torch.zeros(4, dtype=INDICES)},),
        ({"features": torch.ones(4, Q, dtype=INDICES), "targets": torch.zeros(4, dtype=INDICES)},),
        ({"features": torch.ones(4, Q), "targets": torch.zeros(4, dtype=torch.int32)},),
        ({"features": torch.ones(4, Q), "targets": torch.zeros(4, L + 1)},),
        ({"features": torch.ones(4, Q), "targets": torch.zeros(4, L, dtype=torch.complex64)},),
        ({"features": torch.ones(2, Q), "targets": _rows_of_labels([0, 1, 3], [0, 1])},),
        ({"features": torch.ones(2, Q), "targets": _rows_of_labels([0, 2, 1], [0])},),
        ({"features": torch.ones(2, Q), "targets": _rows_of_labels([0, 1, 2], [0, L])},),
        (torch.ones(4, Q),),
    ],
)
def test_pending_observations_that_are_none_are_refused(pending: tuple, weights: ChangedBytes) -> None:
    run = _pending_run()
    before, state = run.weights, run.plugin.state_dict()
    with _refused(ValueError, "expected", "pending", "got"):
        run.plugin.load_state_dict(state | {"steps": 100, "pending": pending})
    assert same(run.plugin.state_dict(), state)
    weights.check(run.weights, before)


@pytest.mark.parametrize(
    ("other", "told"),
    [
        (lambda: LIP(linear(Q, L), 6, tail_rank=4, decay=0.9), ("(rank, tail_rank) (5, 4)", "got (6, 4)")),
        (lambda: LIP(linear(Q, L), 5, tail_rank=3, decay=0.9), ("(rank, tail_rank) (5, 4)", "got (5, 3)")),
        (lambda: LIP(linear(Q, L), 5, tail_rank=4), ("same decay",)),
        (lambda: LIP(linear(Q, L + 1), 5, tail_rank=4, decay=0.9), ("C of shape", "(61, 40)", "(61, 41)")),
        (lambda: LIP(linear(Q + 1, L), 5, tail_rank=4, decay=0.9), ("C of shape", "(61, 40)", "(62, 40)")),
    ],
    ids=["rank", "tail_rank", "decay", "classes", "features"],
)
def test_the_state_of_another_lip_is_refused(
    other: Callable[[], LIP], told: tuple[str, ...], weights: ChangedBytes
) -> None:
    run = _pending_run()
    before, state = run.weights, run.plugin.state_dict()
    lip = other()
    lip.observe(torch.ones(2, lip._step.shape[1]), torch.zeros(2, dtype=INDICES))
    lip.apply()
    with _refused(ValueError, *told):
        run.plugin.load_state_dict(lip.state_dict())
    assert same(run.plugin.state_dict(), state)
    weights.check(run.weights, before)


@pytest.mark.parametrize("bad", [torch.nan, torch.inf])
def test_a_basis_that_is_not_finite_is_refused(bad: float, weights: ChangedBytes) -> None:
    run = _pending_run()
    before, state = run.weights, run.plugin.state_dict()
    damaged = copy.deepcopy(state)
    damaged["subspace"]["basis"][0][3, 2] = bad
    with _refused(ValueError, "a finite basis", "got a tensor"):
        run.plugin.load_state_dict(damaged)
    assert same(run.plugin.state_dict(), state)
    weights.check(run.weights, before)


# Steps that are left out, and many micro-batches --------------------------------------------------------


@pytest.mark.parametrize("each", [True, False], ids=["backward each", "one backward"])
def test_any_number_of_micro_batches_is_one_step(each: bool) -> None:
    run, logits = _run(), []
    for i in range(200):
        logits.append(run.model.head(run.model.features(run.x[i % 4])))
        run.observe(i % 4)
        if each:
            logits.pop().sum().backward()
    if logits:
        torch.stack(logits).sum().backward()
    assert len(run.plugin.state_dict()["pending"]) == 200
    run.update()
    assert run.plugin.stats()["applied"] == 3


def test_observations_of_steps_that_a_scaler_leaves_out_are_discarded(weights: ChangedBytes) -> None:
    run, expected = _run(), _run()
    for i in range(70):
        run.model.head(run.model.features(run.x[i % 4]))
        run.observe(i % 4)
    run.plugin.discard()
    weights.check(run.steps(2, 4).weights, expected.steps(2, 4).weights)


def test_a_head_with_a_learning_rate_of_zero_keeps_no_observations() -> None:
    run = Run("sgd fused")
    run.optimizer = torch.optim.SGD(
        [
            {"params": [*run.model.body.parameters(), run.model.head.bias]},
            {"params": [run.model.head.weight], "lr": 0.0},
        ],
        lr=0.1,
    )
    run.plugin = LIP(run.model.head, **TRACKED)
    run.plugin.attach(run.optimizer)
    run.steps(0, 3)
    assert run.plugin.state_dict()["pending"] == ()


def test_while_no_group_learns_a_bounded_number_of_observations_is_kept() -> None:
    run = Run("sgd fused", lambda head: LIP(head, **TRACKED), lr=0.0)
    for i in range(200):
        run.step(i % 4)
        assert len(run.plugin.state_dict()["pending"]) <= 64
