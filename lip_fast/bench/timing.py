"""Variants timed in turn: replays of CUDA graphs and calls between events on a GPU.

On a CPU the same code runs on the host's clock, so that all of it but the clock is tested everywhere.
"""

import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

__all__ = ["Timer", "Variant", "arithmetic", "bandwidth", "captured", "spin_up", "summary", "synchronize"]

# A sample holds as many calls as fill this time: to start and stop the clock takes microseconds.
_SAMPLE_SECONDS = 4e-3
_MOST_CALLS = 2000
# Seconds after which a first run is the only one: to load libraries takes less.
_PATIENCE = 5.0
_LEAST_ROUNDS, _MOST_ROUNDS = 3, 40
# Seconds of a run after which it is its own warm-up: caches are filled in milliseconds.
_LONG = 0.3


@dataclass
class Variant:
    """Something that is timed.

    Attributes:
        name: in the results.
        run: what is called: a function, or the replay of a graph.
        calls: how many calls of the measured function a run holds.
        mode: "graph" for replays; "events" for calls from Python, whose cost is in the time then.
        between: called before each sample, untimed.
        keeps: what must live as long as the variant: a graph holds addresses, not tensors.
        samples: seconds a call.
    """

    name: str
    run: Callable[[], object]
    calls: int = 1
    mode: str = "events"
    between: Callable[[], object] | None = None
    keeps: object = None
    samples: list[float] = field(default_factory=list)


def summary(seconds: Sequence[float]) -> dict[str, float | int]:
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


def synchronize(device: torch.device) -> None:
    """Wait for the device, so that an error in its work is raised here."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def captured(
    name: str,
    call: Callable[[], object],
    device: torch.device,
    *,
    warm: Callable[[], object] | None = None,
    calls: int = 1,
    between: Callable[[], object] | None = None,
) -> Variant:
    """A variant that replays a graph of ``calls`` calls.

    Args:
        name: of the variant.
        call: what is captured; on a CPU it is called.
        device: where it runs.
        warm: run twice before the capture, on a stream of its own, so that libraries and kernels are loaded;
            ``call`` itself by default.
        calls: how many calls one graph holds. The gap between two replays is then divided among them.
        between: see :class:`Variant`.
    """
    if device.type != "cuda":

        def repeat() -> None:
            for _ in range(calls):
                call()

        return Variant(name, repeat, calls, "events", between)
    stream = torch.cuda.Stream(device)
    stream.wait_stream(torch.cuda.current_stream(device))
    with torch.cuda.stream(stream):
        for _ in range(2):
            (warm or call)()
    torch.cuda.current_stream(device).wait_stream(stream)
    torch.cuda.synchronize(device)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        for _ in range(calls):
            call()
    return Variant(name, graph.replay, calls, "graph", between, keeps=(graph, call, warm))


class Timer:
    """Medians of variants that take turns.

    Args:
        device: where they run.
        sample_seconds: how long a sample should take.
        most_rounds: how often each takes part at most.
        warm: whether an untimed run goes before each sample. With several weights and optimizer states taking
            turns, each would otherwise be measured on caches that the others emptied.
    """

    def __init__(
        self,
        device: torch.device,
        *,
        sample_seconds: float = _SAMPLE_SECONDS,
        most_rounds: int = _MOST_ROUNDS,
        warm: bool = False,
    ) -> None:
        self.device = device
        self._sample_seconds, self._most_rounds, self._warm = sample_seconds, most_rounds, warm

    def measure(self, variants: Sequence[Variant], seconds: float) -> dict[str, dict[str, Any]]:
        """Time the variants, in about ``seconds`` in all, and give each one's median and quartiles.

        Every one is run before it is timed, since first runs load kernels and libraries. One that takes
        longer than its share of the time all the same has one sample.
        """
        share = seconds / max(len(variants), 1)
        runs: dict[str, int] = {}
        spent: dict[str, float] = {}
        slow: set[str] = set()
        warmed: set[str] = set()
        for variant in variants:
            sample = self._sample(variant, 1)
            if sample * variant.calls < _PATIENCE:
                sample = self._sample(variant, 1)
            run = max(sample * variant.calls, 1e-7)
            if run > share:
                variant.samples.append(sample)
                slow.add(variant.name)
                continue
            runs[variant.name] = max(1, min(_MOST_CALLS, int(self._sample_seconds / run)))
            spent[variant.name] = 0.0
            if self._warm and run < _LONG:
                warmed.add(variant.name)
        fast = [variant for variant in variants if variant.name not in slow]
        start = time.perf_counter()
        for turn in range(self._most_rounds if fast else 0):
            if turn >= _LEAST_ROUNDS and time.perf_counter() - start > seconds:
                break
            first_one = turn % len(fast)
            for variant in fast[first_one:] + fast[:first_one]:
                if turn > 0 and spent[variant.name] > share:
                    continue
                if variant.name in warmed:
                    self._sample(variant, 1)
                sample = self._sample(variant, runs[variant.name])
                variant.samples.append(sample)
                all_runs = runs[variant.name] + (variant.name in warmed)
                spent[variant.name] += sample * variant.calls * all_runs
        return {
            variant.name: {
                **summary(variant.samples),
                "mode": variant.mode,
                "calls": variant.calls * runs.get(variant.name, 1),
            }
            for variant in variants
        }

    def _sample(self, variant: Variant, runs: int) -> float:
        """Seconds of a call, a mean over so many runs."""
        if variant.between is not None:
            variant.between()
        if self.device.type == "cuda":
            start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
            torch.cuda.synchronize(self.device)
            start.record()
            for _ in range(runs):
                variant.run()
            end.record()
            end.synchronize()
            elapsed = start.elapsed_time(end) / 1e3
        else:
            begin = time.perf_counter()
            for _ in range(runs):
                variant.run()
            elapsed = time.perf_counter() - begin
        return elapsed / (runs * variant.calls)


def spin_up(device: torch.device, seconds: float = 0.5) -> None:
    """Work until the clocks have risen from idle."""
    if device.type != "cuda":
        return
    X = torch.randn(4096, 4096, device=device)
    begin = time.perf_counter()
    while time.perf_counter() - begin < seconds:
        for _ in range(4):
            X = torch.mm(X, X).clamp_(-1, 1)
        torch.cuda.synchronize(device)


def bandwidth(device: torch.device, values: int = 1 << 29) -> float:
    """Bytes read and written a second by a copy of so many float32 values."""
    source: Tensor = torch.ones(values, device=device)
    target = torch.empty_like(source)
    timer = Timer(device, most_rounds=9)
    result = timer.measure([Variant("copy", lambda: target.copy_(source))], 1.0)
    return 2 * 4 * values / (result["copy"]["median_us"] / 1e6)


def arithmetic(device: torch.device, dtype: torch.dtype, side: int | None = None) -> float:
    """Additions and multiplications a second in a product of square matrices.

    Args:
        device: where it runs.
        dtype: of the matrices.
        side: rows and columns of each; large enough by default that nothing but arithmetic takes time.
    """
    side = side or (8192 if device.type == "cuda" else 1024)
    # Random values: a GPU takes less power for a product of ones, and is faster at it.
    generator = torch.Generator(device).manual_seed(0)
    A = torch.randn(side, side, device=device, generator=generator).to(dtype)
    out = torch.empty_like(A)
    timer = Timer(device, most_rounds=9)
    result = timer.measure([Variant("product", lambda: torch.mm(A, A, out=out))], 1.0)
    return 2 * side**3 / (result["product"]["median_us"] / 1e6)
