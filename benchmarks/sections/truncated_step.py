"""The warm truncated step and its peers."""

from typing import TYPE_CHECKING

from benchmarks.markdown import beside, error, floor, table, time, verdict
from benchmarks.results import Entry, Result
from lip_fast.bench.rows import BATCH

if TYPE_CHECKING:
    from matplotlib.figure import Figure

__all__ = ["KINDS", "TITLE", "figure", "summary"]

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
                floor(entry),
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
        "bytes, flops",
        "`LIP`",
        "LIP / floor",
        "`LIPAdamW`, `LIPSGD`",
    ]
    return (
        f'`LIP(..., tail_rank=r, rest="drop")` on a fused optimizer of torch, warm, batch {BATCH}, float32. '
        "*Floor* is the step without LIP plus the three products that no such step can do without (M V, Mᵀ "
        "Y and the rebuild), timed alone. The others are given with their time in times of `LIP`: LIP "
        "inside of the optimizer; the same step on a warm start composed of torch's operations (QR and SVD "
        "of small matrices), on `torch.svd_lowrank` with two power iterations and as many columns, and on "
        "`torch.linalg.svd`; and torchao's `PruneOptimizer` with `SVDGrouper`, which truncates the weight "
        "to k + r directions and refits nothing. The 10-class head has fewer classes than columns: there "
        "LIP takes the exact path.\n\n" + table([*header, *_PEERS.values(), "error"], lines)
    )


# Names on the axis, from the top.
_SHOWN = {
    "base step": "without LIP",
    "floor": "floor",
    "ours": "LIP",
    "inside the optimizer": "LIP inside",
    "composed": "composed warm start",
    "svd_lowrank": "svd_lowrank",
    "full SVD": "full SVD",
    "torchao": "torchao (truncates)",
}
# Of the Okabe-Ito palette, which everyone can tell apart.
_COLOURS = {"AdamW": "#0072B2", "SGD": "#D55E00"}
_MARKERS = {"AdamW": "o", "SGD": "D"}


def figure(result: Result) -> "Figure | None":
    """A panel a head: the times of all variants on a logarithmic axis."""
    from matplotlib.figure import Figure
    from matplotlib.ticker import NullFormatter

    heads: dict[str, list[Entry]] = {}
    for entry in result.of("truncated"):
        heads.setdefault(f"{entry.row.l} x {entry.row.q}", []).append(entry)
    if not heads:
        return None
    drawn = Figure(figsize=(11, 3.8), layout="constrained")
    axes = drawn.subplots(1, len(heads), sharey=True, squeeze=False)[0]
    for axis, (head, entries) in zip(axes, heads.items(), strict=True):
        for entry in entries:
            name, times = entry.row.optimizer, {"ours": entry.ours, **entry.peers}
            places = [(times[variant] / 1e3, i) for i, variant in enumerate(_SHOWN) if variant in times]
            # Points: a bar has no beginning on a logarithmic axis.
            style = {"color": _COLOURS[name], "marker": _MARKERS[name], "label": name}
            axis.plot(*zip(*places, strict=True), linestyle="", markersize=6, alpha=0.85, **style)
        axis.set_xscale("log")
        # Names of what lies between powers of ten would overlap.
        axis.xaxis.set_minor_formatter(NullFormatter())
        axis.set_title(f"head of {head}")
        axis.set_xlabel("median time of a step, ms")
        axis.grid(alpha=0.3)
        axis.axhspan(1.5, 3.5, color="0.9", zorder=0)
    axes[0].set_yticks(range(len(_SHOWN)), list(_SHOWN.values()))
    axes[0].invert_yaxis()
    axes[-1].legend(loc="upper right")
    return drawn
