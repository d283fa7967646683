"""Rows of timings: their checks, their variants, their targets, and how they are run."""

import functools
import gc
import math
import re
import time
import traceback
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch

from lip_fast.backends.native import library
from lip_fast.bench.gates import Gate
from lip_fast.bench.timing import Timer, Variant, arithmetic, bandwidth, synchronize

__all__ = [
    "Bound",
    "Case",
    "Cases",
    "Floors",
    "Maker",
    "Skip",
    "at_most",
    "best_floor",
    "require_memory",
    "require_native",
    "run_cases",
    "shared_floors",
]

# Copies of 2^n values are measured for n between these. A smaller copy takes about the time of a call; the
# rate of a larger one is the same.
_LEAST_COPY, _MOST_COPY = 16, 26

# Bytes a second for which the targets of a device are stated; every other device is compared with the rate of
# its own copies.
STATED_BANDWIDTH = {"H200": 4.3e12}


class Skip(Exception):  # noqa: N818 (it is an answer, not an accident)
    """A row, or one of its variants, cannot be measured on this machine; the message says why."""


@dataclass(frozen=True)
class Bound:
    """A target.

    Attributes:
        text: as it is shown.
        met: whether the medians, in microseconds by variant, reach it.
    """

    text: str
    met: Callable[[Mapping[str, float]], bool]


@dataclass
class Case:
    """A row that is ready to be timed.

    Attributes:
        gates: its checks.
        variants: what is timed, ours first.
        targets: what is promised of it.
        facts: what else the row says.
        floors: microseconds that memory or arithmetic alone take, by name.
        skipped: why a variant is not there.
        after: called after the timing: why it is void, or None.
        sums: further times that are sums of variants'.
    """

    gates: list[Gate]
    variants: list[Variant]
    targets: list[Bound] = field(default_factory=list)
    facts: dict[str, Any] = field(default_factory=dict)
    floors: dict[str, float] = field(default_factory=dict)
    skipped: dict[str, str] = field(default_factory=dict)
    after: Callable[[], str | None] | None = None
    sums: Mapping[str, tuple[str, ...]] = field(default_factory=dict)


Maker = Callable[[], Case]
Cases = Callable[[torch.device, bool], Iterator[tuple[str, Maker]]]


def run_cases(
    cases: Sequence[tuple[str, Maker]], timer: Timer, seconds: float, write: Callable[[dict[str, Any]], None]
) -> bool:
    """Measure the rows one after the other, each with an equal share of the time that is left.

    Args:
        cases: key of each row, and what prepares it.
        timer: the clock.
        seconds: for all of them.
        write: takes the record of a row.

    Returns:
        Whether no row is void.
    """
    start, sound = time.perf_counter(), True
    for i, (key, make) in enumerate(cases):
        if timer.device.type == "cuda":
            # Free the graphs, optimizers and hooks of the row before: they hold each other.
            gc.collect()
            torch.cuda.empty_cache()
        left = seconds - (time.perf_counter() - start)
        record: dict[str, Any] = {"kind": "row", "row": key, "gates": [], "times": {}, "void": None}
        if left <= 0:
            record["skipped"] = f"no time left of {seconds:.0f} s"
        else:
            _measure(record, make, timer, left / (len(cases) - i))
        write(record)
        sound = sound and record["void"] is None
        print(f"{key}: {record['void'] or record.get('skipped') or 'measured'}", flush=True)
    return sound


def _measure(record: dict[str, Any], make: Maker, timer: Timer, share: float) -> None:
    try:
        case = make()
        synchronize(timer.device)
        record["gates"] = [{**asdict(gate), "passed": gate.passed} for gate in case.gates]
        record |= {"facts": case.facts, "floors_us": case.floors, "variants_skipped": case.skipped}
        red = [gate.name for gate in case.gates if not gate.passed]
        if red:
            record["void"] = f"the result is wrong or the check cannot fail: {', '.join(red)}"
            return
        # Half of the share has gone into the checks, or will go into the end of the last round.
        times = timer.measure(case.variants, share / 2)
        for name, parts in case.sums.items():
            total = sum(times[part]["median_us"] for part in parts)
            times[name] = {"median_us": total, "mode": "sum"}
        record["void"] = case.after() if case.after is not None else None
        if record["void"] is not None:
            return
        medians = {name: result["median_us"] for name, result in times.items()}
        record["times"], record["ours"] = times, case.variants[0].name
        record["targets"] = [{"text": bound.text, "met": bool(bound.met(medians))} for bound in case.targets]
    except Skip as reason:
        record["skipped"] = str(reason)
    except Exception as error:  # the other rows go on
        traceback.print_exc()
        record["void"] = f"{type(error).__name__}: {' '.join(str(error).split())[:400]}"


def at_most(variant: str, microseconds: float, more: str = "") -> Bound:
    """The target that one variant takes no longer than another."""
    return Bound(f"<= {microseconds:g} us{more}", lambda times: times[variant] <= microseconds)


def require_native(device: torch.device) -> None:
    """Skip a row where there are no native kernels; void on a GPU, whose script has just built them."""
    load = library.cuda if device.type == "cuda" else library.cpu
    if load() is None:
        kind = RuntimeError if device.type == "cuda" else Skip
        raise kind(f"no native kernels for {device.type}: {library.problems() or 'not built'}")


def require_memory(device: torch.device, size: float) -> None:
    """Skip a row that needs more bytes than are free."""
    free = torch.cuda.mem_get_info(device)[0] if device.type == "cuda" else _free_memory()
    if free is not None and size > 0.9 * free:
        raise Skip(f"needs {size / 1e9:.2g} GB of memory, {free / 1e9:.2g} GB are free")


def _free_memory() -> int | None:
    """Bytes of memory that are free; None on a system that does not tell."""
    try:
        text = Path("/proc/meminfo").read_text()
    except OSError:
        return None
    found = re.search(r"^MemAvailable:\s+(\d+) kB$", text, re.MULTILINE)
    return int(found[1]) * 1024 if found else None


class Floors:
    """Times that memory or arithmetic alone take on a device.

    The rates are those of a copy and of a product of matrices, measured here.

    Args:
        device: whose they are.
        values: float32 values of the copy; None copies, for each size asked for, about as many bytes: what a
            cache holds moves faster.
    """

    def __init__(self, device: torch.device, values: int | None = None) -> None:
        self._device, self._values = device, values
        self._bandwidths: dict[int, float] = {}
        self._rates: dict[torch.dtype, float] = {}
        name = torch.cuda.get_device_name(device) if device.type == "cuda" else ""
        self._stated = next((rate for key, rate in STATED_BANDWIDTH.items() if key in name), None)

    def of(self, size: float, flops: float = 0, dtype: torch.dtype = torch.float32) -> dict[str, float]:
        """Microseconds for so many bytes: at the rate of the copy, and at the stated one where there is.

        Args:
            size: bytes that must be read and written.
            flops: additions and multiplications that must be done, in microseconds under "arithmetic" where
                there are any.
            dtype: in which they are done.
        """
        floors = {"copy": size / self._bandwidth(size) * 1e6}
        if self._stated is not None:
            floors["stated"] = size / self._stated * 1e6
        if flops:
            floors["arithmetic"] = flops / self._rate(dtype) * 1e6
        return floors

    def _bandwidth(self, size: float) -> float:
        # A copy of n values moves 8 n bytes; n is a power of two, so that few copies are measured.
        values = self._values or 1 << max(_LEAST_COPY, min(_MOST_COPY, round(math.log2(max(size, 8) / 8))))
        if values not in self._bandwidths:
            self._bandwidths[values] = bandwidth(self._device, values)
        return self._bandwidths[values]

    def _rate(self, dtype: torch.dtype) -> float:
        if dtype not in self._rates:
            self._rates[dtype] = arithmetic(self._device, dtype)
        return self._rates[dtype]


@functools.cache
def shared_floors(device: torch.device, values: int | None = None) -> Floors:
    """The floors of a device, measured once in a process: measuring the rates takes longer than a row."""
    return Floors(device, values)


def best_floor(floors: Mapping[str, float]) -> float:
    """The larger floor: of memory, at the stated rate where the device has one, or of arithmetic."""
    return max(floors.get("stated", floors["copy"]), floors.get("arithmetic", 0.0))
