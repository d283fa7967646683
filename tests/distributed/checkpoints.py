"""Checkpoints of a model in training, written in some number of processes and read in another."""

from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import torch
import torch.distributed as dist
import torch.distributed.checkpoint as dcp
from distributed.heads import distance
from distributed.layouts import equal_everywhere, quietly
from distributed.wrappers import (
    EXACT,
    TRUNCATED,
    Run,
    alone,
    backward,
    batch,
    counts,
    flat,
    fully_sharded,
    make_optimizer,
    replicas,
    tensor_parallel,
    train,
)
from torch import Tensor
from torch.distributed.checkpoint.state_dict import get_state_dict, set_state_dict
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.tensor import DTensor

SAVED, LAST = 3, 6


class Training(NamedTuple):
    """What is trained, and how."""

    wrapper: str
    classes: int
    maker: str
    settings: dict[str, Any]

    @property
    def name(self) -> str:
        return f"{self.wrapper} {self.classes} {self.maker} {self.settings}"

    def start(self) -> tuple[Run, tuple[Any, Any, Any]]:
        """The model before its first step, with its optimizer, in this number of processes."""
        world = dist.get_world_size()
        mesh = init_device_mesh("cpu", (world,))
        wrappers: dict[str, Callable[[], Run]] = {
            "DDP": lambda: replicas(self.classes),
            "FSDP2": lambda: fully_sharded(self.classes, mesh),
            "TP": lambda: tensor_parallel(self.classes, mesh, by_class=True),
        }
        run = alone(self.classes) if world == 1 else wrappers[self.wrapper]()
        return run, make_optimizer(self.maker, run, **self.settings)


FADING = {"decay": 0.9}
TRAININGS = [
    Training("DDP", 9, "plugin", EXACT | FADING),
    Training("DDP", 30, "adamw", TRUNCATED),
    Training("FSDP2", 9, "sgd", EXACT),
    Training("FSDP2", 30, "adamw", TRUNCATED | FADING),
    Training("TP", 9, "plugin", EXACT | FADING),
    Training("TP", 30, "adamw", TRUNCATED),
]


def _go(training: Training, run: Run, made: Any, steps: range) -> list[Tensor]:
    return train(run, training.classes, None, made=made, steps=steps)[0]


def _state(run: Run, made: Any) -> dict[str, Any]:
    model, optimizer = get_state_dict(run.model, made[0])
    return {"model": model, "optimizer": optimizer, "lip": made[2]}


def _resumed(training: Training, path: Path) -> tuple[list[Tensor], dict[str, Any]]:
    """All parameters at the end of a training that goes on from a checkpoint, and the counts of LIP."""
    run, made = training.start()
    state = _state(run, made)
    dcp.load(state, checkpoint_id=path)
    model, optimizer = state["model"], state["optimizer"]
    set_state_dict(run.model, made[0], model_state_dict=model, optim_state_dict=optimizer)
    return _go(training, run, made, range(SAVED, LAST)), counts(made[2])


def save(folder: str) -> dict[str, Any]:
    """Save in the middle, go on to the end, and do that again from the checkpoint."""
    results = {}
    for i, training in enumerate(TRAININGS):
        run, made = training.start()
        middle = _go(training, run, made, range(SAVED))
        dcp.save(_state(run, made), checkpoint_id=Path(folder, str(i)))
        end = _go(training, run, made, range(SAVED, LAST))
        if dist.get_rank() == 0:
            torch.save(end, Path(folder, f"{i}.pt"))
        got, stats = _resumed(training, Path(folder, str(i)))
        results[training.name] = {
            "same": torch.equal(flat(got), flat(end)),
            "moved": distance(flat(end), flat(middle)),
            "stats": stats,
        }
    return results


def resume(folder: str) -> dict[str, Any]:
    """Go on from what :func:`save` wrote, in another number of processes."""
    results = {}
    for i, training in enumerate(TRAININGS):
        got, stats = quietly(lambda: _resumed(training, Path(folder, str(i))))  # noqa: B023
        end = torch.load(Path(folder, f"{i}.pt"), weights_only=True)
        results[training.name] = {
            "distance": distance(flat(got), flat(end)),
            "equal": equal_everywhere(flat(got)),
            "stats": stats,
        }
    return results


def plainly(folder: str) -> dict[str, Any]:
    """``torch.save`` of replicas by the first process, for all of them."""
    results = {}
    for i, training in enumerate(TRAININGS[:2]):
        run, made = training.start()
        _go(training, run, made, range(SAVED))
        path = Path(folder, f"plain-{i}.pt")
        if dist.get_rank() == 0:
            parts = {"model": run.model, "optimizer": made[0], "lip": made[2]}
            torch.save({name: part.state_dict() for name, part in parts.items()}, path)
        dist.barrier()
        end = _go(training, run, made, range(SAVED, LAST))
        saved = torch.load(path, weights_only=True)
        run, made = training.start()
        for name, part in {"model": run.model, "optimizer": made[0], "lip": made[2]}.items():
            part.load_state_dict(saved[name])  # type: ignore[attr-defined]
        got = _go(training, run, made, range(SAVED, LAST))
        results[training.name] = {"same": torch.equal(flat(got), flat(end)), "stats": counts(made[2])}
    return results


def contents() -> dict[str, Any]:
    """What states say of observations, and where statistics lie."""
    results = {}
    for training in TRAININGS:
        run, made = training.start()
        x, y = batch(0, training.classes)
        backward(run, made[1], x, y, rows=len(y))
        state = made[2].state_dict()
        state = state if "pending" in state else next(iter(state.values()))
        C = None if state["statistics"] is None else state["statistics"]["C"]
        results[training.name] = {"pending": len(state["pending"]), "C": isinstance(C, DTensor)}
    return results


def here(folder: str) -> dict[str, Any]:
    """All of two processes."""
    return {"save": save(folder), "plainly": plainly(folder), "contents": contents()}
