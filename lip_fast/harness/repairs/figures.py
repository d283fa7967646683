"""The figure of a repair: agreement with the held-out labels of every head that was tried."""

import warnings
from pathlib import Path

from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from lip_fast.repair import Candidate, RepairReport

__all__ = ["save_candidates"]

_PENALTY, _RELATIVE = "penalty", "penalty (mean eigenvalues)"
# By rate of noise, in the order in which they are tried.
_LINES = ("-", "-.", ":")
_NAMES = {"-": "solid", "-.": "dash-dot", ":": "dotted"}
# Okabe and Ito's palette, as in the figure of the spectrum.
_STYLES = {
    "gaussian": ("Gaussian head", _RELATIVE, "#E69F00", "D"),
    "gaussian+trained": ("Gaussian and trained", _RELATIVE, "#56B4E9", "P"),
    "gaussian-path": ("Gaussian path", _RELATIVE, "#999999", "X"),
    "lip": ("LIP", "directions kept", "#0072B2", "s"),
    "ridge": ("ridge regression", _PENALTY, "#009E73", "o"),
    "pcr": ("principal components", "components", "#CC79A7", "^"),
    "truncate": ("truncated head", "eigenvectors kept", "#D55E00", "v"),
}


def _point(candidate: Candidate) -> tuple[float, float]:
    """Where a candidate with a parameter and a score lies in its panel."""
    assert candidate.parameter is not None
    assert candidate.score is not None
    return candidate.parameter, 100 * candidate.score


def save_candidates(path: Path, report: RepairReport, title: str) -> None:
    """Draw the score of every candidate against its parameter, one panel for each method.

    Args:
        path: PNG file to write, whatever its suffix.
        report: of a repair with a hold-out.
        title: what was repaired.
    """
    trained, *candidates = report.candidates
    assert trained.score is not None
    methods = list(dict.fromkeys(candidate.method for candidate in candidates))
    figure = Figure(figsize=(max(5.0, 1 + 2.9 * len(methods)), 4.2), dpi=150, layout="constrained")
    panels = figure.subplots(1, len(methods), sharey=True, squeeze=False)[0]
    handles = {}
    trained_label = f"trained head: {100 * trained.score:.2f}%"
    if report.chosen.method == "trained":
        trained_label += " (chosen)"
    for axes, method in zip(panels, methods, strict=True):
        name, parameter, colour, marker = _STYLES[method]
        tried = [c for c in candidates if c.method == method]
        rates = list(dict.fromkeys(c.noise_rate for c in tried))
        size = 4 if len(tried) < 30 else 2.5
        for rate, line in zip(rates, _LINES, strict=False):
            points = zip(*sorted(_point(c) for c in tried if c.noise_rate == rate), strict=True)
            axes.plot(*points, line, color=colour, marker=marker, markersize=size, lw=1.2, zorder=3)
        if len(rates) > 1:
            lines = ", ".join(f"{rate:g} {_NAMES[line]}" for rate, line in zip(rates, _LINES, strict=False))
            parameter = f"{parameter}\nnoise rate {lines}"
        handles[trained_label] = axes.axhline(
            100 * trained.score, color="black", linestyle="--", linewidth=1.2, zorder=2
        )
        if report.chosen.method == method and report.chosen.score is not None:
            (handles[f"chosen: {name}, {_STYLES[method][1]} {report.chosen.parameter:.4g}"],) = axes.plot(
                report.chosen.parameter,
                100 * report.chosen.score,
                linestyle="none",
                marker="*",
                markersize=15,
                color="#F0E442",
                markeredgecolor="black",
                zorder=4,
            )
        if _STYLES[method][1] in (_PENALTY, _RELATIVE):
            values = [_point(c)[0] for c in tried]
            positive = [value for value in values if value > 0]
            # A penalty of 0 has no place on a logarithmic axis.
            if len(positive) == len(values):
                axes.set_xscale("log")
            elif positive:
                axes.set_xscale("symlog", linthresh=min(positive))
        else:
            axes.xaxis.set_major_locator(MaxNLocator(nbins=5, integer=True))
        axes.set_title(f"{name}: at best {max(_point(c)[1] for c in tried):.2f}%", fontsize="medium")
        axes.set_xlabel(parameter, fontsize="small")
        axes.grid(alpha=0.3)
    panels[0].set_ylabel("agreement with held-out labels (%)")
    # The name of a file may hold dollar signs, which are no formula.
    figure.suptitle(title, fontsize="medium", parse_math=False)
    figure.legend(handles.values(), handles.keys(), loc="outside lower center", ncols=2, fontsize="small")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the font may lack letters of a file name
        figure.savefig(path, format="png")
