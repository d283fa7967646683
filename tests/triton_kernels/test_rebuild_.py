"""Writing the weight: within rounding of float64, with the bits of other backends, and only where it may."""

from collections.abc import Callable

import numpy as np
import pytest
import torch

from lip_fast import backends
from lip_fast.backends.default.fresh_columns import philox
from lip_fast.backends.default.rebuild_ import DROPPED_BITS

# What overflows on purpose is a warning of numpy in the interpreter.
pytestmark = pytest.mark.filterwarnings("ignore:(overflow|invalid value) encountered:RuntimeWarning")

rebuild_ = backends.kernel("rebuild_", "triton", "cuda").run
NARROW = [torch.bfloat16, torch.float16]
# One entry, less than a tile, primes, more than a tile, tall, wide, several blocks of directions, none.
SHAPES = [(1, 1, 1), (3, 5, 2), (7, 129, 5), (130, 33, 16), (257, 64, 17), (64, 128, 40), (5, 6, 0)]


def _factors(l: int, q: int, t: int, device: torch.device, layout: str = "rows") -> list[torch.Tensor]:
    g = torch.Generator().manual_seed(l + q)
    A, s, B = (torch.randn(*shape, generator=g).to(device) for shape in ((l, t), (t,), (q, t)))
    if layout == "columns":
        A, B = (F.mT.contiguous().mT for F in (A, B))
    elif layout == "strided":
        A, s, B = (torch.stack([F, torch.full_like(F, torch.nan)], -1)[..., 0] for F in (A, s, B))
    return [A, s, B]


def _flag(value: bool, device: torch.device) -> torch.Tensor:
    return torch.tensor(value, device=device)


def _write(M: torch.Tensor, A, s, B, *, ok=True, step: int = 3, accumulate=False, seed: int = 0) -> bool:
    ok, step = _flag(ok, M.device), torch.tensor(step, device=M.device)
    written = rebuild_(M, A, s, B, ok, step, accumulate, seed)
    assert written.dtype == torch.bool
    assert written.shape == ()
    assert written.data_ptr() != ok.data_ptr()
    return bool(written)


def _noise(rows: int, columns: int, step: int, seed: int) -> np.ndarray:
    """(rows, columns) uint32 below 2^16, from Philox in numpy: bits of (row, step, column // 8, 1)."""
    blocks = -(-columns // 8)
    counter = np.zeros((4, rows * blocks), dtype=np.uint64)
    counter[0] = np.repeat(np.arange(rows, dtype=np.uint64), blocks)
    counter[1] = step & 0xFFFFFFFF
    counter[2] = np.tile(np.arange(blocks, dtype=np.uint64), rows)
    counter[3] = 1
    words = philox(counter, seed).T.reshape(rows, blocks, 4)
    halves = np.stack([words & np.uint64(0xFFFF), words >> np.uint64(16)], -1)
    return halves.reshape(rows, 8 * blocks)[:, :columns].astype(np.uint32)


def _rounded(x: torch.Tensor, dtype: torch.dtype, step: int, seed: int) -> torch.Tensor:
    mask = np.uint32((1 << DROPPED_BITS[dtype]) - 1)
    bits = x.cpu().numpy().view(np.uint32) + (_noise(*x.shape, step, seed) & mask) & ~mask
    return torch.from_numpy(bits.view(np.float32)).to(x.device)


@pytest.mark.parametrize("accumulate", [False, True])
@pytest.mark.parametrize("layout", ["rows", "columns", "strided"])
@pytest.mark.parametrize(("l", "q", "t"), SHAPES)
def test_the_product_is_that_of_float64(
    l: int, q: int, t: int, layout: str, accumulate: bool, device: torch.device
) -> None:
    A, s, B = _factors(l, q, t, device, layout)
    g = torch.Generator().manual_seed(1)
    whole = torch.randn(l, 2 * q, generator=g).to(device)
    M = {"rows": whole[:, :q].clone(), "columns": whole[:, :q].mT.contiguous().mT, "strided": whole[:, ::2]}[
        layout
    ]
    before = M.clone() if accumulate else torch.zeros_like(M)
    if not accumulate:
        M.fill_(torch.nan)
    untouched = whole[:, 1::2].clone()
    assert _write(M, A, s, B, accumulate=accumulate)
    exact = before.double() + (A.double() * s.double()) @ B.double().mT
    # t + 2 roundings of a sum of these sizes, each at most half a unit in the last place. On tensor cores
    # sums are cut, not rounded, and a product of TF32 parts lacks that of the remainders, up to 2^-22 of it.
    rounding = (t + 2) * 2.0**-24 if device.type == "cpu" else (t + 2) * 2.0**-23 + 2.0**-21
    sizes = before.double().abs() + (A.double() * s.double()).abs() @ B.double().abs().mT
    assert torch.all((M.double() - exact).abs() <= rounding * sizes)
    assert torch.equal(whole[:, 1::2], untouched)


@pytest.mark.parametrize("dtype", NARROW)
@pytest.mark.parametrize("accumulate", [False, True])
@pytest.mark.parametrize(("l", "q", "t"), SHAPES)
@pytest.mark.parametrize(("step", "seed"), [(0, 0), (2**32 + 7, 2**63 - 1)])
def test_the_bits_of_the_rounding(
    l: int, q: int, t: int, step: int, seed: int, accumulate: bool, dtype: torch.dtype, device: torch.device
) -> None:
    A, s, B = _factors(l, q, t, device)
    # One direction of few digits, and powers of two: the value to be rounded is exact, on tensor cores too.
    A = (A[:, :1] * 2.0**12).round() / 2.0**12
    s, B = torch.full((1,), 0.5, device=device), torch.ones(q, 1, device=device)
    if t == 0:
        A, s, B = A[:, :0], s[:0], B[:, :0]
    M = torch.full((l, q), 2.0 if accumulate else torch.nan, dtype=dtype, device=device)
    value = (A * s) @ B.mT + (2.0 if accumulate else 0.0)
    assert _write(M, A, s, B, step=step, seed=seed, accumulate=accumulate)
    assert torch.equal(M.float(), _rounded(value, dtype, step, seed).to(dtype).float())


@pytest.mark.parametrize("dtype", [torch.float32, *NARROW])
@pytest.mark.parametrize("accumulate", [False, True])
def test_not_ok_leaves_every_bit(dtype: torch.dtype, accumulate: bool, device: torch.device) -> None:
    A, s, B = _factors(70, 130, 5, device)
    M = torch.randn(70, 130, generator=torch.Generator().manual_seed(2)).to(device, dtype)
    M[0, 0] = torch.nan
    before = M.clone()
    for factor in (A, A * torch.nan):
        assert not _write(M, factor, s, B, ok=False, accumulate=accumulate)
        assert torch.equal(M.view(torch.uint8), before.view(torch.uint8))


@pytest.mark.parametrize("place", [(0, 0), (69, 129), (33, 100)])
@pytest.mark.parametrize("accumulate", [False, True])
@pytest.mark.parametrize("dtype", NARROW)
def test_one_entry_out_of_range_and_nothing_is_written(
    place: tuple[int, int], accumulate: bool, dtype: torch.dtype, device: torch.device
) -> None:
    row, column = place
    largest = torch.finfo(dtype).max
    # Finite in float32; of bfloat16 one in 65536 draws would round it back into range.
    beyond = 7e4 if dtype == torch.float16 else torch.finfo(torch.float32).max
    M = torch.zeros(70, 130, dtype=dtype, device=device)
    before = M.clone()
    for value in (torch.nan, torch.inf, -torch.inf, beyond, -beyond):
        A, B = torch.zeros(70, 2, device=device), torch.zeros(130, 2, device=device)
        A[row, 1], B[column, 1] = 1.0, value
        assert not _write(M, A, torch.ones(2, device=device), B, accumulate=accumulate), value
        assert torch.equal(M, before)
    # The bound does not clear this tile, and yet its entries are all in range: cancelled, and exact.
    A = torch.full((70, 2), 1.0, device=device)
    A[:, 1] = -1.0
    B = torch.full((130, 2), largest / 2, device=device)
    assert _write(M, A, torch.ones(2, device=device), B, accumulate=accumulate)
    assert not M.any()


@pytest.mark.parametrize("dtype", NARROW)
def test_what_is_added_to_counts(dtype: torch.dtype, device: torch.device) -> None:
    M = torch.zeros(70, 130, dtype=dtype, device=device)
    M[69, 129] = torch.finfo(dtype).max
    before = M.clone()
    A, B = torch.ones(70, 1, device=device), torch.ones(130, 1, device=device)
    s = torch.full((1,), torch.finfo(dtype).max / 16, device=device)
    assert not _write(M, A, s, B, accumulate=True)
    assert torch.equal(M, before)
    M[69, 129] = torch.nan
    assert not _write(M, A, s, B, accumulate=True)
    assert _write(M, A, s, B, accumulate=False)
    assert torch.isfinite(M).all()


@pytest.mark.parametrize("dtype", [torch.float32, *NARROW])
@pytest.mark.parametrize("shape", [(0, 5), (5, 0)])
def test_nothing_to_write(shape: tuple[int, int], dtype: torch.dtype, device: torch.device) -> None:
    A, s, B = _factors(*shape, 3, device)
    assert _write(torch.empty(shape, dtype=dtype, device=device), A, s, B)


def test_the_same_bits_each_time(device: torch.device) -> None:
    A, s, B = _factors(130, 70, 40, device)
    first, again = (torch.full((130, 70), torch.nan, dtype=torch.bfloat16, device=device) for _ in range(2))
    assert _write(first, A, s, B)
    assert _write(again, A, s, B)
    assert torch.equal(first, again)


@pytest.mark.parametrize("operand", [0, 2], ids=["A", "B"])
def test_columns_may_be_far_apart(
    operand: int, far_apart: Callable[[torch.Tensor], torch.Tensor], device: torch.device
) -> None:
    factors = _factors(5, 7, 3, device)
    plain, far = (torch.full((5, 7), torch.nan, device=device) for _ in range(2))
    assert _write(plain, *factors)
    factors[operand] = far_apart(factors[operand])
    assert _write(far, *factors)
    assert torch.equal(far, plain)
