"""The step on a GPU: the host waits for nothing, and a CUDA graph of it replays eager steps bit for bit."""

from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

import pytest
import torch
from capture_runs import BATCHES, OPTIMIZERS, OPTIONS, Run, assert_same

from lip_fast import backends
from lip_fast.status import NAMES

_NEEDED = {"fresh_columns", "warm_svd", "refit", "rebuild_"}


def _missing() -> set[str]:
    """The ops of the truncated step whose kernel waits for the device."""
    served = {row.op for row in backends.served() if (row.device, row.backend) == ("cuda", "native")}
    return _NEEDED - served


pytestmark = [
    pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU"),
    pytest.mark.skipif(torch.cuda.is_available() and bool(_missing()), reason="needs the native kernels"),
    pytest.mark.filterwarnings("ignore:rest=.drop. removes"),
]
# The exact path is LAPACK's counterpart on the device, which waits.
TRUNCATED = [options for options in OPTIONS if options["tail_rank"] == 4]


class CudaGraph:
    """``torch.cuda.CUDAGraph``, captured on the stream in use."""

    def __init__(self) -> None:
        self._graph = torch.cuda.CUDAGraph()

    @contextmanager
    def capture(self) -> Iterator[None]:
        with torch.cuda.graph(self._graph, stream=torch.cuda.current_stream()):
            yield

    def replay(self) -> None:
        self._graph.replay()


run_on_device = partial(Run, device="cuda", graph=CudaGraph)


@pytest.fixture(autouse=True)
def _own_stream() -> Iterator[None]:
    """Not the default stream, on which nothing can be captured; and no demands on cuBLAS."""
    torch.use_deterministic_algorithms(False)
    stream = torch.cuda.Stream()
    with torch.cuda.stream(stream):
        yield
    stream.synchronize()


@contextmanager
def waiting_refused() -> Iterator[None]:
    before = torch.cuda.get_sync_debug_mode()
    torch.cuda.set_sync_debug_mode("error")
    try:
        yield
    finally:
        torch.cuda.set_sync_debug_mode(before)


@pytest.mark.parametrize("name", OPTIMIZERS)
@pytest.mark.parametrize("options", TRUNCATED, ids=str)
def test_eager_steps_wait_for_nothing_once_warm(name: str, options: dict[str, Any]) -> None:
    run = run_on_device(name, **options)
    for i in range(2):
        run.step(i)
    with waiting_refused():
        for i in range(2, BATCHES):
            run.step(i)
    assert run.lip.stats()["applied"] == BATCHES


@pytest.mark.parametrize("name", OPTIMIZERS)
@pytest.mark.parametrize("options", TRUNCATED, ids=str)
def test_replays_are_eager_steps_bit_for_bit(name: str, options: dict[str, Any]) -> None:
    eager, captured = run_on_device(name, **options), run_on_device(name, **options)
    for i in range(2):
        eager.step(i)
        captured.step(i)
    captured.batch(2)
    captured.observe(2)
    before = captured.weight
    captured.capture()
    assert torch.equal(captured.weight, before)
    captured.graph.replay()
    eager.step(2)
    for i in range(3, BATCHES):
        eager.step(i)
        with waiting_refused():
            captured.replay(i)
        assert torch.equal(eager.weight, captured.weight), i
    assert_same(eager, captured)
    assert captured.lip.stats()["applied"] == BATCHES


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_narrow_weights(dtype: torch.dtype) -> None:
    eager, captured = run_on_device(dtype=dtype), run_on_device(dtype=dtype)
    for i in range(2):
        eager.step(i)
        captured.step(i)
    eager.step(2)
    captured.capture_and_replay(2)
    for i in range(3, BATCHES):
        eager.step(i)
        captured.replay(i)
    assert_same(eager, captured)


@pytest.mark.parametrize("decay", [None, 0.9])
def test_a_whole_iteration_is_captured_with_what_it_observes(decay: float | None) -> None:
    eager, captured = run_on_device(decay=decay), run_on_device(decay=decay)
    X, y = captured.X[0].clone(), captured.y[0].clone()
    for run in (eager, captured):
        for i in range(3):
            run.iteration(run.X[i], run.y[i])
    with captured.graph.capture():
        captured.iteration(X, y)
    for i in range(3, BATCHES):
        eager.iteration(eager.X[i], eager.y[i])
        X.copy_(captured.X[i])
        y.copy_(captured.y[i])
        captured.graph.replay()
        assert torch.equal(eager.weight, captured.weight), i
    assert_same(eager, captured)


@pytest.mark.parametrize("options", TRUNCATED, ids=str)
def test_a_broken_batch_between_replays_is_skipped_and_counted(options: dict[str, Any]) -> None:
    eager, captured = run_on_device(**options), run_on_device(**options)
    base = torch.nn.Parameter(captured.weight)
    optimizer = torch.optim.SGD([base], lr=0.1, momentum=0.9)
    for run in (eager, captured):
        run.X[5] = run.X[5].clone()
        run.X[5][3, 3] = float("nan")
        run.y[6] = run.y[6].clone()
        run.y[6][:2] = torch.tensor([-1, 10**6], device="cuda")
        for i in range(2):
            run.step(i)
    eager.step(2)
    captured.capture_and_replay(2)
    for i in range(3, 5):
        eager.step(i)
        captured.replay(i)
    with torch.no_grad():
        base.copy_(captured.head.weight)
    state = captured.optimizer.state[captured.head.weight]
    optimizer.state[base]["momentum_buffer"] = state["momentum_buffer"].clone()
    base.grad = captured.gradients[5].clone()
    optimizer.step()
    eager.step(5)
    captured.replay(5)
    assert torch.equal(captured.weight, base.detach())
    for i in range(6, BATCHES):
        eager.step(i)
        captured.replay(i)
    assert_same(eager, captured)
    stats = captured.lip.stats()
    assert {name: stats[name] for name in NAMES if stats[name]} == {"not_finite": 1}
    assert (stats["applied"], stats["skipped"]) == (BATCHES - 1, 1)
    assert stats["masked"] == (0 if {"tail", "decay"} & options.keys() else 2)


def test_a_head_that_was_moved_counts_where_it_is() -> None:
    run = Run(graph=CudaGraph)
    run.head.cuda()  # the same parameters, with their gradients
    run.X, run.y, run.gradients = ([t.cuda() for t in ts] for ts in (run.X, run.y, run.gradients))
    for i in range(2):
        run.step(i)
    run.capture_and_replay(2)
    run.replay(3)
    assert run.lip.stats()["applied"] == 4


def test_a_captured_run_goes_on_from_what_is_loaded() -> None:
    run, other = run_on_device(decay=0.9), run_on_device(decay=0.9)
    for i in range(2):
        run.step(i)
        other.step(i)
    run.capture_and_replay(2)
    other.capture_and_replay(3)
    with torch.no_grad():
        other.head.weight.copy_(run.head.weight)
        for p, q in zip(run.head.parameters(), other.head.parameters(), strict=True):
            q.copy_(p)
            momentum = other.optimizer.state[q]["momentum_buffer"]
            momentum.copy_(run.optimizer.state[p]["momentum_buffer"])
    other.lip.load_state_dict(run.lip.state_dict())
    for i in range(4, BATCHES):
        run.replay(i)
        other.replay(i)
    assert_same(run, other)


@pytest.mark.filterwarnings("ignore:Sparse CSR tensor support is in beta")
def test_batches_of_several_blocks_and_sparse_labels() -> None:
    """Large enough for every loop over blocks of rows, none of which may read where a row begins."""
    run = run_on_device(decay=0.9)
    plain = run_on_device()
    rows = 20000
    g = torch.Generator("cuda").manual_seed(0)
    X = torch.randn(rows, run.head.in_features, generator=g, device="cuda")
    y = torch.randint(0, run.head.out_features, (rows,), generator=g, device="cuda")
    Y = torch.nn.functional.one_hot(y, run.head.out_features).float()
    csr = Y.to_sparse_csr()
    for r in (run, plain):
        for labels in (y, Y, csr):
            r.lip.observe(X, labels)
        r.batch(0)
        r.optimizer.step()
        with waiting_refused():
            for labels in (y, Y, csr):
                r.lip.observe(X, labels)
            r.batch(1)
            r.optimizer.step()
        for labels in (y, Y, csr):
            r.lip.observe(X, labels)
        r.capture()
        before = r.weight
        r.graph.replay()
        assert not torch.equal(r.weight, before)
        stats = r.lip.stats()
        assert (stats["applied"], stats["skipped"], stats["masked"]) == (3, 0, 0)
