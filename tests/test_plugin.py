"""LIP attached to an optimizer: when it acts, what it writes, and what it refuses."""

import copy
import io
import warnings
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from problems import gapped_matrix, linear, problem, relative_error

from lip_fast import LIP, LIPError, ops, reference
from lip_fast.status import NAMES

OPTIMIZERS = {
    "sgd": lambda p: torch.optim.SGD(p, lr=0.1),
    "momentum": lambda p: torch.optim.SGD(p, lr=0.1, momentum=0.9),
    "adam": lambda p: torch.optim.Adam(p, lr=0.01),
    "adamw fused": lambda p: torch.optim.AdamW(p, lr=0.01, fused=True),
    "adamw foreach": lambda p: torch.optim.AdamW(p, lr=0.01, foreach=True),
    "rmsprop": lambda p: torch.optim.RMSprop(p, lr=0.01),
}
Q, L, N = 20, 7, 64


class Run:
    """A head with data and gradients that do not depend on the weight, so that two runs can be compared."""

    def __init__(self, name: str = "adamw fused", *, dtype: torch.dtype = torch.float32, bias: bool = True):
        self.head = linear(Q, L, bias=bias, dtype=dtype)
        self.optimizer = OPTIMIZERS[name](self.head.parameters())
        _, self.X, self.y, self.Y, _ = problem(Q, L, N, dtype=dtype)
        self._generator = torch.Generator().manual_seed(0)

    def gradients(self) -> None:
        for p in self.head.parameters():
            p.grad = torch.randn(p.shape, generator=self._generator).to(p.dtype) / 10

    def step(self, lip: LIP | None = None) -> None:
        self.gradients()
        if lip is not None:
            lip.observe(self.X, self.y)
        self.optimizer.step()

    @property
    def weight(self) -> torch.Tensor:
        return self.head.weight.detach().clone()


@pytest.mark.parametrize("name", list(OPTIMIZERS))
def test_a_step_is_the_base_step_and_then_lip(name: str) -> None:
    base, run = Run(name), Run(name)
    lip = LIP(run.head, 3)
    lip.attach(run.optimizer)
    base.step()
    run.step(lip)
    expected = reference.lip_step(
        base.weight.double(), run.X.double(), run.Y.double(), 3, bias=base.head.bias.detach().double()
    )
    assert relative_error(run.weight, expected) < 1e-5
    assert torch.equal(run.head.bias, base.head.bias)
    stats = lip.stats()
    assert 0 <= stats.pop("clipped") <= 4
    counted = {"steps": 1, "applied": 1, "skipped": 0, "masked": 0, "empty": 0, "rank": 3}
    assert stats == counted | dict.fromkeys(NAMES, 0) | {"gamma": None, "removed": None}


def _reasons(lip: LIP) -> dict[str, int]:
    """Counts of the reasons that were found, without those that were not."""
    return {name: count for name, count in lip.stats().items() if name in NAMES and count}


def _same_as_base(run: Run, base: Run, lip: LIP | None) -> None:
    """One more step of both leaves both with the same bits."""
    base.step()
    run.step(lip)
    assert torch.equal(run.weight, base.weight)


def test_without_observations_it_is_the_base_step() -> None:
    base, run = Run(), Run()
    lip = LIP(run.head, 3)
    lip.attach(run.optimizer)
    _same_as_base(run, base, None)
    assert lip.stats()["applied"] == 0


def test_every_and_start_choose_the_steps() -> None:
    run = Run()
    lip = LIP(run.head, 3, every=3, start=2)
    lip.attach(run.optimizer)
    acted = []
    for _ in range(10):
        before = lip.stats()["applied"]
        run.step(lip)
        acted.append(lip.stats()["applied"] > before)
    assert [i for i, a in enumerate(acted) if a] == [2, 5, 8]


def test_steps_left_out_are_the_base_step_and_discard_what_was_observed() -> None:
    base, run = Run(), Run()
    lip = LIP(run.head, 3, start=2)
    lip.attach(run.optimizer)
    _same_as_base(run, base, lip)
    _same_as_base(run, base, lip)
    assert lip.state_dict()["pending"] == ()
    base.step()
    run.step(lip)
    assert not torch.equal(run.weight, base.weight)


def test_micro_batches_count_as_one_batch() -> None:
    whole, parts = Run(), Run()
    a, b = LIP(whole.head, 3), LIP(parts.head, 3)
    a.attach(whole.optimizer)
    b.attach(parts.optimizer)
    whole.step(a)
    parts.gradients()
    b.observe(parts.X[:30], parts.y[:30])
    b.observe(parts.X[30:], parts.Y[30:])  # even in another form
    parts.optimizer.step()
    assert relative_error(parts.weight, whole.weight) < 1e-6


def test_a_step_with_zero_learning_rate_keeps_the_observations() -> None:
    run = Run("sgd")
    lip = LIP(run.head, 3)
    lip.attach(run.optimizer)
    before = run.weight
    for zero in (0.0, torch.tensor(0.0)):
        run.optimizer.param_groups[0]["lr"] = zero
        run.step(lip)
        assert torch.equal(run.weight, before)
    assert lip.stats()["steps"] == 0
    run.optimizer.param_groups[0]["lr"] = 0.1
    run.gradients()
    run.optimizer.step()
    assert lip.stats()["applied"] == 1


def test_a_frozen_head_is_left_alone_however_long() -> None:
    run = Run("sgd")
    run.head.weight.requires_grad_(False)
    lip = LIP(run.head, 3)
    lip.attach(run.optimizer)
    before = run.weight
    for _ in range(100):
        lip.observe(run.X, run.y)
        run.optimizer.step()
    assert torch.equal(run.weight, before)
    assert lip.state_dict()["pending"] == ()
    assert lip.stats()["steps"] == 0


def test_an_overflow_found_by_the_scaler_skips() -> None:
    run = Run("adamw fused")
    lip = LIP(run.head, 3, strict=True)
    lip.attach(run.optimizer)
    run.step(lip)
    before = run.weight
    run.optimizer.found_inf = torch.tensor(1.0)
    run.optimizer.grad_scale = torch.tensor(1.0)
    run.step(lip)
    assert torch.equal(run.weight, before)
    assert lip.stats()["skipped"] == 1
    assert _reasons(lip) == {}
    run.optimizer.found_inf = torch.tensor(0.0)
    run.step(lip)
    assert lip.stats()["applied"] == 2


@pytest.mark.parametrize("options", [{}, {"decay": 0.9}, {"tail": "zero"}, {"tail_rank": 2}], ids=str)
@pytest.mark.usefixtures("arithmetic")
def test_an_overflow_found_by_the_scaler_is_no_fault_of_what_was_observed(options: dict) -> None:
    run = Run("adamw fused")
    lip = LIP(run.head, 3, **options)
    lip.attach(run.optimizer)
    run.optimizer.found_inf = torch.tensor(1.0)
    run.optimizer.grad_scale = torch.tensor(1.0)
    run.X[2, 2] = float("inf")
    run.step(lip)
    assert (lip.stats()["skipped"], _reasons(lip)) == (1, {})
    run.optimizer.found_inf = torch.tensor(0.0)
    run.step(lip)
    assert (lip.stats()["skipped"], _reasons(lip)) == (2, {"not_finite": 1})


@pytest.mark.parametrize("ranks", [(3, None), (3, 2)], ids=["exact", "with rest"])
@pytest.mark.parametrize("decay", [None, 0.9])
@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_unsound_input_leaves_the_base_step(
    bad: float, decay: float | None, ranks: tuple[int, int | None]
) -> None:
    base, run = Run(), Run()
    lip = LIP(run.head, ranks[0], tail_rank=ranks[1], decay=decay)
    lip.attach(run.optimizer)
    X = run.X
    run.X = X.clone()
    run.X[5, 5] = bad
    _same_as_base(run, base, lip)
    assert lip.stats()["skipped"] == 1
    assert _reasons(lip) == {"not_finite": 1}
    run.X = X
    run.step(lip)
    assert lip.stats()["applied"] == 1
    assert torch.isfinite(run.weight).all()


def test_an_unsound_gradient_is_the_base_optimizers_business() -> None:
    base, run = Run(), Run()
    lip = LIP(run.head, 3)
    lip.attach(run.optimizer)
    for r in (base, run):
        r.gradients()
        r.head.weight.grad[2, 2] = float("nan")
    lip.observe(run.X, run.y)
    base.optimizer.step()
    run.optimizer.step()
    assert torch.equal(run.weight.nan_to_num(7), base.weight.nan_to_num(7))
    assert lip.stats()["skipped"] == 1
    assert _reasons(lip) == {"not_finite": 1}


@pytest.mark.parametrize("word", [*NAMES.values(), 5], ids=[*NAMES, "two at once"])
@pytest.mark.parametrize("truncated", [True, False], ids=["truncated", "exact"])
@pytest.mark.usefixtures("arithmetic")
def test_each_reason_of_a_decomposition_is_counted_and_named(
    word: int, truncated: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    head, X, y = _wide()
    # Not class indices, with which a warm step on a host is one call that asks no op.
    y = torch.nn.functional.one_hot(y, len(head.weight)).float()
    optimizer = torch.optim.SGD(head.parameters(), lr=0.1)
    lip = LIP(head, 5, tail_rank=4 if truncated else None)
    strict = LIP(head, 5, tail_rank=4 if truncated else None, strict=True)
    _apply(lip, X, y)
    name = "warm_svd" if truncated else "tail_svd"
    sound = getattr(ops, name)
    monkeypatch.setattr(ops, name, lambda *a, **k: sound(*a, **k)._replace(status=torch.tensor(word)))
    before = head.weight.detach().clone()
    expected = {name: 1 for name, bit in NAMES.items() if word & bit}
    with lip.attach(optimizer):
        head.weight.grad = torch.zeros_like(head.weight)
        lip.observe(X, y)
        optimizer.step()
    assert torch.equal(head.weight, before)
    assert (lip.stats()["applied"], lip.stats()["skipped"], _reasons(lip)) == (1, 1, expected)
    strict.observe(X, y)
    with pytest.raises(LIPError, match=f"LIP was skipped: {', '.join(expected)} "):
        strict.apply()
    other = LIP(head, 5, tail_rank=4 if truncated else None)
    other.load_state_dict(lip.state_dict())
    assert _reasons(other) == expected


@pytest.mark.parametrize("options", [{}, {"decay": 0.9}, {"tail": "zero"}, {"tail_rank": 2}], ids=str)
@pytest.mark.parametrize("broken", ["features", "targets", "weight", "overflow of the result"])
@pytest.mark.usefixtures("arithmetic")
def test_whatever_is_not_finite_is_counted_once(broken: str, options: dict) -> None:
    head, X, _ = _wide(torch.float16)
    Y = torch.rand(len(X), 40, generator=torch.Generator().manual_seed(0))
    lip = LIP(head, 5, clip=False, **options)
    if broken == "weight":
        with torch.no_grad():
            head.weight[3, 3] = float("nan")
    elif broken == "overflow of the result":
        if options.get("tail") == "zero":
            pytest.skip("zeros do not overflow")
        X, Y = X / 1e3, Y * 1e6
    else:
        (X if broken == "features" else Y)[3, 3] = float("nan")
    before = head.weight.detach().clone()
    _apply(lip, X, Y)
    assert torch.equal(head.weight.nan_to_num(7), before.nan_to_num(7))
    assert (lip.stats()["skipped"], _reasons(lip)) == (1, {"not_finite": 1})


def test_a_weight_without_a_spectrum_has_a_reason() -> None:
    run = Run()
    lip = LIP(run.head, "auto")
    with torch.no_grad():
        run.head.weight.fill_(float("nan"))
    _apply(lip, run.X, run.y)
    assert (lip.stats()["rank"], _reasons(lip)) == (None, {"not_finite": 1})


def test_strict_raises_and_the_weight_is_the_base_steps() -> None:
    base, run = Run(), Run()
    lip = LIP(run.head, 3, strict=True)
    lip.attach(run.optimizer)
    run.X[0, 0] = float("nan")
    base.step()
    with pytest.raises(LIPError, match="LIP was skipped: not_finite "):
        run.step(lip)
    assert torch.equal(run.weight, base.weight)


def test_decay_averages_over_steps() -> None:
    run = Run()
    lip = LIP(run.head, 3, decay=0.5)
    lip.attach(run.optimizer)
    X, y, Y = run.X, run.y, run.Y
    run.X, run.y = X[:20], y[:20]
    run.step(lip)
    base = Run()
    base.head.load_state_dict(run.head.state_dict())
    # A copy: load_state_dict shares the tensors it is given.
    base.optimizer.load_state_dict(copy.deepcopy(run.optimizer.state_dict()))
    base._generator.set_state(run._generator.get_state())
    base.step()
    run.X, run.y = X[20:], y[20:]
    run.step(lip)
    # Rows weighed by the root of their weight have the weighed sums.
    root = torch.full((N, 1), 1.0, dtype=torch.float64)
    root[:20] = 0.5**0.5
    target = (Y.double() - base.head.bias.detach().double()) * root
    expected = reference.lip_step(base.weight.double(), X.double() * root, target, 3)
    assert relative_error(run.weight, expected) < 1e-5


def test_apply_works_without_an_optimizer() -> None:
    run = Run(bias=False)
    lip = LIP(run.head, 3, start=100)
    before = run.weight
    with pytest.raises(RuntimeError, match="call observe"):
        lip.apply()
    lip.observe(run.X, run.y)
    lip.apply()
    expected = reference.lip_step(before.double(), run.X.double(), run.Y.double(), 3)
    assert relative_error(run.weight, expected) < 1e-5
    assert lip.stats()["applied"] == 1


def test_rank_as_fraction_and_auto() -> None:
    run = Run()
    for rank, expected in [(0.5, 4), (1.0, 7), (0.01, 1), (0, 0), (7, 7)]:
        assert LIP(run.head, rank).stats()["rank"] == expected
    auto = LIP(run.head, "auto")
    assert auto.stats()["rank"] is None
    with torch.no_grad():
        U, _, Vh = torch.linalg.svd(run.head.weight, full_matrices=False)
        run.head.weight.copy_(U * torch.tensor([9.0, 5, 3, 0.1, 0.1, 0.1, 0.1]) @ Vh)
    auto.observe(run.X, run.y)
    auto.apply()
    assert auto.stats()["rank"] == 3


def test_bfloat16_keeps_updates_below_half_a_unit() -> None:
    run = Run("sgd", dtype=torch.bfloat16)
    lip = LIP(run.head, 3)
    lip.attach(run.optimizer)
    for _ in range(5):
        run.step(lip)
    assert lip.stats()["applied"] == 5
    assert run.head.weight.dtype == torch.bfloat16
    other = Run("sgd", dtype=torch.bfloat16)
    lip = LIP(other.head, 3)
    lip.attach(other.optimizer)
    for _ in range(5):
        other.step(lip)
    assert torch.equal(run.weight, other.weight)  # same seed, same bits


def test_features_of_more_dimensions() -> None:
    flat, deep = Run(), Run()
    a, b = LIP(flat.head, 3), LIP(deep.head, 3)
    a.observe(flat.X, flat.y)
    b.observe(deep.X.reshape(4, 16, Q), deep.y.reshape(4, 16))
    a.apply()
    b.apply()
    assert torch.equal(flat.weight, deep.weight)


def test_features_are_detached() -> None:
    run = Run()
    lip = LIP(run.head, 3)
    lip.observe(run.X.requires_grad_(), run.y)
    assert not lip.state_dict()["pending"][0]["features"].requires_grad


@pytest.mark.parametrize("ranks", [(3, None, None), (3, 2, None), (3, None, 0.9)], ids=str)
def test_state_resumes_bit_exactly_in_the_middle(ranks: tuple) -> None:
    def wide() -> Run:
        run = Run()
        run.head = linear(60, 40)
        run.optimizer = OPTIMIZERS["adamw fused"](run.head.parameters())
        _, run.X, run.y, run.Y, _ = problem(60, 40, N, dtype=torch.float32)
        return run

    rank, tail_rank, decay = ranks
    straight = wide()
    lip = LIP(straight.head, rank, tail_rank=tail_rank, decay=decay)
    lip.attach(straight.optimizer)
    for _ in range(3):
        straight.step(lip)
    straight.gradients()
    lip.observe(straight.X, straight.y)
    lip.observe(straight.X, straight.Y.to_sparse())
    saved = io.BytesIO()
    torch.save(
        {
            "head": straight.head.state_dict(),
            "optimizer": straight.optimizer.state_dict(),
            "lip": lip.state_dict(),
            "gradient": straight.head.weight.grad,
            "generator": straight._generator.get_state(),
        },
        saved,
    )
    saved.seek(0)
    state = torch.load(saved, weights_only=True)
    resumed = wide()
    resumed.head.load_state_dict(state["head"])
    resumed.optimizer.load_state_dict(state["optimizer"])
    resumed._generator.set_state(state["generator"])
    resumed.head.weight.grad = state["gradient"]
    other = LIP(resumed.head, rank, tail_rank=tail_rank, decay=decay)
    other.attach(resumed.optimizer)
    other.load_state_dict(state["lip"])
    for run, plugin in ((straight, lip), (resumed, other)):
        run.optimizer.step()
        for _ in range(3):
            run.step(plugin)
    assert torch.equal(straight.weight, resumed.weight)
    assert lip.stats() == other.stats()
    with pytest.raises(ValueError, match="same decay"):
        LIP(resumed.head, rank, decay=0.5 if decay is None else None).load_state_dict(state["lip"])


# The handle ---------------------------------------------------------------------------------------------


def test_removing_the_handle_detaches() -> None:
    base, run = Run(), Run()
    lip = LIP(run.head, 3)
    handle = lip.attach(run.optimizer)
    handle.remove()
    _same_as_base(run, base, lip)
    with lip.attach(run.optimizer):
        run.step(lip)
        base.step()
    assert lip.stats()["applied"] == 1
    with pytest.raises(RuntimeError, match="not attached"), lip.attach(run.optimizer):
        lip.attach(run.optimizer)


@pytest.mark.parametrize("original", ["there", "gone"])
def test_copies_of_an_optimizer_are_plain_and_said_to_be(original: str) -> None:
    run = Run()
    lip = LIP(run.head, 3)
    lip.attach(run.optimizer)
    first = run.optimizer
    run.head, run.optimizer = copy.deepcopy((run.head, run.optimizer))
    if original == "gone":
        del first
    for _ in range(64 if original == "there" else 0):
        run.step(lip)
    told = "64 times without a step.*took no part" if original == "there" else "is gone"
    with pytest.raises(RuntimeError, match=rf"{told}.*attach\(copy\)"):
        run.step(lip)
    other = LIP(run.head, 3)
    other.attach(run.optimizer)
    run.step(other)
    assert other.stats()["applied"] == 1


def test_backward_through_the_weight_before_a_step_raises() -> None:
    run = Run()
    lip = LIP(run.head, 3)
    loss = run.head(run.X.clone().requires_grad_()).sum()
    lip.observe(run.X, run.y)
    lip.apply()
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        loss.backward()


def test_a_replaced_head_is_named() -> None:
    run = Run()
    lip = LIP(run.head, 3)
    lip.attach(run.optimizer)
    run.head.weight = torch.nn.Parameter(run.weight)
    with pytest.raises(RuntimeError, match="the head was replaced"):
        run.optimizer.step()


def test_attach_refuses_what_it_cannot_serve() -> None:
    run, other = Run(), Run()
    lip = LIP(run.head, 3)
    with pytest.raises(ValueError, match="holds the head's weight"):
        lip.attach(other.optimizer)
    with pytest.raises(TypeError, match=r"inner optimizer.*got object"):
        lip.attach(object())


# Bad arguments ------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"rank": 8}, ValueError, r"expected rank in 0\.\.7, got 8"),
        ({"rank": -1}, ValueError, r"expected rank in 0\.\.7, got -1"),
        ({"rank": 1.5}, ValueError, r"rank fraction in \(0, 1\], got 1.5"),
        ({"rank": "most"}, ValueError, r"int, a fraction or .auto., got 'most'"),
        ({"rank": None}, TypeError, "expected rank as an int, got NoneType"),
        ({"tail_rank": -2}, ValueError, "expected tail_rank >= 0, got -2"),
        ({"tail_rank": 2.0}, TypeError, "expected tail_rank as an int"),
        ({"tail": "refine"}, ValueError, r"tail to be one of \('refit', 'zero'\), got 'refine'"),
        ({"rest": "lose"}, ValueError, r"rest to be one of \('keep', 'drop'\), got 'lose'"),
        ({"every": 0}, ValueError, "expected every >= 1, got 0"),
        ({"start": -1}, ValueError, "expected start >= 0, got -1"),
        ({"seed": 2**63}, ValueError, "expected seed in 0"),
        ({"decay": 1.0}, ValueError, r"decay in \(0, 1\) or None, got 1.0"),
        ({"data_group": object()}, TypeError, "data_group as a torch.distributed.ProcessGroup or DeviceMesh"),
        ({"head": torch.nn.Conv2d}, TypeError, "head with a 2-D weight"),
        ({"head": torch.nn.LayerNorm(4)}, TypeError, r"2-D weight.*LayerNorm with weight.*\(4,\)"),
    ],
)
def test_bad_arguments_are_named(arguments: dict, error: type, message: str) -> None:
    with pytest.raises(error, match=message):
        LIP(**({"head": linear(Q, L), "rank": 3} | arguments))


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"features": torch.ones(4, 19)}, ValueError, r"\(\.\.\., 20\), got \(4, 19\)"),
        ({"features": torch.ones(20)}, ValueError, r"\(\.\.\., 20\), got \(20,\)"),
        ({"features": torch.ones(4, 20).long()}, TypeError, "floating-point features"),
        ({"features": [1.0]}, TypeError, "floating-point features.*got list"),
        ({"features": torch.ones(4, 20, device="meta")}, ValueError, "features on cpu.*got meta"),
        ({"targets": torch.zeros(5, dtype=torch.int64)}, ValueError, "expected 4 class indices.*got 5"),
        ({"targets": torch.full((4,), 7)}, ValueError, r"class indices in 0\.\.6 .*got 7 at row 0"),
        ({"targets": torch.zeros(4)}, TypeError, "class indices as int64, got torch.float32"),
        ({"targets": torch.zeros(4, 6)}, ValueError, r"\(4,\) or \(4, 7\), got \(4, 6\)"),
        ({"features": torch.ones(2, 2, 20)}, ValueError, r"class indices of shape \(2, 2\), got \(4,\)"),
    ],
)
def test_bad_observations_are_named_and_not_kept(arguments: dict, error: type, message: str) -> None:
    lip = LIP(linear(Q, L), 3)
    good = {"features": torch.ones(4, 20), "targets": torch.zeros(4, dtype=torch.int64)}
    with pytest.raises(error, match=message):
        lip.observe(**(good | arguments))
    assert lip.state_dict()["pending"] == ()


def test_no_warning_in_an_ordinary_run() -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        run = Run()
        lip = LIP(run.head, 3)
        lip.attach(run.optimizer)
        run.step(lip)


# What a step must survive ---------------------------------------------------------------------------------


def _wide(dtype: torch.dtype = torch.float32) -> tuple[torch.nn.Linear, torch.Tensor, torch.Tensor]:
    _, X, y, _, _ = problem(60, 40, N, dtype=dtype)
    return linear(60, 40, dtype=dtype), X, y


def _apply(lip: LIP, X: torch.Tensor, y: torch.Tensor) -> None:
    lip.observe(X, y)
    lip.apply()


@pytest.mark.parametrize(
    "options",
    [{"tail": "zero"}, {"clip": False}, {"clip": True}, {"tail_rank": 2}, {"rest": "drop", "tail_rank": 2}],
)
@pytest.mark.filterwarnings("ignore:rest=.drop. removes")
def test_options_reach_the_step(options: dict) -> None:
    run = Run(bias=False)
    before = run.weight
    scaled = 50 * run.Y  # so that clipping matters
    lip = LIP(run.head, 3, **options)
    _apply(lip, run.X, scaled)
    arguments = {"tail": "refit", "rest": "keep", "clip": True} | options
    r = arguments.pop("tail_rank", None)
    expected = reference.lip_step(before.double(), run.X.double(), scaled.double(), 3, r, **arguments)
    assert relative_error(run.weight, expected) < 1e-5


def test_the_seed_reaches_the_step() -> None:
    weights = []
    for seed in (0, 0, 1, 2**63 - 1):
        head, X, y = _wide()
        _apply(LIP(head, 5, tail_rank=4, seed=seed), X, y)
        weights.append(head.weight.detach())
    assert torch.equal(weights[0], weights[1])
    assert not torch.equal(weights[0], weights[2])


@pytest.mark.parametrize("rank", [5, "auto"])
def test_a_weight_that_is_broken_at_first_leaves_no_trace(rank: int | str) -> None:
    head, X, y = _wide()
    good = gapped_matrix(40, 60).float()
    lip = LIP(head, rank, tail_rank=4)
    with torch.no_grad():
        head.weight.fill_(float("nan"))
    _apply(lip, X, y)
    assert lip.stats()["skipped"] == 1
    fresh_head, _, _ = _wide()
    fresh = LIP(fresh_head, rank, tail_rank=4)
    with torch.no_grad():
        head.weight.copy_(good)
        fresh_head.weight.copy_(good)
    for plugin in (lip, fresh):
        _apply(plugin, X, y)
    assert lip.stats()["rank"] == fresh.stats()["rank"] > 1
    # The same start; only the fresh columns of the second step are others.
    assert relative_error(head.weight, fresh_head.weight) < 1e-3


@pytest.mark.parametrize("scale", [3e37, 1e38, 3e38])
@pytest.mark.parametrize(
    "options", [{}, {"tail_rank": 4}, {"tail_rank": 4, "rest": "drop"}, {"tail": "zero"}], ids=str
)
@pytest.mark.filterwarnings("ignore:rest=.drop. removes")
def test_a_weight_at_the_end_of_the_range_stays_finite(scale: float, options: dict) -> None:
    head, X, y = _wide()
    with torch.no_grad():
        head.weight.copy_((torch.rand(40, 60, generator=torch.Generator().manual_seed(0)) / 2 + 0.5) * scale)
    before = head.weight.detach().clone()
    lip = LIP(head, 3, **options)
    _apply(lip, X, y)
    assert torch.isfinite(head.weight).all()
    if lip.stats()["skipped"]:
        assert torch.equal(head.weight, before)


def test_a_float16_overflow_is_counted_as_skipped() -> None:
    head, _, _ = _wide(torch.float16)
    before = head.weight.detach().clone()
    X = (1e-6 * torch.randn(1, 60, generator=torch.Generator().manual_seed(0))).half()
    lip = LIP(head, 3, clip=False, strict=True)
    lip.observe(X, torch.zeros(1, dtype=torch.int64))
    with pytest.raises(LIPError):
        lip.apply()
    assert lip.stats()["skipped"] == 1
    assert torch.equal(head.weight, before)


def test_a_broken_batch_skips_even_where_nothing_is_fitted_to_it() -> None:
    run = Run()
    before = run.weight
    run.X[3, 3] = float("nan")
    lip = LIP(run.head, 3, tail="zero")
    _apply(lip, run.X, run.y)
    assert lip.stats()["skipped"] == 1
    assert torch.equal(run.weight, before)


def test_autocast_does_not_reach_the_step() -> None:
    weights = []
    for enabled in (False, True):
        head, X, y = _wide()
        with torch.autocast("cpu", dtype=torch.bfloat16, enabled=enabled):
            _apply(LIP(head, 5, tail_rank=4, decay=0.9), X, y)
        weights.append(head.weight.detach())
    assert torch.equal(*weights)


@pytest.fixture
def precisions() -> Iterator[tuple[Any, Any]]:
    """What rounds the operands of products, on GPUs and on CPUs, which a test may set."""
    cuda, cpu = torch.backends.cuda.matmul, torch.backends.mkldnn.matmul  # type: ignore[attr-defined]
    cuda.fp32_precision = cpu.fp32_precision = "none"
    yield cuda, cpu
    torch.set_float32_matmul_precision("highest")
    _set_precision_of_all("none")
    cuda.fp32_precision = cpu.fp32_precision = "none"


def _set_precision_of_all(precision: str) -> None:
    # Tests of torch, which the same process may run, forbid to set it without this.
    with torch.backends.__allow_nonbracketed_mutation():
        torch.backends.fp32_precision = precision


def test_rounded_products_do_not_reach_the_step(
    precisions: tuple[Any, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    seen = []
    label_sums = ops.label_sums

    def spy(*arguments: Any) -> Any:
        seen.append([products.fp32_precision for products in precisions])
        return label_sums(*arguments)

    monkeypatch.setattr(ops, "label_sums", spy)
    weights = []
    for precision in ("medium", "high", "highest"):
        torch.set_float32_matmul_precision(precision)
        head, X, y = _wide()
        _apply(LIP(head, 5, tail_rank=4), X, y)
        weights.append(head.weight.detach())
        # And the training goes on with its own.
        assert torch.get_float32_matmul_precision() == precision
    assert seen == [["ieee", "ieee"]] * 3
    assert torch.equal(weights[0], weights[2])
    assert torch.equal(weights[1], weights[2])


def test_a_precision_of_all_products_is_theirs_again_after_a_step(precisions: tuple[Any, Any]) -> None:
    _set_precision_of_all("tf32")
    head, X, y = _wide()
    _apply(LIP(head, 5, tail_rank=4), X, y)
    assert [products.fp32_precision for products in precisions] == ["tf32", "tf32"]
    _set_precision_of_all("ieee")
    assert [products.fp32_precision for products in precisions] == ["ieee", "ieee"]


def test_a_head_that_becomes_double_keeps_its_digits() -> None:
    head, X, y = _wide()
    lip = LIP(head, 5, tail_rank=4)
    _apply(lip, X, y)
    head.double()
    before = head.weight.detach().clone() + 1e-12
    with torch.no_grad():
        head.weight.copy_(before)
    _apply(lip, X.double(), y)
    U, _, Vh = torch.linalg.svd(before, full_matrices=False)
    # Along the kept directions nothing was rounded to float32.
    kept = torch.diagonal(U[:, :3].mT @ head.weight.detach() @ Vh[:3].mT)
    assert torch.allclose(kept, torch.linalg.svdvals(before)[:3], rtol=1e-7)


def test_a_state_of_another_lip_is_refused_and_changes_nothing() -> None:
    head, X, y = _wide()
    lip = LIP(head, 5, tail_rank=4)
    _apply(lip, X, y)
    state = lip.state_dict()
    for other in (LIP(head, 6, tail_rank=4), LIP(head, 5, tail_rank=3), LIP(linear(60, 39), 5, tail_rank=4)):
        with pytest.raises(ValueError, match="expected the state of"):
            other.load_state_dict(state)
        assert other.stats()["applied"] == 0
    with pytest.raises(ValueError, match=r"got no .'steps'"):
        lip.load_state_dict({})


def test_saved_observations_are_copies() -> None:
    run = Run()
    lip = LIP(run.head, 3)
    rows = run.X[:4]
    lip.observe(rows, run.y[:4])
    saved = lip.state_dict()["pending"][0]["features"]
    run.X.zero_()
    assert saved.any()
    assert saved.untyped_storage().nbytes() == saved.nbytes


def test_sparse_labels_that_cannot_be_are_refused_at_once() -> None:
    lip = LIP(linear(Q, L), 3)
    X = torch.ones(2, Q)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # torch calls its CSR tensors a beta
        csr = torch.sparse_csr_tensor([0, 1, 2], [0, L], [1.0, 1.0], (2, L), check_invariants=False)
    with pytest.raises(ValueError, match=r"columns of a label matrix in 0\.\.6"):
        lip.observe(X, csr)
    hybrid = torch.sparse_coo_tensor([[0, 1]], torch.ones(2, L), (2, L), check_invariants=False)
    with pytest.raises(TypeError, match="1 dense dimensions"):
        lip.observe(X, hybrid)


@pytest.mark.parametrize("wrong", [-1, 40, 1 << 40])
def test_a_batch_of_the_same_form_as_the_last_one_is_looked_at_too(wrong: int) -> None:
    _, lip = _observed_twice()
    features, targets = torch.ones(9, 20), torch.full((9,), 3)
    targets[4] = wrong
    with pytest.raises(ValueError, match=rf"in 0..39 .* got {wrong} at row 4"):
        lip.observe(features, targets)
    targets[4] = -100
    lip.observe(features, targets)
    lip.apply()
    assert lip.stats()["masked"] == 0


def test_a_weight_that_was_given_another_shape_is_refused() -> None:
    head, lip = _observed_twice()
    head.weight.data = torch.zeros(41, 20)
    with pytest.raises(ValueError, match=r"shape \(40, 20\) that this LIP was made for, got \(41, 20\)"):
        lip.observe(torch.ones(9, 20), torch.full((9,), 3))


def _observed_twice() -> tuple[torch.nn.Linear, LIP]:
    """A head (40, 20) and its LIP, which has seen two batches of one form."""
    head = linear(20, 40)
    lip = LIP(head, 5)
    for _ in range(2):
        lip.observe(torch.ones(9, 20), torch.full((9,), 3))
    return head, lip
