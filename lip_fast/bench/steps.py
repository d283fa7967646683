"""Optimizer steps that are timed against each other, all from one state and on the same data."""

import copy
import logging
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from lip_fast import reference
from lip_fast.bench.cases import Skip, shared_floors
from lip_fast.bench.problems import LEARNING_RATE, Step
from lip_fast.bench.rows import Row
from lip_fast.bench.timing import Variant
from lip_fast.optim import LIPSGD, LIPAdamW
from lip_fast.plugin import LIP

__all__ = [
    "STEP_BYTES",
    "BaseStep",
    "LIPStep",
    "NaiveStep",
    "OptimizerStep",
    "Products",
    "ReferenceStep",
    "State",
    "TruncatingStep",
    "WarmStart",
    "full_svd",
    "low_rank",
    "step_floors",
]

# Entries of a gradient are standard normal: with this rate and momentum a weight moves as far as with AdamW.
_SGD: dict[str, Any] = {"lr": 1e-5, "momentum": 0.9}

# Bytes for each entry of the weight in a comparison of steps: 8 gradients, 8 weights with their optimizers'
# states, decompositions in float64. The resident memory of a process that prepared 1000 x 2048 grew by 320.
STEP_BYTES = 350

Decompose = Callable[[Tensor], tuple[Tensor, Tensor, Tensor]]


@dataclass(frozen=True)
class State:
    """Weight and optimizer state that every variant starts from, and the number of steps behind it."""

    M: Tensor
    optimizer: dict[str, Any]
    steps: int


def step_floors(row: Row, device: torch.device) -> dict[str, float]:
    """Microseconds that the bytes and the arithmetic of a step with LIP take at least.

    AdamW reads weight, gradient and two states and writes all but the gradient; SGD has one state. LIP reads
    the weight to decompose it, and writes it, which it must read again where the rest is kept. Truncated it
    takes two products with all columns and the rebuild; exact, at least the Gram matrix of the small side.
    """
    l, q, small = row.l, row.q, min(row.l, row.q)
    passes = (5 if row.optimizer == "SGD" else 7) + (3 if row.rest == "keep" else 2)
    if row.tail_rank is None or row.columns == small:
        tail = small - row.k if row.tail_rank is None else min(row.tail_rank, small - row.k)
        flops = 2.0 * l * q * (small + tail)
    else:
        flops = 2.0 * l * q * (2 * row.columns + row.tail_rank + (row.k if row.rest == "drop" else 0))
    return shared_floors(device).of(4.0 * l * q * passes, flops)


class BaseStep:
    """A step of the base optimizer alone.

    Call :meth:`prepare` and then the object itself: the call is what is timed.

    Args:
        problem: the weight, and what it is trained with.
        row: names the optimizer.
        state: where it starts; the weight of the problem by default.
    """

    def __init__(self, problem: Step, row: Row, state: State | None = None) -> None:
        self.problem, self.row = problem, row
        l, q = problem.M.shape
        self.head: nn.Linear = nn.utils.skip_init(nn.Linear, q, l, bias=False, device=problem.M.device)
        self.optimizer = self._make()
        self.steps = 0
        with torch.no_grad():
            self.weight.copy_(problem.M if state is None else state.M)
        if state is not None:
            self.optimizer.load_state_dict(copy.deepcopy(state.optimizer))
            self.steps = state.steps
        self.X, self.y = problem.features[0], problem.targets[0]

    def _make(self) -> torch.optim.Optimizer:
        parameters = [self.head.weight]
        if self.row.optimizer == "SGD":
            return torch.optim.SGD(parameters, fused=True, **_SGD)
        return torch.optim.AdamW(parameters, lr=LEARNING_RATE, fused=True)

    @property
    def weight(self) -> Tensor:
        """The weight (l, q)."""
        return self.head.weight.detach()

    def state(self) -> State:
        """A copy of the weight and the optimizer state of this variant as they are now."""
        return State(self.weight.clone(), copy.deepcopy(self.optimizer.state_dict()), self.steps)

    def prepare(self) -> None:
        """Put the next gradient, features and targets in place, as a backward pass would."""
        i = self.steps % len(self.problem.gradients)
        self.head.weight.grad = self.problem.gradients[i]
        self.X, self.y = self.problem.features[i], self.problem.targets[i]
        self.steps += 1

    def __call__(self) -> None:
        """The base optimizer's step."""
        self.optimizer.step()

    def variant(self, name: str) -> Variant:
        """This step as a :class:`Variant` to time."""
        return Variant(name, self, between=self.prepare)


def _tail(row: Row) -> int | str:
    """As the settings of LIP have it: rows without one are of the exact step."""
    return "all" if row.tail_rank is None else row.tail_rank


class LIPStep(BaseStep):
    """Ours: the base optimizer with :class:`lip_fast.LIP` attached."""

    def __init__(self, problem: Step, row: Row) -> None:
        super().__init__(problem, row)
        self.lip = LIP(self.head, row.k, tail_rank=_tail(row), rest=row.rest)
        self.lip.attach(self.optimizer)

    def __call__(self) -> None:
        """Observe the batch, then step."""
        self.lip.observe(self.X, self.y)
        self.optimizer.step()

    def skipped(self) -> str | None:
        """The reason why the times of this variant are void: LIP skipped steps, which costs little."""
        return _unrepaired(self.lip.stats(), self.steps)


def _unrepaired(stats: Mapping[str, int | None], steps: int) -> str | None:
    return None if stats["applied"] == steps else f"not every step was repaired: {stats}"


class OptimizerStep(BaseStep):
    """Ours: a step of ``LIPAdamW`` or ``LIPSGD``."""

    optimizer: LIPSGD | LIPAdamW

    def _make(self) -> torch.optim.Optimizer:
        row, parameters = self.row, [self.head.weight]
        settings: dict[str, Any] = {"lip_rank": row.k, "lip_tail_rank": _tail(row), "lip_rest": row.rest}
        if row.optimizer == "SGD":
            return LIPSGD(parameters, fused=True, **_SGD, **settings)
        return LIPAdamW(parameters, lr=LEARNING_RATE, fused=True, **settings)

    def __call__(self) -> None:
        """Observe the batch, then step."""
        self.optimizer.observe(self.head, self.X, self.y)
        self.optimizer.step()

    def skipped(self) -> str | None:
        """See :meth:`LIPStep.skipped`."""
        (stats,) = self.optimizer.lip.stats().values()
        return _unrepaired(stats, self.steps)


class NaiveStep(BaseStep):
    """The truncated step written directly on a decomposition from torch."""

    def __init__(self, problem: Step, row: Row, state: State, decompose: Decompose) -> None:
        super().__init__(problem, row, state)
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


class WarmStart:
    """One power step from the last basis and a few random columns, composed of torch's operations.

    What one would write who knows the literature: a QR decomposition of either product, and the SVD of the
    small matrix between them.

    Args:
        row: names the columns.
        M: what the first basis is of.
    """

    def __init__(self, row: Row, M: Tensor) -> None:
        self._fresh = row.columns - row.k - (row.tail_rank or 0)
        self._V = low_rank(row)(M)[2]
        self._generator = torch.Generator(M.device).manual_seed(0)

    def __call__(self, M: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """(A, s, B)."""
        kept = self._V[:, : self._V.shape[1] - max(self._fresh, 0)]
        size = (len(kept), self._V.shape[1] - kept.shape[1])
        fresh = torch.randn(size, generator=self._generator, device=kept.device, dtype=kept.dtype)
        V = torch.cat([kept, fresh], 1)
        Q, _ = torch.linalg.qr(M @ V)
        B, T = torch.linalg.qr((Q.mT @ M).mT)
        U, s, Wh = torch.linalg.svd(T)
        self._V = B @ U
        return Q @ Wh.mT, s, self._V


class ReferenceStep(BaseStep):
    """The base optimizer's step followed by ``reference.lip_step``, its labels formed from indices."""

    @torch.no_grad()
    def __call__(self) -> None:
        """Step, then apply the reference."""
        self.optimizer.step()
        M, row = self.weight, self.row
        Y = reference.one_hot(self.y, row.l, M.dtype)
        M.copy_(reference.lip_step(M, self.X, Y, row.k, row.tail_rank, rest=row.rest))


class TruncatingStep(BaseStep):
    """torchao's pruning optimizer over the same one: it truncates the weight to k + r directions.

    The nearest published optimizer that decomposes a weight in its step: it takes a full SVD and refits
    nothing.

    Raises:
        Skip: torchao is not there.
    """

    def __init__(self, problem: Step, row: Row) -> None:
        prune = _prune_optimizer()
        # torchao's optimizer takes only a base optimizer that has no state yet.
        super().__init__(problem, row)
        assert row.tail_rank is not None
        (group,) = self.optimizer.param_groups
        small = min(row.l, row.q)
        # torchao multiplies the fraction by the number of directions and rounds up.
        dropped = small - min(row.k + row.tail_rank, small)
        group |= {
            "group_type": "SVDGrouper",
            "prox_type": "MinRankConstraint",
            "min_sparsity": max(dropped - 0.5, 0) / small,
        }
        self.optimizer = prune(self.optimizer)


def _prune_optimizer() -> Callable[[torch.optim.Optimizer], torch.optim.Optimizer]:
    # On import torchao prints on stderr which of its CUDA kernels it could not load.
    logging.getLogger("torchao").setLevel(logging.CRITICAL)
    try:
        from torchao.prototype.pat.optim import PruneOptimizer
    except ImportError as error:
        raise Skip(f"torchao's PruneOptimizer is not there: {error}") from None
    return PruneOptimizer


class Products:
    """The three products no truncated step can do without: M V, M^T Y and the rebuild of M.

    They write into buffers of their own that are there already: nothing here but arithmetic and memory. The
    rebuild writes M = A B^T where the rest is dropped, and adds the refitted directions where it is kept.
    """

    def __init__(self, state: State, row: Row) -> None:
        m, self.keep = row.columns, row.rest == "keep"
        self.M = state.M.clone()
        device = self.M.device
        generator = torch.Generator(device).manual_seed(0)
        self.V = torch.randn(row.q, m, generator=generator, device=device)
        # M^T Y as (Y^T M)^T, as our step computes it: faster for an M that is stored by rows.
        self.Y, self.Zt = self.M.new_empty(row.l, m), self.M.new_empty(m, row.q)
        # The rebuild writes the same weight again in every round.
        if self.keep:
            assert row.tail_rank is not None
            self.A, self.B = self.M.new_zeros(row.l, row.tail_rank), self.V[:, : row.tail_rank].contiguous()
        else:
            assert row.tail_rank is not None
            A, s, B = (X[..., : row.k + row.tail_rank] for X in low_rank(row)(state.M))
            self.A, self.B = (A * s).contiguous(), B.contiguous()

    def __call__(self) -> None:
        """Compute the three products."""
        torch.mm(self.M, self.V, out=self.Y)
        torch.mm(self.Y.mT, self.M, out=self.Zt)
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
