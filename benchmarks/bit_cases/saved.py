"""Checkpoints after half of the steps: each tree writes its own, and both go on from those of the base."""

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import torch

from .functions import labelled_rows
from .training import CORE, DROP, EXACT, KEEP, STEPS, Run

__all__ = ["loading", "saving"]

_HALF = STEPS // 2
_OPTIONS: dict[str, dict[str, Any]] = {
    "exact": {"lip": EXACT},
    "keep": {"lip": KEEP},
    "drop-bfloat16": {"lip": DROP, "dtype": torch.bfloat16},
    "decay": CORE["decay"],
    "rank-auto": {"lip": {"rank": "auto"}},
    "two-heads": {"lip": KEEP, "heads": 2},
    "csr-pending": {"lip": KEEP, "labels": "csr"},
}
_RUNS: dict[str, tuple[str, dict[str, Any]]] = {
    f"{maker}/{name}": (maker, options)
    for maker in ("SGD-nesterov", "AdamW", "LIPSGD-momentum", "LIPAdamW", "LIPAdamW-amsgrad")
    for name, options in _OPTIONS.items()
}


def saving() -> dict[str, Callable[[], Any]]:
    """Cases whose results are states."""
    found: dict[str, Callable[[], Any]] = {f"saved/{name}": partial(_save, name) for name in _RUNS}
    return found | {"saved/LabelStatistics": _save_statistics}


def loading(base: Path) -> dict[str, Callable[[], Any]]:
    """Cases that go on from the results of the others, which are in this folder."""
    found: dict[str, Callable[[], Any]] = {name: partial(_load, name, base) for name in _RUNS}
    return found | {"LabelStatistics": partial(_load_statistics, base)}


def _save(name: str) -> dict[str, Any]:
    maker, options = _RUNS[name]
    run = Run(maker, **options).steps(0, _HALF)
    if name.endswith("pending"):
        run.backward(_HALF)
    return run.state


def _load(name: str, base: Path) -> dict[str, Any]:
    maker, options = _RUNS[name]
    run = Run(maker, **options)
    run.load(_read(base, name))
    if name.endswith("pending"):
        # A checkpoint holds what was observed, but no gradients.
        run.backward(_HALF, "no observation")
        run.optimizer.step()
        return run.steps(_HALF + 1).result
    return run.steps(_HALF).result


def _save_statistics() -> dict[str, Any]:
    import lip_fast

    _, X, y, _ = labelled_rows()
    return lip_fast.LabelStatistics(20, 30, decay=0.9).update(X[:100], y[:100]).state_dict()


def _load_statistics(base: Path) -> dict[str, Any]:
    import lip_fast

    _, X, y, _ = labelled_rows()
    statistics = lip_fast.LabelStatistics(20, 30, decay=0.9)
    statistics.load_state_dict(_read(base, "LabelStatistics"))
    return statistics.update(X[100:], y[100:]).state_dict()


def _read(base: Path, name: str) -> Any:
    found = torch.load(base / "auto" / "saved" / f"{name}.pt", weights_only=True)
    if "error" in found:
        raise RuntimeError("the base has saved no state to load")
    return found["result"]
