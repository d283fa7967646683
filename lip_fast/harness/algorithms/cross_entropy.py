"""Cross entropy: what most networks minimise, and what every other algorithm is measured against."""

from lip_fast.harness.algorithms.label_loss import LabelLoss

__all__ = ["CrossEntropy"]


class CrossEntropy(LabelLoss):
    """L = -log p_y, the mean over the batch, with p = softmax(logits).

    Source: the baseline of all the others; that networks learn wrong labels by heart with it is shown by
    Zhang et al. 2017, "Understanding deep learning requires rethinking generalization" (arXiv:1611.03530).
    """

    TITLE = "cross entropy"
    LABELS = ("indices",)
