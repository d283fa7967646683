"""Interleaved timing: ours and its peers in turn, in one run, so that their ratios mean something."""

import math
import statistics
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Protocol

__all__ = ["Call", "Interleaved", "Peer", "Variant", "measure", "summary"]


class Variant(Protocol):
    """Something that is timed by calling it, after an untimed ``prepare()``."""

    def prepare(self) -> None:
        """Set up the next call."""

    def __call__(self) -> object:
        """Do what is timed."""


@dataclass(frozen=True)
class Call:
    """A variant that needs no preparation."""

    function: Callable[[], object]

    def prepare(self) -> None:
        """Nothing to do."""

    def __call__(self) -> object:
        """Call the function."""
        return self.function()


@dataclass
class Peer:
    """A variant timed beside ours.

    Args:
        variant: what is called.
        every: it takes part in every so-many-th round; slow variants need fewer samples.
        seconds: what its calls took.
    """

    variant: Variant
    every: int = 1
    seconds: list[float] = field(default_factory=list)

    def time(self) -> None:
        """Call the variant once and note how long it took."""
        self.variant.prepare()
        start = time.perf_counter()
        self.variant()
        self.seconds.append(time.perf_counter() - start)


class Interleaved:
    """Times every peer once per round, before ours: the setup function of ``benchmark.pedantic``.

    The order of the peers rotates. Each timed call follows an untimed one of the same variant: with several
    weights and optimizer states taking turns, all would otherwise be measured on caches the others emptied.

    Args:
        ours: the variant that pytest-benchmark times itself.
        peers: what is timed beside it, by name.
        warm: whether the untimed calls are made.
    """

    def __init__(self, ours: Variant, peers: Mapping[str, Peer], *, warm: bool = True) -> None:
        self.ours = ours
        self.peers = dict(peers)
        self.warm = warm
        self.round = 0

    def __call__(self) -> None:
        """Time the peers whose turn it is, and leave ours ready."""
        names = list(self.peers)
        turn = self.round % len(names)
        for name in names[turn:] + names[:turn]:
            peer = self.peers[name]
            if self.round % peer.every == 0:
                self._warm_up(peer.variant)
                peer.time()
        self._warm_up(self.ours)
        self.ours.prepare()
        self.round += 1

    def _warm_up(self, variant: Variant) -> None:
        if self.warm:
            variant.prepare()
            variant()


def summary(seconds: list[float]) -> dict[str, float | int]:
    """Median and quartiles in microseconds, and the number of samples."""
    if len(seconds) > 1:
        low, middle, high = statistics.quantiles(seconds, n=4, method="inclusive")
    else:
        low = middle = high = seconds[0]
    return {
        "median_us": middle * 1e6,
        "q1_us": low * 1e6,
        "q3_us": high * 1e6,
        "rounds": len(seconds),
    }


def measure(
    benchmark: Any,
    ours: Variant,
    peers: Mapping[str, Peer],
    *,
    rounds: int,
    sums: Mapping[str, tuple[str, ...]] | None = None,
    warm: bool = True,
) -> None:
    """Time ours as the benchmark's own entry and the peers into its ``extra_info["peers"]``.

    Where timing is disabled, each variant runs once.

    Args:
        benchmark: the fixture of pytest-benchmark.
        ours: what the entry's own statistics are about.
        peers: what is timed beside it.
        rounds: how often ours runs.
        sums: names of further peers whose time is the sum of others', round by round.
        warm: make an untimed call before each timed one; not worth its time where a call takes seconds.
    """
    setup = Interleaved(ours, peers, warm=warm and not benchmark.disabled)
    benchmark.pedantic(ours, setup=setup, rounds=rounds)
    results = {name: summary(peer.seconds) for name, peer in peers.items()}
    for name, parts in (sums or {}).items():
        columns = [peers[part].seconds for part in parts]
        results[name] = summary([math.fsum(times) for times in zip(*columns, strict=True)])
    benchmark.extra_info["peers"] = results
