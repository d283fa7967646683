"""An epoch of the training harness."""

from benchmarks.markdown import error, table, time, verdict
from benchmarks.results import Result

__all__ = ["KINDS", "TITLE", "summary"]

TITLE = "An epoch of the training harness"
KINDS = ("epoch",)


def summary(result: Result) -> str:
    """Without LIP, by hand, and with LIP."""
    lines = []
    for entry in result.of("epoch"):
        row, peers = entry.row, entry.peers
        ratio = f"{entry.ours / peers['by hand']:.2f}x"
        lines.append(
            [
                f"{row.n} rows",
                time(entry.ours),
                time(peers["by hand"]),
                ratio + verdict(row.target("time", "by hand"), entry.ours, peers["by hand"]),
                time(peers["LIP in the step"]),
                f"{peers['LIP in the step'] / entry.ours:.2f}x",
                error(entry),
            ]
        )
    header = ["epoch", "harness", "by hand", "harness / by hand", "with LIP", "LIP / without", "error"]
    return (
        "Its default network on data of the size of Fashion-MNIST, batches of 64, scored on training and "
        "test part; *by hand* is the shortest loop over the same tensors, scored on the test part. LIP acts "
        "in each step, on a "
        "head of 10 classes.\n\n" + table(header, lines)
    )
