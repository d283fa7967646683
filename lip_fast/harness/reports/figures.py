"""Figures of a report."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from lip_fast.harness.algorithms import ALGORITHMS
from lip_fast.harness.reports.collect import Result
from lip_fast.harness.reports.problems import (
    Column,
    Comparison,
    Problem,
    columns_of,
    compared,
    joined,
    minimises_plain_loss,
    problems_of,
)
from lip_fast.harness.reports.tables import titles_of
from lip_fast.harness.runs.figures import STYLES
from lip_fast.harness.runs.summary import selected
from lip_fast.harness.settings.train import METHODS

__all__ = ["FIGURES"]

T = TypeVar("T")

# The number of panels in a row, and of rows of them on a page: with its legend 10 inches high at most.
_COLUMNS = 3
_ROWS = 3
# Of the figure of differences, in inches: the height of a page, what of it title, legend and axis take, what
# is between two panels, the height of a mark with its interval, and what is between two rows.
_PAGE = 10.0
_AROUND = 1.9
_AROUND_PANEL = 0.6
_MARK = 0.065
_BETWEEN = 0.12
# Of the best robust loss, and further markers for LIP in the step at other ranks.
_ROBUST = ("#56B4E9", "<")
_MORE_MARKERS = ("d", "h", "p", "8")


@dataclass(frozen=True)
class _Panel:
    """Some of the problems of one data set, one below the other.

    Attributes:
        title: the data set.
        places: of the problems.
    """

    title: str
    places: list[int]


def draw_gains(results: Sequence[Result]) -> list[Figure]:
    """What each column of the first table has over early stopping: a panel for each data set."""
    problems = problems_of(results)
    comparisons, columns = compared(problems, "chosen"), columns_of(problems)
    if not comparisons:
        return []
    row = _MARK * len(columns) + _BETWEEN
    most = max(1, int((_PAGE - _AROUND) / row))
    panels = [
        _Panel(data, places[first : first + most])
        for data, places in _by_data(problems).items()
        for first in range(0, len(places), most)
    ]
    return [_gains_page(page, problems, comparisons, columns, row) for page in _pages(panels, row)]


def _by_data(problems: Sequence[Problem]) -> dict[str, list[int]]:
    found: dict[str, list[int]] = {}
    for place, problem in enumerate(problems):
        found.setdefault(problem.data, []).append(place)
    return found


def _pages(panels: Sequence[_Panel], row: float) -> list[list[_Panel]]:
    """Panels that fit below each other on a page."""
    pages: list[list[_Panel]] = []
    left = 0.0
    for panel in panels:
        height = _AROUND_PANEL + row * len(panel.places)
        if not pages or height > left:
            pages.append([])
            left = _PAGE - _AROUND + _AROUND_PANEL
        pages[-1].append(panel)
        left -= height
    return pages


def _gains_page(
    panels: Sequence[_Panel],
    problems: Sequence[Problem],
    comparisons: Mapping[tuple[int, Column], Comparison],
    columns: Sequence[Column],
    row: float,
) -> Figure:
    heights = [row * len(panel.places) for panel in panels]
    height = sum(heights) + _AROUND_PANEL * (len(panels) - 1) + _AROUND
    figure = Figure(figsize=(8.5, min(height, _PAGE)), dpi=150, layout="constrained")
    grid = figure.subplots(len(panels), squeeze=False, height_ratios=heights)[:, 0]
    for axes, panel in zip(grid, panels, strict=True):
        for offset, column in enumerate(columns):
            # Rows go downwards, and so do the columns of the table in them.
            shift = (offset - (len(columns) - 1) / 2) * _MARK / row
            for line, place in enumerate(panel.places):
                if (comparison := comparisons.get((place, column))) is not None:
                    _mark(axes, line + shift, comparison, _style(column, columns))
        for line in range(1, len(panel.places), 2):
            axes.axhspan(line - 0.5, line + 0.5, color="#000000", alpha=0.04, linewidth=0)
        axes.axvline(0, color="#000000", linewidth=1)
        labels = [f"{problems[place].labels}\n{problems[place].model}" for place in panel.places]
        axes.set_yticks(range(len(labels)), labels, fontsize="x-small")
        axes.set_ylim(len(labels) - 0.5, -0.5)
        axes.tick_params(axis="x", labelsize="small")
        axes.set_title(panel.title, fontsize="small", loc="left", fontweight="bold")
        axes.grid(axis="x", alpha=0.3)
    grid[-1].set_xlabel("test accuracy, difference to early stopping (points)", fontsize="small")
    for column in columns:
        colour, marker = _style(column, columns)
        grid[0].plot([], [], marker=marker, color=colour, linestyle="none", label=column.title)
    figure.suptitle("95% confidence intervals; filled: significant after Holm's correction", fontsize="small")
    figure.legend(loc="outside lower center", ncols=4, fontsize="small")
    return figure


def _mark(axes: Axes, y: float, comparison: Comparison, style: tuple[str, str]) -> None:
    difference, (colour, marker) = comparison.difference, style
    low, high = (_percent(end, difference.mean) for end in (difference.low, difference.high))
    axes.plot([low, high], [y, y], color=colour, linewidth=1, solid_capstyle="butt")
    axes.plot(
        100 * difference.mean, y, marker=marker, color=colour, markersize=4, linestyle="none",
        markerfacecolor=colour if comparison.significant else "white", markeredgewidth=0.8,
    )  # fmt: skip


def _style(column: Column, columns: Sequence[Column]) -> tuple[str, str]:
    """Colour and marker; LIP in the step has a marker for each rank."""
    if column.name == "robust":
        return _ROBUST
    colour, marker, _ = STYLES[column.name]
    alike = [other for other in columns if other.name == column.name]
    return colour, (marker, *_MORE_MARKERS)[alike.index(column) % (1 + len(_MORE_MARKERS))]


def draw_ranks(results: Sequence[Result]) -> list[Figure]:
    """Accuracy against the rank that LIP keeps afterwards, a panel for each result."""

    def draw(axes: Axes, result: Result) -> None:
        last = [selected(records["plain"]).last for records in result.seeds.values()]
        # A rank that a rule took may have been tried with one seed only: the line has the ranks of all seeds.
        paths = [records["post-hoc"].path for records in result.seeds.values()]
        ranks = sorted(set.intersection(*(set(p["ranks"]) for p in paths)))

        def mean(values: str) -> np.ndarray:
            return 100 * np.mean([[p[values][p["ranks"].index(k)] for k in ranks] for p in paths], axis=0)

        axes.axhline(100 * float(np.mean(last)), color="#000000", linewidth=1, label="plain")
        axes.plot(ranks, mean("test_accuracy"), color=STYLES["post-hoc"][0], marker="^", markersize=3,
                  label="LIP afterwards, test")  # fmt: skip
        if None not in paths[0]["validation"]:
            axes.plot(ranks, mean("validation"), color="#999999", marker=".", markersize=3,
                      label="agreement with held-out labels")  # fmt: skip
        # One mark for each seed, for the mean of two ranks may be the rank of neither.
        for rule, colour, mark in (
            ("held-out labels", "#0072B2", "o"),
            ("95% of the energy", "#009E73", "x"),
        ):
            taken = [(p, p["rules"][rule]) for p in paths if rule in p["rules"]]
            heights = [100 * p["test_accuracy"][p["ranks"].index(rank)] for p, rank in taken]
            label = f"rank by {rule}, each seed"
            axes.plot([rank for _, rank in taken], heights, mark, color=colour, markersize=5,
                      markerfacecolor="none", label=label)  # fmt: skip
        axes.set_xlabel("rank kept")

    shown = [
        (_label(result, title), result)
        for result, title in zip(results, titles_of(results), strict=True)
        if all("plain" in r and "post-hoc" in r and r["post-hoc"].path for r in result.seeds.values())
    ]
    return _panels(shown, draw, "accuracy (%)")


def draw_curves(results: Sequence[Result]) -> list[Figure]:
    """Test accuracy over the epochs, a panel for each problem: every method, and plain training otherwise."""
    # In the same order for all panels, for each rank has its marker.
    steps = list(
        dict.fromkeys(Column("in-step", r.config.rank) for r in results if "in-step" in r.config.methods)
    )

    def draw(axes: Axes, group: Sequence[Result]) -> None:
        for result in group:
            for method in next(iter(result.seeds.values())):
                if not minimises_plain_loss(result) and method != "plain":
                    continue
                records = [seed[method] for seed in result.seeds.values()]
                accuracy = 100 * np.array([record.test_accuracy for record in records], dtype=float)
                epochs, mean = np.arange(1, accuracy.shape[1] + 1), accuracy.mean(0)
                label, colour, marker, line = _curve(result, method, steps)
                if np.isnan(mean).any():  # repaired after some epochs alone: shown where every seed was
                    epochs, mean, line = epochs[~np.isnan(mean)], mean[~np.isnan(mean)], "none"
                axes.plot(epochs, mean, color=colour, marker=marker, markersize=3, linestyle=line,
                          markevery=max(1, len(epochs) // 8), linewidth=1, label=label)  # fmt: skip
        axes.set_xlabel("epoch")

    shown = [
        (f"{model}\n{group[0].data}, {group[0].labels}", several)
        for model, group in joined(results)
        if (several := [result for result in group if _epochs(result) > 1])
    ]
    return _panels(shown, draw, "test accuracy (%)")


def _curve(result: Result, method: str, steps: Sequence[Column]) -> tuple[str, str, str, str]:
    """Label, colour, marker and style of a line: dashed where another loss than plain's is minimised."""
    if not minimises_plain_loss(result):
        place = list(ALGORITHMS).index(result.config.algorithm)
        return result.algorithm, f"C{place % 10}", ".", "dashed"
    column = Column(method, result.config.rank if method == "in-step" else None)
    title = METHODS[method] if method == "plain" else column.title
    return title, *_style(column, [*steps, column]), "solid"


# By the name of the file, in the order of the report: the caption, and the function that draws the pages,
# none where there is nothing to draw.
FIGURES: dict[str, tuple[str, Callable[[Sequence[Result]], list[Figure]]]] = {
    "gains": ("Beside early stopping", draw_gains),
    "ranks": ("The rank of LIP afterwards: by rule, and swept", draw_ranks),
    "curves": ("Test accuracy over the epochs", draw_curves),
}


def _panels(shown: Sequence[tuple[str, T]], draw: Callable[[Axes, T], None], ylabel: str) -> list[Figure]:
    """Pages of panels, each with a title and what is drawn in it."""
    most = _COLUMNS * _ROWS
    return [_panels_page(shown[i : i + most], draw, ylabel) for i in range(0, len(shown), most)]


def _panels_page(shown: Sequence[tuple[str, T]], draw: Callable[[Axes, T], None], ylabel: str) -> Figure:
    columns = min(_COLUMNS, len(shown))
    rows = -(-len(shown) // columns)
    figure = Figure(figsize=(3.4 * columns + 0.4, 2.7 * rows + 0.7), dpi=130, layout="constrained")
    grid = figure.subplots(rows, columns, squeeze=False)
    for i, axes in enumerate(grid.flat):
        if i >= len(shown):
            axes.set_visible(False)
            continue
        title, drawn = shown[i]
        draw(axes, drawn)
        axes.set_title(title, fontsize="small")
        axes.grid(alpha=0.3)
        axes.xaxis.set_major_locator(MaxNLocator(integer=True, nbins=6))
        axes.tick_params(labelsize="small")
        if i % columns == 0:
            axes.set_ylabel(ylabel)
    entries: dict[str, Any] = {}
    for axes in grid.flat[: len(shown)]:
        for handle, label in zip(*axes.get_legend_handles_labels(), strict=True):
            entries.setdefault(label, handle)
    figure.legend(
        list(entries.values()),
        list(entries),
        loc="outside lower center",
        ncols=min(4, len(entries)),
        fontsize="small",
    )
    return figure


def _label(result: Result, title: str) -> str:
    return f"{title}\n{result.data}, {result.labels}"


def _epochs(result: Result) -> int:
    records = next(iter(result.seeds.values()))
    return len(next(iter(records.values())).test_accuracy)


def _percent(bound: float | None, mean: float) -> float:
    return 100 * (mean if bound is None else bound)
