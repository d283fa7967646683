"""The rule of an optimizer: settings, state, and the updated weight as a function of both."""

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import fields
from typing import Any, ClassVar, Self

import torch
from torch import Tensor

__all__ = ["Rule", "scalar", "write"]


class Rule(ABC):
    """How an optimizer of torch updates one weight M (l, q), as it is set for one step.

    A rule is a frozen dataclass. Its first fields are the ``SCALARS``, which lie in memory for a captured
    step to read them anew; the others are numbers and flags.

    The updated weight M' must be a function of the old weight, the gradient and the *updated* state, as they
    are stored: M' need not be written until the end of the step, and every kernel that needs it computes it
    again, to the same bits.

    Adding a rule takes this class, an update in ``csrc/core/weight_update.h`` and a file in
    ``lip_fast/backends/triton/rules``.
    """

    NAME: ClassVar[str]
    STATE: ClassVar[tuple[str, ...]]
    """Tensors like the weight in the state of the optimizer, in the order that the ops take them. A rule may
    do without the last ones."""
    NEEDED: ClassVar[int]
    """How many of them it cannot do without."""
    SCALARS: ClassVar[tuple[str, ...]]
    """Fields that are () float32 on the device of the weight."""

    @classmethod
    @abstractmethod
    def fits(cls, group: Mapping[str, Any], state: Mapping[str, Any]) -> bool:
        """Whether the state was made and the settings are such that the kernels can take the update."""

    @classmethod
    @abstractmethod
    def held(cls, group: Mapping[str, Any]) -> tuple[str, ...]:
        """Those of ``STATE`` that a group uses, whatever else an earlier setting left in the state."""

    @classmethod
    @abstractmethod
    def next(
        cls, group: Mapping[str, Any], state: Mapping[str, Any], like: Tensor, found_inf: Tensor | None
    ) -> tuple["Rule", dict[str, Tensor]]:
        """The rule of the next step.

        Args:
            group: of the optimizer.
            state: of the weight in the optimizer.
            like: a tensor on the device that the scalars must be on.
            found_inf: () float, not 0 where the step is to change nothing.

        Returns:
            The rule, and what the optimizer counts, as it must be kept in the state once the update is taken.
        """

    @classmethod
    def of_group(cls, group: Mapping[str, Any], like: Tensor, *counted: Tensor) -> Self:
        """As a group of the optimizer is set; the scalars are its learning rate and what is counted."""
        # Those of Adam are a pair there.
        values = {**group, **dict(zip(("beta1", "beta2"), group.get("betas", ()), strict=False))}
        settings = [field.name for field in fields(cls)][len(cls.SCALARS) :]  # type: ignore[arg-type]
        given = {name: values[name] for name in settings if name in values}
        return cls(*(scalar(value, like) for value in (group["lr"], *counted)), **given)

    @abstractmethod
    def check(self, state: Sequence[Tensor]) -> None:
        """Raise ValueError where the settings, or the tensors of the state, do not fit each other."""

    @abstractmethod
    def advance(self, M: Tensor, grad: Tensor, state: Sequence[Tensor], skip: Tensor | bool) -> None:
        """Update the state in place by a gradient without a scale, except where ``skip``."""

    @abstractmethod
    def updated(self, M: Tensor, grad: Tensor, state: Sequence[Tensor]) -> Tensor:
        """M' from the updated state, in the dtype of the computation."""

    def scalars(self) -> list[Tensor]:
        """The values of ``SCALARS``."""
        return list(vars(self).values())[: len(self.SCALARS)]

    def settings(self) -> list[float]:
        """The other fields, as ops and kernels take them: flags are 0 or 1."""
        return [float(value) for value in list(vars(self).values())[len(self.SCALARS) :]]


def write(X: Tensor, new: Tensor, skip: Tensor | bool) -> None:
    """X = new in the dtype of X, rounded to nearest, except where ``skip``."""
    if isinstance(skip, Tensor):
        new = torch.where(skip, X, new.to(X.dtype))
    elif skip:
        return
    X.copy_(new)


def scalar(value: float | Tensor, like: Tensor) -> Tensor:
    """() float32 on the device of ``like``, without waiting for it."""
    if isinstance(value, Tensor) and value.device == like.device:
        return value.detach().reshape(()).float()
    return torch.full((), float(value), dtype=torch.float32, device=like.device)
