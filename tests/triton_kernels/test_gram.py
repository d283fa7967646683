"""X^T X: symmetric to the bit, within rounding of float64, the same bits each time."""

import pytest
import torch

from lip_fast import backends

gram = backends.kernel("gram", "triton", "cuda").run
# Products, additions within a run of 256 rows, and up to 4 of runs; then one rounding of the float64 total.
OPERATIONS = 256 + 4 + 2
# Tensor cores cut where they add, and a product of TF32 parts lacks that of the remainders, up to 2^-22.
BUDGET = {"cpu": OPERATIONS * 2.0**-24, "cuda": OPERATIONS * 2.0**-23 + 2.0**-21}
SHAPES = [(0, 5), (1, 1), (37, 41), (5, 131), (257, 65), (1031, 70), (513, 33)]


def _random(n: int, q: int, device: torch.device) -> torch.Tensor:
    return torch.randn(n, q, generator=torch.Generator().manual_seed(n + q)).to(device)


def _check(X: torch.Tensor, mask: torch.Tensor | None = None) -> torch.Tensor:
    G = gram(X, mask)
    kept = (X if mask is None else X[mask]).double()
    assert G.dtype == torch.float32
    assert torch.equal(G, G.mT)
    sizes = kept.abs().mT @ kept.abs()
    assert ((G.double() - kept.mT @ kept).abs() <= BUDGET[X.device.type] * sizes).all()
    return G


@pytest.mark.parametrize("marked", [False, True])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16], ids=str)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_it_is_that_of_float64(
    shape: tuple[int, int], dtype: torch.dtype, marked: bool, device: torch.device
) -> None:
    X = _random(*shape, device=device).to(dtype)
    mask = None
    if marked:
        mask = torch.arange(len(X), device=device) % 3 != 1
        X[~mask] = torch.nan
    assert torch.isfinite(_check(X, mask)).all()


@pytest.mark.parametrize("most", [1, 2, 3])
def test_the_rows_may_be_split_in_parts(
    most: int, device: torch.device, monkeypatch: pytest.MonkeyPatch
) -> None:
    X, mask = _random(1031, 33, device), torch.arange(1031, device=device) % 5 < 3
    # By its name: where Triton is missing, the module cannot be imported.
    monkeypatch.setattr("lip_fast.backends.triton.update._MOST_PARTS", most)
    _check(X, mask)


def test_narrow_formats_have_exact_products(device: torch.device) -> None:
    # Sums of few products of 11 bits are float32 numbers: neither format loses a digit, subnormal or not.
    for dtype, scale in ((torch.float16, 2.0**-20), (torch.float16, 1.0), (torch.bfloat16, 1.0)):
        g = torch.Generator().manual_seed(0)
        X = (torch.randint(-8, 9, (40, 30), generator=g) * scale).to(dtype).to(device)
        assert torch.equal(gram(X, None).double(), X.double().mT @ X.double())


def test_tiles_of_many_features(device: torch.device, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("lip_fast.backends.triton.gram._MANY_FEATURES", 100)
    _check(_random(300, 150, device).half())


def test_any_strides_and_the_same_bits(device: torch.device) -> None:
    X, mask = _random(600, 70, device), torch.arange(600, device=device) % 5 < 3
    G = _check(X, mask)
    marks = torch.stack([mask, ~mask], -1)[:, 0]
    for other in (X.mT.contiguous().mT, torch.stack([X, torch.full_like(X, torch.nan)], -1)[..., 0], X):
        assert torch.equal(gram(other, marks), G)
