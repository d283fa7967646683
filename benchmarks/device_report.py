"""What a run of ``benchmarks.device`` found, for README: the tables of :mod:`benchmarks.report` for a GPU."""

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from benchmarks.command import Refused
from benchmarks.markdown import count, table, time
from benchmarks.results import commit_of, positive
from lip_fast.harness.files.slots import Slot

__all__ = ["KIND", "SLOT", "render_device"]

SLOT = Slot("gpu")
KIND = "lip_fast device run"


def render_device(data: Mapping[str, Any], *, checkout: Path, allow_dirty: bool = False) -> str:
    """The report of a device run in Markdown, without the markers.

    Args:
        data: the object in ``device.json``.
        checkout: as of :func:`benchmarks.results.load`.
        allow_dirty: likewise; a dry run is accepted too, and the report says that it is one.

    Raises:
        Refused: a row has a failed check, the commit is not known, or no GPU was measured.
    """
    try:
        return _render(data, checkout, allow_dirty)
    except (KeyError, TypeError, AttributeError) as error:
        raise Refused(f"not a result of benchmarks/device.py: {type(error).__name__}: {error}") from None


def _render(data: Mapping[str, Any], checkout: Path, allow_dirty: bool) -> str:
    commit, dirty = commit_of(data["commit"], checkout, allow_dirty)
    dry, date = data["dry"] is not False, str(data["datetime"])
    if dry and not allow_dirty:
        raise Refused("a dry run measures no GPU (--allow-dirty shows it all the same)")
    if not dry and data["machine"]["gpu"] is None:
        raise Refused("no GPU was measured: there was none")
    if not re.match(r"\d{4}-\d{2}-\d{2}T", date):
        raise Refused(f"expected the date of the run, got {date!r}")
    for row in data["rows"]:
        _require_green(row)
    machine = data["machine"]
    gpu = machine["gpu"] or {}
    state = (f"commit `{commit[:12]}`" if commit != "unknown" else "unknown commit") + " with changes" * dirty
    about = (
        f"{gpu.get('name', 'no GPU')}, torch {machine['torch']}, CUDA {machine['cuda of torch']}, Triton "
        f"{machine['triton']}, nvcc {machine['nvcc']}; {state}, {date[:10]}{' (a dry run on a CPU)' * dry}. "
        "Rerun with `python3 benchmarks/device.py`, rows alone with `--rows 'PATTERN'`.\n\n"
        "Medians on the device's clock: replays of CUDA graphs are marked with *, everything else is called "
        "from Python between two events. The variants of a row take turns. *Of the floor*: the share of our "
        "time that memory or arithmetic alone would take. Each result was first compared with float64."
    )
    parts = [_of_part(name, rows) for name, rows in _by_part(data["rows"]).items()]
    return "\n\n".join([about, _tests(data), *parts])


def _require_green(row: Mapping[str, Any]) -> None:
    for gate in row["gates"]:
        value, bound, control = (gate.get(key) for key in ("value", "bound", "control"))
        numbers = all(isinstance(number, int | float) for number in (value, bound, control))
        if gate["passed"] is not True or not numbers or not value <= bound < control:
            raise Refused(f"row {row['row']} failed the check {gate['name']!r}: {value}, at most {bound}")
    if not row["gates"] and row["times"]:
        raise Refused(f"row {row['row']} has times and no check")


def _by_part(rows: list[Mapping[str, Any]]) -> dict[str, list[Mapping[str, Any]]]:
    parts: dict[str, list[Mapping[str, Any]]] = {}
    for row in rows:
        parts.setdefault(row["part"], []).append(row)
    return parts


def _tests(data: Mapping[str, Any]) -> str:
    lines = []
    for part in data["parts"]:
        passed = count(part["passed"], "test") + " passed" if "passed" in part else ""
        said = "; ".join(word for word in (passed, part["reason"]) if word)
        lines.append([part["name"], part["status"], f"{part['seconds']:.0f} s", said])
    checks = data["checks"]
    good = sum(check["passed"] is True for check in checks)
    bad = [f"{check['check']}: {check['reason']}" for check in checks if check["passed"] is False]
    words = f"Checks of the step on streams, in graphs and for waiting: {good} passed, {len(bad)} failed"
    return table(["part", "", "time", ""], lines) + f"\n\n{words}{''.join(f'; {one}' for one in bad)}."


def _of_part(name: str, rows: list[Mapping[str, Any]]) -> str:
    lines = [_line(row) for row in rows]
    return f"**{name}**\n\n" + table(["row", "ours", "beside it", "of the floor", "targets"], lines)


def _line(row: Mapping[str, Any]) -> list[str]:
    if row["void"]:
        return [row["row"], "void", _cell(row["void"]), "", ""]
    if row.get("skipped"):
        return [row["row"], "not measured", _cell(row["skipped"]), "", ""]
    times, own = row["times"], row["ours"]
    ours = positive(times[own]["median_us"], f"median of row {row['row']}")
    others = [
        f"{variant} {_timed(result)}, {result['median_us'] / ours:.3g}x"
        for variant, result in times.items()
        if variant != own
    ]
    others += [f"no {variant}: {reason}" for variant, reason in row["variants_skipped"].items()]
    alone = times.get("LIP alone", {}).get("median_us")
    floors = [
        f"{value / of:.0%} ({floor})"
        for floor, value in row["floors_us"].items()
        # Those of LIP alone are no floors of the whole step.
        if (of := alone if floor.startswith("alone") else ours)
    ]
    targets = [f"{target['text']} {'✓' if target['met'] else '✗'}" for target in row["targets"]]
    cells = [f"{own} {_timed(times[own])}", "; ".join(others), ", ".join(floors), "; ".join(targets)]
    return [row["row"], *map(_cell, cells)]


def _timed(result: Mapping[str, Any]) -> str:
    return time(result["median_us"]) + "*" * (result["mode"] == "graph")


def _cell(text: str) -> str:
    return " ".join(text.split())
