"""LIP inside of the optimizer, and the optimizer where LIP has nothing to do."""

from benchmarks.markdown import error, floor, table, time, verdict
from benchmarks.results import Result
from lip_fast.bench.rows import BATCH

__all__ = ["KINDS", "TITLE", "summary"]

TITLE = "LIP inside of the optimizer"
KINDS = ("optimizer", "plain-optimizer")


def summary(result: Result) -> str:
    """Steps of ``LIPAdamW`` with a weight for LIP and without."""
    lines = []
    for entry in result.of("optimizer"):
        row, peers = entry.row, entry.peers
        target = verdict(row.target("time", "floor"), entry.ours, peers["floor"])
        lines.append(
            [
                f"{row.l} x {row.q}",
                row.rest,
                time(entry.ours),
                time(peers["base step"]),
                time(peers["three products"]),
                floor(entry),
                f"{entry.ours / peers['floor']:.2f}x{target}",
                error(entry),
            ]
        )
    plain = []
    for entry in result.of("plain-optimizer"):
        row, base = entry.row, entry.peers["base step"]
        ratio = f"{entry.ours / base:.2f}x" + verdict(row.target("time", "base step"), entry.ours, base)
        plain.append([f"{row.n}, {row.q} wide", time(entry.ours), time(base), ratio])
    header = [
        "head",
        "rest",
        "`LIPAdamW`",
        "`AdamW`",
        "three products",
        "bytes, flops",
        "ours / both",
        "error",
    ]
    return (
        f"A step of `LIPAdamW(fused=True)` that LIP acts on, k = 32, r = 24, warm, batch {BATCH}, float32. "
        "*Both* is `AdamW(fused=True)` and the three products, each timed alone.\n\n"
        + table(header, lines)
        + "\n\nOn a network without any weight for LIP, to the same bits as `AdamW(fused=True)`:\n\n"
        + table(["linear layers", "`LIPAdamW`", "`AdamW`", "ours / it"], plain)
    )
