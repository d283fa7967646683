"""The problems that are measured: well-gapped weights and data whose refit is neither trivial nor noise.

Where singular values repeat, their vectors are not determined and two correct decompositions of one
weight give different LIP results; so the spectra drawn here are gapped, or nothing could be checked.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from lip_fast.bench.rows import Row

__all__ = ["BATCHES", "LEARNING_RATE", "OneShot", "Step", "one_shot", "step"]

# Adam moves every weight by about its learning rate. At 1e-4 the update of a 1000 x 2048 head has
# spectral norm ~8e-3 against kept singular values of 2 to 10: what fine-tuning at a usual rate does.
LEARNING_RATE = 1e-4
# As many different batches and gradients, in turn. Gradients come in pairs of opposite sign, so that
# a weight stays near where it began for as many rounds as a timing takes.
BATCHES = 8


@dataclass(frozen=True)
class OneShot:
    """Arguments of ``lip``: W (q, l), X (n, q), y (n,)."""

    W: Tensor
    X: Tensor
    y: Tensor


@dataclass(frozen=True)
class Step:
    """A head M (l, q) and what it is trained with, in turn: gradients, features and targets."""

    M: Tensor
    gradients: list[Tensor]
    features: list[Tensor]
    targets: list[Tensor]


def one_shot(row: Row) -> OneShot:
    """The problem of a one-shot row, float32, on the CPU."""
    generator = torch.Generator().manual_seed(0)
    A, B = _bases(row.l, row.q, min(row.l, row.q), generator)
    s = _spectrum(row.k, min(row.l, row.q) - row.k)
    y = torch.randint(row.l, (row.n,), generator=generator)
    X = _features(A, B, s, row.k, y, generator)
    return OneShot(((B * s) @ A.mT).contiguous(), X, y)


def step(row: Row, batches: int = BATCHES, device: torch.device | None = None) -> Step:
    """The problem of a step row, float32, with an even number of gradients, features and targets.

    The same numbers on every device.
    """
    generator = torch.Generator().manual_seed(0)
    small = min(row.l, row.q)
    rank = small if row.tail_rank is None else row.k + row.tail_rank
    A, B = _bases(row.l, row.q, rank, generator)
    s = _spectrum(row.k, rank - row.k)
    gradients: list[Tensor] = []
    for _ in range(batches // 2):
        # The scale of a gradient does not matter: Adam divides by it.
        gradient = torch.randn(row.l, row.q, generator=generator)
        gradients += [gradient, -gradient]
    targets = [torch.randint(row.l, (row.n,), generator=generator) for _ in range(batches)]
    features = [_features(A, B, s, row.k, y, generator) for y in targets]
    M = ((A * s) @ B.mT).contiguous()
    lists = ([X.to(device) for X in each] for each in (gradients, features, targets))
    return Step(M.to(device), *lists)


def _bases(l: int, q: int, rank: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """Random orthonormal columns: (l, rank) of the class side, (q, rank) of the feature side."""
    A, _ = torch.linalg.qr(torch.randn(l, rank, generator=generator, dtype=torch.float64))
    B, _ = torch.linalg.qr(torch.randn(q, rank, generator=generator, dtype=torch.float64))
    return A.float(), B.float()


def _spectrum(k: int, r: int) -> Tensor:
    """``k`` values from 10 down to 2 and ``r`` below them from 1 down to 0.5, evenly spaced."""
    return torch.cat([torch.linspace(10, 2, k), torch.linspace(1, 0.5, r)])


def _features(A: Tensor, B: Tensor, s: Tensor, k: int, y: Tensor, generator: torch.Generator) -> Tensor:
    """Features (n, q) of the samples ``y`` to which the refitted values are about ``s``, to noise.

    Class c has the mean ``c0 sqrt(l) sum_i u_i a_i[c] b_i`` and noise of variance ``c0^2``, so that the
    refitted value is ``u_i / (c0 sqrt(l) (u_i^2 + 1))``. ``c0`` makes its maximum, at u = 1, the 1.0 that
    the tail of the spectrum begins with, and the smaller root of the quadratic gives u for each ``s_i``.
    Directions of the principal subspace get u = 1: they are kept whatever the data say.
    """
    l, q = len(A), len(B)
    c0 = 0.5 / l**0.5
    u = torch.ones_like(s)
    u[k:] = (1 - (1 - s[k:].square()).clamp(min=0).sqrt()) / s[k:]
    X = torch.randn(len(y), q, generator=generator)
    X += l**0.5 * (A * u)[y] @ B.mT
    return X.mul_(c0)
