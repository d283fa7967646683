"""The directions of a weight: which of them a step keeps, refits and drops, and the basis it carries on."""

import warnings
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor

from lip_fast import flops, host, ops
from lip_fast.functional import select_rank
from lip_fast.projected import FRESH, GUARDS, Split, beside, energy, first_basis
from lip_fast.refitting import Refitting
from lip_fast.rounding import negligible
from lip_fast.settings import Settings
from lip_fast.status import NOT_FINITE, RANK_DEFICIENT, lost
from lip_fast.targets import Targets
from lip_fast.validation import describe
from lip_fast.world import Change, Operand, Update, World

__all__ = ["Decomposition", "Directions", "StepReport", "rank_by_energy"]

# The share of ||M||_F^2 that rank="auto" keeps.
_AUTO_ENERGY = 0.95
# What is removed below the tail is worth a warning above this share of ||M||_F^2.
_DROPPED_ENERGY = 0.01
# Looked up once: a step asks for one of them.
_TOLERANCES = {dtype: negligible(dtype) for dtype in (torch.float32, torch.float64)}
# Columns of a truncated step, and of the tail, the guards and the fresh ones of a projected step: as many as
# the native solver decomposes in one call.
_MOST_COLUMNS = 128
_LONGEST_TAIL = _MOST_COLUMNS - GUARDS - 2 * FRESH


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


class _Counter:
    """The counter of the random bits: a tensor at one address, and on a host a number ahead of it."""

    def __init__(self, device: torch.device) -> None:
        self._tensor = torch.zeros((), dtype=torch.int64, device=device)
        # None where the tensor alone is known.
        self._number: int | None = None

    @property
    def tensor(self) -> Tensor:
        """() int64, which may be written in place."""
        if self._number is not None:
            self._tensor.fill_(self._number)
            self._number = None
        return self._tensor

    @property
    def number(self) -> int:
        """What is there now, on a host."""
        if self._number is None:
            self._number = int(self._tensor)
        return self._number

    def count(self) -> None:
        """One step more, on a host."""
        self._number = self.number + 1


@dataclass(frozen=True)
class Decomposition:
    """What a step knows of a weight M (l, q): the tail that it refits, and how the weight is written with it.

    Of a weight of several processes, what has l rows has those of this process.

    Attributes:
        A, B: (l, r), (q, r) the tail.
        S: singular values, the largest one first, of which those of the tail follow ``kept`` others.
        kept: number of singular values before the tail's.
        status: () int64, bits of :mod:`lip_fast.status`.
        basis: what the next step starts from; None where it starts from nothing.
        factors: (l, n + r + m), (q, n + r + m) what is written, the tail after n and before m other columns.
        values: (n,), (r,), (m,) of those columns, the middle ones where the refitted values are 0.
        added: whether they are added to the weight; else they replace it.
        known: singular values down to the tail's, where deeper directions are removed and all of these are
            known.
    """

    A: Tensor
    B: Tensor
    S: Tensor
    kept: int
    status: Tensor
    basis: Tensor | None
    factors: tuple[Tensor, Tensor]
    values: tuple[Tensor, Tensor, Tensor]
    added: bool
    known: Tensor | None = None

    def change(self, s: Tensor) -> Change:
        """What the weight becomes with the values s (r,) in the tail."""
        above, tail, below = self.values
        A, B = self.factors
        return Change(A, torch.cat([above, tail + s, below]), B, self.added)


def rank_by_energy(M: Tensor, shape: tuple[int, int], world: World) -> tuple[int | None, int]:
    """The rank that keeps most of the energy of a weight, for rank="auto".

    Args:
        M: the weight of this shape, or this process's part of it.
        shape: (l, q) of the weight.
        world: who decomposes it.

    Returns:
        the rank; or None and the reason of a weight that has no spectrum, a bit of :mod:`lip_fast.status`.
    """
    svd = world.tail_svd(M, min(shape))
    if broken := int(svd.status):
        return None, broken
    if not bool(torch.isfinite(svd.S).all()):
        return None, NOT_FINITE
    return min(select_rank(svd.S, energy=_AUTO_ENERGY), Settings.most_kept(min(shape))), 0


class Directions:
    """Singular directions of one weight M (l, q): ``rank`` kept, ``tail_rank`` refitted, the rest deeper.

    Up to 128 columns a step tracks the leading rank + tail_rank directions by a truncated decomposition; with
    tail_rank=None only on a host that has all of the weight. Otherwise it splits the weight by products
    (:mod:`lip_fast.projected`), and refits no more than 104. Both take one power step from the last step's
    basis. A weight is decomposed exactly in each step where min(l, q) is within those columns, with
    tail_rank="all", in float64 (not with a number of directions that a truncated step tracks), and on a host
    where that is faster.

    Off the host, basis and step counter stay at their addresses once there is a basis, and nothing is read: a
    step can then be captured in a CUDA graph.

    Args:
        l: rows of the weight (classes).
        q: columns of the weight (features).
        rank: number of kept directions, 0..min(l, q).
        settings: tail_rank, tail, rest, clip and seed are used.
        device: of the weight.
        whole: whether each process has all of the weight. A wide one in parts is always split by products:
            to decompose it exactly may put it together on every process.

    Attributes:
        rank, settings: as given; of the settings, clip may be replaced at any time.
        tail_rank: number of directions below the kept ones that ``tail`` governs, as the basis has them.
        exact: whether each step decomposes the weight exactly, whatever it is.
        is_wide: whether it has more directions than a truncated step tracks.
        projects: whether such a weight is split by products, where it is not float64.
        flops: operations of a step by products.
        drops: whether directions below the tail are removed.
        changes_nothing: whether a step leaves the weight as it is.
        basis: (q, rank + tail_rank), of the last step; None on the exact path and before the first step.
        step: () int64, the counter of the random bits.
        told: (2,) float64, gamma and the share of ||M||_F^2 that was removed, of the last sound step that
            knows them; -1 before one.
    """

    def __init__(
        self, l: int, q: int, *, rank: int, settings: Settings, device: torch.device, whole: bool = True
    ) -> None:
        self.rank, self.settings = rank, settings
        d, asked = min(l, q), settings.tail_rank
        self._remaining = d - rank
        many = d > _MOST_COLUMNS
        if isinstance(asked, int):
            tail = min(asked, d - rank)
        else:
            tail = min(d - rank, _LONGEST_TAIL) if asked is None and many else d - rank
        on_host = device.type in host.READABLE
        # Without a number a truncated step falls back on an exact one, where the weight has fewer directions
        # than it tracks: a host has to look. Of parts it would have to sum up the energy as well.
        tracked = rank + tail + FRESH <= _MOST_COLUMNS and (asked is not None or (whole and on_host))
        self.is_wide = many and not tracked and asked != "all" and tail > 0
        self.tail_rank = min(tail, _LONGEST_TAIL) if self.is_wide else tail
        if isinstance(asked, int) and self.tail_rank < tail:
            warnings.warn(
                f"expected a tail_rank of at most {_LONGEST_TAIL} beyond {_MOST_COLUMNS} columns, got "
                f'{asked}, of which {_LONGEST_TAIL} are refitted; tail_rank="all" refits all below the rank',
                UserWarning,
                stacklevel=2,
            )
        # Without a number the tail is all that remains: nothing is left below it.
        self.drops = (settings.rest == "drop" or asked is None) and rank + self.tail_rank < d
        self.flops = flops.by_products(
            l, q, rank, self.tail_rank, guards=GUARDS, fresh=FRESH, drop=self.drops
        )
        exact_is_slow = not (whole and on_host)
        # A host may find a split not enough, and decompose the updated weight; that of parts takes no update.
        self._splits_updates = whole and not on_host
        self.projects = self.is_wide and (exact_is_slow or flops.products_pay(l, q, d - rank, self.flops))
        self.exact = not self.is_wide and self.columns >= d
        # What a truncated step without a number of directions leaves below the tail has to be looked at.
        finds_all = self.exact or self.projects or (isinstance(asked, int) and not self.is_wide)
        self._at_once = on_host and whole and finds_all and settings.tail == "refit"
        self.changes_nothing = settings.changes_nothing(d, rank)
        self.basis: Tensor | None = None
        self._counter = _Counter(device)
        self._limits = (l, q)
        self._warned = self._warned_of_pause = False
        # At its address before a step is captured.
        self.told = torch.full((2,), -1.0, dtype=torch.float64, device=device)

    @property
    def step(self) -> Tensor:
        """() int64, the counter of the random bits."""
        return self._counter.tensor

    @property
    def columns(self) -> int:
        """Columns of the products of a warm-started step."""
        return self.rank + self.tail_rank + FRESH

    def path(self, dtype: torch.dtype) -> str:
        """How a step decomposes a weight of this dtype: "by products", "truncated" or "exact"."""
        if self.exact or (dtype == torch.float64 and (self.is_wide or self.settings.tail_rank is None)):
            return "exact"
        if self.is_wide:
            return "by products" if self.projects else "exact"
        return "truncated"

    @property
    def tracks(self) -> bool:
        """Whether the next step can begin with the update of the weight, whatever it finds then."""
        truncates = not (self.exact or self.settings.tail_rank is None)
        return (self._splits_updates if self.is_wide else truncates) and self.basis is not None

    @property
    def can_be_captured(self) -> bool:
        """Whether the next step has what to start from, and can be captured in a CUDA graph."""
        starts_from_nothing = self.exact or self.changes_nothing or (self.is_wide and not self.projects)
        return starts_from_nothing or self.basis is not None

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
        settings = self.settings
        if self.changes_nothing and update is None:
            return self._nothing(M, world)
        on = Operand(M, self.step, settings.seed, update, self.drops)
        found = self.decompose(on, world)
        world.tell(found.status)
        if settings.tail == "refit":
            sums = world.label_sums(found.A, found.B, bias)
            status, sound = world.verdict(found.status)
            s, ok, clipped = ops.refit(
                found.S,
                sums,
                sound,
                rank=found.kept,
                tolerance=_TOLERANCES[found.S.dtype],
                clip=settings.clip,
            )
            masked = sums.masked
        else:
            world.decide()
            status, sound = world.verdict(found.status)
            # As the refit bounds its values.
            ok = sound & (found.S.sum() < torch.finfo(found.S.dtype).max / 4)
            s = found.S.new_zeros(found.A.shape[1])
            clipped = masked = torch.zeros((), dtype=torch.int64, device=M.device)
        if (
            settings.rest == "drop"
            and found.known is not None
            and not self._warned
            and not host.capturing(M.device)
        ):
            self._warn_if_large(M, found.known, world, ok)
        ok = world.write(on, found.change(s), found.S[:1], ok)
        # Where the decomposition was sound, a sum, a refitted value or an entry of the weight was not.
        if M.device.type not in host.READABLE or not bool(ok):
            status = lost(status, sound, ok, NOT_FINITE)
        self.step.add_(world.increment)
        if found.basis is not None:
            # Last: a process that fails before takes the same way again, to join what is left.
            self._keep(found.basis, ok, found.status)
        return StepReport(ok, status, clipped, masked)

    def step_at_once_(self, M: Tensor, X: Tensor, Y: Targets, bias: Tensor | None) -> ops.Step | None:
        """A warm step in one call, of a weight that this process has alone; None where nothing was written.

        :meth:`step_` takes it in its parts then, which know what to do where something is amiss, and tell it.

        Args:
            M: (l, q) the weight.
            X: (n, q) features.
            Y: their checked labels.
            bias: (l,) of the classifier, or None.
        """
        settings, basis = self.settings, self.basis
        # What the first step removes is looked at before it does.
        if not self._at_once or self.changes_nothing or (settings.rest == "drop" and not self._warned):
            return None
        how = Refitting(self.rank, self.drops, settings.clip, _TOLERANCES[torch.float32])
        if self.exact:
            done = ops.exact_step_(M, X, Y, bias, how, tail=self.tail_rank)
        elif basis is None:
            return None
        elif self.is_wide:
            done = ops.projected_step_(
                M,
                basis,
                X,
                Y,
                bias,
                how,
                guards=GUARDS,
                fresh=FRESH,
                step=self._counter.number,
                seed=settings.seed,
                most_removed=_DROPPED_ENERGY,
            )
        else:
            done = ops.truncated_step_(
                M, basis, X, Y, bias, how, fresh=FRESH, step=self._counter.number, seed=settings.seed
            )
        if done is None:
            return None
        if done.told is not None:
            gamma, deeper = done.told
            self.told[0], self.told[1] = gamma, max(deeper, 0.0) if self.drops else 0.0
        self.basis = done.basis
        self._counter.count()
        return done

    def _nothing(self, M: Tensor, world: World) -> StepReport:
        """A step that leaves the weight as it is, of which the processes agree all the same."""
        none = torch.zeros((), dtype=torch.int64, device=M.device)
        world.decide()
        status, ok = world.verdict(none)
        self.step.add_(world.increment)
        return StepReport(ok, status, none, none)

    def decompose(self, on: Operand, world: World) -> Decomposition:
        """What a step works on."""
        k, r, drop = self.rank, self.tail_rank, self.drops
        path = self.path(on.M.dtype)
        if path == "exact":
            # Of earlier steps in another format: nothing carries it on.
            self.basis = None
            return _exact(world.tail_svd(on.M, k), k, r, drop=drop)
        if path == "truncated" and self.settings.tail_rank is not None:
            return _truncated(world.warm_svd(on, self.basis, k + r, FRESH), k, drop=drop)
        if self.basis is not None:
            if path == "truncated":
                svd = world.warm_svd(on, self.basis, k + r, FRESH)
                found, gamma = _truncated(svd, k, drop=drop), svd.S.new_full((), -1)
                total = world.total(energy(on.M.float()))
                deeper = (total - energy(svd.S)) / torch.where(total > 0, total, 1)
            else:
                split = world.split(on, self.basis, k)
                found, gamma, deeper = _projected(split, k, r, drop=drop), split.gamma, split.deeper
            if world.all_say(self._is_enough(found.status, gamma, deeper)):
                return found
        svd = world.tail_svd(on.M, 0)
        basis = first_basis(svd.S, svd.B, k, r) if path == "by products" else svd.B[:, : k + r].clone()
        return _exact(svd, k, r, drop=drop, basis=basis)

    def _is_enough(self, status: Tensor, gamma: Tensor, deeper: Tensor) -> bool:
        """Whether what a warm step found is to be used as it is; a look at it only where that is free."""
        removed = deeper.clamp(min=0) if self.drops else torch.zeros_like(deeper)
        told, sound = torch.stack([gamma.double(), removed]), status == 0
        if told.device.type in host.READABLE:
            share = float(removed)
            if share > _DROPPED_ENERGY and bool(sound) and not self._warned_of_pause:
                self._warned_of_pause = True
                warnings.warn(
                    f"{share:.1%} of ||M||_F^2 grew below rank + tail_rank = {self.rank + self.tail_rank} "
                    "since LIP acted last: it was paused, acts too seldom (every), or the weight was "
                    "replaced. Such a step decomposes the weight exactly",
                    UserWarning,
                    stacklevel=2,
                )
            if share > _DROPPED_ENERGY or not bool(sound):
                return False
        self.told.copy_(torch.where(sound, told, self.told))
        return True

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

    def _warn_if_large(self, M: Tensor, S: Tensor, world: World, ok: Tensor) -> None:
        """Once, at the first step that is ``ok``: later ones see a weight that has been truncated already."""
        # Also where it is not: a process that failed joins the sums that the others take.
        total = float(world.total(energy(M.float())))
        if not bool(ok):
            return
        self._warned = True
        removed = 1 - float(energy(S)) / total if total > 0 else 0.0
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

    def goes_on_from(self, tail_rank: int) -> bool:
        """Whether a saved state with so many directions in the tail may be loaded.

        Version 0.1.0 refitted all that remain where now some are; it saved no basis then.
        """
        return tail_rank in (self.tail_rank, self._remaining if self.drops else None)

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


def _exact(svd: ops.SVD, k: int, r: int, *, drop: bool, basis: Tensor | None = None) -> Decomposition:
    """All singular values, and the vectors of the last ones; r of them below the first ``k`` are the tail.

    With ``drop`` deeper directions are removed; else they are left as they are.
    """
    remaining = len(svd.S) - k
    first = svd.A.shape[1] - remaining
    A, B = svd.A.narrow(1, first, r), svd.B.narrow(1, first, r)
    tail, none = -svd.S[k : k + r], svd.S[:0]
    factors, below = (A, B), none
    if drop:
        factors = (svd.A.narrow(1, first, remaining), svd.B.narrow(1, first, remaining))
        below = -svd.S[k + r :]
    values, known = (none, tail, below), svd.S[: k + r] if drop else None
    return Decomposition(A, B, svd.S, k, svd.status, basis, factors, values, added=True, known=known)


def _truncated(svd: ops.SVD, k: int, *, drop: bool) -> Decomposition:
    """The leading singular triplets, of which those below the first ``k`` are the tail; ``drop`` as above."""
    S = svd.S
    A, B = (X.narrow(1, k, len(S) - k) for X in (svd.A, svd.B))
    none, tail = S[:0], S[k:]
    factors, values = (A, B), (none, -tail, none)
    if drop:
        factors, values = (svd.A, svd.B), (S[:k], torch.zeros_like(tail), none)
    # The next step starts from the span of the basis, whatever the signs and the order of its columns.
    known = S if drop else None
    return Decomposition(A, B, S, k, svd.status, svd.B, factors, values, added=not drop, known=known)


def _projected(split: Split, k: int, r: int, *, drop: bool) -> Decomposition:
    """A kept part of rank ``k`` and a tail of r directions; with ``drop`` the weight becomes both together.

    Of the kept singular values the largest and the smallest are known.
    """
    limits = torch.stack([split.s_1, split.s_k][: 1 + min(k, 1)])
    A, S, B = split.A[:, :r], split.S[:r], split.B[:, :r]
    none = S[:0]
    factors, values = (A, B), (none, -S, none)
    if drop:
        factors = (beside(*split.left), beside(*split.right))
        values = (S.new_ones(factors[0].shape[1] - len(split.S)), -S, -split.S[r:])
    kept = torch.cat([limits, S])
    return Decomposition(A, B, kept, len(limits), split.status, split.basis, factors, values, added=not drop)
