"""Runs that are saved in the middle, and go on in another process that made everything anew."""

import io
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import torch.distributed.checkpoint as dcp
from contract.runs import BATCHES, N, Run
from torch import Tensor
from torch.distributed.checkpoint.state_dict import get_state_dict, set_state_dict
from torch.distributed.checkpoint.stateful import Stateful

from lip_fast import LIP

MICRO_BATCHES = 3

Scheduler = Callable[[torch.optim.Optimizer], Any]
SCHEDULERS: dict[str, Scheduler] = {
    "constant": lambda optimizer: torch.optim.lr_scheduler.ConstantLR(optimizer, factor=1.0),
    "step": lambda optimizer: torch.optim.lr_scheduler.StepLR(optimizer, 2, gamma=0.5),
    "cosine": lambda optimizer: torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, BATCHES),
    "warm-up from zero": lambda optimizer: torch.optim.lr_scheduler.LambdaLR(
        optimizer, lambda step: min(step / 4, 1.0)
    ),
    "one cycle": lambda optimizer: torch.optim.lr_scheduler.OneCycleLR(
        optimizer, max_lr=0.05, total_steps=BATCHES
    ),
    "plateau": lambda optimizer: torch.optim.lr_scheduler.ReduceLROnPlateau(optimizer, patience=0),
}


class TrainingRun(Run):
    """A run of steps of several micro-batches with a schedule; ``position`` counts the micro-batches."""

    def __init__(
        self,
        name: str,
        *,
        lip: dict[str, Any],
        scheduler: str = "constant",
        dtype: torch.dtype = torch.float32,
        seed: int = 0,
    ) -> None:
        super().__init__(name, lambda head: LIP(head, **lip), dtype=dtype, seed=seed)
        self.scheduler = SCHEDULERS[scheduler](self.optimizer)
        self.position = 0

    def go(self, position: int) -> "TrainingRun":
        """Take micro-batches up to ``position``, and a step after each three of them."""
        while self.position < position:
            i, part = divmod(self.position, MICRO_BATCHES)
            rows = slice(part * N // MICRO_BATCHES, (part + 1) * N // MICRO_BATCHES)
            features = self.model.features(self.x[i, rows])
            loss = torch.nn.functional.cross_entropy(self.model.head(features).float(), self.y[i, rows])
            loss.backward()
            self.plugin.observe(features, self._labels(self.y[i, rows], part))
            self.position += 1
            if part == MICRO_BATCHES - 1:
                self.update()
                plateau = isinstance(self.scheduler, torch.optim.lr_scheduler.ReduceLROnPlateau)
                self.scheduler.step(loss.item()) if plateau else self.scheduler.step()
        return self

    def _labels(self, y: Tensor, part: int) -> Tensor:
        """Every form that labels have, one after the other."""
        dense = torch.nn.functional.one_hot(y, self.model.head.out_features).float()
        return (y, dense, dense.to_sparse())[part]

    @property
    def gradients(self) -> dict[str, Tensor]:
        return {name: p.grad for name, p in self.model.named_parameters() if p.grad is not None}

    def load_gradients(self, gradients: dict[str, Tensor]) -> None:
        for name, p in self.model.named_parameters():
            p.grad = gradients.get(name)

    @property
    def state(self) -> dict[str, Any]:
        """Everything that must be the same in two runs that are to go on in the same way."""
        return {
            "weights": self.weights,
            "optimizer": self.optimizer.state_dict(),
            "scheduler": self.scheduler.state_dict(),
            "lip": self.plugin.state_dict(),
            "stats": self.plugin.stats(),
            "gradients": self.gradients,
        }


# By torch.save and torch.load(weights_only=True) ----------------------------------------------------------


def save_file(run: TrainingRun, folder: Path) -> None:
    state = {
        "model": run.model.state_dict(),
        "optimizer": run.optimizer.state_dict(),
        "scheduler": run.scheduler.state_dict(),
        "lip": run.plugin.state_dict(),
        "gradients": run.gradients,
        "position": run.position,
    }
    buffer = io.BytesIO()
    torch.save(state, buffer)
    (folder / "checkpoint.pt").write_bytes(buffer.getvalue())


def load_file(run: TrainingRun, folder: Path) -> None:
    state = torch.load(folder / "checkpoint.pt", weights_only=True)
    run.model.load_state_dict(state["model"])
    run.optimizer.load_state_dict(state["optimizer"])
    run.scheduler.load_state_dict(state["scheduler"])
    run.plugin.load_state_dict(state["lip"])
    run.load_gradients(state["gradients"])
    run.position = state["position"]


# By torch.distributed.checkpoint --------------------------------------------------------------------------


class _ModelAndOptimizer:
    """As torch's recipe for distributed checkpoints has it."""

    def __init__(self, run: TrainingRun) -> None:
        self.run = run

    def state_dict(self) -> dict[str, Any]:
        model, optimizer = get_state_dict(self.run.model, self.run.optimizer)
        return {"model": model, "optimizer": optimizer}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        set_state_dict(
            self.run.model,
            self.run.optimizer,
            model_state_dict=state_dict["model"],
            optim_state_dict=state_dict["optimizer"],
        )


def _application(run: TrainingRun, gradients: dict[str, Tensor], position: int) -> dict[str, Any]:
    assert isinstance(run.plugin, Stateful)
    return {
        "app": _ModelAndOptimizer(run),
        "scheduler": run.scheduler,
        "lip": run.plugin,
        # A tuple is saved as one value: there are no gradients between steps.
        "gradients": (gradients,),
        "position": position,
    }


def save_distributed(run: TrainingRun, folder: Path) -> None:
    gradients = {name: gradient.clone() for name, gradient in run.gradients.items()}
    dcp.save(_application(run, gradients, run.position), checkpoint_id=folder)


def start_saving(run: TrainingRun, folder: Path) -> Any:
    """What is saved is the state of now, however far the run goes before the future has its result."""
    gradients = {name: gradient.clone() for name, gradient in run.gradients.items()}
    return dcp.async_save(_application(run, gradients, run.position), checkpoint_id=folder)


def load_distributed(run: TrainingRun, folder: Path) -> None:
    application = _application(run, {}, 0)
    dcp.load(application, checkpoint_id=folder)
    run.load_gradients(application["gradients"][0])
    run.position = application["position"]


FORMATS = {"file": (save_file, load_file), "distributed": (save_distributed, load_distributed)}
