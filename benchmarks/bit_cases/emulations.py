"""What other devices and graphs do, emulated on a CPU."""

import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import torch

from .training import BEHAVIOUR, CORE, DROP, EXACT, KEEP, KERNELS, OWN, STEPS, gapped, linear, train

__all__ = ["cases", "fused_cases", "updates_fused"]

# The emulation of a graph that the tests use: of this checkout, whatever the tree.
_TESTS = Path(__file__).resolve().parents[2] / "tests"


@contextmanager
def _replaced(module: Any, **attributes: Any) -> Iterator[None]:
    before = {name: getattr(module, name) for name in attributes}
    try:
        for name, value in attributes.items():
            setattr(module, name, value)
        yield
    finally:
        for name, value in before.items():
            setattr(module, name, value)


@contextmanager
def _nothing_readable() -> Iterator[None]:
    """Tensors on CPU take the ways of other devices, whose values are not there to be read."""
    from lip_fast import host

    there: Any = host
    if hasattr(there, "READABLE"):
        hook: dict[str, Any] = {"READABLE": frozenset()}
    else:
        hook = {"reads_are_free": lambda device: False}
    with _replaced(there, **hook):
        yield


@contextmanager
def updates_fused() -> Iterator[None]:
    """Optimizers with LIP inside leave the update of the weight to LIP's step, as on a GPU."""
    from lip_fast import ops

    with _replaced(ops, fuses_updates=lambda device: True):
        yield


def _on_a_device(maker: str, options: Mapping[str, Any]) -> dict[str, Any]:
    with _nothing_readable():
        return train(maker, options)


def _fused(maker: str, options: Mapping[str, Any]) -> dict[str, Any]:
    with updates_fused():
        return train(maker, options)


def _captured(own: bool, lip: Mapping[str, Any]) -> dict[str, Any]:
    """Two steps, a capture of the third, and replays."""
    sys.path.insert(0, str(_TESTS))
    try:
        from graph_capture import Graph  # type: ignore[import-not-found]
    finally:
        sys.path.pop(0)
    import lip_fast

    l, q, rows = 40, 24, 16
    random = torch.Generator().manual_seed(5)
    head = linear(q, l, random, dtype=torch.float32)
    head.weight.data.copy_(gapped(l, q, random))
    gradients = torch.randn(STEPS, l, q, generator=random) / 10
    x = torch.randn(STEPS, rows, q, generator=random)
    y = torch.randint(0, l, (STEPS, rows), generator=random)
    for p in head.parameters():
        p.grad = torch.zeros_like(p)
    optimizer: Any
    state: Any
    observe: Callable[..., None]
    if own:
        settings = {f"lip_{key}": value for key, value in lip.items()}
        groups = [{"params": [head.bias]}, {"params": [head.weight], **settings}]
        optimizer = lip_fast.optim.LIPSGD(groups, lr=0.1, momentum=0.9)
        state, observe = optimizer.lip, partial(optimizer.observe, head)
    else:
        optimizer = torch.optim.SGD(head.parameters(), lr=0.1, momentum=0.9)
        state = lip_fast.LIP(head, **lip)
        state.attach(optimizer)
        observe = state.observe
    graph, weights = Graph(), []
    with _nothing_readable():
        for i in range(STEPS):
            assert head.weight.grad is not None
            head.weight.grad.copy_(gradients[i])
            observe(x[i], y[i])
            if i == 2:
                with graph.capture():
                    optimizer.step()
            if i < 2:
                optimizer.step()
            else:
                graph.replay()
            weights.append(head.weight.detach().clone())
        return {"weights": weights, "lip": state.state_dict(), "stats": state.stats()}


def cases() -> dict[str, Callable[[], Any]]:
    """Steps whose values the host does not read, eager and captured."""
    found: dict[str, Callable[[], Any]] = {}
    options = {name: (KERNELS | BEHAVIOUR)[name] for name in (*CORE, *_ON_A_DEVICE)}
    for maker in ("SGD-nesterov", "LIPSGD-momentum", "LIPAdamW"):
        for name, how in options.items():
            found[f"device/{maker}/{name}"] = partial(_on_a_device, maker, how)
    for maker in ("SGD", "LIPSGD"):
        for name, lip in _CAPTURED.items():
            found[f"captured/{maker}/{name}"] = partial(_captured, maker == "LIPSGD", lip)
    return found


_ON_A_DEVICE = ("dense", "csr", "rank-auto", "micro-batches", "keep-scheduled", "gaps")
_CAPTURED: dict[str, dict[str, Any]] = {
    "exact": EXACT,
    "keep": KEEP,
    "drop": DROP,
    "zero": KEEP | {"tail": "zero"},
    "decay": KEEP | {"decay": 0.9},
}


def fused_cases(options: Mapping[str, Mapping[str, Any]]) -> dict[str, Callable[[], Any]]:
    """Steps whose update is fused: those of the options that kernels can fuse it for."""
    found: dict[str, Callable[[], Any]] = {}
    for maker in ("LIPSGD-momentum", "LIPAdamW"):
        for name, how in options.items():
            if "tail_rank" in how["lip"] and how.get("dtype") != torch.float64:
                found[f"fused/{maker}/{name}"] = partial(_fused, maker, how)
    for maker in OWN:
        for name in ("keep", "drop", "drop-bfloat16"):
            found[f"fused/{maker}/{name}"] = partial(_fused, maker, KERNELS[name])
    return found
