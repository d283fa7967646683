"""The native kernels against the default ones and the oracle, whichever of them serves the ops.

They run on CPU tensors here: the same sources, and the same arithmetic, as on a GPU.
"""

from collections.abc import Callable
from types import SimpleNamespace

import pytest
import torch
from problems import gapped_matrix, orthonormal, relative_error

from lip_fast import backends
from lip_fast.backends.default.fresh_columns import fresh_columns as numpy_fresh_columns
from lip_fast.backends.default.label_sums import label_sums as torch_label_sums
from lip_fast.backends.default.refit import refit as python_refit
from lip_fast.backends.default.svd import warm_svd as lapack_warm_svd
from lip_fast.backends.default.tail_svd import tail_svd as lapack_tail_svd
from lip_fast.backends.native import library
from lip_fast.backends.native.fresh_columns import fresh_columns
from lip_fast.backends.native.label_sums import label_sums
from lip_fast.backends.native.rebuild_ import rebuild_
from lip_fast.backends.native.refit import refit
from lip_fast.backends.native.small_svd import small_svd
from lip_fast.backends.native.svd import warm_svd
from lip_fast.backends.native.tail_svd import tail_svd, tail_svd_of_factor
from lip_fast.ops.op import OPS, on_its_device
from lip_fast.status import NOT_FINITE, RANK_DEFICIENT

pytestmark = pytest.mark.skipif(library.cpu() is None, reason=f"no CPU extension: {library.problems()}")

CPU = torch.device("cpu")
STEP = torch.tensor(3)
TRUE = torch.tensor(True)
TailSVD = Callable[[torch.Tensor, int], tuple[torch.Tensor, ...]]


@pytest.mark.parametrize("rows", [0, 1, 63, 64, 65, 1000])
@pytest.mark.parametrize("columns", [0, 1, 8, 128, 129, 300])
@pytest.mark.parametrize(("step", "seed"), [(0, 0), (7, 1), (2**32 + 5, 2**63 - 1)])
def test_fresh_columns_are_the_same_bits(rows: int, columns: int, step: int, seed: int) -> None:
    step = torch.tensor(step)
    got = fresh_columns(step, rows, columns, seed)
    assert torch.equal(got, numpy_fresh_columns(step, rows, columns, seed))
    assert got.mT.is_contiguous()


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("clip", [True, False])
@pytest.mark.parametrize(
    ("t", "rank", "r"), [(0, 0, 0), (1, 0, 1), (5, 2, 3), (5, 5, 0), (9, 0, 9), (300, 20, 200)]
)
@pytest.mark.parametrize("broken", ["", "numerator", "denominator", "energy", "S", "ok", "huge"])
def test_refit_is_the_same_to_the_bit(
    dtype: torch.dtype, clip: bool, t: int, rank: int, r: int, broken: str
) -> None:
    g = torch.Generator().manual_seed(t)
    S = torch.rand(t, generator=g, dtype=dtype).sort(descending=True).values
    S[t // 2 :] *= 1e-5
    numerator = 3 * torch.randn(r, generator=g, dtype=torch.float64)
    denominator = torch.rand(r, generator=g, dtype=torch.float64)
    denominator[::3] *= 1e-7
    energy, ok = denominator.sum() + 1, TRUE
    if broken == "ok":
        ok = torch.tensor(False)
    elif broken == "energy":
        energy = energy * float("inf")
    elif broken == "huge" and r:
        numerator[-1], denominator[-1] = torch.finfo(dtype).max * 0.3, 1.0
    elif broken == "S" and t:
        S[0] = float("nan")
    elif broken in ("numerator", "denominator") and r:
        {"numerator": numerator, "denominator": denominator}[broken][r // 2] = float("nan")
    arguments = (S, numerator, denominator, energy, ok, rank, 1e-4, clip)
    for got, expected in zip(refit(*arguments), python_refit(*arguments), strict=True):
        assert got.dtype == expected.dtype
        assert torch.equal(got.nan_to_num(nan=-7.0), expected.nan_to_num(nan=-7.0))


@pytest.mark.parametrize(
    ("n", "q", "l", "r"), [(0, 5, 3, 2), (1, 1, 1, 1), (37, 41, 10, 5), (50, 300, 7, 0), (9, 20, 30, 19)]
)
@pytest.mark.parametrize("with_bias", [True, False])
@pytest.mark.parametrize("layout", ["contiguous", "strided"])
def test_label_sums_are_those_of_float64(
    n: int, q: int, l: int, r: int, with_bias: bool, layout: str
) -> None:
    g = torch.Generator().manual_seed(n)
    X, A, B = (torch.randn(*shape, generator=g) for shape in ((n, q), (l, r), (q, r)))
    y = torch.randint(0, l, (n,), generator=g)
    if n > 4:
        y[0], y[1], y[2], y[3] = -100, -1, l, 2**40
        X[1] = float("nan")  # a row that does not count, whatever it holds
    bias = torch.randn(l, generator=g) if with_bias else None
    if layout == "strided":
        X, A, B = (torch.stack([F, F.neg()], dim=2)[:, :, 0] for F in (X, A.mT.contiguous().mT, B))
    wide = [F.double() for F in (X, A, B)]
    expected = torch_label_sums(wide[0], y, wide[1], wide[2], None if bias is None else bias.double())
    got = label_sums(X, y, A, B, bias)
    scale = float(wide[0].nan_to_num().square().sum()) + 1
    for a, b in zip(got[:3], expected[:3], strict=True):
        assert a.dtype == b.dtype
        assert a.shape == b.shape
        assert torch.all((a - b).abs() <= 1e-5 * scale)
    assert int(got[3]) == int(expected[3]) == (3 if n > 4 else 0)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("shape", [(1, 1), (24, 24), (3, 10, 10), (2, 2, 128, 128), (0, 5, 5)])
def test_small_svd_is_lapacks(dtype: torch.dtype, shape: tuple[int, ...]) -> None:
    g = torch.Generator().manual_seed(0)
    T = torch.randn(shape, generator=g, dtype=dtype)
    exact = torch.linalg.svdvals(T.double())
    cold = small_svd(T, None)
    for U, S, V, sweeps, status in (cold, small_svd(T, cold[2])):
        assert not status.any()
        budget = 20 * shape[-1] ** 0.5 * torch.finfo(dtype).eps
        assert torch.all((S.double() - exact).abs() <= budget * exact[..., :1])
        back = U.double() * S.double()[..., None, :] @ V.double().mT
        assert torch.all((back - T).abs() <= 4 * budget * exact[..., :1, None])
        assert torch.all(sweeps >= 1)
    if T.numel():
        assert int(small_svd(T, cold[2])[3].max()) <= 2  # from its own answer there is nothing left to turn


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_columns_that_collapse_are_orthogonal_or_none(dtype: torch.dtype) -> None:
    # Equal rows: a rotation leaves of some columns mere rounding, which is orthogonal to nothing by itself.
    g = torch.Generator().manual_seed(3)
    T = torch.randn(60, 12, 12, generator=g, dtype=dtype)
    for n in range(len(T)):
        T[n, 0] = T[n, 1 + n % 11]
    U, S, V, _, status = small_svd(torch.cat([T, torch.ones(1, 12, 12, dtype=dtype)]), None)
    assert torch.all((status == 0) | (status == RANK_DEFICIENT))
    assert torch.all((S > 0).sum(-1)[status == 0] == 12)
    gram = U.double().mT @ U.double()
    directions = torch.diag_embed((S > 0).double())
    assert float((gram - directions).abs().max()) < 1e-4
    assert torch.all((V.double().mT @ V.double() - torch.eye(12)).abs() < 1e-4)


tail_svds = pytest.mark.parametrize("tail_svd", [tail_svd, tail_svd_of_factor])


@tail_svds
@pytest.mark.parametrize("shape", [(3, 3), (10, 64), (64, 10)])
def test_tail_svd_of_equal_rows(tail_svd: TailSVD, shape: tuple[int, int]) -> None:
    for M in (torch.ones(shape), torch.ones(shape) * torch.arange(1.0, shape[0] + 1)[:, None]):
        A, S, B, status = tail_svd(M, 1)
        assert int(status) == 0
        assert float(S[1:].max()) < 1e-6 * float(S[0])
        # The large side has no directions there, the small side whatever is orthogonal.
        large = B if shape[0] <= shape[1] else A
        assert not large.any()


def test_a_basis_that_no_longer_fits_is_found_anew() -> None:
    g = torch.Generator().manual_seed(4)
    M = torch.randn(40, 60, generator=g)
    M += 1000 * torch.outer(torch.randn(40, generator=g), torch.randn(60, generator=g))
    basis = torch.linalg.qr(torch.randn(60, 24, generator=g)).Q.mT.contiguous().mT
    statuses = []
    for step in range(6):
        _, _, basis, status = warm_svd(M, basis, torch.tensor(step), 8, 0)
        statuses.append(int(status))
    assert statuses[0] == RANK_DEFICIENT
    assert statuses[-1] == 0


def test_small_svd_takes_any_strides() -> None:
    T = torch.randn(6, 6, generator=torch.Generator().manual_seed(1))
    for a, b in zip(
        small_svd(T.mT, None), small_svd(T.mT.clone(memory_format=torch.contiguous_format), None), strict=True
    ):
        assert torch.equal(a, b)


@pytest.mark.parametrize(("l", "q"), [(1, 1), (1, 9), (9, 1), (10, 512), (512, 10), (24, 24), (3, 700)])
@pytest.mark.parametrize("layout", ["rows", "columns", "strided"])
@tail_svds
def test_tail_svd_is_lapacks(tail_svd: TailSVD, l: int, q: int, layout: str) -> None:
    M = gapped_matrix(l, q).float()
    if layout == "columns":
        M = M.mT.contiguous().mT
    elif layout == "strided":
        M = torch.stack([M, M.neg()], dim=2)[:, :, 0]
    d = min(l, q)
    for rank in {0, d // 2, d}:
        A, S, B, status = tail_svd(M, rank)
        assert int(status) == 0
        exact = lapack_tail_svd(M.double(), rank)
        assert relative_error(S, exact[1]) < 1e-6
        assert A.shape == (l, d - rank)
        assert B.shape == (q, d - rank)
        scale = float(exact[1][0])
        got = A.double() * S[rank:].double() @ B.double().mT
        expected = exact[0] * exact[1][rank:] @ exact[2].mT
        assert float((got - expected).abs().max() if d > rank else 0) < 1e-6 * scale
        for F in (A, B):
            assert relative_error(F.double().mT @ F.double() + 1, torch.eye(d - rank) + 1) < 1e-5 or d == rank


@pytest.mark.parametrize(("l", "q"), [(100, 512), (300, 100), (128, 128)])
@pytest.mark.parametrize("squashed", [1.0, 3e-2, 1e-4, 1e-5])
def test_a_squashed_tail_is_found_to_its_own_digits(l: int, q: int, squashed: float) -> None:
    d, rank = min(l, q), 80
    U, _, Vh = torch.linalg.svd(gapped_matrix(l, q).double(), full_matrices=False)
    S = torch.linspace(2, 1, d, dtype=torch.float64)
    S[rank:] *= squashed
    M = (U * S @ Vh).float()
    A, S, B, status = tail_svd_of_factor(M, rank)
    exact = lapack_tail_svd(M.double(), rank)
    assert int(status) == 0
    assert torch.allclose(S.double(), exact[1], rtol=1e-5)
    got = A.double() * S[rank:].double() @ B.double().mT
    assert relative_error(got, exact[0] * exact[1][rank:] @ exact[2].mT) < 5e-5
    for F in (A, B):
        assert float((F.double().mT @ F.double() - torch.eye(d - rank)).abs().max()) < 3e-5


@tail_svds
def test_tail_svd_of_zero_and_of_what_is_not_finite(tail_svd: TailSVD) -> None:
    A, S, B, status = tail_svd(torch.zeros(5, 8), 2)
    assert int(status) == 0
    assert not S.any()
    assert torch.isfinite(A).all()
    assert not B.any()  # no directions on the large side
    for bad in (float("nan"), float("inf")):
        M = torch.ones(5, 8)
        M[4, 7] = bad
        A, S, B, status = tail_svd(M, 2)
        assert int(status) == NOT_FINITE
        assert not A.any()
        assert not S.any()
        assert not B.any()


SHAPES = [(100, 512, 40), (512, 100, 40), (61, 67, 53), (300, 200, 120), (9, 9, 1)]


@pytest.mark.parametrize(("l", "q", "t"), SHAPES, ids=str)
@pytest.mark.parametrize("change", [1e-1, 1e-3, 1e-5])
def test_warm_svd_is_as_good_as_lapacks(l: int, q: int, t: int, change: float) -> None:
    g = torch.Generator().manual_seed(0)
    V = orthonormal(q, 1)[:, :t]
    M = orthonormal(l, 2)[:, :t] * torch.arange(1, t + 1) ** -0.5 @ V.mT
    M = (M + change * torch.randn(l, q, generator=g, dtype=torch.float64) / (l * q) ** 0.5).float()
    fresh = min(8, min(l, q) - t)
    basis = V.float().mT.contiguous().mT
    A, S, B, status = warm_svd(M, basis, STEP, fresh, 0)
    expected = lapack_warm_svd(M, basis, STEP, fresh, 0)
    assert int(status) == 0
    for got, other in zip((A, S, B), expected[:3], strict=True):
        assert got.shape == other.shape
        assert got.stride() == other.stride()
    error = [
        torch.linalg.vector_norm(M.double() - a.double() * s.double() @ b.double().mT)
        for a, s, b in ((A, S, B), expected[:3])
    ]
    assert error[0] <= 1.002 * error[1] + 1e-5
    assert float((S - expected[1]).abs().max()) < 2e-6 * float(S[0]) + 1e-3 * change
    for F in (A, B):
        assert float((F.double().mT @ F.double() - torch.eye(t)).abs().max()) < 2e-5
    assert torch.all(S.diff() <= 0)


def test_warm_svd_does_not_depend_on_what_memory_held() -> None:
    M = gapped_matrix(90, 120).float()
    basis = orthonormal(120, 1)[:, :20].float()
    first = warm_svd(M, basis, STEP, 8, 0)
    torch.utils.deterministic.fill_uninitialized_memory = False
    try:
        again = warm_svd(M, basis, STEP, 8, 0)
    finally:
        torch.utils.deterministic.fill_uninitialized_memory = True
    for a, b in zip(first, again, strict=True):
        assert torch.equal(a, b)


def test_warm_svd_reports_what_it_cannot_do() -> None:
    basis = torch.eye(40, 12)
    assert int(warm_svd(torch.zeros(60, 40), basis, STEP, 8, 0)[3]) == RANK_DEFICIENT
    M = gapped_matrix(60, 40).float()
    M[5, 6] = float("nan")
    assert int(warm_svd(M, basis, STEP, 8, 0)[3]) == NOT_FINITE


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_rounding_is_unbiased_and_repeatable(dtype: torch.dtype) -> None:
    rows, columns = 301, 211
    A, B = torch.full((rows, 1), 1 + 2**-12), torch.ones(columns, 1)
    s = torch.ones(1)

    def written(step: int, seed: int) -> torch.Tensor:
        M = torch.zeros(rows, columns, dtype=dtype)
        assert bool(rebuild_(M, A, s, B, TRUE, torch.tensor(step), False, seed))
        return M

    M = written(3, 0)
    values = M.double().unique()
    assert len(values) == 2
    # 1 + 2^-12 lies between two neighbours of the format: the mean is exact to the noise of 63511 draws.
    assert float(M.double().mean()) == pytest.approx(
        1 + 2**-12, abs=6 * float(values[1] - 1) / (rows * columns) ** 0.5
    )
    assert torch.equal(M, written(3, 0))
    for other in (written(4, 0), written(3, 1)):
        share = float((other == M).double().mean())
        assert 0.5 < share < 0.97
    # Rows, columns and blocks of eight have bits of their own.
    assert not torch.equal(M[0], M[1])
    assert not torch.equal(M[:, 0], M[:, 8])
    assert not torch.equal(M[:, 0], M[:, 1])


def test_exact_values_survive_rounding_and_overflow_is_refused() -> None:
    A, s, B = torch.tensor([[1.5], [-0.0]]), torch.ones(1), torch.ones(3, 1)
    M = torch.zeros(2, 3, dtype=torch.bfloat16)
    rebuild_(M, A, s, B, TRUE, STEP, False, 0)
    assert torch.equal(M, torch.tensor([[1.5] * 3, [0.0] * 3], dtype=torch.bfloat16))
    M = torch.ones(2, 3, dtype=torch.float16)
    assert not bool(rebuild_(M, 1e6 * torch.ones(2, 1), s, B, TRUE, STEP, False, 0))
    assert torch.equal(M, torch.ones(2, 3, dtype=torch.float16))


# What launchers are given ----------------------------------------------------------------------------


def test_kernels_run_on_the_device_of_their_first_operand(monkeypatch: pytest.MonkeyPatch) -> None:
    current = [0]

    class OnDevice:
        def __init__(self, device: torch.device) -> None:
            self.before, self.device = current[0], device

        def __enter__(self) -> None:
            current[0] = self.device.index

        def __exit__(self, *_: object) -> None:
            current[0] = self.before

    monkeypatch.setattr(torch.cuda, "current_device", lambda: current[0])
    monkeypatch.setattr(torch.cuda, "device", OnDevice)
    seen = on_its_device(lambda first, second: (current[0], second))
    for index in (0, 1):
        operand = SimpleNamespace(device=torch.device("cuda", index))
        assert seen(operand, "x") == (index, "x")
        assert current == [0]


def test_the_modules_refuse_addresses_that_cannot_be() -> None:
    module = library.cpu()
    step = STEP.data_ptr()
    with pytest.raises(ValueError, match="expected out of 32 values, got a null address"):
        module.fresh_columns(0, 4, 8, step, 0)
    with pytest.raises(ValueError, match="expected out aligned to 4 bytes, got address 3"):
        module.fresh_columns(3, 4, 8, step, 0)
    with pytest.raises(ValueError, match=r"expected out of at least 0 values, got -8"):
        module.fresh_columns(16, -1, 8, step, 0)
    with pytest.raises(ValueError, match=r"expected 1..128 columns, got 129"):
        module.warm_workspace(1000, 1000, 129)
    with pytest.raises(ValueError, match=r"expected a workspace of \d+ values, got 7"):
        module.orthonormal_start(16, 10, 10, 3, 16, 7)
    with pytest.raises(ValueError, match=r"expected 1..3 triplets, got 4"):
        module.warm_svd(10, 10, 3, 4, 16, 16, 16, 16, 16, 16, 16, 10**6)
    with pytest.raises(ValueError, match=r"expected rank \+ r within the 3 singular values, got 2 \+ 2"):
        module.refit_float32(16, 3, 16, 16, 2, 16, 16, 2, 1e-6, True, 16, 16, 16)


def _refit_operands(*shape: int) -> list[torch.Tensor]:
    g = torch.Generator().manual_seed(1)
    S = torch.rand(9, generator=g).sort(descending=True).values
    return [S, *torch.rand(2, 5, generator=g, dtype=torch.float64), torch.tensor(2.0).double(), TRUE]


# Of each op with a native kernel on the host: a call by its operands, and which of them are tensors.
def _calls() -> dict[str, tuple[list[torch.Tensor], tuple[object, ...]]]:
    g = torch.Generator().manual_seed(2)
    draw = lambda *shape: torch.randn(*shape, generator=g)  # noqa: E731
    y = torch.randint(0, 7, (11,), generator=g)
    return {
        "fresh_columns": ([STEP], (9, 3, 5)),
        "label_sums": ([draw(11, 6), y, draw(7, 3), draw(6, 3), draw(7)], ()),
        "refit": (_refit_operands(), (2, 1e-6, True)),
        "rebuild_": ([draw(7, 6).bfloat16(), draw(7, 3), draw(3), draw(6, 3), TRUE, STEP], (False, 4)),
        "tail_svd": ([draw(7, 6)], (2,)),
        "warm_svd": ([draw(30, 20), orthonormal(20, 1)[:, :4].float(), STEP], (8, 0)),
        "start_basis": ([orthonormal(20, 1)[:, :4].float(), STEP], (8, 0)),
        "finish_svd": ([draw(30, 6), draw(20, 6)], (4,)),
    }


def _native(op: str, tensors: list[torch.Tensor], rest: tuple[object, ...]) -> list[torch.Tensor]:
    """What the kernel gives where it takes the arguments, with the weight that it writes."""
    kernel = backends.kernel(op, "native", "cpu")
    assert kernel is not None
    OPS[op].check(*tensors, *rest)
    if not kernel.can(*tensors, *rest):
        raise LookupError(op)
    result = kernel.run(*tensors, *rest)
    return [*(result if isinstance(result, tuple) else [result]), tensors[0]]


def test_every_native_kernel_on_the_host_has_a_call_here() -> None:
    assert _calls().keys() == {op for op in OPS if backends.kernel(op, "native", "cpu") is not None}


@pytest.mark.parametrize("op", _calls())
def test_strides_do_not_matter_to_a_launcher(op: str) -> None:
    tensors, rest = _calls()[op]
    expected = _native(op, [X.clone() for X in tensors], rest)
    for i, X in enumerate(tensors):
        if not X.dim():
            continue
        apart = torch.stack([X, torch.zeros_like(X)], dim=X.dim())[..., 0]
        turned = X.mT.contiguous().mT if X.dim() == 2 else X.flip(0).contiguous().flip(0)
        for other in (apart, turned):
            others = [X.clone() for X in tensors]
            others[i] = other
            for got, right in zip(_native(op, others, rest), expected, strict=True):
                assert torch.equal(got, right)


@pytest.mark.parametrize("op", _calls())
@pytest.mark.parametrize("wrong", ["dtype", "shape", "device", "dimensions"])
def test_what_does_not_fit_never_becomes_an_address(op: str, wrong: str) -> None:
    """The check refuses it, or the kernel does not take it; formats that it converts are the exception."""
    tensors, rest = _calls()[op]
    converted = {("tail_svd", 0, "dtype"), ("warm_svd", 0, "dtype")}
    converted |= {("rebuild_", 0, "dtype"), ("rebuild_", 2, "dtype")}
    # Another number of columns or values is another problem, and no wrong one.
    free = {
        ("tail_svd", 0, "shape"),
        ("refit", 0, "shape"),
        ("warm_svd", 1, "shape"),
        ("start_basis", 0, "shape"),
    }
    for i, X in enumerate(tensors):
        if (op, i, wrong) in converted | free:
            continue
        changed = {
            "dtype": lambda X: X.to(torch.float16 if X.is_floating_point() else torch.int32),
            "shape": lambda X: X[..., 1:] if X.dim() else X.expand(2),
            "device": lambda X: X.to("meta"),
            "dimensions": lambda X: X[None],
        }[wrong](X)
        others = [*tensors[:i], changed, *tensors[i + 1 :]]
        if wrong == "device" and len(tensors) == 1:
            continue
        with pytest.raises((ValueError, TypeError, LookupError)):
            _native(op, others, rest)
