"""The figure of :mod:`benchmarks.lip_in_step`: accuracy against the rank that LIP keeps."""

from collections.abc import Sequence
from pathlib import Path
from statistics import fmean

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from benchmarks.lip_in_step_report import TITLES, Setting

__all__ = ["save_figure"]


def save_figure(path: Path, found: Sequence[Setting]) -> None:
    """Draw accuracy after the last step against the kept share, beside what the rivals reach."""
    shown = [s for s in found if s.times == 1]
    names = list(dict.fromkeys(s.data for s in shown))
    optimizers = [name for name in TITLES if any(s.optimizer == name for s in shown)]
    size = (2.5 * len(names) + 0.4, 2.4 * len(optimizers) + 0.7)
    figure = Figure(figsize=size, dpi=110, layout="constrained")
    grid = figure.subplots(len(optimizers), len(names), squeeze=False)
    for s in shown:
        _panel(grid[optimizers.index(s.optimizer), names.index(s.data)], s)
    for axes in grid.flat:
        axes.set_visible(axes.has_data())
    for axes in grid[:, 0]:
        axes.set_ylabel("test accuracy (%)", fontsize="small")
    handles, labels = grid[0, 0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=3, fontsize="small")
    figure.savefig(path)


def _panel(axes: Axes, s: Setting) -> None:
    means = [100 * fmean(s.fixed(0.0, rank).last) for rank in s.ranks]
    stopped = [100 * fmean(s.fixed(0.0, rank).stopped) for rank in s.ranks]
    plain, decay = s.fixed(), s.chosen("decay")
    axes.plot(s.ranks, means, color="#D55E00", marker="o", markersize=4, label="LIP, last step")
    axes.plot(
        s.ranks,
        stopped,
        color="#E69F00",
        marker="o",
        markersize=3,
        linestyle=":",
        label="LIP, early stopping",
    )
    for value, colour, style, label in (
        (plain.last, "#000000", "-", "plain, last step"),
        (plain.stopped, "#000000", ":", "plain, early stopping"),
        (decay.last, "#0072B2", "-", "tuned decay, last step"),
        (decay.stopped, "#56B4E9", ":", "tuned decay, early stopping"),
    ):
        axes.axhline(100 * fmean(value), color=colour, linestyle=style, linewidth=1.2, label=label)
    axes.set_title(f"{s.data}, {TITLES[s.optimizer]}", fontsize="small")
    axes.set_xlabel("share of directions kept", fontsize="small")
    rivals = [100 * fmean(value) for value in (*plain[:2], *decay[:2])]
    top, low = max(*means, *stopped, *rivals), min(*means, *stopped, *rivals)
    # A rank far too low is not worth the resolution of all others.
    axes.set_ylim(max(low - 1, top - 15), top + 1)
    axes.set_xlim(0, 1)
    axes.grid(alpha=0.3)
    axes.tick_params(labelsize="small")
