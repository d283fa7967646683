"""LIP inside the optimizer step: classifiers that survive wrong labels, at almost no cost."""

from lip_fast import reference
from lip_fast.functional import LIPPath, lip, lip_path, randomized_svd, select_rank
from lip_fast.plugin import LIP, LIPError
from lip_fast.repair import RepairReport, repair
from lip_fast.statistics import LabelStatistics

__all__ = [
    "LIP",
    "LIPError",
    "LIPPath",
    "LabelStatistics",
    "RepairReport",
    "lip",
    "lip_path",
    "randomized_svd",
    "reference",
    "repair",
    "select_rank",
]
