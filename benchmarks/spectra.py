"""Weights with the spectra that decompositions find easy or hard, one optimizer step after the last one."""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from benchmarks.gpu.weights import BLOCK_VALUES, device_generator
from lip_fast import ops, randomized_svd
from lip_fast.bench.problems import LEARNING_RATE
from lip_fast.projected import FRESH

__all__ = ["SAYS", "Moved", "moved", "optimum", "values"]

# Steps of training before the one that is measured: the basis is then what warm steps have made of it, not
# an exact one, which no training has.
WARM_STEPS = 20
# Spectral norm of the noise: half of the smallest value of the low rank.
NOISE = 1.0


def _gapped(i: Tensor, k: int) -> Tensor:
    below = 1 - 0.5 * (i - k) / len(i)
    return torch.where(i < k, 10 - 8 * i / max(k - 1, 1), below)


def _low_rank(i: Tensor, k: int) -> Tensor:
    half = k // 2
    return torch.where(i < half, 10 - 8 * i / max(half - 1, 1), 0)


# Of i = 0, 1, ... and the rank k that is asked for; the largest is 10.
_VALUES: dict[str, Callable[[Tensor, int], Tensor]] = {
    "gapped": _gapped,
    "exponential": lambda i, k: 10 * torch.exp(-2.7 * i / k),
    "power-law": lambda i, k: 10 / (1 + i),
    "slow": lambda i, k: 10 / (1 + i).sqrt(),
    # The rank ends within a plateau: the subspace is not determined there, its error is.
    "plateaus": lambda i, k: 10 * 2.0 ** -(i // (3 * k / 8)),
    "low-rank-noise": _low_rank,
}
SAYS = {
    "gapped": "k values from 10 to 2, all others from 1 to 0.5",
    "exponential": "exp(-2.7 i / k)",
    "power-law": "1 / i",
    "slow": "1 / sqrt(i)",
    "plateaus": "halved after every 3 k / 8",
    "low-rank-noise": "k / 2 values from 10 to 2 in noise of norm 1",
}


def values(name: str, n: int, k: int) -> Tensor:
    """The (n,) singular values of a spectrum, float64, before any noise."""
    return _VALUES[name](torch.arange(n, dtype=torch.float64), k)


@dataclass(frozen=True)
class Moved:
    """A weight after an optimizer step, and what was known of it before.

    Attributes:
        M: (l, q) float32.
        basis: (q, k) right singular vectors by a warm step on the weight before.
        step: counter of warm steps.
        best: least ||M - M_k||_F of any M_k of rank k.
        values: (k,) singular values in float64.
    """

    M: Tensor
    basis: Tensor
    step: Tensor
    best: float
    values: Tensor


def moved(name: str, l: int, q: int, k: int, device: torch.device) -> Moved:
    """A weight of this spectrum that training has moved for a few steps, the basis following it."""
    g = device_generator(device)
    n = min(l, q)
    A, B = (torch.linalg.qr(torch.randn(m, n, generator=g, device=device))[0] for m in (l, q))
    M = (A * values(name, n, k).float().to(device)) @ B.mT
    del A, B
    if name == "low-rank-noise":
        M.add_(torch.randn(l, q, generator=g, device=device), alpha=NOISE / (l**0.5 + q**0.5))
    basis = randomized_svd(M, k)[2].mT
    step = torch.zeros((), dtype=torch.int64, device=device)
    for i in range(WARM_STEPS + 1):
        if i:
            basis = ops.warm_svd(M, basis, step, fresh=FRESH, seed=0).B
            step = step + 1
        # Adam moves every value by about the learning rate.
        M.add_(torch.randn(l, q, generator=g, device=device).sign_(), alpha=LEARNING_RATE)
    return Moved(M, basis, step, *optimum(M, k))


def optimum(M: Tensor, k: int) -> tuple[float, Tensor]:
    """Least error of rank k, and the k largest singular values, in float64.

    From the eigenvalues of the smaller Gram matrix: its rounding, 1e-16 of the largest square, is 1e-12 of
    what the spectra here leave.
    """
    M = M if M.shape[0] >= M.shape[1] else M.mT
    H = torch.zeros(M.shape[1], M.shape[1], dtype=torch.float64, device=M.device)
    for block in M.split(max(1, BLOCK_VALUES // M.shape[1])):
        H.addmm_(block.double().mT, block.double())
    squares = torch.linalg.eigvalsh(H).flip(0).clamp(min=0)
    return float(squares[k:].sum().sqrt()), squares[:k].sqrt()
