"""Small problems that several tests share."""

from typing import NamedTuple

import torch
from torch import Tensor


class Problem(NamedTuple):
    """A weight in the paper's layout with data: W (q, l), X (n, q), y (n,), Y one-hot (n, l), bias (l,)."""

    W: Tensor
    X: Tensor
    y: Tensor
    Y: Tensor
    bias: Tensor


def problem(
    q: int, l: int, n: int, *, dtype: torch.dtype = torch.float64, seed: int = 0, gap: float = 0.8
) -> Problem:
    """Random data and a weight whose singular values fall by ``gap`` from one to the next."""
    g = torch.Generator().manual_seed(seed)
    W = gapped_matrix(q, l, gap=gap, seed=seed)
    X = torch.randn(n, q, generator=g, dtype=torch.float64)
    y = torch.randint(0, l, (n,), generator=g)
    Y = torch.nn.functional.one_hot(y, l).double()
    bias = torch.randn(l, generator=g, dtype=torch.float64)
    return Problem(W.to(dtype), X.to(dtype), y, Y.to(dtype), bias.to(dtype))


def gapped_matrix(rows: int, columns: int, *, gap: float = 0.8, seed: int = 0) -> Tensor:
    """Float64 matrix with singular values 1, gap, gap^2, ...: LIP depends on the basis where they repeat."""
    U, V = orthonormal(rows, seed + 1), orthonormal(columns, seed + 2)
    d = min(rows, columns)
    s = gap ** torch.arange(d, dtype=torch.float64)
    return U[:, :d] * s @ V[:, :d].mT


def orthonormal(size: int, seed: int) -> Tensor:
    """Float64 orthonormal square matrix."""
    g = torch.Generator().manual_seed(seed)
    return torch.linalg.qr(torch.randn(size, size, generator=g, dtype=torch.float64)).Q


def linear(q: int, l: int, *, seed: int = 0, bias: bool = False, dtype: torch.dtype = torch.float32):
    """``nn.Linear(q, l)`` of its own random numbers."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return torch.nn.Linear(q, l, bias=bias, dtype=dtype)


def relative_error(got: Tensor, expected: Tensor) -> float:
    """||got - expected||_F / ||expected||_F in float64."""
    got, expected = got.detach(), expected.detach()
    assert got.shape == expected.shape
    assert torch.isfinite(got).all()
    norm = torch.linalg.vector_norm(expected.double())
    return float(torch.linalg.vector_norm(got.double() - expected.double()) / norm.clamp(min=1e-300))
