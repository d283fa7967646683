"""Updates that are a part of LIP's step: the steps of torch's optimizer followed by LIP, up to rounding.

Runs with the kernels in torch, and once more in Triton's interpreter (tests/triton_kernels).
"""

import copy
import os
from typing import Any

import pytest
import torch
from optim.fused_runs import BASES, RULES, L, Q, Run, break_step, composed, unfused
from problems import gapped_matrix, relative_error
from torch import Tensor, nn

from lip_fast import ops

# In the interpreter, where a step takes a second, those that have most of the terms.
STEPPED = ["nesterov", "adamw", "nadam"] if os.environ.get("TRITON_INTERPRET") else list(RULES)
LIPS = {
    "keep": {"lip_rank": 6, "lip_tail_rank": 5},
    "drop": {"lip_rank": 12, "lip_tail_rank": 10, "lip_rest": "drop"},
    "zero": {"lip_rank": 6, "lip_tail_rank": 5, "lip_tail": "zero"},
    "decay": {"lip_rank": 6, "lip_tail_rank": 5, "lip_decay": 0.9, "lip_every": 2},
}
pytestmark = [
    pytest.mark.filterwarnings("ignore:rest=.drop. removes"),
    # numpy, of casts in the interpreter.
    pytest.mark.filterwarnings("ignore:invalid value encountered:RuntimeWarning"),
]


def _ops(lip: str, *, narrow: bool = False) -> list[str]:
    """What a fused step calls."""
    if lip != "drop":
        return ["update_one_read_", "update_rebuild_"] if narrow else ["update_one_read_"]
    # What the weight is written from is not rounded to TF32, as it may be by a kernel that reads it once.
    return ["update_sketch_", "update_project", "update_rebuild_"] if narrow else ["update_sketch_"]


@pytest.mark.parametrize("lip", LIPS)
@pytest.mark.parametrize("rule", STEPPED)
def test_each_of_twenty_steps_is_that_of_the_plain_loop(rule: str, lip: str, fused: list[str]) -> None:
    """From the same state each time: where refitted values come close, rounding turns their directions."""
    plain = Run(rule, LIPS[lip])
    acts = 0
    for i in range(20):
        run = copy.deepcopy(plain)
        before, called = run.weight, len(fused)
        run.step(i)
        with unfused():
            plain.step(i)
        moved = torch.linalg.vector_norm(plain.weight - before)
        # Rounding (1e-6) over the gaps between the refitted values, which come as close as 1e-3 or so.
        assert torch.linalg.vector_norm(run.weight - plain.weight) < 1e-2 * moved, i
        for name, value in plain.state.items():
            assert relative_error(run.state[name], value) < 1e-6, name
        for a, b in zip(run.body.parameters(), plain.body.parameters(), strict=True):
            assert torch.equal(a, b)
        assert run.optimizer.lip.stats() == plain.optimizer.lip.stats()
        acts += fused[called:] == _ops(lip)
    # All but the first step on which LIP acts, which has no basis yet.
    assert acts == (9 if "lip_every" in LIPS[lip] else 19)
    assert plain.optimizer.lip.stats()["3"]["skipped"] == 0


@pytest.mark.parametrize("lip", ["keep", "zero"])
@pytest.mark.parametrize("rule", STEPPED)
def test_a_trajectory_of_twenty_steps(rule: str, lip: str, fused: list[str]) -> None:
    settings = LIPS[lip] | {"lip_every": 4, "lip_decay": 0.9}
    run, plain = Run(rule, settings).steps(0, 20), composed(rule, settings, 20)
    moved = torch.linalg.vector_norm(plain.weight - gapped_matrix(L, Q))
    assert torch.linalg.vector_norm(run.weight - plain.weight) < 2e-3 * moved
    assert run.optimizer.lip.stats() == plain.optimizer.lip.stats()
    assert fused == _ops(lip) * 4


@pytest.mark.parametrize("rule", RULES)
def test_where_lip_is_skipped_the_step_is_the_update_alone(rule: str, fused: list[str]) -> None:
    run, plain = Run(rule, LIPS["keep"]).steps(0, 3), Run(rule, LIPS["keep"]).steps(0, 3)
    for r in (run, plain):
        r.backward(3)
    # Features that are not finite, seen by LIP alone.
    run.optimizer.observe(run.head, torch.full((2, Q), torch.nan), torch.zeros(2, dtype=torch.int64))
    basis = run.optimizer.lip.state_dict()["3"]["subspace"]["basis"][0]
    run.optimizer.step()
    # The update alone, as torch takes it.
    weight = plain.head.weight
    base = BASES[RULES[rule][0]]([weight], **RULES[rule][1])
    base.state[weight] = copy.deepcopy(plain.optimizer.state[weight])
    base.step()
    assert relative_error(run.weight, plain.weight) < 2e-7
    assert run.optimizer.lip.stats()["3"]["not_finite"] == 1
    assert torch.equal(run.optimizer.lip.state_dict()["3"]["subspace"]["basis"][0], basis)


@pytest.mark.parametrize("rule", ["nesterov", "adamw"])
def test_an_overflow_leaves_every_bit(rule: str, fused: list[str]) -> None:
    run = Run(rule, LIPS["keep"], fused=True, **({"maximize": False} if rule == "nesterov" else {}))
    scaler = torch.amp.GradScaler("cpu", init_scale=2.0**10)
    for i in range(6):
        features = torch.tanh(run.body(run.x[i]))
        scaler.scale(nn.functional.cross_entropy(run.head(features), run.y[i])).backward()
        run.optimizer.observe(run.head, features, run.y[i])
        overflow = i == 4
        if overflow:
            run.body.weight.grad[0, 0] = torch.inf
        before, state = run.weight, run.state
        scaler.step(run.optimizer)
        scaler.update()
        run.optimizer.zero_grad()
        if overflow:
            assert torch.equal(run.weight, before)
            assert all(torch.equal(run.state[name], value) for name, value in state.items())
    assert run.optimizer.lip.stats()["3"]["skipped"] == 1


@pytest.mark.parametrize("lip", ["keep", "drop"])
@pytest.mark.parametrize("rule", ["momentum", "adamw", "nadam"])
def test_narrow_weights_are_written_once(rule: str, lip: str, fused: list[str]) -> None:
    plain = Run(rule, LIPS[lip], dtype=torch.bfloat16)
    for i in range(10):
        run = copy.deepcopy(plain)
        called = len(fused)
        run.step(i)
        with unfused():
            plain.step(i)
        if i:
            assert fused[called:] == _ops(lip, narrow=True)
        # Drawn from the two neighbours of nearly the same number; torch's was rounded once more before. All
        # that is left of it, where the rest is dropped, turns with that rounding.
        assert run.weight.dtype == torch.bfloat16
        bound = (8 if lip == "drop" else 2) * torch.finfo(torch.bfloat16).eps
        assert relative_error(run.weight, plain.weight) < bound


def test_a_gradient_that_is_not_finite_leaves_every_bit_of_nadam(fused: list[str]) -> None:
    # torch has no fused NAdam that a scaler could tell of an overflow.
    run = Run("nadam", LIPS["keep"], skip_nonfinite=True).steps(0, 3)
    run.backward(3)
    run.body.weight.grad[0, 0] = torch.inf
    before, state, called = run.weight, run.state, len(fused)
    run.optimizer.step()
    assert len(fused) == called + 1
    assert torch.equal(run.weight, before)
    assert all(torch.equal(run.state[name], value) for name, value in state.items())
    assert run.optimizer.lip.stats()["3"]["skipped"] == 1


def test_gradients_are_as_they_were(fused: list[str]) -> None:
    run = Run("adamw", LIPS["keep"]).steps(0, 2)
    run.backward(2)
    grads = {name: p.grad for name, p in run.head.named_parameters()}
    values = {name: grad.clone() for name, grad in grads.items()}
    run.optimizer.step()
    for name, p in run.head.named_parameters():
        assert p.grad is grads[name]
        assert torch.equal(p.grad, values[name])


def test_a_learning_rate_in_a_tensor(fused: list[str]) -> None:
    runs = [Run("adamw", LIPS["keep"], lr=lr, foreach=False) for lr in (0.01, torch.tensor(0.01))]
    first, second = (run.steps(0, 2).weight for run in runs)
    assert relative_error(first, second) < 1e-5
    assert fused


@pytest.mark.parametrize(
    ("options", "lip"),
    [({"differentiable": True}, {}), ({}, {"lip_tail_rank": None}), ({}, {"lip_rank": 40})],
    ids=["differentiable", "exact path", "full rank"],
)
def test_what_is_not_fused_goes_the_plain_way(
    options: dict[str, Any], lip: dict[str, Any], fused: list[str]
) -> None:
    run = Run("adamw", LIPS["keep"] | lip)
    run.optimizer.param_groups[1].update(options)
    run.steps(0, 3)
    assert not fused
    stats = run.optimizer.lip.stats()["3"]
    assert stats["applied"] + stats["empty"] == 3


def test_steps_without_observations_are_torchs_own(fused: list[str]) -> None:
    run, plain = Run("adamw", LIPS["keep"]).steps(0, 2), Run("adamw", LIPS["keep"]).steps(0, 2)
    before = len(fused)
    weight = plain.head.weight
    base = torch.optim.AdamW([weight], lr=0.01)
    base.state[weight] = copy.deepcopy(plain.optimizer.state[weight])
    for r in (run, plain):
        r.head.weight.grad = torch.ones(L, Q)
    run.optimizer.step()
    base.step()
    assert torch.equal(run.weight, plain.weight)
    assert len(fused) == before


@pytest.mark.parametrize("rule", ["momentum", "adamw"])
def test_an_unscaled_gradient_is_what_the_update_takes(rule: str, fused: list[str]) -> None:
    run, plain = Run(rule, LIPS["keep"], fused=True), Run(rule, LIPS["keep"], fused=True)
    scaler = torch.amp.GradScaler("cpu", init_scale=2.0**10)
    for i in range(3):
        run.backward(i, scale=2.0**10)
        scaler.scale(torch.zeros(1))  # as backward() has scaled
        scaler.step(run.optimizer)
        scaler.update()
        run.optimizer.zero_grad()
        plain.step(i)
    assert fused
    assert relative_error(run.weight, plain.weight) < 1e-5
    assert relative_error(next(iter(run.state.values())), next(iter(plain.state.values()))) < 1e-5


@pytest.mark.parametrize("narrow", [False, True], ids=["float32", "bfloat16"])
@pytest.mark.parametrize(
    ("lip", "where"),
    [("keep", where) for where in ("start_basis", "update_one_read_", "finish_svd", "label_sums", "refit")]
    + [("drop", where) for where in ("update_sketch_", "project")],
)
def test_an_error_half_way_leaves_a_whole_step(lip: str, where: str, narrow: bool, fused: list[str]) -> None:
    options = {"dtype": torch.bfloat16} if narrow else {}
    run, plain = (Run("adamw", LIPS[lip], **options).steps(0, 3) for _ in range(2))
    for r in (run, plain):
        r.backward(3)
    grad = run.head.weight.grad
    break_step(run, where)
    state = plain.take_base_step()
    plain.optimizer.zero_grad()
    assert run.head.weight.grad is grad
    # Triton's interpreter cuts bits off where a device rounds to nearest.
    assert relative_error(run.weight, plain.weight) < (torch.finfo(torch.bfloat16).eps if narrow else 2e-7)
    for name, value in state.items():
        assert relative_error(run.state[name], value) < (1e-2 if narrow else 1e-6), name
    # And training goes on.
    run.optimizer.zero_grad()
    run.step(4)
    assert torch.isfinite(run.weight).all()


@pytest.mark.parametrize("rule", ["momentum", "adamw", "nadam"])
def test_an_error_in_the_write_leaves_a_whole_step(
    rule: str, fused: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    run, plain = (Run(rule, LIPS["keep"], dtype=torch.bfloat16).steps(0, 3) for _ in range(2))
    write, calls = ops.update_rebuild_, 0

    def fail_once(*arguments: Any, **options: Any) -> Tensor:
        nonlocal calls
        calls += 1
        if calls == 1:
            raise torch.OutOfMemoryError("in the middle")
        return write(*arguments, **options)

    for r in (run, plain):
        r.backward(3)
    with monkeypatch.context() as patch:
        patch.setattr(ops, "update_rebuild_", fail_once)
        with pytest.raises(torch.OutOfMemoryError):
            run.optimizer.step()
    assert calls == 2
    weight = plain.head.weight
    base = BASES[RULES[rule][0]]([weight], **RULES[rule][1])
    base.state[weight] = copy.deepcopy(plain.optimizer.state[weight])
    before = plain.weight
    base.step()
    assert not torch.equal(run.weight, before)
    assert relative_error(run.weight, plain.weight) < torch.finfo(torch.bfloat16).eps


def test_an_error_of_torch_leaves_the_gradients(fused: list[str]) -> None:
    run = Run("adamw", LIPS["keep"]).steps(0, 2)
    run.backward(2)
    grad = run.head.weight.grad
    run.body.bias.grad = torch.zeros(Q).to_sparse()
    with pytest.raises(RuntimeError, match="sparse"):
        run.optimizer.step()
    assert run.head.weight.grad is grad


def test_a_learning_rate_of_zero_is_no_step_to_fuse(fused: list[str]) -> None:
    run = Run("adamw", LIPS["keep"]).steps(0, 2)
    called = len(fused)
    for group in run.optimizer.param_groups:
        group["lr"] = 0.0
    run.backward(2)
    before = run.weight
    run.optimizer.step()
    assert torch.equal(run.weight, before)
    assert len(fused) == called
    assert len(run.optimizer.lip.state_dict()["3"]["pending"]) == 1


@pytest.mark.parametrize("rule", ["momentum", "adamw", "nadam"])
def test_without_state_the_first_step_is_torchs(rule: str, fused: list[str]) -> None:
    run = Run(rule, LIPS["keep"]).steps(0, 2)
    called = len(fused)
    run.optimizer.state.clear()
    run.step(2)
    assert len(fused) == called
    run.step(3)
    assert len(fused) == called + 1


@pytest.mark.parametrize(
    ("rule", "settings"),
    [
        ("amsgrad", {"amsgrad": False}),
        ("nesterov", {"dampening": 0.1}),
        ("adamw", {"weight_decay": 0.3}),
        ("momentum", {"momentum": 0.5, "weight_decay": 0.0}),
        ("nadam", {"decoupled_weight_decay": True}),
        ("decoupled", {"momentum_decay": 0.1, "maximize": False}),
    ],
    ids=str,
)
def test_settings_that_change_are_followed_as_torch_does(
    rule: str, settings: dict[str, Any], fused: list[str]
) -> None:
    run, plain = (Run(rule, LIPS["keep"] | {"lip_every": 50}).steps(0, 3) for _ in range(2))
    for r, fuses in ((run, True), (plain, False)):
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(ops, "fuses_updates", lambda device, fuses=fuses: fuses)
            for group in r.optimizer.param_groups:
                group.update(settings)
            r.optimizer.param_groups[1]["lip_every"] = 1
            for buffer in ("max_exp_avg_sq",):
                if buffer in r.optimizer.state[r.head.weight]:
                    r.optimizer.state[r.head.weight][buffer].mul_(100)
            r.steps(3, 4)
    assert relative_error(run.weight, plain.weight) < 1e-4


@pytest.mark.parametrize("rule", ["momentum", "adamw"])
def test_twenty_steps_of_a_plain_loop_in_float64(rule: str, fused: list[str]) -> None:
    """Written out with nothing of this package but the random columns."""
    run = Run(rule, LIPS["keep"]).steps(0, 1)
    k, r = LIPS["keep"]["lip_rank"], LIPS["keep"]["lip_tail_rank"]
    settings = RULES[rule][1]
    for i in range(1, 20):
        lip = run.optimizer.lip.state_dict()["3"]["subspace"]
        run.optimizer.zero_grad()
        run.backward(i)
        features = torch.tanh(run.body(run.x[i])).detach().double()
        bias = run.head.bias.detach().double().clone()
        M, grad = run.weight.double(), run.head.weight.grad.double()
        state = {name: value.double() for name, value in run.state.items()}
        run.optimizer.step()
        # torch's bias has moved by then, as LIP's step comes after the update.
        bias = run.head.bias.detach().double()
        if rule == "adamw":
            n = state["step"] + 1
            mean = 0.9 * state["exp_avg"] + 0.1 * grad
            square = 0.999 * state["exp_avg_sq"] + 0.001 * grad**2
            M = M * (1 - settings["lr"] * 0.01)
            M = M - settings["lr"] * (mean / (1 - 0.9**n)) / ((square / (1 - 0.999**n)).sqrt() + 1e-8)
        else:
            direction = grad + settings["weight_decay"] * M
            M = M - settings["lr"] * (0.9 * state["momentum_buffer"] + 0.9 * direction)
        signs = ops.fresh_columns(lip["step"], Q, 8, seed=0).double()
        orthonormal = torch.linalg.qr(M @ torch.cat([lip["basis"][0].double(), signs], 1)).Q
        P, s, Bt = torch.linalg.svd(orthonormal.mT @ M, full_matrices=False)
        A, s, B = (orthonormal @ P)[:, : k + r], s[: k + r], Bt[: k + r].mT
        for j in range(k, k + r):
            onto = features @ B[:, j]
            label = A[run.y[i], j] - bias @ A[:, j]
            refitted = (onto @ label / (onto @ onto)).clamp(-s[k - 1], s[k - 1])
            M = M + (refitted - s[j]) * torch.outer(A[:, j], B[:, j])
        assert relative_error(run.weight, M) < 2e-4, i
