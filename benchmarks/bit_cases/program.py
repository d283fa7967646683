"""What a process of a world runs: each of its cases, and a file for what came out."""

import argparse
import fnmatch
import importlib
import os
import sys
import warnings
from collections.abc import Sequence
from datetime import timedelta
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from . import ENVIRONMENTS, PROCESSES, cases

__all__ = ["main", "plain"]


def plain(value: Any) -> Any:
    """A result as what ``torch.load(weights_only=True)`` loads: of a DTensor the part of this process.

    Raises:
        TypeError: neither tensors nor plain values.
    """
    if isinstance(value, Tensor):
        placed: Any = value
        if hasattr(placed, "to_local"):
            return {"placements": str(placed.placements), "local": placed.to_local().detach().clone()}
        return value.detach().clone()
    if isinstance(value, dict):
        return {key: plain(of) for key, of in value.items()}
    if isinstance(value, list):
        return [plain(of) for of in value]
    if isinstance(value, tuple):
        return tuple(plain(of) for of in value)
    if value is None or isinstance(value, bool | int | float | str | torch.dtype):
        return value
    raise TypeError(f"expected a result of tensors and plain values, got {type(value).__name__}")


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the cases of a world; the file of each holds its "result", or the "error" that it failed with."""
    parser = argparse.ArgumentParser()
    parser.add_argument("world", choices=ENVIRONMENTS)
    parser.add_argument("folder", type=Path, help="for the files")
    parser.add_argument("--cases", default="*", metavar="PATTERN")
    parser.add_argument("--base", type=Path, help="the folder of the base's results")
    parser.add_argument("--tree", type=Path, help="where lip_fast has to come from")
    parser.add_argument("--rank", type=int, help="of this process, in a world of several")
    parser.add_argument("--store", type=Path, help="the file by which those find each other")
    options = parser.parse_args(arguments)
    torch.set_num_threads(1)
    warnings.simplefilter("ignore")
    import lip_fast

    where = Path(lip_fast.__file__).resolve().parents[1]
    if where != options.tree.resolve():
        sys.exit(f"lip_fast was imported from {where}, not from {options.tree}")
    if options.rank is not None:
        _join(options.rank, PROCESSES[options.world], options.store)
    for name, case in cases(options.world, options.base).items():
        if not fnmatch.fnmatch(name, options.cases):
            continue
        try:
            found = {"result": plain(case())}
        except Exception as error:
            found = {"error": f"{type(error).__name__}: {error}"}
        path = options.folder / f"{name}.pt"
        path.parent.mkdir(parents=True, exist_ok=True)
        torch.save(found, path)
        if "error" in found and options.rank is not None:
            # The other process may wait for this one: no case after this would begin together.
            break
    if options.rank is not None:
        # Groups that cycles of objects still hold have threads, which may abort the end of an interpreter.
        os._exit(0)


def _join(rank: int, world_size: int, store: Path) -> None:
    """Make this process one of several."""
    import torch.distributed as dist

    # Its functions have the group for a default: imported later, as optimizers do, it would keep the group.
    importlib.import_module("torch.distributed.nn")
    dist.init_process_group(
        "gloo",
        init_method=f"file://{store}",
        rank=rank,
        world_size=world_size,
        timeout=timedelta(seconds=120),
    )
