"""Runs of which one is captured and the other is not."""

from collections.abc import Callable
from typing import Any

import torch
from graph_capture import Graph
from problems import linear, problem
from torch import Tensor

from lip_fast import LIP

Q, L, N, BATCHES = 60, 40, 32, 10


class TensorAdamW(torch.optim.Optimizer):
    """AdamW as ``capturable=True`` computes it, which torch does not offer on CPU."""

    def __init__(self, params: Any, lr: float) -> None:
        super().__init__(params, {"lr": torch.tensor(lr)})

    @torch.no_grad()
    def step(self) -> None:
        for group in self.param_groups:
            for p in group["params"]:
                state = self.state[p]
                if not state:
                    state["step"] = torch.zeros(())
                    state["m"], state["v"] = torch.zeros_like(p), torch.zeros_like(p)
                state["step"] += 1
                p.mul_(1 - group["lr"] * 0.01)
                state["m"].lerp_(p.grad, 0.1)
                state["v"].mul_(0.99).addcmul_(p.grad, p.grad, value=0.01)
                m = state["m"] / (1 - 0.9 ** state["step"])
                v = state["v"] / (1 - 0.99 ** state["step"])
                p.sub_((group["lr"] * m / (v.sqrt() + 1e-8)).to(p.dtype))


OPTIMIZERS = ("sgd", "adamw")


def _optimizer(name: str, parameters: list[Tensor], device: str) -> torch.optim.Optimizer:
    if name == "sgd":
        return torch.optim.SGD(parameters, lr=0.1, momentum=0.9)
    if device == "cpu":
        return TensorAdamW(parameters, lr=0.01)
    return torch.optim.AdamW(parameters, lr=torch.tensor(0.01, device=device), capturable=True)


WITH_REST = {"tail_rank": 4}
OPTIONS = [
    WITH_REST,
    WITH_REST | {"rest": "drop"},
    WITH_REST | {"tail": "zero"},
    WITH_REST | {"decay": 0.9},
    WITH_REST | {"clip": False},
    {"tail_rank": None},
    {"tail_rank": 2, "rank": 33, "rest": "drop"},
    {"tail_rank": None, "rank": 12, "shape": (140, 150)},
]


class Run:
    """A head whose gradients do not depend on its weight, and the batches of every step."""

    def __init__(
        self,
        name: str = "sgd",
        dtype: torch.dtype = torch.float32,
        *,
        device: str = "cpu",
        graph: Callable[[], Any] = Graph,
        shape: tuple[int, int] = (L, Q),
        **options: Any,
    ) -> None:
        l, q = shape
        self.head = linear(q, l, bias=True, dtype=dtype).to(device)
        self.optimizer = _optimizer(name, list(self.head.parameters()), device)
        self.lip = LIP(self.head, **({"rank": 5} | WITH_REST | options))
        self.lip.attach(self.optimizer)
        for p in self.head.parameters():
            p.grad = torch.zeros_like(p)  # static: a captured optimizer reads it where it lies
        g = torch.Generator().manual_seed(1)
        _, X, y, _, _ = problem(q, l, N * BATCHES, dtype=dtype)
        self.X, self.y = list(X.to(device).split(N)), list(y.to(device).split(N))
        self.gradients = [(torch.randn(l, q, generator=g) / 10).to(device, dtype) for _ in range(BATCHES)]
        self.graph = graph()

    def batch(self, i: int) -> None:
        """What the backward pass of step ``i`` leaves."""
        self.head.weight.grad.copy_(self.gradients[i])

    def observe(self, i: int) -> None:
        self.lip.observe(self.X[i], self.y[i])

    def step(self, i: int) -> None:
        self.batch(i)
        self.observe(i)
        self.optimizer.step()

    def warm_up(self) -> None:
        """What a capture asks for: two steps, of which the second loads what the next one runs."""
        self.step(0)
        self.step(0)

    def capture(self) -> None:
        with self.graph.capture():
            self.optimizer.step()

    def replay(self, i: int) -> None:
        self.batch(i)
        self.observe(i)
        self.graph.replay()

    def capture_and_replay(self, i: int) -> None:
        """What is observed before the capture is what the first replay reads."""
        self.batch(i)
        self.observe(i)
        self.capture()
        self.graph.replay()

    def iteration(self, X: Tensor, y: Tensor) -> None:
        """All of a step: forward, backward, what was seen, and the optimizer."""
        features = torch.relu(X)
        loss = torch.nn.functional.cross_entropy(self.head(features), y)
        for p in self.head.parameters():
            p.grad.zero_()
        loss.backward()
        self.lip.observe(features, y)
        self.optimizer.step()

    @property
    def weight(self) -> Tensor:
        return self.head.weight.detach().clone()


def state_of(run: Run) -> dict[str, Any]:
    """Everything that the next step depends on."""
    return {"lip": run.lip.state_dict(), "optimizer": run.optimizer.state_dict(), "weight": run.weight}


def same(a: Any, b: Any) -> bool:
    """Bit for bit, whatever holds the tensors."""
    if isinstance(a, Tensor):
        return a.shape == b.shape and a.dtype == b.dtype and torch.equal(a.nan_to_num(7), b.nan_to_num(7))
    if isinstance(a, dict):
        return a.keys() == b.keys() and all(same(a[key], b[key]) for key in a)
    if isinstance(a, list | tuple):
        return len(a) == len(b) and all(map(same, a, b))
    return a == b


def assert_same(eager: Run, captured: Run) -> None:
    """Two runs are in the same state, whichever way they came there."""
    a, b = state_of(eager), state_of(captured)
    different = [key for key in a["lip"] if not same(a["lip"][key], b["lip"][key])]
    assert different == []
    assert same(a, b)
    assert eager.lip.stats() == captured.lip.stats()
