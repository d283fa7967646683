"""The rules of the optimizers whose updates the step takes upon itself: one a file, in plain torch."""

from collections.abc import Sequence
from dataclasses import fields

from torch import Tensor

from lip_fast.rules.adamw import AdamW
from lip_fast.rules.nadam import NAdam
from lip_fast.rules.rule import Rule
from lip_fast.rules.sgd import SGD

__all__ = ["RULES", "SGD", "AdamW", "NAdam", "Rule", "rule_of"]

RULES: dict[str, type[Rule]] = {rule.NAME: rule for rule in (AdamW, NAdam, SGD)}


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
