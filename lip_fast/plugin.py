"""LIP as a plug-in: attached to the optimizer one has, it repairs a head after every step."""

import math
import weakref
from collections.abc import Callable, Mapping
from typing import Any, Protocol

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from lip_fast import host, ops, status
from lip_fast.counters import Counters
from lip_fast.functional import select_rank
from lip_fast.joint_step import JointStep
from lip_fast.observations import Observation, Observations
from lip_fast.sharded import (
    DataGroup,
    PeerError,
    Sharding,
    is_sharded,
    local_part,
    trained_weight,
    warn_of_replicas,
    whole,
)
from lip_fast.statistics import LabelStatistics
from lip_fast.subspace import StepReport, Subspace, Update
from lip_fast.targets import CSR, Targets, as_targets, check_indices
from lip_fast.validation import FLOATS, check_int, check_like, describe, full_precision

__all__ = ["LIP", "LIPError"]

# Observations without a step in between, after which the optimizer in use is surely not the attached one: as
# long as the weight has no gradient, and whatever it has.
_MAX_OBSERVATIONS = 64
_MAX_MICRO_BATCHES = 4096
# The share of ||M||_F^2 that rank="auto" keeps.
_AUTO_ENERGY = 0.95
_STATE_KEYS = ("steps", "calls_since_step", "counters", "subspace", "statistics", "pending")
# Every LIP that was attached once and is still in use: two on one weight would undo each other's work.
_ATTACHED: "weakref.WeakSet[LIP]" = weakref.WeakSet()


class _Owner(Protocol):
    """An optimizer that LIPs are a part of."""

    def _holds(self, lip: "LIP") -> bool: ...


class LIPError(RuntimeError):
    """A step's LIP could not be taken, and ``strict=True`` asked to be told."""


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

    **Order.** LIP comes right after the weight was updated, inside of ``optimizer.step()``; what comes before
    or after the step stays before or after LIP.

    - Accumulation and clipping of gradients: before the step, as ever. Observe each micro-batch.
    - Observe anywhere between the forward pass and the step, outside of functions that activation
      checkpointing runs twice (``torch.utils.checkpoint``, reentrant or not).
    - ``torch.amp.GradScaler``: ``scale``, ``unscale_``, clip, ``step``, ``update``, as ever. Of a step that
      it skips the weight is left alone. A fused optimizer is called all the same, and what was observed is
      discarded; another is not: call :meth:`discard` there, or what was observed counts with the batch of
      the next step, as it does where the learning rate of every group is 0.
    - Averages of weights (``torch.optim.swa_utils.AveragedModel``): updated after the step, they average
      repaired weights. Of hooks on the same optimizer, those registered after :meth:`attach` come after LIP.
    - Schedulers of the learning rate: after the step, made before or after :meth:`attach`.
    - ``torch.compile`` of the model, of ``optimizer.step`` or of a function of the whole training step: LIP
      runs as it does uncompiled, between the compiled parts.

    **CUDA graphs.** On CUDA a step can be captured in a graph and replayed, alone or with the forward and
    backward pass, where the ops of the step wait for nothing (``lip-fast doctor`` says which kernels serve
    them). Take at least one step on which LIP acts first. A replay repeats the step that was captured, so
    ``every`` must be 1 and ``start`` reached, and ``strict`` cannot be told.

    - Called inside of the capture, :meth:`observe` is a part of the graph.
    - Called before a capture of the optimizer's step alone, it shows LIP the form of the batches: what was
      observed becomes the buffers that replays read. Each later call outside of a capture copies its batch
      into them, in turn where a step has several micro-batches, all of the forms of the first ones; call it
      before each replay, on the stream of the replay. It cannot see replays: that a step has had all of its
      micro-batches is known by their number.
    - A step that is not replayed takes what was last observed. To return to batches of any form, call
      :meth:`release_buffers`.
    - :meth:`load_state_dict` writes in place, so that graphs go on from the loaded state. Save after a
      replay: observations that no replay has taken are saved only of an incomplete step.
    - Graphs hold no reference to what they read: keep the LIP as long as them.

    **Several processes.** The weight may be a ``DTensor``, sharded by class (``Shard(0)``), by feature
    (``Shard(1)``) or replicated, and its batches may differ between processes (``data_group``): see
    docs/sharding.md. Every process makes the LIP with the same arguments, and takes the same steps; class
    indices are always among all classes. A step then acts where some process has observed something. Where
    one fails, each of them raises: :class:`lip_fast.PeerError` where it was another, before LIP has written
    anything. With a ``data_group`` an observation that is refused is raised by the next step, so that no
    process is left waiting.

    Args:
        head: module with a 2-D ``weight`` (l, q) and an optional ``bias`` (l,), usually ``nn.Linear``. The
            weight is looked up at each step, so that it may be replaced, by one of its shape, or sharded in
            place.
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
        data_group: the processes whose batches differ, as a ``torch.distributed`` process group or device
            mesh: those of ``DistributedDataParallel``, the mesh given to ``fully_shard``. All of their
            rows count as one batch. None where every process that holds a part of the weight sees the same
            batch, as under tensor parallelism.
        seed: of the random columns and of stochastic rounding.
        strict: raise :class:`LIPError`, which names the reasons, where a step's LIP is skipped as unsound
            (waits for the device).

    Raises:
        TypeError, ValueError: an argument that does not fit, or that differs between processes; the message
            names what was expected.
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
        weight = trained_weight(_matrix_of(head))
        l, q = weight.shape
        self._shape = (l, q)
        self._data_group = DataGroup(data_group)
        self._layout: tuple[weakref.ref[Tensor], Sharding | None] | None = None
        sharding = self._sharding(weight)
        settings = {
            "shape": self._shape,
            "rank": rank,
            "tail_rank": tail_rank,
            "tail": tail,
            "rest": rest,
            "every": every,
            "start": start,
            "decay": decay,
            "clip": clip,
            "seed": seed,
            "strict": strict,
            "dtype": weight.dtype,
        }
        compared = ", ".join(f"{name}={value!r}" for name, value in settings.items())
        try:
            self._setup(weight, rank, tail_rank, tail, rest, every, start, decay, clip, seed, strict)
        except (TypeError, ValueError) as error:
            if sharding is not None:
                sharding.agree(compared, error)
            raise
        if sharding is not None:
            sharding.agree(compared)
        else:
            warn_of_replicas()

    def _setup(
        self,
        weight: Tensor,
        rank: int | float | str,
        tail_rank: int | None,
        tail: str,
        rest: str,
        every: int,
        start: int,
        decay: float | None,
        clip: bool,
        seed: int,
        strict: bool,
    ) -> None:
        l, q = self._shape
        bias, sharding = _bias_of(self._head, l), self._sharding(weight)
        if bias is not None and sharding is not None:
            sharding.check_bias(bias)
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
        self._tail_rank, self._tail, self._rest = tail_rank, tail, rest
        self._clip = _check_bool("clip", clip)
        self._strict, self._decay = strict, decay
        self._statistics = None if decay is None else self._make_statistics(weight)
        self._subspace: Subspace | None = None
        self._observations = Observations()
        # Why the next step cannot be taken, with the others that wait for it.
        self._refused: Exception | None = None
        self._captured = False
        self._calls_since_step = self._steps_without_gradient = 0
        self._steps = 0
        self._counters = Counters(weight.device)
        self._handle: RemovableHandle | None = None
        # The weight that is known to have no other LIP.
        self._alone: weakref.ref[Tensor] | None = None
        # Of a LIP that is a part of an optimizer.
        self._owner: weakref.ref[_Owner] | None = None

    # Several processes -------------------------------------------------------------------------------

    def _sharding(self, weight: Tensor) -> Sharding | None:
        """Where the parts of the weight lie, looked up again where it was replaced."""
        if self._layout is None or self._layout[0]() is not weight:
            before, sharding = self._layout, Sharding.of(weight, self._data_group.value)
            self._layout = (weakref.ref(weight), sharding)
            if before is not None and not (before[1] is None and sharding is None):
                self._follow_layout(weight)
        return self._layout[1]

    def _follow_layout(self, weight: Tensor) -> None:
        """Keep the statistics where the weight now lies."""
        if self._statistics is not None:
            state = self._statistics.state_dict()
            self._statistics = self._make_statistics(weight)
            self._statistics.load_state_dict(state | {"C": whole(state["C"])})

    def _make_statistics(self, weight: Tensor) -> LabelStatistics:
        l, q = self._shape
        statistics = LabelStatistics(q, l, decay=self._decay, dtype=_sums_dtype(weight), device=weight.device)
        statistics.place(self._sharding(weight))
        return statistics

    def _joins(self, weight: Tensor) -> bool:
        """Whether other processes wait for this one in each step that LIP is to act on."""
        sharding = self._sharding(weight)
        return sharding is not None and sharding.communicates

    # The optimizer -----------------------------------------------------------------------------------

    def attach(self, optimizer: torch.optim.Optimizer) -> RemovableHandle:
        """Act after every step of ``optimizer``, until the returned handle is removed.

        The handle is also a context manager. A copy of an optimizer (``copy.deepcopy``, pickle) is a plain
        optimizer of copied parameters: copy it together with the model, and attach a LIP of the copied head.
        Of a wrapper around an optimizer, attach to the inner one. Attached again after its handle was
        removed, a LIP goes on from its state, without what it observed: the steps in between were not seen.
        A copy of a LIP, made together with the model, is one that was never attached.

        Raises:
            TypeError: not an optimizer that takes step hooks.
            ValueError: the optimizer does not hold the head's weight, or another LIP acts on that weight.
            RuntimeError: already attached.
        """
        if not isinstance(optimizer, torch.optim.Optimizer) or not hasattr(
            optimizer, "_optimizer_step_post_hooks"
        ):
            raise TypeError(
                "expected a torch.optim.Optimizer that takes step hooks (of a wrapper, the inner "
                f"optimizer), got {type(optimizer).__name__}"
            )
        if self._attached:
            raise RuntimeError(
                "expected a LIP that is not attached, got one that is: call remove() of the handle that "
                "attach() returned first"
            )
        weight = self._weight()
        if _group_of(optimizer, weight) is None:
            raise ValueError(
                f"expected an optimizer that holds the head's weight, got {type(optimizer).__name__} without "
                "it: make the optimizer of the parameters that the model has now, or the LIP of the head "
                "that this optimizer trains"
            )
        self._alone = None
        self._check_alone(weight)
        if self._handle is not None or self._calls_since_step >= _MAX_OBSERVATIONS:
            # Of steps that were not seen: they say nothing of the next one.
            self.discard()
        self._counters.move(weight.device)
        self._handle = optimizer.register_step_post_hook(self._after_step)
        _ATTACHED.add(self)
        return self._handle

    def _check_alone(self, weight: Tensor) -> None:
        """ValueError where another LIP acts on this weight; looked up again for another weight than last."""
        if self._alone is not None and self._alone() is weight:
            return
        for lip in _ATTACHED:
            if lip is self or getattr(lip._head, "weight", None) is not weight:
                continue
            if lip._attached:
                raise ValueError(
                    "expected a weight that no other LIP acts on, got one with a LIP that is attached to an "
                    "optimizer, or part of one: call remove() of the handle that its attach() returned "
                    "first, or take the weight out of the group with a lip_rank, or delete that optimizer"
                )
            # Not to be taken up again by an optimizer that has stopped calling it.
            lip._owner = None
        self._alone = weakref.ref(weight)

    def _belong_to(self, optimizer: _Owner) -> None:
        """Be a part of an optimizer that calls this LIP in its steps."""
        self._alone = None
        self._check_alone(self._weight())
        self._owner = weakref.ref(optimizer)
        _ATTACHED.add(self)

    def _reschedule(self, every: int, start: int, clip: bool) -> None:
        """Change what may change from step to step."""
        self._every, self._start = check_int("every", every, 1), check_int("start", start, 0)
        self._clip = _check_bool("clip", clip)
        if self._subspace is not None:
            self._subspace.clip = clip

    @property
    def _attached(self) -> bool:
        """Whether an optimizer that is still there calls this LIP after its steps."""
        owner = None if self._owner is None else self._owner()
        if owner is not None and owner._holds(self):
            return True
        return self._handle is not None and self._handle.id in (self._handle.hooks_dict_ref() or {})

    # Not traced by torch.compile, as little as torch's own bookkeeping of optimizers: it would compile again
    # and again what changes from step to step, and the small algebra would not be the one that is tested.
    @torch._disable_dynamo
    def _after_step(self, optimizer: torch.optim.Optimizer, args: object, kwargs: object) -> None:
        weight = self._weight()
        self._check_alone(weight)
        group = _group_of(optimizer, weight)
        if group is None:
            raise RuntimeError(
                "expected the attached optimizer to hold the head's weight, but the head was replaced: call "
                "remove() of the handle that attach() returned, and attach to an optimizer made for the new "
                "weight"
            )
        pending = self._due(weight, group["lr"], optimizer)
        if pending is not None:
            ok = self._admissible(weight, group["lr"], getattr(optimizer, "found_inf", None))
            self._apply(weight, pending, ok, step=True)

    def _due(
        self, weight: Tensor, lr: float | Tensor, optimizer: torch.optim.Optimizer
    ) -> list[Observation] | None:
        """Count a step of the optimizer; what LIP is to act on in it, None where it is not to act."""
        if weight.grad is None:
            # What it saw is not what its next gradient will be of.
            self._steps_without_gradient += bool(self._observations) and weight.requires_grad
            self.discard()
            return None
        self._calls_since_step = self._steps_without_gradient = 0
        if _on_host(lr) and float(lr) == 0:
            # Checkpoints take such steps to create optimizer state; observations wait for the real step. No
            # checkpoint does so in one group alone, nor again and again.
            if len(self._observations) >= _MAX_OBSERVATIONS or _takes_a_step(optimizer):
                self.discard()
            return None
        step, capturing = self._steps, host.capturing(weight.device)
        if capturing:
            if not self._observations and not self._joins(weight):
                self._counters.capture(None, step=True)
                return None
            self._check_capture(step)
        else:
            self._steps += 1
        pending = self._take_pending(capturing=capturing)
        return pending if self._scheduled(step) and (pending or self._joins(weight)) else None

    def _scheduled(self, step: int) -> bool:
        """Whether LIP acts on this step by ``every`` and ``start``."""
        return step >= self._start and (step - self._start) % self._every == 0

    def _acts_next(self, lr: float | Tensor) -> bool:
        """Whether the next step, with a gradient, is one that LIP acts on."""
        learns = not _on_host(lr) or float(lr) != 0
        waits = bool(self._observations) or self._joins(self._weight())
        return waits and learns and self._scheduled(self._steps)

    @staticmethod
    def _admissible(weight: Tensor, lr: float | Tensor, found_inf: Tensor | None) -> Tensor:
        """() bool on the device of the weight: whether the base optimizer took the step."""
        ok = torch.ones((), dtype=torch.bool, device=weight.device)
        if found_inf is not None:
            # A fused optimizer skips inside its kernel; nothing moved, so nothing is repaired.
            ok = ok & (whole(found_inf).to(weight.device) == 0).all()
        if isinstance(lr, Tensor) and not _on_host(lr):
            ok = ok & (lr != 0).all()
        return ok

    # Observations ------------------------------------------------------------------------------------

    @torch._disable_dynamo
    def observe(self, features: Tensor, targets: Tensor) -> None:
        """Show LIP what the head saw: call it for every batch, before the optimizer's step.

        The features are detached and, on CPU, kept until that step, not copied; on other devices they are
        copied, since graphs write their outputs anew at each replay. Under gradient accumulation call it for
        each micro-batch; they count as one batch.

        Args:
            features: (..., q) input of the head, floating point, on the device of the weight.
            targets: labels of those rows: (...,) int64 class indices (-100: no label), or an (n, l) label
                matrix, dense or sparse, for features (n, q).

        Raises:
            TypeError, ValueError: features or targets do not fit the head or each other, or the buffers of a
                captured step; on CPU also a class index out of range (on other devices it is masked and
                counted; raised with ``strict``).
            RuntimeError: 64 calls without a gradient or a step of an attached optimizer, 4096 without a step,
                or 64 steps without a gradient on a weight that requires one.
        """
        weight = self._weight()
        if self._attached:
            self._check_alone(weight)
        sharding = self._sharding(weight)
        differ = sharding is not None and sharding.batches_differ
        if not differ or not self._scheduled(self._steps):
            self._keep(weight, features, targets)
            return
        try:
            self._keep(weight, features, targets)
        except (TypeError, ValueError) as error:
            # The others have seen no such batch: they learn of it in the step that they wait in.
            self._refused = self._refused or error

    def _keep(self, weight: Tensor, features: Tensor, targets: Tensor) -> None:
        """Check what was observed, and keep it."""
        l, q = weight.shape
        if isinstance(features, Tensor) and isinstance(targets, Tensor):
            features, targets = whole(features), whole(targets)
        if not isinstance(features, Tensor) or features.dtype not in FLOATS:
            raise TypeError(
                "expected floating-point features (float32, float64, bfloat16, float16), got "
                f"{describe(features)}"
            )
        if features.layout != torch.strided:
            raise TypeError(f"expected dense features, got {features.layout}")
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
        capturing = host.capturing(weight.device)
        if capturing and isinstance(targets, Tensor) and targets.layout == torch.sparse_coo:
            raise ValueError(
                "expected sparse labels as CSR inside of a capture, got COO: sorting waits for the device"
            )
        labels = as_targets(targets, rows=len(rows), classes=l, device=rows.device)
        if self._strict and not capturing and isinstance(labels, Tensor) and labels.dim() == 1:
            check_indices(labels, l)
        # Replays take what is in the buffers without a step that could be seen.
        unseen = capturing or self._observations.buffered
        if self._steps_without_gradient >= _MAX_OBSERVATIONS:
            raise RuntimeError(
                f"expected a gradient on the head's weight, got none in {_MAX_OBSERVATIONS} steps that were "
                "observed. Where the head was replaced in the model, make a LIP of the new one; where it is "
                "frozen, call requires_grad_(False) on its weight, or do not observe"
            )
        # Of several micro-batches all but the first find a gradient.
        most = _MAX_OBSERVATIONS if weight.grad is None else _MAX_MICRO_BATCHES
        if not unseen and self._calls_since_step >= most:
            raise RuntimeError(
                f"observe() was called {self._calls_since_step} times without a step of an attached "
                "optimizer. A copy of an optimizer loses its hooks: make a LIP for the copied head and call "
                "attach(copy). Where the handle was removed, attach() again. Where steps are left out (a "
                "gradient scaler does so after overflows), call discard() after each"
            )
        self._observations.add(Observation(rows, _detached(labels)), capturing=capturing)
        self._calls_since_step += not unseen

    def discard(self) -> None:
        """Forget what was observed since the last step: for a step that was left out.

        A gradient scaler leaves a step out after an overflow, without a word to an optimizer that is not
        fused; what was observed would else count with the batch of the next step.
        """
        self._observations.clear()
        self._refused = None
        self._calls_since_step = 0

    def release_buffers(self) -> None:
        """Forget the buffers of captured steps, and what is in them: batches may have any form again.

        Graphs that read them must not be replayed any more.
        """
        self._observations.release()

    @torch._disable_dynamo
    def apply(self) -> None:
        """Apply LIP to the head now, with the pending observations, whatever ``every`` and ``start`` say.

        Of a weight of several processes each of them has to call it.

        Raises:
            RuntimeError: nothing was observed.
            PeerError: another process failed in LIP, or is gone.
        """
        weight = self._weight()
        if not self._observations and not self._joins(weight):
            raise RuntimeError("expected observations, got none: call observe() first")
        capturing = host.capturing(weight.device)
        if capturing:
            self._check_capture(None)
        ok = torch.ones((), dtype=torch.bool, device=weight.device)
        self._apply(weight, self._take_pending(capturing=capturing), ok, step=False)

    def _take_pending(self, *, capturing: bool) -> list[Observation]:
        self._calls_since_step = 0
        return self._observations.take(capturing=capturing)

    def _check_capture(self, step: int | None) -> None:
        """RuntimeError where what LIP does at this step, or in a call (None), cannot be replayed."""
        if step is not None and (self._every != 1 or step < self._start):
            raise RuntimeError(
                "expected every=1 and start reached in a step that is captured, since replays repeat it, "
                f"got every={self._every} and start={self._start} at step {step}"
            )
        sharding = self._sharding(self._weight())
        if sharding is not None and sharding.batches_differ and (sharding.gathered or self._statistics):
            raise RuntimeError(
                "expected a step that is captured to have the same batch on all processes, or a whole weight "
                "on each, and no decay: rows of other processes are exchanged through the host"
            )
        if self._strict:
            raise RuntimeError("expected strict=False in a step that is captured: a replay cannot raise")
        if self._subspace is None:
            raise RuntimeError(
                "expected a step that LIP acts on before one is captured, to start from, got none: "
                "take a step first"
            )

    # The step ----------------------------------------------------------------------------------------

    @full_precision
    @torch.no_grad()
    def _apply(
        self,
        weight: Tensor,
        pending: list[Observation],
        ok: Tensor,
        *,
        step: bool,
        update: Update | None = None,
    ) -> None:
        """Take the step where ``ok``; where not, there is nothing to repair, and no reason is counted.

        With an ``update`` the step begins with it, whatever becomes of the rest: see :meth:`_tracks`.
        """
        bias = _bias_of(self._head, self._shape[0])
        sharding = self._sharding(weight)
        refused, self._refused = self._refused, None
        report: StepReport | None
        if sharding is not None and sharding.communicates:
            report = self._step_jointly(weight, sharding, pending, bias, ok, refused, update)
            if report is None:
                return
        else:
            report = self._step_alone(weight, sharding, pending, bias, ok, update)
        if is_sharded(weight):
            # Its part was written, of which autograd knows nothing.
            torch.autograd.graph.increment_version(weight)
        if host.capturing(weight.device):
            self._captured = True
            self._counters.capture(report, step=step)
            return
        self._counters.add(report)
        if self._strict and (reasons := status.reasons(int(report.status))):
            raise LIPError(
                f"LIP was skipped: {', '.join(reasons)} (features, labels, weight or a decomposition of it); "
                "the weight is the base optimizer's"
            )

    def _step_alone(
        self,
        weight: Tensor,
        sharding: Sharding | None,
        pending: list[Observation],
        bias: Tensor | None,
        ok: Tensor,
        update: Update | None,
    ) -> StepReport:
        """The step of one process."""
        statistics, entered = self._statistics, ok
        if bias is not None and sharding is not None:
            bias = sharding.bias_part(bias)
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

        report = self._step_on(local_part(weight), sums_of, ok, update, None)
        if ok is entered:
            return report
        # Features or labels that were found unsound before the step.
        return report._replace(status=status.lost(report.status, entered, ok, status.NOT_FINITE))

    def _step_jointly(
        self,
        weight: Tensor,
        sharding: Sharding,
        pending: list[Observation],
        bias: Tensor | None,
        ok: Tensor,
        refused: Exception | None,
        update: Update | None,
    ) -> StepReport | None:
        """The step of several processes; None where none of them has observed anything."""
        local, statistics = local_part(weight), self._statistics
        batches = [(p.features, p.targets) for p in pending]
        joint = JointStep(
            sharding,
            batches,
            ok,
            dtype=_sums_dtype(weight),
            error=refused,
            collects=statistics is not None,
        )
        if self._subspace is None and self._rank is None:
            # What is summed in the rest of the step depends on it.
            joint.take(joint.agree)
            self._check_joint(joint)
            if bool(joint.idle):
                return None
            rank = joint.take(lambda: self._joint_rank(local, joint))
            self._check_joint(joint)
            self._subspace = None if rank is None else self._make_subspace(local, rank)

        def take() -> StepReport:
            made: tuple[LabelStatistics, Tensor] | None = None
            if statistics is not None:
                rows = joint.rows()
                made = joint.attempt(lambda: statistics.with_rows(rows))
                if made is not None:
                    joint.lose(made[1])
            elif self._tail == "zero":
                finite = joint.attempt(lambda: _all_finite(pending))
                if finite is not None:
                    joint.lose(finite)

            def sums_of_statistics(A: Tensor, B: Tensor, bias: Tensor | None) -> ops.Sums:
                assert made is not None  # else this process failed, and is not asked
                return made[0].sums(A, B, bias)

            def sums_of(A: Tensor, B: Tensor) -> ops.Sums:
                sums = joint.sums(A, B, bias, None if statistics is None else sums_of_statistics)
                if statistics is not None and made is not None:
                    statistics.take(made[0], joint.ok)
                return sums

            report = self._step_on(local, sums_of, ok, update, joint)
            if (
                statistics is not None
                and made is not None
                and (self._tail == "zero" or self._subspace is None)
            ):
                statistics.take(made[0], joint.ok)
            return report

        report = joint.take(take)
        idle = weight.device.type in host.READABLE and bool(joint.idle)
        return None if idle else report

    @staticmethod
    def _check_joint(joint: JointStep) -> None:
        """PeerError where another process failed, also off the host, which is read here anyway."""
        if int(joint.status) & status.OUT_OF_STEP:
            raise PeerError("another process failed in LIP; LIP wrote nothing in this step anywhere")

    def _joint_rank(self, M: Tensor, joint: JointStep) -> int | None:
        """As :meth:`_auto_rank`, the same on all processes; the reason of a None is told the others."""
        rank, broken = self._auto_rank(M, joint)
        joint.object(torch.full((), broken, dtype=torch.int64, device=M.device))
        mine = M.new_tensor([rank is None, rank or 0, (rank or 0) ** 2], dtype=torch.float64)
        (everyone,) = joint.sum(lambda: (mine,), [(3,)], joint.groups)
        without, total, squares = everyone.tolist()
        if without:
            return None
        if joint.peers * squares != total**2:
            # Replicas decide each on its own.
            raise PeerError(
                f'expected one weight on all processes, got replicas of which rank="auto" keeps {rank} '
                f"directions here and {total / joint.peers:.1f} on average: let all start from the same "
                "weight; LIP wrote nothing in this step anywhere"
            )
        return rank

    def _step_on(
        self,
        M: Tensor,
        sums_of: Callable[[Tensor, Tensor], ops.Sums],
        ok: Tensor,
        update: Update | None,
        joint: JointStep | None,
    ) -> StepReport:
        """LIP on the weight, or this process's part of it; the rank is decided first where it is not."""
        broken: int | Tensor = 0
        if self._subspace is None and (joint is None or self._rank is not None):
            rank, broken = (self._rank, 0) if self._rank is not None else self._auto_rank(M, None)
            # A weight without a spectrum: the rank is decided at a later step.
            self._subspace = None if rank is None else self._make_subspace(M, rank)
        if self._subspace is None:
            none = torch.zeros((), dtype=torch.int64, device=M.device)
            if joint is not None:
                joint.agree()
                ok, broken = joint.entered, joint.status
            return StepReport(torch.zeros_like(ok), ok * broken, none, none)
        return self._subspace.step_(M, sums_of, ok, update, joint)

    def _auto_rank(self, M: Tensor, joint: JointStep | None) -> tuple[int | None, int]:
        """The rank that keeps the energy, or None and the reason of a weight that has no spectrum."""
        most = min(self._shape)
        if joint is None:
            svd = ops.tail_svd(M, rank=most)
        elif joint.dim is None:
            svd = joint.alone(lambda: ops.tail_svd(M, rank=most), lambda: joint.no_svd(M, 0, kept=most))
        else:
            svd = joint.tail_svd(M, rank=most)
        if broken := int(svd.status):
            return None, broken
        if not bool(torch.isfinite(svd.S).all()):
            return None, status.NOT_FINITE
        return select_rank(svd.S, energy=_AUTO_ENERGY), 0

    @property
    def _tracks(self) -> bool:
        """Whether the next step is warm-started: one that can begin with the update of the weight."""
        subspace = self._subspace
        return subspace is not None and not subspace.exact and subspace.basis is not None

    def _make_subspace(self, weight: Tensor, rank: int) -> Subspace:
        l, q = self._shape
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
        weight = trained_weight(_matrix_of(self._head))
        if tuple(weight.shape) != self._shape:
            raise ValueError(
                f"expected the head's weight in the shape {self._shape} that this LIP was made for, got "
                f"{tuple(weight.shape)}: call remove() of the handle that attach() returned, and make a LIP "
                "for the new weight"
            )
        return weight

    # State -------------------------------------------------------------------------------------------

    def __getstate__(self) -> dict[str, Any]:
        # A copy is attached to nothing: the hook is the original's.
        return self.__dict__ | {"_handle": None, "_owner": None, "_alone": None, "_layout": None}

    def stats(self) -> dict[str, int | None]:
        """Counts since the start; waits for the device.

        ``steps`` of the attached optimizer; steps on which LIP was ``applied``, and ``skipped`` (something
        unsound, or an overflow found by a gradient scaler); refitted values ``clipped``; class indices out
        of range ``masked``; and the ``rank`` in use, None before the first step of rank="auto".

        Of the skipped steps, those skipped as ``not_finite`` (weight, features, labels or their sums),
        ``rank_deficient``, ``not_converged`` (the solver), ``not_orthogonal`` (the basis) or ``out_of_step``
        (another process failed, or saw another batch; raised on CPU): several of them where several were
        found, none for an overflow found by a gradient scaler.
        """
        counters = self._counters.values()
        rank = self._subspace.rank if self._subspace is not None else self._rank
        return {"steps": self._steps + counters.pop("replayed"), **counters, "rank": rank}

    def state_dict(self) -> dict[str, Any]:
        """Everything that a bit-exact continuation needs, as tensors and plain values.

        Beside the state of model and optimizer it goes through ``torch.save`` and
        ``torch.load(weights_only=True)``, and through ``torch.distributed.checkpoint``, to which a LIP is a
        ``Stateful``. Its keys depend on nothing but ``decay``, so that a checkpoint can be loaded into a LIP
        that has not taken a step. With statistics of a weight sharded by class C is a ``DTensor``: save by
        ``torch.distributed.checkpoint``, of any number of processes for any other.

        With a ``data_group`` pending observations are left out, since they are those of one process: save
        between two steps, not within an accumulation.
        """
        counters = self._counters.state_dict()
        alone = self._data_group.value is None
        return {
            "steps": self.stats()["steps"],
            "calls_since_step": self._calls_since_step if alone else 0,
            "counters": counters,
            "subspace": (
                Subspace.no_state(self._shape, counters.device)
                if self._subspace is None
                else self._subspace.state_dict()
            ),
            "statistics": None if self._statistics is None else self._statistics.state_dict(),
            "pending": self._observations.state_dict() if alone else (),
        }

    def load_state_dict(self, state_dict: Mapping[str, Any]) -> None:
        """Restore ``state_dict``, which :meth:`state_dict` returned of a LIP made with the same arguments.

        Before or after :meth:`attach`; nothing is written to the weight. Arguments that no state depends on
        (tail, rest, every, start, clip, data_group, seed, strict) are not part of it: with others, training
        goes on by them. With a ``data_group`` saved observations, of one process, are passed over.

        Raises:
            ValueError: not the state of a LIP, that of another head, rank, tail_rank or decay, one that is
                not finite, or one that a captured step cannot go on from; nothing has been changed then.
        """
        weight = self._weight()
        missing = [key for key in _STATE_KEYS if key not in state_dict]
        if missing:
            raise ValueError(f"expected the state of a LIP, with {', '.join(_STATE_KEYS)}, got no {missing}")
        if (self._statistics is None) != (state_dict["statistics"] is None):
            raise ValueError("expected the state of a LIP with the same decay, got another")
        template = {
            "steps": 0,
            "calls_since_step": 0,
            "subspace": Subspace.no_state(self._shape, weight.device),
            "statistics": None if self._statistics is None else self._statistics.state_dict(),
            "pending": (),
        }
        for key, like in template.items():
            check_like(f"state_dict[{key!r}]", state_dict[key], like)
        subspace, saved = None, state_dict["subspace"]
        shape, rank = tuple(saved["shape"]), saved["rank"]
        if shape != self._shape:
            raise ValueError(f"expected the state of a weight of shape {self._shape}, got {shape}")
        if rank is not None:
            subspace = self._subspace
            if subspace is None or subspace.rank != rank or subspace.step.device != weight.device:
                subspace = self._make_subspace(weight, rank)
            expected = (rank if self._rank is None else self._rank, subspace.tail_rank)
            got = (rank, saved["tail_rank"])
            if expected != got:
                raise ValueError(f"expected the state of (rank, tail_rank) {expected}, got {got}")
            subspace.check_state_dict(saved)
        goes_on = subspace is not None and subspace is self._subspace and subspace.starts_from(saved)
        if self._captured and not goes_on:
            raise ValueError(
                "expected a state that a captured step can go on from, of the same rank and with a basis, "
                "got another"
            )
        self._counters.check_state_dict(state_dict["counters"])
        alone = self._data_group.value is None
        pending = state_dict["pending"] if alone else ()
        self._observations.check_state_dict(pending, shape=self._shape)
        if self._statistics is not None:
            self._statistics.load_state_dict(state_dict["statistics"])
        if subspace is not None:
            subspace.load_state_dict(saved)
        self._subspace = subspace
        self._steps = state_dict["steps"]
        self._calls_since_step = state_dict["calls_since_step"] if alone else 0
        self._counters.move(weight.device)
        self._counters.load_state_dict(state_dict["counters"])
        self._observations.load_state_dict(pending, weight.device)
        self._refused = None
        if not self._attached:
            # What was loaded is of the next step, whatever a handle that was removed has not seen.
            self._handle = None


def _absolute_rank(rank: object, limit: int) -> int:
    if isinstance(rank, float):
        if not 0 < rank <= 1:
            raise ValueError(f"expected a rank fraction in (0, 1], got {rank}")
        # Up, so that no fraction of a small head means no direction at all.
        return math.ceil(rank * limit)
    if isinstance(rank, str):
        raise ValueError(f'expected rank as an int, a fraction or "auto", got {rank!r}')
    return check_int("rank", rank, 0, limit)


def _all_finite(pending: list[Observation]) -> Tensor:
    total = torch.zeros((), dtype=torch.float64, device=pending[0].features.device)
    for features, targets in pending:
        values = targets.values if isinstance(targets, CSR) else targets
        total = total + features.sum(dtype=torch.float64) + values.sum(dtype=torch.float64)
    return torch.isfinite(total)


def _matrix_of(head: nn.Module) -> Tensor:
    """The weight (l, q) of a head, or what is wrong with it."""
    weight = getattr(head, "weight", None)
    if not isinstance(weight, Tensor) or weight.dim() != 2:
        raise TypeError(
            f"expected a head with a 2-D weight, such as nn.Linear, got {describe(head)}"
            + ("" if weight is None else f" with weight {describe(weight)}")
        )
    if weight.dtype not in FLOATS or weight.layout != torch.strided:
        raise TypeError(f"expected a dense weight in one of {FLOATS}, got {describe(weight)}")
    if weight.is_meta:
        raise ValueError("expected a weight that holds numbers, got one on meta: materialize the model first")
    return weight


def _bias_of(head: nn.Module, l: int) -> Tensor | None:
    """The bias (l,) of a head, or None."""
    bias = getattr(head, "bias", None)
    if bias is None:
        return None
    if not isinstance(bias, Tensor) or tuple(bias.shape) != (l,):
        raise TypeError(f"expected a head with a bias of shape ({l},) or None, got {describe(bias)}")
    return bias


def _check_bool(name: str, value: object) -> bool:
    if not isinstance(value, bool):
        raise TypeError(f"expected {name} as a bool, got {describe(value)}")
    return value


def _check_choice(name: str, value: object, choices: tuple[str, ...]) -> None:
    if value not in choices:
        raise ValueError(f"expected {name} to be one of {choices}, got {value!r}")


def _group_of(optimizer: torch.optim.Optimizer, weight: Tensor) -> dict[str, Any] | None:
    for group in optimizer.param_groups:
        if any(p is weight for p in group["params"]):
            return group
    return None


def _takes_a_step(optimizer: torch.optim.Optimizer) -> bool:
    """Whether some group has a learning rate that is not known to be 0."""
    return any(not _on_host(lr) or float(lr) != 0 for lr in (g["lr"] for g in optimizer.param_groups))


def _on_host(lr: float | Tensor) -> bool:
    return not isinstance(lr, Tensor) or lr.device.type in host.READABLE


def _detached(targets: Targets) -> Targets:
    return CSR(*(t.detach() for t in targets)) if isinstance(targets, CSR) else targets.detach()


def _sums_dtype(weight: Tensor) -> torch.dtype:
    return torch.float64 if weight.dtype == torch.float64 else torch.float32
