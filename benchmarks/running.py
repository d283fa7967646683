"""Rows under pytest-benchmark: checked, then timed with ours and its peers in turn."""

import math
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import pytest
import torch

from lip_fast.bench.cases import Case, Skip
from lip_fast.bench.gates import Gate
from lip_fast.bench.rows import Row
from lip_fast.bench.timing import Variant, summary

__all__ = ["Interleaved", "Plan", "measure", "plan", "require", "run"]

# Rounds of a row: fewer have no quartiles worth the name, more add nothing.
_LEAST_ROUNDS, _MOST_ROUNDS = 5, 400
# A variant so many times slower than ours takes part in every second round, twice that in every third.
_SLOW = 6
# Seconds of a call after which it is its own warm-up.
_LONG = 0.3


@dataclass(frozen=True)
class Plan:
    """How often a row is run.

    Attributes:
        rounds: of ours.
        every: in every so-many-th round a peer takes part; slow ones need fewer samples.
        warm: whether each timed call follows an untimed one of the same variant.
    """

    rounds: int
    every: Mapping[str, int]
    warm: bool


class Interleaved:
    """Times every peer once per round, before ours: the setup function of ``benchmark.pedantic``.

    The order of the peers rotates. Each timed call follows an untimed one of the same variant: with several
    weights and optimizer states taking turns, all would otherwise be measured on caches the others emptied.

    Args:
        ours: the variant that pytest-benchmark times itself.
        peers: what is timed beside it.
        how: how often, and whether the untimed calls are made.
    """

    def __init__(self, ours: Variant, peers: Sequence[Variant], how: Plan) -> None:
        self.ours, self.peers, self.how = ours, list(peers), how
        self.round = 0

    def __call__(self) -> None:
        """Time the peers whose turn it is, and leave ours ready."""
        turn = self.round % max(len(self.peers), 1)
        for peer in self.peers[turn:] + self.peers[:turn]:
            if self.round % self.how.every.get(peer.name, 1) == 0:
                self._make_ready(peer)
                peer.samples.append(_seconds(peer))
        self._make_ready(self.ours)
        self.round += 1

    def _make_ready(self, variant: Variant) -> None:
        if self.how.warm:
            _prepare(variant)
            variant.run()
        _prepare(variant)


def _prepare(variant: Variant) -> None:
    if variant.between is not None:
        variant.between()


def _seconds(variant: Variant) -> float:
    start = time.perf_counter()
    variant.run()
    return (time.perf_counter() - start) / variant.calls


def plan(variants: Sequence[Variant], seconds: float) -> Plan:
    """How often variants, ours first, take part where the row is to take about so many seconds.

    Each is called twice.
    """
    costs = []
    for variant in variants:
        _prepare(variant)
        cost = _seconds(variant) * variant.calls
        if cost < _LONG:
            _prepare(variant)
            cost = _seconds(variant) * variant.calls
        costs.append(cost)
    every = [1 + int(cost / (_SLOW * costs[0])) for cost in costs]
    warm = max(costs) < _LONG * 10 and sum(costs) < seconds / 2
    a_round = sum(cost / n for cost, n in zip(costs, every, strict=True)) * (2 if warm else 1)
    rounds = int(min(max(seconds / a_round, _LEAST_ROUNDS), _MOST_ROUNDS))
    # Each has at least four samples.
    most = max(1, rounds // 4)
    peers = zip(variants[1:], every[1:], strict=True)
    return Plan(rounds, {variant.name: min(n, most) for variant, n in peers}, warm)


def require(benchmark: Any, gates: Sequence[Gate]) -> None:
    """Record the checks in the benchmark's ``extra_info["gates"]`` and raise if one failed."""
    benchmark.extra_info["gates"] = [{**asdict(gate), "passed": gate.passed} for gate in gates]
    failed = [gate for gate in gates if not gate.passed]
    assert not failed, f"not timed, the result is wrong or the check cannot fail: {failed}"


def measure(
    benchmark: Any,
    variants: Sequence[Variant],
    how: Plan,
    *,
    sums: Mapping[str, tuple[str, ...]] | None = None,
) -> None:
    """Time ours as the benchmark's own entry and the peers into its ``extra_info["peers"]``.

    Where timing is disabled, each variant runs once.

    Args:
        benchmark: the fixture of pytest-benchmark.
        variants: ours, which the entry's own statistics are about, and what is timed beside it.
        how: how often.
        sums: names of further peers whose time is the sum of others', round by round.
    """
    ours, *peers = variants
    benchmark.pedantic(ours.run, setup=Interleaved(ours, peers, how), rounds=how.rounds)
    if ours.calls > 1 and not benchmark.disabled:
        # Its own statistics are of runs that hold several.
        times = benchmark.stats.stats.data
        benchmark.extra_info["ours"] = summary([seconds / ours.calls for seconds in times])
    samples = {peer.name: peer.samples for peer in peers}
    results = {name: summary(seconds) for name, seconds in samples.items()}
    for name, parts in (sums or {}).items():
        # Round by round where the parts took part in the same ones.
        columns = [samples[part] for part in parts]
        results[name] = summary([math.fsum(times) for times in zip(*columns, strict=False)])
    benchmark.extra_info["peers"] = results


def run(benchmark: Any, row: Row, make: Callable[[], Case], *, seconds: float) -> None:
    """Check and time a row.

    What cannot be measured here is skipped, with its reason in the result.

    Args:
        benchmark: the fixture of pytest-benchmark.
        row: which one.
        make: prepares it.
        seconds: about how long it is timed.
    """
    benchmark.extra_info["row"] = row.key
    # What torch and others do by chance draws from the global generator.
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        _run(benchmark, make, seconds)


def _run(benchmark: Any, make: Callable[[], Case], seconds: float) -> None:
    try:
        case = make()
    except Skip as reason:
        pytest.skip(str(reason))
    require(benchmark, case.gates)
    benchmark.extra_info |= {
        "facts": case.facts,
        "floors_us": case.floors,
        "skipped": case.skipped,
    }
    how = Plan(1, {}, warm=False) if benchmark.disabled else plan(case.variants, seconds)
    measure(benchmark, case.variants, how, sums=case.sums)
    void = case.after() if case.after is not None else None
    assert void is None, void
