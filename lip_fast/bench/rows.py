"""What a row is, and the core rows: those that ``lip-fast bench`` measures on any machine."""

from dataclasses import dataclass
from typing import Literal

from lip_fast.projected import FRESH

__all__ = ["BATCH", "CORE", "Row", "Target"]

# One batch of class-index targets for every optimizer step measured.
BATCH = 128


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
            "tail-svd" are the solvers of these names; "optimizer" is a step of ``LIPAdamW``,
            "plain-optimizer" one without any weight for LIP; "epoch" is one of the training harness, scores
            included; "op" is one op.
        l: classes; of a small problem, its size.
        q: features; without LIP, of every layer.
        k: principal directions kept; of a ridge path, the number of alphas.
        tail_rank: directions refitted below them; None for all that remain.
        n: samples, or batch size of a step; without LIP, the number of layers.
        peers: what is timed beside ours, in the same rounds.
        gates: the checks that must have passed before anything was timed.
        targets: the ratios promised; rows without a promise show their ratios alone.
        rest: what a truncated step does to the directions below those refitted.
        optimizer: the base optimizer of a step.
        op: the op that is measured.
        dtype: of the weight.
    """

    key: str
    kind: str
    l: int
    q: int
    k: int
    tail_rank: int | None
    n: int
    peers: tuple[str, ...]
    gates: tuple[str, ...]
    targets: tuple[Target, ...] = ()
    rest: Literal["keep", "drop"] = "drop"
    optimizer: Literal["AdamW", "SGD"] = "AdamW"
    op: str = ""
    dtype: str = "float32"

    @property
    def columns(self) -> int:
        """Width of the basis of a truncated step: k + r + p, at most the small side of the head."""
        assert self.tail_rank is not None
        return min(self.k + self.tail_rank + FRESH, self.l, self.q)

    def target(self, quantity: str, peer: str) -> Target | None:
        """The target for this quantity against this peer, or None."""
        for target in self.targets:
            if (target.quantity, target.peer) == (quantity, peer):
                return target
        return None


_OPTIMIZERS: tuple[Literal["AdamW", "SGD"], ...] = ("AdamW", "SGD")
_STEP_PEERS = (
    "floor",
    "base step",
    "three products",
    "inside the optimizer",
    "composed",
    "svd_lowrank",
    "full SVD",
    "torchao",
)
_STEP_GATES = (
    "distance",
    "reconstruction",
    "values",
    "inside distance",
    "composed distance",
    "svd_lowrank distance",
    "full SVD distance",
)
_EXACT_PEERS = ("base step", "inside the optimizer", "reference")
_EXACT_GATES = ("distance", "inside distance", "reference distance")
_TRUNCATED_TARGETS = (
    Target("time", "floor", at_most=1.5),
    Target("time", "full SVD", at_least=35),
    Target("time", "svd_lowrank", at_least=2.2),
)


def _truncated(l: int, q: int, k: int, tail_rank: int) -> list[Row]:
    rows = []
    for optimizer in _OPTIMIZERS:
        # The promise is of AdamW on the largest head.
        targets = _TRUNCATED_TARGETS if (optimizer, l) == ("AdamW", 1000) else ()
        key = f"truncated-{optimizer.lower()}-{l}x{q}"
        sizes = (l, q, k, tail_rank, BATCH)
        row = Row(key, "truncated", *sizes, _STEP_PEERS, _STEP_GATES, targets, optimizer=optimizer)
        rows.append(row)
    return rows


def _exact(l: int, q: int) -> list[Row]:
    # A principal subspace of C classes has about C directions: a smaller k ruins the classifier, so
    # the exact path is measured where it would be used.
    sizes = (l, q, round(0.9 * min(l, q)), None, BATCH)
    return [
        Row(
            f"exact-{optimizer.lower()}-{l}x{q}",
            "exact",
            *sizes,
            _EXACT_PEERS,
            _EXACT_GATES,
            rest="keep",
            optimizer=optimizer,
        )
        for optimizer in _OPTIMIZERS
    ]


CORE: tuple[Row, ...] = (
    Row(
        "one-shot",
        "one-shot",
        l=100,
        q=512,
        k=20,
        tail_rank=None,
        n=50_000,
        peers=("floor", "reference"),
        gates=("distance", "reference distance"),
        targets=(
            Target("time", "reference", at_least=4),
            Target("memory", "reference", at_most=1 / 3),
        ),
    ),
    *_truncated(1000, 2048, 32, 24),
    *_truncated(100, 512, 32, 24),
    # k + r + p = 15 columns exceed the 10 classes: this row shows the exact path.
    *_truncated(10, 512, 4, 3),
    *_exact(1000, 2048),
    *_exact(100, 512),
    *_exact(10, 512),
)
