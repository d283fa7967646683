"""Confident learning: rows whose label looks wrong are left out before the training."""

import warnings
from collections.abc import Mapping
from typing import ClassVar

import torch
from torch import Tensor

from lip_fast.harness.algorithms.algorithm import CrossPredict
from lip_fast.harness.algorithms.cross_entropy import CrossEntropy

__all__ = ["ConfidentLearning"]


class ConfidentLearning(CrossEntropy):
    """Cross entropy on the rows that confident learning leaves, "prune by noise rate".

    From out-of-fold probabilities p it estimates how many rows of label i truly are of class j, and leaves
    out as many of label i: those with the largest p_j - p_i. Of no class are all rows left out.

    Source: Northcutt et al. 2021, "Confident Learning: Estimating Uncertainty in Dataset Labels"
    (arXiv:1911.00068); by the authors' library cleanlab, with its number of folds.

    Options:
        folds: whole number of at least 2, 5.
    """

    TITLE = "confident learning"
    OPTIONS: ClassVar = {"folds": 5}

    @classmethod
    def check(cls, options: Mapping[str, float]) -> None:
        """See the class."""
        folds = float(options["folds"])
        cls.expect("folds", folds, "a whole number of at least 2", folds.is_integer() and folds >= 2)

    @classmethod
    def choose_rows(
        cls, targets: Tensor, classes: int, options: Mapping[str, float], cross_predict: CrossPredict
    ) -> Tensor:
        """See the class and :meth:`Algorithm.choose_rows`."""
        from cleanlab.filter import find_label_issues  # takes a second, which others need not wait for

        probabilities = cross_predict(int(options["folds"]))
        with warnings.catch_warnings():
            # cleanlab warns of classes that at most one row has: no row of them is left out.
            warnings.filterwarnings("ignore", "May not flag all label issues in class", UserWarning)
            wrong = find_label_issues(
                targets.cpu().numpy(),
                probabilities.cpu().numpy(),
                filter_by="prune_by_noise_rate",
                n_jobs=1,  # processes of its own would cost more than they save
            )
        keep = ~torch.as_tensor(wrong, device=targets.device)
        for i in targets.unique().tolist():
            rows = (targets == i).nonzero().squeeze(1)
            if not keep[rows].any():
                keep[rows[probabilities[rows.to(probabilities.device), i].argmax()]] = True
        return keep.nonzero().squeeze(1)
