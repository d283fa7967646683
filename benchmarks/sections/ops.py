"""Every op: what the dispatcher chooses beside its implementations, and beside its floor."""

from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING

from benchmarks.markdown import error, floor, table, time
from benchmarks.results import Entry, Result

if TYPE_CHECKING:
    from matplotlib.figure import Figure

__all__ = ["KINDS", "TITLE", "details", "figure", "summary"]

TITLE = "Every op"
KINDS = ("op",)
_PEERS = ("default", "native", "triton", "torch.linalg")
# What README shows: the ops of the plug-in's step on a CPU, and those of statistics.
_OF_A_STEP = ("warm_svd", "tail_svd", "label_sums", "refit", "rebuild_", "class_sums", "gram")
_PAGE = "[the page of all numbers](docs/benchmarks.md)"
# Rules of `benchmarks/op_rows.py`.
_LEFT_OUT = (
    "Left out: what an op sees no other problem in than at a smaller head; float16 and float64 of more than "
    "2 million values, which nobody keeps there, and bfloat16 of more than 4 million, which a CPU computes "
    "in float32; exact decompositions by `tail_svd` that take half a second and more; formats that an op "
    "does not take. *default* is plain torch, but of the one-read updates, where it is two other ops. An op "
    "that draws the signs of a step is called for eight steps one after the other."
)
_ABOUT = (
    "`ops.NAME`, dispatch included, on whichever kernel serves it. *Floor* is a yardstick, the larger of "
    "two times: that of the bytes read and written, at the rate of a copy of as many, and that of the "
    "arithmetic, at the rate of a large product in the same format. What only reads can be faster than a "
    "copy."
)


def summary(result: Result) -> str:
    """Times of what a step on a CPU and statistics are made of, in float32, and in how many floors."""
    return (
        f"{_ABOUT} Here what a step and statistics are made of, in float32, in time and floors; the figure "
        f"shows all ops, and {_PAGE} the other formats and the implementations side by side. Empty where an "
        "op sees the same problem as at a smaller head, or would decompose exactly what nobody "
        "decomposes.\n\n" + _in_floors(result, _OF_A_STEP)
    )


def _in_floors(result: Result, ops: Sequence[str] | None = None) -> str:
    """Times in float32 of some ops, or all, with how many floors that is."""
    entries = [entry for entry in result.of("op") if entry.row.dtype == "float32"]
    shapes = _in_order(_head(entry) for entry in entries)
    lines = []
    for op in ops or _in_order(entry.row.op for entry in entries):
        found = {_head(entry): entry for entry in entries if entry.row.op == op}
        cells = (_beside_floor(found[shape]) if shape in found else "" for shape in shapes)
        lines.append([f"`{op}`", *cells])
    return table(["op", *shapes], lines)


def details(result: Result) -> str:
    """All shapes, formats and implementations, op by op."""
    parts = [_ABOUT, _LEFT_OUT, "In float32, time and floors:", _in_floors(result)]
    entries = list(result.of("op"))
    for op in _in_order(entry.row.op for entry in entries):
        own = [entry for entry in entries if entry.row.op == op]
        peers = [peer for peer in _PEERS if any(peer in entry.peers for entry in own)]
        lines = [
            [
                f"{_head(entry)}, {entry.row.dtype}",
                time(entry.ours),
                floor(entry),
                *(time(entry.peers[peer]) if peer in entry.peers else "" for peer in peers),
                error(entry),
            ]
            for entry in own
        ]
        parts.append(f"**`{op}`**\n\n" + table(["", "ours", "floor", *peers, "error"], lines))
        parts += _gaps(own)
    return "\n\n".join(parts)


def figure(result: Result) -> "Figure | None":
    """How many floors each op takes, and what its kernel gains over plain torch, in float32."""
    from matplotlib import colormaps
    from matplotlib.figure import Figure
    from matplotlib.ticker import NullFormatter

    entries = [entry for entry in result.of("op") if entry.row.dtype == "float32"]
    if not entries:
        return None
    ops = _in_order(entry.row.op for entry in entries)
    shapes = _in_order(_head(entry) for entry in entries)
    # The last tenth of the map is too bright to be read.
    colours = {shape: colormaps["viridis"](0.9 * i / len(shapes)) for i, shape in enumerate(shapes)}
    drawn = Figure(figsize=(11, 0.28 * len(ops) + 1.6), layout="constrained")
    left, right = drawn.subplots(1, 2, sharey=True)
    for shape in shapes:
        style = {"color": colours[shape], "linestyle": "", "marker": "o", "markersize": 5, "label": shape}
        own = [entry for entry in entries if _head(entry) == shape]
        places = [ops.index(entry.row.op) for entry in own]
        left.plot([entry.ours / _floor(entry) for entry in own], places, **style)
        gains = [entry.peers["default"] / entry.ours if "default" in entry.peers else None for entry in own]
        kept = [(gain, place) for gain, place in zip(gains, places, strict=True) if gain is not None]
        right.plot([gain for gain, _ in kept], [place for _, place in kept], **style)
    left.set_yticks(range(len(ops)), ops)
    left.invert_yaxis()
    for axis, words in ((left, "time of ours / floor"), (right, "time of the default kernel / time of ours")):
        axis.set_xscale("log")
        # Names of what lies between powers of ten would overlap.
        axis.xaxis.set_minor_formatter(NullFormatter())
        axis.axvline(1, color="0.4", linewidth=1)
        axis.grid(alpha=0.3)
        axis.set_xlabel(words)
    drawn.legend(*left.get_legend_handles_labels(), loc="outside upper center", ncols=len(shapes))
    return drawn


def _head(entry: Entry) -> str:
    return f"{entry.row.l} x {entry.row.q}"


def _floor(entry: Entry) -> float:
    return max(entry.floors.values())


def _beside_floor(entry: Entry) -> str:
    return f"{time(entry.ours)} ({entry.ours / _floor(entry):.3g}x)" if entry.floors else time(entry.ours)


def _gaps(entries: Sequence[Entry]) -> list[str]:
    """Which implementations were not measured, and why."""
    reasons: dict[str, list[str]] = {}
    for entry in entries:
        own = f"{entry.row.dtype} at {entry.row.l}x{entry.row.q}"
        for peer, reason in entry.skipped.items():
            where = reasons.setdefault(f"{peer} ({reason.replace(own, 'these')})", [])
            where.append(f"{_head(entry)} {entry.row.dtype}")
    said = []
    for what, where in reasons.items():
        said.append(what if len(where) == len(entries) else f"{what} at {', '.join(where)}")
    return [f"Not measured: {'; '.join(said)}."] if said else []


def _in_order(names: Iterable[str]) -> list[str]:
    """Each once, in the order they come."""
    return list(dict.fromkeys(names))
