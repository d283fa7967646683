"""What was measured, as plain text: a small table for each kind of row, a column for each row."""

import textwrap
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from lip_fast.bench.rows import Row
from lip_fast.cli.table import aligned

__all__ = ["WIDTH", "render"]

WIDTH = 110
_TITLES = {"one-shot": "one-shot lip()", "truncated": "truncated step", "exact": "exact step"}
_CHECK = "worst check"
_GAP = "  "

Record = Mapping[str, Any]
"""What :func:`lip_fast.bench.cases.run_cases` writes of a row."""


def render(rows: Sequence[Row], records: Sequence[Record]) -> str:
    """Tables of the records, and below them why something is missing; at most 110 columns wide.

    Args:
        rows: those that were to be measured, in the order in which they are shown.
        records: of those that were.
    """
    by_key = {record["row"]: record for record in records}
    groups: dict[str, list[tuple[Row, Record]]] = {}
    for row in rows:
        if row.key in by_key:
            title = _TITLES[row.kind] + ("" if row.kind == "one-shot" else f", {row.optimizer}")
            groups.setdefault(title, []).append((row, by_key[row.key]))
    lines = [
        "Median time of a call; x: how many times as long as LIP in the same row. Worst check: the largest",
        "measured error as a part of what it may be.",
    ]
    for title, group in groups.items():
        lines += ["", *_table(title, group)]
    reasons = list(dict.fromkeys(_reasons(records)))
    return "\n".join([*lines, *([""] if reasons else []), *reasons])


def _table(title: str, group: Sequence[tuple[Row, Record]]) -> Iterator[str]:
    """Tables of the rows of one kind: one, or several where the rows do not fit beside each other."""
    columns = [(row.key, _cells(record)) for row, record in group]
    # Ours first, then as the rows list them, then what they do not list.
    measured = {name for _, cells in columns for name in cells if name != _CHECK}
    listed = [name for row, _ in group for name in ("LIP", *row.peers)]
    names = [*dict.fromkeys(name for name in [*listed, *sorted(measured)] if name in measured), _CHECK]
    first = max(map(len, [title, *names]))
    width = max(len(text) for key, cells in columns for text in (key, *cells.values()))
    fits = max(1, (WIDTH - first) // (width + len(_GAP)))
    for block in (columns[i : i + fits] for i in range(0, len(columns), fits)):
        header = [title, *(key for key, _ in block)]
        cells = [[name, *(column.get(name, "-") for _, column in block)] for name in names]
        yield aligned([header, *cells], names=1, least=width)


def _cells(record: Record) -> dict[str, str]:
    """The text of each line in the column of a row."""
    if record["void"]:
        return {"LIP": "VOID"}
    if record.get("skipped"):
        return {"LIP": "skipped"}
    times = {name: found["median_us"] for name, found in record["times"].items()}
    ours = times[record["ours"]]
    cells = {
        # As wide as the ratio of a peer: the times stand below each other.
        name: f"{_time(time)} {'' if name == record['ours'] else f'{_short(time / ours)}x':>7}"
        for name, time in times.items()
    }
    worst = max(gate["value"] / gate["bound"] for gate in record["gates"])
    return {**cells, _CHECK: f"{worst:.2f} {'':>7}"}


def _reasons(records: Sequence[Record]) -> Iterator[str]:
    for record in records:
        reasons = {"VOID": record["void"], "skipped": record.get("skipped")}
        said = [f"{record['row']}: {word}: {reason}" for word, reason in reasons.items() if reason]
        said += [f"no {name}: {why}" for name, why in record.get("variants_skipped", {}).items()]
        for line in said:
            yield textwrap.fill(line, WIDTH, subsequent_indent=_GAP)


def _time(microseconds: float) -> str:
    for unit, size in (("s", 1e6), ("ms", 1e3)):
        if microseconds >= size:
            return f"{_short(microseconds / size)} {unit}"
    return f"{_short(microseconds)} us"


def _short(value: float) -> str:
    """Two or three digits, and no exponent."""
    digits = next((digits for digits, least in enumerate((100, 10, 0.1)) if value >= least), 3)
    return f"{value:.{digits}f}"
