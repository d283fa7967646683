"""Who takes a step of LIP together: this process alone, or several.

The step (:mod:`lip_fast.directions`) is written once. It asks its world for what may need other processes:
the decomposition, the sums of the labels, the decision, and the write.
"""

from collections.abc import Callable, Sequence
from functools import partial
from typing import NamedTuple, Protocol, TypeVar

import torch
from torch import Tensor

from lip_fast import host, ops
from lip_fast.decompose import randomized_svd
from lip_fast.projected import Split, no_split, split, split_of_products
from lip_fast.rounding import compute_dtype
from lip_fast.sharded import decompose as parts
from lip_fast.sharded.collectives import PeerError
from lip_fast.sharded.group import Group
from lip_fast.sharded.label_sums import label_sums as label_sums_of_all
from lip_fast.statistics import LabelStatistics
from lip_fast.status import NOT_CONVERGED, NOT_FINITE, OUT_OF_STEP, lost
from lip_fast.targets import CSR, Targets

__all__ = ["Alone", "Batch", "Change", "Operand", "Peers", "Update", "World", "all_finite"]

_T = TypeVar("_T")

# Power iterations of the first, cold decomposition: 1e-3 of the optimum on slowly decaying spectra.
_COLD_ITERATIONS = 4

Batch = tuple[Tensor, Targets]
"""Features (n, q) and their checked labels."""


class Update(Protocol):
    """The base optimizer's update of a weight as a part of the step: M' below is the updated weight.

    M' need not be stored until :meth:`rebuild_`, which is called once after the products.
    """

    def products(self, V: Tensor) -> tuple[Tensor, Tensor]:
        """Update the weight, and return Y = M' V (l, m) and Z = M'^T Y (q, m) for V (q, m)."""

    def sketch(self, V: Tensor) -> Tensor:
        """Update the weight, and return M' V (l, m) for V (q, m), in the place of :meth:`products`."""

    def project(self, X: Tensor) -> Tensor:
        """M'^T X (q, m) for X (l, m), after :meth:`sketch`."""

    def rebuild_(
        self, A: Tensor, s: Tensor, B: Tensor, *, ok: Tensor, step: Tensor, accumulate: bool, seed: int
    ) -> Tensor:
        """As :func:`lip_fast.ops.rebuild_` of M', and M' itself where not ``ok``."""


class Operand(NamedTuple):
    """What a step works on, and the random bits that it takes."""

    M: Tensor
    """(l, q) the weight, or this process's part of it."""
    step: Tensor
    """() int64, the counter of the random bits."""
    seed: int
    """Of the random columns and of stochastic rounding."""
    update: Update | None = None
    """Of the weight, which is taken with the first products; None where the weight is as it is."""
    replaced: bool = False
    """Whether the step writes the weight anew from its products, which must then hold to float32."""


class Change(NamedTuple):
    """What a step adds to the weight, or writes in its place: A diag(s) B^T, A (l, t), s (t,), B (q, t)."""

    A: Tensor
    s: Tensor
    B: Tensor
    added: bool


class Alone:
    """The world of a process that has the weight, and every batch of it, to itself.

    Args:
        batches: what the head saw.
        ok: () bool on the device of the weight: whether the base optimizer took the step.
    """

    increment: int | Tensor = 1
    """By how much the counter of the steps goes up."""
    nobody_observed = False
    """Whether there was no step, since no process has seen a batch."""

    def __init__(self, batches: Sequence[Batch], ok: Tensor) -> None:
        self.ok = self._base_stepped = ok
        self._batches = batches
        self._statistics: LabelStatistics | None = None

    def run_with_peers(self, work: Callable[[], _T]) -> _T:
        """What ``work`` returns, which calls the methods that follow; there is no peer to run it with."""
        return work()

    def choose_rank(self, choose: Callable[[], tuple[int | None, int]]) -> tuple[int | None, int] | None:
        """What ``choose`` finds on every process: a rank, or None and why the weight has no spectrum.

        None where no process has seen a batch.
        """
        return choose()

    def collect(self, statistics: LabelStatistics) -> None:
        """Add the batches to statistics, which then stand for them."""
        self._statistics = statistics
        self.ok = statistics.absorb(self._batches, self.ok)

    def check_finite(self) -> None:
        """Vote against a step whose batches are not finite, although nothing is fitted to them."""
        self.ok = self.ok & all_finite(self._batches, self.ok.device)

    @staticmethod
    def tail_svd(M: Tensor, rank: int) -> ops.SVD:
        """:func:`lip_fast.ops.tail_svd` of the weight."""
        return ops.tail_svd(M, rank=rank)

    @staticmethod
    def warm_svd(on: Operand, basis: Tensor | None, t: int, fresh: int) -> ops.SVD:
        """The top ``t`` triplets by one power step from ``basis``, or from scratch where that is None.

        Args:
            on: the weight; with an update only where there is a basis.
            basis: (q, t) of the last step.
            t: number of triplets.
            fresh: number of fresh columns.
        """
        M, step, seed, update, replaced = on
        if update is not None:
            assert basis is not None
            V = ops.start_basis(basis.float(), step, fresh=fresh, seed=seed)
            return ops.finish_svd(*update.products(V), rank=t)
        if basis is None:
            start = _cold_basis(M.to(compute_dtype(M)), t, fresh, seed)
            if isinstance(start, int):
                return parts.no_svd(M, M.shape[1], t, reason=start)
            basis = start
        elif basis.dtype != M.dtype:
            basis = basis.to(compute_dtype(M))
        return ops.warm_svd(M, basis, step, fresh=fresh, seed=seed, tf32=not replaced)

    @staticmethod
    def split(on: Operand, basis: Tensor, k: int) -> Split:
        """:func:`lip_fast.projected.split` of the weight, with ``k`` kept directions."""
        M, step, seed, update, _ = on
        if update is not None:
            return split_of_products(update.sketch, update.project, basis, k, step=step, seed=seed)
        return split(M.float(), basis, k, step=step, seed=seed)

    @staticmethod
    def all_say(yes: bool) -> bool:
        """Whether all processes that hold a part of the weight say so, and go on alike."""
        return yes

    def tell(self, status: Tensor) -> None:
        """Let the other processes know of the decomposition that this one goes by."""

    def label_sums(self, A: Tensor, B: Tensor, bias: Tensor | None) -> ops.Sums:
        """The sums of the labels along directions A (l, r) and B (q, r), of the statistics if there are."""
        if self._statistics is not None:
            return self._statistics.sums(A, B, bias)
        if len(self._batches) == 1:
            ((X, Y),) = self._batches
            return ops.label_sums(X, Y, A, B, bias)
        each = [ops.label_sums(X, Y, A, B, bias) for X, Y in self._batches]
        return ops.Sums(*(torch.stack(part).sum(0) for part in zip(*each, strict=True)))

    def decide(self) -> None:
        """Have all processes know whether they take the step, where no sums of labels told them."""

    def verdict(self, status: Tensor) -> tuple[Tensor, Tensor]:
        """The reasons against a step that the base optimizer took, and whether LIP acts.

        Args:
            status: () int64 of the decomposition.

        Returns:
            () int64, 0 where there is no reason; () bool.
        """
        status, ok = _admit(status, self.ok)
        if self.ok is not self._base_stepped:
            # A batch was not finite.
            status = lost(status, self._base_stepped, self.ok, NOT_FINITE)
        return status, ok

    def total(self, part: Tensor) -> Tensor:
        """() the sum over the parts of the weight of a number of each."""
        return part

    @staticmethod
    def write(on: Operand, change: Change, largest: Tensor, ok: Tensor) -> Tensor:
        """Write the change where ``ok``, as :func:`lip_fast.ops.rebuild_` does; returns whether it was.

        Args:
            on: the weight, whose update :meth:`warm_svd` or :meth:`split` took.
            change: with the rows of A of this process, and B whole.
            largest: (1,) the largest singular value of the weight; (0,) of a weight without one.
            ok: () bool.
        """
        M, step, seed, update, _ = on
        A, s, B, added = change
        if update is not None:
            return update.rebuild_(A, s, B, ok=ok, step=step, accumulate=added, seed=seed)
        return ops.rebuild_(M, A, s, B, ok=ok, step=step, accumulate=added, seed=seed)


class Peers(Group):
    """The world of a process that takes the step together with others; it answers what Alone does."""

    _statistics: LabelStatistics | None = None
    # The statistics with the rows of this step; None too where this process failed.
    _collected: LabelStatistics | None = None

    @property
    def increment(self) -> Tensor:
        """1, or 0 for a step of which no process has observed a batch."""
        return (~self.nothing_observed).long()

    @property
    def nobody_observed(self) -> bool:
        """Where that has to be known on the host."""
        return self.device.type in host.READABLE and bool(self.nothing_observed)

    def choose_rank(self, choose: Callable[[], tuple[int | None, int]]) -> tuple[int | None, int] | None:
        """See :class:`Alone`. Every host waits for the choice, since the shapes of later sums depend on it.

        Raises:
            PeerError: replicas of the weight differ, or another process failed.
        """
        self.run_with_peers(self.agree)
        self._raise_if_out_of_step()
        if bool(self.nothing_observed):
            return None
        choice = self.run_with_peers(lambda: self._same_rank(*choose()))
        self._raise_if_out_of_step()
        return choice

    def _same_rank(self, rank: int | None, status: int) -> tuple[int | None, int]:
        """The choice of all processes; where one of them has none, the others learn its reason."""
        self.report(torch.full((), status, dtype=torch.int64, device=self.device))
        numbers = [rank is None, rank or 0, (rank or 0) ** 2]
        told = torch.tensor(numbers, dtype=torch.float64, device=self.device)
        (everyone,) = self.sum(lambda: (told,), [(3,)], self.sharding.groups)
        without, total, squares = everyone.tolist()
        if without:
            return None, status
        if self.sharding.peers * squares != total**2:
            # Each replica chose by its own weight, and these differ.
            raise PeerError(
                f'expected one weight on all processes, got replicas of which rank="auto" keeps {rank} '
                f"directions here and {total / self.sharding.peers:.1f} on average: let all start from the "
                "same weight; LIP wrote nothing in this step anywhere"
            )
        return rank, status

    def _raise_if_out_of_step(self) -> None:
        """PeerError where another process failed, also off the host, since the status is read here anyway."""
        if int(self.status) & OUT_OF_STEP:
            raise PeerError("another process failed in LIP; LIP wrote nothing in this step anywhere")

    def collect(self, statistics: LabelStatistics) -> None:
        """Add the batches of all processes to a copy of the statistics, which replaces them if all agree."""
        self._statistics, self._collected = statistics, statistics.with_rows_of_all(self)

    def check_finite(self) -> None:
        """See :class:`Alone`."""
        finite = self.attempt(lambda: all_finite(self.batches, self.device))
        if finite is not None:
            self.mark_unsound(finite)

    def tail_svd(self, M: Tensor, rank: int) -> ops.SVD:
        """See :class:`Alone`."""
        if self.sharding.dim is not None:
            return parts.tail_svd(self, M, rank=rank)
        return self.compute_or(
            lambda: ops.tail_svd(M, rank=rank),
            lambda: parts.no_svd(M, M.shape[1], min(M.shape) - rank, kept=rank),
        )

    def warm_svd(self, on: Operand, basis: Tensor | None, t: int, fresh: int) -> ops.SVD:
        """See :class:`Alone`."""
        M, step, seed, update, replaced = on
        q = self.sharding.shape[1]
        if self.sharding.dim is None:
            return self.compute_or(lambda: Alone.warm_svd(on, basis, t, fresh), lambda: parts.no_svd(M, q, t))
        dtype = compute_dtype(M)
        if basis is None:
            generator = torch.Generator(device=M.device)
            generator.manual_seed(seed)
            V = torch.randn(q, t + fresh, generator=generator, dtype=dtype, device=M.device)
            # The power step below starts from the basis that this finds, as it does on one process.
            basis = parts.randomized_svd(self, M, V, t, _COLD_ITERATIONS).B
        by_library = partial(parts.products_of, M, tf32=not replaced)
        products = by_library if update is None else update.products
        return parts.warm_svd(self, M, basis.to(dtype), step, fresh=fresh, seed=seed, products=products)

    def split(self, on: Operand, basis: Tensor, k: int) -> Split:
        """See :class:`Alone`."""
        if self.sharding.dim is None:
            return self.compute_or(lambda: Alone.split(on, basis, k), lambda: no_split(on.M, basis, k))
        return parts.split(self, on.M, basis, k, step=on.step, seed=on.seed)

    def all_say(self, yes: bool) -> bool:
        """See :class:`Alone`. A collective where hosts look at numbers, and each has a part of the weight."""
        if self.sharding.dim is None or self.device.type not in host.READABLE:
            return yes
        (doubts,) = self.sum(lambda: (torch.tensor(float(not yes)),), [()], decides=True)
        return float(doubts) == 0

    def tell(self, status: Tensor) -> None:
        """See :class:`Alone`. One replica may be unsound where others are not."""
        if self._error is None:
            self.report(status)

    def label_sums(self, A: Tensor, B: Tensor, bias: Tensor | None) -> ops.Sums:
        """See :class:`Alone`."""

        def of_collected(A: Tensor, B: Tensor, bias: Tensor | None) -> ops.Sums:
            assert self._collected is not None  # else this process failed, and is not asked
            return self._collected.sums(A, B, bias)

        sums = label_sums_of_all(self, A, B, bias, None if self._statistics is None else of_collected)
        self._keep_collected()
        return sums

    def decide(self) -> None:
        """See :class:`Alone`."""
        self.agree()
        self._keep_collected()

    def _keep_collected(self) -> None:
        """Now that all processes know whether they take the step."""
        if self._statistics is not None and self._collected is not None:
            self._statistics.replace_where(self._collected, self.ok)

    def verdict(self, status: Tensor) -> tuple[Tensor, Tensor]:
        """See :class:`Alone`."""
        status, ok = _admit(status | self.status, self.base_stepped)
        return status, ok & self.ok

    def total(self, part: Tensor) -> Tensor:
        """See :class:`Alone`."""
        return part if self.sharding.dim is None else self.sum(lambda: (part,), [()])[0]

    def write(self, on: Operand, change: Change, largest: Tensor, ok: Tensor) -> Tensor:
        """See :class:`Alone`.

        Parts are rounded by seeds of their own: equal ones would round alike everywhere. Into float16 nothing
        is written unless it surely holds the weight on every process. An entry of the weight is at most s_1,
        one of what is added at most the sum of its singular values: a bound of numbers that all processes
        have, where to look at the entries would need one more sum.
        """
        if on.M.dtype == torch.float16 and self.sharding.dim is not None:
            ok = ok & (largest.sum() + change.s.abs().sum() < torch.finfo(torch.float16).max)
        change = change._replace(B=self.sharding.features_of(change.B))
        return Alone.write(on._replace(seed=self.rounding_seed(on.seed)), change, largest, ok)

    def rounding_seed(self, seed: int) -> int:
        """A seed of stochastic rounding for this process's part of the weight."""
        return self.sharding.own_seed(seed)


World = Alone | Peers


def _cold_basis(M: Tensor, t: int, fresh: int, seed: int) -> Tensor | int:
    """A first basis (q, t); of a weight that cannot be decomposed, the reason."""
    if not bool(torch.isfinite(M).all()):
        return NOT_FINITE
    generator = torch.Generator(device=M.device)
    generator.manual_seed(seed)
    try:
        factors = randomized_svd(M, t, oversample=fresh, n_iter=_COLD_ITERATIONS, generator=generator)
    except torch.linalg.LinAlgError:  # finite, but its products are not
        return NOT_CONVERGED
    return factors[2].mT


def all_finite(batches: Sequence[Batch], device: torch.device) -> Tensor:
    """() bool on the device: whether all features and labels are finite."""
    total = torch.zeros((), dtype=torch.float64, device=device)
    for features, targets in batches:
        values = targets.values if isinstance(targets, CSR) else targets
        total = total + features.sum(dtype=torch.float64) + values.sum(dtype=torch.float64)
    return torch.isfinite(total)


def _admit(status: Tensor, ok: Tensor) -> tuple[Tensor, Tensor]:
    """Whether a step that the base optimizer took where ``ok`` is taken, and the reasons where it is not."""
    if ok.device.type not in host.READABLE:
        return status * ok, ok & (status == 0)
    if int(status) == 0:
        return status, ok
    return status * ok, torch.zeros_like(ok)
