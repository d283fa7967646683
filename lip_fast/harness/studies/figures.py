"""The figures of a study, drawn without pyplot: no window, no global state."""

from collections.abc import Sequence
from pathlib import Path

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import LogLocator, MaxNLocator, NullFormatter

from lip_fast.harness.studies.results import COMPARISONS, Study

__all__ = ["save_angles", "save_similarity", "save_spectra"]

# Rows of the figure of similarities: the headline first. Ridge heads among classes are left to the numbers.
_ROWS = ("ridge_features", "head_features", "head_classes")
# Cells with a number each, up to this many directions; more would not be legible.
_LEGIBLE = 6
# The bounds of some k are too large by many powers of ten; above this they are in the tables alone.
_HIGHEST = 1e4


def save_spectra(path: Path, study: Study, title: str) -> None:
    """Draw the singular values of heads by rate: as trained, and fitted to the clean network's features.

    Args:
        path: PNG file to write.
        study: lines are means over its seeds, bands go from least to most.
        title: what was studied.
    """
    figure = Figure(figsize=(10, 4.4), dpi=150, layout="constrained")
    panels = figure.subplots(1, 2)
    colours = _colours(study.rates)
    for axes, name, subject in zip(
        panels,
        ("head", "ridge"),
        ("head as trained", "ridge head on the features of clean labels"),
        strict=True,
    ):
        for rate, colour in zip(study.rates, colours, strict=True):
            values = study.spectra(rate, name)
            index = np.arange(1, values.shape[1] + 1)
            axes.plot(index, values.mean(0), color=colour, marker="o", markersize=4, label=f"{rate:g}")
            axes.fill_between(index, values.min(0), values.max(0), color=colour, alpha=0.15, linewidth=0)
        _log_scale(axes)
        axes.axvline(study.rank + 0.5, color="black", linestyle=":", linewidth=1)
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))
        axes.set_xlabel("index of the singular direction")
        axes.set_title(subject, fontsize="medium")
        axes.grid(alpha=0.3)
    panels[0].set_ylabel("singular value")
    panels[1].legend(title="noise rate", fontsize="small", title_fontsize="small")
    _titled(figure, f"{title}; dotted: k = {study.rank}")
    figure.savefig(path)


def save_similarity(path: Path, study: Study, title: str) -> None:
    """Draw phi(i, j) with the weight of clean labels as heat maps: a column for each rate above 0.

    Args:
        path: PNG file to write.
        study: maps are means over its seeds.
        title: what was studied.
    """
    # Not rate 0: phi of clean labels with themselves is 1 everywhere.
    rates = study.rates[1:]
    figure = Figure(figsize=(2.4 + 2.3 * len(rates), 8), dpi=150, layout="constrained")
    grid = figure.subplots(len(_ROWS), len(rates), squeeze=False)
    for row, name in zip(grid, _ROWS, strict=True):
        for axes, rate in zip(row, rates, strict=True):
            phi = study.phi(rate, name)
            edge = len(phi) + 0.5
            axes.imshow(phi, vmin=0, vmax=1, origin="lower", extent=(0.5, edge, 0.5, edge))
            axes.axvline(study.rank + 0.5, color="white", linestyle=":", linewidth=1)
            axes.axhline(study.rank + 0.5, color="white", linestyle=":", linewidth=1)
            for locator in (axes.xaxis, axes.yaxis):
                locator.set_major_locator(MaxNLocator(nbins=5, integer=True))
            if len(phi) <= _LEGIBLE:
                _numbers(axes, phi)
        weight, space = COMPARISONS[name].split(", ")
        d = study.shape[0 if name.endswith("features") else 1]
        row[0].set_ylabel(f"{weight},\n{space} (by chance max(i, j) / {d})\n\ni, clean", fontsize="small")
    for axes, rate in zip(grid[0], rates, strict=True):
        axes.set_title(f"rate {rate:g}", fontsize="medium")
    for axes in grid[-1]:
        axes.set_xlabel("j, noisy", fontsize="small")
    figure.colorbar(grid[0, 0].images[0], ax=grid, label="phi(i, j)", shrink=0.6)
    _titled(figure, title)
    figure.savefig(path)


def save_angles(path: Path, study: Study, ks: Sequence[int], title: str) -> None:
    """Draw the measured angles of the ridge heads against the rate, with what bounds them, for some k.

    Args:
        path: PNG file to write.
        study: points are means over its seeds.
        ks: dimensions of the subspaces, one panel for each.
        title: what was studied.
    """
    # Wide enough for the legend below.
    figure = Figure(figsize=(max(6.5, 1.5 + 3.2 * len(ks)), 4.8), dpi=150, layout="constrained")
    panels = figure.subplots(1, len(ks), sharey=True, squeeze=False)[0]
    # Clean labels turn nothing, and a sine of 0 has no place on a logarithmic axis.
    rates = study.rates[1:]
    # Okabe and Ito's palette.
    styles = {
        "theorem": ("bound of the theorem", "#D55E00", "v"),
        "bound": ("bound from the labels", "#E69F00", "^"),
        "features": ("measured, among features", "#0072B2", "o"),
        "classes": ("measured, among classes", "#009E73", "s"),
    }
    highest = 1.0
    for axes, k in zip(panels, ks, strict=True):
        for name, (label, colour, marker) in styles.items():
            values = np.array([study.turn(rate, k, name) for rate in rates], dtype=float)  # None: nan
            values[values <= 0] = np.nan
            axes.plot(rates, values, color=colour, marker=marker, markersize=5, label=label)
            highest = max([highest, *values[np.isfinite(values)].tolist()])
        gaps = [rate for rate in rates if study.turn(rate, k, "bound") is None]
        axes.set_title(
            ("first direction" if k == 1 else f"first {k} directions")
            + (f"\nno gap at {', '.join(f'{r:g}' for r in gaps)}" if gaps else ""),
            fontsize="medium",
        )
        axes.set_xlabel("noise rate")
        axes.set_xticks(rates, [f"{rate:g}" for rate in rates])
        axes.grid(alpha=0.3)
    top = 3 * min(highest, _HIGHEST)
    for axes in panels:
        axes.set_yscale("log")
        axes.axhspan(1, top, color="black", alpha=0.08, linewidth=0, label="says nothing: no sine is above 1")
        axes.set_ylim(top=top)
    panels[0].set_ylabel("sine of the largest principal angle")
    figure.legend(
        *panels[0].get_legend_handles_labels(),
        loc="outside lower center",
        ncols=2 if len(ks) < 3 else 3,
        fontsize="small",
    )
    _titled(figure, title)
    figure.savefig(path)


def _colours(rates: Sequence[float]) -> list[tuple[float, ...]]:
    """A colour for each rate, in the order of rates; the lightest of the map is too light for lines."""
    return [tuple(c) for c in matplotlib.colormaps["viridis"](np.linspace(0, 0.9, len(rates)))]


def _log_scale(axes: Axes) -> None:
    """A logarithmic axis that has labels also where it spans hardly a power of ten."""
    axes.set_yscale("log")
    low, high = axes.get_ylim()
    if high < 100 * low:
        axes.yaxis.set_major_locator(LogLocator(subs=(1, 2, 3, 5)))
        axes.yaxis.set_major_formatter("{x:g}")
        axes.yaxis.set_minor_formatter(NullFormatter())


def _numbers(axes: Axes, phi: np.ndarray) -> None:
    for (i, j), value in np.ndenumerate(phi):
        colour = "black" if value > 0.6 else "white"
        axes.text(j + 1, i + 1, f"{value:.2f}", ha="center", va="center", color=colour, fontsize="x-small")


def _titled(figure: Figure, title: str) -> None:
    # The name of a file may hold dollar signs, which are no formula.
    figure.suptitle(title, fontsize="medium", parse_math=False)
