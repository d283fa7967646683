"""A step of LIP on a weight that several processes hold, or whose batches they share.

Each process works on its own part of the weight (:mod:`lip_fast.sharded`). What crosses the network are small
matrices and sums, which docs/sharding.md counts; the algebra on them is done by every process alike, so that
the directions are the same bits everywhere.

Every number that a decision is taken by is a sum over all processes, so that all take the same one. A process
that fails takes part in the next sums with NaN and a flag, so that no other waits for it. Nothing is written
before the last sum of a step.
"""

import math
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor

from lip_fast import host, ops
from lip_fast.sharded import PeerError, Sharding, all_gather, explained, is_split, whole
from lip_fast.status import NAMES, NOT_FINITE, NOT_ORTHOGONAL, OUT_OF_STEP
from lip_fast.targets import CSR, IGNORE_INDEX, Targets

__all__ = ["JointStep"]

_T = TypeVar("_T")

# Gram matrices are summed in float64, so that one factorisation is orthonormal to float32. For a float64
# matrix a second and a third bring back the digits that squaring costs: shifted CholeskyQR3 (Fukaya et al.,
# SIAM J. Sci. Comput. 42, 2020).
_PASSES = {torch.float32: 1, torch.float64: 3}
# max |B^T B - I| of a sound basis, as for a weight of one process.
_ORTHOGONALITY = 1e-4
# Singular values up to this share of the largest have no vectors: as for a weight of one process.
_RESOLVED = 1e-6
# An odd number without structure (2^64 over the golden ratio), to set seeds apart.
_ROUNDING = 0x9E3779B97F4A7C15
# Sums over processes of equal numbers are equal to rounding; batches that differ do so by far more.
_SAME = 1e-12
# How much each process tells beside its numbers, without what belongs to places.
_TOLD = 10 + len(NAMES)


class _PartSums(NamedTuple):
    """What the labels among the classes of this process say of r directions, in float64."""

    numerator: Tensor
    """(r,) sum of P times the label's row of A."""
    denominator: Tensor
    """(r,) sum of P squared."""
    column: Tensor
    """(r,) sum of P."""
    energy: Tensor
    """() sum of the squared features."""


class JointStep:
    """One step of LIP on a weight, taken by several processes together.

    Each of them calls the same methods in the same order. What a process cannot compute it replaces by NaN,
    and it raises after the last sum, when all others know.

    Args:
        sharding: of the weight.
        batches: pairs of features (n, q) and checked labels that this process saw; maybe none.
        ok: () bool on the device of the weight: whether the base optimizer took the step here.
        dtype: float32 or float64, in which rows are exchanged.
        error: why this process cannot take the step, if it cannot.
        collects: whether :meth:`rows` will be asked for.

    Attributes:
        ok: () bool: whether all processes take the step, as far as the sums so far say; the same on all of
            them.
        entered: () bool: whether the base optimizer took it on all of them, likewise.
        idle: () bool: whether none of them has observed anything, likewise.
        status: () int64, the reasons against it that the sums have shown, as bits of
            :mod:`lip_fast.status`.
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
        self._sharding, self._dtype, self._error = sharding, dtype, error
        self._observed = len(batches)
        self._batches = list(batches) or [_no_rows(sharding.shape[1], ok.device)]
        self._mine = self.ok = self._entered = self.entered = ok
        self.idle = torch.zeros_like(ok)
        # Those of this process, and of all.
        self._reasons = self.status = torch.zeros((), dtype=torch.int64, device=ok.device)
        self._exchanges = bool(sharding.gathered) or (collects and sharding.batches_differ)
        # Whether every process knows of an error, its own or another's.
        self._all_know = False
        # Collectives taken part in, and how many of those to come others have seen this process in already.
        self._taken = self._skipped = 0
        # The largest numbers of rows and of entries of a label matrix that a process has, and whether there
        # is one.
        self._most: tuple[int, int, bool] | None = None
        # After how many collectives that came to be known.
        self._known_after = 0

    @property
    def dim(self) -> int | None:
        """The dimension that the weight is sharded by; None where each process has all of it."""
        return self._sharding.dim

    @property
    def groups(self) -> tuple[Any, ...]:
        """Every group that takes part."""
        return self._sharding.groups

    @property
    def peers(self) -> int:
        """How many processes take part."""
        return self._sharding.peers

    def lose(self, ok: Tensor) -> None:
        """Go on taking part, but against the step where not ``ok`` (something is not finite) here."""
        self._mine = self._mine & ok
        self._reasons = self._reasons | ~ok * NOT_FINITE

    def object(self, status: Tensor) -> None:
        """Go on taking part, and tell reasons of this process, which the others will find in ``status``."""
        self._reasons = self._reasons | status

    def take(self, work: Callable[[], _T]) -> _T:
        """What ``work`` returns, which calls the methods that follow.

        An error that it raises between two collectives is of this process alone, and the others must not
        wait for it: then ``work`` is done again, to take part in what is left with NaN, before it is raised.
        """
        self._skipped = self._taken = self._known_after = 0
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
            self._skipped, self._taken = self._taken, 0
            work()
            # Where it came after the last sum, the others know nothing of it.
            raise

    def attempt(self, work: Callable[[], _T]) -> _T | None:
        """What ``work`` of this process alone returns; None where it fails, now or earlier."""
        if self._error is None:
            try:
                return work()
            except Exception as error:
                self._error = error
        return None

    def alone(self, work: Callable[[], _T], instead: Callable[[], _T]) -> _T:
        """As :meth:`attempt`; what stands for a failure where that is None."""
        made = self.attempt(work)
        return instead() if made is None else made

    def _takes_part(self) -> bool:
        """Count a collective; whether this process has not been in it yet."""
        self._taken += 1
        return self._taken > self._skipped

    def no_svd(self, M: Tensor, t: int, *, kept: int = 0) -> ops.SVD:
        """What stands for a decomposition that failed on this process: zeros, ``kept`` without vectors."""
        dtype = torch.float64 if M.dtype == torch.float64 else torch.float32
        return _failed(M.shape[0], self._sharding.shape[1], t, M.new_zeros(0, dtype=dtype), kept=kept)

    # Sums -----------------------------------------------------------------------------------------------

    def agree(self) -> None:
        """Learn whether all processes take the step: a sum of nothing else. Raises as :meth:`sum`."""
        self.sum(lambda: (), [], self._sharding.groups)

    def sum(
        self,
        make: Callable[[], Sequence[Tensor]],
        shapes: Sequence[tuple[int, ...]],
        groups: Sequence[Any] | None = None,
    ) -> list[Tensor]:
        """The sums over processes of what ``make`` returns, in one collective a group.

        Args:
            make: makes tensors of these shapes.
            shapes: of the tensors, the same on every process.
            groups: over which to sum; None for those that hold the parts of the weight.

        Returns:
            the sums, in float64; NaN where a process failed and not all know yet.

        Raises:
            PeerError: another process failed, is gone, or saw another batch where all should see one (off the
                host the step is lost and counted instead).
            Exception: what ``make`` raised, here or before, now that the others know.
        """
        groups = self._sharding.shards if groups is None else groups
        parts = self._own(
            lambda: torch.cat([p.reshape(-1).double() for p in make()] or [self._empty()]), shapes
        )
        told = self._tell()
        flat = torch.cat([parts, told])
        sizes = [*map(math.prod, shapes), told.shape[0]]
        if self._takes_part():
            with explained():
                for group in groups:
                    dist.all_reduce(flat, group=group)
            self._hear(flat[sum(sizes[:-1]) :], groups)
        sums = flat.split(sizes)[:-1]
        return [s.view(shape) for s, shape in zip(sums, shapes, strict=True)]

    def _own(self, make: Callable[[], Tensor], shapes: Sequence[tuple[int, ...]]) -> Tensor:
        """What ``make`` returns; NaN of these shapes one after the other where this process failed."""
        made = self.attempt(make)
        if made is not None:
            return made
        size = sum(map(math.prod, shapes))
        return torch.full((size,), torch.nan, dtype=torch.float64, device=self._mine.device)

    def _empty(self) -> Tensor:
        return torch.zeros(0, dtype=torch.float64, device=self._mine.device)

    def _tell(self) -> Tensor:
        """What each process adds to a sum beside its numbers, in float64.

        Whether it failed, and its rank then; its rows, the sum of its labels, and their squares, which show
        whether all have the same; whether it has a matrix of labels; how many batches; whether it takes the
        step, and whether its base optimizer did; its reasons against it. Where rows are to be exchanged also
        how many rows and entries it has, at its own place.
        """
        device = self._mine.device
        failed = self._error is not None
        rows = sum(X.shape[0] for X, _ in self._batches)
        entries, matrix, labels = 0, False, torch.zeros((), dtype=torch.float64, device=device)
        for _, Y in self._batches:
            numbers = Y.col if isinstance(Y, CSR) else Y
            labels = labels + numbers.sum(dtype=torch.float64)
            entries += numbers.numel()
            matrix = matrix or isinstance(Y, CSR) or Y.dim() == 2
        known = [failed, failed * dist.get_rank(), rows, rows**2, matrix, self._observed]
        if device.type in host.READABLE:
            told = torch.tensor(known, dtype=torch.float64)
        else:
            # A copy from the host would wait for the device, and cannot be captured; filling does not.
            told = torch.cat([torch.full((1,), float(n), dtype=torch.float64, device=device) for n in known])
        parts = [told, torch.stack([self._mine.double(), self._entered.double(), labels, labels.square()])]
        parts.append(torch.stack([(self._reasons & bit) > 0 for bit in NAMES.values()]).double())
        if self._exchanges:
            places = torch.zeros(2, self._sharding.peers, dtype=torch.float64)
            places[:, self._sharding.place] = torch.tensor([rows, entries], dtype=torch.float64)
            parts.append(places.flatten().to(device))
        return torch.cat(parts)

    def _hear(self, told: Tensor, groups: Sequence[Any]) -> None:
        """Draw the consequences of what the processes told, the same on each of them."""
        count = math.prod(dist.get_world_size(group) for group in groups)
        everyone = len(groups) == len(self._sharding.groups)
        if self._exchanges:
            # Also off the host: how much is to be gathered has to be known there.
            told, places = told[:_TOLD], told[_TOLD:].view(2, -1)
            if everyone and self._most is None:
                most_rows, most_entries = places.amax(1).tolist()
                self._most = (int(most_rows), int(most_entries), float(told[4]) > 0)
                self._known_after = self._taken
        failed, rank, rows, rows2, _, observed, ok, entered, labels, labels2, *reasons = told
        one_batch = not self._sharding.batches_differ
        differ = torch.zeros_like(self.ok)
        if one_batch:
            differ = (count * rows2 != rows.square()) | (
                (count * labels2 - labels.square()).abs() > _SAME * count * labels2.abs()
            )
        finite = torch.isfinite(labels)
        self.entered = self.entered & (entered == count)
        self.ok = self.ok & (ok == count) & (failed == 0) & ~differ & finite
        for bit, some in zip(NAMES.values(), reasons, strict=True):
            self.status = self.status | (some > 0) * bit
        self.status = self.status | ~finite * NOT_FINITE
        if everyone:
            self.idle = observed == 0
            self.ok = self.ok & ~self.idle
        on_host = told.device.type in host.READABLE
        if not on_host:
            self.status = self.status | ((failed > 0) | differ) * OUT_OF_STEP
        # What one group of several has learned, its processes tell the next.
        self._mine, self._entered = self._mine & self.ok, self._entered & self.entered
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

    # Rows -----------------------------------------------------------------------------------------------

    def rows(self) -> list[tuple[Tensor, Targets]]:
        """Features and labels of every process whose batch differs, for statistics of all of them."""
        if not self._exchanges:
            return self._batches
        groups = (*self._sharding.gathered, *self._sharding.outer)
        return [self._exchange(lambda X: X.to(self._dtype), self._sharding.shape[1], groups)]

    def _exchange(
        self, project: Callable[[Tensor], Tensor], columns: int, groups: Sequence[Any]
    ) -> tuple[Tensor, Targets]:
        """``project`` (n, columns) of the features of all processes of ``groups``, and the labels.

        One gather a group, of bytes: all else would round. Each process sends as many rows as the largest;
        those that fill up are zeros without a label. Of label matrices, where a row counts even if it has no
        entry, they are taken out again.
        """
        # Taken again, in the same place as the first time.
        if self._most is None or self._taken < self._known_after:
            self.agree()
        assert self._most is not None
        rows, entries, matrix = self._most
        sizes = {"rows": (rows * columns, self._dtype)}
        if matrix:
            sizes |= {
                "row": (entries, torch.int64),
                "col": (entries, torch.int64),
                "value": (entries, self._dtype),
                "count": (1, torch.int64),
            }
        else:
            sizes["label"] = (rows, torch.int64)
        if not rows:
            return _no_rows(columns, self._mine.device)
        packed = self._packed(lambda: self._filled(project), sizes)
        # Before the collective is counted: what fails here has not been in it.
        gathered, size = [], packed.numel()
        for group in groups:
            size *= dist.get_world_size(group)
            gathered.append(packed.new_zeros(size))
        takes_part = self._takes_part()
        with explained():
            for group, everyone in zip(groups, gathered, strict=True):
                if takes_part:
                    all_gather(everyone, packed, group)
                packed = everyone
        return self.alone(
            lambda: self._taken_apart(packed, sizes, columns),
            lambda: _no_rows(columns, packed.device),
        )

    def _taken_apart(
        self, packed: Tensor, sizes: dict[str, tuple[int, torch.dtype]], columns: int
    ) -> tuple[Tensor, Targets]:
        """Rows and labels of what was gathered."""
        parts = _unpack(packed, sizes)
        R = parts["rows"].reshape(-1, columns)
        rows = parts["rows"].shape[1] // columns
        matrix = "label" not in parts
        if not matrix:
            return R, parts["label"].reshape(-1)
        own = (torch.arange(rows, device=packed.device) < parts["count"]).reshape(-1)
        # The rows of each process come after those of the one before.
        first = torch.arange(len(parts["row"]), device=packed.device)[:, None] * rows
        row = (parts["row"] + first).reshape(-1)
        kept = own[row]
        R, row = R[own], (own.cumsum(0) - 1)[row[kept]]
        crow = torch.zeros(len(R) + 1, dtype=torch.int64, device=packed.device)
        torch.cumsum(torch.bincount(row, minlength=len(R)), 0, out=crow[1:])
        return R, CSR(crow, parts["col"].reshape(-1)[kept], parts["value"].reshape(-1)[kept])

    def _filled(self, project: Callable[[Tensor], Tensor]) -> dict[str, Tensor]:
        """What this process has to give, filled up."""
        assert self._most is not None
        rows, entries, matrix = self._most
        R = torch.cat([project(X) for X, _ in self._batches])
        parts = {"rows": _fill(R, rows, 0)}
        if not matrix:
            parts["label"] = _fill(
                torch.cat([Y for _, Y in self._batches if isinstance(Y, Tensor)]), rows, IGNORE_INDEX
            )
            return parts
        # An entry that fills up is a zero in the last row, so that rows stay sorted.
        row, col, value = _entries([Y for _, Y in self._batches], self._sharding.shape[0])
        return parts | {
            "row": _fill(row, entries, max(rows - 1, 0)),
            "col": _fill(col, entries, 0),
            "value": _fill(value.to(self._dtype), entries, 0),
            "count": torch.tensor([len(R)], device=R.device),
        }

    def _packed(
        self, make: Callable[[], dict[str, Tensor]], sizes: dict[str, tuple[int, torch.dtype]]
    ) -> Tensor:
        """The bytes of what ``make`` returns; zeros where this process failed."""
        parts = self.attempt(make)
        if parts is not None:
            return torch.cat([parts[name].contiguous().view(-1).view(torch.uint8) for name in sizes])
        size = sum(n * dtype.itemsize for n, dtype in sizes.values())
        return torch.zeros(size, dtype=torch.uint8, device=self._mine.device)

    # The decomposition ------------------------------------------------------------------------------------

    def warm_svd(
        self,
        M: Tensor,
        basis: Tensor,
        step: Tensor,
        *,
        fresh: int,
        seed: int,
        products: Callable[[Tensor], tuple[Tensor, Tensor]] | None = None,
    ) -> ops.SVD:
        """:func:`lip_fast.ops.warm_svd` of the whole weight.

        Args:
            M: this process's part of it.
            basis: (q, t), the same on every process.
            step: () int64, likewise.
            fresh: number of fresh columns.
            seed: of the fresh columns.
            products: returns V -> M V, M^T M V of this part; None for those of ``M`` as it is.

        Returns:
            A (l, t), of a weight sharded by class the rows of this process; S (t,) and B (q, t) whole.
        """
        V = _columns(basis, step, fresh, seed)
        if self.dim == 1:
            return self._svd_by_feature(M, V, basis.shape[1])
        return self._svd_by_class(M, V, basis.shape[1], products)

    def _svd_by_class(
        self,
        M: Tensor,
        V: Tensor,
        t: int,
        products: Callable[[Tensor], tuple[Tensor, Tensor]] | None = None,
    ) -> ops.SVD:
        """One fused sum: Y = M V stays where it is, M^T Y and Y^T Y are sums over the parts."""
        q, m = V.shape
        Y = torch.full((M.shape[0], m), torch.nan, dtype=V.dtype, device=V.device)

        def take() -> tuple[Tensor, Tensor]:
            nonlocal Y
            Y, Z = _products(M, V) if products is None else products(V)
            return Z, _gram(Y)

        Z, G = self.sum(take, [(q, m), (m, m)])
        Q, R = self._orthonormalize(Y, G)
        return self.alone(lambda: self._finish_by_class(Q, R, Z, t, V), lambda: self.no_svd(M, t))

    @staticmethod
    def _finish_by_class(Q: Tensor, R: Tensor, Z: Tensor, t: int, V: Tensor) -> ops.SVD:
        """Directions from M V = Q R, of which each process has its rows of Q, and Z = M^T M V."""
        # M^T Q, without reading M again.
        image = torch.linalg.solve_triangular(R, Z, upper=True, left=False)
        if V.device.type not in host.READABLE:
            svd = ops.finish_svd(R.to(V.dtype), Z.to(V.dtype), rank=t)
            return svd._replace(A=(Q @ svd.A.double()).to(V.dtype))
        try:
            P, T = ops.orthonormalize(image.to(V.dtype))
            U, S, Vh = torch.linalg.svd(T)
        except torch.linalg.LinAlgError:  # the same numbers on every process, hence the same error
            return _failed(Q.shape[0], V.shape[0], t, V)
        B = (U[:, :t].mT @ P.mT).mT
        return ops.SVD((Q @ Vh[:t].mT.double()).to(V.dtype), S[:t].clone(), B, _soundness(B))

    def _svd_by_feature(self, M: Tensor, V: Tensor, t: int) -> ops.SVD:
        """Y = M V is a sum over the parts, M^T Q is put together from them."""
        q, m = V.shape
        V_part = self._sharding.part(V)
        (Y,) = self.sum(lambda: (M.to(V.dtype) @ V_part,), [(M.shape[0], m)])

        def project() -> tuple[Tensor, Tensor]:
            try:
                Q, _ = ops.orthonormalize(Y.to(V.dtype))
            except torch.linalg.LinAlgError:  # the same numbers on every process, hence the same error
                Q = torch.full_like(Y, torch.nan, dtype=V.dtype)
            return Q, (Q.mT @ M.to(V.dtype)).mT

        Q, part = self.alone(project, lambda: (V.new_zeros(M.shape[0], m), V.new_zeros(M.shape[1], m)))
        Z = self._gather(part, q)
        return self.alone(lambda: ops.finish_svd(Q, Z, rank=t), lambda: self.no_svd(M, t))

    def tail_svd(self, M: Tensor, *, rank: int) -> ops.SVD:
        """:func:`lip_fast.ops.tail_svd` of the whole weight.

        By the Gram matrix of the feature side of a weight sharded by class, or the class side of one sharded
        by feature, where that is the smaller side; otherwise of all parts put together, which are then no
        more numbers than the vectors on the side that every process has to know.

        Args:
            M: this process's part of it.
            rank: number of leading directions whose vectors are not wanted.

        Returns:
            A (l, d - rank), of a weight sharded by class the rows of this process; S (d,) and B (q, d - rank)
            whole.
        """
        l, q = self._sharding.shape
        dtype = torch.float64 if M.dtype == torch.float64 else torch.float32
        by_class = self.dim == 0
        part, long, short = (M, l, q) if by_class else (M.mT, q, l)

        def nothing() -> ops.SVD:
            return self.no_svd(M, min(l, q) - rank, kept=rank)

        if long <= short:
            together = self._gather(part, long)

            def split() -> ops.SVD:
                svd = ops.tail_svd(together if by_class else together.mT, rank=rank)
                return svd._replace(A=self._sharding.part(svd.A)) if by_class else svd

            return self.alone(split, nothing)
        (G,) = self.sum(lambda: (_gram(part.to(dtype)),), [(short, short)])
        _, R = self._orthonormalize(part.to(dtype), G, factor_alone=True)

        def project() -> ops.SVD:
            svd = ops.tail_svd(R.to(dtype), rank=rank)
            tail = svd.S[rank:]
            inverse = torch.where(tail > _RESOLVED * svd.S[:1], tail.reciprocal(), 0)
            return svd._replace(A=(part.to(dtype) @ svd.B) * inverse)

        svd = self.alone(
            project,
            lambda: nothing()._replace(A=torch.zeros(len(part), short - rank, dtype=dtype, device=M.device)),
        )
        return svd if by_class else svd._replace(A=svd.B, B=self._gather(svd.A, long))

    def randomized_svd(self, M: Tensor, V: Tensor, t: int, iterations: int) -> ops.SVD:
        """Subspace iteration from the columns V (q, m), of the whole weight; else as :meth:`warm_svd`."""
        svd = self._step_from(M, V, V.shape[1] if iterations else t)
        for left in reversed(range(iterations)):
            svd = self._step_from(M, svd.B, V.shape[1] if left else t)
        return svd

    def whole_svd(self, M: Tensor, t: int) -> tuple[Tensor, Tensor, Tensor]:
        """The leading ``t`` singular triplets, exactly: A and B with the rows of this process where sharded.

        By a triangular factor of the sharded side, of as many rows as the other side is long; or of all parts
        put together where that is the longer side.
        """
        l, q = self._sharding.shape
        by_class = self.dim == 0
        part, long, short = (M, l, q) if by_class else (M.mT, q, l)
        if long > short:
            svd = self._svd_by_class(part, torch.eye(short, dtype=M.dtype, device=M.device), t)
            far, S, near = svd.A, svd.S, svd.B
        else:
            U, S, Vh = torch.linalg.svd(self._gather(part, long), full_matrices=False)
            far, S, near = self._sharding.part(U[:, :t]), S[:t].clone(), Vh[:t].mT
        return (far, S, near) if by_class else (near, S, far)

    def _step_from(self, M: Tensor, V: Tensor, t: int) -> ops.SVD:
        return self._svd_by_feature(M, V, t) if self.dim == 1 else self._svd_by_class(M, V, t)

    def _orthonormalize(self, Y: Tensor, G: Tensor, *, factor_alone: bool = False) -> tuple[Tensor, Tensor]:
        """Y = Q R in float64, of the parts Y (n, m) on each process and their Gram matrix G (m, m).

        Shifted CholeskyQR, which any Gram matrix allows; once for float32, which loses nothing by squaring in
        float64, three times for float64.
        """
        passes = _PASSES[Y.dtype]
        broken = torch.full_like(G, torch.nan)
        if factor_alone and passes == 1:
            return Y, self.alone(lambda: _cholesky(G), lambda: broken)

        def divide(Q: Tensor, G: Tensor, R: Tensor | None) -> tuple[Tensor, Tensor]:
            again = _cholesky(G)
            Q = torch.linalg.solve_triangular(again, Q.double(), upper=True, left=False)
            return Q, again if R is None else again @ R

        Q, R = self.alone(lambda: divide(Y, G, None), lambda: (Y, broken))
        for _ in range(1, passes):
            (G,) = self.sum(lambda: (_gram(Q),), [tuple(G.shape)])  # noqa: B023
            Q, R = self.alone(lambda: divide(Q, G, R), lambda: (Q, broken))  # noqa: B023
        return Q, R

    def _gather(self, part: Tensor, length: int) -> Tensor:
        """All rows of a matrix, of the weight's parts."""
        if self._takes_part():
            return self._sharding.gather(part, length)
        return part.new_full((length, part.shape[1]), torch.nan)

    # The write ------------------------------------------------------------------------------------------

    def features_of(self, B: Tensor) -> Tensor:
        """The rows of B (q, t) of this process's part of the weight."""
        return self._sharding.part(B) if self.dim == 1 else B

    def rounding_seed(self, seed: int) -> int:
        """A seed of stochastic rounding for this process's part: equal ones would round alike everywhere."""
        return seed if self.dim is None else (seed + _ROUNDING * (1 + self._sharding.offset)) % 2**63

    def holds(self, M: Tensor, S: Tensor, change: Tensor) -> Tensor:
        """Whether float16 surely holds the weight that is to be written, on every process.

        An entry of the weight is at most s_1, one of what is added at most the sum of its singular values: a
        bound of numbers that all processes have, where to look at the entries would need one more sum.
        """
        if M.dtype != torch.float16 or self.dim is None:
            return torch.ones_like(self.ok)
        return S[:1].sum() + change.abs().sum() < torch.finfo(torch.float16).max

    def total(self, part: Tensor) -> Tensor:
        """() the sum over the parts of the weight of a number of each."""
        return part if self.dim is None else self.sum(lambda: (part,), [()])[0]

    # The sums of the refit ----------------------------------------------------------------------------------

    def sums(
        self,
        A: Tensor,
        B: Tensor,
        bias: Tensor | None,
        statistics: Callable[[Tensor, Tensor, Tensor | None], ops.Sums] | None = None,
    ) -> ops.Sums:
        """:func:`lip_fast.ops.label_sums` of the batches of all processes; after it all know of all failures.

        Args:
            A: (l, r), of a weight sharded by class the rows of this process.
            B: (q, r).
            bias: (l,) of the classifier, whole or sharded; or None.
            statistics: returns the sums of statistics, which all processes have of the same rows and each of
                its own classes, in place of those of the batches.

        Raises:
            PeerError, Exception: as :meth:`sum`.
        """
        sharding, r = self._sharding, A.shape[1]
        batches, projected = self._batches, False
        if statistics is None and self.dim == 0 and sharding.gathered:
            batches, projected = self._exchanged_projections(B), True
        own_bias = None if bias is None else self._own_bias(bias)
        shapes = [(r,)] * 4 + [()] * 2

        def make() -> list[Tensor]:
            if statistics is not None:
                return self._sums_of_statistics(statistics(A, B, own_bias))
            if self.dim != 0:
                return self._sums_of_rows(A, B, own_bias)
            return self._sums_of_classes(batches, A, B, own_bias, projected=projected)

        numerator, denominator, column, shift, energy, masked = self.sum(make, shapes, sharding.groups)
        # The target is Y - 1 bias^T.
        return ops.Sums(numerator - column * shift, denominator, energy, masked.nan_to_num().long())

    def _own_bias(self, bias: Tensor) -> Tensor:
        """The biases that belong to the rows of A on this process."""
        if self.dim != 0 and is_split(bias) and self._takes_part():
            return whole(bias)
        return self.alone(
            lambda: self._sharding.bias_part(bias), lambda: self._mine.new_zeros(0, dtype=self._dtype)
        )

    def _sums_of_rows(self, A: Tensor, B: Tensor, bias: Tensor | None) -> list[Tensor]:
        """Of the rows of this process: those that see the same batch leave it to the first of them."""
        parts = [ops.label_sums(X, Y, A, B, bias) for X, Y in self._batches]
        first = self._sharding.first(self._sharding.same_batch, self._mine.device)
        nothing = torch.zeros(A.shape[1], dtype=torch.float64, device=A.device)
        total = [torch.stack(p).sum(0) for p in zip(*parts, strict=True)]
        numerator, denominator, energy, masked = (p * first for p in total)
        return [numerator, denominator, nothing, nothing, energy, masked]

    def _sums_of_statistics(self, sums: ops.Sums) -> list[Tensor]:
        """Each process has those of its classes; of what all have, the first one's count."""
        sharding, device = self._sharding, self._mine.device
        first = sharding.first(sharding.groups, device)
        of_classes = sharding.first(sharding.outer, device) if self.dim == 0 else first
        nothing = torch.zeros_like(sums.numerator)
        numerator, denominator = sums.numerator * of_classes, sums.denominator * first
        return [numerator, denominator, nothing, nothing, sums.energy * first, sums.masked * first]

    def _sums_of_classes(
        self,
        batches: Sequence[tuple[Tensor, Targets]],
        A: Tensor,
        B: Tensor,
        bias: Tensor | None,
        *,
        projected: bool,
    ) -> list[Tensor]:
        """Of the classes of this process, over all rows that its group has seen."""
        sharding, r = self._sharding, A.shape[1]
        parts = []
        for X, Y in batches:
            energies = X[:, r] if projected else None
            P, directions = (X[:, :r], torch.eye(r, dtype=A.dtype, device=A.device)) if projected else (X, B)
            sums = _part_sums(P, Y, A, directions, sharding.offset, energies, column=bias is not None)
            if not (isinstance(Y, Tensor) and Y.dim() == 1):
                # A row of a label matrix is in every part of it; its own sums count once.
                first = sharding.first(sharding.shards, A.device)
                sums = _PartSums(sums.numerator, *(p * first for p in sums[1:]))
            parts.append(sums)
        numerator, denominator, column, energy = (torch.stack(p).sum(0) for p in zip(*parts, strict=True))
        shift = torch.zeros(r, dtype=torch.float64, device=A.device)
        if bias is not None:
            # The same in each replica of the weight.
            shift = (bias.double() @ A.double()) * sharding.first(sharding.outer, A.device)
        masked = sum((_out_of_range(Y, sharding.shape[0]) for _, Y in self._batches), self.status * 0)
        masked = masked * sharding.first(sharding.same_batch, A.device)
        return [numerator, denominator, column, shift, energy, masked]

    def _exchanged_projections(self, B: Tensor) -> list[tuple[Tensor, Targets]]:
        """[P, squared lengths] (n, r + 1) of the rows of every process that has other classes."""

        def project(X: Tensor) -> Tensor:
            X = X.to(B.dtype)
            return torch.cat([X @ B, X.square().sum(1, keepdim=True)], 1)

        return [self._exchange(project, B.shape[1] + 1, self._sharding.gathered)]


def _no_rows(q: int, device: torch.device) -> tuple[Tensor, Targets]:
    return torch.zeros(0, q, device=device), torch.zeros(0, dtype=torch.int64, device=device)


# Algebra that all processes do alike ------------------------------------------------------------------------


def _columns(basis: Tensor, step: Tensor, fresh: int, seed: int) -> Tensor:
    """The basis and fresh columns (q, t + fresh), as :func:`lip_fast.ops.start_basis`, which span the same.

    The part of the fresh columns in the span of the basis is taken out first. It would add nothing but
    numbers of the size of the largest singular value to M^T M V, whose rounding the small directions drown
    in.
    """
    F = ops.fresh_columns(step, basis.shape[0], fresh, seed=seed).to(basis.dtype)
    for _ in range(2):  # twice is enough (Kahan; Parlett, The Symmetric Eigenvalue Problem, 6.9)
        F = F - basis @ (basis.mT @ F)
    return torch.cat([basis.mT, F.mT]).mT


def _gram(Y: Tensor) -> Tensor:
    D = Y.double()
    return D.mT @ D


def _cholesky(G: Tensor) -> Tensor:
    """Upper triangular R with R^T R = G up to rounding, of any positive semidefinite G; NaN of any other."""
    scale = G.diagonal().sqrt()
    scale = torch.where(scale > 0, scale, 1)
    # With unit columns, a shift by the rounding of the sums leaves no room for a negative pivot.
    C = G / (scale[:, None] * scale)
    C.diagonal().add_(G.shape[0] * torch.finfo(G.dtype).eps)
    L, info = torch.linalg.cholesky_ex(C)
    return torch.where(info == 0, L.mT * scale, torch.nan)


def _soundness(B: Tensor) -> Tensor:
    """The status word of a basis: whether it is orthonormal, or finite at all."""
    if not B.shape[1]:
        return torch.zeros((), dtype=torch.int64, device=B.device)
    deviation = B.mT @ B
    deviation.diagonal().sub_(1)
    worst = deviation.abs().max()
    finite = torch.isfinite(worst)
    return (~finite) * NOT_FINITE + (finite & (worst > _ORTHOGONALITY)) * NOT_ORTHOGONAL


def _failed(rows: int, q: int, t: int, like: Tensor, *, kept: int = 0) -> ops.SVD:
    """Zeros, and the reason: what does not converge on finite numbers has not been seen here.

    ``kept`` values have no vectors.
    """
    status = torch.full((), NOT_FINITE, dtype=torch.int64, device=like.device)
    return ops.SVD(like.new_zeros(rows, t), like.new_zeros(kept + t), like.new_zeros(q, t), status)


# Work of one process ----------------------------------------------------------------------------------------


def _products(M: Tensor, V: Tensor) -> tuple[Tensor, Tensor]:
    """M V and M^T M V of a part of a weight, which may be empty."""
    if M.shape[0] == 0:
        return V.new_zeros(0, V.shape[1]), torch.zeros_like(V)
    return ops.sketch(M, V)


def _part_sums(
    X: Tensor, Y: Targets, A: Tensor, B: Tensor, offset: int, energies: Tensor | None, *, column: bool
) -> _PartSums:
    """Sums over rows X (n, q) by labels of the classes ``offset`` and on, those of the rows of A.

    Class indices: over the rows whose label is among these classes. A matrix of labels: the numerator over
    its columns of these classes, all else over every row.

    Args:
        X: (n, q) features.
        Y: their labels, among all classes.
        A: (classes here, r), possibly none.
        B: (q, r).
        offset: of the classes here.
        energies: (n,) squared lengths of the features, where X is something made of them.
        column: whether the sums of P are wanted.
    """
    classes, r = A.shape
    X = X.to(B.dtype)
    nothing = torch.zeros(r, dtype=torch.float64, device=X.device)
    if isinstance(Y, Tensor) and Y.dim() == 1:
        here = (Y >= offset) & (Y < offset + classes)
        if not classes:
            return _PartSums(nothing, nothing, nothing, nothing.sum())
        sums = ops.label_sums(X, torch.where(here, Y - offset, IGNORE_INDEX), A, B)
        energy = sums.energy if energies is None else energies.double().masked_fill(~here, 0).sum()
        total = (X.masked_fill(~here[:, None], 0).sum(0) @ B).double() if column else nothing
        return _PartSums(sums.numerator, sums.denominator, total, energy)
    if isinstance(Y, CSR):
        here = (Y.col >= offset) & (Y.col < offset + classes)
        labels: Targets = CSR(Y.crow, torch.where(here, Y.col - offset, 0), torch.where(here, Y.values, 0))
    else:
        labels = Y[:, offset : offset + classes]
    if classes:
        sums = ops.label_sums(X, labels, A, B)
    else:
        sums = ops.Sums(
            nothing, (X @ B).square().sum(0).double(), X.square().sum().double(), nothing.sum().long()
        )
    energy = sums.energy if energies is None else energies.double().sum()
    total = (X.sum(0) @ B).double() if column else nothing
    return _PartSums(sums.numerator, sums.denominator, total, energy)


def _out_of_range(Y: Targets, classes: int) -> Tensor | int:
    """How many class indices are of no class, and not marked as such."""
    if isinstance(Y, CSR) or Y.dim() == 2:
        return 0
    return (((Y < 0) | (Y >= classes)) & (Y != IGNORE_INDEX)).sum()


def _entries(labels: Sequence[Targets], classes: int) -> tuple[Tensor, Tensor, Tensor]:
    """Row, column and value of the entries of label matrices one below the other, by rows.

    Class indices are matrices with a one in each row; a row without a label is one without an entry.
    """
    rows, cols, values, first = [], [], [], 0
    for Y in labels:
        if isinstance(Y, CSR):
            row = torch.repeat_interleave(Y.crow.diff(), output_size=len(Y.col))
            entries, count = (row, Y.col, Y.values), len(Y.crow) - 1
        elif Y.dim() == 2:
            row, col = torch.ones_like(Y, dtype=torch.bool).nonzero(as_tuple=True)
            entries, count = (row, col, Y.reshape(-1)), len(Y)
        else:
            (row,) = ((Y >= 0) & (Y < classes)).nonzero(as_tuple=True)
            entries, count = (row, Y[row], torch.ones(len(row), device=Y.device)), len(Y)
        rows.append(entries[0] + first)
        cols.append(entries[1])
        values.append(entries[2].double())
        first += count
    return torch.cat(rows), torch.cat(cols), torch.cat(values)


def _fill(tensor: Tensor, length: int, value: float) -> Tensor:
    missing = length - len(tensor)
    return torch.cat([tensor, tensor.new_full((missing, *tensor.shape[1:]), value)]) if missing else tensor


def _unpack(packed: Tensor, sizes: dict[str, tuple[int, torch.dtype]]) -> dict[str, Tensor]:
    """Each part of the bytes, (processes, numbers)."""
    lengths = [n * dtype.itemsize for n, dtype in sizes.values()]
    parts = packed.view(-1, sum(lengths)).split(lengths, 1)
    # A copy begins where any dtype may.
    return {
        name: part.clone(memory_format=torch.contiguous_format).view(dtype)
        for (name, (_, dtype)), part in zip(sizes.items(), parts, strict=True)
    }
