"""lip, lip_path, randomized_svd and select_rank against the oracle, on every shape and every bad input."""

import warnings

import pytest
import torch
from problems import gapped_matrix, problem, relative_error

import lip_fast
from lip_fast import reference

SHAPES = [(12, 5, 60), (5, 12, 60), (7, 7, 30), (13, 11, 4), (1, 6, 20), (6, 1, 20), (1, 1, 3), (31, 3, 1)]
# Against float64; float32 quotients lose what cancels in the numerator.
TOLERANCE = {torch.float64: 1e-11, torch.float32: 2e-4}


@pytest.mark.parametrize(("q", "l", "n"), SHAPES)
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
@pytest.mark.parametrize("with_bias", [False, True])
@pytest.mark.parametrize("keep", ["none", "some", "all"])
def test_lip_is_the_paper(q: int, l: int, n: int, dtype: torch.dtype, with_bias: bool, keep: str) -> None:
    exact = problem(q, l, n)
    W, X, y, Y, bias = problem(q, l, n, dtype=dtype)
    k = {"none": 0, "some": (min(q, l) + 1) // 2, "all": min(q, l)}[keep]
    expected = reference.lip(exact.W, exact.X, exact.Y, k, bias=exact.bias if with_bias else None)
    for labels in (y, Y, Y.to_sparse()):
        got = lip_fast.lip(W, X, labels, k, bias=bias if with_bias else None)
        assert got.dtype == dtype
        assert relative_error(got, expected) < TOLERANCE[dtype]


def test_k_full_changes_nothing() -> None:
    W, X, y, _, _ = problem(12, 5, 60)
    assert torch.equal(lip_fast.lip(W, X, y, 5), W)


def test_every_form_of_labels_gives_the_same() -> None:
    W, X, y, Y, bias = problem(12, 5, 60)
    expected = lip_fast.lip(W, X, y, 2, bias=bias)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # torch calls its CSR tensors a beta
        csr = Y.to_sparse_csr()
    for labels in (Y, Y.long(), Y.bool(), Y.to_sparse(), csr, Y.float()):
        assert relative_error(lip_fast.lip(W, X, labels, 2, bias=bias), expected) < 1e-13


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_accumulates_in_float32(dtype: torch.dtype) -> None:
    W, X, y, Y, _ = problem(24, 10, 4000, dtype=dtype)
    got = lip_fast.lip(W, X, y, 4)
    assert got.dtype == dtype
    expected = reference.lip(W.double(), X.double(), Y.double(), 4)
    # The result's own rounding, and no more than twice that.
    rounding = relative_error(expected.to(dtype), expected)
    assert relative_error(got, expected) < 2 * rounding


def test_strides_do_not_matter() -> None:
    W, X, y, Y, bias = problem(12, 5, 60)
    expected = lip_fast.lip(W, X, y, 2, bias=bias)
    got = lip_fast.lip(
        W.mT.contiguous().mT,
        torch.stack([X, X], 2)[:, :, 1],
        torch.stack([y, y], 1)[:, 0],
        2,
        bias=torch.stack([bias, bias], 1)[:, 0],
    )
    assert relative_error(got, expected) < 1e-12
    assert relative_error(lip_fast.lip(W, X, Y.mT.contiguous().mT, 2, bias=bias), expected) < 1e-12


def test_least_squares_is_a_fixed_point() -> None:
    _, X, _, Y, _ = problem(12, 6, 80)
    W = torch.linalg.lstsq(X, Y).solution
    for k in range(7):
        assert relative_error(lip_fast.lip(W, X, Y, k), W) < 1e-12


def test_a_rank_deficient_weight() -> None:
    W, X, y, Y, _ = problem(12, 6, 80)
    U, S, Vh = torch.linalg.svd(W, full_matrices=False)
    low = U[:, :3] * S[:3] @ Vh[:3]
    # At and above its rank nothing but the null space is refitted, whose basis is the solver's choice.
    assert relative_error(lip_fast.lip(low, X, y, 3), reference.lip(low, X, Y, 3)) < 1e-10


def test_a_zero_weight() -> None:
    _, X, y, Y, _ = problem(6, 4, 30)
    zero = torch.zeros(6, 4, dtype=torch.float64)
    assert relative_error(lip_fast.lip(zero, X, y, 0), reference.lip(zero, X, Y, 0)) < 1e-12
    assert not lip_fast.lip(zero, X, y, 4).any()


def test_directions_that_no_feature_sees_keep_their_value() -> None:
    W, X, y, _, _ = problem(12, 6, 80)
    U, S, Vh = torch.linalg.svd(W, full_matrices=False)
    X = X - (X @ U[:, 4:]) @ U[:, 4:].mT  # blind to the last two
    got = lip_fast.lip(W, X, y, 2)
    assert torch.allclose(torch.diagonal(U.mT @ got @ Vh.mT)[4:], S[4:], rtol=1e-9)
    single = lip_fast.lip(W.float(), X.float(), y, 2)
    assert torch.allclose(torch.diagonal(U.mT.float() @ single @ Vh.mT.float())[4:], S[4:].float(), rtol=1e-3)


def test_rows_without_a_label_do_not_count() -> None:
    W, X, y, _, bias = problem(12, 5, 60)
    kept = torch.arange(60) % 4 != 0
    got = lip_fast.lip(W, X, torch.where(kept, y, -100), 2, bias=bias)
    assert relative_error(got, lip_fast.lip(W, X[kept], y[kept], 2, bias=bias)) < 1e-12


def test_the_path_holds_every_k() -> None:
    W, X, y, _, bias = problem(12, 5, 60)
    path = lip_fast.lip_path(W, X, y, bias=bias)
    assert path.ks == (0, 1, 2, 3, 4, 5)
    assert len(path) == 6
    for k, weight in path:
        assert (
            torch.equal(weight, lip_fast.lip(W, X, y, k, bias=bias))
            or relative_error(weight, lip_fast.lip(W, X, y, k, bias=bias)) < 1e-13
        )


def test_a_path_of_chosen_ks() -> None:
    W, X, y, _, _ = problem(12, 5, 60)
    path = lip_fast.lip_path(W, X, y, [4, 2])
    assert [k for k, _ in path] == [4, 2]
    assert torch.isnan(path.refitted[:2]).all()
    with pytest.raises(ValueError, match=r"expected k to be one of \(4, 2\), got 3"):
        path.weight(3)


def test_inputs_are_not_written_and_gradients_not_tracked() -> None:
    W, X, y, _, bias = problem(12, 5, 60)
    copies = [t.clone() for t in (W, X, y, bias)]
    W.requires_grad_()
    got = lip_fast.lip(W, X, y, 2, bias=bias)
    assert not got.requires_grad
    assert all(torch.equal(a, b) for a, b in zip((W, X, y, bias), copies, strict=True))


def _bad_lip_calls() -> dict[str, tuple[dict, type, str]]:
    W, X, y, Y, bias = problem(12, 5, 60)
    wrong, nan, inf = y.clone(), X.clone(), W.clone()
    wrong[7], nan[3, 2], inf[1, 1] = 5, float("nan"), float("inf")
    nan_Y, nan_bias = Y.clone(), bias.clone()
    nan_Y[2, 2] = nan_bias[0] = float("nan")
    return {
        "W no tensor": ({"W": W.tolist()}, TypeError, "expected W as a torch.Tensor, got list"),
        "W of integers": ({"W": W.long()}, TypeError, "expected W dense in one of .*got torch.int64"),
        "W a vector": ({"W": W[0]}, ValueError, r"expected W to be a matrix, got shape \(5,\)"),
        "W complex": ({"W": W.cfloat()}, TypeError, "got torch.complex64"),
        "W infinite": ({"W": inf}, ValueError, r"expected finite W, got inf at \(1, 1\)"),
        "X of another dtype": ({"X": X.float()}, TypeError, "in the dtype of W, torch.float64, got"),
        "X of another width": ({"X": X[:, :-1]}, ValueError, r"expected X with 12 columns .*\(60, 11\)"),
        "X empty": ({"X": X[:0], "Y": y[:0]}, ValueError, r"at least one row, got shape \(0, 12\)"),
        "X not a number": ({"X": nan}, ValueError, r"expected finite X, got nan at \(3, 2\)"),
        "X elsewhere": ({"X": X.to("meta")}, ValueError, "on the device of W, cpu, got meta"),
        "Y not a number": ({"Y": nan_Y}, ValueError, r"expected finite Y, got nan at \(2, 2\)"),
        "sparse Y not a number": ({"Y": nan_Y.to_sparse()}, ValueError, "expected finite the values of Y"),
        "Y too short": ({"Y": y[:-1]}, ValueError, "expected 60 class indices.*got 59"),
        "Y of another shape": ({"Y": Y[:, :-1]}, ValueError, r"\(60,\) or \(60, 5\), got \(60, 4\)"),
        "Y int32": ({"Y": y.int()}, TypeError, "class indices as int64, got torch.int32"),
        "Y of floats": ({"Y": y.double()}, TypeError, "class indices as int64, got torch.float64"),
        "Y complex": ({"Y": Y.cfloat()}, TypeError, "real dtype, got torch.complex64"),
        "Y elsewhere": ({"Y": y.to("meta")}, ValueError, "labels on cpu.*got meta"),
        "Y no tensor": ({"Y": y.tolist()}, TypeError, "labels as a torch.Tensor, got list"),
        "class out of range": ({"Y": wrong}, ValueError, r"in 0\.\.4 .*got 5 at row 7"),
        "k negative": ({"k": -1}, ValueError, r"expected k in 0\.\.5, got -1"),
        "k too large": ({"k": 6}, ValueError, r"expected k in 0\.\.5, got 6"),
        "k a float": ({"k": 2.0}, TypeError, "expected k as an int, got float"),
        "k a bool": ({"k": True}, TypeError, "expected k as an int"),
        "bias of another shape": ({"bias": bias[:-1]}, ValueError, r"bias of shape \(5,\), got \(4,\)"),
        "bias of integers": ({"bias": bias.long()}, TypeError, "bias as a floating-point vector"),
        "bias not a number": ({"bias": nan_bias}, ValueError, r"expected finite bias, got nan at \(0,\)"),
        "squares overflow": ({"X": X * 1e200}, ValueError, "squares can be summed in torch.float64"),
    }


@pytest.mark.parametrize("case", list(_bad_lip_calls()))
def test_bad_input_is_named(case: str) -> None:
    changes, error, message = _bad_lip_calls()[case]
    W, X, y, _, bias = problem(12, 5, 60)
    arguments = {"W": W, "X": X, "Y": y, "k": 2, "bias": bias} | changes
    with pytest.raises(error, match=message):
        lip_fast.lip(**arguments)


# randomized_svd -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("shape", [(40, 90), (90, 40), (50, 50), (1, 9), (9, 1), (1, 1)], ids=str)
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 3e-6), (torch.float64, 1e-10)])
@pytest.mark.parametrize("keep", ["none", "some", "all"])
def test_randomized_svd_of_a_decaying_spectrum(
    shape: tuple[int, int], dtype: torch.dtype, tolerance: float, keep: str
) -> None:
    M = gapped_matrix(*shape, gap=0.5)
    d = min(shape)
    rank = {"none": 0, "some": min(d, 10), "all": d}[keep]
    U, S, Vh = lip_fast.randomized_svd(M.to(dtype), rank)
    assert U.shape == (shape[0], rank)
    assert S.shape == (rank,)
    assert Vh.shape == (rank, shape[1])
    assert U.dtype == S.dtype == Vh.dtype == dtype
    u, s, vh = torch.linalg.svd(M, full_matrices=False)
    assert (S.double() - s[:rank]).abs().max() < tolerance if rank else True
    best = u[:, :rank] * s[:rank] @ vh[:rank]
    assert (U.double() * S.double() @ Vh.double() - best).abs().max() < tolerance
    identity = torch.eye(rank, dtype=torch.float64)
    assert torch.allclose(U.double().mT @ U.double(), identity, atol=tolerance)
    assert torch.allclose(Vh.double() @ Vh.double().mT, identity, atol=tolerance)


def test_randomized_svd_error_is_near_the_optimum_on_a_slow_spectrum() -> None:
    M = gapped_matrix(200, 300, gap=1.0)
    U, _, Vh = torch.linalg.svd(M, full_matrices=False)
    s = torch.arange(1, 201, dtype=torch.float64) ** -0.5
    M = U * s @ Vh
    for n_iter, bound in [(0, 1.5), (2, 1.02), (6, 1.003)]:
        u, sigma, vh = lip_fast.randomized_svd(M, 20, n_iter=n_iter)
        error = torch.linalg.vector_norm(M - u * sigma @ vh) / torch.linalg.vector_norm(s[20:])
        assert 1 - 1e-12 <= error < bound


def test_randomized_svd_warm_start_needs_no_iteration() -> None:
    M = gapped_matrix(60, 80, gap=0.9)
    basis = torch.linalg.svd(M, full_matrices=False).Vh[:18].mT
    moved = M + 1e-3 * gapped_matrix(60, 80, gap=0.99, seed=9)
    best = torch.linalg.svdvals(moved)[10:].norm()

    def error(**options: object) -> float:
        u, s, vh = lip_fast.randomized_svd(moved, 10, n_iter=0, **options)
        return float(torch.linalg.vector_norm(moved - u * s @ vh) / best)

    assert error(basis=basis) < 1.0001
    assert error(basis=basis[:, :10]) < 1.001  # filled up with random columns
    assert error() > 1.01


def test_randomized_svd_randomness_is_its_own() -> None:
    M = gapped_matrix(60, 80, gap=0.99)
    a = lip_fast.randomized_svd(M, 5)
    b = lip_fast.randomized_svd(M, 5)
    assert all(torch.equal(x, y) for x, y in zip(a, b, strict=True))
    c = lip_fast.randomized_svd(M, 5, generator=torch.Generator().manual_seed(1))
    assert not torch.equal(a[1], c[1])


@pytest.mark.parametrize(
    ("changes", "error", "message"),
    [
        ({"rank": 41}, ValueError, r"expected rank in 0\.\.40, got 41"),
        ({"rank": 2.5}, TypeError, "expected rank as an int"),
        ({"oversample": -1}, ValueError, "expected oversample >= 0, got -1"),
        ({"n_iter": "two"}, TypeError, "expected n_iter as an int, got str 'two'"),
        ({"M": torch.ones(40, 90).half()}, TypeError, "float32, float64, got torch.float16"),
        ({"M": torch.full((40, 90), torch.inf)}, ValueError, "expected finite M, got inf"),
        ({"M": torch.ones(2, 40, 90)}, ValueError, "expected M to be a matrix"),
        ({"basis": torch.ones(40, 5)}, ValueError, "expected a basis with 90 rows"),
        ({"basis": torch.ones(90, 5).double()}, TypeError, "expected basis dense in one of float32"),
        ({"basis": torch.full((90, 5), torch.nan)}, ValueError, "expected finite basis"),
    ],
)
def test_randomized_svd_bad_input(changes: dict, error: type, message: str) -> None:
    arguments = {"M": torch.ones(40, 90), "rank": 3} | changes
    with pytest.raises(error, match=message):
        lip_fast.randomized_svd(**arguments)


# select_rank --------------------------------------------------------------------------------------------


def test_energy_rank() -> None:
    S = torch.tensor([3.0, 2.0, 1.0, 0.0])  # energies 9, 4, 1 of 14
    assert lip_fast.select_rank(S, energy=9 / 14 - 1e-6) == 1
    assert lip_fast.select_rank(S, energy=9 / 14 + 1e-6) == 2
    assert lip_fast.select_rank(S, energy=0.93) == 3
    assert lip_fast.select_rank(S, energy=1.0) == 3
    assert lip_fast.select_rank(torch.empty(0)) == 0
    assert lip_fast.select_rank(torch.zeros(3)) == 1


def test_gavish_donoho_finds_a_planted_rank() -> None:
    g = torch.Generator().manual_seed(0)
    noise = torch.randn(100, 200, generator=g, dtype=torch.float64) / 200**0.5
    planted = gapped_matrix(100, 200, gap=1.0)
    U, _, Vh = torch.linalg.svd(planted, full_matrices=False)
    M = U[:, :6] * 5 @ Vh[:6] + noise
    assert lip_fast.select_rank(torch.linalg.svdvals(M), method="gavish-donoho", shape=(100, 200)) == 6
    S = torch.linalg.svdvals(noise)
    assert lip_fast.select_rank(S, method="gavish-donoho", shape=(200, 100)) == 0


def test_gavish_donoho_takes_the_mean_of_the_two_in_the_middle() -> None:
    # 2.858 x 6 is more than 10; 2.858 x 3 would be less than both 9 and 10.
    S = torch.tensor([10.0, 9.0, 3.0, 1.0])
    for values in (S, S.flip(0), S.double()):
        assert lip_fast.select_rank(values, method="gavish-donoho", shape=(4, 4)) == 0
    # 2.858 x 3.25 is 9.29, 2.858 x 3 is 8.57, 2.858 x 3.5 is 10.0.
    S = torch.tensor([10.0, 9.0, 3.5, 3.0, 1.0, 1.0])
    assert lip_fast.select_rank(S, method="gavish-donoho", shape=(6, 6)) == 1


@pytest.mark.parametrize("method", ["energy", "gavish-donoho"])
def test_the_order_of_the_values_does_not_matter(method: str) -> None:
    S = torch.tensor([20.0, 10.0, 2.0, 1.0, 1.0])
    expected = lip_fast.select_rank(S, method=method, energy=0.9, shape=(5, 5))
    assert expected == 2
    assert lip_fast.select_rank(S.flip(0), method=method, energy=0.9, shape=(5, 5)) == expected


@pytest.mark.parametrize(
    ("changes", "error", "message"),
    [
        ({"energy": 0.0}, ValueError, r"energy in \(0, 1\], got 0.0"),
        ({"method": "guess"}, ValueError, "'gavish-donoho' or 'holdout', got 'guess'"),
        ({"method": "gavish-donoho"}, ValueError, "expected the shape"),
        ({"S": torch.ones(2, 2)}, TypeError, r"got a tensor of shape \(2, 2\)"),
        ({"S": torch.tensor([torch.nan])}, ValueError, "expected finite S"),
    ],
)
def test_select_rank_bad_input(changes: dict, error: type, message: str) -> None:
    with pytest.raises(error, match=message):
        lip_fast.select_rank(**({"S": torch.ones(3)} | changes))
