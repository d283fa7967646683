"""Results of the benchmarks, read and vouched for."""

import json
import math
import re
import subprocess
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from benchmarks.command import Refused
from benchmarks.rows import ROWS
from lip_fast.bench.rows import Row

__all__ = ["LEFT_OUT", "NOISY", "Entry", "Result", "commit_of", "load", "machine_of", "positive", "read_json"]

# Quartiles of one variant this far apart: something else was running. An idle machine stays below 1.2.
NOISY = 1.5
# In a result beside its benchmarks: why rows are not there, by key.
LEFT_OUT = "left_out"
_MACHINE = {"cpu": str, "cores": int, "threads": int, "system": str, "python": str, "torch": str}


@dataclass(frozen=True)
class Entry:
    """One measured row: times in microseconds, medians; memory in bytes.

    Attributes:
        row: what was measured.
        ours: time of ours.
        peers: of what was timed beside it, by name.
        quartiles: of ours.
        memory: extra peaks, by variant.
        error: of ours, by the check "distance".
        bound: what it may be at most.
        facts: what else the row says.
        floors: times that memory or arithmetic alone take.
        skipped: why a peer is not there.
    """

    row: Row
    ours: float
    peers: Mapping[str, float]
    quartiles: tuple[float, float]
    memory: Mapping[str, int]
    error: float
    bound: float
    facts: Mapping[str, Any] = field(default_factory=dict)
    floors: Mapping[str, float] = field(default_factory=dict)
    skipped: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Result:
    """A benchmark result that was found complete.

    Attributes:
        entries: what was measured, in the order of the rows.
        left_out: why other rows were not, by key.
        machine: what it was measured on.
        commit: which sources; "unknown" where that was accepted.
        dirty: whether they had changes that are in no commit.
        date: of the run.
    """

    entries: tuple[Entry, ...]
    left_out: Mapping[str, str]
    machine: Mapping[str, Any]
    commit: str
    dirty: bool
    date: str

    def of(self, kind: str) -> Iterator[Entry]:
        """The entries of one kind of row, in the order of the rows."""
        return (entry for entry in self.entries if entry.row.kind == kind)


def read_json(path: Path) -> dict[str, Any]:
    """The object in a JSON file.

    Raises:
        Refused: there is none.
    """
    try:
        data = json.loads(path.read_bytes())
    except OSError as error:
        raise Refused(f"cannot read {path}: {error.strerror}") from None
    except ValueError:  # not UTF-8, or not JSON
        raise Refused(f"{path} is not JSON") from None
    if not isinstance(data, dict):
        raise Refused(f"{path} is not a result of these benchmarks")
    return data


def load(path: Path, *, checkout: Path, allow_dirty: bool = False) -> Result:
    """Read a result of pytest-benchmark and check that it can be vouched for.

    Args:
        path: the JSON file.
        checkout: a folder of the git checkout in which the measured commit must exist; where it is in none,
            the commit cannot be looked up and only its form is checked.
        allow_dirty: accept a tree with changes, or an unknown commit. The report then says so.

    Raises:
        Refused: it cannot.
    """
    data = read_json(path)
    if not isinstance(data.get("benchmarks"), list):
        raise Refused(f"{path} is not a result of pytest-benchmark")
    machine = machine_of(data.get("machine_info"))
    commit, dirty = commit_of(data.get("commit_info"), checkout, allow_dirty)
    found: dict[str, Entry] = {}
    rows = {row.key: row for row in ROWS}
    for benchmark in data["benchmarks"]:
        extra = benchmark.get("extra_info") if isinstance(benchmark, dict) else None
        key = extra.get("row") if isinstance(extra, dict) else None
        if not isinstance(key, str) or key not in rows:
            raise Refused(f"{path} holds an entry that is not a row of these benchmarks: {key!r}")
        if key in found:
            raise Refused(f"{path} holds row {key} twice")
        found[key] = _entry(rows[key], benchmark)
    recorded = data.get(LEFT_OUT)
    reasons = recorded if isinstance(recorded, dict) else {}
    left_out = {key: _words(reasons[key]) for key in rows if key in reasons and key not in found}
    missing = [key for key in rows if key not in found and not left_out.get(key)]
    if missing:
        raise Refused(f"no result for {', '.join(missing)}: a check failed or the run was not complete")
    date = data.get("datetime")
    if not isinstance(date, str) or not re.match(r"\d{4}-\d{2}-\d{2}T", date):
        raise Refused(f"expected the date of the run, got {date!r}")
    entries = tuple(found[key] for key in rows if key in found)
    return Result(entries, left_out, machine, commit, dirty, date[:10])


def machine_of(info: object) -> dict[str, Any]:
    """What a result says of its machine.

    Raises:
        Refused: it does not.
    """
    if not isinstance(info, dict):
        raise Refused("the result does not describe the machine")
    for name, kind in _MACHINE.items():
        if not isinstance(info.get(name), kind):
            raise Refused(
                f"expected machine_info.{name}, got {info.get(name)!r}: not a result of these benchmarks"
            )
    variables = info.get("environment")
    return {name: info[name] for name in _MACHINE} | {"environment": variables or {}}


def commit_of(info: object, checkout: Path, allow_dirty: bool) -> tuple[str, bool]:
    """The measured commit, and whether the tree had changes; see :func:`load`.

    Raises:
        Refused: it does not exist, or there were changes, and that is not accepted.
    """
    info = info if isinstance(info, dict) else {}
    commit, dirty = info.get("id"), info.get("dirty") is not False
    known = isinstance(commit, str) and re.fullmatch(r"[0-9a-f]{40}", commit) is not None
    if known and _git(checkout, "rev-parse", "--is-inside-work-tree"):
        known = _git(checkout, "cat-file", "-e", f"{commit}^{{commit}}")
    if not allow_dirty:
        if not known:
            raise Refused(f"measured on an unknown commit, {commit!r} (--allow-dirty accepts it)")
        if dirty:
            raise Refused("measured on a tree with changes that are in no commit (--allow-dirty accepts it)")
    return (str(commit) if known else "unknown"), dirty


def _git(folder: Path, *arguments: str) -> bool:
    """Whether the command succeeds; False where there is no git."""
    try:
        done = subprocess.run(["git", *arguments], cwd=folder, capture_output=True)
    except OSError:
        return False
    return done.returncode == 0


_STATS = ("median", "q1", "q3")


def _entry(row: Row, benchmark: Mapping[str, Any]) -> Entry:
    extra, stats = benchmark["extra_info"], benchmark.get("stats")
    if not isinstance(stats, dict):
        raise Refused(f"row {row.key} has no timings")
    own = extra.get("ours")
    if isinstance(own, dict):  # timed elsewhere, beside its peers
        stats = {name: positive(own.get(f"{name}_us"), f"{name} of row {row.key}") / 1e6 for name in _STATS}
    ours, low, high = (1e6 * positive(stats.get(name), f"{name} of row {row.key}") for name in _STATS)
    skipped = _reasons(extra.get("skipped"))
    measured = extra.get("peers")
    peers = {}
    for name in row.peers:
        peer = measured.get(name) if isinstance(measured, dict) else None
        if peer is None and name in skipped:
            continue
        value = peer.get("median_us") if isinstance(peer, dict) else None
        peers[name] = positive(value, f"median of {name} in row {row.key}")
    gates = _gates(row, extra.get("gates"))
    memory = {}
    if row.kind in _WITH_MEMORY:
        sizes = extra.get("extra_peak_bytes")
        for name in ("ours", "reference"):
            value = sizes.get(name) if isinstance(sizes, dict) else None
            memory[name] = int(positive(value, f"peak memory of {name} in row {row.key}"))
    error, bound = gates["distance"]
    facts = extra.get("facts")
    floors = {
        name: positive(value, f"floor {name!r} of row {row.key}")
        for name, value in (extra.get("floors_us") or {}).items()
    }
    facts = facts if isinstance(facts, dict) else {}
    return Entry(row, ours, peers, (low, high), memory, error, bound, facts, floors, skipped)


_WITH_MEMORY = ("one-shot", "scaling")


def _reasons(recorded: object) -> dict[str, str]:
    """Why variants are not there; one without a reason counts as missing."""
    reasons = recorded if isinstance(recorded, dict) else {}
    return {name: _words(reason) for name, reason in reasons.items() if reason}


def _words(reason: object) -> str:
    """In one line."""
    return " ".join(str(reason).split())


def _gates(row: Row, recorded: object) -> dict[str, tuple[float, float]]:
    """(value, bound) of each check, all of which passed."""
    passed = {}
    for gate in recorded if isinstance(recorded, list) else []:
        name = gate.get("name") if isinstance(gate, dict) else None
        if not isinstance(name, str):
            raise Refused(f"row {row.key} has a check without a name")
        value, bound, control = (_number(gate.get(key)) for key in ("value", "bound", "control"))
        # Judged by its numbers as well: a flag is easily copied. Comparisons with NaN are false.
        if gate.get("passed") is not True or not value <= bound < control:
            raise Refused(f"row {row.key} failed the check {name!r}: {value:.3g}, at most {bound:.3g}")
        passed[name] = value, bound
    for name in row.gates:
        if name not in passed:
            raise Refused(f"row {row.key} lacks the check {name!r}")
    return passed


def _number(value: object) -> float:
    """A finite number; NaN for anything else."""
    if isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value):
        return float(value)
    return math.nan


def positive(value: object, what: str) -> float:
    """A positive number.

    Raises:
        Refused: it is none.
    """
    number = _number(value)
    if not number > 0:
        raise Refused(f"expected the {what} as a positive number, got {value!r}")
    return number
