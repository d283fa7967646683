"""Small training runs that can be taken step by step, with the optimizers that LIP is attached to."""

from collections.abc import Callable
from typing import Any

import torch
from problems import linear
from torch import Tensor, nn

from lip_fast import LIP

INPUTS, Q, L, N, BATCHES = 16, 60, 40, 24, 24
KINDS: dict[str, tuple[type, dict[str, Any]]] = {
    "sgd": (torch.optim.SGD, {"lr": 0.1}),
    "momentum": (torch.optim.SGD, {"lr": 0.1, "momentum": 0.9}),
    "adam": (torch.optim.Adam, {"lr": 0.01}),
    "adamw": (torch.optim.AdamW, {"lr": 0.01}),
}
IMPLEMENTATIONS = {"for-loop": {"foreach": False}, "foreach": {"foreach": True}, "fused": {"fused": True}}
OPTIMIZERS = [f"{kind} {implementation}" for kind in KINDS for implementation in IMPLEMENTATIONS]

# The exact path and, below rank + tail_rank, the one that tracks a basis; with averages over the batches.
EXACT: dict[str, Any] = {"rank": 5, "decay": 0.9}
TRACKED: dict[str, Any] = {"rank": 5, "tail_rank": 4, "decay": 0.9}


class Network(nn.Module):
    """Two layers; the features are the input of the head."""

    def __init__(self, dtype: torch.dtype = torch.float32, seed: int = 0) -> None:
        super().__init__()
        self.body = linear(INPUTS, Q, seed=seed, bias=True, dtype=dtype)
        self.head = linear(Q, L, seed=seed + 1, bias=True, dtype=dtype)

    def features(self, x: Tensor) -> Tensor:
        return torch.tanh(self.body(x))


def make_optimizer(name: str, parameters: Any, **options: Any) -> torch.optim.Optimizer:
    """One of ``OPTIMIZERS``."""
    kind, implementation = name.split()
    optimizer, defaults = KINDS[kind]
    return optimizer(parameters, **(defaults | IMPLEMENTATIONS[implementation] | options))


class Run:
    """A network in training; ``plugin`` makes what is attached to its optimizer from the head."""

    def __init__(
        self,
        name: str,
        plugin: Callable[[nn.Linear], Any] | None = None,
        *,
        dtype: torch.dtype = torch.float32,
        seed: int = 0,
        **options: Any,
    ) -> None:
        self.model = Network(dtype, seed)
        self.optimizer = make_optimizer(name, self.model.parameters(), **options)
        self.plugin = None if plugin is None else plugin(self.model.head)
        if self.plugin is not None:
            self.handle = self.plugin.attach(self.optimizer)
        g = torch.Generator().manual_seed(2)
        self.x = torch.randn(BATCHES, N, INPUTS, generator=g).to(dtype)
        self.y = torch.randint(0, L, (BATCHES, N), generator=g)

    def observe(self, i: int) -> None:
        """What a forward pass on batch ``i`` shows the plug-in."""
        with torch.no_grad():
            self.plugin.observe(self.model.features(self.x[i]), self.y[i])

    def backward(self, i: int, scale: Callable[[Tensor], Tensor] = lambda loss: loss) -> None:
        """Gradients of batch ``i``, and no observation."""
        logits = self.model.head(self.model.features(self.x[i]))
        scale(nn.functional.cross_entropy(logits.float(), self.y[i])).backward()

    def update(self) -> None:
        self.optimizer.step()
        self.optimizer.zero_grad()

    def step(self, i: int) -> None:
        if self.plugin is not None:
            self.observe(i)
        self.backward(i)
        self.update()

    def steps(self, first: int, last: int) -> "Run":
        for i in range(first, last):
            self.step(i)
        return self

    @property
    def weights(self) -> dict[str, Tensor]:
        return {name: p.detach().clone() for name, p in self.model.named_parameters()}


class LIPWithStatistics(LIP):
    """LIP, whose sums are given as those of the naive hook are."""

    def statistics(self) -> dict[str, Tensor]:
        statistics = self.state_dict()["statistics"]
        return {"gram": statistics["G"], "cross": statistics["C"]}
