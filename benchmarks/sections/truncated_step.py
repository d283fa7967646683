"""The warm truncated step and its peers."""

from benchmarks.markdown import beside, error, table, time, verdict
from benchmarks.results import Result
from lip_fast.bench.rows import BATCH

__all__ = ["KINDS", "TITLE", "summary"]

TITLE = "One optimizer step with truncated LIP"
KINDS = ("truncated",)
_PEERS = {
    "composed": "composed",
    "svd_lowrank": "`svd_lowrank`",
    "full SVD": "full SVD",
    "torchao": "torchao",
}


def summary(result: Result) -> str:
    """Every head with either optimizer."""
    lines = []
    for entry in result.of("truncated"):
        row, peers = entry.row, entry.peers
        slower = f"{entry.ours / peers['floor']:.2f}x"
        lines.append(
            [
                row.optimizer,
                f"{row.l} x {row.q}",
                f"{row.k} + {row.tail_rank}",
                time(peers["base step"]),
                time(peers["floor"]),
                time(entry.ours),
                slower + verdict(row.target("time", "floor"), entry.ours, peers["floor"]),
                beside(entry, "inside the optimizer"),
                *(beside(entry, peer) for peer in _PEERS),
                error(entry),
            ]
        )
    header = [
        "optimizer",
        "head",
        "k + r",
        "without LIP",
        "floor",
        "`LIP`",
        "LIP / floor",
        "`LIPAdamW`, `LIPSGD`",
    ]
    return (
        f'`LIP(..., tail_rank=r, rest="drop")` on a fused optimizer of torch, warm, batch {BATCH}, float32. '
        "*Floor* "
        "is the step without LIP plus the three products that no such step can do without (M V, Mᵀ Y and "
        "the rebuild), timed alone. The others are given with their time in times of `LIP`: LIP inside of "
        "the optimizer; the same step on a warm start composed of torch's operations (QR and SVD of small "
        "matrices), on `torch.svd_lowrank` with two power iterations and as many columns, and on "
        "`torch.linalg.svd`; and torchao's `PruneOptimizer` with `SVDGrouper`, which truncates the weight "
        "to k + r directions and refits nothing. The 10-class head has fewer classes than columns: there "
        "LIP takes the exact path.\n\n" + table([*header, *_PEERS.values(), "error"], lines)
    )
