"""Processes that take a step together: they vote on it, and add up what each has.

Each process works on its own part of the weight (:mod:`lip_fast.sharded.layout`). Small matrices and sums
cross the network, which docs/sharding.md counts; every process does the algebra on them alike, so that the
directions are the same bits everywhere.

Every number that a decision is taken by is a sum over all processes, so that all decide alike. A process that
fails takes part in the sums that are left with NaN and a flag, so that no other waits for it. Nothing is
written before the last sum of a step.
"""

import math
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor

from lip_fast import host
from lip_fast.sharded.collectives import PeerError, explained
from lip_fast.sharded.layout import Sharding
from lip_fast.status import NAMES, NOT_FINITE, OUT_OF_STEP
from lip_fast.targets import CSR, Targets

__all__ = ["Group", "Sizes", "no_rows"]

_T = TypeVar("_T")

# Sums over processes of equal numbers are equal to rounding; batches that differ do so by far more.
_SAME = 1e-12
# How many numbers each process tells beside its own sums, without what belongs to its place.
_TOLD = 10 + len(NAMES)


class Sizes(NamedTuple):
    """How much the processes of a group have at most, and whether some process has a matrix of labels."""

    rows: int
    entries: int
    matrix: bool


class Group:
    """Processes that take one step of LIP on a weight together.

    Each of them calls the same methods in the same order. A process replaces what it cannot compute by NaN,
    and raises its error after the last sum, when all others know of it.

    Args:
        sharding: of the weight.
        batches: pairs of features (n, q) and checked labels that this process saw; maybe none.
        ok: () bool on the device of the weight: whether the base optimizer took the step here.
        dtype: float32 or float64, in which rows are exchanged.
        error: why this process cannot take the step, if it cannot.
        collects: whether :func:`lip_fast.sharded.rows.all_rows` will be asked for.

    Attributes:
        sharding, dtype: as given.
        batches: as given; one batch without rows where there is none.
        device: of the weight.
        ok: () bool: whether all processes take the step, as far as the sums so far say; the same on all of
            them.
        base_stepped: () bool: whether the base optimizer took it on all of them, likewise.
        nothing_observed: () bool: whether none of them has observed anything, likewise.
        status: () int64, the reasons against the step that the sums have shown, as bits of
            :mod:`lip_fast.status`.
        exchanges: whether rows go from process to process in this step.
        sizes: what the processes have at most; None until a sum over all of them has told.
    """

    def __init__(
        self,
        sharding: Sharding,
        batches: Sequence[tuple[Tensor, Targets]],
        ok: Tensor,
        *,
        dtype: torch.dtype,
        error: Exception | None = None,
        collects: bool = False,
    ) -> None:
        self.sharding, self.dtype, self.device, self._error = sharding, dtype, ok.device, error
        self._observed = len(batches)
        self.batches = list(batches) or [no_rows(sharding.shape[1], ok.device)]
        # What this process votes for beside what all have voted so far; likewise its reasons and all reasons.
        self._mine = self.ok = self._base_stepped = self.base_stepped = ok
        self._reasons = self.status = torch.zeros((), dtype=torch.int64, device=ok.device)
        self.nothing_observed = torch.zeros_like(ok)
        self.exchanges = bool(sharding.gathered) or (collects and sharding.batches_differ)
        self.sizes: Sizes | None = None
        # After how many collectives the sizes came to be known.
        self._sizes_known_after = 0
        # Whether every process knows of an error, its own or another's.
        self._all_know = False
        # The sum by which all decided which collectives follow.
        self._decided: Tensor | None = None
        # Collectives that this process came to, and how many of them it had been in before it failed.
        self._reached = self._done = 0

    def mark_unsound(self, ok: Tensor) -> None:
        """Keep joining collectives, but vote against the step where ``ok`` is False (not finite)."""
        self._mine = self._mine & ok
        self._reasons = self._reasons | ~ok * NOT_FINITE

    def report(self, status: Tensor) -> None:
        """Keep joining collectives, and tell the others reasons of this process, for their ``status``."""
        self._reasons = self._reasons | status

    def run_with_peers(self, work: Callable[[], _T]) -> _T:
        """Run ``work``, which calls the methods of this group, and return what it returns.

        Where this process fails between two collectives, only it knows, and the others must not wait for it:
        ``work`` runs a second time, to join the collectives that are left with NaN, and then the error is
        raised.
        """
        self._done = self._reached = self._sizes_known_after = 0
        try:
            result = work()
            if self._error is not None:
                # Off the host the others go on to the last sum, and so did this process.
                self._all_know = True
                raise self._error
            return result
        except PeerError:
            raise
        except Exception as error:
            if self._all_know:
                raise
            self._error = self._error or error
            self.ok, self._mine = torch.zeros_like(self.ok), torch.zeros_like(self._mine)
            self._done, self._reached = self._reached, 0
            work()
            # An error after the last sum: the others know nothing of it, and need not.
            raise

    def attempt(self, work: Callable[[], _T]) -> _T | None:
        """What ``work`` returns, which needs no other process; None where this one fails, now or before."""
        if self._error is None:
            try:
                return work()
            except Exception as error:
                self._error = error
        return None

    def compute_or(self, work: Callable[[], _T], instead: Callable[[], _T]) -> _T:
        """As :meth:`attempt`, with what ``instead`` returns where that is None."""
        made = self.attempt(work)
        return instead() if made is None else made

    def joins(self) -> bool:
        """Count a collective; False where this process joined it before it failed, and must not again."""
        self._reached += 1
        return self._reached > self._done

    @property
    def knows_sizes(self) -> bool:
        """Whether a collective before this one has told the sizes, also when ``work`` runs a second time."""
        return self.sizes is not None and self._reached >= self._sizes_known_after

    def agree(self) -> None:
        """Learn whether all processes take the step: a sum of nothing else. Raises as :meth:`sum`."""
        self.sum(lambda: (), [], self.sharding.groups)

    def sum(
        self,
        make: Callable[[], Sequence[Tensor]],
        shapes: Sequence[tuple[int, ...]],
        groups: Sequence[Any] | None = None,
        *,
        decides: bool = False,
    ) -> list[Tensor]:
        """The sums over processes of what ``make`` returns, in one collective a process group.

        Args:
            make: makes tensors of these shapes.
            shapes: of the tensors, the same on every process.
            groups: process groups to sum over; None for those that hold the parts of the weight.
            decides: whether the sums say which collectives follow: a process that failed after this one goes
                the way of the others when it joins what is left.

        Returns:
            the sums, in float64; NaN where a process failed and not all know yet.

        Raises:
            PeerError: another process failed, is gone, or saw another batch where all should see one (off the
                host the step is lost and counted instead).
            Exception: what ``make`` raised, here or before, now that the others know.
        """
        groups = self.sharding.shards if groups is None else groups
        nothing = torch.zeros(0, dtype=torch.float64, device=self.device)
        own = self.attempt(lambda: torch.cat([p.reshape(-1).double() for p in make()] or [nothing]))
        if own is None:
            size = sum(map(math.prod, shapes))
            own = torch.full((size,), torch.nan, dtype=torch.float64, device=self.device)
        told = self._tell()
        flat = torch.cat([own, told])
        sizes = [*map(math.prod, shapes), told.shape[0]]
        if self.joins():
            with explained():
                for group in groups:
                    dist.all_reduce(flat, group=group)
            if decides:
                self._decided = flat
            self._hear(flat[sum(sizes[:-1]) :], groups)
        elif decides and self._decided is not None:
            flat = self._decided
        sums = flat.split(sizes)[:-1]
        return [s.view(shape) for s, shape in zip(sums, shapes, strict=True)]

    def _tell(self) -> Tensor:
        """What each process adds to a sum beside its numbers, in float64.

        Whether it failed, and its rank then; its rows, the sum of its labels, and their squares, which show
        whether all have the same; whether it has a matrix of labels; how many batches; whether it takes the
        step, and whether its base optimizer did; its reasons against it. Where rows are to be exchanged also
        how many rows and entries it has, at its own place.
        """
        failed = self._error is not None
        rows = sum(X.shape[0] for X, _ in self.batches)
        entries, matrix, labels = 0, False, torch.zeros((), dtype=torch.float64, device=self.device)
        for _, Y in self.batches:
            numbers = Y.col if isinstance(Y, CSR) else Y
            labels = labels + numbers.sum(dtype=torch.float64)
            entries += numbers.numel()
            matrix = matrix or isinstance(Y, CSR) or Y.dim() == 2
        known = [failed, failed * dist.get_rank(), rows, rows**2, matrix, self._observed]
        if self.device.type in host.READABLE:
            told = torch.tensor(known, dtype=torch.float64)
        else:
            # A copy from the host would wait for the device, and cannot be captured; filling does not.
            told = torch.cat(
                [torch.full((1,), float(n), dtype=torch.float64, device=self.device) for n in known]
            )
        parts = [
            told,
            torch.stack([self._mine.double(), self._base_stepped.double(), labels, labels.square()]),
        ]
        parts.append(torch.stack([(self._reasons & bit) > 0 for bit in NAMES.values()]).double())
        if self.exchanges:
            places = torch.zeros(2, self.sharding.peers, dtype=torch.float64)
            places[:, self.sharding.place] = torch.tensor([rows, entries], dtype=torch.float64)
            parts.append(places.flatten().to(self.device))
        return torch.cat(parts)

    def _hear(self, told: Tensor, groups: Sequence[Any]) -> None:
        """Draw the consequences of what the processes told, the same on each of them."""
        count = math.prod(dist.get_world_size(group) for group in groups)
        everyone = len(groups) == len(self.sharding.groups)
        if self.exchanges:
            # Also off the host: how much is to be gathered has to be known there.
            told, places = told[:_TOLD], told[_TOLD:].view(2, -1)
            if everyone and self.sizes is None:
                most_rows, most_entries = places.amax(1).tolist()
                self.sizes = Sizes(int(most_rows), int(most_entries), float(told[4]) > 0)
                self._sizes_known_after = self._reached
        failed, rank, rows, rows2, _, observed, ok, stepped, labels, labels2, *reasons = told
        differ = torch.zeros_like(self.ok)
        if not self.sharding.batches_differ:
            differ = (count * rows2 != rows.square()) | (
                (count * labels2 - labels.square()).abs() > _SAME * count * labels2.abs()
            )
        finite = torch.isfinite(labels)
        self.base_stepped = self.base_stepped & (stepped == count)
        self.ok = self.ok & (ok == count) & (failed == 0) & ~differ & finite
        for bit, some in zip(NAMES.values(), reasons, strict=True):
            self.status = self.status | (some > 0) * bit
        self.status = self.status | ~finite * NOT_FINITE
        if everyone:
            self.nothing_observed = observed == 0
            self.ok = self.ok & ~self.nothing_observed
        on_host = told.device.type in host.READABLE
        if not on_host:
            self.status = self.status | ((failed > 0) | differ) * OUT_OF_STEP
        # What one group of several has learned, its processes tell the next.
        self._mine, self._base_stepped = self._mine & self.ok, self._base_stepped & self.base_stepped
        self._reasons = self._reasons | self.status
        if on_host and self._error is None and float(failed) > 0:
            who = f"rank {int(rank)}" if float(failed) == 1 else f"{int(failed)} of {count} processes"
            self._error = PeerError(
                f"{who} failed in LIP and says why; LIP wrote nothing in this step anywhere"
            )
        elif on_host and self._error is None and bool(differ):
            self._error = PeerError(
                "expected one batch on all processes that a weight is sharded over, as in tensor "
                "parallelism, got different ones: where each sees another batch, as with fully_shard, pass "
                "these processes as data_group; LIP wrote nothing in this step anywhere"
            )
        if everyone and self._error is not None and on_host:
            self._all_know = True
            raise self._error


def no_rows(q: int, device: torch.device) -> tuple[Tensor, Targets]:
    """Features (0, q) and their class indices (0,): the batch of a process that has observed nothing."""
    return torch.zeros(0, q, device=device), torch.zeros(0, dtype=torch.int64, device=device)
