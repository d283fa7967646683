"""LIP as a plug-in: attached to the optimizer one has, it repairs a head after every step."""

import math
from collections.abc import Mapping
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from lip_fast import ops
from lip_fast.functional import select_rank
from lip_fast.statistics import LabelStatistics
from lip_fast.subspace import StepReport, Subspace
from lip_fast.targets import CSR, Targets, as_targets, check_indices
from lip_fast.validation import FLOATS, check_int, describe, full_precision

__all__ = ["LIP", "LIPError"]

# Observations without a step in between, after which the optimizer in use is surely not the attached one.
_MAX_OBSERVATIONS = 64
# The share of ||M||_F^2 that rank="auto" keeps.
_AUTO_ENERGY = 0.95
# Reports of steps that are counted together: a few small operations for all of them instead of for each.
_REPORTS = 256
_COUNTERS = ("applied", "skipped", "clipped", "masked")


_STATE_KEYS = ("steps", "calls_since_step", "counters", "subspace", "statistics", "pending")


class LIPError(RuntimeError):
    """A step's LIP could not be taken, and ``strict=True`` asked to be told."""


class _Observation(NamedTuple):
    features: Tensor
    targets: Targets


class LIP:
    """LIP (arXiv:2505.16159) inside the optimizer step, for one linear head.

    After each step of the attached optimizer the head's weight M (l, q) is decomposed, the top ``rank``
    singular directions are kept, and the singular values below are refitted to the observed batch::

        lip = lip_fast.LIP(model.head, rank="auto")
        lip.attach(optimizer)
        for x, y in loader:
            features = model.backbone(x)
            loss = criterion(model.head(features), y)
            loss.backward()
            lip.observe(features, y)
            optimizer.step()
            optimizer.zero_grad()

    LIP acts on a step that has observations, a gradient on the head's weight, a learning rate other than 0,
    and no overflow found by a gradient scaler. Whatever it does not act on is exactly the base optimizer's.
    It never writes a value that is not finite: where features, labels, weight or a decomposition are unsound
    the step's LIP is skipped and counted. It never touches the global random state.

    Args:
        head: module with a 2-D ``weight`` (l, q) and an optional ``bias`` (l,), usually ``nn.Linear``. The
            weight is looked up at each step, so that it may be replaced or sharded in place.
        rank: directions kept. An int; a float in (0, 1] as a fraction of min(l, q), rounded up; or "auto",
            95% of ||M||_F^2, decided at the first step it acts on. The principal subspace of l classes has
            about l directions: a small rank ruins a classifier of many classes.
        tail_rank: directions below them that ``tail`` governs; None for all that remain. Together they are
            limited to min(l, q).
        tail: "refit" their singular values to the labels, or set them to "zero".
        rest: "keep" deeper directions as they are, or "drop" them.
        every: act on each ``every``-th step.
        start: act from this step on, counted from 0.
        decay: None to refit to the observed batch alone; a factor in (0, 1) to refit to an average over
            past batches that fades by it (holds (q + 1)(q + 1 + l) numbers).
        clip: limit refitted values to [-s_rank, s_rank].
        data_group: the ranks whose batches differ, for sharded heads; not supported yet.
        seed: of the random columns and of stochastic rounding.
        strict: raise :class:`LIPError` where a step's LIP is skipped as unsound (waits for the device).

    Raises:
        TypeError, ValueError: an argument that does not fit; the message names what was expected.
    """

    def __init__(
        self,
        head: nn.Module,
        rank: int | float | str,
        *,
        tail_rank: int | None = None,
        tail: str = "refit",
        rest: str = "keep",
        every: int = 1,
        start: int = 0,
        decay: float | None = None,
        clip: bool = True,
        data_group: object = None,
        seed: int = 0,
        strict: bool = False,
    ) -> None:
        self._head = head
        weight = self._weight()
        l, q = weight.shape
        # None: to be decided at the first step.
        self._rank = None if rank == "auto" else _absolute_rank(rank, min(l, q))
        if tail_rank is not None:
            check_int("tail_rank", tail_rank, 0)
        _check_choice("tail", tail, ("refit", "zero"))
        _check_choice("rest", rest, ("keep", "drop"))
        self._every = check_int("every", every, 1)
        self._start = check_int("start", start, 0)
        # An integer of an op's schema has 63 bits beside its sign.
        self._seed = check_int("seed", seed, 0, 2**63 - 1)
        if decay is not None and not (isinstance(decay, float) and 0 < decay < 1):
            raise ValueError(f"expected decay in (0, 1) or None, got {decay!r}")
        if data_group is not None:
            raise NotImplementedError("data_group is for sharded heads, which are not supported yet")
        self._tail_rank, self._tail, self._rest, self._clip = tail_rank, tail, rest, clip
        self._strict = strict
        self._statistics = (
            None
            if decay is None
            else LabelStatistics(q, l, decay=decay, dtype=_sums_dtype(weight), device=weight.device)
        )
        self._subspace: Subspace | None = None
        self._pending: list[_Observation] = []
        self._calls_since_step = 0
        self._steps = 0
        self._counters = torch.zeros(len(_COUNTERS), dtype=torch.int64, device=weight.device)
        self._reports: list[StepReport] = []
        self._handle: RemovableHandle | None = None

    # The optimizer -----------------------------------------------------------------------------------

    def attach(self, optimizer: torch.optim.Optimizer) -> RemovableHandle:
        """Act after every step of ``optimizer``, until the returned handle is removed.

        The handle is also a context manager. A copy of an optimizer (``copy.deepcopy``, pickle) is a plain
        optimizer of copied parameters: copy it together with the model, and attach a LIP of the copied head.
        Of a wrapper around an optimizer, attach to the inner one.

        Raises:
            TypeError: not an optimizer that takes step hooks.
            ValueError: the optimizer does not hold the head's weight.
            RuntimeError: already attached.
        """
        if not isinstance(optimizer, torch.optim.Optimizer) or not hasattr(
            optimizer, "_optimizer_step_post_hooks"
        ):
            raise TypeError(
                "expected a torch.optim.Optimizer that takes step hooks (of a wrapper, the inner "
                f"optimizer), got {type(optimizer).__name__}"
            )
        if self._handle is not None and self._handle.id in (self._handle.hooks_dict_ref() or {}):
            raise RuntimeError("expected a LIP that is not attached; remove its handle first")
        if _group_of(optimizer, self._weight()) is None:
            raise ValueError("expected an optimizer that holds the head's weight, got one without it")
        self._handle = optimizer.register_step_post_hook(self._after_step)
        return self._handle

    def _after_step(self, optimizer: torch.optim.Optimizer, args: object, kwargs: object) -> None:
        weight = self._weight()
        group = _group_of(optimizer, weight)
        if group is None:
            raise RuntimeError(
                "expected the attached optimizer to hold the head's weight, but the head was replaced; "
                "attach to an optimizer made for it"
            )
        self._calls_since_step = 0
        if weight.grad is None:
            # A head that is frozen now: what it saw is not what its next gradient will be of.
            self._pending.clear()
            return
        lr = group["lr"]
        # Not steps of training: those with zero learning rate that checkpoints take to create optimizer
        # state. Observations wait for the real step.
        if _on_host(lr) and float(lr) == 0:
            return
        step = self._steps
        self._steps += 1
        pending = self._take_pending()
        if not pending or step < self._start or (step - self._start) % self._every:
            return
        ok = torch.ones((), dtype=torch.bool, device=weight.device)
        found_inf = getattr(optimizer, "found_inf", None)
        if found_inf is not None:
            # A fused optimizer skips inside its kernel; nothing moved, so nothing is repaired.
            ok = ok & (found_inf.to(weight.device) == 0).all()
        if not _on_host(lr):
            ok = ok & (lr != 0).all()
        self._apply(weight, pending, ok, skip_is_sound=found_inf is not None)

    # Observations ------------------------------------------------------------------------------------

    def observe(self, features: Tensor, targets: Tensor) -> None:
        """Show LIP what the head saw: call it for every batch, before the optimizer's step.

        The features are detached and kept, not copied, until that step. Under gradient accumulation call it
        for each micro-batch; they count as one batch.

        Args:
            features: (..., q) input of the head, floating point, on the device of the weight.
            targets: labels of those rows: (...,) int64 class indices (-100: no label), or an (n, l) label
                matrix, dense or sparse, for features (n, q).

        Raises:
            TypeError, ValueError: features or targets do not fit the head or each other; on CPU also a class
                index out of range (on other devices it is masked and counted; raised with ``strict``).
            RuntimeError: 64 calls without a step of an attached optimizer.
        """
        weight = self._weight()
        l, q = weight.shape
        if not isinstance(features, Tensor) or not features.is_floating_point():
            raise TypeError(f"expected floating-point features, got {describe(features)}")
        if features.dim() < 2 or features.shape[-1] != q:
            raise ValueError(f"expected features of shape (..., {q}), got {tuple(features.shape)}")
        if features.device != weight.device:
            raise ValueError(
                f"expected features on {weight.device}, where the head is, got {features.device}"
            )
        if features.dim() > 2 and isinstance(targets, Tensor):
            if targets.layout != torch.strided or targets.shape != features.shape[:-1]:
                raise ValueError(
                    f"expected class indices of shape {tuple(features.shape[:-1])}, "
                    f"got {tuple(targets.shape)}"
                )
            targets = targets.reshape(-1)
        rows = features.detach().reshape(-1, q)
        labels = as_targets(targets, rows=len(rows), classes=l, device=rows.device)
        if self._strict and isinstance(labels, Tensor) and labels.dim() == 1:
            check_indices(labels, l)
        if self._calls_since_step >= _MAX_OBSERVATIONS:
            raise RuntimeError(
                f"observe() was called {_MAX_OBSERVATIONS} times without a step of an attached optimizer. "
                "A copy of an optimizer loses its hooks: make a LIP for the copied head and call "
                "attach(copy). With more micro-batches a step than that, observe several at once"
            )
        self._calls_since_step += 1
        self._pending.append(_Observation(rows, _detached(labels)))

    def apply(self) -> None:
        """Apply LIP to the head now, with the pending observations, whatever ``every`` and ``start`` say.

        Raises:
            RuntimeError: nothing was observed.
        """
        pending = self._take_pending()
        if not pending:
            raise RuntimeError("expected observations, got none: call observe() first")
        weight = self._weight()
        ok = torch.ones((), dtype=torch.bool, device=weight.device)
        self._apply(weight, pending, ok, skip_is_sound=False)

    def _take_pending(self) -> list[_Observation]:
        pending, self._pending = self._pending, []
        self._calls_since_step = 0
        return pending

    # The step ----------------------------------------------------------------------------------------

    @full_precision
    @torch.no_grad()
    def _apply(self, weight: Tensor, pending: list[_Observation], ok: Tensor, *, skip_is_sound: bool) -> None:
        bias = getattr(self._head, "bias", None)
        statistics = self._statistics
        if statistics is not None:
            ok = statistics.absorb([(p.features, p.targets) for p in pending], ok)
        elif self._tail == "zero":
            # Nothing is fitted to them, but a broken batch is a reason to leave the step alone all the same.
            ok = ok & _all_finite(pending)

        def sums_of(A: Tensor, B: Tensor) -> ops.Sums:
            if statistics is not None:
                return statistics.sums(A, B, bias)
            parts = [ops.label_sums(p.features, p.targets, A, B, bias) for p in pending]
            if len(parts) == 1:
                return parts[0]
            return ops.Sums(*(torch.stack(part).sum(0) for part in zip(*parts, strict=True)))

        if self._subspace is None:
            rank = self._rank if self._rank is not None else _auto_rank(weight)
            # A weight without a spectrum: the rank is decided at a later step.
            self._subspace = None if rank is None else self._make_subspace(weight, rank)
        if self._subspace is None:
            none = torch.zeros((), dtype=torch.int64, device=weight.device)
            report = StepReport(torch.zeros_like(ok), none, none)
        else:
            report = self._subspace.step_(weight.detach(), sums_of, ok)
        self._reports.append(report)
        if len(self._reports) >= _REPORTS:
            self._count()
        if self._strict and not skip_is_sound and not bool(report.ok):
            raise LIPError(
                "LIP was skipped: features, labels, weight or a decomposition were not finite or not "
                "orthogonal; the weight is the base optimizer's"
            )

    def _make_subspace(self, weight: Tensor, rank: int) -> Subspace:
        l, q = weight.shape
        return Subspace(
            l,
            q,
            rank=rank,
            tail_rank=self._tail_rank,
            tail=self._tail,
            rest=self._rest,
            clip=self._clip,
            seed=self._seed,
            device=weight.device,
        )

    def _weight(self) -> Tensor:
        weight = getattr(self._head, "weight", None)
        if not isinstance(weight, Tensor) or weight.dim() != 2:
            raise TypeError(
                f"expected a head with a 2-D weight, such as nn.Linear, got {describe(self._head)}"
                + ("" if weight is None else f" with weight {describe(weight)}")
            )
        if weight.dtype not in FLOATS or weight.layout != torch.strided:
            raise TypeError(f"expected a dense weight in one of {FLOATS}, got {describe(weight)}")
        return weight

    def _count(self) -> None:
        """Add what the last steps reported to the counters, on the device."""
        if self._reports:
            ok, clipped, masked = (torch.stack(column) for column in zip(*self._reports, strict=True))
            counts = torch.stack([ok.sum(), (~ok).sum(), clipped.sum(), masked.sum()])
            # A model may have moved to another device since.
            self._counters = self._counters.to(counts.device) + counts
            self._reports.clear()

    # State -------------------------------------------------------------------------------------------

    def stats(self) -> dict[str, int | None]:
        """Counts since the start; waits for the device.

        ``steps`` of the attached optimizer; steps on which LIP was ``applied``, and ``skipped`` (something
        unsound, or an overflow found by a gradient scaler); refitted values ``clipped``; class indices out
        of range ``masked``; and the ``rank`` in use, None before the first step of rank="auto".
        """
        self._count()
        counters = dict(zip(_COUNTERS, self._counters.tolist(), strict=True))
        rank = self._subspace.rank if self._subspace is not None else self._rank
        return {"steps": self._steps, **counters, "rank": rank}

    def state_dict(self) -> dict[str, Any]:
        """Everything that a bit-exact continuation needs, as tensors and plain values."""
        self._count()
        return {
            "steps": self._steps,
            "calls_since_step": self._calls_since_step,
            "counters": self._counters.clone(),
            "subspace": None if self._subspace is None else self._subspace.state_dict(),
            "statistics": None if self._statistics is None else self._statistics.state_dict(),
            "pending": [
                # Copies: the features may be a few rows of a large tensor that lives on.
                {
                    "features": p.features.clone(),
                    "targets": [t.clone() for t in p.targets]
                    if isinstance(p.targets, CSR)
                    else p.targets.clone(),
                }
                for p in self._pending
            ],
        }

    def load_state_dict(self, state_dict: Mapping[str, Any]) -> None:
        """Restore what :meth:`state_dict` returned, for a LIP made with the same arguments.

        Raises:
            ValueError: the state of another head, rank, tail_rank or decay; nothing has been changed then.
        """
        weight = self._weight()
        device = weight.device
        missing = [key for key in _STATE_KEYS if key not in state_dict]
        if missing:
            raise ValueError(f"expected the state of a LIP, with {', '.join(_STATE_KEYS)}, got no {missing}")
        if (self._statistics is None) != (state_dict["statistics"] is None):
            raise ValueError("expected the state of a LIP with the same decay, got another")
        subspace = None
        if (saved := state_dict["subspace"]) is not None:
            subspace = self._make_subspace(weight, saved["rank"])
            rank = saved["rank"] if self._rank is None else self._rank
            expected = (tuple(weight.shape), rank, subspace.tail_rank)
            got = (tuple(saved["shape"]), saved["rank"], saved["tail_rank"])
            if expected != got:
                raise ValueError(f"expected the state of (shape, rank, tail_rank) {expected}, got {got}")
            subspace.load_state_dict(saved)
        if self._statistics is not None:
            self._statistics.load_state_dict(state_dict["statistics"])
        self._subspace = subspace
        self._steps = state_dict["steps"]
        self._calls_since_step = state_dict["calls_since_step"]
        self._counters = state_dict["counters"].to(device, copy=True)
        self._reports.clear()
        self._pending = [
            _Observation(
                p["features"].to(device),
                CSR(*(part.to(device) for part in p["targets"]))
                if isinstance(p["targets"], list | tuple)
                else p["targets"].to(device),
            )
            for p in state_dict["pending"]
        ]


def _absolute_rank(rank: object, limit: int) -> int:
    if isinstance(rank, float):
        if not 0 < rank <= 1:
            raise ValueError(f"expected a rank fraction in (0, 1], got {rank}")
        # Up, so that no fraction of a small head means no direction at all.
        return math.ceil(rank * limit)
    if isinstance(rank, str):
        raise ValueError(f'expected rank as an int, a fraction or "auto", got {rank!r}')
    return check_int("rank", rank, 0, limit)


def _auto_rank(weight: Tensor) -> int | None:
    """The rank that keeps the energy; None of a weight that is not finite."""
    svd = ops.tail_svd(weight.detach(), rank=min(weight.shape))
    if not bool(svd.ok & torch.isfinite(svd.S).all()):
        return None
    return select_rank(svd.S, energy=_AUTO_ENERGY)


def _all_finite(pending: list[_Observation]) -> Tensor:
    total = torch.zeros((), dtype=torch.float64, device=pending[0].features.device)
    for features, targets in pending:
        values = targets.values if isinstance(targets, CSR) else targets
        total = total + features.sum(dtype=torch.float64) + values.sum(dtype=torch.float64)
    return torch.isfinite(total)


def _check_choice(name: str, value: object, choices: tuple[str, ...]) -> None:
    if value not in choices:
        raise ValueError(f"expected {name} to be one of {choices}, got {value!r}")


def _group_of(optimizer: torch.optim.Optimizer, weight: Tensor) -> dict[str, Any] | None:
    for group in optimizer.param_groups:
        if any(p is weight for p in group["params"]):
            return group
    return None


def _on_host(lr: float | Tensor) -> bool:
    return not isinstance(lr, Tensor) or lr.device.type == "cpu"


def _detached(targets: Targets) -> Targets:
    return CSR(*(t.detach() for t in targets)) if isinstance(targets, CSR) else targets.detach()


def _sums_dtype(weight: Tensor) -> torch.dtype:
    return torch.float64 if weight.dtype == torch.float64 else torch.float32
