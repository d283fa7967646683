"""Training with an optimizer that has LIP inside, whose update kernels may take."""

import copy
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import torch
from problems import gapped_matrix, linear
from torch import Tensor, nn

from lip_fast import ops
from lip_fast.optim import LIPSGD, LIPAdamW, LIPNAdam

Q, L, N, INPUTS = 60, 40, 24, 16
RULES: dict[str, tuple[type, dict[str, Any]]] = {
    "sgd": (LIPSGD, {"lr": 0.05}),
    "momentum": (LIPSGD, {"lr": 0.05, "momentum": 0.9, "dampening": 0.1, "weight_decay": 0.01}),
    "nesterov": (LIPSGD, {"lr": 0.05, "momentum": 0.9, "nesterov": True, "maximize": True}),
    "adamw": (LIPAdamW, {"lr": 0.01}),
    "amsgrad": (LIPAdamW, {"lr": 0.01, "amsgrad": True, "maximize": True, "betas": (0.8, 0.95), "eps": 1e-3}),
    "nadam": (LIPNAdam, {"lr": 0.01, "weight_decay": 0.01}),
    "decoupled": (
        LIPNAdam,
        {"lr": 0.01, "weight_decay": 0.1, "decoupled_weight_decay": True, "maximize": True, "eps": 1e-3},
    ),
}
BASES = {LIPAdamW: torch.optim.AdamW, LIPNAdam: torch.optim.NAdam, LIPSGD: torch.optim.SGD}


class Run:
    """A backbone and a head in training."""

    def __init__(
        self,
        rule: str,
        lip: dict[str, Any],
        *,
        dtype: torch.dtype = torch.float32,
        shape: tuple[int, int] = (L, Q),
        gap: float = 0.8,
        **options: Any,
    ) -> None:
        l, q = shape
        self.body = linear(INPUTS, q, seed=0, bias=True, dtype=dtype)
        self.head = linear(q, l, seed=1, bias=True, dtype=dtype)
        with torch.no_grad():
            # Singular values that stand apart: where they do not, rounding turns the directions.
            self.head.weight.copy_(gapped_matrix(l, q, gap=gap))
        kind, defaults = RULES[rule]
        self.optimizer = kind(
            [
                {"params": [*self.body.parameters(), self.head.bias]},
                {"params": [self.head.weight], **lip},
            ],
            **(defaults | options),
        )
        g = torch.Generator().manual_seed(2)
        self.x = torch.randn(30, N, INPUTS, generator=g).to(dtype)
        self.y = torch.randint(0, l, (30, N), generator=g)

    def backward(self, i: int, scale: float = 1.0) -> None:
        features = torch.tanh(self.body(self.x[i]))
        loss = nn.functional.cross_entropy(self.head(features).float(), self.y[i])
        (scale * loss).backward()
        self.optimizer.observe(self.head, features, self.y[i])

    def step(self, i: int) -> None:
        self.backward(i)
        self.optimizer.step()
        self.optimizer.zero_grad()

    def steps(self, first: int, last: int) -> "Run":
        for i in range(first, last):
            self.step(i)
        return self

    @property
    def weight(self) -> Tensor:
        return self.head.weight.detach().clone()

    @property
    def state(self) -> dict[str, Tensor]:
        state = self.optimizer.state[self.head.weight]
        return {name: value.detach().clone() for name, value in state.items() if value is not None}

    def take_base_step(self) -> dict[str, Any]:
        """Take the step of torch's fused AdamW on the head alone; returns the state that it leaves."""
        weight = self.head.weight
        base = torch.optim.AdamW([weight], **RULES["adamw"][1], fused=True)
        base.state[weight] = copy.deepcopy(self.optimizer.state[weight])
        base.step()
        return base.state[weight]


@contextmanager
def unfused() -> Iterator[None]:
    """No kernel takes an update."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(ops, "fuses_updates", lambda device: False)
        yield


def composed(rule: str, lip: dict[str, Any], last: int, **options: Any) -> Run:
    """The same with torch's step first, then LIP."""
    with unfused():
        return Run(rule, lip, **options).steps(0, last)


def break_step(run: Run, where: str) -> None:
    """Have the step of ``run`` fail in the op ``where``."""

    def fail(*arguments: Any, **options: Any) -> None:
        raise torch.OutOfMemoryError("in the middle")

    # Of a weight that is not written before.
    narrow = run.head.weight.dtype != torch.float32
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(ops, "update_project" if narrow and where == "project" else where, fail)
        with pytest.raises(torch.OutOfMemoryError):
            run.optimizer.step()
