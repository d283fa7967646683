"""The step in a CUDA graph, emulated on CPU: replays are eager steps, bit for bit, and nothing is read."""

import copy
import io
from collections.abc import Callable
from typing import Any

import pytest
import torch
from capture_runs import BATCHES, OPTIMIZERS, OPTIONS, L, N, Q, Run, assert_same, same, state_of
from graph_capture import CaptureError, Graph, waiting_refused
from torch import Tensor

import lip_fast
from lip_fast import host
from lip_fast.backends.default import label_sums as label_sums_kernels
from lip_fast.backends.default.rebuild_ import rebuild_
from lip_fast.status import NAMES

pytestmark = pytest.mark.filterwarnings("ignore:rest=.drop. removes")


@pytest.fixture(autouse=True)
def _device(monkeypatch: pytest.MonkeyPatch) -> None:
    """Everything takes the ways of devices whose values are not there to be read."""
    monkeypatch.setattr(host, "READABLE", frozenset())


# Replays ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", OPTIMIZERS)
@pytest.mark.parametrize("options", OPTIONS, ids=str)
def test_replays_are_eager_steps_bit_for_bit(name: str, options: dict) -> None:
    eager, captured = Run(name, **options), Run(name, **options)
    for i in range(2):
        eager.step(i)
        captured.step(i)
    before = captured.weight
    captured.batch(2)
    captured.observe(2)
    captured.capture()
    assert torch.equal(captured.weight, before)
    assert captured.lip.stats()["steps"] == 2
    captured.graph.replay()
    eager.step(2)
    for i in range(3, BATCHES):
        eager.step(i)
        captured.replay(i)
        assert torch.equal(eager.weight, captured.weight), i
    assert_same(eager, captured)
    stats = captured.lip.stats()
    assert (stats["steps"], stats["applied"], stats["skipped"]) == (BATCHES, BATCHES, 0)


@pytest.mark.parametrize("options", OPTIONS, ids=str)
def test_eager_steps_wait_for_nothing_once_warm(options: dict) -> None:
    run = Run("adamw", **options)
    run.warm_up()
    with waiting_refused():
        for i in range(1, BATCHES):
            run.step(i)
    assert run.lip.stats()["applied"] == BATCHES + 1


def test_the_warning_of_what_is_dropped_waits_for_an_eager_step() -> None:
    eager, captured = (Run(rest="drop", tail_rank=2, rank=33) for _ in range(2))
    for run in (eager, captured):
        run.X[0] = run.X[0] * float("nan")
        run.warm_up()
    captured.capture_and_replay(1)
    eager.step(1)
    assert torch.equal(eager.weight, captured.weight)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64], ids=str)
def test_weights_of_other_dtypes(dtype: torch.dtype) -> None:
    eager, captured = Run(dtype=dtype), Run(dtype=dtype)
    eager.warm_up()
    captured.warm_up()
    eager.step(1)
    captured.capture_and_replay(1)
    for i in range(2, BATCHES):
        eager.step(i)
        captured.replay(i)
    assert_same(eager, captured)


def test_a_whole_iteration_is_captured_with_what_it_observes() -> None:
    eager, captured = Run(decay=0.9), Run(decay=0.9)
    X, y = captured.X[0].clone(), captured.y[0].clone()
    for run in (eager, captured):
        for _ in range(2):
            run.iteration(run.X[0], run.y[0])
    with captured.graph.capture():
        captured.iteration(X, y)
    for i in range(1, BATCHES):
        eager.iteration(eager.X[i], eager.y[i])
        X.copy_(captured.X[i])
        y.copy_(captured.y[i])
        captured.graph.replay()
        assert torch.equal(eager.weight, captured.weight), i
    assert_same(eager, captured)
    # The graph has what it observed; outside of it nothing has changed.
    eager.warm_up()
    captured.warm_up()
    assert_same(eager, captured)


@pytest.mark.parametrize("sparse", [False, True], ids=["dense", "csr"])
@pytest.mark.parametrize("decay", [None, 0.9])
@pytest.mark.filterwarnings("ignore:Sparse CSR tensor support is in beta")
def test_micro_batches_and_label_matrices(sparse: bool, decay: float | None) -> None:
    def observe(run: Run, i: int) -> None:
        run.observe(i)
        Y = torch.nn.functional.one_hot(run.y[i - 1], L).float() / 2
        run.lip.observe(run.X[i - 1], Y.to_sparse_csr() if sparse else Y)

    eager, captured = Run(decay=decay), Run(decay=decay)
    for run in (eager, captured):
        run.warm_up()
        run.batch(1)
        observe(run, 1)
    eager.optimizer.step()
    captured.capture()
    captured.graph.replay()
    for i in range(2, BATCHES):
        for run in (eager, captured):
            run.batch(i)
            observe(run, i)
        eager.optimizer.step()
        captured.graph.replay()
        assert torch.equal(eager.weight, captured.weight), i
    assert_same(eager, captured)


@pytest.mark.parametrize("options", OPTIONS, ids=str)
@pytest.mark.parametrize("broken", ["features", "weight"])
def test_a_broken_batch_between_replays_is_the_base_step(broken: str, options: dict) -> None:
    eager, captured = Run(**options), Run(**options)
    base = torch.optim.SGD([torch.nn.Parameter(captured.weight)], lr=0.1, momentum=0.9)
    (weight,) = base.param_groups[0]["params"]

    def base_step(i: int) -> None:
        """The base optimizer's, from where the captured run is."""
        with torch.no_grad():
            weight.copy_(captured.head.weight)
        state = captured.optimizer.state[captured.head.weight]
        base.state[weight]["momentum_buffer"] = state["momentum_buffer"].clone()
        weight.grad = captured.gradients[i].clone()
        base.step()

    for run in (eager, captured):
        run.warm_up()
        if broken == "features":
            run.X[4] = run.X[4].clone()
            run.X[4][3, 3] = float("nan")
        else:
            # The weight is finite, what is made of it is not.
            run.gradients[4] = torch.full_like(run.gradients[4], 1e38)
    eager.step(1)
    captured.capture_and_replay(1)
    for i in range(2, 4):
        eager.step(i)
        captured.replay(i)
    base_step(4)
    before = captured.lip.state_dict()
    eager.step(4)
    captured.replay(4)
    assert torch.equal(captured.weight, weight.detach())
    after = captured.lip.state_dict()
    assert same(before["subspace"]["basis"], after["subspace"]["basis"])
    if broken == "features":
        assert same(before["statistics"], after["statistics"])
        assert after["subspace"]["step"] == before["subspace"]["step"] + 1
    reasons = {name: count for name, count in captured.lip.stats().items() if name in NAMES and count}
    assert captured.lip.stats()["skipped"] == sum(reasons.values()) == 1
    if broken == "features":
        assert reasons == {"not_finite": 1}
        for i in range(5, BATCHES):
            eager.step(i)
            captured.replay(i)
        assert captured.lip.stats()["applied"] == BATCHES
    assert_same(eager, captured)


def test_limited_values_and_masked_labels_are_counted_in_replays() -> None:
    eager, captured = Run(), Run()
    for run in (eager, captured):
        run.X = [X / 50 for X in run.X]  # values 50 times as large
        run.y[5] = run.y[5].clone()
        run.y[5][:3] = torch.tensor([L, -1, -100])
    eager.warm_up()
    captured.warm_up()
    eager.step(1)
    captured.capture_and_replay(1)
    for i in range(2, BATCHES):
        eager.step(i)
        captured.replay(i)
    stats = captured.lip.stats()
    assert stats == eager.lip.stats()
    assert stats["masked"] == 2
    assert stats["clipped"] > 10


def test_what_the_scaler_or_the_learning_rate_forbids_is_told_on_the_device() -> None:
    eager, captured = Run("adamw"), Run("adamw")
    for run in (eager, captured):
        run.optimizer.found_inf = torch.tensor(0.0)
        run.warm_up()
    eager.step(1)
    captured.capture_and_replay(1)
    for i, (found_inf, lr) in enumerate([(1.0, 0.01), (0.0, 0.0), (0.0, 0.01)], start=2):
        for run in (eager, captured):
            run.optimizer.found_inf.fill_(found_inf)
            run.optimizer.param_groups[0]["lr"].fill_(lr)
        eager.step(i)
        captured.replay(i)
    assert_same(eager, captured)
    stats = captured.lip.stats()
    assert (stats["applied"], stats["skipped"]) == (4, 2)
    assert not any(stats[name] for name in NAMES)


def test_a_graph_without_observations_is_the_base_step_and_counts() -> None:
    run = Run()
    run.warm_up()
    run.batch(1)
    run.capture()
    for _ in range(3):
        run.graph.replay()
    stats = run.lip.stats()
    assert (stats["steps"], stats["applied"]) == (5, 2)


def test_a_call_is_captured_as_well() -> None:
    eager, captured = Run(), Run()
    for run in (eager, captured):
        run.warm_up()
        run.observe(1)
    with captured.graph.capture():
        captured.lip.apply()
    eager.lip.apply()
    captured.graph.replay()
    assert_same(eager, captured)
    assert captured.lip.stats()["steps"] == 2


def test_two_graphs_share_the_buffers() -> None:
    eager, captured = Run(), Run()
    first, second = Graph(), Graph()
    eager.warm_up()
    captured.warm_up()
    for i, graph in enumerate([first, second, first, second], start=1):
        eager.step(i)
        captured.batch(i)
        captured.observe(i)
        if i <= 2:
            with graph.capture():
                captured.optimizer.step()
        graph.replay()
    assert_same(eager, captured)


# What is observed ---------------------------------------------------------------------------------------


def test_what_was_observed_may_be_written_again_at_once() -> None:
    eager, captured = Run(), Run()
    eager.warm_up()
    captured.warm_up()
    X, y = torch.empty_like(captured.X[0]), torch.empty_like(captured.y[0])
    for i in range(1, 5):
        eager.step(i)
        captured.batch(i)
        X.copy_(captured.X[i])
        y.copy_(captured.y[i])
        captured.lip.observe(X, y)
        X.fill_(float("nan"))
        y.fill_(0)
        if i == 1:
            captured.capture()
        captured.graph.replay()
    assert_same(eager, captured)


def test_batches_of_another_form_are_named() -> None:
    run = Run()
    run.warm_up()
    run.capture_and_replay(1)
    good = run.X[2], run.y[2]
    for features, targets, message in [
        (good[0][:5], good[1][:5], r"observation 1 of 1 .*\(32, 60\).*\(32,\).*, got .*\(5, 60\).*\(5,\)"),
        (good[0].double(), good[1], r"features \(32, 60\) torch.float32 .*, got .* torch.float64"),
        (good[0], torch.zeros(N, L), r"labels \(32,\) torch.int64, got .* labels \(32, 40\) torch.float32"),
        (good[0], torch.zeros(N, L).to_sparse(), r"got .* with 0 sparse labels torch.float32"),
    ]:
        with pytest.raises(ValueError, match=f"(?s){message}.*release_buffers"):
            run.lip.observe(features, targets)
    # What was refused is not there.
    eager = Run()
    eager.warm_up()
    for i in (1, 2):
        eager.step(i)
    run.replay(2)
    assert_same(eager, run)


def test_replays_do_not_run_into_the_limit_of_observations() -> None:
    run = Run()
    run.warm_up()
    run.capture_and_replay(1)
    for _ in range(70):
        run.replay(2)
    assert run.lip.stats()["applied"] == 73


def test_an_eager_step_takes_what_was_last_observed() -> None:
    eager, captured = Run(), Run()
    eager.warm_up()
    captured.warm_up()
    eager.step(1)
    captured.capture_and_replay(1)
    eager.step(2)
    captured.replay(2)
    for i in range(3, 5):
        eager.step(i)
        captured.step(i)
    for run in (eager, captured):  # nothing observed
        run.batch(5)
        run.optimizer.step()
    eager.step(6)
    captured.replay(6)
    assert_same(eager, captured)
    assert captured.lip.stats()["applied"] == 7


def test_an_eager_step_takes_an_incomplete_step() -> None:
    eager, captured = Run(), Run()
    for run in (eager, captured):
        run.warm_up()
        run.batch(1)
        run.observe(1)
        run.observe(2)
    eager.optimizer.step()
    captured.capture()
    captured.graph.replay()
    for run in (eager, captured):
        run.step(3)
    assert torch.equal(eager.weight, captured.weight)
    for run in (eager, captured):
        run.observe(4)
        run.step(5)
    assert_same(eager, captured)


def test_buffers_are_let_go() -> None:
    eager, captured = Run(), Run()
    eager.warm_up()
    captured.warm_up()
    eager.step(1)
    captured.capture_and_replay(1)
    captured.observe(2)
    captured.lip.release_buffers()
    for run in (eager, captured):
        run.X[3], run.y[3] = run.X[3][:7], run.y[3][:7]
        run.step(3)
    assert_same(eager, captured)


# Saved and loaded ---------------------------------------------------------------------------------------


def _saved(run: Run) -> dict[str, Any]:
    file = io.BytesIO()
    torch.save(state_of(run), file)
    file.seek(0)
    return torch.load(file, weights_only=True)


def _load(run: Run, state: dict[str, Any]) -> None:
    with torch.no_grad():
        run.head.weight.copy_(state["weight"])
    run.lip.load_state_dict(state["lip"])


@pytest.mark.parametrize("options", OPTIONS, ids=str)
def test_a_captured_run_goes_on_from_what_is_loaded(options: dict) -> None:
    run = Run(**options)
    run.warm_up()
    run.capture_and_replay(1)
    run.replay(2)
    state = _saved(run)
    assert state["lip"]["steps"] == 4
    momentum = run.optimizer.state[run.head.weight]["momentum_buffer"]
    kept = momentum.clone()
    for i in range(3, 6):
        run.replay(i)
    expected = _saved(run)
    _load(run, state)
    momentum.copy_(kept)
    for i in range(3, 6):
        run.replay(i)
    assert same(_saved(run), expected)


def test_another_process_captures_after_one_step() -> None:
    """What is loaded has a basis; what the captured step runs is loaded by the first step of the process."""
    run = Run(decay=0.9)
    run.warm_up()
    run.capture_and_replay(1)
    early, other = Run(decay=0.9), Run(decay=0.9)
    _load(early, _saved(run))
    early.observe(2)
    with pytest.raises(RuntimeError, match="got none like it: take two steps first, and one after a state"):
        early.capture()
    _load(other, _saved(run))
    # A copy: load_state_dict shares the tensors it is given.
    other.optimizer.load_state_dict(copy.deepcopy(run.optimizer.state_dict()))
    other.step(2)
    run.replay(2)
    other.capture_and_replay(3)
    run.replay(3)
    for i in range(4, 6):
        run.replay(i)
        other.replay(i)
    assert_same(run, other)


def test_an_incomplete_step_is_saved_and_loaded() -> None:
    run = Run()
    run.warm_up()
    run.batch(1)
    run.observe(1)
    run.observe(2)
    run.capture()
    run.graph.replay()
    assert run.lip.state_dict()["pending"] == ()
    run.observe(3)
    state = _saved(run)
    assert len(state["lip"]["pending"]) == 1
    momentum = run.optimizer.state[run.head.weight]["momentum_buffer"]
    kept = momentum.clone()
    run.replay(4)
    expected = _saved(run)
    _load(run, state)
    momentum.copy_(kept)
    run.replay(4)
    assert same(_saved(run), expected)


def test_a_state_that_a_graph_cannot_go_on_from_is_refused() -> None:
    run = Run(rank="auto")
    before = run.lip.state_dict()
    broken = Run(rank=5)
    broken.head.weight.data.fill_(float("nan"))
    broken.step(0)
    run.warm_up()
    run.capture_and_replay(1)
    state = _saved(run)
    rank = run.lip.stats()["rank"]
    other = Run(rank=rank - 1)
    other.step(0)
    for unfit in (before, broken.lip.state_dict(), other.lip.state_dict()):
        with pytest.raises(ValueError, match="captured step can go on from"):
            run.lip.load_state_dict(unfit)
        assert same(_saved(run), state)
    saved = run.lip.state_dict()
    saved["pending"] = [{"features": torch.ones(3, Q), "targets": torch.zeros(3, dtype=torch.int64)}]
    with pytest.raises(ValueError, match=r"\(32, 60\).*got.*\(3, 60\)"):
        run.lip.load_state_dict(saved)
    assert same(_saved(run), state)


# What cannot be captured --------------------------------------------------------------------------------


@pytest.mark.parametrize("rank", [5, "auto"])
@pytest.mark.parametrize("tail_rank", [4, None])
def test_capture_before_any_step_says_to_take_one(rank: int | str, tail_rank: int | None) -> None:
    run = Run(rank=rank, tail_rank=tail_rank)
    run.observe(0)
    with pytest.raises(RuntimeError, match="take two steps first"):
        run.capture()


@pytest.mark.parametrize("fused", [True, False], ids=["in the optimizer", "plug-in"])
def test_capture_after_one_step_says_to_take_another(fused: bool) -> None:
    """The second step begins with a basis, and takes the update of a fused optimizer: other kernels."""
    run = Run()
    if fused:
        run.lip.detach()
        run.optimizer = lip_fast.optim.LIPSGD(
            [{"params": [run.head.weight], "lip_rank": 5, "lip_tail_rank": 4}], lr=0.1, momentum=0.9
        )
    for i in range(2):
        run.batch(i)
        if fused:
            run.optimizer.observe(run.head, run.X[i], run.y[i])
        else:
            run.observe(i)
        if not i:
            run.optimizer.step()
    with pytest.raises(RuntimeError, match="got none like it: take two steps first"):
        run.capture()


def test_a_first_step_that_was_not_sound_is_none() -> None:
    run = Run()
    run.head.weight.data.fill_(float("nan"))
    run.warm_up()
    run.observe(1)
    with pytest.raises(RuntimeError, match="take two steps first"):
        run.capture()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"every": 2}, "every=1 and start reached .*, got every=2 and start=0 at step 2"),
        ({"start": 3}, "every=1 and start reached .*, got every=1 and start=3 at step 2"),
        ({"strict": True}, "strict=False in a step that is captured"),
    ],
)
def test_what_a_replay_cannot_do_is_refused(options: dict, message: str) -> None:
    run = Run(**options)
    run.warm_up()
    run.observe(1)
    with pytest.raises(RuntimeError, match=message):
        run.capture()


def test_sparse_labels_that_must_be_sorted_are_refused_inside_a_capture() -> None:
    run = Run()
    run.warm_up()
    Y = torch.nn.functional.one_hot(run.y[0], L).float().to_sparse()
    with run.graph.capture(), pytest.raises(ValueError, match="as CSR inside of a capture, got COO"):
        run.lip.observe(run.X[0], Y)


# The default kernels off the host, and the emulator ---------------------------------------------------------


@pytest.mark.filterwarnings("ignore:Sparse CSR tensor support is in beta")
def test_the_default_kernels_that_a_capture_needs_wait_for_nothing() -> None:
    run = Run()
    X, y = run.X[0], run.y[0]
    A = torch.linspace(-1, 1, L * 3).reshape(L, 3)
    B, s = torch.linspace(0, 1, Q * 3).reshape(Q, 3), torch.ones(3)
    bias = run.head.bias.detach()
    Y = torch.nn.functional.one_hot(y, L).float()
    csr = Y.to_sparse_csr()
    parts = csr.crow_indices(), csr.col_indices(), csr.values()
    M, ok, step = run.weight, torch.tensor(True), torch.tensor(3)
    expected = torch.addmm(M, A * s, B.mT)
    with run.graph.capture():
        sums = label_sums_kernels.label_sums(X, y, A, B, bias)
        dense = label_sums_kernels.label_sums(X, Y, A, B, bias)
        sparse = label_sums_kernels.label_sums_csr(X, *parts, A, B, bias)
        rebuild_(M, A, s, B, ok, step, True, 0)
    run.graph.replay()
    for got in (dense, sparse):
        assert torch.allclose(got[0], sums[0])
        assert torch.equal(got[1], sums[1])
    assert torch.equal(M, expected)


@pytest.mark.parametrize(
    "read",
    [
        lambda x: x.item(),
        lambda x: bool(x),
        lambda x: float(x),
        lambda x: [1, 2][int(x)],
        lambda x: x.tolist(),
        lambda x: x.cpu(),
        lambda x: x.numpy(),
        lambda x: x.nonzero(),
        lambda x: torch.equal(x, x),
        lambda x: torch.arange(3)[x.expand(3) > 0],
        lambda x: torch.bincount(x.long().expand(2)),
        lambda x: torch.tensor(1.0),
        lambda x: torch.linalg.svd(x.expand(2, 2)),
        lambda x: torch.linalg.eigh(x.expand(2, 2)),
    ],
)
def test_the_emulator_refuses_to_read(read: Callable[[Tensor], Any]) -> None:
    x = torch.tensor(1.0)
    with Graph().capture(), pytest.raises(CaptureError, match="not permitted"):
        read(x * 1)
    read(x)


def test_the_emulator_runs_at_replay_and_at_no_other_time() -> None:
    x, calls = torch.zeros(3), 0
    graph = Graph()
    with graph.capture():
        calls += 1
        y = x[1:] + 1
        x.mul_(2).add_(y.sum())
    assert not x.any()
    assert torch.isnan(y).all()
    for expected in (2.0, 10.0, 42.0):
        graph.replay()
        assert x.tolist() == [expected] * 3
    assert y.tolist() == [11.0, 11.0]
    assert calls == 1


def test_the_emulator_finds_a_tensor_that_was_replaced() -> None:
    held = {"x": torch.zeros(())}
    graph = Graph()
    with graph.capture():
        held["x"] = held["x"] + 1
    graph.replay()
    graph.replay()
    assert float(held["x"]) == 1
