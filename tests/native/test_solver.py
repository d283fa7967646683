"""The small solver against LAPACK in float64, compiled with AddressSanitizer and UBSan."""

from pathlib import Path

import numpy as np
import pytest
from native.solver import COMPILER, Solver

from lip_fast.status import NOT_CONVERGED, NOT_FINITE, RANK_DEFICIENT

pytestmark = [pytest.mark.process, pytest.mark.skipif(COMPILER is None, reason="needs g++")]

SINGLE, DOUBLE = np.dtype(np.float32), np.dtype(np.float64)
DTYPES = [SINGLE, DOUBLE]
SIZES = [1, 2, 3, 7, 16, 33, 48, 80, 128]
# Values by place 0..1 of the spectrum.
SPECTRA = {
    "harmonic": lambda x, m: 1 / (1 + x * (m - 1)),
    "root": lambda x, m: (1 + x * (m - 1)) ** -0.5,
    "four decades": lambda x, m: 10 ** (-4 * x),
    "eight decades": lambda x, m: 10 ** (-8 * x),
    "clustered": lambda x, m: np.where(x < 0.5, 1.0, np.where(x < 0.8, 1e-2, 1e-3)),
    "flat": lambda x, m: np.ones_like(x),
    "nearly flat": lambda x, m: 1 - 1e-5 * x,
}


@pytest.fixture(scope="module")
def solver(tmp_path_factory: pytest.TempPathFactory) -> Solver:
    return Solver(tmp_path_factory.mktemp("solver"))


def _spectrum(name: str, m: int) -> np.ndarray:
    return SPECTRA[name](np.linspace(0, 1, m), m)


def _orthogonal(m: int, rng: np.random.Generator) -> np.ndarray:
    Q, R = np.linalg.qr(rng.standard_normal((m, m)))
    return Q * np.sign(np.diag(R))


def _deviation(F: np.ndarray) -> float:
    """max |F^T F - I| in float64."""
    F = F.astype(DOUBLE)
    return float(np.abs(F.T @ F - np.eye(F.shape[1])).max())


def _check(T: np.ndarray, U: np.ndarray, S: np.ndarray, V: np.ndarray, *, rank: int | None = None) -> None:
    """Against LAPACK in float64, to the rounding of the dtype."""
    m, eps = len(T), float(np.finfo(T.dtype).eps)
    rank = m if rank is None else rank
    exact = np.linalg.svd(T.astype(DOUBLE), compute_uv=False)
    # Backward stable: every value to a few roundings of the largest.
    budget = 8 * np.sqrt(m) * eps
    off = float(np.abs(S.astype(DOUBLE) - exact).max())
    assert off <= budget * exact[0]
    assert (np.diff(S) <= 0).all()
    U, V = U.astype(DOUBLE), V.astype(DOUBLE)
    for F, columns in ((U, rank), (V, m)):
        assert _deviation(F[:, :columns]) <= budget
    back = np.linalg.norm(U * S.astype(DOUBLE) @ V.T - T.astype(DOUBLE))
    assert back <= budget * np.linalg.norm(exact)


@pytest.mark.parametrize("m", SIZES)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("spectrum", SPECTRA)
def test_a_cold_start_is_lapacks(solver: Solver, m: int, dtype: np.dtype, spectrum: str) -> None:
    rng = np.random.default_rng(m)
    T = (_orthogonal(m, rng) * _spectrum(spectrum, m) @ _orthogonal(m, rng)).astype(dtype)
    got = solver.small_svd(T)
    assert got.status[0] == 0
    _check(T, got.U[0], got.S[0], got.V[0])
    # Rounding that is so much finer takes some more; equal values at several levels are the slowest.
    most = {"four decades": 17, "eight decades": 26, "clustered": 16}.get(spectrum, 11)
    assert got.sweeps[0] <= most + (8 if dtype == DOUBLE else 0)


@pytest.mark.parametrize("m", [40, 48, 80, 128])
@pytest.mark.parametrize("spectrum", ["harmonic", "root", "four decades", "eight decades"])
@pytest.mark.parametrize(("change", "sweeps"), [(1e-3, 3), (1e-2, 4), (1e-1, 6)])
def test_a_warm_start_takes_few_sweeps(
    solver: Solver, m: int, spectrum: str, change: float, sweeps: int
) -> None:
    rng = np.random.default_rng(m)
    s = _spectrum(spectrum, m)
    U, V = _orthogonal(m, rng), _orthogonal(m, rng)
    # Each direction moves by ``change`` of its own length.
    T = (U @ (np.eye(m) + change / np.sqrt(m) * rng.standard_normal((m, m))) * s @ V.T).astype(SINGLE)
    got = solver.small_svd(T, V[None])
    assert got.status[0] == 0
    _check(T, got.U[0], got.S[0], got.V[0])
    assert got.sweeps[0] <= sweeps + (2 if spectrum == "eight decades" else 0)
    assert got.sweeps[0] < solver.small_svd(T).sweeps[0]


def test_small_values_are_accurate_relative_to_themselves(solver: Solver) -> None:
    # T = B diag(s) with a well-conditioned B: what one-sided Jacobi is known for, and LAPACK's SVD cannot do.
    rng = np.random.default_rng(0)
    m = 32
    s = 10.0 ** -np.linspace(0, 8, m)
    T = ((np.eye(m) + 0.1 / np.sqrt(m) * rng.standard_normal((m, m))) * s).astype(SINGLE)
    exact = np.linalg.svd(T.astype(DOUBLE), compute_uv=False)
    got = solver.small_svd(T).S[0].astype(DOUBLE)
    assert (np.abs(got - exact) / exact).max() < 1e-5


@pytest.mark.parametrize("m", [1, 2, 17, 128])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_zero_and_identity(solver: Solver, m: int, dtype: np.dtype) -> None:
    got = solver.small_svd(np.zeros((m, m), dtype))
    assert got.status[0] == RANK_DEFICIENT
    assert not got.S.any()
    assert not got.U.any()
    assert (got.V[0] == np.eye(m)).all()
    assert got.sweeps[0] == 1
    got = solver.small_svd(np.eye(m, dtype=dtype))
    assert got.status[0] == 0
    assert (got.S == 1).all()
    assert got.sweeps[0] == 1


@pytest.mark.parametrize("length", [1e-22, 1e-30, 1e-38, 1e-42])
def test_a_column_whose_square_underflows_is_zero(solver: Solver, length: float) -> None:
    rng = np.random.default_rng(2)
    T = rng.standard_normal((6, 6)).astype(SINGLE)
    T[:, 4] *= SINGLE.type(length)
    got = solver.small_svd(T)
    # Its cosine with the others would be infinite, and the sweeps without end.
    assert got.status[0] == RANK_DEFICIENT
    assert got.sweeps[0] < 12
    assert got.S[0, 5] == 0
    _check(T, got.U[0], got.S[0], got.V[0], rank=5)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("m", [6, 48])
def test_a_matrix_of_low_rank(solver: Solver, m: int, dtype: np.dtype) -> None:
    rng = np.random.default_rng(1)
    T = np.zeros((m, m), dtype)
    T[:, : m // 2] = rng.standard_normal((m, m // 2))
    got = solver.small_svd(T)
    # Columns that are zero stay so; the others are found.
    assert got.status[0] == RANK_DEFICIENT
    _check(T, got.U[0], got.S[0], got.V[0], rank=m // 2)
    # Rank lost between columns leaves rounding, which is decomposed like the rest.
    T = (rng.standard_normal((m, 3)) @ rng.standard_normal((3, m))).astype(dtype)
    got = solver.small_svd(T)
    _check(T, got.U[0], got.S[0], got.V[0], rank=3)


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("m", [1, 9, 48])
def test_what_is_not_finite_is_reported(solver: Solver, bad: float, m: int) -> None:
    for column in {0, m // 3, m - 1}:
        T = np.eye(m, dtype=SINGLE) + np.float32(0.1)
        T[m // 2, column] = bad
        assert solver.small_svd(T).status[0] == NOT_FINITE
        assert solver.small_svd(T, np.eye(m)[None]).status[0] == NOT_FINITE


@pytest.mark.parametrize("scale", [1e-30, 1e30])
def test_scale_does_not_matter(solver: Solver, scale: float) -> None:
    rng = np.random.default_rng(2)
    T = rng.standard_normal((20, 20)).astype(SINGLE)
    got, scaled = solver.small_svd(T), solver.small_svd((T.astype(DOUBLE) * scale).astype(SINGLE))
    assert scaled.status[0] == 0
    np.testing.assert_allclose(scaled.S[0].astype(DOUBLE) / scale, got.S[0], rtol=1e-5)


def test_a_batch_is_each_of_its_matrices(solver: Solver) -> None:
    rng = np.random.default_rng(3)
    T = rng.standard_normal((5, 12, 12)).astype(SINGLE)
    together = solver.small_svd(T)
    for n in range(5):
        alone = solver.small_svd(T[n])
        for a, b in zip(together, alone, strict=True):
            np.testing.assert_array_equal(a[n], b[0])


def test_without_room_for_two_buffers_the_result_is_the_same(solver: Solver) -> None:
    rng = np.random.default_rng(4)
    T = rng.standard_normal((1, 37, 37)).astype(SINGLE)
    for start in (None, _orthogonal(37, rng)[None]):
        for a, b in zip(solver.small_svd(T, start), solver.small_svd(T, start, spacious=False), strict=True):
            np.testing.assert_array_equal(a, b)


# Cholesky -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("m", SIZES)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("spread", [0, 6], ids=["equal lengths", "twelve decades of lengths"])
def test_the_factor_is_choleskys_whatever_the_lengths(
    solver: Solver, m: int, dtype: np.dtype, spread: int
) -> None:
    rng = np.random.default_rng(m)
    X = rng.standard_normal((4 * m + 4, m)) * 10.0 ** np.linspace(spread, -spread, m)
    G = (X.T @ X).astype(dtype)
    R, P, independent = solver.factor(G)
    assert independent == m
    exact = np.linalg.cholesky(G.astype(DOUBLE)).T
    budget = 50 * m * float(np.finfo(dtype).eps)
    lengths = np.sqrt(np.diag(G).astype(DOUBLE))
    assert (np.abs(R - exact) / lengths).max() < budget
    assert not np.tril(R, -1).any()
    assert not np.tril(P, -1).any()
    Q = X @ P.astype(DOUBLE)
    assert _deviation(Q) < budget


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_columns_that_depend_on_others_are_dropped(solver: Solver, dtype: np.dtype) -> None:
    rng = np.random.default_rng(5)
    X = rng.standard_normal((60, 10))
    X[:, 3] = X[:, 0] - 2 * X[:, 2]
    X[:, 6] = 0
    X[:, 9] = X[:, 8] * (1 + 1e-9 * rng.standard_normal(60))
    G = (X.T @ X).astype(dtype)
    R, P, independent = solver.factor(G)
    assert independent == 7
    kept = [0, 1, 2, 4, 5, 7, 8]
    Q = X @ P.astype(DOUBLE)
    assert not Q[:, [3, 6, 9]].any()
    assert _deviation(Q[:, kept]) < 1e3 * float(np.finfo(dtype).eps)
    # What was dropped is still told in terms of the others.
    np.testing.assert_allclose(Q @ R.astype(DOUBLE), X, atol=1e-4 if dtype == SINGLE else 1e-7)
    assert np.isfinite(R).all()
    assert np.isfinite(P).all()


def test_a_column_is_kept_down_to_the_guard(solver: Solver) -> None:
    # The guard is 32 m eps of the squared length: 2e-5 of it for two columns.
    for outside, independent in ((1e-2, 2), (1e-3, 1)):
        G = np.array([[1, 1], [1, 1 + outside**2]], SINGLE)
        assert solver.factor(G)[2] == independent


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_a_gram_matrix_that_is_not_finite_is_reported(solver: Solver, bad: float) -> None:
    G = np.eye(5, dtype=SINGLE)
    G[2, 2] = bad
    assert solver.factor(G)[2] == -1


# The stages of a warm SVD -------------------------------------------------------------------------------


def _tracked(l: int, q: int, t: int, m: int, change: float, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """M of rank t with a small change, and V: the right basis of before and orthonormal fresh columns."""
    rng = np.random.default_rng(seed)
    U = np.linalg.qr(rng.standard_normal((l, t)))[0]
    V = np.linalg.qr(rng.standard_normal((q, m)))[0]
    M = U * np.arange(1, t + 1) ** -0.5 @ V[:, :t].T
    return M + change * rng.standard_normal((l, q)) / np.sqrt(l * q), V


@pytest.mark.parametrize(
    ("l", "q", "t", "m"),
    [
        (100, 300, 40, 48),
        (300, 100, 40, 48),
        (97, 89, 1, 9),
        (61, 67, 53, 61),
        (150, 140, 120, 128),
        (5, 5, 1, 5),
    ],
)
@pytest.mark.parametrize("change", [1e-1, 1e-3, 1e-5])
def test_the_stages_find_the_truncated_svd(
    solver: Solver, l: int, q: int, t: int, m: int, change: float
) -> None:
    M, V = _tracked(l, q, t, m, change)
    got = solver.warm_svd(M, V, t)
    assert got.status == 0
    s = np.linalg.svd(M, compute_uv=False)
    A, S, B = (X.astype(DOUBLE) for X in got[:3])
    assert np.abs(S - s[:t]).max() < 1e-5 * s[0] + (s[t] if t < len(s) else 0) ** 2
    for F, budget in ((A, 1e-5), (B, 3e-6)):
        assert _deviation(F) < budget
    best = np.sqrt((s[t:] ** 2).sum())
    error = np.linalg.norm(M - A * S @ B.T)
    # One step from a basis that is ``change`` old, and the rounding of float32.
    assert error < 1.01 * best + 1e-5
    assert got.info[-2] <= 8  # sweeps


def test_fresh_columns_that_find_nothing_new_are_dropped(solver: Solver) -> None:
    # An update of rank 3 leaves the eight fresh columns three directions.
    rng = np.random.default_rng(6)
    M, V = _tracked(100, 300, 40, 48, 0.0)
    M += 1e-2 * rng.standard_normal((100, 3)) @ rng.standard_normal((3, 300)) / np.sqrt(30000)
    got = solver.warm_svd(M, V, 40)
    assert got.status == 0
    assert got.info[0] == 43
    s = np.linalg.svd(M, compute_uv=False)
    error = np.linalg.norm(M - got.A.astype(DOUBLE) * got.S @ got.B.T.astype(DOUBLE))
    assert error < 1.001 * np.sqrt((s[40:] ** 2).sum()) + 1e-6


def test_a_weight_of_too_low_a_rank_is_reported(solver: Solver) -> None:
    rng = np.random.default_rng(7)
    M = rng.standard_normal((60, 4)) @ rng.standard_normal((4, 50))
    V = np.linalg.qr(rng.standard_normal((50, 20)))[0]
    assert solver.warm_svd(M, V, 12).status == RANK_DEFICIENT
    assert solver.warm_svd(np.zeros((60, 50)), V, 12).status == RANK_DEFICIENT
    assert solver.warm_svd(M, V, 4).status == 0


@pytest.mark.parametrize("bad", [np.nan, np.inf, 3e38])
def test_a_weight_that_is_not_finite_is_reported(solver: Solver, bad: float) -> None:
    M, V = _tracked(60, 50, 10, 18, 1e-3)
    M[7, 9] = bad
    with np.errstate(over="ignore", invalid="ignore"):
        got = solver.warm_svd(M, V, 10)
    assert got.status == NOT_FINITE
    assert np.isfinite(got.S).all()


def test_status_bits_are_those_of_python() -> None:
    text = (Path(__file__).parents[2] / "csrc" / "core" / "status.h").read_text()
    from lip_fast import status

    for name, value in (
        ("kNotFinite", status.NOT_FINITE),
        ("kRankDeficient", status.RANK_DEFICIENT),
        ("kNotConverged", NOT_CONVERGED),
        ("kNotOrthogonal", status.NOT_ORTHOGONAL),
    ):
        assert f"{name} = {value}," in text
