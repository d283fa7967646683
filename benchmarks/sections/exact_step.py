"""The step on the exact path."""

from benchmarks.markdown import beside, error, floor, table, time
from benchmarks.results import Result

__all__ = ["KINDS", "TITLE", "summary"]

TITLE = "One optimizer step with exact LIP"
KINDS = ("exact",)


def summary(result: Result) -> str:
    """Every head with either optimizer."""
    lines = [
        [
            entry.row.optimizer,
            f"{entry.row.l} x {entry.row.q}",
            str(entry.row.k),
            time(entry.peers["base step"]),
            floor(entry),
            time(entry.ours),
            beside(entry, "inside the optimizer"),
            beside(entry, "reference"),
            error(entry),
        ]
        for entry in result.of("exact")
    ]
    header = [
        "optimizer",
        "head",
        "k",
        "without LIP",
        "bytes, flops",
        "`LIP`",
        "`LIPAdamW`, `LIPSGD`",
        "reference",
        "error",
    ]
    return (
        '`LIP(..., tail_rank="all")`, k near 0.9 min(l, q), against the same step with `reference.lip_step`; '
        "these "
        "with their time in times of `LIP`.\n\n" + table(header, lines)
    )
