"""The directions of a weight: which of them a step keeps, refits and drops, and the basis it carries on."""

import warnings
from typing import Any, NamedTuple

import torch
from torch import Tensor

from lip_fast import host, ops
from lip_fast.rounding import negligible
from lip_fast.settings import Settings
from lip_fast.status import NOT_FINITE, RANK_DEFICIENT, lost
from lip_fast.validation import describe
from lip_fast.world import Change, Operand, Update, World

__all__ = ["FRESH", "Directions", "StepReport"]

# Fresh random columns of each truncated step: without them a warm start never sees a new direction.
FRESH = 8
# rest="drop" that removes more than this share of ||M||_F^2 is worth a warning.
_DROPPED_ENERGY = 0.01


class StepReport(NamedTuple):
    """What a step did, as 0-d tensors on the device of the weight.

    Attributes:
        ok: whether LIP wrote the weight.
        status: why not, as bits of :mod:`lip_fast.status`; 0 too where the base optimizer took no step.
        clipped: how many refitted values were limited.
        masked: how many class indices were out of range.
    """

    ok: Tensor
    status: Tensor
    clipped: Tensor
    masked: Tensor


class Directions:
    """Singular directions of one weight M (l, q): ``rank`` kept, ``tail_rank`` refitted, the rest deeper.

    Where rank + tail_rank and the fresh columns reach min(l, q), each step decomposes M exactly. Otherwise it
    tracks the leading rank + tail_rank directions: one warm-started power step from the last step's basis.

    Off the host, basis and step counter stay at their addresses once there is a basis, and nothing is read: a
    step can then be captured in a CUDA graph.

    Args:
        l: rows of the weight (classes).
        q: columns of the weight (features).
        rank: number of kept directions, 0..min(l, q).
        settings: tail_rank, tail, rest, clip and seed are used.
        device: of the weight.

    Attributes:
        rank, settings: as given; of the settings, clip may be replaced at any time.
        tail_rank: number of directions below the kept ones that ``tail`` governs.
        exact: whether each step decomposes the weight exactly.
        basis: (q, rank + tail_rank), B of the last step; None on the exact path and before the first step.
        step: () int64, the counter of the random bits.
    """

    def __init__(self, l: int, q: int, *, rank: int, settings: Settings, device: torch.device) -> None:
        most = min(l, q) - rank
        self.rank, self.settings = rank, settings
        self.tail_rank = most if settings.tail_rank is None else min(settings.tail_rank, most)
        self.exact = self.columns >= min(l, q)
        self.basis: Tensor | None = None
        self.step = torch.zeros((), dtype=torch.int64, device=device)
        self._limits = (l, q)
        self._tolerances = {dtype: negligible(l, q, dtype) for dtype in (torch.float32, torch.float64)}
        self._warned = False

    @property
    def columns(self) -> int:
        """Columns of the products of a warm-started step."""
        return self.rank + self.tail_rank + FRESH

    @property
    def tracks(self) -> bool:
        """Whether the next step is warm-started: one that can begin with the update of the weight."""
        return not self.exact and self.basis is not None

    @property
    def can_be_captured(self) -> bool:
        """Whether the next step has what to start from, and can be captured in a CUDA graph."""
        return self.exact or self.basis is not None

    def step_(
        self, M: Tensor, world: World, bias: Tensor | None = None, update: Update | None = None
    ) -> StepReport:
        """Apply LIP to ``M`` in place, where all processes take the step and every number is sound.

        Args:
            M: (l, q) float32, float64, bfloat16 or float16; of a weight of several processes the part of this
                one.
            world: who takes the step, and what was observed. Where the base optimizer took none, ``M`` and
                the basis stay as they are.
            bias: (l,) of the classifier, or None.
            update: of M, which is taken first and in any case; None where it was taken. Only where
                :attr:`tracks`.

        Raises:
            PeerError: another process failed, or is gone; before anything is written.
        """
        k, r, settings = self.rank, self.tail_rank, self.settings
        on = Operand(M, self.step, settings.seed, update)
        svd = self.decompose(on, world)
        # The exact decomposition returns the tail's vectors only, the truncated one all k + r.
        first = 0 if self.exact else k
        A, B = svd.A.narrow(1, first, r), svd.B.narrow(1, first, r)
        if settings.tail == "refit":
            sums = world.label_sums(A, B, bias)
            status, sound = world.verdict(svd.status)
            s, ok, clipped = ops.refit(
                svd.S, sums, sound, rank=k, tolerance=self._tolerances[svd.S.dtype], clip=settings.clip
            )
            masked = sums.masked
        else:
            world.decide()
            status, sound = world.verdict(svd.status)
            ok = sound & (svd.S.sum() < torch.finfo(svd.S.dtype).max / 4)  # as the refit bounds its values
            s = svd.S.new_zeros(r)
            clipped = masked = torch.zeros((), dtype=torch.int64, device=M.device)
        if settings.rest == "drop" and not self._warned and not host.capturing(M.device) and bool(ok):
            self._warn_if_large(M, svd.S[: k + r], world)
        if settings.rest == "drop" and not self.exact:
            change = Change(svd.A, torch.cat([svd.S[:k], s]), svd.B, added=False)
        elif settings.rest == "drop":
            change = Change(svd.A, torch.cat([s - svd.S[k : k + r], -svd.S[k + r :]]), svd.B, added=True)
        else:
            change = Change(A, s - svd.S[k : k + r], B, added=True)
        ok = world.write(on, change, svd.S[:1], ok)
        # Where the decomposition was sound, a sum, a refitted value or an entry of the weight was not.
        if M.device.type not in host.READABLE or not bool(ok):
            status = lost(status, sound, ok, NOT_FINITE)
        if not self.exact:
            # As it is: the next step starts from its span, whatever the signs and the order of its columns.
            self._keep(svd.B, ok, svd.status)
        self.step += world.increment
        return StepReport(ok, status, clipped, masked)

    def decompose(self, on: Operand, world: World) -> ops.SVD:
        """What a step works on: all singular values and the tail's vectors, or the leading k + r triplets."""
        if self.exact:
            return world.tail_svd(on.M, self.rank)
        return world.warm_svd(on, self.basis, self.rank + self.tail_rank, FRESH)

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

    def _warn_if_large(self, M: Tensor, S: Tensor, world: World) -> None:
        """Once, at the first step: later ones see a weight that has been truncated already."""
        self._warned = True
        total = float(world.total(torch.linalg.vector_norm(M.float()).square()))
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
        """What :meth:`state_dict` returns, of a weight whose rank is not decided yet: it is None."""
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

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Restore what :meth:`state_dict` returned, in place: a captured step goes on from it."""
        basis = next(iter(state_dict["basis"]), None)
        if basis is None or self.basis is None or self.basis.dtype != basis.dtype:
            self.basis = None if basis is None else basis.to(self.step.device, copy=True)
        else:
            self.basis.copy_(basis)
        self.step.copy_(state_dict["step"])
        self._warned = state_dict["warned"]
