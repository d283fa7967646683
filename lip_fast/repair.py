"""Training-free repair of a trained linear head from label statistics."""

import copy
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import NamedTuple

import torch
from torch import Tensor, nn

from lip_fast.functional import lip_path, select_rank
from lip_fast.gaussian import gaussian_head, gaussian_path, spread
from lip_fast.head_input import remove_idle_hooks
from lip_fast.holdout import check_holdout, row_agreement
from lip_fast.linear_path import LinearPath, LinearWeight, pcr_path, ridge_path
from lip_fast.moments import Centred
from lip_fast.statistics import LabelStatistics
from lip_fast.targets import Targets
from lip_fast.validation import (
    FLOATS,
    check_finite,
    check_int,
    check_number,
    check_sequence,
    check_whole,
    describe,
    full_precision,
)

__all__ = ["ERRORS", "GAUSSIAN", "METHODS", "Candidate", "RepairReport", "repair"]

METHODS = ("gaussian", "gaussian+trained", "gaussian-path", "ridge", "pcr", "lip", "truncate", "auto")
# Gaussian heads, and what starts from one: each has a bias even where the trained head has none, needs label
# weights that sum to 1 in each row, and may assume a rate of noise.
GAUSSIAN = ("gaussian", "gaussian+trained", "gaussian-path", "auto")
# What "auto" takes a candidate from, where the hold-out prefers it to the Gaussian head.
_AUTO = ("gaussian", "ridge", "pcr", "lip", "gaussian-path")
# By how many standard errors the hold-out has to prefer another candidate. On 40 settings of data, noise and
# network a candidate of the hundred was better by one standard error by chance too often: up to 9 points were
# lost. With two the mean is as good, and the most that was lost is 2 points.
ERRORS = 2
# Of a parameter that counts directions at most so many values are tried, evenly spaced: their accuracies
# differ by less than the noise of the hold-out.
_MOST_COUNTS = 32
# Penalties relative to the mean eigenvalue of G: from none to one that leaves next to nothing.
_ALPHAS = tuple(10.0**e for e in torch.linspace(-7, 2, 20).tolist())
# Of the Gaussian head: the best on average over 20 settings of three data sets and five kinds of noise.
_GAUSSIAN_ALPHA = 0.3
# On the path: of 0.01 to 3 and 0 to 0.7 the best member lay among these, or within a point of them, in all of
# 20 settings of four data sets; more penalties gave a hold-out no better choice.
_PATH_ALPHAS = (0.1, 0.3, 1.0)
_PATH_RATES = (0.0, 0.3, 0.5)


class Candidate(NamedTuple):
    """One head that was tried.

    Attributes:
        method: "trained" (the head as it was), or one of those of :func:`repair`.
        parameter: directions kept, penalty, components or eigenvectors; None for "trained".
        score: agreement with the held-out labels; None without a hold-out.
        noise_rate: that a Gaussian head assumes; None for the others.
    """

    method: str
    parameter: float | None
    score: float | None
    noise_rate: float | None = None


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
        """The best candidate of each method as an aligned text table, and the chosen one, marked."""
        lines = [f"{'method':<16}{'parameter':>18}{'held-out labels':>18}{'tried':>8}"]
        for method, best in self.best().items():
            shown = [best] if best == self.chosen or self.chosen.method != method else [best, self.chosen]
            for candidate in shown:
                parameter = "" if candidate.parameter is None else f"{candidate.parameter:.4g}"
                if candidate.noise_rate:
                    parameter += f", rate {candidate.noise_rate:g}"
                score = "" if candidate.score is None else f"{100 * candidate.score:.2f}%"
                tried = sum(c.method == method for c in self.candidates) if candidate is best else ""
                mark = "  <- chosen" if candidate == self.chosen else ""
                lines.append(f"{method:<16}{parameter:>18}{score:>18}{tried:>8}{mark}".rstrip())
        return "\n".join(lines)


def _rank(candidate: Candidate) -> float:
    return -math.inf if candidate.score is None else candidate.score


class _Member(NamedTuple):
    """A candidate that can be made: its parameters, and the head."""

    parameter: float
    make: Callable[[], LinearWeight]
    noise_rate: float | None = None


class _Family(NamedTuple):
    """The candidates of a method, and their logits on hold-out features in turn."""

    members: Sequence[_Member]
    logits: Callable[[Tensor], Iterator[Tensor]]


class _Tried(NamedTuple):
    """A candidate, its agreement with each held-out label, and how to make it; None for the head as it is."""

    candidate: Candidate
    agreement: Tensor | None
    make: Callable[[], LinearWeight] | None


@full_precision
@torch.no_grad()
def repair(
    head: nn.Linear,
    stats: LabelStatistics,
    method: str = "gaussian",
    holdout: tuple[Tensor, Tensor] | None = None,
    *,
    parameters: Sequence[float] | None = None,
    noise_rate: float | None = None,
    inplace: bool = False,
) -> RepairReport:
    """Replace a trained head by one computed from label statistics, without training.

    ====================== =================================================== =========================
    method                 head                                                parameter
    ====================== =================================================== =========================
    ``"gaussian"``         linear discriminant analysis with a penalty         alpha, 0.3 unless told
    ``"gaussian+trained"`` its logits and those of the trained head together   alpha, 0.3 unless told
    ``"gaussian-path"``    that with correlations freed of chance              alpha, and a rate of noise
    ``"ridge"``            ridge regression on the labels (as in 2012.12896)   alpha
    ``"pcr"``              least squares on principal components               their number, 0..q
    ``"lip"``              top k directions kept, the rest refitted            k, 0..min(l, q)
                           (2505.16159)
    ``"truncate"``         the trained head on leading eigenvectors of X^T X   their number, 0..q
    ``"auto"``             the Gaussian head, unless the hold-out tells that
                           another is better
    ====================== =================================================== =========================

    The Gaussian head (:meth:`LabelStatistics.gaussian`) needs no hold-out and sees through wrong labels best
    on average. "gaussian+trained" adds to its logits those of the trained head, brought to the same spread
    over the rows: for heads that have learned before wrong labels were learned by heart.

    Other methods compare candidates by their agreement with held-out labels, which may be as noisy as the
    others. "auto" starts from the Gaussian head and takes another candidate (of ridge, pcr, lip,
    gaussian-path, or the head as it was) only where it agrees better by more than two standard errors of the
    difference, seen row by row. The heads of ridge and pcr have the scale of least squares, not of cross
    entropy: their predictions are comparable, their loss is not.

    Args:
        head: ``nn.Linear`` (l, q). Without a bias, ridge and pcr fit no intercept; where it becomes a
            Gaussian head, the returned copy has one.
        stats: statistics of the features and labels, on the device of the head.
        method: as in the table.
        holdout: features (n, q) and labels, in any form :func:`lip_fast.lip` takes, that are not among the
            statistics. Not needed where there is but one candidate, as of "gaussian", nor by "auto", which
            then is "gaussian", nor by "lip", which then keeps 95% of ||M||_F^2.
        parameters: the candidates to try, in place of a grid of them; not with "auto".
        noise_rate: what the Gaussian heads assume, see :meth:`LabelStatistics.gaussian`. Unless told 0;
            "gaussian-path" and "auto" then try 0, 0.3 and 0.5 on the path.
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
    if noise_rate is not None:
        check_number("noise_rate", noise_rate)
    if noise_rate is not None and method not in GAUSSIAN:
        raise ValueError(f"expected noise_rate with {', '.join(GAUSSIAN)}, got {noise_rate} with {method}")
    if inplace and head.weight.is_inference():
        raise ValueError(
            "expected a head that can be written with inplace, got one that was made inside of "
            "torch.inference_mode(): repair a copy of it (inplace=False)"
        )
    if inplace and head.bias is None and method in GAUSSIAN:
        raise ValueError(
            f"expected a head with a bias, which method {method} needs, to be written with inplace, got one "
            "without: repair a copy of it (inplace=False)"
        )
    rows = None
    if holdout is not None:
        rows = check_holdout(holdout, q=stats.q, l=stats.l, device=stats.device)
    if parameters is not None:
        check_sequence("parameters", parameters)
    if parameters is not None and not len(parameters):
        raise ValueError("expected at least one parameter, got none")
    # Without a hold-out there is nothing to choose by: the Gaussian head is what "auto" starts from.
    methods = (method,) if method != "auto" else ("gaussian",) if rows is None else _AUTO
    given = _Given.of(head, stats)
    families = {name: _family(name, given, parameters, noise_rate, rows is None) for name in methods}
    if rows is None and len(families[methods[0]].members) != 1:
        raise ValueError(
            f"expected a hold-out to choose among {len(families[method].members)} candidates, got None"
        )
    tried = list(_tried(head, families, rows))
    chosen = _best(tried) if method != "auto" else _better_than_gaussian(tried)
    target = head if inplace else copy.deepcopy(head)
    remove_idle_hooks(target)
    if chosen.make is not None:
        # In the head's own dtype: what it cannot hold is seen before anything is written.
        made = chosen.make()
        M = made.M.to(target.weight.dtype)
        bias = made.to((target.weight if target.bias is None else target.bias).dtype).bias
        check_finite(f"repaired weight in {M.dtype}", M)
        check_finite(f"repaired bias in {bias.dtype}", bias)
        target.weight.copy_(M)
        if target.bias is not None:
            target.bias.copy_(bias)
        elif bool(bias.any()):
            target.bias = nn.Parameter(bias, requires_grad=target.weight.requires_grad)
    return RepairReport(target, chosen.candidate, tuple(each.candidate for each in tried))


def _tried(
    head: nn.Linear, families: Mapping[str, _Family], rows: tuple[Tensor, Targets] | None
) -> Iterator[_Tried]:
    """The head as it is, and every candidate, scored where there is a hold-out."""

    def scored(method: str, member: _Member | None, logits: Tensor | None) -> _Tried:
        agreement = None if logits is None or rows is None else row_agreement(logits, rows[1])
        score = None if agreement is None else float(agreement.mean())
        if member is None:
            return _Tried(Candidate(method, None, score), agreement, None)
        candidate = Candidate(method, float(member.parameter), score, member.noise_rate)
        return _Tried(candidate, agreement, member.make)

    yield scored("trained", None, None if rows is None else head(rows[0].to(head.weight.dtype)))
    for name, family in families.items():
        logits = [None] * len(family.members) if rows is None else family.logits(rows[0])
        for member, each in zip(family.members, logits, strict=True):
            yield scored(name, member, each)


def _best(tried: Sequence[_Tried]) -> _Tried:
    """The candidate that agrees best: of equals the first, the least change of the head.

    Where only one method was asked for, the head as it was is shown, not chosen.
    """
    return max(tried[1:], key=lambda each: _rank(each.candidate))


def _better_than_gaussian(tried: Sequence[_Tried]) -> _Tried:
    """The Gaussian head, or the best of those that agree better by more than ``ERRORS`` standard errors."""
    start = next(each for each in tried if each.candidate.method == "gaussian")
    if start.agreement is None:
        return start
    better = [start]
    for each in tried:
        assert each.agreement is not None
        difference = each.agreement - start.agreement
        # As if neither were better (McNemar's test): few rows that differ, all alike, are no evidence.
        error = torch.linalg.vector_norm(difference) / len(difference)
        if bool(difference.mean() > ERRORS * error):
            better.append(each)
    return max(better, key=lambda each: _rank(each.candidate))


class _Given(NamedTuple):
    """What the candidates are made of: the head M (l, q) and bias (l,), 0 where it has none, and the rows.

    ``regressed`` are those of ridge and pcr, which fit no intercept for a head without a bias.
    """

    M: Tensor
    bias: Tensor
    has_bias: bool
    stats: LabelStatistics
    centred: Centred
    regressed: Centred

    @classmethod
    def of(cls, head: nn.Linear, stats: LabelStatistics) -> "_Given":
        """In the dtype of the statistics."""
        M, has_bias = head.weight.detach().to(stats.dtype), head.bias is not None
        bias = head.bias.detach().to(M) if has_bias else M.new_zeros(len(M))
        centred = stats.centred()
        # One decomposition serves all that are made of the same sums.
        return cls(M, bias, has_bias, stats, centred, centred if has_bias else stats.centred(intercept=False))


def _family(
    method: str, given: _Given, parameters: Sequence[float] | None, noise_rate: float | None, alone: bool
) -> _Family:
    """The candidates of a method; one, where it has a rule of its own and is ``alone``: without hold-out."""
    M, bias, dtype = given.M, given.bias, given.M.dtype
    l, q = M.shape

    def counts(most: int) -> list[int]:
        """The numbers to try: unless told, most kept first, which is the least change."""
        tried = _counts(most)[::-1] if parameters is None else parameters
        return [check_int(f"parameters of {method}", k, 0, most) for k in tried]

    if method in ("gaussian", "gaussian+trained"):
        alphas = [_GAUSSIAN_ALPHA] if parameters is None else parameters
        rate = 0.0 if noise_rate is None else float(noise_rate)
        made = [gaussian_head(given.centred, alpha, rate, dtype, None) for alpha in alphas]
        if method == "gaussian+trained":
            made = [_together(each, given) for each in made]
        return _of_weights(alphas, made.__getitem__, rate)
    if method == "gaussian-path":
        alphas = _PATH_ALPHAS if parameters is None else parameters
        rates = _PATH_RATES if noise_rate is None else (noise_rate,)
        path = gaussian_path(given.centred, alphas, rates, dtype, None)
        members = [
            _Member(alpha, partial(path.__getitem__, i), rate)
            for i, (alpha, rate) in enumerate(path.parameters)
        ]
        return _Family(members, path.logits)
    if method == "lip":
        lip = lip_path(M.mT, given.stats, bias=bias if given.has_bias else None)
        if parameters is None and alone:
            parameters = [select_rank(lip)]
        ks = counts(min(l, q))
        return _of_weights(ks, lambda i: LinearWeight(lip.weight(ks[i]).mT, bias))
    if method == "truncate":
        numbers = counts(q)
        V = given.stats.truncate(max(numbers, default=0))
        return _of_weights(
            numbers, lambda i: LinearWeight(M @ V[:, : numbers[i]] @ V[:, : numbers[i]].mT, bias)
        )
    if method == "ridge":
        scale = float(given.regressed.G.diagonal().mean())
        alphas = [a * scale for a in _ALPHAS] if parameters is None else parameters
        return _of_path(ridge_path(given.regressed, alphas, dtype, None))
    return _of_path(pcr_path(given.regressed, counts(q), dtype, None))


def _together(gaussian: LinearWeight, given: _Given) -> LinearWeight:
    """The logits of both heads, those of the trained one with the spread of the others."""
    trained = spread(given.centred, given.M)
    scale = spread(given.centred, gaussian.M) / trained if trained > 0 else 0.0
    return LinearWeight(gaussian.M + scale * given.M, gaussian.bias + scale * given.bias)


def _of_path(path: LinearPath) -> _Family:
    members = [_Member(each, partial(path.__getitem__, i)) for i, each in enumerate(path.parameters)]
    return _Family(members, path.logits)


def _of_weights(
    parameters: Sequence[float], make: Callable[[int], LinearWeight], noise_rate: float | None = None
) -> _Family:
    members = [_Member(each, partial(make, i), noise_rate) for i, each in enumerate(parameters)]

    def logits(X: Tensor) -> Iterator[Tensor]:
        for member in members:
            M, bias = member.make()
            yield X.to(M.dtype) @ M.mT + bias

    return _Family(members, logits)


def _counts(most: int) -> list[int]:
    """0..most, or ``_MOST_COUNTS`` of them."""
    if most < _MOST_COUNTS:
        return list(range(most + 1))
    return sorted({round(most * i / (_MOST_COUNTS - 1)) for i in range(_MOST_COUNTS)})


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
    own = dict(head.named_parameters(recurse=False))
    if "weight" not in own or (head.bias is not None and "bias" not in own):
        raise ValueError(
            "expected a head whose weight and bias are its own parameters, got one that computes them in "
            "each call (weight_norm, spectral_norm, prune): remove that first"
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
