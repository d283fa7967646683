"""The cases that :mod:`benchmarks.same_bits` runs in two trees.

A case is a function without arguments that trains, or computes, something small by fixed seeds and returns
all that came out, as nested dictionaries of tensors and plain values. A case uses the public API of
``lip_fast`` alone, and two hooks for emulations: ``lip_fast.host`` (what the host may read, and whether a
graph is captured) and ``lip_fast.ops`` (whether kernels take the optimizer's update, and read a weight once).

Each world of cases has processes of its own. They run the cases of one checkout with the ``lip_fast`` of
another: so the modules of this folder import each other relatively, and are found without the rest of
``benchmarks``. They import ``lip_fast`` where a case needs it, so that cases can be listed without.
"""

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch

from . import command_line, emulations, functions, joint, saved
from .training import BEHAVIOUR, CORE, KERNELS, OWN, OWN_BEHAVIOUR, PLUGIN_BEHAVIOUR, TORCH, train

__all__ = ["ENVIRONMENTS", "PROCESSES", "cases"]

ENVIRONMENTS: dict[str, dict[str, str]] = {
    "auto": {"LIP_FAST_BACKEND": "auto"},
    "default": {"LIP_FAST_BACKEND": "default"},
    "native": {"LIP_FAST_BACKEND": "native"},
    "triton": {"LIP_FAST_BACKEND": "triton", "TRITON_INTERPRET": "1"},
    "processes": {"LIP_FAST_BACKEND": "auto"},
    "command": {"LIP_FAST_BACKEND": "auto"},
    "loaded": {"LIP_FAST_BACKEND": "auto"},
}
"""Of each world: what its processes find in the environment."""

PROCESSES = {"processes": 2}
"""How many processes a world has, where it is not one."""

Case = Callable[[], Any]


def cases(world: str, base: Path | None = None) -> dict[str, Case]:
    """The cases of a world, by names that begin with it.

    Args:
        world: a key of ``ENVIRONMENTS``.
        base: the folder of the base's results, which the cases of "loaded" start from.
    """
    makers: dict[str, Callable[[], dict[str, Case]]] = {
        "auto": _by_choice,
        "default": lambda: _by_kernels(KERNELS),
        # Kernels of optimizers' updates are not among the native ones for a CPU.
        "native": lambda: _by_kernels(CORE),
        "triton": _interpreted,
        "processes": joint.cases,
        "command": lambda: {"train": command_line.train},
        "loaded": lambda: saved.loading(base or Path()),
    }
    return {f"{world}/{name}": case for name, case in makers[world]().items()}


def _trained(makers: Sequence[str], options: Mapping[str, Mapping[str, Any]]) -> dict[str, Case]:
    return {
        f"{maker}/{name}": partial(train, maker, how) for maker in makers for name, how in options.items()
    }


def _by_choice() -> dict[str, Case]:
    """The cases that are run with the kernels that the package chooses."""
    found = _trained(list(TORCH), {name: CORE[name] for name in ("exact", "keep", "drop", "keep-bfloat16")})
    found |= _trained(list(OWN), CORE)
    found |= _trained(["SGD-nesterov"], BEHAVIOUR | PLUGIN_BEHAVIOUR)
    found |= _trained(["LIPSGD-momentum", "LIPAdamW"], BEHAVIOUR | OWN_BEHAVIOUR)
    return found | emulations.cases() | saved.saving()


def _by_kernels(fused: Mapping[str, Mapping[str, Any]]) -> dict[str, Case]:
    """The cases that are run with the kernels of one backend after the other.

    Args:
        fused: what is trained with the update fused, where the update can be.
    """
    found = _trained(["SGD-nesterov", "LIPSGD-momentum", "LIPAdamW"], KERNELS)
    found |= _trained(["AdamW", "LIPSGD", "LIPSGD-nesterov", "LIPAdamW-amsgrad"], CORE)
    return found | emulations.fused_cases(fused) | functions.cases()


def _interpreted() -> dict[str, Case]:
    """Three steps of a tiny head: each takes a second in Triton's interpreter."""
    keep = {"rank": 3, "tail_rank": 3}
    narrow = {"dtype": torch.bfloat16}
    rows: dict[str, tuple[str, dict[str, Any], dict[str, Any]]] = {
        "LIPAdamW/keep": ("LIPAdamW", keep, {}),
        "LIPAdamW/keep-bfloat16": ("LIPAdamW", keep, narrow),
        "LIPAdamW-amsgrad/drop": ("LIPAdamW-amsgrad", keep | {"rest": "drop"}, {}),
        "LIPSGD/keep-bfloat16": ("LIPSGD", keep, narrow),
        "LIPSGD-momentum/drop": ("LIPSGD-momentum", keep | {"rest": "drop"}, {}),
        "LIPSGD-nesterov/keep": ("LIPSGD-nesterov", keep, {}),
        "SGD/decay": ("SGD", keep | {"decay": 0.9}, {}),
    }
    return {
        name: partial(train, maker, {"l": 20, "q": 16, "lip": lip} | how, 3)
        for name, (maker, lip, how) in rows.items()
    }
