"""What a run comes to: one summary for each method, over its seeds."""

import statistics
from collections.abc import Sequence
from dataclasses import dataclass

from lip_fast.harness.experiment import Record, SeedResult

__all__ = ["Spread", "Summary", "summarise"]


@dataclass(frozen=True)
class Spread:
    """Mean and sample standard deviation over seeds; no deviation of a single seed."""

    mean: float
    sd: float | None


@dataclass(frozen=True)
class Summary:
    """One method.

    Attributes:
        last: test accuracy after the last epoch, a fraction.
        best: the highest test accuracy of any epoch; it looks at the test part, so it bounds what a
            perfect choice of the epoch would give.
        memorised: share of the wrong training labels predicted after the last epoch; None without any.
        step_seconds: median over all epochs of the mean step of an epoch. The mean counts the steps LIP
            leaves out (``every``), the median leaves out epochs in which the machine was disturbed.
        repair_seconds: median time of one repair after the training; None for a method that trains.
    """

    last: Spread
    best: Spread
    memorised: Spread | None
    step_seconds: float
    repair_seconds: float | None


def summarise(results: Sequence[SeedResult]) -> dict[str, Summary]:
    """Summaries by method.

    Args:
        results: of all seeds, at least one, with the same methods.
    """
    return {method: _summary([result.records[method] for result in results]) for method in results[0].records}


def _summary(records: Sequence[Record]) -> Summary:
    memorised = [r.memorised[-1] for r in records if r.memorised[-1] is not None]
    repairs = [seconds for r in records for seconds in r.repair_seconds]
    return Summary(
        last=_spread([r.test_accuracy[-1] for r in records]),
        best=_spread([max(r.test_accuracy) for r in records]),
        memorised=_spread(memorised) if memorised else None,
        step_seconds=statistics.median(seconds for r in records for seconds in r.step_seconds),
        repair_seconds=statistics.median(repairs) if repairs else None,
    )


def _spread(values: Sequence[float]) -> Spread:
    sd = statistics.stdev(values) if len(values) > 1 else None
    return Spread(statistics.fmean(values), sd)
