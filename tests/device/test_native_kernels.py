"""The native CUDA kernels against the same sources on CPU and against float64, on shapes that fit no tile.

Fresh memory comes filled with NaN (tests/conftest.py), so that what is not written is seen.
"""

import importlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import ModuleType
from typing import Any

import pytest
import torch
from problems import gapped_matrix, orthonormal, relative_error
from torch import Tensor

from lip_fast import ops
from lip_fast.backends.default.fresh_columns import fresh_columns as numpy_fresh_columns
from lip_fast.backends.default.sketch import sketch as library_sketch
from lip_fast.backends.default.svd import warm_svd as lapack_warm_svd
from lip_fast.backends.native import library
from lip_fast.backends.native.fresh_columns import fresh_columns
from lip_fast.backends.native.rebuild_ import rebuild_
from lip_fast.backends.native.refit import refit
from lip_fast.backends.native.sketch import sketch
from lip_fast.backends.native.small_svd import small_svd
from lip_fast.backends.native.svd import warm_svd
from lip_fast.projected import first_basis, split
from lip_fast.status import NOT_FINITE, RANK_DEFICIENT

one_read_module = importlib.import_module("lip_fast.backends.native.one_read")

DEVICE = torch.device("cuda", 0)
EPS = torch.finfo(torch.float32).eps
# Half a unit of the last of the ten bits that TF32 keeps of a mantissa.
TF32 = 2**-11


def step(value: int = 3) -> Tensor:
    return torch.tensor(value, device=DEVICE)


def true() -> Tensor:
    return torch.tensor(True, device=DEVICE)


def randn(*shape: int, seed: int = 0, dtype: torch.dtype = torch.float32) -> Tensor:
    """On the host: the same numbers wherever the test runs."""
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=dtype)


def same(a: tuple[Tensor, ...], b: tuple[Tensor, ...]) -> bool:
    """Bit for bit, NaN and all, from any device."""
    return all(
        torch.equal(x.cpu().nan_to_num(7.0), y.cpu().nan_to_num(7.0)) for x, y in zip(a, b, strict=True)
    )


def columns(X: Tensor) -> Tensor:
    """X on the device with its columns contiguous."""
    return X.mT.contiguous().to(DEVICE).mT


# Calls of every kernel, for what holds of all -------------------------------------------------------------


def _warm_operands(l: int = 150, q: int = 230, t: int = 40) -> tuple[Tensor, Tensor]:
    V = orthonormal(q, 1)[:, :t]
    M = orthonormal(l, 2)[:, :t] * torch.arange(1, t + 1) ** -0.5 @ V.mT
    M = M + 1e-3 * randn(l, q, dtype=torch.float64) / (l * q) ** 0.5
    return M.float().to(DEVICE), columns(V.float())


def _refit_operands(t: int = 48, r: int = 8) -> tuple[Tensor, ...]:
    S = torch.linspace(10, 1, t)
    numerator, denominator = randn(r, seed=1, dtype=torch.float64), torch.ones(r, dtype=torch.float64)
    energy = torch.tensor(float(r), dtype=torch.float64)
    return tuple(x.to(DEVICE) for x in (S, numerator, denominator, energy))


def kernel_calls() -> dict[str, tuple[tuple[Tensor, ...], Callable[..., tuple[Tensor, ...]]]]:
    """Operands of each kernel and a call on them; nothing is written in place."""
    M, basis = _warm_operands()
    T = randn(3, 48, 48).to(DEVICE)
    wide = randn(300, 1000).to(DEVICE)

    def rounded(A: Tensor, B: Tensor) -> tuple[Tensor, ...]:
        W = torch.zeros(len(A), len(B), dtype=torch.bfloat16, device=DEVICE)
        return W, rebuild_(W, A, torch.ones(1, device=DEVICE), B, true(), step(), False, 5)

    return {
        "fresh_columns": ((step(),), lambda s: (fresh_columns(s, 1001, 8, 9),)),
        "refit": (_refit_operands(), lambda S, n, d, e: refit(S, n, d, e, true(), 40, 1e-6, True)),
        "small_svd cold": ((T,), lambda T: small_svd(T, None)),
        "small_svd warm": ((T, small_svd(T, None)[2]), small_svd),
        "warm_svd": ((M, basis), lambda M, basis: warm_svd(M, basis, step(), 8, 0)),
        "one read": ((wide, columns(randn(1000, 48, seed=1))), sketch),
        "rebuild_": ((randn(77, 1).to(DEVICE), randn(131, 1, seed=1).to(DEVICE)), rounded),
    }


KERNELS = ("fresh_columns", "refit", "small_svd cold", "small_svd warm", "warm_svd", "one read", "rebuild_")


@pytest.fixture
def one_read(monkeypatch: pytest.MonkeyPatch) -> list[tuple[int, int]]:
    """The one-read kernel takes weights of any size; the (rows, columns) that it was given."""
    monkeypatch.setattr(one_read_module, "CACHED_BYTES", -1)
    module, taken = library.cuda(), []
    run = module.one_read

    def spy(*arguments: Any) -> Any:
        taken.append((arguments[1], arguments[2]))
        return run(*arguments)

    # In place of the module: its functions are those of an extension.
    stand_in = ModuleType("stand_in")
    stand_in.__dict__.update(
        {name: getattr(module, name) for name in dir(module) if not name.startswith("_")}
    )
    stand_in.one_read = spy
    monkeypatch.setitem(library.MODULES, "cuda", stand_in)
    return taken


@contextmanager
def no_waiting() -> Iterator[None]:
    torch.cuda.set_sync_debug_mode("error")
    try:
        yield
    finally:
        torch.cuda.set_sync_debug_mode("default")


@pytest.mark.parametrize("name", KERNELS)
def test_repeated_runs_are_the_same_bits(name: str, one_read: list) -> None:
    operands, call = kernel_calls()[name]
    first = call(*operands)
    for _ in range(20):
        assert same(first, call(*operands))


@pytest.mark.parametrize("name", KERNELS)
def test_results_do_not_depend_on_what_memory_held(name: str, one_read: list) -> None:
    operands, call = kernel_calls()[name]
    first = call(*operands)
    torch.utils.deterministic.fill_uninitialized_memory = False
    try:
        # Blocks that come back from the allocator with other numbers in them.
        for value in (0.0, 1e30, float("inf")):
            torch.full((1 << 22,), value, device=DEVICE)
            assert same(first, call(*operands))
    finally:
        torch.utils.deterministic.fill_uninitialized_memory = True


@pytest.mark.parametrize("name", KERNELS)
def test_operands_are_left_alone(name: str, one_read: list) -> None:
    operands, call = kernel_calls()[name]
    before = tuple(x.clone() for x in operands)
    call(*operands)
    assert same(before, operands)


@pytest.mark.parametrize("name", KERNELS)
def test_runs_on_the_stream_in_use(name: str, one_read: list) -> None:
    operands, call = kernel_calls()[name]
    expected = call(*operands)
    late = tuple(torch.zeros_like(x) for x in operands)
    stream = torch.cuda.Stream()
    torch.cuda.synchronize()
    with torch.cuda.stream(stream):
        # The operands are there once the stream gets to them: a kernel on another would take zeros.
        torch.cuda._sleep(50_000_000)
        for x, y in zip(late, operands, strict=True):
            x.copy_(y)
        got = call(*late)
    stream.synchronize()
    assert same(expected, got)


@pytest.mark.parametrize("name", KERNELS)
def test_two_streams_at_once(name: str, one_read: list) -> None:
    operands, call = kernel_calls()[name]
    expected = call(*operands)
    streams = [torch.cuda.Stream() for _ in range(2)]
    torch.cuda.synchronize()
    found: list[tuple[Tensor, ...]] = []
    for _ in range(10):
        for stream in streams:
            with torch.cuda.stream(stream):
                found.append(call(*operands))
    torch.cuda.synchronize()
    assert all(same(expected, got) for got in found)


@pytest.mark.parametrize("name", KERNELS)
def test_does_not_wait_for_the_device(name: str, one_read: list) -> None:
    operands, call = kernel_calls()[name]
    if name == "rebuild_":
        pytest.skip("makes its own scalars on the host here; see the test of rebuild_")
    if name in ("refit", "warm_svd"):
        flag, counter = true(), step()
        operands, call = {
            "refit": (operands, lambda S, n, d, e: refit(S, n, d, e, flag, 40, 1e-6, True)),
            "warm_svd": (operands, lambda M, basis: warm_svd(M, basis, counter, 8, 0)),
        }[name]
    expected = call(*operands)
    torch.cuda.synchronize()
    with no_waiting():
        got = call(*operands)
    assert same(expected, got)


@pytest.mark.parametrize("name", [name for name in KERNELS if name != "rebuild_"])
def test_captured_and_replayed_on_other_numbers(name: str, one_read: list) -> None:
    operands, _ = kernel_calls()[name]
    flag, counter = true(), step()
    call = {
        "fresh_columns": lambda s: (fresh_columns(s, 1001, 8, 9),),
        "refit": lambda S, n, d, e: refit(S, n, d, e, flag, 40, 1e-6, True),
        "small_svd cold": lambda T: small_svd(T, None),
        "small_svd warm": small_svd,
        "warm_svd": lambda M, basis: warm_svd(M, basis, counter, 8, 0),
        "one read": sketch,
    }[name]
    static = tuple(x.clone() for x in operands)
    call(*static)
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    # What fills memory is an operation too, and would be captured with the kernel.
    torch.utils.deterministic.fill_uninitialized_memory = False
    try:
        with torch.cuda.graph(graph):
            out = call(*static)
    finally:
        torch.utils.deterministic.fill_uninitialized_memory = True
    for factor in (1, 2):
        for x, y in zip(static, operands, strict=True):
            x.copy_(y * factor if name != "small_svd warm" or y is operands[0] else y)
        if name == "warm_svd":
            static[1].copy_(operands[1])
        graph.replay()
        torch.cuda.synchronize()
        assert same(out, call(*static))


# Each kernel -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("rows", [0, 1, 63, 64, 65, 257, 1000])
@pytest.mark.parametrize("width", [0, 1, 8, 128, 129, 300])
@pytest.mark.parametrize(("counter", "seed"), [(0, 0), (7, 1), (2**32 + 5, 2**63 - 1)])
def test_fresh_columns_are_the_same_bits(rows: int, width: int, counter: int, seed: int) -> None:
    got = fresh_columns(step(counter), rows, width, seed)
    assert torch.equal(got.cpu(), numpy_fresh_columns(torch.tensor(counter), rows, width, seed))
    assert got.mT.is_contiguous()


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("clip", [True, False])
@pytest.mark.parametrize(
    ("t", "rank", "r"), [(0, 0, 0), (1, 0, 1), (5, 2, 3), (5, 5, 0), (9, 0, 9), (300, 20, 200)]
)
@pytest.mark.parametrize("broken", ["", "numerator", "denominator", "energy", "S", "ok"])
def test_refit_is_that_of_the_cpu(
    dtype: torch.dtype, clip: bool, t: int, rank: int, r: int, broken: str
) -> None:
    g = torch.Generator().manual_seed(t)
    S = torch.rand(t, generator=g, dtype=dtype).sort(descending=True).values
    S[t // 2 :] *= 1e-5
    numerator = 3 * torch.randn(r, generator=g, dtype=torch.float64)
    denominator = torch.rand(r, generator=g, dtype=torch.float64)
    denominator[::3] *= 1e-7
    energy, ok = denominator.sum() + 1, torch.tensor(broken != "ok")
    if broken == "energy":
        energy = energy * float("inf")
    elif broken == "S" and t:
        S[0] = float("nan")
    elif broken in ("numerator", "denominator") and r:
        {"numerator": numerator, "denominator": denominator}[broken][r // 2] = float("nan")
    operands = (S, numerator, denominator, energy, ok)
    expected = refit(*operands, rank, 1e-4, clip)
    got = refit(*(x.to(DEVICE) for x in operands), rank, 1e-4, clip)
    assert all(x.device == DEVICE for x in got)
    assert same(got, expected)


@pytest.mark.parametrize(
    "shape", [(1, 1), (2, 2), (24, 24), (3, 10, 10), (5, 33, 33), (2, 2, 128, 128), (0, 5, 5)]
)
def test_small_svd_is_that_of_float64_and_of_the_cpu(shape: tuple[int, ...]) -> None:
    T = randn(*shape)
    exact = torch.linalg.svdvals(T.double())
    cold = small_svd(T.to(DEVICE), None)
    cpu = small_svd(T, None)
    m = shape[-1]
    budget = 20 * m**0.5 * EPS
    for U, S, V, sweeps, status in (cold, small_svd(T.to(DEVICE), cold[2])):
        U, S, V = U.cpu().double(), S.cpu().double(), V.cpu().double()
        assert not status.any()
        assert torch.all((S - exact).abs() <= budget * exact[..., :1])
        back = U * S[..., None, :] @ V.mT
        assert torch.all((back - T).abs() <= 4 * budget * exact[..., :1, None])
        for F in (U, V):
            assert torch.all((F.mT @ F - torch.eye(m, dtype=torch.float64)).abs() <= budget)
        assert torch.all(sweeps >= 1)
    if T.numel():
        assert int(small_svd(T.to(DEVICE), cold[2])[3].max()) <= 2
        # Pairs of columns are turned in the same order, with other roundings.
        assert int((cold[3].cpu() - cpu[3]).abs().max()) <= 2


@pytest.mark.parametrize("m", [40, 48, 80, 128])
def test_small_svd_is_warm_from_a_neighbour(m: int) -> None:
    s = torch.linspace(10, 0.5, m, dtype=torch.float64)
    V = orthonormal(m, 1)
    T = orthonormal(m, 2) * s @ V.mT
    T = (T + 1e-2 * T.norm() * randn(m, m, dtype=torch.float64) / m).float()
    U, S, V, sweeps, status = (x.cpu() for x in small_svd(T.to(DEVICE), V.float().to(DEVICE)))
    assert int(status) == 0
    assert int(sweeps) <= 5
    assert relative_error(U.double() * S.double() @ V.double().mT, T.double()) < 1e-5


def test_small_svd_takes_any_strides() -> None:
    T = randn(6, 6).to(DEVICE)
    assert same(small_svd(T.mT, None), small_svd(T.mT.clone(memory_format=torch.contiguous_format), None))


def test_small_svd_reports_each_matrix_without_waiting() -> None:
    T = randn(5, 20, 20).to(DEVICE)
    T[1, 3, 4] = float("nan")
    T[2] = 0
    T[3, :, 7] = 0
    T[4, 2, 2] = float("inf")
    torch.cuda.synchronize()
    with no_waiting():
        status = small_svd(T).status
    assert status.tolist() == [0, NOT_FINITE, RANK_DEFICIENT, RANK_DEFICIENT, NOT_FINITE]


@pytest.mark.parametrize(("l", "q"), [(100, 512), (300, 128), (10, 64)])
def test_an_exact_decomposition_with_a_small_side_does_not_wait(l: int, q: int) -> None:
    M, rank = gapped_matrix(l, q).float(), min(l, q) // 2
    on_device = M.to(DEVICE)
    ops.tail_svd(on_device, rank=rank)
    with no_waiting():
        found = ops.tail_svd(on_device, rank=rank)
    A, S, B, status = (X.cpu() for X in found)
    U, exact, Vh = torch.linalg.svd(M.double(), full_matrices=False)
    assert int(status) == 0
    assert torch.allclose(S.double(), exact, rtol=1e-5)
    got = A.double() * S[rank:].double() @ B.double().mT
    assert relative_error(got, U[:, rank:] * exact[rank:] @ Vh[rank:]) < 5e-5


@pytest.mark.parametrize(("l", "q", "k"), [(300, 500, 150), (500, 300, 290), (200, 400, 12)])
def test_a_split_by_products_does_not_wait(l: int, q: int, k: int) -> None:
    U, S, Vh = torch.linalg.svd(gapped_matrix(l, q), full_matrices=False)
    S[k:] *= 0.03
    M = (U * S @ Vh).float()
    r = min(min(l, q) - k, 104)
    given = M.to(DEVICE), first_basis(S.float(), Vh.mT.float(), k, r).to(DEVICE), k
    counter = step()
    split(*given, step=counter, seed=0)
    with no_waiting():
        found = split(*given, step=counter, seed=0)
    assert int(found.status) == 0
    Q, Z = (torch.cat(blocks[:-1], dim=1).double() for blocks in (found.left, found.right))
    assert relative_error((Q @ Z.mT).cpu(), M.double()) < 1e-2
    Q = Q[:, : k - 8]
    assert float((Q.mT @ Q - torch.eye(k - 8, device=DEVICE)).abs().max()) < 1e-4


SHAPES = [(100, 512, 40), (512, 100, 40), (61, 67, 53), (300, 200, 120), (9, 9, 1), (3001, 257, 72)]


@pytest.mark.parametrize(("l", "q", "t"), SHAPES, ids=str)
@pytest.mark.parametrize("change", [1e-1, 1e-3, 1e-5])
@pytest.mark.parametrize("read", ["twice", "once"])
def test_warm_svd_is_as_good_as_lapacks(
    l: int, q: int, t: int, change: float, read: str, request: pytest.FixtureRequest
) -> None:
    if read == "once":
        request.getfixturevalue("one_read")
    V = orthonormal(q, 1)[:, :t]
    M = orthonormal(l, 2)[:, :t] * torch.arange(1, t + 1) ** -0.5 @ V.mT
    M = (M + change * randn(l, q, dtype=torch.float64) / (l * q) ** 0.5).float()
    fresh = min(8, min(l, q) - t)
    basis = V.float().mT.contiguous().mT
    exact = lapack_warm_svd(M.double(), basis.double(), torch.tensor(3), fresh, 0)
    cpu = warm_svd(M, basis, torch.tensor(3), fresh, 0)
    on = padded(M) if read == "once" else M.to(DEVICE)
    A, S, B, status = warm_svd(on, columns(basis), step(), fresh, 0)
    assert int(status) == 0
    for got, other in zip((A, S, B), cpu[:3], strict=True):
        assert got.shape == other.shape
        assert got.stride() == other.stride()
    A, S, B = A.cpu().double(), S.cpu().double(), B.cpu().double()
    error, best = (
        float(torch.linalg.vector_norm(M.double() - a * s @ b.mT)) for a, s, b in ((A, S, B), exact[:3])
    )
    # Read once, the weight is that of TF32.
    rounding = 1e-5 if read == "twice" else TF32 * float(M.double().norm())
    assert error <= 1.002 * best + rounding
    assert (
        float((S - exact[1]).abs().max()) < (2e-6 if read == "twice" else TF32) * float(S[0]) + 1e-3 * change
    )
    for F in (A, B):
        assert float((F.mT @ F - torch.eye(t)).abs().max()) < 2e-5
    assert torch.all(S.diff() <= 0)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_warm_svd_of_narrow_weights(dtype: torch.dtype) -> None:
    M, basis = _warm_operands()
    narrow = M.to(dtype)
    A, S, B, status = warm_svd(narrow, basis, step(), 8, 0)
    assert int(status) == 0
    assert same((A, S, B), warm_svd(narrow.float(), basis, step(), 8, 0)[:3])


@pytest.mark.parametrize("t", [119, 120])
def test_the_widest_warm_svd(t: int) -> None:
    M, basis = _warm_operands(200, 300, t)
    A, S, B, status = ops.warm_svd(M, basis, step(), fresh=8, seed=0)
    assert int(status) == 0
    assert same((A, S, B), warm_svd(M, basis, step(), 8, 0)[:3])
    assert relative_error((A * S @ B.mT).cpu(), M.cpu()) < 5e-3


def test_beyond_128_columns_is_the_default_kernels() -> None:
    M, basis = _warm_operands(200, 300, 121)
    got = ops.warm_svd(M, basis, step(), fresh=8, seed=0)
    assert same(got, lapack_warm_svd(M, basis, step(), 8, 0))
    with pytest.raises(ValueError, match=r"expected 1..128 columns, got 129"):
        warm_svd(M, basis, step(), 8, 0)


@pytest.mark.parametrize("read", ["twice", "once"])
def test_warm_svd_reports_what_it_cannot_do_without_waiting(
    read: str, request: pytest.FixtureRequest
) -> None:
    if read == "once":
        request.getfixturevalue("one_read")
    M, basis = _warm_operands()
    counter = step()
    zero, broken, infinite = torch.zeros_like(M), M.clone(), M.clone()
    broken[5, 6], infinite[149, 229] = float("nan"), float("inf")
    ops.warm_svd(M, basis, counter, fresh=8, seed=0)
    torch.cuda.synchronize()
    with no_waiting():
        words = [ops.warm_svd(W, basis, counter, fresh=8, seed=0).status for W in (M, zero, broken, infinite)]
    assert [int(word) for word in words] == [0, RANK_DEFICIENT, NOT_FINITE, NOT_FINITE]


def test_a_weight_of_low_rank_is_no_fault() -> None:
    M, basis = _warm_operands()
    A, S, B = (x.double() for x in warm_svd(M, basis, step(), 8, 0)[:3])
    low = (A[:, :20] * S[:20] @ B[:, :20].mT).float()
    A, S, B, status = warm_svd(low, basis, step(), 8, 0)
    assert int(status) == 0
    assert relative_error((A * S @ B.mT).cpu(), low.cpu()) < 1e-5


# The one-read kernel -----------------------------------------------------------------------------------


def to_tf32(X: Tensor) -> Tensor:
    """The nearest numbers of TF32, ties away from zero, in float64."""
    bits = (X.contiguous().view(torch.int32) + 0x1000) & ~0x1FFF
    return bits.view(torch.float32).double()


def padded(M: Tensor, more: int = 0) -> Tensor:
    """M on the device, its rows on 16-byte boundaries, ``more`` times four values apart."""
    l, q = M.shape
    wide = torch.full((l, (q + 3) // 4 * 4 + 4 * more), float("nan"))
    wide[:, :q] = M
    return wide.to(DEVICE)[:, :q]


def assert_sketch(M: Tensor, V: Tensor, Y: Tensor, Z: Tensor) -> None:
    """Y and Z as the op says: of rounded operands, Y rounded, Z = M^T Y for that Y."""
    Y, Z = Y.cpu(), Z.cpu()
    M, V = to_tf32(M), to_tf32(V)
    exact = M @ V
    scale = M.abs() @ V.abs()
    assert torch.all((Y.double() - exact).abs() <= 1.01 * TF32 * exact.abs() + 1e-5 * scale)
    assert torch.equal(to_tf32(Y), Y.double())
    expected = M.mT @ Y.double()
    assert torch.all((Z.double() - expected).abs() <= 1e-5 * (M.abs().mT @ Y.double().abs()))


@pytest.mark.parametrize("l", [1, 15, 16, 33, 1000])
@pytest.mark.parametrize("q", [1, 3, 67, 256, 257, 1000, 4093, 4096])
@pytest.mark.parametrize("m", [1, 13, 48, 80, 81, 128])
def test_one_read_is_that_of_float64(l: int, q: int, m: int, one_read: list) -> None:
    if library.cuda().one_read_workspace(l, q, m) < 0:
        pytest.skip("this device cannot run it for this shape")
    M, V = randn(l, q), randn(q, m, seed=1)
    assert_sketch(M, V, *sketch(padded(M), columns(V)))
    assert one_read == [(l, q)]


def test_one_read_of_more_rows_than_fit_the_device_at_once(one_read: list) -> None:
    M, V = randn(20011, 260), randn(260, 48, seed=1)
    assert_sketch(M, V, *sketch(padded(M), columns(V)))
    assert one_read == [(20011, 260)]


def test_columns_beyond_the_clusters_fall_back(one_read: list) -> None:
    M, V = randn(20, 4100), randn(4100, 8, seed=1)
    Y, Z = sketch(M.to(DEVICE), columns(V))
    assert one_read == []
    assert relative_error(Y.cpu(), M.double() @ V.double()) < 1e-5
    assert relative_error(Z.cpu(), M.double().mT @ (M.double() @ V.double())) < 1e-5


@pytest.mark.parametrize("more", [0, 1, 7])
def test_one_read_of_rows_apart_reads_nothing_between(more: int, one_read: list) -> None:
    M, V = randn(130, 67), randn(67, 13, seed=1)
    got = sketch(padded(M, more), columns(V))
    assert one_read
    assert same(got, sketch(padded(M), columns(V)))


def test_what_does_not_lie_on_16_bytes_is_left_to_the_library(one_read: list) -> None:
    M, V = randn(40, 64), columns(randn(64, 13, seed=1))
    shifted = torch.zeros(40 * 64 + 1, device=DEVICE)[1:].view(40, 64)
    apart = torch.zeros(40, 66, device=DEVICE)[:, :64]
    turned = torch.zeros(64, 40, device=DEVICE).mT
    every_second = torch.zeros(40, 128, device=DEVICE)[:, ::2]
    for view in (shifted, apart, turned, every_second):
        view.copy_(M)
        assert same(sketch(view, V), library_sketch(view, V))
    assert one_read == []
    sketch(M.to(DEVICE), V)
    assert one_read == [(40, 64)]


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
@pytest.mark.parametrize("place", [(0, 0), (32, 66), (129, 511)])
def test_what_is_not_finite_shows_in_both_products(
    value: float, place: tuple[int, int], one_read: list
) -> None:
    M = randn(130, 512)
    M[place] = value
    Y, Z = (x.cpu() for x in sketch(M.to(DEVICE), columns(randn(512, 13, seed=1))))
    assert not torch.isfinite(Y[place[0]]).any()
    assert torch.isfinite(Y[torch.arange(130) != place[0]]).all()
    assert not torch.isfinite(Z).any()


def test_the_op_reads_large_weights_once(monkeypatch: pytest.MonkeyPatch, one_read: list) -> None:
    monkeypatch.setattr(one_read_module, "CACHED_BYTES", 4 * 100 * 512)
    V = columns(randn(512, 8, seed=1))
    small = randn(100, 512)
    assert same(ops.sketch(small.to(DEVICE), V), library_sketch(small.to(DEVICE), V))
    assert one_read == []
    large = randn(101, 512)
    assert_sketch(large, V.cpu(), *ops.sketch(large.to(DEVICE), V))
    assert one_read == [(101, 512)]
    narrow = large.to(torch.bfloat16).to(DEVICE)
    assert same(ops.sketch(narrow, V), library_sketch(narrow, V))


# Writing the weight ------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize(("rows", "width"), [(1, 1), (37, 29), (301, 211), (64, 8), (5, 1023)])
def test_rounding_is_that_of_the_cpu_to_the_bit(dtype: torch.dtype, rows: int, width: int) -> None:
    # Of rank 1, so that no sum is rounded on the way.
    A, B = randn(rows, 1), randn(width, 1, seed=1)
    for counter, seed in ((3, 0), (4, 0), (3, 2**40 + 1)):
        written = []
        for device in (torch.device("cpu"), DEVICE):
            M = torch.zeros(rows, width, dtype=dtype, device=device)
            ok = rebuild_(
                M,
                A.to(device),
                torch.ones(1, device=device),
                B.to(device),
                torch.tensor(True, device=device),
                torch.tensor(counter, device=device),
                False,
                seed,
            )
            assert bool(ok)
            written.append(M)
        assert same((written[0],), (written[1],))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("accumulate", [True, False])
def test_rebuild_is_that_of_float64(dtype: torch.dtype, accumulate: bool) -> None:
    start, A, B = randn(77, 131).to(dtype), randn(77, 5, seed=1), randn(131, 5, seed=2)
    s = torch.linspace(2, 1, 5)
    M = start.to(DEVICE)
    operands = (A.to(DEVICE), s.to(DEVICE), B.to(DEVICE))
    assert bool(ops.rebuild_(M, *operands, ok=true(), step=step(), accumulate=accumulate, seed=0))
    expected = A.double() * s.double() @ B.double().mT + (start.double() if accumulate else 0)
    spacing = {torch.float32: 1e-5, torch.bfloat16: 2**-7, torch.float16: 2**-10}[dtype]
    assert torch.all((M.cpu().double() - expected).abs() <= spacing * expected.abs() + 1e-5)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_where_not_ok_nothing_is_written_and_no_one_waits(dtype: torch.dtype) -> None:
    M = randn(33, 65).to(dtype).to(DEVICE)
    before = M.clone()
    A, B, s = randn(33, 2, seed=1).to(DEVICE), randn(65, 2, seed=2).to(DEVICE), torch.ones(2, device=DEVICE)
    no, yes, counter = ~true(), true(), step()
    ops.rebuild_(M, A, s, B, ok=no, step=counter, accumulate=False, seed=0)
    huge = 1e8 * A
    torch.cuda.synchronize()
    with no_waiting():
        skipped = ops.rebuild_(M, A, s, B, ok=no, step=counter, accumulate=False, seed=0)
        kept = M.clone()
        overflow = ops.rebuild_(M, huge, s, B, ok=yes, step=counter, accumulate=False, seed=0)
    assert not bool(skipped)
    assert same((kept,), (before,))
    if dtype == torch.float16:
        assert not bool(overflow)
        assert same((M,), (before,))


# The front door ----------------------------------------------------------------------------------------


def test_tensors_of_another_device_are_refused_with_both_sides_named() -> None:
    M, basis = _warm_operands()
    with pytest.raises(ValueError, match=r"V on cuda:0, where M is, got cpu"):
        ops.sketch(M, basis.cpu())
    with pytest.raises(ValueError, match=r"(cuda:0.*cpu|cpu.*cuda:0)"):
        ops.warm_svd(M, basis.cpu(), step(), fresh=8, seed=0)
    with pytest.raises(ValueError, match=r"(cuda:0.*cpu|cpu.*cuda:0)"):
        ops.warm_svd(M, basis, torch.tensor(3), fresh=8, seed=0)
    S, numerator, denominator, energy = _refit_operands()
    sums = ops.Sums(numerator.cpu(), denominator, energy, step(0))
    with pytest.raises(ValueError, match=r"expected a numerator on cuda:0, where S is, got cpu"):
        ops.refit(S, sums, true(), rank=40, tolerance=1e-6, clip=True)


def test_the_weight_is_left_alone_where_an_operand_is_elsewhere() -> None:
    M = randn(4, 6).to(DEVICE)
    before = M.clone()
    A, B, s = randn(4, 2).to(DEVICE), randn(6, 2), torch.ones(2, device=DEVICE)
    with pytest.raises((ValueError, RuntimeError), match="cpu"):
        ops.rebuild_(M, A, s, B, ok=true(), step=step(), accumulate=False, seed=0)
    assert same((M,), (before,))


def test_the_module_refuses_what_one_read_cannot_follow() -> None:
    module = library.cuda()
    l, q, m = 40, 64, 13
    if module.one_read_workspace(l, q, m) < 0:
        pytest.skip("this device cannot run it for this shape")
    M, Vt = torch.zeros(l, q, device=DEVICE), torch.zeros(m, q, device=DEVICE)
    Yt, Zt = torch.zeros(m, l, device=DEVICE), torch.zeros(m, q, device=DEVICE)
    values = module.one_read_workspace(l, q, m)
    workspace = torch.zeros(values, device=DEVICE)

    def call(start: int, stride: int, size: int) -> None:
        addresses = (Vt.data_ptr(), m, Yt.data_ptr(), Zt.data_ptr(), workspace.data_ptr())
        module.one_read(start, l, q, stride, *addresses, size, 0)

    call(M.data_ptr(), q, values)
    with pytest.raises(ValueError, match="16-byte boundaries"):
        call(M.data_ptr() + 4, q, values)
    with pytest.raises(ValueError, match="16-byte boundaries"):
        call(M.data_ptr(), q + 1, values)
    with pytest.raises(ValueError, match="16-byte boundaries"):
        call(M.data_ptr(), q - 4, values)
    with pytest.raises(ValueError, match="workspace"):
        call(M.data_ptr(), q, values - 1)


@pytest.mark.skipif(torch.cuda.device_count() < 2, reason="one GPU")
def test_tensors_of_a_device_that_is_not_the_current_one() -> None:
    other = torch.device("cuda", 1)
    T = randn(3, 20, 20)
    expected = small_svd(T.to(DEVICE), None)
    with torch.cuda.device(other):
        got = small_svd(T.to(other))
    assert all(x.device == other for x in got)
    assert same(expected, got)


def test_spectra_that_are_gapped_come_back(one_read: list) -> None:
    M = gapped_matrix(257, 300, gap=0.8).float()
    exact = torch.linalg.svdvals(M.double())
    basis = columns(torch.linalg.svd(M)[2][:20].mT)
    S = warm_svd(padded(M), basis, step(), 8, 0)[1].cpu().double()
    assert float((S - exact[:20]).abs().max()) < 2 * TF32
