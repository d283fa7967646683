"""Truncated decompositions of a weight that has moved by one step: time and error of every method."""

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor

from benchmarks.decomposition_rows import CURVES, OURS, Curve
from benchmarks.gpu.weights import device_generator, residual
from benchmarks.signed_steps import signed_steps
from benchmarks.spectra import Moved, moved
from lip_fast import ops, randomized_svd
from lip_fast.backends.native.one_read import is_cached
from lip_fast.bench.cases import Case, shared_floors
from lip_fast.bench.gates import Gate
from lip_fast.bench.timing import Variant, captured
from lip_fast.projected import FRESH

__all__ = ["Triplets", "decomposition"]

# U (l, k), S (k,) descending, Vh (k, q).
Triplets = tuple[Tensor, Tensor, Tensor]

# Excess over the best truncation: what `ops.warm_svd` promises. At most 3e-4 measured (plateaus), 2e-1 to
# 6e-1 where the basis is not used.
EXCESS = 1e-3
# Distance of the truncation from the same step in float64: at most 3e-7 measured, 7e-4 to 3e-3 where the
# weight is projected on the basis of the one before, without a step. (Their excess does not tell the two
# apart: of a flat spectrum one step changes little.)
STEP = 1e-5
# Excess of a full decomposition in float32: at most 3e-10 measured, 1e-3 to 8e-2 with one triplet short.
FULL = 1e-6


def _warm(problem: Moved, k: int, n_iter: float | None) -> Triplets:
    if n_iter is not None:
        return randomized_svd(problem.M, k, n_iter=int(n_iter), basis=problem.basis)
    found = ops.warm_svd(problem.M, problem.basis, problem.step, fresh=FRESH, seed=0)
    return found.A, found.S, found.B.mT


def _cold(problem: Moved, k: int, n_iter: float | None) -> Triplets:
    assert n_iter is not None
    return randomized_svd(problem.M, k, oversample=FRESH, n_iter=int(n_iter))


def _full(problem: Moved, k: int, setting: float | None) -> Triplets:
    U, S, Vh = torch.linalg.svd(problem.M, full_matrices=False)
    return U[:, :k], S[:k], Vh[:k]


def _low_rank(problem: Moved, k: int, niter: float | None) -> Triplets:
    assert niter is not None
    M = problem.M
    # It draws from the global state, which is not ours: to keep it takes 10 µs of the time.
    with torch.random.fork_rng(devices=[M.device] if M.is_cuda else []):
        U, S, V = torch.svd_lowrank(M, q=k + FRESH, niter=int(niter))
    return U[:, :k], S[:k], V[:, :k].mT


def _lobpcg(problem: Moved, k: int, niter: float | None, *, warm: bool = False) -> Triplets:
    """Of the smaller Gram matrix, which it takes as it is; the other vectors from one more product."""
    assert niter is not None
    wide = problem.M.shape[0] <= problem.M.shape[1]
    M = problem.M if wide else problem.M.mT
    if warm:
        start = M @ problem.basis if wide else problem.basis
    else:
        start = torch.randn(len(M), k, generator=device_generator(M.device), device=M.device)
    squares, U = torch.lobpcg(M @ M.mT, k=k, X=start, niter=int(niter), largest=True)
    S = squares.clamp(min=torch.finfo(M.dtype).tiny).sqrt()
    Vh = (U.mT @ M) / S[:, None]
    return (U, S, Vh) if wide else (Vh.mT, S, U.mT)


def _sklearn(problem: Moved, k: int, n_iter: float | None) -> Triplets:
    from sklearn.utils.extmath import randomized_svd as peer

    iterations = "auto" if n_iter is None else int(n_iter)
    return _tensors(*peer(problem.M.numpy(), k, n_oversamples=FRESH, n_iter=iterations, random_state=0))


def _scipy(solver: str, problem: Moved, k: int, tol: float | None) -> Triplets:
    from scipy.sparse.linalg import svds

    M = problem.M.numpy()
    start = torch.randn(min(M.shape), generator=torch.Generator().manual_seed(0)).numpy()
    U, S, Vh = svds(M, k=k, tol=tol, v0=start, solver=solver)
    # Ascending with one solver, descending with another.
    order = S.argsort()[::-1].copy()
    return _tensors(U[:, order], S[order], Vh[order])


def _tensors(U: Any, S: Any, Vh: Any) -> Triplets:
    return torch.from_numpy(U), torch.from_numpy(S), torch.from_numpy(Vh)


_METHODS: dict[str, Callable[[Moved, int, float | None], Triplets]] = {
    OURS: _warm,
    "ours cold": _cold,
    "linalg.svd": _full,
    "svd_lowrank": _low_rank,
    "lobpcg": _lobpcg,
    "lobpcg warm": partial(_lobpcg, warm=True),
    "scikit-learn": _sklearn,
    "arpack": partial(_scipy, "arpack"),
    "propack": partial(_scipy, "propack"),
}


def decomposition(
    spectrum: str,
    l: int,
    q: int,
    k: int,
    device: torch.device,
    *,
    curves: Sequence[Curve] = CURVES,
    left_out: str = "",
) -> Case:
    """Every method at every setting: its errors as facts, and what is timed.

    Args:
        spectrum: of the weight.
        l: its rows.
        q: its columns.
        k: the rank.
        device: where it is. Libraries of the host are skipped on a GPU.
        curves: the methods that take part.
        left_out: why those of :data:`CURVES` that do not, do not.
    """
    problem = moved(spectrum, l, q, k, device)
    excess: dict[str, float] = {}
    worst: dict[str, float] = {}
    variants: list[Variant] = []
    skipped: dict[str, str] = {}
    for curve in CURVES:
        for name, setting in zip(curve.points, curve.settings, strict=True):
            if curve not in curves or (device.type == "cuda" and not curve.on_device):
                skipped[name] = left_out if curve.on_device else "a library of the host"
                continue
            run = partial(_METHODS[curve.name], problem, k, setting)
            try:
                found = run()
            except (ImportError, RuntimeError, ValueError) as error:
                if curve.name.startswith("ours"):
                    raise
                skipped[name] = f"{type(error).__name__}: {error}"
                continue
            excess[name], worst[name] = _errors(problem, found)
            # What an optimizer step calls can be captured; the others look at results from the host.
            if name != OURS:
                variants.append(Variant(name, run))
            elif device.type == "cuda":
                variants.append(captured(name, run, device))
            else:
                variants.append(signed_steps(name, run, problem.step))
    facts = {"l": l, "q": q, "k": k, "excess": excess, "values": worst}
    # One read of the weight, and both products of a power step.
    lowest = shared_floors(device).of(4.0 * l * q, 4.0 * l * q * (k + FRESH))
    return Case(_gates(problem, k, excess), variants, facts=facts, floors=lowest, skipped=skipped)


def _errors(problem: Moved, found: Triplets) -> tuple[float, float]:
    """Excess over the optimum, and largest relative error of a singular value."""
    U, S, Vh = found
    excess = residual(problem.M, U, S, Vh.mT) / problem.best - 1
    return max(excess, 0.0), float(((S.double() - problem.values).abs() / problem.values).max())


def _gates(problem: Moved, k: int, excess: dict[str, float]) -> list[Gate]:
    M, basis = problem.M, problem.basis
    U, S, Vh = _warm(problem, k, None)
    exact = ops.warm_svd(M.double(), basis.double(), problem.step, fresh=FRESH, seed=0)
    A, B = exact.A * exact.S, exact.B

    def away(U: Tensor, S: Tensor, Vh: Tensor) -> float:
        # ||U S Vh - A B^T|| without the (l, q) products, by the triangular factors of both sides.
        L = torch.linalg.qr(torch.cat([U.double() * S.double(), A], 1)).R
        R = torch.linalg.qr(torch.cat([Vh.double().mT, -B], 1)).R
        return float((L @ R.mT).norm() / exact.S.norm())

    MV = M @ basis
    gates = [
        Gate("distance", excess[OURS], EXCESS, excess["ours cold n_iter=0"]),
    ]
    # On a GPU a weight that no cache holds is multiplied in TF32, which is further off than a step may lead.
    if M.device.type != "cuda" or is_cached(M):
        gates.append(Gate("step", away(U, S, Vh), STEP, away(MV, torch.ones_like(S), basis.mT)))
    if "linalg.svd" in excess:
        short = (problem.best**2 + float(problem.values[-1]) ** 2) ** 0.5 / problem.best - 1
        gates.append(Gate("full SVD", excess["linalg.svd"], FULL, short))
    return gates
