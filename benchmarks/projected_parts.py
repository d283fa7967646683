"""What the parts of the step by products do: guards, rotation, power steps, the length of the tail, every.

``python -m benchmarks.projected_parts``: the training of :mod:`benchmarks.trajectory` with one part taken
away or changed, and how far from exact LIP it ends; the time of a step on a larger head, all in turns; and
what the guards do where a direction appears or dies between two steps.
"""

import copy
import statistics
import sys
import time
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any
from unittest.mock import patch

import torch
from torch import Tensor, nn
from tqdm import tqdm

from benchmarks import trajectory
from benchmarks.command import Parser, answer
from benchmarks.markdown import count, table
from benchmarks.markdown import time as time_of
from lip_fast import LIP, flops, projected

__all__ = ["VARIANTS", "guarded", "main", "step_times", "varied"]

SHAPE, OPTIMIZER, RANKS = (200, 320), "AdamW, 1e-3", (100, 180)
LARGE = (1000, 2048, 475)
ROUNDS = 7


def _no_rotation(Q: Tensor, Z: Tensor, A: Tensor, C: Tensor, *rest: Tensor) -> tuple[Tensor, Tensor]:
    return A, C


def _twice(M: Tensor, basis: Tensor, *rest: Any, **settings: Any) -> Any:
    """The split from the basis that a first split of the same weight leaves."""
    first = projected.split(M, basis, *rest, **settings)
    return projected.split(M, first.basis, *rest, **settings)


# What is patched, and the settings of LIP. One guard and not none: s_k, which limits the refit, is its.
VARIANTS: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "as it is": ({}, {}),
    "one guard column, not 8": ({"lip_fast.projected.GUARDS": 1}, {}),
    "no rotation": ({"lip_fast.projected._rotated": _no_rotation}, {}),
    "no rotation, two power steps": (
        {"lip_fast.projected._rotated": _no_rotation, "lip_fast.world.split": _twice},
        {},
    ),
    "a tail of 16, the rest dropped": ({}, {"tail_rank": 16, "rest": "drop"}),
    "a tail of 32, the rest dropped": ({}, {"tail_rank": 32, "rest": "drop"}),
    "every 2": ({}, {"every": 2}),
    "every 4": ({}, {"every": 4}),
    "every 8": ({}, {"every": 8}),
}


# A step in one call has its parts in C++, out of reach.
_IN_PARTS = {f"lip_fast.ops.{name}": lambda *_, **__: None for name in ("projected_step_", "split")}


@contextmanager
def varied(patches: dict[str, Any]) -> Iterator[None]:
    """Inside, these names of the package are others."""
    with ExitStack() as stack:
        for name, value in (_IN_PARTS | patches).items():
            stack.enter_context(patch(name, value))
        yield


class _Head:
    """A head of many classes in training, and LIP on it."""

    def __init__(self, l: int, q: int, rank: int, **settings: Any) -> None:
        with torch.random.fork_rng():
            torch.manual_seed(0)
            self.head = nn.Linear(q, l)
        self.optimizer = torch.optim.AdamW(self.head.parameters(), 1e-3)
        self.lip = LIP(self.head, rank, **settings)

    def learn(self, features: Tensor, labels: Tensor) -> None:
        self.optimizer.zero_grad()
        nn.functional.cross_entropy(self.head(features), labels).backward()
        self.optimizer.step()
        self.lip.observe(features, labels)


def step_times(l: int, q: int, rank: int, rounds: int = ROUNDS) -> dict[str, float]:
    """Seconds of a step of LIP by variant: medians, all in turns; ``every`` is told by its share."""
    heads = {name: _Head(l, q, rank, **settings) for name, (_, settings) in VARIANTS.items()
             if "every" not in settings}  # fmt: skip
    heads["exact LIP"] = _Head(l, q, rank, tail_rank="all")
    times: dict[str, list[float]] = {name: [] for name in heads}
    for step in range(rounds + 2):
        g = torch.Generator().manual_seed(step)
        features, labels = (
            torch.relu(torch.randn(256, q, generator=g)),
            torch.randint(0, l, (256,), generator=g),
        )
        for name, each in heads.items():
            each.learn(features, labels)
            with varied(VARIANTS.get(name, ({}, {}))[0]):
                begun = time.perf_counter()
                each.lip.apply()
                times[name].append(time.perf_counter() - begun)
    # The first step is exact in all of them.
    found = {name: statistics.median(values[2:]) for name, values in times.items()}
    return found | {
        name: found["as it is"] / settings["every"]
        for name, (_, settings) in VARIANTS.items()
        if "every" in settings
    }


def guarded(guards: int, new: int, dead: int, k: int = 20) -> tuple[float, float]:
    """What one step of LIP keeps where ``new`` directions appeared at 2 s_k, or ``dead`` kept ones died.

    Returns:
        u^T W v / (2 s_k) of the directions that appeared, as a mean, nan of none; and s_k of the weight as a
        share of that which exact LIP leaves, low where a dead direction was not replaced.
    """
    l, q = SHAPE
    given = _Head(l, q, k, tail="zero")
    g = torch.Generator().manual_seed(0)
    centres = torch.randn(l, q, generator=g)

    def learn() -> tuple[Tensor, Tensor]:
        labels = torch.randint(0, l, (256,), generator=g)
        features = torch.relu(centres[labels] + 2 * torch.randn(256, q, generator=g))
        given.learn(features, labels)
        return features, labels

    with varied({"lip_fast.projected.GUARDS": guards}):
        for _ in range(20):
            learn()
            given.lip.apply()
        weight = given.head.weight.detach()
        U, S, Vh = torch.linalg.svd(weight, full_matrices=False)
        change = torch.zeros_like(S)
        change[3 : 3 + dead] = -S[3 : 3 + dead]
        A, B = (torch.linalg.qr(torch.randn(n, max(new, 1), generator=g))[0][:, :new] for n in (l, q))
        weight += U * change @ Vh + 2 * S[k - 1] * A @ B.mT
        seen = learn()
        head = copy.deepcopy(given.head)
        exact = LIP(head, k, tail_rank="all", tail="zero")
        exact.observe(*seen)
        exact.apply()
        given.lip.apply()
    ours, theirs = (torch.linalg.svdvals(W.detach())[k - 1] for W in (weight, head.weight))
    caught = (A * (weight @ B)).sum(0).mean() / (2 * S[k - 1])
    return float(caught), float(ours / theirs)


def _of_parts(times: dict[str, float], progress: Callable[[Any], Any]) -> str:
    exact = {k: trajectory.run(SHAPE, OPTIMIZER, k, tail_rank="all")[0] for k in RANKS}
    plain = trajectory.run(SHAPE, OPTIMIZER, None)[0]
    lines = []
    for name, (patches, settings) in progress(VARIANTS.items()):
        cells = []
        for k in RANKS:
            with varied(patches):
                weight, stats = trajectory.run(SHAPE, OPTIMIZER, k, **settings)
            assert stats["skipped"] == 0, stats
            cells.append(f"{trajectory.distance(weight, exact[k]):.1e}")
            if "every" in settings:
                same = trajectory.run(SHAPE, OPTIMIZER, k, tail_rank="all", **settings)[0]
                cells[-1] += f" ({trajectory.distance(weight, same):.1e})"
        share = times[name] / times["as it is"]
        lines.append((name, *cells, time_of(1e6 * times[name]), f"{share:.2f}x"))
    of_plain = [f"{trajectory.distance(plain, exact[k]):.1e}" for k in RANKS]
    share = times["exact LIP"] / times["as it is"]
    lines.append(("exact LIP", *["0"] * len(RANKS), time_of(1e6 * times["exact LIP"]), f"{share:.2f}x"))
    lines.append(("without LIP", *of_plain, "", ""))
    l, q, rank = LARGE
    header = ("", *(f"from exact LIP, k = {k}" for k in RANKS), f"step at {l} x {q}, k = {rank}", "share")
    return table(header, lines)


def _of_guards() -> str:
    lines = []
    for k in (20, 100):
        for guards in (0, 1, 8):
            caught = [f"{guarded(guards, new, 0, k)[0]:.2f}" for new in (1, 4, 8)]
            replaced = [f"{guarded(guards, 0, dead, k)[1]:.2f}" for dead in (1, 4)]
            lines.append((f"k = {k}, {count(guards, 'guard')}", *caught, *replaced))
    header = ("", "1 appears: kept of it", "4 appear", "8 appear", "1 dies: s_k of exact", "4 die")
    return table(header, lines)


def main(arguments: Sequence[str] | None = None) -> int:
    """Print the tables."""
    parser = Parser(prog="python -m benchmarks.projected_parts", description=__doc__.partition("\n")[0])
    parser.parse_args(arguments)

    def work() -> None:
        torch.set_num_threads(1)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            times = step_times(*LARGE)
            # Heads of this size would be decomposed exactly.
            with patch.object(flops, "products_pay", lambda *_: True):
                print(_of_parts(times, lambda items: tqdm(items, disable=None)))
                print()
                print(_of_guards())

    return answer(parser, work)


if __name__ == "__main__":
    sys.exit(main())
