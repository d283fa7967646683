"""Figures, drawn without pyplot: no window, no global state."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from lip_fast.harness.config import METHODS
from lip_fast.harness.experiment import SeedResult

__all__ = ["save_spectrum"]

# Okabe and Ito's palette: told apart with any colour vision, and by marker in print.
# The last number moves a method's points sideways, for methods often have the same values.
_STYLES = {
    "plain": ("#000000", "o", -0.12),
    "in-step": ("#0072B2", "s", 0.0),
    "post-hoc": ("#D55E00", "^", 0.12),
    "ridge": ("#009E73", "D", 0.24),
    "auto": ("#CC79A7", "v", -0.24),
}


def save_spectrum(path: Path, results: Sequence[SeedResult], title: str) -> None:
    """Draw the singular values of the final head of each method, with the ranks that LIP kept.

    Args:
        path: PNG file to write.
        results: of all seeds, at least one; lines are means over them, bands go from least to most.
        title: what was run.
    """
    figure = Figure(figsize=(7, 4.5), dpi=150, layout="constrained")
    axes = figure.subplots()
    for method in results[0].records:
        records = [result.records[method] for result in results]
        values = np.array([record.singular_values for record in records])
        colour, marker, shift = _STYLES[method]
        index = np.arange(1, values.shape[1] + 1) + shift
        label = METHODS[method]
        ranks = sorted({record.rank for record in records if record.rank is not None})
        if ranks:
            label += f" (k = {', '.join(map(str, ranks))})"
        axes.plot(index, values.mean(0), color=colour, marker=marker, markersize=5, label=label)
        axes.fill_between(index, values.min(0), values.max(0), color=colour, alpha=0.15, linewidth=0)
        for rank in ranks:
            axes.axvline(rank + 0.5 + shift / 2, color=colour, linestyle="--", linewidth=1)
    axes.set_yscale("log")
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    axes.set_xlabel("index of the singular direction")
    axes.set_ylabel("singular value of the head")
    axes.set_title(title, fontsize="medium")
    axes.grid(alpha=0.3)
    axes.legend(title="mean over seeds; dashed: kept | refitted", fontsize="small", title_fontsize="small")
    figure.savefig(path)
