"""Matrices that are hard to decompose: the families of RandLAPACK's test generator, from their definitions.

RandLAPACK is described in arXiv:2302.11474. Matrices are float64, and their largest singular value is near 1
(``spiked``: near ``scale``).
"""

import math
from collections.abc import Callable

import torch
from problems import orthonormal
from torch import Tensor

# Ones that every spectrum of a decay begins with, as a share of its length.
_FLAT = 0.1


def with_spectrum(s: Tensor, l: int, q: int, *, seed: int = 0) -> Tensor:
    """(l, q) with singular values ``s`` (k,) and random singular vectors."""
    k = len(s)
    return orthonormal(l, 2 * seed + 1)[:, :k] * s @ orthonormal(q, 2 * seed + 2)[:, :k].mT


def polynomial(k: int, *, condition: float, power: float = 2) -> Tensor:
    """Spectrum (k,): ones, then a fall like 1 / (a i + 1)^power to 1 / condition."""
    i = torch.arange(k, dtype=torch.float64) - math.floor(_FLAT * k)
    a = (condition ** (1 / power) - 1) / i[-1].clamp(min=1)
    return (a * i.clamp(min=0) + 1) ** -power


def exponential(k: int, *, condition: float) -> Tensor:
    """Spectrum (k,): ones, then a fall like exp(-t i) to 1 / condition."""
    i = (torch.arange(k, dtype=torch.float64) + 1 - math.floor(_FLAT * k)).clamp(min=0)
    return torch.exp(-math.log(condition) / i[-1] * i)


def step(k: int, *, condition: float) -> Tensor:
    """Spectrum (k,): four steps, at 1, 8 / condition, 4 / condition and 1 / condition."""
    heights = torch.tensor([1, 8 / condition, 4 / condition, 1 / condition], dtype=torch.float64)
    return heights[(torch.arange(k) * 4 // k).clamp(max=3)]


def bad_cholesky_qr(k: int, *, columns: int, condition: float) -> Tensor:
    """Spectrum (k,): ``columns`` ones, then a fall from 1e-8 to 1 / condition.

    A sketch of ``columns`` columns sees nothing but the ones; the Gram matrix of a wider one has no Cholesky
    factor in float64.
    """
    below = torch.logspace(-8, -math.log10(condition), k - columns, dtype=torch.float64)
    return torch.cat([torch.ones(columns, dtype=torch.float64), below])


def spiked(l: int, q: int, *, scale: float, seed: int = 0) -> Tensor:
    """Copies of an orthogonal (q, q) matrix one above the other, q / 2 random rows of them ``scale`` times as
    long: left singular vectors that live on few rows, which a sketch can miss."""
    M = orthonormal(q, seed).repeat(-(-l // q), 1)[:l].clone()
    M[torch.randperm(l, generator=torch.Generator().manual_seed(seed))[: q // 2]] *= scale
    return M / math.sqrt(max(l // q, 1))


def kahan(n: int, *, theta: float = 1.2, perturbation: float = 1e3) -> Tensor:
    """Kahan's (n, n) upper triangle, on which pivoting sees no small singular value.

    diag(1, s, s^2, ...) times a unit triangle of -c, with s, c = sin, cos of ``theta``, and a perturbation in
    units of the rounding that settles ties.
    """
    powers = math.sin(theta) ** torch.arange(n, dtype=torch.float64)
    K = torch.full((n, n), -math.cos(theta), dtype=torch.float64).triu(1) + torch.eye(n, dtype=torch.float64)
    eps = torch.finfo(torch.float64).eps
    K = powers[:, None] * K + torch.diag(perturbation * eps * torch.arange(n, 0, -1, dtype=torch.float64))
    return K / torch.linalg.matrix_norm(K, 2)


def _spectral(spectrum: Callable[[int], Tensor]) -> Callable[[int, int], Tensor]:
    return lambda l, q: with_spectrum(spectrum(min(l, q)), l, q)


# By name: an (l, q) matrix of the family. Conditions at, and far beyond, what float32 and float64 resolve.
FAMILIES: dict[str, Callable[[int, int], Tensor]] = {
    "polynomial": _spectral(lambda k: polynomial(k, condition=1e4)),
    "polynomial, ill": _spectral(lambda k: polynomial(k, condition=1e10)),
    "exponential": _spectral(lambda k: exponential(k, condition=1e4)),
    "exponential, ill": _spectral(lambda k: exponential(k, condition=1e16)),
    "step": _spectral(lambda k: step(k, condition=1e4)),
    "step, ill": _spectral(lambda k: step(k, condition=1e12)),
    "bad CholeskyQR": _spectral(lambda k: bad_cholesky_qr(k, columns=min(k // 2, 6), condition=1e12)),
    "spiked": lambda l, q: _tall(lambda l, q: spiked(l, q, scale=1e4), l, q),
    "spiked, ill": lambda l, q: _tall(lambda l, q: spiked(l, q, scale=1e10), l, q),
    "Kahan": lambda l, q: _tall(_kahan_rows, l, q),
    "low rank": _spectral(lambda k: torch.ones(max(k // 4, 1), dtype=torch.float64)),
}


def _tall(make: Callable[[int, int], Tensor], l: int, q: int) -> Tensor:
    return make(l, q) if l >= q else make(q, l).mT.contiguous()


def _kahan_rows(l: int, q: int) -> Tensor:
    """Kahan's matrix turned into l rows: the same singular values."""
    return orthonormal(l, 7)[:, :q] @ kahan(q)
