"""The step on a weight: which directions it keeps, refits and drops, and the basis it carries along."""

import functools
import warnings
from collections.abc import Callable
from typing import Any, NamedTuple, Protocol

import torch
from torch import Tensor

from lip_fast import host, ops
from lip_fast.functional import randomized_svd
from lip_fast.joint_step import JointStep
from lip_fast.rounding import negligible
from lip_fast.status import NOT_CONVERGED, NOT_FINITE, RANK_DEFICIENT, lost
from lip_fast.validation import describe

__all__ = ["FRESH", "StepReport", "Subspace", "Update"]

# Fresh random columns of each truncated step: without them a warm start never sees a new direction.
FRESH = 8
# Power iterations of the first, cold decomposition: 1e-3 of the optimum on slowly decaying spectra.
_COLD_ITERATIONS = 4
# rest="drop" that removes more than this share of ||M||_F^2 is worth a warning.
_DROPPED_ENERGY = 0.01


class StepReport(NamedTuple):
    """What a step did, as 0-d tensors on the device of the weight.

    Attributes:
        ok: whether it was taken.
        status: why not, as bits of :mod:`lip_fast.status`; 0 too where it was not to be taken anyway.
        clipped: how many refitted values were limited.
        masked: how many class indices were out of range.
    """

    ok: Tensor
    status: Tensor
    clipped: Tensor
    masked: Tensor


class Update(Protocol):
    """The base optimizer's update of a weight as a part of the step: M' below is the updated weight.

    M' need not be stored until :meth:`rebuild_`, which is called once after :meth:`products`.
    """

    def products(self, V: Tensor) -> tuple[Tensor, Tensor]:
        """Update the weight, and return Y = M' V (l, m) and Z = M'^T Y (q, m) for V (q, m)."""

    def rebuild_(
        self, A: Tensor, s: Tensor, B: Tensor, *, ok: Tensor, step: Tensor, accumulate: bool, seed: int
    ) -> Tensor:
        """As :func:`lip_fast.ops.rebuild_` of M', and M' itself where not ``ok``."""


class Subspace:
    """Directions of one weight M (l, q): ``rank`` kept, ``tail_rank`` governed by ``tail``, the rest deeper.

    Where rank + tail_rank and the fresh columns reach min(l, q), each step decomposes M exactly. Otherwise it
    tracks the leading rank + tail_rank directions: one warm-started power step from the last step's basis.

    Off the host, basis and step counter stay at their addresses once there is a basis, and nothing is read: a
    step can then be captured in a CUDA graph.

    Args:
        l: rows of the weight (classes).
        q: columns of the weight (features).
        rank: number of kept directions, 0..min(l, q).
        tail_rank: number of directions below them that are refitted, or None for all that remain.
        tail: "refit" or "zero".
        rest: "keep" or "drop".
        clip: limit refitted values to those of the kept directions.
        seed: of the fresh columns and of stochastic rounding.
        device: of the weight.
    """

    def __init__(
        self,
        l: int,
        q: int,
        *,
        rank: int,
        tail_rank: int | None,
        tail: str,
        rest: str,
        clip: bool,
        seed: int,
        device: torch.device,
    ) -> None:
        d = min(l, q)
        self.rank = rank
        self.tail_rank = d - rank if tail_rank is None else min(tail_rank, d - rank)
        self.exact = rank + self.tail_rank + FRESH >= d
        self.tail, self.rest, self.clip, self.seed = tail, rest, clip, seed
        self.basis: Tensor | None = None
        self.step = torch.zeros((), dtype=torch.int64, device=device)
        self._limits = (l, q)
        self._warned = False

    @property
    def columns(self) -> int:
        """Columns of the products of a warm-started step."""
        return self.rank + self.tail_rank + FRESH

    def step_(
        self,
        M: Tensor,
        sums_of: Callable[[Tensor, Tensor], ops.Sums],
        ok: Tensor,
        update: Update | None = None,
        joint: JointStep | None = None,
    ) -> StepReport:
        """Apply LIP to ``M`` in place, where ``ok`` and everything it computes is sound.

        Args:
            M: (l, q) float32, float64, bfloat16 or float16; in a joint step this process's part of it.
            sums_of: the sums of the labels along directions A (l, r) and B (q, r).
            ok: () bool on the device of ``M``; where False, ``M`` and the basis stay as they are.
            update: of M, to be taken first and in any case, where there is a basis; None where it was.
            joint: the step of all processes that hold parts of the weight, or see other batches; ``sums_of``
                then sums over all of them.

        Raises:
            PeerError: another process failed, or is gone; before anything is written.
            RuntimeError: a CUDA graph is being captured, and there is no basis to start from.
        """
        capturing = host.capturing(M.device)
        if capturing and not self.exact and self.basis is None:
            raise RuntimeError(
                "expected a step that LIP acts on before one is captured, to start from, got none: "
                "take a step first"
            )
        svd = self._decompose(M, update, joint)
        k, r = self.rank, self.tail_rank
        # The exact path has the vectors below the kept ones only, the truncated path all k + r.
        first = 0 if self.exact else k
        A, B = svd.A.narrow(1, first, r), svd.B.narrow(1, first, r)
        # In a joint step the sums say whether all processes take it.
        sums = sums_of(A, B) if self.tail == "refit" else None
        reasons = svd.status
        if joint is not None:
            if sums is None:
                joint.agree()
            ok, reasons = joint.entered, reasons | joint.status
        status, ok = _admit(reasons, ok)
        if joint is not None:
            ok = ok & joint.ok
        sound = ok
        if sums is not None:
            s, ok, clipped = ops.refit(
                svd.S, sums, ok, rank=k, tolerance=self._tolerance(svd.S.dtype), clip=self.clip
            )
            masked = sums.masked
        else:
            ok = ok & (svd.S.sum() < torch.finfo(svd.S.dtype).max / 4)  # as the refit bounds its values
            s = svd.S.new_zeros(r)
            clipped = masked = torch.zeros((), dtype=torch.int64, device=M.device)
        if self.rest == "drop" and not self._warned and not capturing and bool(ok):
            self._warn_if_large(M, svd.S[: k + r], joint)
        if self.rest == "drop" and not self.exact:
            A, s, B, accumulate = svd.A, torch.cat([svd.S[:k], s]), svd.B, False
        else:
            s, accumulate = s - svd.S[k : k + r], True
            if self.rest == "drop":
                A, s, B = svd.A, torch.cat([s, -svd.S[k + r :]]), svd.B
        write = functools.partial(ops.rebuild_, M) if update is None else update.rebuild_
        seed = self.seed
        if joint is not None:
            ok = ok & joint.holds(M, svd.S, s)
            B, seed = joint.features_of(B), joint.rounding_seed(seed)
        ok = write(A, s, B, ok=ok, step=self.step, accumulate=accumulate, seed=seed)
        # What the decomposition did not stop was stopped by sums, values or a weight out of range.
        status = lost(status, sound, ok, NOT_FINITE)
        if not self.exact:
            # Signs and order of the columns do not matter to the span that the next step starts from.
            self._keep(svd.B, ok, svd.status)
        # A step that no process has observed is none.
        self.step += 1 if joint is None else (~joint.idle).long()
        return StepReport(ok, status, clipped, masked)

    def _decompose(self, M: Tensor, update: Update | None = None, joint: JointStep | None = None) -> ops.SVD:
        if joint is None:
            return self._decompose_alone(M, update)
        if joint.dim is not None:
            svd = self._decompose_jointly(M, update, joint)
            # Of the whole weight: the other replicas of it may be sound.
            joint.object(svd.status)
            return svd

        def decompose() -> ops.SVD:
            svd = self._decompose_alone(M, update)
            # That of one replica may be unsound where the others' are not.
            joint.object(svd.status)
            return svd

        return joint.alone(decompose, lambda: self._no_svd(M, NOT_FINITE))

    def _decompose_alone(self, M: Tensor, update: Update | None) -> ops.SVD:
        if self.exact:
            return ops.tail_svd(M, rank=self.rank)
        if update is not None:
            assert self.basis is not None
            V = ops.start_basis(self.basis.float(), self.step, fresh=FRESH, seed=self.seed)
            return ops.finish_svd(*update.products(V), rank=self.rank + self.tail_rank)
        dtype = torch.float64 if M.dtype == torch.float64 else torch.float32
        basis = self._cold_basis(M.to(dtype)) if self.basis is None else self.basis.to(dtype)
        if isinstance(basis, int):
            return self._no_svd(M, basis)
        return ops.warm_svd(M, basis, self.step, fresh=FRESH, seed=self.seed)

    def _no_svd(self, M: Tensor, reason: int) -> ops.SVD:
        """Zeros in the place of what could not be decomposed."""
        l, q = M.shape
        # On the exact path all values, and vectors of those below the kept ones.
        values = min(l, q) if self.exact else self.rank + self.tail_rank
        vectors = values - self.rank if self.exact else values
        like = M.new_zeros(0, dtype=torch.float64 if M.dtype == torch.float64 else torch.float32)
        failed = torch.full((), reason, dtype=torch.int64, device=M.device)
        return ops.SVD(like.new_zeros(l, vectors), like.new_zeros(values), like.new_zeros(q, vectors), failed)

    def _decompose_jointly(self, M: Tensor, update: Update | None, joint: JointStep) -> ops.SVD:
        if self.exact:
            return joint.tail_svd(M, rank=self.rank)
        products = None if update is None else update.products
        t = self.rank + self.tail_rank
        if self.basis is None:
            dtype = torch.float64 if M.dtype == torch.float64 else torch.float32
            generator = torch.Generator(device=M.device)
            generator.manual_seed(self.seed)
            V = torch.randn(self._limits[1], t + FRESH, generator=generator, dtype=dtype, device=M.device)
            # As from a basis of one process, the step itself starts from what this finds.
            basis = joint.randomized_svd(M, V, t, _COLD_ITERATIONS).B
        else:
            basis = self.basis.float() if M.dtype != torch.float64 else self.basis.double()
        return joint.warm_svd(M, basis, self.step, fresh=FRESH, seed=self.seed, products=products)

    def _cold_basis(self, M: Tensor) -> Tensor | int:
        """A first basis (q, rank + tail_rank); of a weight that cannot be decomposed, the reason."""
        if not bool(torch.isfinite(M).all()):
            return NOT_FINITE
        generator = torch.Generator(device=M.device)
        generator.manual_seed(self.seed)
        t = self.rank + self.tail_rank
        try:
            factors = randomized_svd(M, t, oversample=FRESH, n_iter=_COLD_ITERATIONS, generator=generator)
        except torch.linalg.LinAlgError:  # finite, but its products are not
            return NOT_CONVERGED
        return factors[2].mT

    def _keep(self, B: Tensor, ok: Tensor, status: Tensor) -> None:
        """Carry ``B`` on where ``ok``, off the host without waiting and in place.

        Also where it is merely short of directions: the weight is left alone then, but a basis that no
        longer fits it (the weight was overwritten) would be short again at every step. Its columns that are
        zero give way to the fresh ones, until there are enough.
        """
        basis = self.basis
        if basis is None or ok.device.type in host.READABLE:
            self.basis = B if bool(ok) or int(status) == RANK_DEFICIENT else basis
            return
        new = ok | (status == RANK_DEFICIENT)
        if basis.dtype == B.dtype:
            torch.where(new, B, basis, out=basis)
        else:
            self.basis = torch.where(new, B, basis.to(B.dtype))

    def _tolerance(self, dtype: torch.dtype) -> float:
        return negligible(*self._limits, dtype)

    def _warn_if_large(self, M: Tensor, S: Tensor, joint: JointStep | None) -> None:
        """Once, at the first step: later ones see a weight that has been truncated already."""
        self._warned = True
        norm = torch.linalg.vector_norm(M.float()).square()
        total = float(norm if joint is None else joint.total(norm))
        removed = 1 - float(S.square().sum()) / total if total > 0 else 0.0
        if removed > _DROPPED_ENERGY:
            warnings.warn(
                f'rest="drop" removes {removed:.1%} of ||M||_F^2 below rank + tail_rank = '
                f'{self.rank + self.tail_rank}: raise them or use rest="keep"',
                UserWarning,
                stacklevel=2,
            )

    def state_dict(self) -> dict[str, Any]:
        """Ranks, the basis (a tuple of one on the host; empty on the exact path and before the first step)
        and the step counter.

        The keys are those of :meth:`no_state`. What has no shape that is known beforehand is in a tuple:
        distributed checkpoints, which load into the state that is there, take a tuple as one value.
        """
        return {
            "rank": self.rank,
            "tail_rank": self.tail_rank,
            "shape": list(self._limits),
            "basis": () if self.basis is None else (self.basis.to("cpu", copy=True),),
            "step": self.step.clone(),
            "warned": self._warned,
        }

    @staticmethod
    def no_state(shape: tuple[int, int], device: torch.device) -> dict[str, Any]:
        """What :meth:`state_dict` returns, of a weight that has no subspace yet: its rank is None."""
        return {
            "rank": None,
            "tail_rank": None,
            "shape": list(shape),
            "basis": (),
            "step": torch.zeros((), dtype=torch.int64, device=device),
            "warned": False,
        }

    def check_state_dict(self, state_dict: dict[str, Any]) -> None:
        """ValueError where the basis is of another weight, or not finite: no step would recover from it."""
        expected = (self._limits[1], self.rank + self.tail_rank)
        for basis in state_dict["basis"]:
            if not isinstance(basis, Tensor) or tuple(basis.shape) != expected:
                raise ValueError(f"expected a basis of shape {expected}, got {describe(basis)}")
            if basis.dtype not in (torch.float32, torch.float64) or not bool(torch.isfinite(basis).all()):
                raise ValueError(f"expected a finite basis in float32 or float64, got {describe(basis)}")

    def starts_from(self, state_dict: dict[str, Any]) -> bool:
        """Whether a step that was captured can go on from what :meth:`state_dict` returned."""
        return self.exact or len(state_dict["basis"]) > 0

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Restore what :meth:`state_dict` returned, in place: a captured step goes on from it.

        Raises:
            ValueError: the basis is of another weight.
        """
        self.check_state_dict(state_dict)
        basis = next(iter(state_dict["basis"]), None)
        if basis is None or self.basis is None or self.basis.dtype != basis.dtype:
            self.basis = None if basis is None else basis.to(self.step.device, copy=True)
        else:
            self.basis.copy_(basis)
        self.step.copy_(state_dict["step"])
        self._warned = state_dict["warned"]


def _admit(status: Tensor, ok: Tensor) -> tuple[Tensor, Tensor]:
    """The reasons against a step that was to be taken where ``ok``, and whether it still is."""
    if ok.device.type not in host.READABLE:
        return status * ok, ok & (status == 0)
    if int(status) == 0:
        return status, ok
    return status * ok, torch.zeros_like(ok)
