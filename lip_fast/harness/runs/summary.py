"""The summary of a run: for each method, means over its seeds."""

import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

from lip_fast.harness.runs.paired import Difference, paired_difference
from lip_fast.harness.runs.records import Record

__all__ = ["SELECTIONS", "Selected", "Spread", "Summary", "selected", "spread_of", "summarise"]

# Number of epochs in the mean of the last ones.
_LAST = 5
# The ways to take an epoch, whose test accuracy then counts, with the names that tables give them.
SELECTIONS = {
    "last": "last epoch",
    "last_five": "mean of last five",
    "chosen": "chosen by held-out labels",
    "best": "best epoch (looks at the test part)",
}


@dataclass(frozen=True)
class Spread:
    """Mean and sample standard deviation over seeds; of a single seed the deviation is None."""

    mean: float
    sd: float | None


@dataclass(frozen=True)
class Summary:
    """One method.

    Attributes:
        last: test accuracy after the last epoch, a fraction.
        last_five: its mean over the last five epochs; None where one of them was not scored.
        chosen: after the epoch that agrees best with held-out labels, noisy as they are, the latest of
            equals; None without a hold-out.
        best: the highest of any scored epoch; it looks at the test part, so it bounds what a perfect choice
            of the epoch would give.
        gain: what ``last`` gains on plain training, seed by seed; None for that itself, and where it is not
            known.
        memorised: share of the wrong training labels predicted after the last epoch; None without any.
        step_seconds: median over all epochs of the mean step of an epoch. The mean counts the steps LIP
            leaves out (``every``), the median leaves out epochs in which the machine was disturbed.
        lip_seconds: likewise, LIP's part of it.
        repair_seconds: median time of one repair after the training, label statistics included; None for a
            method that trains.
    """

    last: Spread
    last_five: Spread | None
    chosen: Spread | None
    best: Spread
    gain: Difference | None
    memorised: Spread | None
    step_seconds: float
    lip_seconds: float
    repair_seconds: float | None


class Selected(NamedTuple):
    """The test accuracy of one seed by how the epoch is taken, see :class:`Summary` and ``SELECTIONS``."""

    last: float
    last_five: float | None
    chosen: float | None
    best: float


def selected(record: Record) -> Selected:
    """The test accuracies of a record by how the epoch is taken."""
    accuracy, epoch = record.test_accuracy, record.chosen_epoch
    last = [value for value in accuracy[-_LAST:] if value is not None]
    return Selected(
        last=last[-1],
        last_five=statistics.fmean(last) if len(last) == len(accuracy[-_LAST:]) else None,
        chosen=None if epoch is None else accuracy[epoch],
        best=max(value for value in accuracy if value is not None),
    )


def summarise(seeds: Sequence[Mapping[str, Record]]) -> dict[str, Summary]:
    """Summaries by method.

    Args:
        seeds: the records of each seed by method, at least one, with the same methods.
    """
    plain = [selected(records["plain"]).last for records in seeds] if "plain" in seeds[0] else None
    return {
        method: _summary([records[method] for records in seeds], plain if method != "plain" else None)
        for method in seeds[0]
    }


def _summary(records: Sequence[Record], plain: Sequence[float] | None) -> Summary:
    accuracies = [selected(record) for record in records]
    memorised = [r.memorised[-1] for r in records if r.memorised[-1] is not None]
    repairs = [seconds for r in records for seconds in r.repair_seconds]
    return Summary(
        last=spread_of([a.last for a in accuracies]),
        last_five=_of_all([a.last_five for a in accuracies]),
        chosen=_of_all([a.chosen for a in accuracies]),
        best=spread_of([a.best for a in accuracies]),
        gain=None if plain is None else paired_difference([a.last for a in accuracies], plain),
        memorised=spread_of(memorised) if memorised else None,
        step_seconds=statistics.median(seconds for r in records for seconds in r.step_seconds),
        lip_seconds=statistics.median(seconds for r in records for seconds in r.lip_seconds),
        repair_seconds=statistics.median(repairs) if repairs else None,
    )


def _of_all(values: Sequence[float | None]) -> Spread | None:
    """The spread; None where a seed has no value."""
    known = [value for value in values if value is not None]
    return spread_of(known) if len(known) == len(values) else None


def spread_of(values: Sequence[float]) -> Spread:
    """Mean and deviation of one value for each seed."""
    sd = statistics.stdev(values) if len(values) > 1 else None
    return Spread(statistics.fmean(values), sd)
