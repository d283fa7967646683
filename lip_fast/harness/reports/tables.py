"""The tables of a report, made from the results of many runs."""

import statistics
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from lip_fast.harness.repairs.posthoc import RULES
from lip_fast.harness.reports.collect import Result
from lip_fast.harness.runs.paired import Difference, holm, paired_difference
from lip_fast.harness.runs.records import Record
from lip_fast.harness.runs.summary import SELECTIONS, selected, summarise
from lip_fast.harness.runs.table import percent
from lip_fast.harness.settings.train import METHODS, OF_PLAIN

__all__ = ["LEVEL", "Comparison", "Table", "comparisons", "plain_numbers", "tables_of", "titles_of"]

# A difference is marked if its p-value, adjusted for the number of differences in the report, is below this.
LEVEL = 0.05


# Settings that have a place of their own in the tables, so that titles need not name them.
_SHOWN = ("data", "methods")


@dataclass(frozen=True)
class Table:
    """One table.

    Attributes:
        title: what it shows.
        note: how to read it.
        header: names of the columns; the first ``names`` of them hold names, the others numbers.
        rows: cells as text.
        names: number of columns with names.
    """

    title: str
    note: str
    header: tuple[str, ...]
    rows: list[tuple[str, ...]]
    names: int = 2


@dataclass(frozen=True)
class Comparison:
    """A method against plain training, on the same seeds.

    Attributes:
        difference: of the test accuracies after the last epoch.
        adjusted: its p-value, adjusted for the number of comparisons; None of a single seed.
    """

    difference: Difference
    adjusted: float | None

    @property
    def significant(self) -> bool:
        """Whether the adjusted p-value is below :data:`LEVEL`."""
        return self.adjusted is not None and self.adjusted < LEVEL


def comparisons(results: Sequence[Result]) -> dict[tuple[int, str], Comparison]:
    """Every method against plain training, by the place of the result and the method."""
    differences = {
        (place, method): paired_difference(_last(result, method), _last(result, "plain"))
        for place, result in enumerate(results)
        for method in _methods(result)
        if method != "plain" and "plain" in _methods(result)
    }
    tested = [key for key, difference in differences.items() if difference.p is not None]
    adjusted = dict(zip(tested, holm([_p(differences[key]) for key in tested]), strict=True))
    return {key: Comparison(difference, adjusted.get(key)) for key, difference in differences.items()}


def titles_of(results: Sequence[Result]) -> list[str]:
    """The name of each result's algorithm, with the settings in which it differs from others of that name."""
    alike: dict[tuple[str, str, str], list[Result]] = {}
    for result in results:
        alike.setdefault((result.data, result.labels, result.algorithm), []).append(result)
    titles = []
    for result in results:
        settings = [other.config.as_dict() for other in alike[result.data, result.labels, result.algorithm]]
        own = result.config.as_dict()
        differing = [
            f"{name} {own[name]}"
            for name in own
            if name not in _SHOWN and any(s[name] != own[name] for s in settings)
        ]
        titles.append(result.algorithm + (f" ({', '.join(differing)})" if differing else ""))
    return titles


def tables_of(results: Sequence[Result]) -> list[Table]:
    """All tables that there are data for."""
    tables = [_accuracies(results), _selections(results), _rules(results), _costs(results)]
    return [table for table in tables if table.rows]


def plain_numbers(results: Sequence[Result]) -> list[dict[str, Any]]:
    """What the tables are made from, as plain values for JSON: one entry for each row."""
    compared = comparisons(results)
    return [
        {
            "name": result.name,
            "data": result.data,
            "labels": result.labels,
            "algorithm": result.algorithm,
            "seconds": result.seconds,
            "seeds": list(result.seeds),
            "methods": {
                method: {
                    **{
                        name: [getattr(selected(records[method]), name) for records in result.seeds.values()]
                        for name in SELECTIONS
                    },
                    "adjusted_p": compared[place, method].adjusted if (place, method) in compared else None,
                }
                for method in _methods(result)
            },
        }
        for place, result in enumerate(results)
    ]


# Tables ----------------------------------------------------------------------------------------------


def _accuracies(results: Sequence[Result]) -> Table:
    compared = comparisons(results)
    methods = [method for method in METHODS if any(method in _methods(result) for result in results)]
    rows: list[tuple[str, ...]] = []
    titles = titles_of(results)
    for place, result in enumerate(results):
        summaries = summarise(list(result.seeds.values()))
        cells = [f"{result.data}, {result.labels}", titles[place], str(len(result.seeds))]
        for method in methods:
            if method not in summaries:
                cells.append("")
            elif (place, method) not in compared:
                cells.append(percent(summaries[method].last))
            else:
                cells.append(_gain(compared[place, method]))
        rows.append(tuple(cells))
    note = (
        "Test accuracy after the last epoch in %, mean ± standard deviation over seeds. Of other methods: "
        "the difference to plain training in points, paired seed by seed, with its 95% confidence interval "
        "(Student's t). Bold: significant at 5% after Holm's correction for all differences of this table. "
        "What it speaks of are other noise, splits and initialisations of these data, not other data."
    )
    header = ("data", "algorithm", "seeds", *(METHODS[method] for method in methods))
    return Table("Accuracy, and what LIP and the repairs add", note, header, rows)


def _selections(results: Sequence[Result]) -> Table:
    rows: list[tuple[str, ...]] = []
    titles = titles_of(results)
    for place, result in enumerate(results):
        for method, summary in summarise(list(result.seeds.values())).items():
            spreads = (getattr(summary, name) for name in SELECTIONS)
            rows.append(
                (
                    f"{result.data}, {result.labels}",
                    titles[place],
                    METHODS[method],
                    *map(percent, spreads),
                    percent(summary.memorised),
                )
            )
    note = (
        "Test accuracy in % by how the epoch is taken. Held-out labels are wrong as often as others; "
        "the best epoch is known to the test part alone, and shown as a bound. Last column: wrong training "
        "labels that are predicted after the last epoch."
    )
    header = ("data", "algorithm", "method", *SELECTIONS.values(), "wrong labels fitted")
    return Table("Which epoch", note, header, rows, names=3)


def _rules(results: Sequence[Result]) -> Table:
    rows: list[tuple[str, ...]] = []
    titles = titles_of(results)
    for place, result in enumerate(results):
        paths = [
            (records["post-hoc"].path, selected(records["plain"]).last)
            for records in result.seeds.values()
            if "post-hoc" in records and records["post-hoc"].path and "plain" in records
        ]
        if not paths:
            continue
        cells = [f"{result.data}, {result.labels}", titles[place]]
        for rule in RULES:
            if not all(rule in path["rules"] for path, _ in paths):
                cells.append("")
                continue
            taken = [path["rules"][rule] for path, _ in paths]
            gains = [
                100 * (path["test_accuracy"][path["ranks"].index(rank)] - plain)
                for (path, plain), rank in zip(paths, taken, strict=True)
            ]
            cells.append(f"{statistics.fmean(gains):+.1f} (k = {_range(taken)})")
        best = [max(zip(path["test_accuracy"], path["ranks"], strict=True)) for path, _ in paths]
        gains = [100 * (top[0] - plain) for top, (_, plain) in zip(best, paths, strict=True)]
        cells.append(f"{statistics.fmean(gains):+.1f} (k = {_range([top[1] for top in best])})")
        rows.append(tuple(cells))
    note = (
        "What LIP once after the training adds to the last epoch's test accuracy, in points, by how its rank "
        "k is taken: a fraction of all directions, 95% of the energy of the head, Gavish and Donoho's "
        "threshold, agreement with held-out noisy labels; and the best k there is, which the test part alone "
        "knows."
    )
    return Table("Which rank", note, ("data", "algorithm", *RULES, "best"), rows)


def _costs(results: Sequence[Result]) -> Table:
    rows: list[tuple[str, ...]] = []
    titles = titles_of(results)
    for place, result in enumerate(results):
        for method, summary in summarise(list(result.seeds.values())).items():
            base = summary.step_seconds - summary.lip_seconds
            trained = method not in OF_PLAIN
            rows.append(
                (
                    f"{result.data}, {result.labels}",
                    titles[place],
                    METHODS[method],
                    f"{1e6 * base:.0f} µs" if trained else "",
                    f"{1e6 * summary.lip_seconds:.0f} µs" if summary.lip_seconds > 0 and trained else "",
                    "" if summary.repair_seconds is None else f"{1e3 * summary.repair_seconds:.1f} ms",
                )
            )
    note = (
        "Medians over epochs and seeds: a step of the base optimizer, what LIP adds to it in the very same "
        "steps, and one repair after the training."
    )
    header = ("data", "algorithm", "method", "base step", "LIP adds", "once afterwards")
    return Table("What it costs", note, header, rows, names=3)


def _gain(comparison: Comparison) -> str:
    difference = comparison.difference
    text = f"{100 * difference.mean:+.1f}"
    if difference.low is None or difference.high is None:
        return text
    text = f"{text} [{100 * difference.low:+.1f}, {100 * difference.high:+.1f}]"
    return f"**{text}**" if comparison.significant else text


def _range(values: Iterable[int]) -> str:
    values = sorted(set(values))
    return str(values[0]) if len(values) == 1 else f"{values[0]}-{values[-1]}"


def _methods(result: Result) -> list[str]:
    first: dict[str, Record] = next(iter(result.seeds.values()))
    return list(first)


def _last(result: Result, method: str) -> list[float]:
    return [selected(records[method]).last for records in result.seeds.values()]


def _p(difference: Difference) -> float:
    assert difference.p is not None
    return difference.p
