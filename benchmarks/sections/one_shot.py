"""One-shot ``lip()`` on the size that is promised for."""

from benchmarks.markdown import error, faster, floor, size, table, time, verdict
from benchmarks.results import Entry, Result

__all__ = ["KINDS", "TITLE", "summary"]

TITLE = "One-shot LIP"
KINDS = ("one-shot",)


def summary(result: Result) -> str:
    """Time, memory and error."""
    return "\n\n".join(_block(entry) for entry in result.of("one-shot"))


def _block(entry: Entry) -> str:
    row = entry.row
    ours, peer = entry.memory["ours"], entry.memory["reference"]
    product = entry.peers["floor"]
    times = [
        "time",
        time(entry.ours),
        time(entry.peers["reference"]),
        faster(entry, "reference"),
        time(product),
        f"{entry.ours / product:.2f}x",
    ]
    ratio = f"{ours / peer:.2f}x of it" + verdict(row.target("memory", "reference"), ours, peer)
    memory = ["extra peak memory", size(ours), size(peer), ratio, "", ""]
    least = f" Bytes and flops alone: {floor(entry)}." if entry.floors else ""
    return (
        f"n = {row.n}, q = {row.q}, l = {row.l}, k = {row.k}, float32, from class indices. The reference's "
        "label matrix is part of its cost. *Floor* is the product of the features with the refitted "
        f"directions, alone.{least}\n\n"
        + table(
            ["", "`lip_fast.lip`", "`reference.lip`", "ratio", "floor", "ours / floor"],
            [times, memory, ["error", error(entry), "", "", "", ""]],
        )
    )
