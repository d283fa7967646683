"""Which rows run, and what goes into the results beside the timings: the machine, the commit."""

import difflib
import fnmatch
import os
import platform
from collections.abc import Generator
from pathlib import Path
from typing import Any

import pytest
import torch

from benchmarks.checkout import tree
from benchmarks.markdown import time
from benchmarks.results import LEFT_OUT
from benchmarks.rows import ROWS
from lip_fast.backends import environment
from lip_fast.bench.environment import versions

_tree_at_start: tuple[str, bool] | None = None
# Why rows are not in the result.
_left_out: dict[str, str] = {}


def pytest_addoption(parser: pytest.Parser) -> None:
    help_ = "only rows whose keys match one of these patterns (spaces between them)"
    parser.addoption("--rows", default="*", metavar="'PATTERN ...'", help=help_)


def pytest_configure(config: pytest.Config) -> None:
    global _tree_at_start
    for pattern in config.getoption("rows").split():
        _require_known(pattern)
    path = config.getoption("benchmark_json", None)
    if path is not None:
        # The result is written at the very end: too late to notice a missing folder.
        Path(path).parent.mkdir(parents=True, exist_ok=True)
        _tree_at_start = tree()


def _require_known(pattern: str) -> None:
    keys = [row.key for row in ROWS]
    if fnmatch.filter(keys, pattern):
        return
    near = difflib.get_close_matches(pattern, keys, 3, 0.4)
    kinds = sorted({row.kind for row in ROWS})
    raise pytest.UsageError(
        f"--rows: no row matches {pattern!r}; "
        + (f"near are {', '.join(near)}" if near else f"there are rows of the kinds {', '.join(kinds)}")
    )


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    patterns = config.getoption("rows").split()
    keys = {row.key for row in ROWS}
    strangers = [item.nodeid for item in items if _key(item) not in keys]
    if strangers:
        raise pytest.UsageError(f"not parametrized by the key of a row: {', '.join(strangers)}")
    chosen = [item for item in items if any(fnmatch.fnmatch(_key(item) or "", p) for p in patterns)]
    if len(chosen) < len(items):
        config.hook.pytest_deselected(items=[item for item in items if item not in chosen])
        items[:] = chosen


def _key(item: pytest.Item) -> str | None:
    """The key of the row that a test measures."""
    key: str | None = item.callspec.params.get("key") if hasattr(item, "callspec") else None
    return key


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Item) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    report = yield
    key = _key(item)
    if key is not None and report.skipped and isinstance(report.longrepr, tuple):
        _left_out[key] = report.longrepr[2].removeprefix("Skipped: ")
    return report


def pytest_benchmark_update_json(output_json: dict[str, Any]) -> None:
    output_json[LEFT_OUT] = dict(_left_out)
    # All single times are nine tenths of a file that is kept in the repository.
    for benchmark in output_json["benchmarks"]:
        for name in ("options", "params", "param", "group", "fullname"):
            benchmark.pop(name, None)
        benchmark["stats"].pop("data", None)


def pytest_benchmark_update_machine_info(machine_info: dict[str, Any]) -> None:
    # Results are published: what describes the machine is taken over, what names it is not.
    cpu = machine_info.get("cpu", {})
    info = {
        "cpu": cpu.get("brand_raw", platform.machine()),
        "cores": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count(),
        "threads": torch.get_num_threads(),
        "system": platform.system(),
        "machine": platform.machine(),
        "python": platform.python_version(),
        "torch": torch.__version__,
        "versions": versions(),
        "environment": environment(),
    }
    machine_info.clear()
    machine_info.update(info)


def pytest_benchmark_update_commit_info(commit_info: dict[str, Any]) -> None:
    # pytest-benchmark looks at the end of the run: a commit made meanwhile is not what was measured.
    found = tree()
    known = found is not None and found == _tree_at_start
    info = {
        "id": found[0] if found is not None and known else "unknown",
        "time": commit_info.get("time"),
        "dirty": found is None or not known or found[1],
    }
    commit_info.clear()
    commit_info.update(info)


def pytest_terminal_summary(terminalreporter: Any, config: pytest.Config) -> None:
    """Peers, checks and floors of every row: the table of pytest-benchmark knows of ours alone."""
    session = getattr(config, "_benchmarksession", None)
    if session is None or session.disabled:
        return
    for benchmark in session.benchmarks:
        if benchmark.has_error or "row" not in benchmark.extra_info:
            continue
        for line in _told(benchmark.extra_info, 1e6 * benchmark.stats.median):
            terminalreporter.write_line(line)
    for key, reason in _left_out.items():
        terminalreporter.write_line(f"{key}: not measured: {reason}")


def _told(extra: dict[str, Any], ours: float) -> list[str]:
    own = extra.get("ours")
    ours = own["median_us"] if own else ours
    lines = [f"{extra['row']}: {time(ours)}"]
    for name, peer in extra["peers"].items():
        lines.append(f"  {name}: {time(peer['median_us'])}, {peer['median_us'] / ours:.3g}x")
    for name, microseconds in extra.get("floors_us", {}).items():
        lines.append(f"  floor ({name}): {time(microseconds)}, {microseconds / ours:.3g}x")
    for gate in extra["gates"]:
        words = f"{gate['value']:.1e}, at most {gate['bound']:.0e}, a wrong answer {gate['control']:.1e}"
        lines.append(f"  check of {gate['name']}: {words}")
    lines += [f"  no {name}: {reason}" for name, reason in extra.get("skipped", {}).items()]
    return lines
