"""Cells and tables of the reports, and the files they are written to."""

import os
import tempfile
from collections.abc import Iterable, Sequence
from pathlib import Path

from benchmarks.command import Refused
from benchmarks.results import Entry
from lip_fast.bench.rows import Target

__all__ = [
    "beside",
    "count",
    "error",
    "faster",
    "floor",
    "read_text",
    "replace_between_markers",
    "size",
    "table",
    "time",
    "verdict",
    "write_whole",
]


def table(header: Sequence[str], lines: Iterable[Sequence[str]]) -> str:
    """A table whose first column is text and whose others are numbers."""
    rule = ["---"] + ["---:"] * (len(header) - 1)
    return "\n".join("| " + " | ".join(line) + " |" for line in (header, rule, *lines))


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


def replace_between_markers(text: str, report: str, begin: str, end: str) -> str:
    """``text`` with the report between its markers, everything else as it was.

    Raises:
        Refused: the markers are not there, once each and in order.
    """
    if text.count(begin) != 1 or text.count(end) != 1 or text.index(begin) > text.index(end):
        raise Refused(f"expected the markers {begin} and {end} once each, in this order")
    before, rest = text.split(begin)
    _, after = rest.split(end)
    return f"{before}{begin}\n{report}\n{end}{after}"


def read_text(path: Path) -> str:
    """A text file with its line endings as they are.

    Raises:
        Refused: it cannot be read, or is no UTF-8.
    """
    try:
        return path.read_bytes().decode()
    except OSError as error:
        raise Refused(f"cannot read {path}: {error.strerror}") from None
    except UnicodeDecodeError:
        raise Refused(f"{path} is not UTF-8 text") from None


def write_whole(path: Path, content: bytes) -> None:
    """Replace the file as a whole, or leave it as it was."""
    descriptor, temporary = tempfile.mkstemp(dir=path.resolve().parent, prefix=f".{path.name}.")
    try:
        with os.fdopen(descriptor, "wb") as file:
            file.write(content)
        # mkstemp makes files that only their owner can read.
        mode = path.stat().st_mode & 0o777 if path.exists() else 0o644
        os.chmod(temporary, mode)
        os.replace(temporary, path.resolve())
    except BaseException:
        os.unlink(temporary)
        raise
