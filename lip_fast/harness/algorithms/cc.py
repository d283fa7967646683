"""CC: the classifier-consistent loss of candidate sets."""

from lip_fast.harness.algorithms.label_loss import LabelLoss

__all__ = ["ClassifierConsistent"]


class ClassifierConsistent(LabelLoss):
    """L = -log sum_{j in S} p_j: the probability of all candidates S together.

    Source: Feng et al. 2020, "Provably Consistent Partial-Label Learning" (arXiv:2007.08929), equation 8.
    With one candidate each it is cross entropy.
    """

    TITLE = "CC"
    LABELS = ("candidates",)
