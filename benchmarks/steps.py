"""Optimizer steps that are timed against each other, all from one state and on the same data."""

import copy
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

import lip_fast
from benchmarks.problems import LEARNING_RATE, Step
from benchmarks.rows import Row
from lip_fast import reference
from lip_fast.optim import LIPAdamW

__all__ = [
    "BaseStep",
    "LIPStep",
    "NaiveStep",
    "OptimizerStep",
    "Products",
    "ReferenceStep",
    "State",
    "full_svd",
    "low_rank",
]

Decompose = Callable[[Tensor], tuple[Tensor, Tensor, Tensor]]


@dataclass(frozen=True)
class State:
    """Weight and optimizer state that every variant starts from, and the number of steps behind it."""

    M: Tensor
    optimizer: dict[str, Any]
    steps: int


class BaseStep:
    """A step of the base optimizer alone.

    Call :meth:`prepare` and then the object itself: the call is what is timed.
    """

    def __init__(self, problem: Step, state: State | None = None) -> None:
        self.problem = problem
        l, q = problem.M.shape
        self.head = nn.Linear(q, l, bias=False)
        self.optimizer = self._make()
        self.steps = 0
        with torch.no_grad():
            self.weight.copy_(problem.M if state is None else state.M)
        if state is not None:
            self.optimizer.load_state_dict(copy.deepcopy(state.optimizer))
            self.steps = state.steps
        self.X, self.y = problem.features[0], problem.targets[0]

    def _make(self) -> torch.optim.Optimizer:
        return torch.optim.AdamW(self.head.parameters(), lr=LEARNING_RATE, fused=True)

    @property
    def weight(self) -> Tensor:
        """The weight (l, q)."""
        return self.head.weight.detach()

    def state(self) -> State:
        """A copy of where this variant is now."""
        return State(self.weight.clone(), copy.deepcopy(self.optimizer.state_dict()), self.steps)

    def prepare(self) -> None:
        """What a backward pass would have left behind: the next gradient, features and targets."""
        i = self.steps % len(self.problem.gradients)
        self.head.weight.grad = self.problem.gradients[i]
        self.X, self.y = self.problem.features[i], self.problem.targets[i]
        self.steps += 1

    def __call__(self) -> None:
        """The base optimizer's step."""
        self.optimizer.step()


class LIPStep(BaseStep):
    """Ours: the base optimizer with ``lip_fast.LIP`` attached."""

    def __init__(self, problem: Step, row: Row, rest: str) -> None:
        super().__init__(problem)
        self.lip = lip_fast.LIP(self.head, row.k, tail_rank=row.tail_rank, rest=rest)
        self.lip.attach(self.optimizer)

    def __call__(self) -> None:
        """Observe the batch, then step."""
        self.lip.observe(self.X, self.y)
        self.optimizer.step()

    def require_applied(self) -> None:
        """Raise unless every step so far was repaired: a skipped one costs little and proves nothing."""
        require_applied(self.lip.stats(), self.steps)


def require_applied(stats: Mapping[str, int | None], steps: int) -> None:
    """Raise unless LIP acted on so many steps."""
    assert stats["applied"] == steps, f"not every step was repaired: {stats}"


class OptimizerStep(BaseStep):
    """Ours: a step of ``LIPAdamW``."""

    optimizer: LIPAdamW

    def __init__(self, problem: Step, row: Row) -> None:
        self.row = row
        super().__init__(problem)

    def _make(self) -> torch.optim.Optimizer:
        row = self.row
        return LIPAdamW(
            self.head.parameters(),
            lr=LEARNING_RATE,
            fused=True,
            lip_rank=row.k,
            lip_tail_rank=row.tail_rank,
            lip_rest=row.rest,
        )

    def __call__(self) -> None:
        """Observe the batch, then step."""
        self.optimizer.observe(self.head, self.X, self.y)
        self.optimizer.step()

    def require_applied(self) -> None:
        """As that of :class:`LIPStep`."""
        (stats,) = self.optimizer.lip.stats().values()
        require_applied(stats, self.steps)


class NaiveStep(BaseStep):
    """The truncated step written directly on a decomposition from torch."""

    def __init__(self, problem: Step, row: Row, state: State, decompose: Decompose) -> None:
        super().__init__(problem, state)
        assert row.tail_rank is not None
        self.k, self.t = row.k, row.k + row.tail_rank
        self.decompose = decompose

    @torch.no_grad()
    def __call__(self) -> None:
        """Step, decompose, refit, rebuild."""
        self.optimizer.step()
        M, k, t = self.weight, self.k, self.t
        A, s, B = self.decompose(M)
        A, s, B = A[:, :t], s[:t].clone(), B[:, :t]
        P = self.X @ B[:, k:]
        refit = (P * A[:, k:][self.y]).sum(0) / P.square().sum(0)
        s[k:] = refit.clamp(-s[k - 1], s[k - 1])
        torch.mm(A * s, B.mT, out=M)


class ReferenceStep(BaseStep):
    """The base optimizer's step followed by ``reference.lip_step``, its labels formed from indices."""

    def __init__(self, problem: Step, row: Row, state: State, rest: str) -> None:
        super().__init__(problem, state)
        self.row, self.rest = row, rest

    @torch.no_grad()
    def __call__(self) -> None:
        """Step, then apply the reference."""
        self.optimizer.step()
        M, row = self.weight, self.row
        Y = reference.one_hot(self.y, row.l, M.dtype)
        M.copy_(reference.lip_step(M, self.X, Y, row.k, row.tail_rank, rest=self.rest))


class Products:
    """The three products no truncated step can do without: M V, M^T Y and the rebuild of M.

    They write into buffers of their own that are there already: nothing here but arithmetic and memory. The
    rebuild writes M = A B^T where the rest is dropped, and adds the refitted directions where it is kept.
    """

    def __init__(self, state: State, row: Row) -> None:
        m, self.keep = row.columns, row.rest == "keep"
        generator = torch.Generator().manual_seed(0)
        self.M = state.M.clone()
        self.V = torch.randn(row.q, m, generator=generator)
        self.Y, self.Z = torch.empty(row.l, m), torch.empty(row.q, m)
        # The rebuild writes the same weight again in every round.
        if self.keep:
            assert row.tail_rank is not None
            self.A, self.B = torch.zeros(row.l, row.tail_rank), self.V[:, : row.tail_rank].contiguous()
        else:
            A, s, B = low_rank(row)(state.M)
            self.A, self.B = (A * s).contiguous(), B.contiguous()

    def prepare(self) -> None:
        """Nothing changes from round to round."""

    def __call__(self) -> None:
        """Compute the three products."""
        torch.mm(self.M, self.V, out=self.Y)
        torch.mm(self.M.mT, self.Y, out=self.Z)
        if self.keep:
            self.M.addmm_(self.A, self.B.mT)
        else:
            torch.mm(self.A, self.B.mT, out=self.M)


def full_svd(M: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """(A, s, B) by ``torch.linalg.svd``."""
    A, s, Bh = torch.linalg.svd(M, full_matrices=False)
    return A, s, Bh.mT


def low_rank(row: Row) -> Decompose:
    """(A, s, B) by ``torch.svd_lowrank`` with as many columns as ours has, and two power steps."""
    columns = row.columns

    def decompose(M: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        A, s, B = torch.svd_lowrank(M, q=columns, niter=2)
        return A, s, B

    return decompose
