"""LIP inside the step of an optimizer of torch: groups with settings of LIP, whose weights are repaired."""

import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from types import EllipsisType
from typing import Any, ClassVar, TypedDict, overload

import torch
from torch import Tensor, nn
from torch.optim.optimizer import Optimizer

from lip_fast import host
from lip_fast.fused import FusedUpdate, can_fuse
from lip_fast.group_heads import GroupCaller, GroupHead
from lip_fast.head import Turn
from lip_fast.ops import Scaling
from lip_fast.plugin import LIP
from lip_fast.rules import Rule
from lip_fast.settings import GROUP_SETTINGS
from lip_fast.sharded.layout import DataGroup, anywhere
from lip_fast.sharded.tensors import local_part, trained_weight
from lip_fast.validation import check_int, describe

__all__ = ["LIPOptions", "LIPState", "WithLIP"]


class LIPOptions(TypedDict, total=False):
    """The arguments of LIP that an optimizer takes beside those of torch; :class:`lip_fast.optim.LIPSGD`."""

    lip_rank: int | float | str | None
    lip_tail_rank: int | str | None
    lip_tail: str
    lip_rest: str
    lip_every: int
    lip_start: int
    lip_decay: float | None
    lip_clip: bool
    data_group: object
    seed: int
    strict: bool
    skip_nonfinite: bool


class LIPState:
    """The LIPs of an optimizer: their state for checkpoints, and their counts.

    A ``Stateful`` of ``torch.distributed.checkpoint``, to be saved beside the states of model and optimizer:
    in the optimizer's own, tensors would be cast to the dtype of the parameters. What it is made of is looked
    up in the optimizer at each call.

    Args:
        optimizer: with LIP, such as :class:`lip_fast.optim.LIPAdamW`.
    """

    def __init__(self, optimizer: "WithLIP") -> None:
        self._optimizer = optimizer

    def stats(self) -> dict[str, dict[str, Any]]:
        """:meth:`lip_fast.LIP.stats` of each weight of a LIP group, by the name of its parameter.

        Parameters that were given to the optimizer without names are "0", "1" and so on, in its order.
        """
        return {name: of.step.stats() for name, of in self._optimizer.named_heads()}

    def state_dict(self) -> dict[str, Any]:
        """:meth:`lip_fast.LIP.state_dict` of each weight of a LIP group, by the name of its parameter.

        And its ``bias``, for observations that wait for a step: the name of a parameter of the optimizer, or
        the bias itself, in a tuple that is empty where there is none.
        """
        names = {p: name for name, _, p in self._optimizer.named_parameters()}
        return {
            name: of.step.state_dict() | {"bias": of.head.saved_bias(names)}
            for name, of in self._optimizer.named_heads()
        }

    def load_state_dict(self, state_dict: Mapping[str, Any]) -> None:
        """Restore ``state_dict``, which :meth:`state_dict` returned of an optimizer with the same groups.

        Raises:
            ValueError: of other weights or settings; nothing has been changed then.
        """
        heads = dict(self._optimizer.named_heads())
        if not isinstance(state_dict, Mapping) or heads.keys() != state_dict.keys():
            got = sorted(state_dict) if isinstance(state_dict, Mapping) else describe(state_dict)
            raise ValueError(f"expected the state of LIP on the parameters {sorted(heads)}, got {got}")
        parameters: dict[str, Tensor] = {name: p for name, _, p in self._optimizer.named_parameters()}
        biases = {name: of.head.restored_bias(state_dict[name], parameters) for name, of in heads.items()}
        for name, of in heads.items():
            of.step.check_state_dict(state_dict[name])
        for name, of in heads.items():
            of.step.load_state_dict(state_dict[name])
            of.head.see_bias(biases[name])


class WithLIP(Optimizer):
    """What LIP adds to an optimizer of torch; the class after it in the bases takes the steps.

    A subclass names the rule by which that class updates a weight, and hands the arguments of its constructor
    over to :meth:`set_lip`.
    """

    RULE: ClassVar[type[Rule]]
    """What that class does to a weight."""

    def set_lip(self, options: LIPOptions) -> None:
        """Take the keyword arguments of LIP; before the constructor of torch, which adds the groups."""
        known = {**GROUP_SETTINGS, "data_group": None, "seed": 0, "strict": False, "skip_nonfinite": False}
        if unknown := options.keys() - known.keys():
            name = type(self).__name__
            raise TypeError(f"{name}.__init__() got an unexpected keyword argument {min(unknown)!r}")
        given = known | options
        self._lip_data_group = DataGroup(given["data_group"])
        self._lip_defaults = {name: given[name] for name in GROUP_SETTINGS}
        self._lip_seed = check_int("seed", given["seed"], 0, 2**63 - 1)
        self._lip_strict, self._skip_nonfinite = bool(given["strict"]), bool(given["skip_nonfinite"])
        self._lip_heads: dict[Tensor, GroupHead] = {}
        # Whether a state of the optimizer was loaded since its last step.
        self._lip_may_lag = False

    @property
    def lip(self) -> LIPState:
        """State and counts of the LIPs, to be saved in checkpoints beside the optimizer."""
        return LIPState(self)

    # Copies ------------------------------------------------------------------------------------------

    # deepcopy and pickle carry what this returns, and load_state_dict goes through __setstate__ too.
    def __getstate__(self) -> dict[str, Any]:
        mine = {name: value for name, value in self.__dict__.items() if name.startswith("_lip_")}
        return super().__getstate__() | mine | {"_skip_nonfinite": self._skip_nonfinite}

    def __setstate__(self, state: dict[str, Any]) -> None:
        before = self.__dict__.get("param_groups", [])
        super().__setstate__(state)
        for i, group in enumerate(self.param_groups):
            # A state that torch's own optimizer saved has no settings of LIP.
            for name, value in GROUP_SETTINGS.items():
                group.setdefault(name, before[i][name] if i < len(before) else value)
        # Only a deep copy has LIPs that no optimizer calls; a shallow copy has those of the original.
        for of in state.get("_lip_heads", {}).values():
            if not of.step.claim.made:
                of.step.begin_with(GroupCaller(self, of.weight, of.step.input, is_new=False))

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """As in torch, without the state of LIP, which is loaded by :attr:`lip`.

        A step without it warns, where the state of the optimizer tells that there were steps before.
        """
        super().load_state_dict(state_dict)
        # torch's own optimizer had no LIP that could be missed.
        self._lip_may_lag = any("lip_rank" in group for group in state_dict["param_groups"])

    def _warn_of_lag(self, heads: list[GroupHead]) -> None:
        """Warn of a LIP that begins anew on a weight whose optimizer state goes on."""
        self._lip_may_lag = False
        if lost := [of.step.shape for of in heads if of.step.steps == 0 and self.state.get(of.weight)]:
            warnings.warn(
                f"the state of {type(self).__name__} was loaded, that of its LIP on weights of shape {lost} "
                "was not: LIP begins anew. Save optimizer.lip.state_dict() beside the optimizer's, and load "
                "it too. Checkpoints of Lightning and Transformers have no place for it: use the LIPCallback "
                "of lip_fast.integrations with a plain optimizer there",
                UserWarning,
                stacklevel=4,
            )

    # Groups ------------------------------------------------------------------------------------------

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        """Add a group, as in torch; with a ``lip_rank``, LIP acts on each of its weights.

        Raises:
            ValueError, TypeError: as in torch; a parameter or a setting that LIP cannot act on, or a weight
                that another LIP acts on. Nothing has been added then.
        """
        # From where torch takes what a group does not say.
        for name, value in self._lip_defaults.items():
            self.defaults.setdefault(name, value)
        super().add_param_group(param_group)
        group = self.param_groups[-1]
        try:
            self._check_group(group)
            if group["lip_rank"] is not None:
                for p in group["params"]:
                    self._make(group, p, is_new=True)
        except Exception:
            self.param_groups.pop()
            for p in group["params"]:
                self._forget(p)
            raise

    def _check_group(self, group: dict[str, Any]) -> None:
        mine = [name for name, other, _ in self.named_parameters() if other is group]
        where = f"the group of parameter {mine[0]!r}" if mine else "a group without parameters"
        known = [name for name in group if name.startswith("lip")]
        if unknown := [name for name in known if name not in GROUP_SETTINGS]:
            raise ValueError(f"{where}: expected settings of LIP among {list(GROUP_SETTINGS)}, got {unknown}")
        for name, value in group.items():
            if isinstance(value, LIP) or (name in known and not isinstance(value, int | float | str | None)):
                raise ValueError(
                    f"{where}: expected {name} as a number or a string, got {describe(value)}: LIP objects "
                    "and tensors do not belong in a group, make a group of its own for each head"
                )
        if group["lip_rank"] is None:
            return
        if len(set(group["params"])) < len(group["params"]):
            raise ValueError(f"{where}: expected each weight once in a group with a lip_rank")
        others = {name for name, other, _ in self.named_parameters() if other is not group}
        if again := [name for i, name in enumerate(mine) if name in others or name in mine[:i]]:
            raise ValueError(
                f"{where}: expected names that no other parameter has, since LIP's state is saved by them, "
                f"got {again}"
            )

    def named_parameters(self) -> Iterator[tuple[str, dict[str, Any], Tensor]]:
        """Name, group and tensor of each parameter; its number where it was given without a name."""
        index = 0
        for group in self.param_groups:
            names = group.get("param_names") or [str(index + i) for i in range(len(group["params"]))]
            index += len(names)
            for name, p in zip(names, group["params"], strict=True):
                yield name, group, p

    def named_heads(self) -> Iterator[tuple[str, GroupHead]]:
        """Each weight of a LIP group, by the name of its parameter."""
        for name, group, p in self.named_parameters():
            if group["lip_rank"] is not None:
                yield name, self._head_of(group, p)

    @contextmanager
    def _naming(self, weight: Tensor) -> Iterator[None]:
        """Name the parameter where its LIP refuses something."""
        try:
            yield
        except (TypeError, ValueError) as error:
            name = next(name for name, _, p in self.named_parameters() if p is weight)
            raise ValueError(f"parameter {name!r} of a group with a lip_rank: {error}") from error

    def _make(self, group: dict[str, Any], p: Tensor, *, is_new: bool = False) -> GroupHead:
        """LIP on the weight by the settings of its group, in place of another that there may be.

        A new one takes the weight over from another optimizer only once it is used: of a constructor that
        fails nothing is left.
        """
        with self._naming(p):
            of = GroupHead(p, group, self._lip_data_group, seed=self._lip_seed, strict=self._lip_strict)
            before = self._forget(p)
            caller = GroupCaller(self, p, of.step.input, is_new=is_new)
            if is_new:
                of.step.claim.announce(p, caller)
            else:
                of.step.begin_with(caller)
            if before is not None:
                of.take_over(before)
        self._lip_heads[p] = of
        return of

    def repairs(self, weight: Tensor) -> bool:
        """Whether LIP acts on a weight in the steps of this optimizer."""
        groups = [group for group in self.param_groups if group["lip_rank"] is not None]
        return any(p is weight for group in groups for p in group["params"])

    def _forget(self, p: Tensor) -> GroupHead | None:
        of = self._lip_heads.pop(p, None)
        if of is not None:
            of.step.claim.release()
        return of

    def _head_of(self, group: dict[str, Any], p: Tensor) -> GroupHead:
        """The LIP of a weight, made anew where what its state depends on has changed in its group."""
        of = self._lip_heads.get(p)
        if of is not None and of.step.claim.is_announced:
            with self._naming(p):
                of.step.claim.take(p)
        if of is None or not of.step.claim.made:
            return self._make(group, p)
        with self._naming(p):
            follows = of.follows(group)
        return of if follows else self._make(group, p)

    @host.untraced
    def _heads(self) -> list[GroupHead]:
        """Each weight of a LIP group; LIPs of other weights are forgotten.

        Raises:
            ValueError: settings that do not fit, which may have been changed since the last step.
        """
        groups = [group for group in self.param_groups if group["lip_rank"] is not None]
        heads = [self._head_of(group, p) for group in groups for p in group["params"]]
        if len(heads) < len(self._lip_heads):
            for p in self._lip_heads.keys() - {of.weight for of in heads}:
                self._forget(p)
        return heads

    # The step ----------------------------------------------------------------------------------------

    def watch(self, head: nn.Module) -> None:
        """See what a head is called with, so that :meth:`observe` needs no features; before the forward pass.

        Args:
            head: the module whose ``weight`` (l, q) is in a group with a ``lip_rank``. A copy of the
                optimizer made together with the model watches the copied head.

        Raises:
            ValueError: its weight is in no such group.
        """
        self._of(head).watch(head)

    def unwatch(self, head: nn.Module) -> None:
        """Leave no hook on a head that :meth:`watch` was called for; ValueError as there."""
        self._of(head).unwatch()

    def discard(self) -> None:
        """Forget what was observed since the last step, as :meth:`lip_fast.LIP.discard`."""
        for of in self._heads():
            of.step.discard()

    @overload
    def observe(self, head: nn.Module, targets: Tensor, /) -> None: ...

    @overload
    def observe(self, head: nn.Module, features: Tensor, targets: Tensor) -> None: ...

    def observe(
        self, head: nn.Module, features: Tensor | EllipsisType = ..., targets: Tensor | EllipsisType = ...
    ) -> None:
        """Show LIP the labels of a batch, as :meth:`lip_fast.LIP.observe`: between forward pass and step.

        Args:
            head: the module whose ``weight`` (l, q) is in a group with a ``lip_rank``; its ``bias`` (l,), if
                there is one, moves the target of the refit.
            features: as there; of a head that :meth:`watch` was called for, ``observe(head, targets)`` takes
                what it was called with.
            targets: as there.

        Raises:
            ValueError: the head's weight is in no such group; otherwise as :meth:`lip_fast.LIP.observe`.
            TypeError, RuntimeError: as :meth:`lip_fast.LIP.observe`.
        """
        if targets is ...:
            features, targets = ..., features
        of = self._of(head)
        of.head.see_bias(getattr(head, "bias", None))
        of.step.observe(features, targets)

    def _of(self, head: nn.Module) -> GroupHead:
        """The LIP of the weight of a head; ValueError where there is none."""
        weight = getattr(head, "weight", None)
        if isinstance(weight, Tensor):
            weight = trained_weight(weight)
        for of in self._heads():
            if of.weight is weight:
                return of
        raise ValueError(
            f"expected a head whose weight is in a group with a lip_rank, got {describe(head)}: make the "
            'optimizer of the parameters that the model has now, with {"params": [head.weight], '
            '"lip_rank": ...} among its groups'
        )

    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """Take a step of the base optimizer, then LIP on each weight of a LIP group that saw a batch.

        Args:
            closure: evaluates the model again and returns the loss.

        Returns:
            The loss of the closure, or None.

        Raises:
            LIPError: with ``strict``, a LIP that was skipped as unsound.
            PeerError: of a weight of several processes, another one failed in LIP or is gone.
        """
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        # Settings that do not fit are refused here, before anything is written.
        heads = self._heads() if self._lip_heads else []
        if self._lip_may_lag:
            self._warn_of_lag(heads)
        if self._skip_nonfinite:
            self._step_where_finite(heads)
        elif heads:
            self._step_with_lip(heads, getattr(self, "found_inf", None))
        else:
            self._base_step()
        return loss

    @host.untraced
    def _step_where_finite(self, heads: list[GroupHead]) -> None:
        """A step, or where a gradient is not finite none, as after an overflow that a scaler finds."""
        bad = self._non_finite_gradient(heads)
        given = getattr(self, "found_inf", None)
        found_inf = bad.float() if given is None else torch.maximum(bad.float(), given.to(bad.device))
        if getattr(self, "_step_supports_amp_scaling", False) and bad.device.type not in host.READABLE:
            self.found_inf = found_inf
            try:
                self._step_with_lip(heads, found_inf)
            finally:
                if given is None:
                    del self.found_inf
                else:
                    self.found_inf = given
            return
        # Waits for the device, since torch's unfused kernels take no found_inf.
        self._step_with_lip(heads, found_inf, base=not bool(bad))

    @torch.no_grad()
    def _non_finite_gradient(self, heads: list[GroupHead]) -> Tensor:
        """() bool, on the device of the first gradient; the same on all processes that share a weight."""
        gradients = [p.grad for group in self.param_groups for p in group["params"] if p.grad is not None]
        if not gradients:
            return torch.zeros((), dtype=torch.bool)
        parts = [local_part(g) for g in gradients]
        values = [g.coalesce().values() if g.is_sparse else g for g in parts]
        device = gradients[0].device
        # The largest absolute value is not finite where one of them is not.
        norms = torch._foreach_norm([v for v in values if v.numel()], ord=float("inf"))
        bad = [~torch.isfinite(norm).to(device) for norm in norms]
        here = torch.stack(bad).any() if bad else torch.zeros((), dtype=torch.bool, device=device)
        return anywhere(here, gradients, [of.step.sharding(of.weight) for of in heads])

    def _step_with_lip(self, heads: list[GroupHead], found_inf: Tensor | None, *, base: bool = True) -> None:
        """A step of torch, where ``base``, then LIP; LIP updates the weights itself whose update is fused."""
        fused = self._begin(heads, found_inf)
        if base:
            self._base_step_without([turn.weight for turn, _ in fused.values()])
        self._repair(heads, fused, found_inf, base=base)

    @host.untraced
    def _begin(
        self, heads: list[GroupHead], found_inf: Tensor | None
    ) -> dict[GroupHead, tuple[Turn, FusedUpdate]]:
        """What LIP is to act on in this step together with the update, since kernels fuse both."""
        scaling = Scaling(getattr(self, "grad_scale", None), found_inf)
        fused: dict[GroupHead, tuple[Turn, FusedUpdate]] = {}
        for of in heads:
            p, group = of.weight, of.group
            if not group["differentiable"] and self._fuses(of):
                turn = of.step.due(p, group["lr"], self, found_inf)
                assert turn is not None  # since LIP acts on this step
                directions = of.step.directions
                assert directions is not None  # since they are tracked
                fused[of] = (
                    turn,
                    FusedUpdate(self.RULE, p, group, self.state[p], scaling, replaces=directions.drops),
                )
        return fused

    def _fuses(self, of: GroupHead) -> bool:
        """Whether LIP acts on this step, and kernels take the update of the weight in it."""
        p, group, step = of.weight, of.group, of.step
        directions = step.directions
        if directions is None or not directions.tracks:
            return False
        can = can_fuse(p, directions.columns) and self.RULE.fits(group, self.state[p])
        return can and step.sharding(p).dim != 1 and step.acts_next(p, group["lr"])

    @host.untraced
    def _repair(
        self,
        heads: list[GroupHead],
        fused: dict[GroupHead, tuple[Turn, FusedUpdate]],
        found_inf: Tensor | None,
        *,
        base: bool,
    ) -> None:
        """LIP on each weight that saw a batch; on all of them before an error of one is raised."""
        errors: list[Exception] = []
        for of in heads:
            turn, update = fused.get(of, (None, None))
            if turn is None:
                turn = of.step.due(of.weight, of.group["lr"], self, found_inf)
            if turn is None:
                continue
            try:
                of.step.act(turn, update)
            except Exception as error:
                errors.append(error)
        # Where LIP failed, its weight still has to get the base optimizer's update.
        late: list[Tensor] = []
        for turn, update in fused.values():
            try:
                if not update.settle():
                    late.append(turn.weight)
            except Exception as error:
                errors.append(error)
        if late and base:
            others = (p for group in self.param_groups for p in group["params"])
            self._base_step_without([p for p in others if not any(p is weight for weight in late)])
        if errors:
            raise errors[0]

    def _base_step_without(self, weights: list[Tensor]) -> None:
        """The step of torch for all other parameters: torch passes over those without a gradient."""
        gradients = [p.grad for p in weights]
        try:
            for p in weights:
                p.grad = None
            self._base_step()
        finally:
            for p, gradient in zip(weights, gradients, strict=True):
                p.grad = gradient

    def _base_step(self) -> None:
        """The step of torch, without the hooks of the optimizer: those belong to the whole step."""
        step: Any = super().step
        if getattr(step, "hooked", False):
            # torch wraps the step of its class in hooks once an instance of that class was made.
            step.__wrapped__(self)
        else:
            step()
