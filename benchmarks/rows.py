"""What is measured: the rows, their sizes, their targets, the checks each must have passed.

The benchmarks and the report read the same list, so a result that lacks a row or a check is noticed.
This module imports nothing but the standard library: a report can be made without torch.
"""

from dataclasses import dataclass
from typing import Literal

__all__ = ["BATCH", "FRESH_COLUMNS", "ROWS", "Row", "Target", "row"]

# One batch of class-index targets for every optimizer step measured.
BATCH = 128
# The columns a truncated step adds to its k + r to look for new directions.
FRESH_COLUMNS = 8


Kind = Literal[
    "one-shot",
    "truncated",
    "exact",
    "statistics",
    "ridge-path",
    "small-svd",
    "tail-svd",
    "optimizer",
    "plain-optimizer",
    "epoch",
]


@dataclass(frozen=True)
class Target:
    """A bound on a ratio.

    Args:
        quantity: "time" or "memory".
        peer: what we are compared with.
        at_least: peer / ours must reach this (how many times better we are).
        at_most: ours / peer must stay below this.
    """

    quantity: Literal["time", "memory"]
    peer: str
    at_least: float | None = None
    at_most: float | None = None

    def met(self, ours: float, peer: float) -> bool:
        """Whether the measured pair reaches the target."""
        if self.at_least is not None:
            return peer >= self.at_least * ours
        assert self.at_most is not None
        return ours <= self.at_most * peer

    def __str__(self) -> str:
        if self.at_least is not None:
            return f"≥ {self.at_least:g}"
        return f"≤ {self.at_most:.3g}"


@dataclass(frozen=True)
class Row:
    """One measured problem.

    Args:
        key: name of the row in the results.
        kind: "one-shot" is ``lip()``; "truncated" and "exact" are optimizer steps; "statistics" is
            ``LabelStatistics.update`` over a stream, "ridge-path" its ``ridge_path``; "small-svd" and
            "tail-svd" are the ops of these names; "optimizer" is a step of ``LIPAdamW``, "plain-optimizer"
            one without any weight for LIP; "epoch" is one of the training harness, scores included.
        l: classes; of a small problem, its size.
        q: features; without LIP, of every layer.
        k: principal directions kept; of a ridge path, the number of alphas.
        tail_rank: directions refitted below them; None for all that remain.
        n: samples, or batch size of a step; without LIP, the number of layers.
        peers: what is timed beside ours, in the same rounds.
        gates: the checks that must have passed before anything was timed.
        targets: the ratios promised; rows without a promise show their ratios alone.
        rest: what a truncated step does to the directions below those refitted.
    """

    key: str
    kind: Kind
    l: int
    q: int
    k: int
    tail_rank: int | None
    n: int
    peers: tuple[str, ...]
    gates: tuple[str, ...]
    targets: tuple[Target, ...] = ()
    rest: Literal["keep", "drop"] = "drop"

    @property
    def columns(self) -> int:
        """Width of the basis of a truncated step: k + r + p, at most the small side of the head."""
        assert self.tail_rank is not None
        return min(self.k + self.tail_rank + FRESH_COLUMNS, self.l, self.q)

    def target(self, quantity: str, peer: str) -> Target | None:
        """The target for this quantity against this peer, or None."""
        for target in self.targets:
            if (target.quantity, target.peer) == (quantity, peer):
                return target
        return None


_STEP_PEERS = ("floor", "base step", "three products", "full SVD", "svd_lowrank")
_STEP_GATES = (
    "distance",
    "reconstruction",
    "values",
    "full SVD distance",
    "svd_lowrank distance",
)
_REFERENCE_GATES = ("distance", "reference distance")
_RESTS: tuple[Literal["keep", "drop"], ...] = ("keep", "drop")


def _truncated(l: int, q: int, k: int, tail_rank: int, targets: tuple[Target, ...] = ()) -> Row:
    key = f"truncated-{l}x{q}"
    return Row(key, "truncated", l, q, k, tail_rank, BATCH, _STEP_PEERS, _STEP_GATES, targets)


def _exact(l: int, q: int) -> Row:
    # A principal subspace of C classes has about C directions: a smaller k ruins the classifier, so
    # the exact path is measured where it would be used.
    k = round(0.9 * min(l, q))
    key = f"exact-{l}x{q}"
    return Row(key, "exact", l, q, k, None, BATCH, ("reference",), _REFERENCE_GATES)


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
    peers = ("cold", "op", "linalg.svd", "linalg.eigh")
    gates = ("distance", "cold distance", "op distance", "values")
    return Row(f"small-svd-{m}", "small-svd", m, m, 0, None, 0, peers, gates)


ROWS: tuple[Row, ...] = (
    Row(
        "one-shot",
        "one-shot",
        l=100,
        q=512,
        k=20,
        tail_rank=None,
        n=50_000,
        peers=("floor", "reference"),
        gates=_REFERENCE_GATES,
        targets=(
            Target("time", "reference", at_least=4),
            Target("memory", "reference", at_most=1 / 3),
        ),
    ),
    _truncated(
        1000,
        2048,
        32,
        24,
        (
            Target("time", "floor", at_most=1.5),
            Target("time", "full SVD", at_least=35),
            Target("time", "svd_lowrank", at_least=2.2),
        ),
    ),
    _truncated(100, 512, 32, 24),
    # k + r + p = 15 columns exceed the 10 classes: this row shows the exact path.
    _truncated(10, 512, 4, 3),
    _exact(1000, 2048),
    _exact(100, 512),
    _exact(10, 512),
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
)


def row(key: str) -> Row:
    """The row of that name."""
    return next(row for row in ROWS if row.key == key)
