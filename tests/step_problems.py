"""Weights, batches and trainings that the tests of steps in one call share, and LIP by its definition."""

import math
from collections.abc import Iterator
from typing import Any

import torch
from problems import linear, orthonormal
from torch import Tensor, nn

SPECTRA = {
    "trained": lambda d: torch.linspace(2, 0.1, d),
    "clustered": lambda d: torch.cat([torch.full((d // 2,), 5.0), torch.full((d - d // 2,), 1.0)]),
    "steep": lambda d: 10 ** -torch.linspace(0, 5, d),
    "fresh": None,
}
"""Of so many singular values, the largest first; of a fresh head none."""


def batch(l: int, q: int, n: int) -> tuple[Tensor, Tensor, Tensor]:
    """Features (n, q), their class indices, and a bias (l,)."""
    g = torch.Generator().manual_seed(4)
    return torch.randn(n, q, generator=g), torch.randint(l, (n,), generator=g), torch.randn(l, generator=g)


def exactly(
    M: Tensor, X: Tensor, y: Tensor, bias: Tensor | None, k: int, r: int, *, drop: bool, clip: bool
) -> Tensor:
    """LIP of M in float64 by its singular value decomposition."""
    U, S, Vh = torch.linalg.svd(M, full_matrices=False)
    A, B = U[:, k : k + r], Vh[k : k + r].mT
    P = X.double() @ B
    targets = A[y] if bias is None else A[y] - bias.double() @ A
    limit = S[max(k - 1, 0)] if clip else math.inf
    s = ((P * targets).sum(0) / P.square().sum(0)).clamp(-limit, limit)
    if drop:
        return U[:, :k] * S[:k] @ Vh[:k] + A * s @ B.mT
    return M + A * (s - S[k : k + r]) @ B.mT


def head_with(name: str, l: int, q: int, directions: int) -> nn.Linear:
    """A head (l, q) with so many singular values of a spectrum, and no more; or a fresh one."""
    head = linear(q, l, bias=True)
    if (spectrum := SPECTRA[name]) is not None:
        d = min(l, q)
        U, V = orthonormal(l, 1)[:, :d], orthonormal(q, 2)[:, :d]
        with torch.no_grad():
            head.weight.copy_(U[:, :directions] * spectrum(directions) @ V[:, :directions].mT)
    return head


def train(head: nn.Linear, optimizer: torch.optim.Optimizer, lip: Any, steps: int) -> None:
    """Steps on features around a centre of each class, which LIP sees."""
    l, q = head.weight.shape
    g = torch.Generator().manual_seed(0)
    means = torch.randn(l, q, generator=g)
    for _ in range(steps):
        y = torch.randint(l, (64,), generator=g)
        X = (means[y] + torch.randn(64, q, generator=g)).relu()
        lip.observe(X, y)
        optimizer.zero_grad()
        torch.nn.functional.cross_entropy(head(X), y).backward()
        optimizer.step()


def missed(M: Tensor, B: Tensor) -> float:
    """||M - M B B^T||_F of orthonormal B (q, k), in times of the best of rank k."""
    lost = M.square().sum() - (M @ B).square().sum()
    return float((lost / torch.linalg.svdvals(M)[B.shape[1] :].square().sum()).sqrt())


def each_number_of_threads() -> Iterator[int]:
    """One after the other in effect, and the number of before in the end."""
    before = torch.get_num_threads()
    try:
        for number in (1, 2, 3, 5):
            torch.set_num_threads(number)
            yield number
    finally:
        torch.set_num_threads(before)
