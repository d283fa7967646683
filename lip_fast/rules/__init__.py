"""The rules of the optimizers whose updates the step takes upon itself: one a file, in plain torch."""

from lip_fast.rules.adamw import AdamW
from lip_fast.rules.nadam import NAdam
from lip_fast.rules.rule import Rule
from lip_fast.rules.sgd import SGD
from lip_fast.rules.updated import RULES, Scaling, Updated, rule_of

__all__ = ["RULES", "SGD", "AdamW", "NAdam", "Rule", "Scaling", "Updated", "rule_of"]
