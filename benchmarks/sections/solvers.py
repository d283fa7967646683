"""The native solvers beside LAPACK's."""

from benchmarks.markdown import error, faster, table, time
from benchmarks.results import Result

__all__ = ["KINDS", "TITLE", "summary"]

TITLE = "Small problems"
KINDS = ("small-svd", "tail-svd")


def summary(result: Result) -> str:
    """The solver of the small problem, and the exact decomposition of a small head."""
    small = [
        [
            str(entry.row.l),
            time(entry.ours),
            time(entry.peers["cold"]),
            time(entry.peers["linalg.svd"]),
            time(entry.peers["linalg.eigh"]),
            error(entry),
        ]
        for entry in result.of("small-svd")
    ]
    tail = [
        [
            f"{entry.row.l} x {entry.row.q}",
            str(entry.row.k),
            time(entry.ours),
            time(entry.peers["default"]),
            faster(entry, "default"),
            error(entry),
        ]
        for entry in result.of("tail-svd")
    ]
    header = ["m", "native, warm", "native, cold", "`torch.linalg.svd`", "`torch.linalg.eigh`"]
    return (
        "**The solver of the small problem**, m x m, float32: one-sided Jacobi in one thread, *warm* from "
        "the decomposition of a matrix 1% away. It is there for GPUs, where the library waits for the host. "
        "*eigh* is of the symmetric TᵀT.\n\n"
        + table([*header, "error"], small)
        + "\n\n**The exact decomposition of a small head**: all singular values and the vectors below the "
        "kept ones, by the native kernel and by plain torch.\n\n"
        + table(["head", "k", "native", "plain torch", "native is", "error"], tail)
    )
