"""The weights that are decomposed, on the device, and float64 products of weights of any size."""

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

__all__ = [
    "BLOCK_VALUES",
    "DRY_HEADS",
    "HEADS",
    "Weight",
    "device_generator",
    "exact_products",
    "make_weight",
    "residual",
]

# Values of one block of a float64 product: the copies stay small beside the weight.
BLOCK_VALUES = 1 << 27
# (l, q, kept, refitted)
SMALL_RANKS, LARGE_RANKS = (32, 8), (64, 8)
HEADS = (
    (100, 512, *SMALL_RANKS),
    (1000, 2048, *SMALL_RANKS),
    (1000, 4096, *SMALL_RANKS),
    (32000, 1024, *SMALL_RANKS),
    (128256, 4096, *LARGE_RANKS),
    (1000000, 512, *LARGE_RANKS),
)
DRY_HEADS = ((60, 80, 6, 4),)


def device_generator(device: torch.device) -> torch.Generator:
    return torch.Generator(device).manual_seed(0)


def _blocks(M: Tensor) -> Iterator[slice]:
    rows = max(1, BLOCK_VALUES // M.shape[1])
    for first in range(0, M.shape[0], rows):
        yield slice(first, first + rows)


def exact_products(M: Tensor, V: Tensor, Y: Tensor) -> tuple[Tensor, Tensor]:
    """M V and M^T Y in float64."""
    V, Y = V.double(), Y.double()
    MV = torch.cat([M[rows].double() @ V for rows in _blocks(M)])
    Z = torch.zeros(M.shape[1], V.shape[1], dtype=torch.float64, device=M.device)
    for rows in _blocks(M):
        Z += M[rows].double().mT @ Y[rows]
    return MV, Z


@dataclass(frozen=True)
class Weight:
    """A weight M (l, q) and what was known of it a step before: singular values and basis (q, t)."""

    M: Tensor
    A: Tensor
    s: Tensor
    basis: Tensor


def _columns(rows: int, columns: int, device: torch.device, g: torch.Generator) -> Tensor:
    """(rows, columns) orthonormal."""
    return torch.linalg.qr(torch.randn(rows, columns, generator=g, device=device))[0]


def make_weight(l: int, q: int, k: int, r: int, device: torch.device) -> Weight:
    """``k`` values from 10 down to 2, ``r`` from 1 down to 0.5, noise of spectral norm 0.1 below.

    A step before, the values were 1% smaller, and the basis was turned by about 0.05.
    """
    g = device_generator(device)
    t = k + r
    A, B = _columns(l, t, device, g), _columns(q, t, device, g)
    s = torch.cat([torch.linspace(10, 2, k), torch.linspace(1, 0.5, r)]).to(device)
    turned = torch.linalg.qr(B + 0.05 * torch.randn(q, t, generator=g, device=device) / q**0.5)[0]
    M = torch.randn(l, q, generator=g, device=device)
    M.mul_(0.1 / (l**0.5 + q**0.5)).addmm_(A * (1.01 * s), turned.mT)
    return Weight(M, A, s, B.mT.contiguous().mT)


def residual(M: Tensor, A: Tensor, S: Tensor, B: Tensor) -> float:
    """||M - A diag(S) B^T||_F in float64."""
    scaled, B = A.double() * S.double(), B.double()
    squares = [(M[rows].double() - scaled[rows] @ B.mT).square().sum() for rows in _blocks(M)]
    return float(torch.stack(squares).sum().sqrt())
