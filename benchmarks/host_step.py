"""A step of LIP on a CPU beside its floor and what is composed of torch: ``python -m benchmarks.host_step``.

All variants of a head take turns in one run, so that the ratios of a row are of times measured side by side:
the optimizer's step without LIP, the three products that no step with so many columns can do without (by
``torch.mm``), the step with LIP, and the same step composed of torch's operations. Then steps by products,
alone, beside the three products of their columns.
"""

import statistics
import sys
import time
import warnings
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import wraps
from pathlib import Path
from typing import Any, Literal

import torch
from torch import nn
from tqdm import tqdm

from benchmarks.command import Parser, answer
from benchmarks.markdown import table
from benchmarks.markdown import time as time_of
from lip_fast import LIP
from lip_fast.bench import steps
from lip_fast.bench.problems import step as problem_of
from lip_fast.bench.rows import CORE, Row
from lip_fast.cli.atomic import write_whole
from lip_fast.harness.files.slots import Slot

__all__ = ["HEADS", "SLOT", "SPLITS", "main", "of_split", "of_step", "tables"]

SLOT = Slot("host")
# Classes, features, kept directions, those refitted below them.
HEADS = [(10, 512, 4, 3), (100, 512, 32, 24), (1000, 2048, 32, 24), (32000, 1024, 32, 24)]
FORMS: list[tuple[Literal["AdamW", "SGD"], Literal["keep", "drop"]]] = [
    ("AdamW", "drop"),
    ("AdamW", "keep"),
    ("SGD", "drop"),
]
# Heads with so many directions kept that they are split by products: half of them, and 95% of the energy.
SPLITS = [(1000, 2048, 475), (1000, 2048, 781), (10000, 768, 384)]
# Seconds for a row of rounds, and the fewest rounds.
SECONDS, ROUNDS = 3.0, 7
# Of a head with more entries there are fewer batches and gradients, to fit into memory.
MANY = 1 << 23


def _seeded(measure: Callable[..., dict[str, float]]) -> Callable[..., dict[str, float]]:
    """What draws from torch's global state leaves it as it was."""

    @wraps(measure)
    def seeded(*case: Any) -> dict[str, float]:
        with torch.random.fork_rng():
            torch.manual_seed(0)
            return measure(*case)

    return seeded


def _medians(
    variants: dict[str, tuple[Callable[[], Any], Callable[[], Any]]], seconds: float
) -> dict[str, float]:
    """Medians in seconds of what takes turns: of each variant what is not timed, and what is."""
    times: dict[str, list[float]] = {name: [] for name in variants}
    end = time.perf_counter() + seconds
    while time.perf_counter() < end or len(times[next(iter(times))]) < ROUNDS:
        for name, (prepare, run) in variants.items():
            # Once untimed: what the others left in the caches is not of this variant.
            for _ in range(2):
                prepare()
                start = time.perf_counter()
                run()
                taken = time.perf_counter() - start
            times[name].append(taken)
    return {name: statistics.median(values) for name, values in times.items()}


@_seeded
def of_step(
    l: int, q: int, k: int, r: int, optimizer: Literal["AdamW", "SGD"], rest: Literal["keep", "drop"]
) -> dict[str, float]:
    """Medians in seconds of a step on one head, as the rows of :mod:`lip_fast.bench` have it."""
    (like,) = [row for row in CORE if row.key == "truncated-adamw-1000x2048"]
    row: Row = replace(like, l=l, q=q, k=k, tail_rank=r, optimizer=optimizer, rest=rest)
    problem = problem_of(row, batches=2 if l * q > MANY else 8)
    lip = steps.LIPStep(problem, row)
    for _ in range(4 if l * q > MANY else 20):
        lip.prepare()
        lip()
    state = lip.state()
    base = steps.BaseStep(problem, row, state)
    products = steps.Products(state, row)
    variants: dict[str, tuple[Callable[[], Any], Callable[[], Any]]] = {
        "base": (base.prepare, base),
        "products": (lambda: None, products),
        "lip": (lip.prepare, lip),
    }
    if rest == "drop":
        composed = steps.NaiveStep(problem, row, state, steps.WarmStart(row, state.M))
        variants["composed"] = (composed.prepare, composed)
    medians = _medians(variants, SECONDS)
    reason = lip.skipped()
    assert reason is None, reason
    return medians | {"floor": medians["base"] + medians["products"]}


@_seeded
def of_split(l: int, q: int, k: int) -> dict[str, float]:
    """Medians in seconds of a step by products of ``LIP(head, k)``, and of the products of its columns."""
    head = nn.Linear(q, l)
    g = torch.Generator().manual_seed(1)
    X, y = torch.relu(torch.randn(128, q, generator=g)), torch.randint(0, l, (128,), generator=g)
    optimizer, lip = torch.optim.AdamW(head.parameters(), 1e-3), LIP(head, k)
    columns = min(k + 104, l, q)
    V, Y = torch.randn(columns, q).mT, torch.randn(columns, l).mT
    M = head.weight.detach().clone()
    buffers = (M.new_empty(l, columns), M.new_empty(columns, q), M.new_empty(l, q))

    def learn() -> None:
        optimizer.zero_grad()
        nn.functional.cross_entropy(head(X), y).backward()
        optimizer.step()
        lip.observe(X, y)

    def multiply() -> None:
        for left, right, out in zip((M, Y.mT, Y), (V, M, V.mT), buffers, strict=True):
            torch.mm(left, right, out=out)

    for _ in range(2):
        learn()
        lip.apply()
    medians = _medians({"lip": (learn, lip.apply), "products": (lambda: None, multiply)}, 2 * SECONDS)
    stats = lip.stats()
    assert stats["skipped"] == 0, stats
    return medians


def _with_threads(threads: int, work: Callable[[], Any]) -> Any:
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        return work()
    finally:
        torch.set_num_threads(before)


def tables(each_of_step: Any, each_of_split: Any, threads: Sequence[int]) -> str:
    """Markdown of what :func:`of_step` and :func:`of_split` found, by number of threads."""
    lines = []
    for (l, q, k, r, optimizer, rest), found in each_of_step:
        cells = [f"{l} x {q}", f"{k} + {r}", f"{optimizer}, {rest}"]
        for number in threads:
            row = found[number]
            ratios = [row["lip"] / row["floor"]]
            ratios += [row["composed"] / row["floor"]] if "composed" in row else []
            cells += [time_of(1e6 * row["base"]), time_of(1e6 * row["floor"])]
            cells.append(", ".join(f"{ratio:.2f}" for ratio in ratios))
        lines.append(cells)
    header = ["head", "k + r", "optimizer, `rest`"]
    for number in threads:
        header += [
            f"without LIP, {_count(number)}",
            "floor",
            "LIP, composed",
        ]
    split_lines = []
    for (l, q, k), found in each_of_split:
        cells = [f"{l} x {q}, k = {k}"]
        for number in threads:
            row = found[number]
            cells += [time_of(1e6 * row["products"]), time_of(1e6 * row["lip"])]
            cells.append(f"{row['lip'] / row['products']:.2f}")
        split_lines.append(cells)
    split_header = ["`LIP(head, k)`"]
    for number in threads:
        split_header += [f"three products, {_count(number)}", "LIP", "ratio"]
    return table(header, lines) + "\n\n" + table(split_header, split_lines)


def _count(threads: int) -> str:
    return f"{threads} thread" + "s" * (threads > 1)


def main(arguments: Sequence[str] | None = None) -> int:
    """Print the tables, or put them between the markers of a page."""
    parser = Parser(prog="python -m benchmarks.host_step", description=__doc__.partition("\n")[0])
    parser.add_argument("--write", type=Path, metavar="README.md", help="replace what is between its markers")
    given = parser.parse_args(arguments)

    def work() -> None:
        threads = (1, torch.get_num_threads())
        cases = [(*head, *form) for head in HEADS for form in FORMS]
        if given.write is not None:
            SLOT.filled(given.write, "")

        def by_threads(measure: Callable[..., Any], case: tuple[Any, ...]) -> dict[int, Any]:
            return {number: _with_threads(number, lambda: measure(*case)) for number in threads}

        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            found = [(case, by_threads(of_step, case)) for case in tqdm(cases, disable=None)]
            split = [(case, by_threads(of_split, case)) for case in tqdm(SPLITS, disable=None)]
        told = tables(found, split, threads)
        if given.write is None:
            print(told)
        else:
            write_whole(given.write, SLOT.filled(given.write, told))

    return answer(parser, work)


if __name__ == "__main__":
    sys.exit(main())
