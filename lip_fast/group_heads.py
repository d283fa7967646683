"""LIP on the weights of an optimizer's groups: one head for each, by what its group says."""

import weakref
from collections.abc import Callable, Mapping
from typing import Any

from torch import Tensor, nn

from lip_fast.claims import Caller
from lip_fast.classifier import Head, check_bias, check_matrix
from lip_fast.head import HeadStep
from lip_fast.head_input import HeadInput
from lip_fast.settings import GROUP_SETTINGS, LASTING, Settings
from lip_fast.sharded.layout import DataGroup
from lip_fast.sharded.tensors import trained_weight
from lip_fast.validation import describe

__all__ = ["GroupCaller", "GroupHead"]


class ParameterHead(Head):
    """A weight of a group, and the bias that was last seen beside it."""

    def __init__(self, weight: Tensor, bias: Tensor | None = None) -> None:
        super().__init__(None)
        self._weight, self._bias = weight, bias

    def tensor(self) -> object:
        """See :class:`Head`."""
        return self._weight

    def weight(self) -> Tensor:
        """See :class:`Head`."""
        return check_matrix(self._weight)

    def bias(self, l: int) -> Tensor | None:
        """See :class:`Head`."""
        return self._bias

    def see_bias(self, bias: object) -> None:
        """Take the bias of a user's head, or None; TypeError where it does not fit."""
        # fully_shard gathers a bias for the forward pass alone; the parameter is there at the step too.
        self._bias = None if bias is None else trained_weight(check_bias(bias, len(self._weight)))

    def saved_bias(self, names: Mapping[Tensor, str]) -> tuple[str | Tensor, ...]:
        """The bias by its name where it has one, otherwise a copy of it; nothing where there is none."""
        bias = self._bias
        if bias is None:
            return ()
        return (names[bias],) if bias in names else (bias.detach().to("cpu", copy=True),)

    def restored_bias(self, state: object, parameters: Mapping[str, Tensor]) -> Tensor | None:
        """The bias that :meth:`saved_bias` returned; ValueError where it does not fit this weight."""
        saved = state.get("bias") if isinstance(state, Mapping) else None
        if not isinstance(saved, list | tuple) or len(saved) > 1:
            raise ValueError(f"expected a state with the bias of the head in a tuple, got {describe(saved)}")
        if not saved:
            return None
        bias, l = saved[0], len(self._weight)
        if isinstance(bias, str):
            bias = parameters.get(bias)
        if not isinstance(bias, Tensor) or tuple(bias.shape) != (l,):
            raise ValueError(f"expected a state with a bias of shape ({l},), got {describe(saved[0])}")
        return bias.to(self._weight.device)


class GroupHead:
    """LIP on one weight of a group, by what the group said when it was last looked at.

    Args:
        weight: (l, q), a parameter of the optimizer.
        group: its group; the attribute is another where the optimizer has loaded a state.
        options: ``data_group`` of the optimizer, and its ``seed`` and ``strict``.
    """

    def __init__(
        self, weight: Tensor, group: Mapping[str, Any], data_group: DataGroup, **options: Any
    ) -> None:
        self.weight, self.group, self._options = weight, group, options
        self.head = ParameterHead(weight)
        self._said = _said_by(group)
        # The module that is watched, as long as it is there.
        self.watched: Callable[[], nn.Module | None] = _no_module
        self.step = HeadStep(self.head, Settings.of_group(group, **options), data_group)

    def __getstate__(self) -> dict[str, Any]:
        # A reference that does not keep the module would still be to the original.
        return self.__dict__ | {"watched": _no_module}

    def watch(self, module: nn.Module) -> None:
        """See what this module is called with."""
        self.step.input.watch(module)
        self.watched = weakref.ref(module)

    def unwatch(self) -> None:
        """Leave no hook on it."""
        self.step.input.unwatch()
        self.watched = _no_module

    def take_over(self, other: "GroupHead") -> None:
        """Watch the module that another LIP on the same weight watched."""
        module = other.watched()
        if module is not None:
            self.watched = other.watched
            self.step.input.take_over(other.step.input, module)

    def follows(self, group: Mapping[str, Any]) -> bool:
        """Take over what the group says now; False where the state of LIP does not fit it.

        Raises:
            TypeError, ValueError: a setting that does not fit.
        """
        self.group, said = group, _said_by(group)
        if said != self._said:
            if any(said[name] != self._said[name] for name in LASTING):
                return False
            self.step.reschedule(Settings.of_group(group, **self._options))
            self._said = said
        return True


class GroupCaller:
    """An optimizer with LIP, which calls that of a weight while the group of the weight says so.

    Args:
        optimizer: with LIP.
        weight: of the group.
        input: of its head, whose hook goes where another takes the weight over.
        is_new: whether the optimizer was given the weight and uses it for the first time: it takes it over.
    """

    def __init__(self, optimizer: Any, weight: Tensor, input: HeadInput, *, is_new: bool) -> None:
        self._optimizer, self._weight = weakref.ref(optimizer), weight
        self._input, self.is_new = input, is_new

    @property
    def calls(self) -> bool:
        """Whether the optimizer is still there, with the weight in a group with a ``lip_rank``."""
        optimizer = self._optimizer()
        return optimizer is not None and bool(optimizer.repairs(self._weight))

    @property
    def is_orphaned(self) -> bool:
        """Never: it is the optimizer that is asked to observe."""
        return False

    def yields_to(self, other: Caller) -> bool:
        """Whether ``other`` is that of a new optimizer, as a notebook makes when its cell runs again."""
        return isinstance(other, GroupCaller) and other.is_new

    def stop(self) -> None:
        """Leave no hook: a later step of the optimizer is refused."""
        self._input.unwatch()


def _no_module() -> None:
    return None


def _said_by(group: Mapping[str, Any]) -> dict[str, tuple[type, Any]]:
    """What a group says of LIP; with the types, since a rank of 1.0 is all directions and one of 1 is one."""
    return {name: (type(group[name]), group[name]) for name in GROUP_SETTINGS}
