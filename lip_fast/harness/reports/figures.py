"""Figures of a report."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from lip_fast.harness.reports.collect import Result
from lip_fast.harness.reports.tables import comparisons, titles_of
from lip_fast.harness.runs.figures import STYLES
from lip_fast.harness.runs.summary import selected
from lip_fast.harness.settings.train import METHODS

__all__ = ["FIGURES"]

# The number of panels in a row.
_COLUMNS = 3


def save_gains(path: Path, results: Sequence[Result]) -> bool:
    """Draw what each method adds to plain training, with confidence intervals; False if nothing."""
    compared = comparisons(results)
    methods = [method for method in METHODS if any(key[1] == method for key in compared)]
    places = sorted({place for place, _ in compared})
    if not methods:
        return False
    height = 1.2 + len(places) * (0.25 + 0.13 * len(methods))
    figure = Figure(figsize=(8.5, height), dpi=150, layout="constrained")
    axes = figure.subplots()
    for offset, method in enumerate(methods):
        colour, marker, _ = STYLES[method]
        # Rows go downwards, and so do the methods in them.
        shift = (offset - (len(methods) - 1) / 2) * 0.75 / len(methods)
        shown = [place for place in places if (place, method) in compared]
        found = [compared[place, method] for place in shown]
        mean = np.array([100 * c.difference.mean for c in found])
        low = np.array([_percent(c.difference.low, c.difference.mean) for c in found])
        high = np.array([_percent(c.difference.high, c.difference.mean) for c in found])
        y = np.array([places.index(place) for place in shown]) + shift
        axes.errorbar(
            mean, y, xerr=[mean - low, high - mean], color=colour, fmt="none", elinewidth=1.2, capsize=2
        )
        for x, row, comparison in zip(mean, y, found, strict=True):
            axes.plot(
                x, row, marker=marker, color=colour, markersize=5,
                markerfacecolor=colour if comparison.significant else "white", linestyle="none",
            )  # fmt: skip
        axes.plot([], [], marker=marker, color=colour, linestyle="none", label=METHODS[method])
    for row in range(1, len(places), 2):
        axes.axhspan(row - 0.5, row + 0.5, color="#000000", alpha=0.04, linewidth=0)
    axes.axvline(0, color="#000000", linewidth=1)
    titles = titles_of(results)
    labels = [_label(results[place], titles[place]) for place in places]
    axes.set_yticks(range(len(places)), labels, fontsize="small")
    axes.set_ylim(len(places) - 0.5, -0.5)
    axes.set_xlabel("test accuracy, difference to plain training (points)")
    axes.set_title("95% confidence intervals; filled: significant after Holm's correction", fontsize="small")
    axes.grid(axis="x", alpha=0.3)
    figure.legend(loc="outside lower center", ncols=4, fontsize="small")
    figure.savefig(path)
    return True


def save_ranks(path: Path, results: Sequence[Result]) -> bool:
    """Draw accuracy against the rank that LIP keeps afterwards, by result; False where there is nothing."""

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
        result
        for result in results
        if all("plain" in r and "post-hoc" in r and r["post-hoc"].path for r in result.seeds.values())
    ]
    return _panels(path, shown, draw, "accuracy (%)")


def save_curves(path: Path, results: Sequence[Result]) -> bool:
    """Draw test accuracy over the epochs of every method, by result; False where there is nothing."""

    def draw(axes: Axes, result: Result) -> None:
        for method in next(iter(result.seeds.values())):
            records = [seed[method] for seed in result.seeds.values()]
            accuracy = 100 * np.array([record.test_accuracy for record in records], dtype=float)
            colour, marker, _ = STYLES[method]
            epochs = np.arange(1, accuracy.shape[1] + 1)
            axes.plot(epochs, accuracy.mean(0), color=colour, marker=marker, markersize=3,
                      markevery=max(1, len(epochs) // 8), linewidth=1, label=METHODS[method])  # fmt: skip
        axes.set_xlabel("epoch")

    return _panels(path, [r for r in results if _epochs(r) > 1], draw, "test accuracy (%)")


# By file name, in the order of the report: the caption, and the function, which returns False if it had
# nothing to draw.
FIGURES: dict[str, tuple[str, Callable[[Path, Sequence[Result]], bool]]] = {
    "gains.png": ("What each method adds to plain training", save_gains),
    "ranks.png": ("The rank of LIP afterwards: by rule, and swept", save_ranks),
    "curves.png": ("Test accuracy over the epochs", save_curves),
}


def _panels(path: Path, results: Sequence[Result], draw: Callable[[Axes, Result], None], ylabel: str) -> bool:
    if not results:
        return False
    columns, titles = min(_COLUMNS, len(results)), titles_of(results)
    rows = -(-len(results) // columns)
    figure = Figure(figsize=(3.4 * columns + 0.4, 2.7 * rows + 0.7), dpi=130, layout="constrained")
    grid = figure.subplots(rows, columns, squeeze=False)
    for i, axes in enumerate(grid.flat):
        if i >= len(results):
            axes.set_visible(False)
            continue
        draw(axes, results[i])
        axes.set_title(_label(results[i], titles[i]), fontsize="small")
        axes.grid(alpha=0.3)
        axes.xaxis.set_major_locator(MaxNLocator(integer=True, nbins=6))
        axes.tick_params(labelsize="small")
        if i % columns == 0:
            axes.set_ylabel(ylabel)
    entries: dict[str, Any] = {}
    for axes in grid.flat[: len(results)]:
        for handle, label in zip(*axes.get_legend_handles_labels(), strict=True):
            entries.setdefault(label, handle)
    figure.legend(
        list(entries.values()),
        list(entries),
        loc="outside lower center",
        ncols=min(4, len(entries)),
        fontsize="small",
    )
    figure.savefig(path)
    return True


def _label(result: Result, title: str) -> str:
    return f"{title}\n{result.data}, {result.labels}"


def _epochs(result: Result) -> int:
    records = next(iter(result.seeds.values()))
    return len(next(iter(records.values())).test_accuracy)


def _percent(bound: float | None, mean: float) -> float:
    return 100 * (mean if bound is None else bound)
