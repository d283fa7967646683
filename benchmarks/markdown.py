"""Cells and tables of the reports."""

from collections.abc import Iterable, Sequence

from benchmarks.results import Entry
from lip_fast.bench.rows import Target
from lip_fast.cli.table import markdown

__all__ = [
    "beside",
    "count",
    "error",
    "faster",
    "floor",
    "size",
    "table",
    "time",
    "verdict",
]


def table(header: Sequence[str], lines: Iterable[Sequence[str]]) -> str:
    """A table whose first column is text and whose others are numbers."""
    return markdown([header, *lines])


def beside(entry: Entry, peer: str) -> str:
    """Time of a peer, and in how many of ours that is; "n/a" with a mark where it was not measured."""
    if peer not in entry.peers:
        return "n/a"
    theirs = entry.peers[peer]
    target = verdict(entry.row.target("time", peer), entry.ours, theirs)
    ratio = theirs / entry.ours
    return f"{time(theirs)}, {ratio:.3g}x{target}" if ratio < 10 else f"{time(theirs)}, {ratio:.0f}x{target}"


def faster(entry: Entry, peer: str) -> str:
    """How many times faster than a peer ours is."""
    if peer not in entry.peers:
        return "n/a"
    ours, theirs = entry.ours, entry.peers[peer]
    ratio = theirs / ours
    words = f"{ratio:.1f}x faster" if ratio >= 1 else f"{1 / ratio:.1f}x slower"
    return words + verdict(entry.row.target("time", peer), ours, theirs)


def floor(entry: Entry) -> str:
    """What the bytes or the arithmetic take at least, and how many times that ours takes."""
    if not entry.floors:
        return ""
    least = max(entry.floors.values())
    return f"{time(least)}, {entry.ours / least:.3g}x"


def verdict(target: Target | None, ours: float, peer: float) -> str:
    """Whether a target is met; nothing where there is none."""
    if target is None:
        return ""
    return f" ({target} {'✓' if target.met(ours, peer) else '✗'})"


def error(entry: Entry) -> str:
    """The error of ours and its bound."""
    return f"{entry.error:.0e} (≤ {entry.bound:.0e})"


def time(microseconds: float) -> str:
    """A time in three digits."""
    if microseconds < 1000:
        return f"{microseconds:.3g} µs" if microseconds < 10 else f"{microseconds:.0f} µs"
    milliseconds = microseconds / 1000
    return f"{milliseconds:.2f} ms" if milliseconds < 10 else f"{milliseconds:.0f} ms"


def size(number: float) -> str:
    """A number of bytes."""
    return f"{number / 1e9:.2f} GB" if number >= 1e9 else f"{number / 1e6:.1f} MB"


def count(number: int, noun: str) -> str:
    """A number of things."""
    return f"{number} {noun}" + ("" if number == 1 else "s")
