"""Groups with LIP: their settings, how these change, what is refused, and gradients that are not finite."""

import copy
import gc
import re
import warnings
import weakref
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch
from capture_runs import same
from optim.twins import (
    BASES,
    IMPLEMENTATIONS,
    LIPS,
    L,
    N,
    Q,
    Side,
    assert_equal,
    groups_of_torch,
    implementations_of,
    random,
    settings,
)
from problems import linear, relative_error
from torch import Tensor, nn

from lip_fast import LIP, LIPError
from lip_fast.optim import LIPSGD, LIPAdamW
from lip_fast.settings import Settings

OURS = list(BASES)
ours = pytest.mark.parametrize("optimizer", OURS, ids=lambda cls: cls.__name__)
implementations = pytest.mark.parametrize("options", IMPLEMENTATIONS.values(), ids=IMPLEMENTATIONS)
lips = pytest.mark.parametrize("lip", LIPS.values(), ids=LIPS)
hostile = pytest.mark.hostile


def _refused(error: type[Exception], *parts: str) -> Any:
    """The error has these parts, in this order."""
    return pytest.raises(error, match="(?s)" + ".*".join(map(re.escape, parts)))


def _batch(i: int, q: int = Q, classes: int = L) -> tuple[Tensor, Tensor]:
    labels = torch.randint(0, classes, (N,), generator=torch.Generator().manual_seed(i))
    return random((N, q), 1000 + i), labels


def _gradients(heads: list[nn.Linear], i: int) -> None:
    for j, p in enumerate(p for head in heads for p in head.parameters()):
        p.grad = random(tuple(p.shape), 100 * i + j, p.dtype)


class Heads:
    """Two heads, of which ``groups`` makes the groups of one of our optimizers; or torch's with plug-ins."""

    def __init__(self, make: Callable[[nn.Linear, nn.Linear], torch.optim.Optimizer], *plugins: dict) -> None:
        self.heads = [linear(Q, L, bias=True, seed=1), linear(5, 9, bias=True, seed=2)]
        self.optimizer = make(*self.heads)
        self.lips = [LIP(head, **lip) for head, lip in zip(self.heads, plugins, strict=False)]
        for lip in self.lips:
            lip.attach(self.optimizer)

    def steps(self, first: int, last: int) -> "Heads":
        for i in range(first, last):
            _gradients(self.heads, i)
            for j, (head, classes) in enumerate(zip(self.heads, (L, 9), strict=True)):
                features, labels = _batch(10 * i + j, head.in_features, classes)
                if self.lips:
                    self.lips[j].observe(features, labels)
                else:
                    self.optimizer.observe(head, features, labels)
            self.optimizer.step()
        return self

    @property
    def values(self) -> list[Tensor]:
        return [p.detach().clone() for head in self.heads for p in head.parameters()]


# Settings -----------------------------------------------------------------------------------------------


@ours
@lips
@pytest.mark.parametrize("where", ["groups", "one group", "constructor", "both"])
def test_settings_are_of_groups_and_of_the_constructor(optimizer: type, lip: dict, where: str) -> None:
    def make(a: nn.Linear, b: nn.Linear) -> torch.optim.Optimizer:
        rest = {"params": [a.bias, b.bias]}
        one, two = {"params": [a.weight]}, {"params": [b.weight]}
        if where == "groups":
            return optimizer([rest, one | settings(lip), two | settings(lip)])
        if where == "one group":
            return optimizer([rest, {"params": [a.weight, b.weight]} | settings(lip)])
        given = settings(lip)
        if where == "both":
            two |= {"lip_rank": lip["rank"]}
            given["lip_rank"] = 1
            one |= {"lip_rank": lip["rank"]}
        return optimizer([rest | {"lip_rank": None}, one, two], **given)

    got = Heads(make).steps(0, 4)
    expected = Heads(lambda a, b: BASES[optimizer]([*a.parameters(), *b.parameters()]), lip, lip).steps(0, 4)
    assert same(got.values, expected.values)
    assert [stats["applied"] for stats in got.optimizer.lip.stats().values()] == [4, 4]
    assert [s["rank"] for s in got.optimizer.lip.stats().values()] == [lip["rank"]] * 2


@ours
def test_each_argument_reaches_lip(optimizer: type) -> None:
    head = linear(Q, L, bias=True)
    given = {"rank": 0.4, "tail_rank": 2, "tail": "zero", "rest": "drop"}
    given |= {"every": 3, "start": 1, "decay": 0.5, "clip": False}
    made = optimizer([head.weight], **settings(given), seed=5, strict=True)
    (of,) = made._lip_heads.values()
    plug_in = LIP(head, **given, seed=5, strict=True)
    assert of.step.settings == plug_in._step.settings == Settings(**given, seed=5, strict=True)
    assert of.step.statistics.decay == plug_in._step.statistics.decay == 0.5
    group = made.param_groups[0]
    assert {name: group[name] for name in settings(given)} == settings(given)
    assert settings(given).items() <= made.defaults.items()


@ours
def test_a_group_that_is_added(optimizer: type) -> None:
    a, b, c = linear(Q, L, bias=True), linear(5, 9, seed=2), linear(4, 6, seed=3)
    made = optimizer([a.bias])
    made.add_param_group({"params": [a.weight], "lip_rank": 3})
    made.add_param_group({"params": b.weight})
    assert [group["lip_rank"] for group in made.param_groups] == [None, 3, None]
    made.defaults["lip_rank"] = 2
    made.add_param_group({"params": c.weight})
    assert list(made.lip.stats()) == ["1", "3"]
    for head, (q, l) in ((a, (Q, L)), (c, (4, 6))):
        made.observe(head, *_batch(0, q, l))
    for p in (a.weight, a.bias, b.weight, c.weight):
        p.grad = torch.ones_like(p)
    made.step()
    assert [stats["applied"] for stats in made.lip.stats().values()] == [1, 1]
    with _refused(ValueError, "whose weight is in a group with a lip_rank", "Linear", "lip_rank"):
        made.observe(b, *_batch(0, 5, 9))


@ours
def test_names_of_parameters_are_those_of_lip(optimizer: type) -> None:
    a, b = linear(Q, L, bias=True), linear(5, 9, seed=2)
    named = [{"params": [("a.bias", a.bias)]}]
    named += [{"params": [("a.weight", a.weight), ("b.weight", b.weight)], "lip_rank": 3}]
    made = optimizer(named)
    assert list(made.lip.stats()) == list(made.lip.state_dict()) == ["a.weight", "b.weight"]
    with _refused(ValueError, "names that no other parameter has", "a.weight"):
        made.add_param_group({"params": [("a.weight", linear(3, 3).weight)], "lip_rank": 1})
    with _refused(ValueError, "names that no other parameter has", "a.bias"):
        made.add_param_group({"params": [("a.bias", linear(3, 3).weight)], "lip_rank": 1})
    assert len(made.param_groups) == 2
    # Without names: numbers, as those of the parameters in state_dict().
    del made
    made = optimizer([{"params": [a.bias]}, {"params": [a.weight, b.weight], "lip_rank": 3}])
    assert list(made.lip.stats()) == ["1", "2"]


# Settings that change -----------------------------------------------------------------------------------


@ours
def test_every_start_and_clip_change_at_any_time(optimizer: type) -> None:
    side = Side(optimizer, {}, {"rank": 3, "decay": 0.9, "tail_rank": 1})
    base = Side(BASES[optimizer], {}, {"rank": 3, "decay": 0.9, "tail_rank": 1})
    group = side.optimizer.param_groups[0]
    for i, (every, start, clip) in enumerate([(1, 0, True), (2, 0, True), (1, 5, True), (1, 0, False)] * 2):
        group |= {"lip_every": every, "lip_start": start, "lip_clip": clip}
        base.lip._step.reschedule(replace(base.lip._step.settings, every=every, start=start, clip=clip))
        for r in (side, base):
            r.gradients(5)
            r.show(i)
            r.optimizer.step()
        assert_equal(side, base)
    assert side.optimizer.lip.stats()["0"]["applied"] == 5
    assert side.optimizer.lip.stats()["0"]["steps"] == 8


@ours
@pytest.mark.parametrize(
    "change",
    [{"rank": 5}, {"rank": 0.5}, {"tail_rank": 2}, {"tail": "zero"}, {"decay": 0.5}, {"rest": "drop"}],
    ids=str,
)
@pytest.mark.filterwarnings("ignore:rest=.drop. removes")
def test_another_rank_tail_or_decay_begins_anew(optimizer: type, change: dict) -> None:
    lip = {"rank": 2, "tail_rank": 1, "decay": 0.9}
    side = Side(optimizer, {}, lip).steps(0, 3)
    base = Side(BASES[optimizer], {}, lip).steps(0, 3)
    old = weakref.ref(side.optimizer._lip_heads[side.head.weight].step)
    side.show(5)  # of the old one
    side.optimizer.param_groups[0] |= settings(change)
    for handle in list(base.optimizer._optimizer_step_post_hooks):
        del base.optimizer._optimizer_step_post_hooks[handle]
    base.lip = LIP(base.head, **(lip | change))
    base.lip.attach(base.optimizer)
    for r in (side, base):
        r.steps(5, 7)
    assert_equal(side, base)
    assert side.optimizer.lip.stats()["0"]["applied"] == 2
    assert old() is None


@ours
def test_a_rank_of_one_is_not_a_fraction_of_one(optimizer: type) -> None:
    side = Side(optimizer, {}, {"rank": 1}).steps(0, 1)
    side.optimizer.param_groups[0]["lip_rank"] = 1.0
    assert side.optimizer.lip.stats()["0"]["rank"] == L


@ours
def test_groups_are_loaded_while_another_lip_has_the_weight(optimizer: type) -> None:
    side = Side(optimizer, {}, LIPS["exact"]).steps(0, 2)
    side.optimizer.param_groups[0]["lip_rank"] = None
    plug_in = LIP(side.head, 3)
    plug_in.attach(side.optimizer)
    side.optimizer.load_state_dict(side.optimizer.state_dict())
    plug_in.observe(*_batch(2))
    side.gradients(5)
    side.optimizer.step()
    assert plug_in.stats()["applied"] == 1


@ours
def test_a_shallow_copy_leaves_the_original_its_lip(optimizer: type) -> None:
    side, expected = (Side(optimizer, {}, LIPS["exact"]).steps(0, 2) for _ in range(2))
    copied = copy.copy(side.optimizer)
    assert copied.lip.stats() == side.optimizer.lip.stats()
    del copied
    with _refused(ValueError, "no other LIP acts on"):
        LIP(side.head, 3).attach(side.optimizer)
    assert_equal(side.steps(2, 4), expected.steps(2, 4))


@ours
@pytest.mark.parametrize("when", ["at once", "after observe()", "after a step"])
def test_without_its_rank_a_group_has_no_lip_and_the_weight_is_free(optimizer: type, when: str) -> None:
    side = Side(optimizer, {}, LIPS["tracked"]).steps(0, 2)
    plug_in = LIP(side.head, 3)
    with _refused(ValueError, "no other LIP acts on"):
        plug_in.attach(side.optimizer)
    group = side.optimizer.param_groups[0]
    group["lip_rank"] = None
    if when == "after observe()":
        with _refused(ValueError, "whose weight is in a group with a lip_rank"):
            side.show(2)
    if when == "after a step":
        side.gradients(2)
        side.optimizer.step()
    assert side.optimizer.lip.stats() == {}
    handle = plug_in.attach(side.optimizer)
    plug_in.observe(*_batch(2))
    side.gradients(5)
    side.optimizer.step()
    assert plug_in.stats()["applied"] == 1
    # Back again: only once the other is gone, and from the beginning.
    group["lip_rank"] = 2
    before = side.values
    for act in (lambda: side.show(3), side.optimizer.lip.stats):
        with _refused(ValueError, "parameter '0' of a group with a lip_rank", "no other LIP acts on"):
            act()
    assert same(before, side.values)
    handle.remove()
    side.steps(5, 7)
    assert side.optimizer.lip.stats()["0"]["applied"] == 2


@ours
def test_a_rank_given_in_the_midst_of_a_run_is_a_lip(optimizer: type) -> None:
    side, base = Side(optimizer, {}), Side(BASES[optimizer], {})
    for r in (side, base):
        r.steps(0, 2)
    side.optimizer.param_groups[0] |= settings(LIPS["tracked"])
    base.lip = LIP(base.head, **LIPS["tracked"])
    base.lip.attach(base.optimizer)
    for r in (side, base):
        r.shown = True
        r.steps(5, 8)
    assert_equal(side, base)


@ours
def test_a_weight_that_is_replaced_in_its_group(optimizer: type) -> None:
    side = Side(optimizer, {}, LIPS["exact"]).steps(0, 2)
    gone = weakref.ref(side.head.weight)
    side.head.weight = nn.Parameter(random((L, Q), 77))
    side.optimizer.param_groups[0]["params"] = [side.head.weight]
    side.optimizer.state.clear()
    side.steps(5, 7)
    assert side.optimizer.lip.stats()["0"]["applied"] == 2
    gc.collect()
    assert gone() is None


@hostile
@ours
@pytest.mark.parametrize(
    ("name", "value", "told"),
    [
        ("lip_rank", L + 1, "rank in 0..7, got 8"),
        ("lip_rank", "half", "\"auto\", got 'half'"),
        ("lip_decay", 2.0, "decay in (0, 1)"),
        ("lip_every", 0, "every >= 1, got 0"),
        ("lip_start", -1, "start >= 0, got -1"),
    ],
)
def test_settings_that_do_not_fit_are_told_before_a_step(
    optimizer: type, name: str, value: Any, told: str
) -> None:
    for skip in (False, True):
        side = Side(optimizer, {"skip_nonfinite": skip}, LIPS["tracked"]).steps(0, 2)
        other = Side(optimizer, {"skip_nonfinite": skip}, LIPS["tracked"]).steps(0, 2)
        before, state = side.values, copy.deepcopy(side.optimizer.state_dict()["state"])
        group = side.optimizer.param_groups[0]
        good, group[name] = group[name], value
        side.gradients(5)
        with _refused(ValueError, "parameter '0' of a group with a lip_rank", told):
            side.optimizer.step()
        with _refused(ValueError, "parameter '0' of a group with a lip_rank", told):
            side.show(5)
        assert same(before, side.values)
        assert same(state, side.optimizer.state_dict()["state"])
        group[name] = good
        # Nothing has been lost.
        assert_equal(side.steps(5, 7), other.steps(5, 7))


# Loading ------------------------------------------------------------------------------------------------


@ours
def test_a_state_of_torchs_optimizer_keeps_the_settings(optimizer: type) -> None:
    side, base = Side(optimizer, {}, LIPS["tracked"]), Side(BASES[optimizer], {"lr": 0.25}).steps(0, 2)
    groups = copy.deepcopy(side.optimizer.param_groups)
    side.optimizer.load_state_dict(base.optimizer.state_dict())
    for got, before in zip(side.optimizer.param_groups, groups, strict=True):
        mine = {k: v for k, v in before.items() if k.startswith("lip_")}
        assert mine.items() <= got.items()
    assert same(groups_of_torch(side.optimizer), groups_of_torch(base.optimizer))
    assert side.optimizer.param_groups[0]["lr"] == 0.25
    assert side.steps(2, 4).optimizer.lip.stats()["0"]["applied"] == 1


@ours
def test_groups_of_another_of_our_optimizers_bring_their_settings(optimizer: type) -> None:
    side, other = Side(optimizer, {}, LIPS["tracked"]), Side(optimizer, {}, LIPS["exact"]).steps(0, 2)
    side.steps(0, 2)
    # A copy: torch takes the tensors that it is given.
    side.optimizer.load_state_dict(copy.deepcopy(other.optimizer.state_dict()))
    assert same(
        [{k: v for k, v in g.items() if k != "params"} for g in side.optimizer.param_groups],
        [{k: v for k, v in g.items() if k != "params"} for g in other.optimizer.param_groups],
    )
    side.optimizer.lip.load_state_dict(other.optimizer.lip.state_dict())
    with torch.no_grad():
        for p, q in zip(side.parameters, other.parameters, strict=True):
            p.copy_(q)
    assert_equal(side.steps(5, 7), other.steps(5, 7))


@hostile
@ours
def test_states_of_lip_that_do_not_fit_change_nothing(optimizer: type) -> None:
    lip = LIPS["tracked"]

    def make(a: nn.Linear, b: nn.Linear) -> torch.optim.Optimizer:
        return optimizer(
            [{"params": [a.bias, b.bias]}, {"params": [a.weight, b.weight]} | settings(lip)],
        )

    run, other = Heads(make).steps(0, 2), Heads(make).steps(0, 3)
    before, good = run.optimizer.lip.state_dict(), other.optimizer.lip.state_dict()
    assert not same(before, good)
    wrong: dict[str, Any] = {
        "another parameter": {"2": good["2"], "7": good["3"]},
        "one too few": {"2": good["2"]},
        "nothing": {},
        "no mapping": 5,
        "the second is broken": good | {"3": good["3"] | {"subspace": {}}},
        "the second is the first": good | {"3": good["2"]},
        "the second is none": good | {"3": None},
        "no bias": good | {"3": {k: v for k, v in good["3"].items() if k != "bias"}},
        "a bias that is not there": good | {"3": good["3"] | {"bias": ("9",)}},
        "a bias of another shape": good | {"3": good["3"] | {"bias": (torch.ones(2),)}},
        "a bias of another head": good | {"3": good["3"] | {"bias": ("0",)}},
    }
    for what, state in wrong.items():
        with _refused(ValueError, "expected"):
            run.optimizer.lip.load_state_dict(state)
        assert same(run.optimizer.lip.state_dict(), before), what
    run.optimizer.lip.load_state_dict(state_dict=good)
    assert same(run.optimizer.lip.state_dict(), good)


# One LIP for a weight -----------------------------------------------------------------------------------


@hostile
@ours
def test_a_weight_has_one_lip(optimizer: type) -> None:
    side = Side(optimizer, {}, LIPS["exact"])
    plain = torch.optim.SGD(side.parameters, lr=0.1)
    with _refused(ValueError, "no other LIP acts on", "take the weight out of the group"):
        LIP(side.head, 3).attach(plain)
    # Another one of these takes the weight over, as where the cell of a notebook runs again; one whose
    # constructor fails does not.
    side.steps(0, 1)
    with pytest.raises(ValueError, match="expected rank") as failed:
        optimizer(
            [{"params": [side.head.weight], "lip_rank": 3}, {"params": [linear(Q, L).weight], "lip_rank": 99}]
        )
    assert failed.traceback  # which keeps that one alive
    side.steps(1, 2)
    again = optimizer([side.head.weight], lip_rank=3)
    again.observe(side.head, *_batch(0))
    before = side.values
    with _refused(ValueError, "parameter '0' of a group with a lip_rank", "no other LIP acts on"):
        side.optimizer.step()
    assert same(before, side.values)
    head = linear(Q, L)
    attached = torch.optim.SGD(head.parameters(), lr=0.1)
    plug_in = LIP(head, 3)
    handle = plug_in.attach(attached)
    with _refused(ValueError, "parameter 'w' of a group with a lip_rank", "no other LIP", "detach()"):
        optimizer([("w", head.weight)], lip_rank=3)
    handle.remove()
    made = optimizer([("w", head.weight)], lip_rank=3)
    with _refused(ValueError, "no other LIP acts on"):
        plug_in.attach(attached)
    del made
    plug_in.attach(attached)


@ours
def test_an_optimizer_that_is_gone_frees_the_weight(optimizer: type) -> None:
    gc.disable()  # without the collector: no cycle keeps a model in memory
    try:
        side = Side(optimizer, {}, LIPS["tracked"]).steps(0, 2)
        side.show(2)
        head, gone = side.head, weakref.ref(side.optimizer)
        del side
        assert gone() is None
        LIP(head, 3).attach(torch.optim.SGD(head.parameters(), lr=0.1))
        weight = weakref.ref(head.weight)
        del head
        assert weight() is None
    finally:
        gc.enable()


# Bad input ----------------------------------------------------------------------------------------------

BAD_PARAMETERS: dict[str, tuple[Callable[[], Tensor], str]] = {
    "1-D": (lambda: nn.Parameter(torch.ones(5)), "2-D weight"),
    "0-D": (lambda: nn.Parameter(torch.ones(())), "2-D weight"),
    "3-D": (lambda: nn.Parameter(torch.ones(4, 5, 2)), "2-D weight"),
    "complex": (lambda: nn.Parameter(torch.ones(4, 5, dtype=torch.complex64)), "torch.complex64"),
    "int64": (lambda: torch.ones(4, 5, dtype=torch.int64), "torch.int64"),
    "float8": (lambda: torch.ones(4, 5).to(torch.float8_e4m3fn), "torch.float8_e4m3fn"),
    "sparse": (lambda: nn.Parameter(torch.ones(4, 5).to_sparse()), "dense weight"),
    "meta": (lambda: nn.Parameter(torch.empty(4, 5, device="meta")), "on meta"),
}
BAD_SETTINGS: dict[str, tuple[dict[str, Any], str]] = {
    "rank too large": ({"lip_rank": 5}, "rank in 0..4, got 5"),
    "negative rank": ({"lip_rank": -1}, "rank in 0..4, got -1"),
    "fraction too large": ({"lip_rank": 1.5}, "(0, 1], got 1.5"),
    "rank as a word": ({"lip_rank": "all"}, "'all'"),
    "rank as a flag": ({"lip_rank": True}, "rank as an int, got bool True"),
    "rank as a tensor": ({"lip_rank": torch.tensor(2)}, "lip_rank as a number or a string"),
    "rank as a list": ({"lip_rank": [2]}, "lip_rank as a number or a string, got list"),
    "tail_rank": ({"lip_tail_rank": -1}, "tail_rank >= 0"),
    "tail": ({"lip_tail": "drop"}, "tail to be one of"),
    "rest": ({"lip_rest": "zero"}, "rest to be one of"),
    "every": ({"lip_every": 0}, "every >= 1"),
    "start": ({"lip_start": -1}, "start >= 0"),
    "decay": ({"lip_decay": 1.0}, "decay in (0, 1)"),
    "unknown": ({"lip_rnk": 2}, "settings of LIP among"),
    "a plug-in": ({"lip": LIP(linear(5, 4), 2)}, "settings of LIP among"),
    "a plug-in by another name": ({"plugin": LIP(linear(5, 4), 2)}, "LIP objects"),
    "a plug-in as a rank": ({"lip_rank": LIP(linear(5, 4), 2)}, "LIP objects"),
}


def _check_refused(optimizer: type, bad: dict[str, Any], told: str, *, named: bool) -> None:
    """Neither the constructor nor add_param_group() takes the group ``bad``, and neither leaves a trace."""
    good = linear(Q, L, bias=True)
    (p,) = bad["params"]
    name = "head.weight" if named else "1"
    bad = bad | {"params": [(name, p) if named else p]}
    first = {"params": [("bias", good.bias) if named else good.bias]}
    with _refused(ValueError, f"parameter '{name}'", told):
        optimizer([dict(first), dict(bad)])
    made = optimizer([dict(first)])
    groups = list(made.param_groups)
    before = copy.deepcopy(made.state_dict())
    with _refused(ValueError, f"parameter '{name}'", told):
        made.add_param_group(dict(bad))
    assert len(made.param_groups) == len(groups) == 1
    assert made.param_groups[0] is groups[0]
    assert same(made.state_dict(), before)
    assert made.lip.stats() == {}


@hostile
@ours
@pytest.mark.parametrize("named", [False, True], ids=["numbers", "names"])
@pytest.mark.parametrize(("make", "told"), BAD_PARAMETERS.values(), ids=BAD_PARAMETERS)
@pytest.mark.filterwarnings("ignore:Sparse")
def test_parameters_that_lip_cannot_act_on(optimizer: type, make: Callable, told: str, named: bool) -> None:
    p = make()
    _check_refused(optimizer, {"params": [p], "lip_rank": 2}, told, named=named)
    made = optimizer([p])  # is no matter without LIP
    assert made.param_groups[0]["lip_rank"] is None


@hostile
@ours
@pytest.mark.parametrize("named", [False, True], ids=["numbers", "names"])
@pytest.mark.parametrize(("bad", "told"), BAD_SETTINGS.values(), ids=BAD_SETTINGS)
def test_settings_that_lip_does_not_have(optimizer: type, bad: dict, told: str, named: bool) -> None:
    head = linear(5, 4)
    _check_refused(optimizer, {"params": [head.weight], "lip_rank": 2} | bad, told, named=named)
    # The weight is as free as before.
    LIP(head, 2).attach(torch.optim.SGD(head.parameters(), lr=0.1))


@hostile
@ours
def test_the_second_weight_of_a_group_is_refused_with_the_first(optimizer: type) -> None:
    a, b = linear(Q, L), linear(5, 9)
    made = optimizer([linear(3, 3, seed=1).weight])
    with _refused(ValueError, "parameter '2'", "rank in 0..5, got 6"):
        made.add_param_group({"params": [a.weight, b.weight], "lip_rank": 6})
    assert made._lip_heads == {}
    made.add_param_group({"params": [a.weight, b.weight], "lip_rank": 5})
    assert list(made.lip.stats()) == ["1", "2"]


@hostile
@ours
def test_a_weight_twice_in_a_group(optimizer: type) -> None:
    head = linear(Q, L)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        with _refused(ValueError, "parameter '0'", "each weight once"):
            optimizer([head.weight, head.weight], lip_rank=2)


@hostile
@ours
def test_arguments_of_the_constructor(optimizer: type) -> None:
    weight = linear(Q, L).weight
    with _refused(TypeError, "lip_rnk"):
        optimizer([weight], lip_rnk=2)
    for seed, error in ((-1, ValueError), (2**63, ValueError), (0.5, TypeError)):
        with _refused(error, "seed"):
            optimizer([weight], lip_rank=2, seed=seed)
    assert optimizer([weight], lip_rank=0).lip.stats()["0"]["rank"] == 0


@hostile
@ours
def test_observations_that_do_not_fit(optimizer: type) -> None:
    side = Side(optimizer, {}, LIPS["exact"])
    x, y = _batch(0)
    observe = side.optimizer.observe
    other = linear(Q, L)
    for head in (other, nn.ReLU(), side.head.weight):
        with _refused(ValueError, "a head whose weight is in a group with a lip_rank, got"):
            observe(head, x, y)
    with _refused(ValueError, "features of shape"):
        observe(side.head, x[:, 1:], y)
    with _refused(TypeError, "features"):
        observe(side.head, x.long(), y)
    with _refused(ValueError, "4"):
        observe(side.head, x, y[:4])
    with _refused(ValueError, "7"):
        observe(side.head, x, y.clone().fill_(L))
    crooked = nn.Module()
    crooked.weight, crooked.bias = side.head.weight, torch.ones(3)
    with _refused(TypeError, "bias of shape (7,)"):
        observe(crooked, x, y)
    assert next(iter(side.optimizer.lip.state_dict().values()))["pending"] == ()
    for _ in range(64):
        observe(side.head, x, y)
    with _refused(RuntimeError, "64 times without a step"):
        observe(side.head, x, y)


# Other heads --------------------------------------------------------------------------------------------


@ours
@implementations
@lips
def test_bfloat16_weights(optimizer: type, options: dict, lip: dict) -> None:
    ours_, base = (Side(cls, options, lip, dtype=torch.bfloat16) for cls in (optimizer, BASES[optimizer]))
    assert_equal(ours_.steps(0, 7), base.steps(0, 7))
    assert ours_.optimizer.lip.stats()["0"]["applied"] == 5


@ours
def test_a_weight_tied_to_an_embedding_has_no_bias(optimizer: type) -> None:
    embedding, head = nn.Embedding(L, Q, _weight=random((L, Q), 0)), linear(Q, L, bias=False)
    head.weight = embedding.weight
    plug_in_head = linear(Q, L, bias=False)
    plug_in_head.weight = nn.Parameter(head.weight.detach().clone())
    made, base = optimizer([head.weight], lip_rank=3), BASES[optimizer](plug_in_head.parameters())
    plug_in = LIP(plug_in_head, 3)
    plug_in.attach(base)
    for i in range(3):
        x, y = _batch(i)
        made.observe(embedding if i == 1 else head, x, y)
        plug_in.observe(x, y)
        head.weight.grad = plug_in_head.weight.grad = random((L, Q), i)
        made.step()
        base.step()
    assert torch.equal(head.weight, plug_in_head.weight)
    assert made.lip.state_dict()["0"]["bias"] == ()


@ours
def test_a_bias_that_another_optimizer_trains(optimizer: type) -> None:
    head, fresh = linear(Q, L, bias=True), linear(Q, L, bias=True)
    made, resumed = optimizer([head.weight], lip_rank=3), optimizer([fresh.weight], lip_rank=3)
    made.observe(head, *_batch(0))
    state = made.lip.state_dict()
    (saved,) = state["0"]["bias"]
    assert torch.equal(saved, head.bias)
    resumed.lip.load_state_dict(state)
    for p in (head.weight, fresh.weight):
        p.grad = torch.ones_like(p)
    made.step()
    resumed.step()
    assert torch.equal(head.weight, fresh.weight)
    plain = BASES[optimizer]([linear(Q, L, bias=True).weight])
    plain.param_groups[0]["params"][0].grad = torch.ones(L, Q)
    plain.step()
    assert not torch.equal(head.weight, plain.param_groups[0]["params"][0])


@ours
@lips
def test_nothing_of_the_global_random_state_is_used(optimizer: type, lip: dict) -> None:
    expected = Side(optimizer, {}, lip).steps(0, 3).values
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(99)
        assert same(Side(optimizer, {}, lip).steps(0, 3).values, expected)
    tracked = {"rank": 2, "tail_rank": 1}
    seeds = [Side(optimizer, {"seed": s}, tracked, dtype=torch.bfloat16).steps(0, 3) for s in (1, 1, 2)]
    assert same(seeds[0].values, seeds[1].values)
    assert not same(seeds[0].values, seeds[2].values)


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
@pytest.mark.parametrize("skip", [False, True])
@ours
def test_a_compiled_step_is_the_same(optimizer: type, skip: bool) -> None:
    plain, run = (Side(optimizer, {"skip_nonfinite": skip}, LIPS["tracked"]) for _ in range(2))
    base = Side(BASES[optimizer], {}, LIPS["tracked"])
    compiled = (run,) if skip else (run, base)
    steps = {side: torch.compile(side.optimizer.step, backend="aot_eager") for side in compiled}
    steps[plain] = plain.optimizer.step
    for i in (0, 1, 5, 6):
        for side, step in steps.items():
            side.gradients(i)
            side.show(i)
            step()
        if skip or optimizer is LIPSGD:
            assert_equal(run, plain)
        if not skip:
            # Compiled, torch's AdamW computes in another order.
            assert_equal(run, base)
        assert all(relative_error(a, b) < 1e-5 for a, b in zip(run.values, plain.values, strict=True))
    assert run.optimizer.lip.stats() == plain.optimizer.lip.stats()
    assert run.optimizer.lip.stats()["0"]["applied"] == 4
    torch.compiler.reset()


# Gradients that are not finite --------------------------------------------------------------------------


@hostile
@ours
@implementations
@lips
@pytest.mark.parametrize("where", ["head", "beside", "first"])
@pytest.mark.parametrize("value", [torch.nan, torch.inf, -torch.inf], ids=str)
def test_a_gradient_that_is_not_finite_is_no_step(
    optimizer: type, options: dict, lip: dict, where: str, value: float
) -> None:
    side = Side(optimizer, options | {"skip_nonfinite": True}, lip)
    expected = Side(optimizer, options | {"skip_nonfinite": False}, lip)
    steps = [0, 1, 5, 6]
    if where == "first":
        steps = [5, 0, 1, 6]
    for i in steps:
        if i != 5:
            expected.step(i)
            side.step(i)
            continue
        before, state = side.values, copy.deepcopy(side.optimizer.state_dict())
        side.gradients(i)
        side.show(i)
        (side.others[0] if where == "beside" else side.head.weight).grad[1, 1] = value
        side.optimizer.step()
        assert same(side.values, before)
        assert same(side.optimizer.state_dict(), state)
        assert side.lip_state["pending"] == ()
        assert side.optimizer.lip.stats()["0"]["skipped"] == 1
        assert not hasattr(side.optimizer, "found_inf")
    if "decay" not in lip:  # the random columns of a later step are others
        assert same(side.values, expected.values)
    stats = side.optimizer.lip.stats()["0"]
    assert (stats["steps"], stats["applied"], stats["skipped"]) == (4, 3, 1)


@hostile
@ours
@implementations
def test_without_the_option_it_is_torchs_step(optimizer: type, options: dict) -> None:
    sides = [Side(cls, options, LIPS["exact"]).steps(0, 2) for cls in (optimizer, BASES[optimizer])]
    for side in sides:
        side.gradients(5)
        side.show(5)
        side.others[0].grad[0, 0] = torch.nan
        side.head.weight.grad[0, 0] = torch.inf
        side.optimizer.step()
    assert_equal(*sides)
    assert sides[0].others[0].isnan().any()
    # The weight was not finite, so that LIP has not been taken; nor does it make more of it.
    assert sides[0].optimizer.lip.stats()["0"]["not_finite"] == 1


@hostile
@pytest.mark.parametrize("foreach", [False, True])
def test_what_is_checked_of_sparse_and_other_gradients(foreach: bool) -> None:
    weight, head = nn.Parameter(random((6, 4), 1)), linear(Q, L, bias=True)
    empty = nn.Parameter(torch.ones(0, 3))
    half = nn.Parameter(random((3,), 2, torch.float16))
    made = LIPSGD(
        [{"params": [weight, empty, half, head.bias]}, {"params": [head.weight], "lip_rank": 3}],
        lr=0.1,
        skip_nonfinite=True,
        foreach=foreach,
    )
    parameters = [weight, empty, half, head.weight, head.bias]
    for i, value in enumerate([1.0, torch.nan, torch.inf, 3e38, 2.0]):
        before = [p.detach().clone() for p in parameters]
        for p in parameters:
            p.grad = torch.ones_like(p)
        # Of six rows one has two entries, which are added up (3e38 twice is infinite), four have none; the
        # last time all of them.
        indices, values = torch.tensor([[0, 2, 2]]), torch.full((3, 4), value)
        if i == 4:
            indices, values = indices[:, :0], values[:0]
        weight.grad = torch.sparse_coo_tensor(indices, values, (6, 4), check_invariants=True)
        made.observe(head, *_batch(i))
        made.step()
        moved = [not torch.equal(p, b) for p, b in zip(parameters, before, strict=True)]
        finite = value in (1.0, 2.0)
        assert moved == [finite and i != 4, False, finite, finite, finite]
    stats = made.lip.stats()["4"]
    assert (stats["applied"], stats["skipped"]) == (2, 3)


@hostile
def test_large_gradients_are_finite() -> None:
    # Their squares are not: a norm of them would be infinite.
    for value, dtype in ((1e30, torch.float32), (6e4, torch.float16), (1e38, torch.bfloat16)):
        p = nn.Parameter(torch.ones(3, dtype=dtype))
        made = LIPSGD([p], lr=1e-3, skip_nonfinite=True)
        p.grad = torch.full((3,), value, dtype=dtype)
        made.step()
        assert not torch.equal(p, torch.ones_like(p))


@hostile
@ours
@implementations
def test_strict_tells_what_was_unsound_after_every_head_had_its_step(optimizer: type, options: dict) -> None:
    if options not in implementations_of(optimizer):
        pytest.skip("torch has no fused NAdam")

    def make(a: nn.Linear, b: nn.Linear) -> torch.optim.Optimizer:
        groups = [{"params": [a.weight], "lip_rank": 3}, {"params": [b.weight], "lip_rank": 3}]
        return optimizer([{"params": [a.bias, b.bias]}, *groups], strict=True, **options)

    run = Heads(make).steps(0, 1)
    x, y = _batch(1)
    x[0, 0] = torch.nan
    plain = copy.deepcopy(run)
    for r in (run, plain):  # copies of parameters have no gradients
        _gradients(r.heads, 1)
    for group in plain.optimizer.param_groups:
        group["lip_rank"] = None
    plain.optimizer.step()
    run.optimizer.observe(run.heads[0], x, y)
    run.optimizer.observe(run.heads[1], *_batch(2, 5, 9))
    with _refused(LIPError, "not_finite"):
        run.optimizer.step()
    # The first is the base optimizer's, the second was repaired all the same.
    assert torch.equal(run.heads[0].weight, plain.heads[0].weight)
    assert torch.equal(run.heads[1].bias, plain.heads[1].bias)
    assert not torch.equal(run.heads[1].weight, plain.heads[1].weight)
    assert [stats["applied"] for stats in run.optimizer.lip.stats().values()] == [1, 2]


def test_a_fused_optimizer_elsewhere_is_told_on_the_device(arithmetic: str) -> None:
    # What other devices run: the step is called and skips inside.
    for value in (1.0, torch.nan):
        side = Side(LIPAdamW, {"fused": True, "skip_nonfinite": True}, LIPS["exact"]).steps(0, 2)
        base = Side(torch.optim.AdamW, {"fused": True}, LIPS["exact"]).steps(0, 2)
        before, calls = side.values, []
        original = side.optimizer._base_step
        side.optimizer._base_step = lambda call=original, to=calls: (to.append(1), call())
        side.gradients(5)
        side.show(5)
        side.others[1].grad[0, 0] *= value
        side.optimizer.step()
        assert not hasattr(side.optimizer, "found_inf")
        assert len(calls) == (arithmetic == "device" or value == 1.0)
        if value == 1.0:
            assert_equal(side, base.steps(5, 6))
        else:
            assert same(before, side.values)
            assert side.optimizer.lip.stats()["0"]["skipped"] == 1
            assert {int(s["step"]) for s in side.optimizer.state.values()} == {2}


@ours
def test_an_overflow_that_a_scaler_found_counts_beside_the_gradients(
    optimizer: type, arithmetic: str
) -> None:
    # The gradients are finite here.
    side = Side(optimizer, {"fused": True, "skip_nonfinite": True}, LIPS["exact"]).steps(0, 2)
    before, state = side.values, copy.deepcopy(side.optimizer.state_dict()["state"])
    given = side.optimizer.found_inf = torch.ones(())
    side.step(5)
    assert side.optimizer.found_inf is given
    assert given == 1
    assert same(before, side.values)
    assert same(state, side.optimizer.state_dict()["state"])
    assert side.optimizer.lip.stats()["0"]["skipped"] == 1
