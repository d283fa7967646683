"""The 2r sums: within rounding of float64, whatever the form of the labels, and the same bits each time."""

from collections.abc import Callable

import pytest
import torch

from lip_fast import backends

# What overflows on purpose is a warning of numpy in the interpreter.
pytestmark = pytest.mark.filterwarnings("ignore:(overflow|invalid value) encountered:RuntimeWarning")

label_sums = backends.kernel("label_sums", "triton", "cuda").run
label_sums_csr = backends.kernel("label_sums_csr", "triton", "cuda").run
# Empty, one row, less than a tile, primes, more directions than a block, more rows than a tile, no direction.
SHAPES = [(0, 5, 3, 2), (1, 1, 1, 1), (37, 41, 10, 5), (9, 20, 80, 67), (131, 17, 7, 33), (70, 33, 6, 0)]
FORMS = ["indices", "dense", "integers", "csr"]


def _random(*shape: int, device: torch.device) -> torch.Tensor:
    g = torch.Generator().manual_seed(sum(shape))
    return torch.randn(*shape, generator=g).to(device)


def _problem(n: int, q: int, l: int, r: int, device: torch.device):
    X, A, B = (_random(*shape, device=device) for shape in ((n, q), (l, r), (q, r)))
    g = torch.Generator().manual_seed(n)
    return X, torch.randint(0, l, (n,), generator=g).to(device), A, B


def _strided(X: torch.Tensor) -> torch.Tensor:
    """The same values, of which every other lies between ones that are no number."""
    filler = torch.nan if X.is_floating_point() else -7
    return torch.stack([X, torch.full_like(X, filler)], -1)[..., 0]


def _csr(Y: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    row, col = Y.nonzero(as_tuple=True)
    crow = torch.zeros(len(Y) + 1, dtype=torch.int64, device=Y.device)
    crow[1:] = torch.bincount(row, minlength=len(Y)).cumsum(0)
    return crow, col, Y[row, col]


def _near(got, exact, sizes, operations: int, device: torch.device) -> None:
    """Each within half a unit in the last place for every operation on the way to it."""
    # Tensor cores cut where they add, and a product of TF32 parts lacks that of the remainders, up to 2^-22.
    rounding = operations * 2.0**-24 if device.type == "cpu" else operations * 2.0**-23 + 2.0**-20
    assert got.dtype == torch.float64
    assert got.shape == exact.shape
    assert torch.all((got - exact).abs() <= rounding * sizes), float(((got - exact).abs() / sizes).max())


@pytest.mark.parametrize("layout", ["contiguous", "strided"])
@pytest.mark.parametrize("with_bias", [False, True])
@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
@pytest.mark.parametrize(("n", "q", "l", "r"), SHAPES)
def test_the_sums_are_those_of_float64(
    n: int, q: int, l: int, r: int, dtype, form: str, with_bias: bool, layout: str, device: torch.device
) -> None:
    X, y, A, B = _problem(n, q, l, r, device)
    X = X.to(dtype)
    bias = _random(l, device=device) if with_bias else None
    if form == "indices":
        Y = torch.nn.functional.one_hot(y, l).double()
    else:
        Y = (_random(n, l, device=device) * 3).round().double()
        Y[n // 2 :: 5] = 0  # rows without an entry
    if layout == "strided":
        X, y, A, B = _strided(X), _strided(y), A.mT.contiguous().mT, _strided(B)
        bias = None if bias is None else _strided(bias)
    if form == "csr":
        crow, col, values = _csr(Y.float())
        if layout == "strided":
            crow, col, values = map(_strided, (crow, col, values))
        got = label_sums_csr(X, crow, col, values, A, B, bias)
    else:
        labels = {"indices": y, "dense": Y.float().mT.contiguous().mT, "integers": Y.long()}[form]
        got = label_sums(X, labels, A, B, bias)
    X, A, B = X.double(), A.double(), B.double()
    shift = torch.zeros(r, dtype=torch.float64, device=device) if bias is None else bias.double() @ A
    shift_sizes = torch.zeros_like(shift) if bias is None else bias.double().abs() @ A.abs()
    P, P_sizes = X @ B, X.abs() @ B.abs()
    numerator = (P * (Y @ A - shift)).sum(0)
    sizes = (P_sizes * (Y.abs() @ A.abs() + shift_sizes)).sum(0)
    # A product over q, one over l, their product, the sum over a tile of at most 64 rows.
    _near(got[0], numerator, sizes, q + 2 * l + 70, device)
    _near(got[1], P.square().sum(0), P_sizes.square().sum(0), 2 * q + 70, device)
    # Squares are summed over a tile of 64 rows and 16 features, then in float64.
    _near(got[2], X.square().sum(), X.square().sum(), 64 + 16 + 2, device)
    assert got[3].dtype == torch.int64
    assert int(got[3]) == 0


@pytest.mark.parametrize(
    ("operand", "dense"), [("X", False), ("A", False), ("B", False), ("A", True), ("Y", True)]
)
def test_columns_may_be_far_apart(
    operand: str,
    dense: bool,
    far_apart: Callable[[torch.Tensor], torch.Tensor],
    device: torch.device,
) -> None:
    X, y, A, B = _problem(5, 3, 3, 3, device)
    operands = {"X": X, "Y": _random(5, 3, device=device) if dense else y, "A": A, "B": B}
    expected = label_sums(*operands.values(), None)
    operands[operand] = far_apart(operands[operand])
    for got, want in zip(label_sums(*operands.values(), None), expected, strict=True):
        assert torch.equal(got, want)


@pytest.mark.parametrize("runs", [1, 2, 3])
@pytest.mark.parametrize("form", FORMS)
def test_a_program_may_take_several_tiles(
    form: str, runs: int, device: torch.device, monkeypatch: pytest.MonkeyPatch
) -> None:
    X, y, A, B = _problem(300, 20, 5, 40, device)
    Y = _random(300, 5, device=device).round()

    def sums():
        if form == "csr":
            return label_sums_csr(X, *_csr(Y), A, B, None)
        return label_sums(X, {"indices": y, "dense": Y, "integers": Y.long()}[form], A, B, None)

    expected = sums()
    monkeypatch.setattr("lip_fast.backends.triton.label_sums._RUNS", runs)
    for got, want in zip(sums(), expected, strict=True):
        # The order of the float64 sums is all that differs.
        assert torch.allclose(got, want, rtol=1e-12, atol=1e-9)


@pytest.mark.parametrize("with_bias", [False, True])
def test_rows_without_a_label_are_not_read(with_bias: bool, device: torch.device) -> None:
    X, y, A, B = _problem(131, 17, 7, 5, device)
    bias = _random(7, device=device) if with_bias else None
    y[0], y[40], y[64], y[130], y[129] = -100, -1, 7, 2**40, -(2**62)
    kept = (y >= 0) & (y < 7)
    marked = X.clone()
    marked[~kept] = torch.nan
    got = label_sums(marked, y, A, B, bias)
    expected = label_sums(torch.where(kept[:, None], X, 0), torch.where(kept, y, -100), A, B, bias)
    assert int(got[3]) == 4
    assert int(expected[3]) == 0
    for a, b in zip(got[:3], expected[:3], strict=True):
        assert torch.isfinite(a).all()
        assert torch.equal(a, b)


def test_entries_out_of_range_are_not_read(device: torch.device) -> None:
    X, _, A, B = _problem(6, 4, 3, 2, device)
    crow = torch.tensor([0, 2, 2, 3, 4, 4, 5], device=device)
    col = torch.tensor([0, 3, -1, 2, 2**40], device=device)
    values = torch.tensor([1.0, torch.nan, torch.nan, 2.0, torch.nan], device=device)
    numerator, _, _, masked = label_sums_csr(X, crow, col, values, A, B, None)
    Y = torch.zeros(6, 3, device=device)
    Y[0, 0], Y[3, 2] = 1.0, 2.0
    expected = label_sums(X, Y, A, B, None)[0]
    assert int(masked) == 3
    assert torch.allclose(numerator, expected, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("bad", [torch.nan, torch.inf])
def test_what_is_not_finite_shows(bad: float, device: torch.device) -> None:
    X, y, A, B = _problem(70, 20, 5, 3, device)
    X[69, 19] = bad
    numerator, denominator, energy, _ = label_sums(X, y, A, B, None)
    assert not torch.isfinite(energy)
    assert not torch.isfinite(numerator + denominator).any()


@pytest.mark.parametrize("form", FORMS)
def test_the_same_bits_each_time(form: str, device: torch.device) -> None:
    X, y, A, B = _problem(300, 20, 5, 40, device)
    Y = _random(300, 5, device=device).round()

    def sums():
        if form == "csr":
            return label_sums_csr(X, *_csr(Y), A, B, None)
        return label_sums(X, {"indices": y, "dense": Y, "integers": Y.long()}[form], A, B, None)

    for got, first in zip(sums(), sums(), strict=True):
        assert torch.equal(got, first)
