"""The solver of small problems, warm and cold, beside the library's."""

from collections.abc import Iterator
from functools import partial

import torch
from torch import Tensor

from lip_fast.backends.native.small_svd import small_svd
from lip_fast.bench.cases import Case, Maker, at_most, require_native
from lip_fast.bench.gates import Gate, distance
from lip_fast.bench.timing import Variant, captured

__all__ = ["cases"]

# Between what was measured and what a wrong answer gives, in the middle on a logarithmic scale: float32 was
# at most 1e-6 off; the factors of the last matrix are 1e-2, its singular values 1e-3.
_SOLVER = 1e-5
_CHANGE = 1e-2


def solver(m: int, batch: int, device: torch.device) -> Case:
    """The solver on matrices near ones whose decomposition is known, with that start and without."""
    require_native(device)
    g = torch.Generator().manual_seed(m)
    U, V = (torch.linalg.qr(torch.randn(batch, m, m, generator=g, dtype=torch.float64))[0] for _ in range(2))
    s = torch.linspace(10, 0.5, m, dtype=torch.float64)
    last = U * s @ V.mT
    noise = torch.randn(batch, m, m, generator=g, dtype=torch.float64)
    exact = last + _CHANGE * noise * last.norm() / noise.norm()
    T, start = exact.float().to(device), V.float().to(device)
    H = T.mT @ T
    expected = torch.linalg.svdvals(T.double().cpu())
    warm, cold = small_svd(T, start), small_svd(T)
    for found in (warm, cold):
        words = [int(word) for word in found.status.flatten().tolist()]
        if any(words) or not int(found.sweeps.min()):
            raise RuntimeError(f"the native solver did not serve it, or gave the status {words}")

    def product(U: Tensor, S: Tensor, V: Tensor) -> Tensor:
        return U.double().cpu() * S.double().cpu()[..., None, :] @ V.double().cpu().mT

    def orthogonality(X: Tensor) -> float:
        return float((X.mT @ X - torch.eye(m, dtype=torch.float64)).abs().max())

    T64 = T.double().cpu()
    stale = distance(product(warm.U, warm.S, start), T64)
    gates = [
        Gate("warm reconstruction", distance(product(*warm[:3]), T64), _SOLVER, stale),
        Gate("cold reconstruction", distance(product(*cold[:3]), T64), _SOLVER, stale),
        Gate(
            "values",
            float((warm.S.double().cpu() - expected).abs().max() / expected.max()),
            _SOLVER,
            float((s - expected).abs().max() / expected.max()),
        ),
        Gate(
            "orthogonality",
            orthogonality(warm.V.double().cpu()),
            _SOLVER,
            orthogonality(T64 / torch.linalg.vector_norm(T64, dim=-2, keepdim=True)),
        ),
    ]
    targets = {
        48: [at_most("warm", 20), at_most("warm", 12, " (stretch)")],
        80: [at_most("warm", 50)],
    }
    return Case(
        gates,
        [
            captured("warm", lambda: small_svd(T, start), device, calls=10),
            captured("cold", lambda: small_svd(T), device, calls=10),
            Variant("linalg.svd", lambda: torch.linalg.svd(T)),
            Variant("linalg.eigh", lambda: torch.linalg.eigh(H)),
        ],
        targets.get(m, []) if batch == 1 else [],
        {
            "m": m,
            "batch": batch,
            "sweeps": {"warm": int(warm.sweeps.max()), "cold": int(cold.sweeps.max())},
        },
    )


def cases(device: torch.device, dry: bool) -> Iterator[tuple[str, Maker]]:
    """The rows of the solver."""
    # Up to m = 16 it is the native one on a CPU too.
    for m in (10, 16) if dry else (40, 48, 64, 80, 128):
        for batch in (1, 8):
            yield f"solver m={m} batch={batch}", partial(solver, m, batch, device)
