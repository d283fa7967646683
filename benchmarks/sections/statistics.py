"""Label statistics and what is computed from them."""

from benchmarks.markdown import error, floor, table, time, verdict
from benchmarks.results import Result

__all__ = ["KINDS", "TITLE", "summary"]

TITLE = "Label statistics"
KINDS = ("statistics", "ridge-path", "gaussian")


def summary(result: Result) -> str:
    """Streaming, ridge regression and the Gaussian head."""
    lines = []
    for entry in (entry for kind in KINDS for entry in result.of(kind)):
        row = entry.row
        if row.kind == "statistics":
            what = f"`update`, {row.n} rows streamed"
            others = {"products": "X\u1d40 X alone"}
        elif row.kind == "gaussian":
            what = "`gaussian`"
            others = {"solve": "one `torch.cholesky_solve` of the size"}
        else:
            what = f"`ridge_path`, {row.k} alphas"
            others = {"one alpha": "one alpha", "solve": "`torch.linalg.solve`, one alpha"}
        for peer, label in others.items():
            ratio = entry.ours / entry.peers[peer]
            target = verdict(row.target("time", peer), entry.ours, entry.peers[peer])
            cells = [
                what,
                time(entry.ours),
                floor(entry),
                label,
                time(entry.peers[peer]),
                f"{ratio:.2f}x" + target,
            ]
            lines.append([*cells, error(entry)])
    return "q = 512, l = 100, from float32 features and class indices into float64 accumulators.\n\n" + table(
        ["", "ours", "bytes, flops", "beside", "it takes", "ours / it", "error"], lines
    )
