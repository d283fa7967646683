"""Rows of GPU timings: their checks, their variants, their targets, and how they are run."""

import gc
import time
import traceback
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

import torch

from benchmarks.gates import Gate
from benchmarks.gpu.timing import Timer, Variant, bandwidth, synchronize
from lip_fast.backends.native import library

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
]

# Bytes a second that the targets of a device are stated for; another device is held against its own copy.
STATED_BANDWIDTH = {"H200": 4.3e12}


class Skip(Exception):  # noqa: N818 (it is an answer, not an accident)
    """A row, or one of its variants, that cannot be measured here; the message says why."""


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
        floors: microseconds that memory alone takes, by name.
        skipped: why a variant is not there.
        after: called after the timing: why it is void, or None.
    """

    gates: list[Gate]
    variants: list[Variant]
    targets: list[Bound] = field(default_factory=list)
    facts: dict[str, Any] = field(default_factory=dict)
    floors: dict[str, float] = field(default_factory=dict)
    skipped: dict[str, str] = field(default_factory=dict)
    after: Callable[[], str | None] | None = None


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
            # What the last row held: graphs, and cycles of optimizers and hooks.
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
    return Bound(f"<= {microseconds:g} us{more}", lambda times: times[variant] <= microseconds)


def require_native(device: torch.device) -> None:
    load = library.cuda if device.type == "cuda" else library.cpu
    if load() is None:
        raise RuntimeError(f"no native kernels for {device.type}: {library.problems() or 'not built'}")


def require_memory(device: torch.device, size: float) -> None:
    if device.type == "cuda":
        free = torch.cuda.mem_get_info(device)[0]
        if size > 0.9 * free:
            raise Skip(f"needs {size / 1e9:.0f} GB of memory, {free / 1e9:.0f} GB are free")


class Floors:
    """Times that memory alone takes on a device.

    Args:
        device: whose copy is measured.
        values: float32 values of that copy.
    """

    def __init__(self, device: torch.device, values: int) -> None:
        self.measured = bandwidth(device, values)
        name = torch.cuda.get_device_name(device) if device.type == "cuda" else ""
        self.stated = next((rate for key, rate in STATED_BANDWIDTH.items() if key in name), None)

    def of(self, size: float) -> dict[str, float]:
        """Microseconds for so many bytes: at the rate of the copy, and at the stated one where there is."""
        floors = {"copy": size / self.measured * 1e6}
        return floors if self.stated is None else floors | {"stated": size / self.stated * 1e6}


def best_floor(floors: Mapping[str, float]) -> float:
    return floors.get("stated", floors["copy"])
