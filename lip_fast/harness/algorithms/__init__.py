"""Algorithms for wrong labels, one in each module; the registry that settings name them by."""

from lip_fast.harness.algorithms.algorithm import Algorithm, CrossPredict, Task
from lip_fast.harness.algorithms.cc import ClassifierConsistent
from lip_fast.harness.algorithms.clean_head import CleanHead
from lip_fast.harness.algorithms.confident_learning import ConfidentLearning
from lip_fast.harness.algorithms.cross_entropy import CrossEntropy
from lip_fast.harness.algorithms.elr import EarlyLearningRegularization
from lip_fast.harness.algorithms.gce import GeneralizedCrossEntropy
from lip_fast.harness.algorithms.linear_ridge import LinearRidge
from lip_fast.harness.algorithms.nvrm import NeuralVariability
from lip_fast.harness.algorithms.pl_knn import NearestCandidates
from lip_fast.harness.algorithms.proden import ProgressiveIdentification
from lip_fast.harness.algorithms.sce import SymmetricCrossEntropy
from lip_fast.harness.algorithms.truncation import SpectralTruncation

__all__ = ["ALGORITHMS", "AUTO", "Algorithm", "CrossPredict", "Task", "resolved"]

ALGORITHMS: dict[str, type[Algorithm]] = {
    "cross-entropy": CrossEntropy,
    "gce": GeneralizedCrossEntropy,
    "sce": SymmetricCrossEntropy,
    "elr": EarlyLearningRegularization,
    "nvrm": NeuralVariability,
    "confident-learning": ConfidentLearning,
    "clean-head": CleanHead,
    "truncation": SpectralTruncation,
    "cc": ClassifierConsistent,
    "proden": ProgressiveIdentification,
    "pl-knn": NearestCandidates,
    "linear-ridge": LinearRidge,
}
# The name that stands for cross entropy, or CC where the labels are candidate sets.
AUTO = "auto"


def resolved(name: str, *, candidates: bool) -> str:
    """The algorithm that a setting names, for labels that are ``candidates`` sets or class indices."""
    if name == AUTO:
        return "cc" if candidates else "cross-entropy"
    return name
