"""What is measured: the rows, their sizes, their targets, the checks each must have passed.

The benchmarks and the report read the same list, so a result that lacks a row or a check is noticed.
"""

from typing import Literal

from benchmarks.decomposition_rows import DECOMPOSITION_ROWS
from benchmarks.op_rows import OP_ROWS
from benchmarks.scaling_rows import SCALING_ROWS
from lip_fast.bench.rows import BATCH, CORE, Row, Target

__all__ = ["ROWS", "row"]

_RESTS: tuple[Literal["keep", "drop"], ...] = ("keep", "drop")


def _optimizer(l: int, q: int, rest: Literal["keep", "drop"]) -> Row:
    return Row(
        f"optimizer-{l}x{q}-{rest}",
        "optimizer",
        l,
        q,
        k=32,
        tail_rank=24,
        n=BATCH,
        peers=("floor", "base step", "three products"),
        gates=("distance",),
        targets=(Target("time", "floor", at_most=1.3),),
        rest=rest,
    )


def _plain_optimizer(l: int, q: int, layers: int) -> Row:
    targets = (Target("time", "base step", at_most=1.1),)
    key = f"plain-optimizer-{layers}x{q}"
    return Row(
        key, "plain-optimizer", l, q, 0, None, layers, ("base step",), ("distance",), targets, rest="keep"
    )


def _small_svd(m: int) -> Row:
    peers = ("cold", "linalg.svd", "linalg.eigh")
    gates = ("distance", "cold distance", "values")
    return Row(f"small-svd-{m}", "small-svd", m, m, 0, None, 0, peers, gates)


ROWS: tuple[Row, ...] = (
    *CORE,
    Row(
        "statistics",
        "statistics",
        l=100,
        q=512,
        k=0,
        tail_rank=None,
        n=1_000_000,
        peers=("products",),
        gates=("distance",),
        # 70% of the rate of the products.
        targets=(Target("time", "products", at_most=1 / 0.7),),
    ),
    Row(
        "ridge-path",
        "ridge-path",
        l=100,
        q=512,
        k=20,
        tail_rank=None,
        n=8192,
        peers=("one alpha", "solve"),
        gates=("distance",),
        targets=(Target("time", "one alpha", at_most=2),),
    ),
    Row(
        "gaussian",
        "gaussian",
        l=100,
        q=512,
        k=0,
        tail_rank=None,
        n=8192,
        peers=("solve",),
        gates=("distance",),
        targets=(Target("time", "solve", at_most=2),),
    ),
    *(_small_svd(m) for m in (10, 24, 48, 64, 128)),
    Row(
        "tail-svd-10x512",
        "tail-svd",
        l=10,
        q=512,
        k=4,
        tail_rank=None,
        n=0,
        peers=("default",),
        gates=("distance", "default distance"),
    ),
    *(_optimizer(l, q, rest) for l, q in ((1000, 2048), (32000, 1024)) for rest in _RESTS),
    # What the class costs where it has nothing to do: of a network, and of one so small that the calls are
    # all that the step takes.
    _plain_optimizer(100, 512, 4),
    _plain_optimizer(10, 64, 2),
    # Fashion-MNIST and the harness's default network.
    Row(
        "epoch-mlp",
        "epoch",
        l=10,
        q=128,
        k=9,
        tail_rank=None,
        n=60_000,
        peers=("by hand", "LIP in the step"),
        gates=("distance",),
        targets=(Target("time", "by hand", at_most=1.3),),
    ),
    *DECOMPOSITION_ROWS,
    *SCALING_ROWS,
    *OP_ROWS,
)


def row(key: str) -> Row:
    """The row of that name."""
    return next(row for row in ROWS if row.key == key)
