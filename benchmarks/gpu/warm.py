"""The warm SVD of a weight: native, of composed operations, and its peers from torch."""

from collections.abc import Iterator
from functools import partial

import torch
from torch import Tensor

from benchmarks.gpu.weights import DRY_HEADS, HEADS, exact_products, make_weight, residual
from lip_fast.backends.default.svd import warm_svd as composed_warm_svd
from lip_fast.backends.native.svd import warm_svd as native_warm_svd
from lip_fast.bench.cases import Case, Floors, Maker, require_memory, require_native
from lip_fast.bench.gates import Gate
from lip_fast.bench.timing import Variant, captured
from lip_fast.projected import FRESH

__all__ = ["cases"]

# A full decomposition of more values than this takes seconds to minutes.
_FULL_SVD_VALUES = 1 << 25


# Excess over the same step in float64: a basis that was not updated leaves 1e-1; the step is right to 1e-4.
_EXCESS = 2e-3
# Singular values over the largest: TF32 is up to 2e-4 off, the values of the last step 1e-2.
_VALUES = 1e-3
# What the package promises of a basis; without orthonormalisation it is off by 2e-3.
_ORTHOGONALITY = 1e-4


def warm(l: int, q: int, k: int, r: int, device: torch.device, floors: Floors) -> Case:
    """The native warm SVD beside composed operations, ``svd_lowrank`` and the full decomposition."""
    require_native(device)
    require_memory(device, 4.0 * l * q * 6)
    weight = make_weight(l, q, k, r, device)
    M, basis, t = weight.M, weight.basis, k + r
    step = torch.zeros((), dtype=torch.int64, device=device)

    def native() -> tuple[Tensor, Tensor, Tensor, Tensor]:
        return native_warm_svd(M, basis, step, FRESH, 0)

    def composed() -> tuple[Tensor, Tensor, Tensor, Tensor]:
        return composed_warm_svd(M, basis, step, FRESH, 0)

    def deviation(B: Tensor) -> float:
        B = B.double()
        return float((B.mT @ B - torch.eye(t, dtype=torch.float64, device=device)).abs().max())

    A, S, B, status = native()
    if int(status):
        raise RuntimeError(f"the status is {int(status)}")
    exact = composed_warm_svd(M.double(), basis.double(), step, FRESH, 0)
    best = residual(M, *exact[:3])
    MV, _ = exact_products(M, basis, torch.zeros(l, t, device=device))
    lengths = torch.linalg.vector_norm(MV, dim=0)
    stale = residual(M, MV / lengths, lengths, basis) / best - 1
    del MV
    old = float((weight.s.double() - exact[1]).abs().max() / exact[1][0])
    other = composed()
    gates = [
        Gate("excess", residual(M, A, S, B) / best - 1, _EXCESS, stale),
        Gate("values", float((S.double() - exact[1]).abs().max() / exact[1][0]), _VALUES, old),
        Gate("orthogonality", deviation(B), _ORTHOGONALITY, deviation(1.01 * weight.basis)),
        Gate("composed excess", residual(M, *other[:3]) / best - 1, _EXCESS, stale),
    ]
    del exact, other
    variants = [
        captured("native", native, device),
        Variant("composed", composed),
        Variant("svd_lowrank", lambda: torch.svd_lowrank(M, q=t + FRESH, niter=2)),
    ]
    skipped = {}
    if l * q <= _FULL_SVD_VALUES:
        variants.append(Variant("linalg.svd", lambda: torch.linalg.svd(M, full_matrices=False)))
    else:
        skipped["linalg.svd"] = f"more than {_FULL_SVD_VALUES} values: it would take the time of all the rest"
    return Case(gates, variants, [], {"l": l, "q": q, "k": k, "r": r}, floors.of(4 * l * q), skipped)


def cases(device: torch.device, dry: bool) -> Iterator[tuple[str, Maker]]:
    """The rows of the warm SVD."""
    floors = Floors(device, 1 << 16 if dry else 1 << 29)
    for l, q, k, r in DRY_HEADS if dry else HEADS:
        yield f"warm {l}x{q} m={k + r + FRESH}", partial(warm, l, q, k, r, device, floors)
