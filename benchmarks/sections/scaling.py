"""How time and memory of one-shot ``lip()`` grow with samples, features and classes."""

from collections.abc import Iterator
from typing import TYPE_CHECKING

from benchmarks.markdown import error, floor, size, table, time
from benchmarks.peak_memory import LEAST_SEEN
from benchmarks.results import Entry, Result
from benchmarks.scaling import LEAST_POINTS, Exponent, fit, upper_half
from benchmarks.scaling_rows import KIND, VARIABLES

if TYPE_CHECKING:
    from matplotlib.figure import Figure

__all__ = ["KINDS", "TITLE", "details", "figure", "summary"]

TITLE = "How one-shot LIP grows"
KINDS = (KIND,)
_WORDS = {"n": "samples n", "q": "features q", "l": "classes l"}
_QUANTITIES = ("time", "memory")
# Of Okabe and Ito, told apart by those who see no red or no green too.
_COLOURS = {"ours": "#0072B2", "reference": "#D55E00"}
_MARKERS = {"ours": "o", "reference": "s"}


def summary(result: Result) -> str:
    """Exponents, and the largest problem of each variable."""
    if not any(True for _ in result.of(KIND)):
        return ""
    lines, flat = [], []
    for variable, entries in _curves(result):
        last = entries[-1]
        ours, reference = _value(last, "ours", "time"), _value(last, "reference", "time")
        memory, theirs = _value(last, "ours", "memory"), _value(last, "reference", "memory")
        exponents = {
            (variant, quantity): _exponent(variable, entries, variant, quantity)
            for quantity in _QUANTITIES
            for variant in _COLOURS
        }
        found = exponents["ours", "memory"]
        if found is not None and found.flat:
            flat.append(variable)
        lines.append(
            [
                _WORDS[variable],
                *("n/a" if exponent is None else str(exponent) for exponent in exponents.values()),
                f"{getattr(last.row, variable):,}",
                f"{time(ours)}, {time(reference)}",
                f"{reference / ours:.2f}x",
                f"{_size(memory)}, {_size(theirs)}",
                _part(memory, theirs),
            ]
        )
    header = ["grows with", "time, ours", "reference", "memory, ours", "reference", "largest"]
    header += ["time, ours and reference", "faster", "memory, ours and reference", "of it"]
    constant = f" Our extra memory does not grow with {' or '.join(flat)}." if flat else ""
    return (
        "`lip_fast.lip` on class indices against `reference.lip`, whose label matrix is part of its price; "
        "one size is varied while the two others stay at n = 50,000, q = 512, l = 100, with "
        "k = min(l, q) / 5. Exponents p of size^p: least squares through the upper half of the points, ± one "
        f"standard error. Memory is what a call adds at its peak.{constant}\n\n" + table(header, lines)
    )


def details(result: Result) -> str:
    """The summary, and all points."""
    lines = []
    for variable, entries in _curves(result):
        for entry in entries:
            ours, reference = entry.ours, entry.peers["reference"]
            memory, theirs = entry.memory["ours"], entry.memory["reference"]
            lines.append(
                [
                    f"{variable} = {getattr(entry.row, variable):,}",
                    time(ours),
                    time(reference),
                    f"{reference / ours:.2f}x",
                    floor(entry),
                    _size(memory),
                    _size(theirs),
                    _part(memory, theirs),
                    error(entry),
                ]
            )
    header = ["", "time, ours", "reference", "faster", "bytes, flops"]
    header += ["extra memory, ours", "reference", "of it", "error"]
    return f"{summary(result)}\n\n{table(header, lines)}" if lines else ""


def figure(result: Result) -> "Figure | None":
    """Time above, memory below; a column each for n, q and l."""
    from matplotlib.figure import Figure

    curves = dict(_curves(result))
    if not curves:
        return None
    drawn = Figure(figsize=(9.2, 5.6), layout="constrained")
    axes = drawn.subplots(2, len(VARIABLES), sharey="row", sharex="col", squeeze=False)
    for column, variable in enumerate(VARIABLES):
        for line, (quantity, unit, label) in enumerate(
            (("time", 1e3, "time, ms"), ("memory", 1e6, "extra peak memory, MB"))
        ):
            axis = axes[line, column]
            entries = curves.get(variable, [])
            xs = [getattr(entry.row, variable) for entry in entries]
            for variant, colour in _COLOURS.items():
                ys = [_value(entry, variant, quantity) / unit for entry in entries]
                exponent = _exponent(variable, entries, variant, quantity)
                slope = "" if exponent is None else f": ${variable}^{{{exponent.shown}}}$"
                axis.plot(xs, ys, color=colour, marker=_MARKERS[variant], label=f"{variant}{slope}")
            axis.set_xscale("log")
            axis.set_yscale("log")
            axis.grid(alpha=0.3)
            if entries:
                # What fits into a panel wherever the curves run.
                axis.legend(fontsize=8, loc="best")
            if column == 0:
                axis.set_ylabel(label)
            if line == 1:
                axis.set_xlabel(_WORDS[variable])
    return drawn


def _curves(result: Result) -> Iterator[tuple[str, list[Entry]]]:
    """The points of each variable, ascending; those it has none of are left out."""
    found = list(result.of(KIND))
    for variable in VARIABLES:
        entries = [entry for entry in found if entry.row.key.startswith(f"{KIND}-{variable}-")]
        if entries:
            yield variable, sorted(entries, key=lambda entry: int(getattr(entry.row, variable)))


def _value(entry: Entry, variant: str, quantity: str) -> float:
    if quantity == "memory":
        return entry.memory[variant]
    return entry.ours if variant == "ours" else entry.peers[variant]


def _size(memory: float) -> str:
    return size(memory) if memory > LEAST_SEEN else f"under {size(LEAST_SEEN)}"


def _part(ours: float, theirs: float) -> str:
    """Of the reference's memory; nothing where either cannot be seen."""
    return f"{ours / theirs:.3f}x" if min(ours, theirs) > LEAST_SEEN else ""


def _exponent(variable: str, entries: list[Entry], variant: str, quantity: str) -> Exponent | None:
    if quantity == "memory":
        entries = [entry for entry in entries if entry.memory[variant] > LEAST_SEEN]
    if len(entries) < LEAST_POINTS:
        return None
    points = upper_half(entries)
    xs = [float(getattr(entry.row, variable)) for entry in points]
    return fit(xs, [_value(entry, variant, quantity) for entry in points])
