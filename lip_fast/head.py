"""LIP on one weight: when it acts, what it does then, and the state that it carries from step to step."""

from collections.abc import Mapping
from dataclasses import asdict
from numbers import Real
from types import EllipsisType
from typing import Any, NamedTuple

import torch
from torch import Tensor

from lip_fast import host, status
from lip_fast.captures import check_capture, not_loaded
from lip_fast.claims import Caller, Claim
from lip_fast.classifier import Head
from lip_fast.cost import Cost, cost
from lip_fast.counters import Counters
from lip_fast.directions import Directions, StepReport, rank_by_energy
from lip_fast.observations import Observation, Observations
from lip_fast.rounding import compute_dtype
from lip_fast.settings import Settings, warn_of_first_step
from lip_fast.sharded.layout import DataGroup, Sharding
from lip_fast.sharded.tensors import (
    full_tensor,
    is_distributed,
    is_sharded,
    is_split,
    local_part,
    warn_of_replicas,
)
from lip_fast.statistics import LabelStatistics
from lip_fast.targets import check_indices
from lip_fast.unfit import check_trained, warn_unless_linear
from lip_fast.validation import (
    AS_THEY_ARE,
    PRODUCTS,
    check_like,
    full_precision,
    outside_inference_mode,
)
from lip_fast.world import Alone, Peers, Update, World

__all__ = ["HeadStep", "LIPError", "Turn", "group_of"]

# So many steps without a gradient are not of a head that is trained, and so many observations not of one step
# that waits for a learning rate.
_MAX_OBSERVATIONS = 64
_STATE_KEYS = ("steps", "counters", "subspace", "statistics", "pending")


class LIPError(RuntimeError):
    """A step's LIP could not be taken, and ``strict=True`` asked to be told."""


class Turn(NamedTuple):
    """A step of the optimizer that LIP is to act on."""

    weight: Tensor
    pending: list[Observation]
    ok: Tensor | None = None
    """() bool on the device of the weight: whether the base optimizer takes the step; None where it does."""


class HeadStep:
    """LIP on one weight (l, q).

    An optimizer calls :meth:`due` in each of its steps, and :meth:`act` where LIP is to act, once the weight
    is updated; :meth:`after_step` does both, as a hook of an optimizer that knows nothing of LIP.

    Args:
        head: where the weight and the bias are looked up at each step.
        settings: how LIP acts; checked here.
        data_group: the processes whose batches differ.

    Attributes:
        head, data_group: as given.
        settings: as given; see :meth:`reschedule`.
        input: what the head is called with, for observations without features.
        claim: on the weight, which no other LIP may act on.
        shape: (l, q) of the weight.
        directions: what the steps keep and refit; None until the rank is decided.
        statistics: of past batches; None without ``decay``.
        steps: of the optimizer that were counted, without those that were replayed.

    Raises:
        TypeError, ValueError: a head or a setting that does not fit, or that differs between processes.
    """

    @outside_inference_mode
    def __init__(self, head: Head, settings: Settings, data_group: DataGroup) -> None:
        self.head, self.settings, self.data_group = head, settings, data_group
        weight = head.weight()
        check_trained(weight, head.module)
        l, q = weight.shape
        self.shape = (l, q)
        self.directions: Directions | None = None
        self.statistics: LabelStatistics | None = None
        # Not by a weak reference, which a parameter must not have that torch swaps for another.
        self._layout: tuple[Tensor, Sharding] | None = None
        # The weight that was checked last, in a process that is alone.
        self._checked: Tensor | None = None
        sharding = self.sharding(weight)
        compared = {"shape": self.shape, **asdict(settings), "dtype": weight.dtype}
        told = ", ".join(f"{name}={value!r}" for name, value in compared.items())
        try:
            bias = head.bias(l)
            if bias is not None:
                sharding.check_bias(bias)
            settings.check(min(l, q))
            if settings.decay is not None:
                self.statistics = self._make_statistics(weight)
        except (TypeError, ValueError) as error:
            sharding.agree(told, error)
            raise
        sharding.agree(told)
        settings.warn_of_no_effect(min(l, q))
        if sharding.alone:
            warn_of_replicas()
        self._observations = Observations()
        # What this process raises in the next step, where its peers wait for it.
        self._refused: Exception | None = None
        self._captured = False
        # Whether steps began with a basis, and took the update with them: what others run is not loaded.
        self._taken: set[tuple[bool, bool]] = set()
        self.input = self._observations.input
        self.input.serve(self)
        self.steps = self._steps_without_gradient = 0
        self._counters = Counters(weight.device)
        self.claim = Claim(head.tensor)

    def __getstate__(self) -> dict[str, Any]:
        # A copy looks up the layout of its own weight, maybe in a process that has loaded nothing.
        return self.__dict__ | {"_layout": None, "_checked": None, "_taken": set()}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        self.input.serve(self)

    # The weight --------------------------------------------------------------------------------------

    def weight(self) -> Tensor:
        """The weight as it is now; ValueError where it has another shape than at the start."""
        known = self.head.tensor()
        if isinstance(known, Tensor) and known is self._checked and known.shape == self.shape:
            return known
        weight = self.head.weight()
        self._checked = None if is_distributed() else weight
        if tuple(weight.shape) != self.shape:
            raise ValueError(
                f"expected the head's weight in the shape {self.shape} that this LIP was made for, got "
                f"{tuple(weight.shape)}: call detach(), and make a LIP for the new weight"
            )
        return weight

    def sharding(self, weight: Tensor) -> Sharding:
        """Where the parts of the weight lie, looked up again where it was replaced."""
        if self._layout is None or self._layout[0] is not weight:
            before, sharding = self._layout, Sharding.of(weight, self.data_group.value)
            self._layout = (weight, sharding)
            moved = before is not None and not (before[1].alone and sharding.alone)
            if self.statistics is not None and moved:
                # The statistics follow the weight to its new layout.
                state = self.statistics.state_dict()
                self.statistics = self._make_statistics(weight)
                self.statistics.load_state_dict(state | {"C": full_tensor(state["C"])})
        return self._layout[1]

    def _joins(self, weight: Tensor) -> bool:
        """Whether other processes wait for this one in each step that LIP is to act on."""
        return self.sharding(weight).communicates

    def _make_statistics(self, weight: Tensor) -> LabelStatistics:
        l, q = self.shape
        statistics = LabelStatistics(
            q, l, decay=self.settings.decay, dtype=compute_dtype(weight), device=weight.device
        )
        statistics.place(self.sharding(weight))
        return statistics

    # The optimizer -----------------------------------------------------------------------------------

    def begin_with(self, caller: Caller) -> None:
        """Be called by an optimizer, while ``caller`` says so; ValueError where another LIP acts on it."""
        weight = self.weight()
        self.claim.announce(weight, caller)
        self.claim.take(weight)
        self._counters.move(weight.device)

    @property
    def left_alone(self) -> bool:
        """Whether steps were taken since the last one of an optimizer that calls this LIP."""
        return self._observations.untaken

    def reschedule(self, settings: Settings) -> None:
        """Act by other settings of those that may change from step to step: every, start and clip."""
        settings.check(min(self.shape))
        self.settings = settings
        if self.directions is not None:
            self.directions.settings = settings

    @host.untraced
    def before_step(self, optimizer: torch.optim.Optimizer, args: object, kwargs: object) -> None:
        """Know that a step begins: a hook of ``register_step_pre_hook``."""
        self._observations.in_step = True

    @host.untraced
    def after_step(self, optimizer: torch.optim.Optimizer, args: object, kwargs: object) -> None:
        """Act after a step of an optimizer: a hook of ``register_step_post_hook``."""
        self._observations.in_step = False
        weight = self.weight()
        if self.claim.known is not weight:
            self.claim.take(weight)
        group = group_of(optimizer, weight)
        if group is None:
            raise RuntimeError(
                "expected the attached optimizer to hold the head's weight, but the head was replaced: call "
                "detach(), and attach to an optimizer made for the new weight"
            )
        turn = self.due(weight, group.get("lr"), optimizer, getattr(optimizer, "found_inf", None))
        if turn is not None:
            self.act(turn)

    def due(
        self,
        weight: Tensor,
        lr: object,
        optimizer: torch.optim.Optimizer,
        found_inf: Tensor | None,
    ) -> Turn | None:
        """Count a step of the optimizer; what LIP is to act on in it, None where it is not to act.

        ``lr`` is that of the weight's group, None where the optimizer chooses it; ``found_inf`` is what a
        gradient scaler tells a fused optimizer, not 0 where the optimizer skips the step.
        """
        if weight.grad is None or not weight.requires_grad:
            # The next gradient will be of other batches than those observed so far.
            self._steps_without_gradient += bool(self._observations) and weight.requires_grad
            self.discard()
            return None
        self._steps_without_gradient = 0
        if _is_zero(lr):
            # Checkpoints take such steps to create optimizer state; observations wait for the real step. No
            # checkpoint does so in one group alone, nor again and again.
            alone = not all(_is_zero(group.get("lr")) for group in optimizer.param_groups)
            if alone or len(self._observations) >= _MAX_OBSERVATIONS:
                self.discard()
            return None
        step, joins = self.steps, self._joins(weight)
        capturing = weight.device.type not in host.READABLE and host.capturing(weight.device)
        if capturing:
            if not self._observations and not joins:
                self._counters.capture(None, step=True)
                return None
            self._check_capture(weight, step)
        else:
            self.steps += 1
        pending = self._observations.take(capturing=capturing)
        if not (pending or joins) or not self._acts_on(step):
            return None
        ok = None
        if found_inf is not None:
            # A fused optimizer skips inside its kernel; nothing moved, so nothing is repaired.
            ok = (full_tensor(found_inf).to(weight.device) == 0).all()
        if isinstance(lr, Tensor) and lr.device.type not in host.READABLE:
            moves = (lr != 0).all()
            ok = moves if ok is None else ok & moves
        return Turn(weight, pending, ok)

    def _acts_on(self, step: int) -> bool:
        """Whether LIP acts on this step, by ``every`` and ``start``."""
        settings = self.settings
        return step >= settings.start and (step - settings.start) % settings.every == 0

    def acts_next(self, weight: Tensor, lr: object) -> bool:
        """Whether LIP acts on the next step, if it has a gradient."""
        if _is_zero(lr) or not self._acts_on(self.steps):
            return False
        return bool(self._observations) or self._joins(weight)

    # Observations ------------------------------------------------------------------------------------

    @host.untraced
    @outside_inference_mode
    def observe(self, features: Tensor | EllipsisType, targets: Tensor | EllipsisType) -> None:
        """Take what the head saw, of features ``...`` what a hook saw; see :meth:`lip_fast.LIP.observe`."""
        weight = self.weight()
        if self.claim.known is not weight and self.claim.in_use:
            self.claim.take(weight)
        if self.claim.is_orphaned:
            raise RuntimeError(
                "expected an optimizer that calls this LIP, but the one it was attached to is gone: call "
                "attach() with the new one; of a copied head make a LIP, and call attach(copy)"
            )
        sharding = self.sharding(weight)
        try:
            self._keep(weight, features, targets)
        except (TypeError, ValueError) as error:
            if not sharding.batches_differ or not self._acts_on(self.steps):
                raise
            # Peers have seen other batches: they learn of this error in the next step.
            self._refused = self._refused or error

    def _keep(self, weight: Tensor, features: object, targets: object) -> None:
        """Check what was observed, and keep it."""
        capturing = host.capturing(weight.device)
        seen = features is ...
        if seen:
            features = self.input.features()
        observation = self._observations.checked(features, targets, weight, capturing=capturing)
        logits = self.input.take_logits() if seen else None
        if logits is not None and weight.device.type in host.READABLE:
            warn_unless_linear(observation.features, logits, weight, self.head.bias(len(weight)))
        self.input.forget()
        labels = observation.targets
        if self.settings.strict and not capturing and isinstance(labels, Tensor) and labels.dim() == 1:
            check_indices(labels, len(weight))
        if self._steps_without_gradient >= _MAX_OBSERVATIONS:
            raise RuntimeError(
                f"expected a gradient on the head's weight, got none in {_MAX_OBSERVATIONS} steps that were "
                "observed. Where the head was replaced in the model, make a LIP of the new one; where it is "
                "frozen, call requires_grad_(False) on its weight, or do not observe"
            )
        if not capturing:
            self._observations.check_taken(weight, attached=self.claim.made)
        self._observations.add(observation, capturing=capturing)

    def discard(self) -> None:
        """Forget what was observed since the last step."""
        self._observations.clear()
        self._refused = None

    def release_buffers(self) -> None:
        """Forget the buffers of captured steps, and what is in them."""
        self._observations.release()

    @host.untraced
    @outside_inference_mode
    def apply(self) -> None:
        """Act now, with the pending observations; see :meth:`lip_fast.LIP.apply`."""
        weight = self.weight()
        if not self._observations and not self._joins(weight):
            raise RuntimeError("expected observations, got none: call observe() first")
        capturing = host.capturing(weight.device)
        if capturing:
            self._check_capture(weight, None)
        self.act(Turn(weight, self._observations.take(capturing=capturing)), step=False)

    def _check_capture(self, weight: Tensor, step: int | None) -> None:
        """RuntimeError where what LIP does at this step, or in a call (None), cannot be replayed."""
        check_capture(self.settings, self.sharding(weight), self.directions, step)

    # The step ----------------------------------------------------------------------------------------

    def act(self, turn: Turn, update: Update | None = None, *, step: bool = True) -> None:
        """Repair the weight where the base optimizer took the step; else no reason is counted.

        Args:
            turn: what :meth:`due` returned.
            update: of the weight, which the step then begins with, whatever becomes of the rest; None where
                the weight is updated. Only where the directions are tracked.
            step: whether this is in a step of the optimizer.

        Raises:
            PeerError: another process failed in LIP, or is gone.
            LIPError: with ``strict``, where LIP was skipped as unsound.
        """
        if torch.is_inference_mode_enabled():
            with torch.inference_mode(False):
                return self.act(turn, update, step=step)
        if update is None and self._act_at_once(turn):
            return None
        # Asked here, and not by the wrapper: a warm step goes through few functions.
        autocast = torch.is_autocast_enabled("cpu") or torch.is_autocast_enabled("cuda")
        rounds = autocast or any(products.fp32_precision not in AS_THEY_ARE for products in PRODUCTS)
        with torch.no_grad():
            return (full_precision(self._act) if rounds else self._act)(turn, update, step)

    def _act_at_once(self, turn: Turn) -> bool:
        """Take a warm step in one call, where it is this process's alone; False where nothing was written."""
        weight, pending, directions = turn.weight, turn.pending, self._known_directions(turn.weight)
        on_host = weight.device.type in host.READABLE
        if directions is None or not on_host or len(pending) != 1 or not (turn.ok is None or bool(turn.ok)):
            return False
        if self.statistics is not None or self._refused is not None or not self.sharding(weight).alone:
            return False
        features, targets = pending[0]
        done = directions.step_at_once_(weight, features, targets, self.head.bias(self.shape[0]))
        if done is not None:
            self._counters.add(done)
        return done is not None

    def _act(self, turn: Turn, update: Update | None, step: bool) -> None:
        weight, settings = turn.weight, self.settings
        capturing = weight.device.type not in host.READABLE and host.capturing(weight.device)
        form = (self.directions is not None and self.directions.basis is not None, update is not None)
        if capturing and form not in self._taken:
            raise not_loaded()
        self._taken.add(form)
        bias, sharding = self.head.bias(self.shape[0]), self.sharding(weight)
        refused, self._refused = self._refused, None
        ok = torch.ones((), dtype=torch.bool, device=weight.device) if turn.ok is None else turn.ok
        world: World
        if sharding.communicates:
            world = Peers(
                sharding,
                turn.pending,
                ok,
                dtype=compute_dtype(weight),
                error=refused,
                collects=self.statistics is not None,
            )
        else:
            world = Alone(turn.pending, ok)
            if bias is not None and not sharding.alone:
                bias = sharding.bias_part(bias)
        M = weight.detach() if sharding.alone else local_part(weight)
        unknown = 0
        if self._known_directions(weight) is None:
            choice = world.choose_rank(lambda: rank_by_energy(M, self.shape, world))
            if choice is None:
                return
            rank, unknown = choice
            # A weight that cannot be decomposed leaves the choice of the rank to a later step.
            if rank is not None:
                if step and self.steps <= 1:
                    warn_of_first_step(rank, min(self.shape))
                self.directions = self._new_directions(rank, weight)
        report = world.run_with_peers(lambda: self._step(M, world, bias, update, unknown))
        if world.nobody_observed:
            return
        if not sharding.alone and is_sharded(weight):
            # The step wrote this process's part of the DTensor; autograd must learn that the DTensor changed.
            torch.autograd.graph.increment_version(weight)
        if capturing:
            self._captured = True
            self._counters.capture(report, step=step)
            return
        self._counters.add(report)
        if settings.strict and (reasons := status.reasons(int(report.status))):
            raise LIPError(
                f"LIP was skipped: {', '.join(reasons)} (features, labels, weight or a decomposition of it); "
                "the weight is the base optimizer's"
            )

    def _step(
        self, M: Tensor, world: World, bias: Tensor | None, update: Update | None, unknown: int
    ) -> StepReport:
        """LIP on the weight, or this process's part of it; ``unknown`` is the reason where it has no rank."""
        if self.statistics is not None:
            world.collect(self.statistics)
        elif self.settings.tail == "zero":
            # Nothing is fitted to the batch, but a broken batch is a reason to skip the step all the same.
            world.check_finite()
        if self.directions is not None:
            return self.directions.step_(M, world, bias, update)
        world.decide()
        none = torch.zeros((), dtype=torch.int64, device=M.device)
        return StepReport(torch.zeros_like(world.ok), world.verdict(none + unknown)[0], none, none)

    def _known_directions(self, weight: Tensor) -> Directions | None:
        """The directions; None where the rank is chosen in a step."""
        if self.directions is None and (rank := self.settings.kept(min(self.shape))) is not None:
            self.directions = self._new_directions(rank, weight)
        return self.directions

    def _new_directions(self, rank: int, weight: Tensor) -> Directions:
        """Of a step from nothing."""
        whole, device = not is_split(weight), weight.device
        return Directions(*self.shape, rank=rank, settings=self.settings, device=device, whole=whole)

    def cost(self, rows: int) -> Cost:
        """See :meth:`lip_fast.LIP.cost`."""
        rank = None if self.directions is None else self.directions.rank
        return cost(*self.shape, self.settings, rows, like=self.weight(), rank=rank)

    # State -------------------------------------------------------------------------------------------

    def stats(self) -> dict[str, Any]:
        """Counts since the start; see :meth:`lip_fast.LIP.stats`."""
        counters = self._counters.values()
        directions = self.directions
        rank = self.settings.kept(min(self.shape)) if directions is None else directions.rank
        counters["empty"] = 0
        if directions is not None and directions.changes_nothing:
            counters["applied"], counters["empty"] = 0, counters["applied"]
        told = () if directions is None else zip(("gamma", "removed"), directions.told.tolist(), strict=True)
        known = {"gamma": None, "removed": None} | {name: value for name, value in told if value >= 0}
        steps = self.steps + counters.pop("replayed")
        return {"steps": steps, **counters, "rank": rank, **known}

    def state_dict(self) -> dict[str, Any]:
        """See :meth:`lip_fast.LIP.state_dict`."""
        counters = self._counters.state_dict()
        alone = self.data_group.value is None
        return {
            "steps": self.stats()["steps"],
            "counters": counters,
            "subspace": (
                Directions.no_state(self.shape, counters.device)
                if self.directions is None
                else self.directions.state_dict()
            ),
            "statistics": None if self.statistics is None else self.statistics.state_dict(),
            "pending": self._observations.state_dict() if alone else (),
        }

    def check_state_dict(self, state_dict: Mapping[str, Any]) -> Directions | None:
        """The directions that ``state_dict`` is of; ValueError as of :meth:`lip_fast.LIP.load_state_dict`."""
        weight = self.weight()
        missing = [key for key in _STATE_KEYS if key not in state_dict]
        if missing:
            raise ValueError(f"expected the state of a LIP, with {', '.join(_STATE_KEYS)}, got no {missing}")
        if (self.statistics is None) != (state_dict["statistics"] is None):
            raise ValueError("expected the state of a LIP with the same decay, got another")
        template = {
            "steps": 0,
            "subspace": Directions.no_state(self.shape, weight.device),
            "pending": (),
        }
        if self.statistics is not None:
            self.statistics.check_state_dict(state_dict["statistics"])
        for key, like in template.items():
            check_like(f"state_dict[{key!r}]", state_dict[key], like)
        directions, saved = None, state_dict["subspace"]
        shape, rank = tuple(saved["shape"]), saved["rank"]
        if shape != self.shape:
            raise ValueError(f"expected the state of a weight of shape {self.shape}, got {shape}")
        if rank is not None:
            directions = self.directions
            if directions is None or directions.rank != rank or directions.step.device != weight.device:
                directions = self._new_directions(rank, weight)
            kept = self.settings.kept(min(shape))
            expected = (rank if kept is None else kept, directions.tail_rank)
            got = (rank, saved["tail_rank"])
            if expected[0] != rank or not directions.goes_on_from(saved["tail_rank"]):
                raise ValueError(f"expected the state of (rank, tail_rank) {expected}, got {got}")
            directions.check_state_dict(saved)
        known = directions if directions is self.directions else None
        if self._captured and (known is None or not (known.exact or saved["basis"])):
            raise ValueError(
                "expected a state that a captured step can go on from, of the same rank and with a basis, "
                "got another"
            )
        self._counters.check_state_dict(state_dict["counters"])
        if self.data_group.value is None:
            self._observations.check_state_dict(state_dict["pending"], shape=self.shape)
        return directions

    @outside_inference_mode
    def load_state_dict(self, state_dict: Mapping[str, Any]) -> None:
        """See :meth:`lip_fast.LIP.load_state_dict`."""
        weight, directions = self.weight(), self.check_state_dict(state_dict)
        alone = self.data_group.value is None
        if self.statistics is not None:
            self.statistics.load_state_dict(state_dict["statistics"])
        if directions is not None:
            directions.load_state_dict(state_dict["subspace"])
        self.directions = directions
        self.steps = state_dict["steps"]
        self._counters.move(weight.device)
        self._counters.load_state_dict(state_dict["counters"])
        self._observations.load_state_dict(state_dict["pending"] if alone else (), weight.device)
        self._refused = None


def group_of(optimizer: torch.optim.Optimizer, weight: Tensor) -> dict[str, Any] | None:
    """The group of an optimizer that holds a weight, or None."""
    for group in optimizer.param_groups:
        for p in group["params"]:
            if p is weight:
                return group
    return None


def _is_zero(lr: object) -> bool:
    """Whether a learning rate is known to be 0; an optimizer that chooses it itself has None, or none."""
    if isinstance(lr, Tensor):
        return lr.device.type in host.READABLE and not bool(lr.any())
    return isinstance(lr, Real) and lr == 0
