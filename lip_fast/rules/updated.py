"""A weight that an optimizer's update gives, as what it is computed from."""

from collections.abc import Sequence
from dataclasses import fields
from typing import Any, NamedTuple

import torch
from torch import Tensor

from lip_fast.rules.adamw import AdamW
from lip_fast.rules.nadam import NAdam
from lip_fast.rules.rule import Rule
from lip_fast.rules.sgd import SGD

__all__ = ["RULES", "Scaling", "Updated", "rule_of"]

RULES: dict[str, type[Rule]] = {rule.NAME: rule for rule in (AdamW, NAdam, SGD)}


class Scaling(NamedTuple):
    """What ``torch.amp.GradScaler`` tells a fused optimizer: 0-d float32 tensors, or None.

    The gradient is divided by ``grad_scale``, in place; where ``found_inf`` is not 0, nothing is written.
    """

    grad_scale: Tensor | None = None
    found_inf: Tensor | None = None


class Updated(NamedTuple):
    """The updated weight M', which need not be stored: a function of these as the update leaves them.

    Attributes:
        M: (l, q) floating point, the old weight, until M' is written.
        grad: (l, q) floating point; once the update is taken, without the scale.
        state: what the rule keeps of the weight, in the order of its ``STATE``: each (l, q) floating point,
            with the strides of the weight for speed.
        rule: of the update.
        scaling: of the gradient. Where ``found_inf`` is not 0, M' = M.
    """

    M: Tensor
    grad: Tensor
    state: Sequence[Tensor]
    rule: Rule
    scaling: Scaling = Scaling()

    def operands(self) -> tuple[Any, ...]:
        """As an op takes it."""
        how = self.rule
        return self.M, self.grad, list(self.state), how.scalars(), *self.scaling, how.NAME, how.settings()

    @classmethod
    def of(
        cls,
        M: Tensor,
        grad: Tensor,
        state: Sequence[Tensor],
        scalars: Sequence[Tensor],
        grad_scale: Tensor | None,
        found_inf: Tensor | None,
        rule: str,
        settings: Sequence[float],
    ) -> "Updated":
        """From the operands of an op."""
        return cls(M, grad, state, rule_of(rule, scalars, settings), Scaling(grad_scale, found_inf))

    @property
    def device(self) -> torch.device:
        """Of the weight."""
        return self.M.device


def rule_of(name: str, scalars: Sequence[Tensor], settings: Sequence[float]) -> Rule:
    """The rule from what an op is given of it.

    Raises:
        ValueError: there is no such rule, or it has another number of them.
    """
    if name not in RULES:
        raise ValueError(f"expected a rule among {sorted(RULES)}, got {name!r}")
    kind = RULES[name]
    count = len(kind.SCALARS)
    numbers = len(fields(kind)) - count  # type: ignore[arg-type]
    if len(scalars) != count or len(settings) != numbers:
        raise ValueError(
            f"expected {count} scalars and {numbers} settings of {name!r}, "
            f"got {len(scalars)} and {len(settings)}"
        )
    return kind(*scalars, *settings)
