"""The tables of a report, made from the results of many runs."""

import dataclasses
import itertools
import statistics
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from fnmatch import fnmatch
from typing import Any

from lip_fast.cli.errors import UserError, unknown_name
from lip_fast.harness.repairs.posthoc import RULES
from lip_fast.harness.reports.collect import Result, settings_apart
from lip_fast.harness.reports.problems import (
    MOMENTS,
    Comparison,
    Problem,
    adjusted,
    columns_of,
    compared,
    problems_of,
)
from lip_fast.harness.runs.paired import paired_difference
from lip_fast.harness.runs.records import Record
from lip_fast.harness.runs.summary import SELECTIONS, selected, spread_of, summarise
from lip_fast.harness.runs.table import percent
from lip_fast.harness.settings.train import METHODS, OF_PLAIN

__all__ = ["Table", "comparisons", "main_table", "plain_numbers", "problem_numbers", "tables_of", "titles_of"]

# Columns of the table of early stopping before those that are compared with it.
_LEADING = 4
_TITLES = {
    "chosen": "Beside early stopping",
    "last": "Without stopping early",
}
_HOW = (
    "Early stopping: test accuracy of plain training (cross entropy, CC for candidate sets) at the epoch "
    "that agrees best with held-out labels, which are wrong as often as others, in %, mean ± standard "
    "deviation over seeds. Other columns: the difference to it in points, paired seed by seed{interval}. "
    "Bold: significant at 5% after Holm's correction for all differences of the whole table. "
)
_INTERVAL = ", with its 95% confidence interval (Student's t)"
_EARLY_NOTES = {
    "chosen": _HOW
    + "Every network that is trained is taken at the epoch that the held-out labels choose for it; repairs "
    "are of the plain network of early stopping. The robust loss is, seed by seed, the one of those run "
    "(GCE, SCE, ELR; PRODEN for candidate sets) that agrees best with the held-out labels.",
    "last": _HOW
    + "In the other columns every network is taken after its last epoch, as by someone who cannot stop "
    "early, and repairs are of the plain network then.",
}
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


def comparisons(results: Sequence[Result]) -> dict[tuple[int, str], Comparison]:
    """Every method against plain training after the last epoch, by the place of the result and the method."""
    differences = {
        (place, method): paired_difference(_last(result, method), _last(result, "plain"))
        for place, result in enumerate(results)
        for method in _methods(result)
        if method != "plain" and "plain" in _methods(result)
    }
    return adjusted(differences)


def titles_of(results: Sequence[Result]) -> list[str]:
    """The name of each result's algorithm, with the settings in which it differs from others of that name."""
    apart = settings_apart(results, lambda r: (r.data, r.labels, r.algorithm), _SHOWN)
    return [r.algorithm + (f" ({own})" if own else "") for r, own in zip(results, apart, strict=True)]


def tables_of(results: Sequence[Result]) -> list[Table]:
    """All tables that there are data for."""
    problems = problems_of(results)
    tables = [
        *(_early_stopping(problems, moment) for moment in MOMENTS),
        *(_accuracies(results), _selections(results), _rules(results), _costs(results)),
    ]
    return [table for table in tables if table.rows]


def main_table(results: Sequence[Result], only: Sequence[str] = (), columns: Sequence[str] = ()) -> Table:
    """The first of the tables, or a part of it without intervals.

    Args:
        results: of all its rows, and more.
        only: patterns as of shells; of the rows those are taken of which a result's name fits one. None: all.
        columns: names of those that are taken, see :class:`Column`. None: all.

    Raises:
        UserError: nothing is left.
    """
    problems = problems_of(results)
    table = _early_stopping(problems, "chosen", brief=bool(only or columns))
    rows = [
        row
        for problem, row in zip(problems, table.rows, strict=True)
        if not only or any(fnmatch(name, pattern) for name in problem.names for pattern in only)
    ]
    if not rows:
        raise UserError(
            "expected runs of plain training with a hold-out"
            + (f" whose rows fit {' '.join(only)}, found only {', '.join(_names(problems))}" if only else "")
        )
    known = columns_of(problems)
    for name in columns:
        if name not in (names := dict.fromkeys(column.name for column in known)):
            raise unknown_name("column", name, names)
    shown = [True] * _LEADING + [not columns or column.name in columns for column in known]
    header, *cells = (tuple(itertools.compress(row, shown)) for row in (table.header, *rows))
    return dataclasses.replace(table, header=header, rows=cells)


def problem_numbers(results: Sequence[Result]) -> list[dict[str, Any]]:
    """What the tables of early stopping are made from, as plain values for JSON: one entry for each row."""
    problems = problems_of(results)
    comparisons = {moment: compared(problems, moment) for moment in MOMENTS}
    return [
        {
            "results": problem.names,
            "data": problem.data,
            "labels": problem.labels,
            "network": problem.model,
            "early_stopping": problem.early,
            **{
                moment: {
                    column.title: {
                        "test_accuracy": scores,
                        "adjusted_p": comparisons[moment][place, column].adjusted,
                    }
                    for column, scores in problem.scores[moment].items()
                }
                for moment in MOMENTS
            },
        }
        for place, problem in enumerate(problems)
    ]


def plain_numbers(results: Sequence[Result]) -> list[dict[str, Any]]:
    """What the other tables are made from, as plain values for JSON: one entry for each row."""
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


def _early_stopping(problems: Sequence[Problem], moment: str, *, brief: bool = False) -> Table:
    comparisons, columns = compared(problems, moment), columns_of(problems)
    rows = []
    for place, problem in enumerate(problems):
        cells = [f"{problem.data}, {problem.labels}", problem.model, str(len(problem.early))]
        cells.append(percent(spread_of(list(problem.early.values()))))
        for column in columns:
            comparison = comparisons.get((place, column))
            if comparison is None:
                cells.append("")
                continue
            cells.append(_gain(comparison, of=len(problem.early), brief=brief))
        rows.append(tuple(cells))
    header = ("data", "network", "seeds", "early stopping", *(column.title for column in columns))
    note = _EARLY_NOTES[moment].format(interval="" if brief else _INTERVAL)
    return Table(_TITLES[moment], note, header, rows)


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
    return Table("Beside the last epoch, by algorithm", note, header, rows)


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


def _gain(comparison: Comparison, *, of: int | None = None, brief: bool = False) -> str:
    """A difference; with the number of its seeds, where they are not all ``of`` the row."""
    difference = comparison.difference
    text = f"{100 * difference.mean:+.1f}"
    if difference.low is not None and difference.high is not None and not brief:
        text = f"{text} [{100 * difference.low:+.1f}, {100 * difference.high:+.1f}]"
    if of not in (None, difference.pairs):
        text = f"{text} (of {difference.pairs} seeds)"
    return f"**{text}**" if comparison.significant else text


def _names(problems: Sequence[Problem]) -> list[str]:
    return [name for problem in problems for name in problem.names]


def _range(values: Iterable[int]) -> str:
    values = sorted(set(values))
    return str(values[0]) if len(values) == 1 else f"{values[0]}-{values[-1]}"


def _methods(result: Result) -> list[str]:
    first: dict[str, Record] = next(iter(result.seeds.values()))
    return list(first)


def _last(result: Result, method: str) -> list[float]:
    return [selected(records[method]).last for records in result.seeds.values()]
