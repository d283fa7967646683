"""Truncated decompositions: who is how much slower at no larger an error, and every method's curve."""

from collections.abc import Mapping
from typing import TYPE_CHECKING

from benchmarks.decomposition_rows import CURVES, KIND, OURS, Curve, spectrum_of
from benchmarks.markdown import floor, table, time
from benchmarks.results import Entry, Result
from benchmarks.spectra import SAYS

if TYPE_CHECKING:
    from matplotlib.figure import Figure

__all__ = ["KINDS", "TITLE", "details", "figure", "summary"]

TITLE = "Truncated decompositions"
KINDS = (KIND,)
# An excess below is rounding of float32: such results count as equally good.
CLIP = 1e-7
# Colour, marker and line of each method. The colours are of Okabe and Ito, told apart by those who see no red
# or no green too; the markers differ as well.
_STYLES: Mapping[str, tuple[str, str, str]] = {
    OURS: ("#0072B2", "o", "-"),
    "ours cold": ("#56B4E9", "s", "-"),
    "lobpcg": ("#CC79A7", "P", "--"),
    "lobpcg warm": ("#CC79A7", "p", "-"),
    "svd_lowrank": ("#D55E00", "^", "--"),
    "scikit-learn": ("#E69F00", "v", "--"),
    "arpack": ("#009E73", "X", ":"),
    "propack": ("#000000", "d", ":"),
    "linalg.svd": ("#888888", "*", ":"),
}


def summary(result: Result) -> str:
    """The times at no larger an error, and each method at its usual setting."""
    entries = list(result.of(KIND))
    if not entries:
        return ""
    row = entries[0].row
    peers = [curve for curve in CURVES if curve.name != OURS]
    equal = []
    for entry in entries:
        spectrum = spectrum_of(entry.row)
        said = f"{spectrum}: {SAYS[spectrum]}"
        equal.append([said, _cell(entry, OURS), floor(entry), *(_slower(entry, curve) for curve in peers)])
    names = [f"`{curve.name}`" if curve.name in _PACKAGES else curve.name for curve in peers]
    return (
        f"A weight of {row.l} x {row.q}, float32, one optimizer step of learning rate 1e-4 after the last "
        f"one, to rank {row.k} with 8 more columns for the randomized methods. The *excess* is ‖M - M_k‖_F "
        "over that of the best M_k, less one. *Ours warm* is `ops.warm_svd`, which starts from the basis "
        "that it left a step before; its settings n_iter, in the figure, and `lobpcg warm` do so too. In "
        "the figure an excess below 1e-7 is drawn at 1e-7.\n\nHow many times longer each method takes at "
        "the fastest of its settings whose excess is no larger than ours (all below 1e-7 count as equal); a "
        "dash where no setting measured is as good:\n\n"
        + table(["spectrum", "ours warm, excess", "bytes, flops", *names], equal)
    )


def details(result: Result) -> str:
    """The summary, and every method at every setting."""
    entries = list(result.of(KIND))
    if not entries:
        return ""
    lines = [
        [name, *(_cell(entry, name, values=True) for entry in entries)]
        for curve in CURVES
        for name in curve.points
    ]
    usual = [
        [spectrum_of(entry.row), *(_cell(entry, curve.point(curve.shown)) for curve in CURVES)]
        for entry in entries
    ]
    settings = [_PACKAGES.get(curve.name, "") + curve.point(curve.shown) for curve in CURVES]
    header = ["", *(spectrum_of(entry.row) for entry in entries)]
    return (
        f"{summary(result)}\n\nTime and excess of each method at one setting:\n\n"
        + table(["spectrum", *settings], usual)
        + "\n\nEvery setting: time; excess; largest relative error of a singular value.\n\n"
        + table(header, lines)
    )


def figure(result: Result) -> "Figure | None":
    """A panel for each spectrum, a line for each method through its settings."""
    from matplotlib.figure import Figure

    entries = list(result.of(KIND))
    if not entries:
        return None
    columns = min(3, len(entries))
    lines = -(-len(entries) // columns)
    drawn = Figure(figsize=(9.2, 0.9 + 2.7 * lines), layout="constrained")
    axes = drawn.subplots(lines, columns, sharex=True, sharey=True, squeeze=False).flatten()
    for axis in axes[len(entries) :]:
        axis.set_visible(False)
    handles = {}
    for i, (entry, axis) in enumerate(zip(entries, axes, strict=False)):
        for curve in CURVES:
            points = [name for name in curve.points if _time(entry, name) is not None]
            if not points:
                continue
            colour, marker, style = _STYLES[curve.name]
            ours = curve.name == OURS
            (handles[curve.name],) = axis.plot(
                [(_time(entry, name) or 0.0) / 1e3 for name in points],
                [max(entry.facts["excess"][name], CLIP) for name in points],
                color=colour,
                marker=marker,
                linestyle=style,
                linewidth=2.2 if ours else 1.3,
                markersize=7 if ours or marker in "*p" else 5,
                zorder=3 if ours else 2,
            )
        axis.set_xscale("log")
        axis.set_yscale("log")
        axis.grid(alpha=0.3)
        axis.set_title(spectrum_of(entry.row), fontsize=10)
        if i % columns == 0:
            axis.set_ylabel("excess over the optimum")
        if i >= len(entries) - columns:
            axis.set_xlabel("time, ms")
    drawn.legend(list(handles.values()), list(handles), loc="outside lower center", ncols=5, fontsize=8)
    return drawn


_PACKAGES = {
    "svd_lowrank": "torch ",
    "lobpcg": "torch ",
    "lobpcg warm": "torch ",
    "linalg.svd": "torch ",
    "arpack": "scipy ",
    "propack": "scipy ",
}


def _time(entry: Entry, name: str) -> float | None:
    return entry.ours if name == OURS else entry.peers.get(name)


def _cell(entry: Entry, name: str, *, values: bool = False) -> str:
    """Time and excess of a point."""
    microseconds = _time(entry, name)
    if microseconds is None:
        return "n/a"
    cells = [time(microseconds), _excess(entry.facts["excess"][name])]
    if values:
        cells.append(f"{entry.facts['values'][name]:.0e}")
    return "; ".join(cells)


def _excess(value: float) -> str:
    return f"{value:.0e}" if value >= CLIP else "< 1e-7"


def _slower(entry: Entry, curve: Curve) -> str:
    """The least time at which a method is as good as ours, over ours."""
    excess = entry.facts["excess"]
    good = max(excess[OURS], CLIP)
    measured = [(name, microseconds) for name in curve.points if (microseconds := _time(entry, name))]
    if not measured:
        return "n/a"
    times = [microseconds for name, microseconds in measured if excess[name] <= good]
    return f"{min(times) / entry.ours:.1f}x" if times else "-"
