"""torch's SGD, AdamW and NAdam with LIP inside of their step, and groups whose weights are repaired."""

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any, ClassVar, NamedTuple

import torch
from torch import Tensor, nn
from torch.optim.optimizer import Optimizer, ParamsT

from lip_fast import host
from lip_fast.fused import FusedUpdate, can_fuse
from lip_fast.observations import Observation
from lip_fast.ops import Scaling
from lip_fast.plugin import LIP, _bias_of
from lip_fast.rules import SGD, AdamW, NAdam, Rule
from lip_fast.sharded import DataGroup, anywhere, local_part, trained_weight
from lip_fast.validation import check_int, describe

__all__ = ["LIPSGD", "LIPAdamW", "LIPNAdam", "LIPState"]

# What a group may say of LIP, and what it says where it is silent: scalars, so that they go through every
# checkpoint of an optimizer.
_SETTINGS: dict[str, Any] = {
    "lip_rank": None,
    "lip_tail_rank": None,
    "lip_tail": "refit",
    "lip_rest": "keep",
    "lip_every": 1,
    "lip_start": 0,
    "lip_decay": None,
    "lip_clip": True,
}
# Those that LIP's state depends on; the others may change from step to step.
_LASTING = ("lip_rank", "lip_tail_rank", "lip_tail", "lip_rest", "lip_decay")


class _Head(nn.Module):
    """A weight of a group, and the bias that was last seen beside it: what a LIP takes for a head."""

    weight: Tensor

    def __init__(self, weight: Tensor) -> None:
        super().__init__()
        # As plain attributes: no module of the user's gets to hold them through this one.
        self.__dict__ |= {"weight": weight, "bias": None}

    def see_bias_of(self, head: nn.Module) -> None:
        """Take the bias of a user's head, or that it has none; TypeError where it does not fit."""
        bias = _bias_of(head, self.weight.shape[0])
        # What fully_shard gathered for a forward pass is gone at the step.
        self.__dict__["bias"] = None if bias is None else trained_weight(bias)

    def saved_bias(self, names: Mapping[Tensor, str]) -> tuple[str | Tensor, ...]:
        """The bias by its name where it has one, otherwise a copy of it; nothing where there is none."""
        bias = self.__dict__["bias"]
        if bias is None:
            return ()
        return (names[bias],) if bias in names else (bias.detach().to("cpu", copy=True),)

    def restore_bias(self, state: Mapping[str, Any], parameters: Mapping[str, Tensor]) -> None:
        """Take what :meth:`saved_bias` returned; ValueError where it is none of this weight."""
        saved = state.get("bias") if isinstance(state, Mapping) else None
        if not isinstance(saved, list | tuple) or len(saved) > 1:
            raise ValueError(f"expected a state with the bias of the head in a tuple, got {describe(saved)}")
        for bias in saved:
            if isinstance(bias, str):
                bias = parameters.get(bias)
            l = self.weight.shape[0]
            if not isinstance(bias, Tensor) or tuple(bias.shape) != (l,):
                raise ValueError(f"expected a state with a bias of shape ({l},), got {describe(saved[0])}")
            self.__dict__["bias"] = bias.to(self.weight.device)


def _head_of(lip: LIP) -> _Head:
    assert isinstance(lip._head, _Head)
    return lip._head


class LIPState:
    """The LIPs of an optimizer: their state for checkpoints, and their counts.

    A ``Stateful`` of ``torch.distributed.checkpoint``, to be saved beside the states of model and optimizer:
    in the optimizer's own, tensors would be cast to the dtype of the parameters. What it is made of is looked
    up in the optimizer at each call.

    Args:
        optimizer: a :class:`LIPSGD`, :class:`LIPAdamW` or :class:`LIPNAdam`.
    """

    def __init__(self, optimizer: "_WithLIP") -> None:
        self._optimizer = optimizer

    def stats(self) -> dict[str, dict[str, int | None]]:
        """:meth:`lip_fast.LIP.stats` of each weight of a LIP group, by the name of its parameter.

        Parameters that were given to the optimizer without names are "0", "1" and so on, in its order.
        """
        return {name: lip.stats() for name, lip in self._lips()}

    def state_dict(self) -> dict[str, Any]:
        """:meth:`lip_fast.LIP.state_dict` of each weight of a LIP group, by the name of its parameter.

        And its ``bias``, for observations that wait for a step: the name of a parameter of the optimizer, or
        the bias itself, in a tuple that is empty where there is none.
        """
        names = {p: name for name, _, p in self._optimizer._named()}
        return {
            name: lip.state_dict() | {"bias": _head_of(lip).saved_bias(names)} for name, lip in self._lips()
        }

    def load_state_dict(self, state_dict: Mapping[str, Any]) -> None:
        """Restore ``state_dict``, which :meth:`state_dict` returned of an optimizer with the same groups.

        Raises:
            ValueError: of other weights or settings; nothing has been changed then.
        """
        lips = dict(self._lips())
        if not isinstance(state_dict, Mapping) or lips.keys() != state_dict.keys():
            got = sorted(state_dict) if isinstance(state_dict, Mapping) else describe(state_dict)
            raise ValueError(f"expected the state of LIP on the parameters {sorted(lips)}, got {got}")
        parameters: dict[str, Tensor] = {name: p for name, _, p in self._optimizer._named()}
        heads: dict[str, _Head] = {}
        for name, lip in lips.items():
            heads[name] = _Head(_head_of(lip).weight)
            heads[name].restore_bias(state_dict[name], parameters)
        before = {name: lip.state_dict() for name, lip in lips.items()}
        loaded: list[str] = []
        try:
            for name, lip in lips.items():
                lip.load_state_dict(state_dict[name])
                loaded.append(name)
        except Exception:
            for name in loaded:
                lips[name].load_state_dict(before[name])
            raise
        for name, lip in lips.items():
            _head_of(lip).see_bias_of(heads[name])

    def _lips(self) -> Iterator[tuple[str, LIP]]:
        for name, group, p in self._optimizer._named():
            if group["lip_rank"] is not None:
                yield name, self._optimizer._lip_of(group, p)


# A weight of a LIP group, with its group and its LIP.
_Followed = tuple[dict[str, Any], Tensor, LIP]


class _Fused(NamedTuple):
    """A weight in a step whose update LIP takes upon itself."""

    weight: Tensor
    lip: LIP
    pending: list[Observation]
    ok: Tensor
    update: FusedUpdate


class _WithLIP(Optimizer):
    """What LIP adds to an optimizer of torch; the class after it in the bases takes the steps."""

    RULE: ClassVar[type[Rule]]
    """What that class does to a weight."""

    def _setup(
        self, defaults: dict[str, Any], data_group: object, seed: int, strict: bool, skip_nonfinite: bool
    ) -> None:
        """Before the constructor of torch, which adds the groups."""
        self._lip_data_group = DataGroup(data_group)
        self._lip_defaults = defaults
        self._lip_seed = check_int("seed", seed, 0, 2**63 - 1)
        self._lip_strict, self._skip_nonfinite = bool(strict), bool(skip_nonfinite)
        self._lips: dict[Tensor, LIP] = {}
        self._made_of: dict[LIP, list[Any]] = {}

    @property
    def lip(self) -> LIPState:
        """State and counts of the LIPs, to be saved in checkpoints beside the optimizer."""
        return LIPState(self)

    # Copies ------------------------------------------------------------------------------------------

    # deepcopy and pickle carry what this returns, and load_state_dict goes through __setstate__ too.
    def __getstate__(self) -> dict[str, Any]:
        mine = (
            "_lips",
            "_made_of",
            "_lip_defaults",
            "_lip_data_group",
            "_lip_seed",
            "_lip_strict",
            "_skip_nonfinite",
        )
        return super().__getstate__() | {name: self.__dict__[name] for name in mine}

    def __setstate__(self, state: dict[str, Any]) -> None:
        before = self.__dict__.get("param_groups", [])
        super().__setstate__(state)
        for i, group in enumerate(self.param_groups):
            # The state of an optimizer of torch says nothing of LIP.
            for name, value in _SETTINGS.items():
                group.setdefault(name, before[i][name] if i < len(before) else value)
        # Of a copy, not of what is loaded; in a shallow one the LIPs stay the original's.
        for lip in state.get("_lips", {}).values():
            if lip._owner is None:
                lip._belong_to(self)

    # Groups ------------------------------------------------------------------------------------------

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        """Add a group, as in torch; with a ``lip_rank``, LIP acts on each of its weights.

        Raises:
            ValueError, TypeError: as in torch; a parameter or a setting that LIP cannot act on, or a weight
                that another LIP acts on. Nothing has been added then.
        """
        super().add_param_group(param_group)
        group = self.param_groups[-1]
        for name, value in self._lip_defaults.items():
            group.setdefault(name, value)
        try:
            self._check_group(group)
            if group["lip_rank"] is not None:
                for p in group["params"]:
                    self._make(group, p)
        except Exception:
            self.param_groups.pop()
            for p in group["params"]:
                self._forget(p)
            raise

    def _check_group(self, group: dict[str, Any]) -> None:
        mine = [name for name, other, _ in self._named() if other is group]
        where = f"the group of parameter {mine[0]!r}" if mine else "a group without parameters"
        known = [name for name in group if name.startswith("lip")]
        if unknown := [name for name in known if name not in _SETTINGS]:
            raise ValueError(f"{where}: expected settings of LIP among {list(_SETTINGS)}, got {unknown}")
        objects = [name for name, value in group.items() if isinstance(value, LIP)]
        for name in [
            name for name in known if not isinstance(group[name], int | float | str | None)
        ] + objects:
            raise ValueError(
                f"{where}: expected {name} as a number or a string, got {describe(group[name])}: LIP objects "
                "and tensors do not belong in a group, make a group of its own for each head"
            )
        if group["lip_rank"] is None:
            return
        if len(set(group["params"])) < len(group["params"]):
            raise ValueError(f"{where}: expected each weight once in a group with a lip_rank")
        others = {name for name, other, _ in self._named() if other is not group}
        if again := [name for i, name in enumerate(mine) if name in others or name in mine[:i]]:
            raise ValueError(
                f"{where}: expected names that no other parameter has, since LIP's state is saved by them, "
                f"got {again}"
            )

    def _named(self) -> Iterator[tuple[str, dict[str, Any], Tensor]]:
        """Each parameter with its name, or its number in the optimizer where it was given without."""
        index = 0
        for group in self.param_groups:
            names = group.get("param_names") or [str(index + i) for i in range(len(group["params"]))]
            index += len(names)
            for name, p in zip(names, group["params"], strict=True):
                yield name, group, p

    @contextmanager
    def _naming(self, weight: Tensor) -> Iterator[None]:
        """Name the parameter where its LIP refuses something."""
        try:
            yield
        except (TypeError, ValueError) as error:
            name = next(name for name, _, p in self._named() if p is weight)
            raise ValueError(f"parameter {name!r} of a group with a lip_rank: {error}") from error

    def _make(self, group: dict[str, Any], p: Tensor) -> LIP:
        """A LIP of the weight by the settings of its group, in place of another that there may be."""
        with self._naming(p):
            lip = LIP(
                _Head(p),
                group["lip_rank"],
                tail_rank=group["lip_tail_rank"],
                tail=group["lip_tail"],
                rest=group["lip_rest"],
                every=group["lip_every"],
                start=group["lip_start"],
                decay=group["lip_decay"],
                clip=group["lip_clip"],
                data_group=self._lip_data_group.value,
                seed=self._lip_seed,
                strict=self._lip_strict,
            )
            self._forget(p)
            lip._belong_to(self)
        self._lips[p] = lip
        self._made_of[lip] = _lasting(group)
        return lip

    def _forget(self, p: Tensor) -> None:
        lip = self._lips.pop(p, None)
        if lip is not None:
            lip._owner = None
            del self._made_of[lip]

    def _lip_of(self, group: dict[str, Any], p: Tensor) -> LIP:
        """The LIP of a weight, made anew where what its state depends on has changed in its group."""
        lip = self._lips.get(p)
        if lip is None or lip._owner is None or self._made_of[lip] != _lasting(group):
            return self._make(group, p)
        with self._naming(p):
            lip._reschedule(group["lip_every"], group["lip_start"], group["lip_clip"])
        return lip

    def _holds(self, lip: LIP) -> bool:
        """Whether the steps of this optimizer call ``lip``: its group may have lost its ``lip_rank``."""
        groups = [group for group in self.param_groups if group["lip_rank"] is not None]
        return any(self._lips.get(p) is lip for group in groups for p in group["params"])

    # Not traced by torch.compile: see LIP.
    @torch._disable_dynamo
    def _heads(self) -> list[_Followed]:
        """Each weight of a LIP group, with its group and its LIP; LIPs of other weights are forgotten.

        Raises:
            ValueError: settings that do not fit, which may have been changed since the last step.
        """
        groups = [group for group in self.param_groups if group["lip_rank"] is not None]
        heads = [(group, p, self._lip_of(group, p)) for group in groups for p in group["params"]]
        for p in self._lips.keys() - {p for _, p, _ in heads}:
            self._forget(p)
        return heads

    # The step ----------------------------------------------------------------------------------------

    def observe(self, head: nn.Module, features: Tensor, targets: Tensor) -> None:
        """Show LIP what a head saw, as :meth:`lip_fast.LIP.observe`: for every batch, before the step.

        Args:
            head: the module whose ``weight`` (l, q) is in a LIP group; its ``bias`` (l,), if there is one,
                moves the target of the refit.
            features: (..., q) input of the head, floating point, on the device of the weight.
            targets: labels of those rows: (...,) int64 class indices (-100: no label), or an (n, l) label
                matrix, dense or sparse, for features (n, q).

        Raises:
            ValueError: the head's weight is in no LIP group; otherwise as :meth:`lip_fast.LIP.observe`.
            TypeError, RuntimeError: as :meth:`lip_fast.LIP.observe`.
        """
        weight = getattr(head, "weight", None)
        if isinstance(weight, Tensor):
            weight = trained_weight(weight)
        lip = next((lip for _, p, lip in self._heads() if p is weight), None)
        if lip is None:
            raise ValueError(
                f"expected a head whose weight is in a group with a lip_rank, got {describe(head)}: make the "
                'optimizer of the parameters that the model has now, with {"params": [head.weight], '
                '"lip_rank": ...} among its groups'
            )
        _head_of(lip).see_bias_of(head)
        lip.observe(features, targets)

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
        # What does not fit is told before anything is written.
        heads = self._heads() if self._lips else []
        if self._skip_nonfinite:
            self._step_where_finite(heads)
        elif heads:
            self._step_with_lip(heads, getattr(self, "found_inf", None))
        else:
            self._base_step()
        return loss

    def _step_with_lip(self, heads: list[_Followed], found_inf: Tensor | None, *, base: bool = True) -> None:
        """A step of torch, where ``base``, then LIP; or both at once, for weights whose update is fused."""
        fused = self._begin(heads, found_inf)
        if base:
            self._base_step_without([head.weight for head in fused])
        self._repair(heads, fused, found_inf, base=base)

    def _base_step_without(self, weights: list[Tensor]) -> None:
        """The step of torch for all other parameters: to torch one without a gradient is none."""
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
            # An instance of torch's own class was made once: since then its step calls hooks.
            step.__wrapped__(self)
        else:
            step()

    # Not traced by torch.compile: see LIP.
    @torch._disable_dynamo
    def _step_where_finite(self, heads: list[_Followed]) -> None:
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
        # Waits for the device: torch's kernels that are not fused refuse to be told.
        self._step_with_lip(heads, found_inf, base=not bool(bad))

    @torch.no_grad()
    def _non_finite_gradient(self, heads: list[_Followed]) -> Tensor:
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
        joint = [sharding for _, p, lip in heads if (sharding := lip._sharding(p)) is not None]
        return anywhere(here, gradients, joint)

    # Not traced by torch.compile: see LIP.
    @torch._disable_dynamo
    def _begin(self, heads: list[_Followed], found_inf: Tensor | None) -> list["_Fused"]:
        """The weights whose update LIP takes upon itself in this step: those that kernels can fuse it for."""
        fused: list[_Fused] = []
        for group, p, lip in heads:
            if not lip._tracks or group["differentiable"]:
                continue
            assert lip._subspace is not None
            sharding = lip._sharding(p)
            if sharding is not None and sharding.dim == 1:
                continue
            if not can_fuse(p, lip._subspace.columns) or not self.RULE.fits(group, self.state[p]):
                continue
            if not lip._acts_next(group["lr"]):
                continue
            pending = lip._due(p, group["lr"], self)
            assert pending is not None
            scaling = Scaling(getattr(self, "grad_scale", None), found_inf)
            update = FusedUpdate(self.RULE, p, group, self.state[p], scaling)
            ok = lip._admissible(p, group["lr"], found_inf)
            fused.append(_Fused(p, lip, pending, ok, update))
        return fused

    # Not traced by torch.compile: see LIP.
    @torch._disable_dynamo
    def _repair(
        self, heads: list[_Followed], fused: list["_Fused"], found_inf: Tensor | None, *, base: bool
    ) -> None:
        """LIP on each weight that saw a batch; on all of them before an error of one is raised."""
        errors: list[Exception] = []
        begun = {head.lip: head for head in fused}
        for group, p, lip in heads:
            head = begun.get(lip)
            if head is None:
                pending, update = lip._due(p, group["lr"], self), None
                if pending is None:
                    continue
                ok = lip._admissible(p, group["lr"], found_inf)
            else:
                pending, ok, update = head.pending, head.ok, head.update
            try:
                lip._apply(p, pending, ok, step=True, update=update)
            except Exception as error:
                errors.append(error)
        # Whatever went wrong, every weight has been updated then.
        late: list[Tensor] = []
        for head in fused:
            try:
                if not head.update.settle():
                    late.append(head.weight)
            except Exception as error:
                errors.append(error)
        if late and base:
            others = (p for group in self.param_groups for p in group["params"])
            self._base_step_without([p for p in others if not any(p is weight for weight in late)])
        if errors:
            raise errors[0]


class LIPSGD(_WithLIP, torch.optim.SGD):
    """:class:`torch.optim.SGD` with LIP (arXiv:2505.16159) inside of the step.

    LIP acts on the weights of the groups that have a ``lip_rank``::

        optimizer = lip_fast.optim.LIPSGD(
            [
                {"params": [*model.backbone.parameters(), model.head.bias]},
                {"params": [model.head.weight], "lip_rank": "auto"},
            ],
            lr=0.1,
            momentum=0.9,
        )
        for x, y in loader:
            features = model.backbone(x)
            criterion(model.head(features), y).backward()
            optimizer.observe(model.head, features, y)
            optimizer.step()
            optimizer.zero_grad()

    Every parameter is updated as torch does it; when and how LIP acts is said in :class:`lip_fast.LIP`.
    Copies (``copy.deepcopy``, pickle) have copies of LIP and its state. Checkpoints need ``optimizer.lip``, a
    ``Stateful``, beside the optimizer. One optimizer at a time acts on a weight: where another is to take
    over, delete the first.

    Args:
        params: parameters or groups, as in torch. A LIP group holds matrices (l, q) alone, and may set each
            of the arguments with ``lip_`` for itself; all of them are scalars.
        lr, momentum, dampening, weight_decay, nesterov, maximize, foreach, differentiable, fused: as in
            torch.
        lip_rank: ``rank`` of :class:`lip_fast.LIP` for groups that do not say; None for no LIP.
        lip_tail_rank, lip_tail, lip_rest, lip_every, lip_start, lip_decay, lip_clip: likewise. Another rank,
            tail or decay in the midst of training makes LIP begin anew; the others may change at any time.
        data_group: the processes whose batches differ, as of :class:`lip_fast.LIP`; a group of parameters has
            scalars alone.
        seed: of random columns and stochastic rounding.
        strict: raise :class:`lip_fast.LIPError` where a step's LIP is skipped as unsound.
        skip_nonfinite: where a gradient is not finite, leave weights and state as they are. Waits for the
            device, except with ``fused=True``.

    Raises:
        TypeError, ValueError: as in torch; a parameter of a LIP group that is not a dense real matrix, or a
            setting that does not fit it; the message names the parameter.
    """

    RULE = SGD

    def __init__(
        self,
        params: ParamsT,
        lr: float | Tensor = 1e-3,
        momentum: float = 0,
        dampening: float = 0,
        weight_decay: float | Tensor = 0,
        nesterov: bool = False,
        *,
        maximize: bool = False,
        foreach: bool | None = None,
        differentiable: bool = False,
        fused: bool | None = None,
        lip_rank: int | float | str | None = None,
        lip_tail_rank: int | None = None,
        lip_tail: str = "refit",
        lip_rest: str = "keep",
        lip_every: int = 1,
        lip_start: int = 0,
        lip_decay: float | None = None,
        lip_clip: bool = True,
        data_group: object = None,
        seed: int = 0,
        strict: bool = False,
        skip_nonfinite: bool = False,
    ) -> None:
        self._setup(_settings(locals()), data_group, seed, strict, skip_nonfinite)
        super().__init__(
            params,
            lr,
            momentum,
            dampening,
            weight_decay,
            nesterov,
            maximize=maximize,
            foreach=foreach,
            differentiable=differentiable,
            fused=fused,
        )
        self.defaults |= self._lip_defaults


class LIPAdamW(_WithLIP, torch.optim.AdamW):
    """:class:`torch.optim.AdamW` with LIP (arXiv:2505.16159) inside of the step.

    LIP acts on the weights of the groups that have a ``lip_rank``::

        optimizer = lip_fast.optim.LIPAdamW(
            [
                {"params": [*model.backbone.parameters(), model.head.bias]},
                {"params": [model.head.weight], "lip_rank": "auto"},
            ],
            lr=1e-3,
        )
        for x, y in loader:
            features = model.backbone(x)
            criterion(model.head(features), y).backward()
            optimizer.observe(model.head, features, y)
            optimizer.step()
            optimizer.zero_grad()

    Every parameter is updated as torch does it; when and how LIP acts is said in :class:`lip_fast.LIP`.
    Copies (``copy.deepcopy``, pickle) have copies of LIP and its state. Checkpoints need ``optimizer.lip``, a
    ``Stateful``, beside the optimizer. One optimizer at a time acts on a weight: where another is to take
    over, delete the first.

    Args:
        params: parameters or groups, as in torch. A LIP group holds matrices (l, q) alone, and may set each
            of the arguments with ``lip_`` for itself; all of them are scalars.
        lr, betas, eps, weight_decay, amsgrad, maximize, foreach, capturable, differentiable, fused: as in
            torch.
        lip_rank: ``rank`` of :class:`lip_fast.LIP` for groups that do not say; None for no LIP.
        lip_tail_rank, lip_tail, lip_rest, lip_every, lip_start, lip_decay, lip_clip: likewise. Another rank,
            tail or decay in the midst of training makes LIP begin anew; the others may change at any time.
        data_group: the processes whose batches differ, as of :class:`lip_fast.LIP`; a group of parameters has
            scalars alone.
        seed: of random columns and stochastic rounding.
        strict: raise :class:`lip_fast.LIPError` where a step's LIP is skipped as unsound.
        skip_nonfinite: where a gradient is not finite, leave weights and state as they are. Waits for the
            device, except with ``fused=True``.

    Raises:
        TypeError, ValueError: as in torch; a parameter of a LIP group that is not a dense real matrix, or a
            setting that does not fit it; the message names the parameter.
    """

    RULE = AdamW

    def __init__(
        self,
        params: ParamsT,
        lr: float | Tensor = 1e-3,
        betas: tuple[float | Tensor, float | Tensor] = (0.9, 0.999),
        eps: float = 1e-8,
        weight_decay: float = 1e-2,
        amsgrad: bool = False,
        *,
        maximize: bool = False,
        foreach: bool | None = None,
        capturable: bool = False,
        differentiable: bool = False,
        fused: bool | None = None,
        lip_rank: int | float | str | None = None,
        lip_tail_rank: int | None = None,
        lip_tail: str = "refit",
        lip_rest: str = "keep",
        lip_every: int = 1,
        lip_start: int = 0,
        lip_decay: float | None = None,
        lip_clip: bool = True,
        data_group: object = None,
        seed: int = 0,
        strict: bool = False,
        skip_nonfinite: bool = False,
    ) -> None:
        self._setup(_settings(locals()), data_group, seed, strict, skip_nonfinite)
        super().__init__(
            params,
            lr,
            betas,
            eps,
            weight_decay,
            amsgrad,
            maximize=maximize,
            foreach=foreach,
            capturable=capturable,
            differentiable=differentiable,
            fused=fused,
        )
        self.defaults |= self._lip_defaults


class LIPNAdam(_WithLIP, torch.optim.NAdam):
    """:class:`torch.optim.NAdam` with LIP (arXiv:2505.16159) inside of the step.

    LIP acts on the weights of the groups that have a ``lip_rank``::

        optimizer = lip_fast.optim.LIPNAdam(
            [
                {"params": [*model.backbone.parameters(), model.head.bias]},
                {"params": [model.head.weight], "lip_rank": "auto"},
            ],
            lr=2e-3,
        )
        for x, y in loader:
            features = model.backbone(x)
            criterion(model.head(features), y).backward()
            optimizer.observe(model.head, features, y)
            optimizer.step()
            optimizer.zero_grad()

    Every parameter is updated as torch does it; when and how LIP acts is said in :class:`lip_fast.LIP`.
    Copies (``copy.deepcopy``, pickle) have copies of LIP and its state. Checkpoints need ``optimizer.lip``, a
    ``Stateful``, beside the optimizer. One optimizer at a time acts on a weight: where another is to take
    over, delete the first.

    Args:
        params: parameters or groups, as in torch. A LIP group holds matrices (l, q) alone, and may set each
            of the arguments with ``lip_`` for itself; all of them are scalars.
        lr, betas, eps, weight_decay, momentum_decay, decoupled_weight_decay: as in torch.
        foreach, maximize, capturable, differentiable: as in torch.
        lip_rank: ``rank`` of :class:`lip_fast.LIP` for groups that do not say; None for no LIP.
        lip_tail_rank, lip_tail, lip_rest, lip_every, lip_start, lip_decay, lip_clip: likewise. Another rank,
            tail or decay in the midst of training makes LIP begin anew; the others may change at any time.
        data_group: the processes whose batches differ, as of :class:`lip_fast.LIP`; a group of parameters has
            scalars alone.
        seed: of random columns and stochastic rounding.
        strict: raise :class:`lip_fast.LIPError` where a step's LIP is skipped as unsound.
        skip_nonfinite: where a gradient is not finite, leave weights and state as they are. Waits for the
            device: torch has no fused NAdam.

    Raises:
        TypeError, ValueError: as in torch; a parameter of a LIP group that is not a dense real matrix, or a
            setting that does not fit it; the message names the parameter.
    """

    RULE = NAdam

    def __init__(
        self,
        params: ParamsT,
        lr: float | Tensor = 2e-3,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-8,
        weight_decay: float = 0,
        momentum_decay: float = 4e-3,
        decoupled_weight_decay: bool = False,
        *,
        foreach: bool | None = None,
        maximize: bool = False,
        capturable: bool = False,
        differentiable: bool = False,
        lip_rank: int | float | str | None = None,
        lip_tail_rank: int | None = None,
        lip_tail: str = "refit",
        lip_rest: str = "keep",
        lip_every: int = 1,
        lip_start: int = 0,
        lip_decay: float | None = None,
        lip_clip: bool = True,
        data_group: object = None,
        seed: int = 0,
        strict: bool = False,
        skip_nonfinite: bool = False,
    ) -> None:
        self._setup(_settings(locals()), data_group, seed, strict, skip_nonfinite)
        super().__init__(
            params,
            lr,
            betas,
            eps,
            weight_decay,
            momentum_decay,
            decoupled_weight_decay,
            foreach=foreach,
            maximize=maximize,
            capturable=capturable,
            differentiable=differentiable,
        )
        self.defaults |= self._lip_defaults


def _lasting(group: Mapping[str, Any]) -> list[Any]:
    """The settings that the state of LIP depends on; by their types too, since a rank of 1.0 is all of it."""
    return [(type(group[name]), group[name]) for name in _LASTING]


def _settings(arguments: Mapping[str, Any]) -> dict[str, Any]:
    """Those of the arguments of a constructor that are of LIP."""
    return {name: arguments[name] for name in _SETTINGS}
