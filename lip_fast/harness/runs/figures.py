"""Figures of a run, drawn without pyplot: no window, no global state."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from lip_fast.harness.runs.records import Record, SeedResult
from lip_fast.harness.settings.train import METHODS

__all__ = ["STYLES", "save_curves", "save_spectrum"]

# Okabe and Ito's palette, and brown: told apart with any colour vision, and by marker in print.
# The last number moves a method's points sideways, for methods often have the same values.
STYLES = {
    "plain": ("#000000", "o", -0.12),
    "early-stop": ("#999999", "X", -0.06),
    "in-step": ("#0072B2", "s", 0.0),
    "per-epoch": ("#56B4E9", "P", 0.06),
    "post-hoc": ("#D55E00", "^", 0.12),
    "ridge": ("#009E73", "D", 0.24),
    "gaussian": ("#E69F00", "*", -0.18),
    "gaussian+trained": ("#8C6D31", "p", 0.18),
    "auto": ("#CC79A7", "v", -0.24),
}


def save_spectrum(path: Path, results: Sequence[SeedResult], title: str) -> None:
    """Draw the singular values of the final head of each method, with the ranks that LIP kept.

    Args:
        path: PNG file to write.
        results: of all seeds, at least one; lines are means over them, bands go from least to most.
        title: what was run.
    """
    figure, axes = _figure(title)
    for method, records in _by_method(results).items():
        if not all(record.singular_values for record in records):
            continue
        values = np.array([record.singular_values for record in records])
        colour, _, shift = STYLES[method]
        label = METHODS[method]
        ranks = sorted({record.rank for record in records if record.rank is not None})
        if ranks:
            label += f" (k = {', '.join(map(str, ranks))})"
        _band(axes, method, np.arange(1, values.shape[1] + 1) + shift, values, label)
        for rank in ranks:
            axes.axvline(rank + 0.5 + shift / 2, color=colour, linestyle="--", linewidth=1)
    axes.set_yscale("log")
    axes.set_xlabel("index of the singular direction")
    axes.set_ylabel("singular value of the head")
    axes.legend(title="mean over seeds; dashed: kept | refitted", fontsize="small", title_fontsize="small")
    figure.savefig(path)


def save_curves(path: Path, results: Sequence[SeedResult], title: str) -> None:
    """Draw test accuracy and agreement with wrong labels over the epochs, of each method.

    Args:
        path: PNG file to write.
        results: of all seeds, at least one; lines are means over them, bands go from least to most.
        title: what was run.
    """
    figure, axes = _figure(title)
    for method, records in _by_method(results).items():
        accuracy = 100 * np.array([record.test_accuracy for record in records], dtype=float)
        epochs = np.arange(1, accuracy.shape[1] + 1)
        _band(axes, method, epochs, accuracy, METHODS[method])
        memorised = [record.memorised for record in records]
        # Repairs are computed from what the plain network sees: of wrong labels one line is enough.
        if method == "plain" and None not in memorised[0]:
            mean = 100 * np.array(memorised, dtype=float).mean(0)
            axes.plot(epochs, mean, color="#000000", linestyle=":", label="plain, wrong labels fitted")
    axes.set_xlabel("epoch")
    axes.set_ylabel("test accuracy, wrong labels fitted (%)")
    axes.legend(fontsize="small")
    figure.savefig(path)


def _figure(title: str) -> tuple[Figure, Axes]:
    figure = Figure(figsize=(7, 4.5), dpi=150, layout="constrained")
    axes = figure.subplots()
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    axes.set_title(title, fontsize="medium", wrap=True)
    axes.grid(alpha=0.3)
    return figure, axes


def _by_method(results: Sequence[SeedResult]) -> dict[str, list[Record]]:
    return {method: [result.records[method] for result in results] for method in results[0].records}


def _band(axes: Axes, method: str, x: np.ndarray, values: np.ndarray, label: str) -> None:
    colour, marker, _ = STYLES[method]
    # A marker at each of many epochs would hide the line.
    every = max(1, len(x) // 12)
    if np.isnan(values).any():  # repaired after some epochs alone: shown where every seed was
        axes.plot(x, values.mean(0), color=colour, marker=marker, markersize=4, linestyle="none", label=label)
        return
    axes.plot(x, values.mean(0), color=colour, marker=marker, markersize=4, markevery=every, label=label)
    axes.fill_between(x, values.min(0), values.max(0), color=colour, alpha=0.12, linewidth=0)
