"""The functions of the package, one after the other."""

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from .training import gapped, linear

__all__ = ["cases", "labelled_rows"]


def labelled_rows(dtype: torch.dtype = torch.float64) -> tuple[nn.Linear, Tensor, Tensor, Tensor]:
    """A head (30, 20), features, class indices and label sets of 200 rows."""
    random = torch.Generator().manual_seed(9)
    head = linear(20, 30, random, dtype=dtype)
    head.weight.data.copy_(gapped(30, 20, random))
    X = torch.randn(200, 20, generator=random, dtype=torch.float64).to(dtype)
    y = torch.randint(0, 30, (200,), generator=random)
    return head, X, y, (torch.rand(200, 30, generator=random) < 0.15).to(dtype)


def _one_shot(dtype: torch.dtype) -> dict[str, Any]:
    import lip_fast

    head, X, y, Y = labelled_rows(dtype)
    W, bias = head.weight.detach().T, head.bias.detach()
    found: dict[str, Any] = {}
    for name, labels in {"indices": y, "dense": Y, "csr": Y.to_sparse_csr()}.items():
        found[name] = lip_fast.lip(W, X, labels, 8)
        found[f"{name}, bias"] = lip_fast.lip(W, X, labels, 8, bias=bias)
    path = lip_fast.lip_path(W, X, y, bias=bias)
    found["path"] = {str(k): weight for k, weight in path}
    found["agreement"] = {str(k): share for k, share in path.agreement((X[:50], y[:50]), bias=bias).items()}
    found["holdout"] = lip_fast.select_rank(path, method="holdout", holdout=(X[:50], y[:50]), bias=bias)
    found["threshold"] = lip_fast.select_rank(path, method="gavish-donoho")
    found["energy"] = lip_fast.select_rank(path)
    return found


def _randomized(dtype: torch.dtype) -> dict[str, Any]:
    import lip_fast

    M = gapped(60, 48, torch.Generator().manual_seed(3)).to(dtype)
    cold = lip_fast.randomized_svd(M, 12)
    warm = lip_fast.randomized_svd(M, 12, n_iter=0, basis=cold[2].mT)
    given = lip_fast.randomized_svd(M.T, 9, oversample=5, generator=torch.Generator().manual_seed(1))
    return {"cold": cold, "warm": warm, "given": given, "exact": lip_fast.randomized_svd(M, 48)}


def _statistics(dtype: torch.dtype, decay: float | None = None) -> dict[str, Any]:
    import lip_fast

    head, X, y, Y = labelled_rows(dtype)
    statistics = lip_fast.LabelStatistics(20, 30, decay=decay, dtype=torch.float64)
    statistics.update([(X[:60], y[:60]), (X[60:120], Y[60:120])])
    statistics.update(X[120:], Y[120:].to_sparse_csr())
    other = lip_fast.LabelStatistics(20, 30, decay=decay).update(X[:30], y[:30])
    found: dict[str, Any] = {"before": statistics.state_dict()}
    statistics.merge(other)
    U, _, Vh = torch.linalg.svd(head.weight.detach().double(), full_matrices=False)
    found["refit"] = statistics.refit(U[:, :9], Vh[:9].mT, head.bias.detach())
    ridge, pcr = statistics.ridge_path([1e-2, 1.0, 1e2]), statistics.pcr_path([0, 4, 20])
    found["ridge"] = [tuple(ridge[i]) for i in range(3)]
    found["ridge logits"] = list(ridge.logits(X[:10]))
    found["pcr"] = [tuple(pcr[i]) for i in range(3)]
    found["truncate"] = statistics.truncate(7)
    weight, bias = head.weight.detach().double().T, head.bias.detach().double()
    found["lip"] = lip_fast.lip(weight, statistics, k=5, bias=bias)
    return found | {"after": statistics.state_dict(), "rows": statistics.rows}


def _repairs(dtype: torch.dtype) -> dict[str, Any]:
    import lip_fast

    head, X, y, _ = labelled_rows(dtype)
    statistics = lip_fast.LabelStatistics(20, 30).update(X[50:], y[50:])
    found: dict[str, Any] = {}
    for method in ("lip", "ridge", "pcr", "truncate", "auto"):
        report = lip_fast.repair(head, statistics, method, holdout=(X[:50], y[:50]))
        found[method] = {
            "head": dict(report.head.state_dict()),
            "candidates": [(c.method, c.parameter, c.score) for c in report.candidates],
        }
    return found


def cases() -> dict[str, Callable[[], Any]]:
    """Each function, on wide and narrow numbers."""
    found: dict[str, Callable[[], Any]] = {
        "functions/statistics-decay": partial(_statistics, torch.float64, 0.9)
    }
    for dtype in (torch.float64, torch.float32, torch.bfloat16):
        name = str(dtype).removeprefix("torch.")
        found[f"functions/lip-{name}"] = partial(_one_shot, dtype)
        found[f"functions/statistics-{name}"] = partial(_statistics, dtype)
        if dtype != torch.bfloat16:
            found[f"functions/randomized_svd-{name}"] = partial(_randomized, dtype)
            found[f"functions/repair-{name}"] = partial(_repairs, dtype)
    return found
