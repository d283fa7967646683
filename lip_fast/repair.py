"""Training-free repair of a trained linear head from label statistics."""

import copy
import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import NamedTuple

import torch
from torch import Tensor, nn

from lip_fast.functional import lip_path, select_rank
from lip_fast.head_input import remove_idle_hooks
from lip_fast.holdout import check_holdout, label_agreement
from lip_fast.linear_path import LinearPath, LinearWeight
from lip_fast.statistics import LabelStatistics
from lip_fast.targets import Targets
from lip_fast.validation import (
    FLOATS,
    check_finite,
    check_int,
    check_sequence,
    check_whole,
    describe,
    full_precision,
)

__all__ = ["METHODS", "Candidate", "RepairReport", "repair"]

METHODS = ("lip", "ridge", "pcr", "truncate", "auto")
# Of a parameter that counts directions at most so many values are tried, evenly spaced: their accuracies
# differ by less than the noise of the hold-out.
_MOST_COUNTS = 64
# Penalties relative to the mean eigenvalue of G: from none to one that leaves next to nothing.
_ALPHAS = tuple(10.0**e for e in torch.linspace(-7, 2, 20).tolist())


class Candidate(NamedTuple):
    """One head that was tried.

    Attributes:
        method: "trained" (the head as it was), "lip", "ridge", "pcr" or "truncate".
        parameter: directions kept, penalty, components or eigenvectors; None for "trained".
        score: agreement with the held-out labels; None without a hold-out.
    """

    method: str
    parameter: float | None
    score: float | None


@dataclass(frozen=True)
class RepairReport:
    """What :func:`repair` tried and what it took.

    Attributes:
        head: the repaired head: a new one, or the head itself where it was repaired in place.
        chosen: the candidate it is.
        candidates: all of them, "trained" first.
    """

    head: nn.Linear = field(repr=False)
    chosen: Candidate
    candidates: tuple[Candidate, ...] = field(repr=False)

    def best(self) -> dict[str, Candidate]:
        """The candidate of each method with the highest score."""
        best: dict[str, Candidate] = {}
        for candidate in self.candidates:
            held = best.get(candidate.method)
            if held is None or _rank(candidate) > _rank(held):
                best[candidate.method] = candidate
        return best

    def table(self) -> str:
        """The best candidate of each method as an aligned text table, the chosen one marked."""
        lines = [f"{'method':<10}{'parameter':>12}{'held-out labels':>18}{'tried':>8}"]
        for method, candidate in self.best().items():
            parameter = "" if candidate.parameter is None else f"{candidate.parameter:.4g}"
            score = "" if candidate.score is None else f"{100 * candidate.score:.2f}%"
            tried = sum(c.method == method for c in self.candidates)
            mark = "  <- chosen" if candidate == self.chosen else ""
            lines.append(f"{method:<10}{parameter:>12}{score:>18}{tried:>8}{mark}")
        return "\n".join(lines)


def _rank(candidate: Candidate) -> float:
    return -math.inf if candidate.score is None else candidate.score


class _Family(NamedTuple):
    """A method's candidates: what tells them apart, their hold-out logits in turn, and how to make one."""

    parameters: Sequence[float]
    logits: Callable[[Tensor], Iterator[Tensor]]
    make: Callable[[int], LinearWeight]


@full_precision
@torch.no_grad()
def repair(
    head: nn.Linear,
    stats: LabelStatistics,
    method: str = "lip",
    holdout: tuple[Tensor, Tensor] | None = None,
    *,
    parameters: Sequence[float] | None = None,
    inplace: bool = False,
) -> RepairReport:
    """Replace a trained head by one computed from label statistics, without training.

    ============== ======================================================= =========================
    method         head                                                    parameter
    ============== ======================================================= =========================
    ``"lip"``      top k directions kept, the rest refitted (2505.16159)   k, 0..min(l, q)
    ``"ridge"``    ridge regression on the labels (as in 2012.12896)       alpha
    ``"pcr"``      least squares on principal components of the features   their number, 0..q
    ``"truncate"`` the trained head on the leading eigenvectors of X^T X   their number, 0..q
    ``"auto"``     whichever of these does best, or the head as it is
    ============== ======================================================= =========================

    Candidates are compared by their agreement with held-out labels, which may be as noisy as the others. The
    heads of ridge and pcr have the scale of least squares, not of cross entropy: their predictions are
    comparable, their loss is not.

    Args:
        head: ``nn.Linear`` (l, q). Without a bias, ridge and pcr fit no intercept.
        stats: statistics of the features and labels, on the device of the head.
        method: as in the table.
        holdout: features (n, q) and labels, in any form :func:`lip_fast.lip` takes, that are not among the
            statistics. Not needed where there is but one candidate, nor by "lip", which then keeps 95% of
            ||M||_F^2.
        parameters: the candidates to try, in place of a grid of them; not with "auto".
        inplace: write weight and bias of ``head`` itself, after everything was computed.

    Returns:
        :class:`RepairReport`: the head, and every candidate with its score.

    Raises:
        TypeError, ValueError: an argument that does not fit, a hold-out that is missing, or a head that is
            not finite. Nothing has been written then.
    """
    _check_head(head, stats)
    if method not in METHODS:
        raise ValueError(f"expected method to be one of {METHODS}, got {method!r}")
    if method == "auto" and parameters is not None:
        raise ValueError("expected no parameters with method auto, got some")
    if inplace and head.weight.is_inference():
        raise ValueError(
            "expected a head that can be written with inplace, got one that was made inside of "
            "torch.inference_mode(): repair a copy of it (inplace=False)"
        )
    M, bias = head.weight.detach(), None if head.bias is None else head.bias.detach()
    rows = None
    if holdout is not None:
        rows = check_holdout(holdout, q=stats.q, l=stats.l, device=stats.device)
    elif method == "auto":
        raise ValueError("expected a hold-out for method auto, got None")

    if parameters is not None:
        check_sequence("parameters", parameters)
    if parameters is not None and not len(parameters):
        raise ValueError("expected at least one parameter, got none")
    methods = METHODS[:-1] if method == "auto" else (method,)
    families = {name: _family(name, M, bias, stats, parameters, rows is None) for name in methods}
    if rows is None and len(families[method].parameters) != 1:
        raise ValueError(
            f"expected a hold-out to choose among {len(families[method].parameters)} candidates, got None"
        )
    (trained,) = _scores(1, lambda X: iter([head(X.to(head.weight.dtype))]), rows)
    tried: list[tuple[Candidate, Callable[[], LinearWeight] | None]] = [
        (Candidate("trained", None, trained), None)
    ]
    for name, family in families.items():
        for i, score in enumerate(_scores(len(family.parameters), family.logits, rows)):
            tried.append((Candidate(name, float(family.parameters[i]), score), partial(family.make, i)))
    # Where only one method was asked for, the head as it was is shown, not chosen. The first of equals is
    # taken: the least change comes first in every family.
    chosen, make = max(tried[method != "auto" :], key=lambda each: _rank(each[0]))
    target = head if inplace else copy.deepcopy(head)
    remove_idle_hooks(target)
    if make is not None:
        # In the head's own dtype: what it cannot hold is seen before anything is written.
        made_M, made_bias = (part.to(target.weight.dtype) for part in make())
        check_finite(f"repaired weight in {made_M.dtype}", made_M)
        check_finite(f"repaired bias in {made_M.dtype}", made_bias)
        target.weight.copy_(made_M)
        if target.bias is not None:
            target.bias.copy_(made_bias)
    return RepairReport(target, chosen, tuple(candidate for candidate, _ in tried))


def _family(
    method: str,
    M: Tensor,
    bias: Tensor | None,
    stats: LabelStatistics,
    parameters: Sequence[float] | None,
    alone: bool,
) -> _Family:
    l, q = M.shape
    dtype = stats.dtype

    def counts(most: int) -> list[int]:
        """The numbers to try: unless told, most kept first, which is the least change."""
        given = _counts(most)[::-1] if parameters is None else parameters
        return [check_int(f"parameters of {method}", k, 0, most) for k in given]

    fixed_bias = torch.zeros(l, dtype=dtype, device=M.device) if bias is None else bias.to(dtype)
    if method == "lip":
        path = lip_path(M.mT.to(dtype), stats, bias=bias)
        if parameters is None and alone:
            parameters = [select_rank(path)]
        return _of_weights(counts(min(l, q)), lambda k: LinearWeight(path.weight(k).mT, fixed_bias))
    if method == "truncate":
        numbers, W = counts(q), M.to(dtype)
        V = stats.truncate(max(numbers, default=0))
        return _of_weights(numbers, lambda d: LinearWeight(W @ V[:, :d] @ V[:, :d].mT, fixed_bias))
    if method == "ridge":
        intercept = bias is not None
        scale = stats.mean_eigenvalue(intercept=intercept)
        alphas = [a * scale for a in _ALPHAS] if parameters is None else parameters
        return _of_path(stats.ridge_path(alphas, intercept=intercept))
    return _of_path(stats.pcr_path(counts(q), intercept=bias is not None))


def _of_path(path: LinearPath) -> _Family:
    return _Family(path.parameters, path.logits, path.__getitem__)


def _of_weights(parameters: Sequence[int], make: Callable[[int], LinearWeight]) -> _Family:
    def logits(X: Tensor) -> Iterator[Tensor]:
        for parameter in parameters:
            M, bias = make(parameter)
            yield X.to(M.dtype) @ M.mT + bias

    return _Family(parameters, logits, lambda i: make(parameters[i]))


def _counts(most: int) -> list[int]:
    """0..most, or ``_MOST_COUNTS`` of them."""
    if most < _MOST_COUNTS:
        return list(range(most + 1))
    return sorted({round(most * i / (_MOST_COUNTS - 1)) for i in range(_MOST_COUNTS)})


def _scores(
    count: int, logits: Callable[[Tensor], Iterator[Tensor]], rows: tuple[Tensor, Targets] | None
) -> Iterator[float | None]:
    """The agreement of each of ``count`` candidates with held-out labels; None without any."""
    if rows is None:
        yield from [None] * count
        return
    X, targets = rows
    for each in logits(X):
        yield label_agreement(each, targets)


def _check_head(head: nn.Linear, stats: LabelStatistics) -> None:
    if not isinstance(head, nn.Linear) or head.weight.dtype not in FLOATS:
        advice = ": pass its last layer" if isinstance(head, nn.Module) and any(head.children()) else ""
        raise TypeError(f"expected a floating-point nn.Linear, got {describe(head)}{advice}")
    if nn.parameter.is_lazy(head.weight):
        raise ValueError("expected a trained head, got a lazy one that has seen no input")
    if not isinstance(stats, LabelStatistics):
        raise TypeError(
            f"expected LabelStatistics, got {describe(stats)}: pass "
            "LabelStatistics.for_head(head.weight).update(features, labels)"
        )
    check_whole("the weight of the head", head.weight)
    l, q = head.weight.shape
    stats.check_shape(q, l)
    if stats.device != head.weight.device:
        raise ValueError(
            f"expected statistics on {head.weight.device}, where the head is, got {stats.device}"
        )
    stats.check_rows()
    for name, parameter in head.named_parameters():
        check_finite(f"{name} of the head", parameter)
