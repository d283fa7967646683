"""Run the tests of reliability and count: ``python -m benchmarks.reliability [--write README.md]``.

The table is printed, or written between the markers of a Markdown file; it holds counts alone, no date and
no time, so that the same tree gives the same table. Where a test fails, nothing ran, or a weight was changed
that should not have been, it is refused with one line and exit code 2, and nothing is written.

Tests are chosen by their markers. What a test counts it says itself, with pytest's ``record_property``:
``hostile_inputs`` (a test marked ``hostile`` that says nothing counts as one), ``kills_survived``,
``bytes_changed_wrongly``. This module is also the pytest plugin that collects these.
"""

import json
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from benchmarks.command import Parser, Refused, answer
from lip_fast.cli.atomic import write_whole
from lip_fast.cli.table import markdown
from lip_fast.harness.files.slots import Slot

__all__ = ["MARKERS", "SLOT", "count", "main", "render"]

SLOT = Slot("reliability")
RERUN = "make reliability"
MARKERS = ("contract", "hostile", "reliability", "upstream")
PROPERTIES = ("hostile_inputs", "kills_survived", "bytes_changed_wrongly")
# What pytest exits with.
_PASSED, _FAILED = 0, 1

Counts = Mapping[str, int]
"""Tests that passed by marker, and what they recorded by property."""


# The plugin ----------------------------------------------------------------------------------------------

_OPTION = "--reliability-json"
_MARKER = "reliability_marker"
_passed: set[str] = set()
_counts: dict[str, int] = {}


def pytest_addoption(parser: Any) -> None:
    """Where to write the counts."""
    parser.addoption(_OPTION, type=Path, help="write counts of the tests of reliability to this file")


def pytest_collection_modifyitems(items: Sequence[Any]) -> None:
    """Let each report carry the markers of its test."""
    for item in items:
        item.user_properties.extend((_MARKER, name) for name in MARKERS if item.get_closest_marker(name))


def pytest_runtest_logreport(report: Any) -> None:
    """Count a test that has passed to its end: fixtures record as late as in the teardown."""
    if report.when == "call" and report.passed:
        _passed.add(report.nodeid)
    if report.when != "teardown" or report.nodeid not in _passed or not report.passed:
        return
    markers = [value for name, value in report.user_properties if name == _MARKER]
    recorded = [(name, int(value)) for name, value in report.user_properties if name in PROPERTIES]
    if "hostile" in markers and not any(name == "hostile_inputs" for name, _ in recorded):
        recorded.append(("hostile_inputs", 1))
    for name, value in [*((marker, 1) for marker in markers), *recorded]:
        _counts[name] = _counts.get(name, 0) + value


def pytest_sessionfinish(session: Any) -> None:
    """Write the counts, in the process that has all reports."""
    path = session.config.getoption(_OPTION)
    if path is not None and not hasattr(session.config, "workerinput"):
        path.write_text(json.dumps(_counts))


# The report ----------------------------------------------------------------------------------------------


def count(tests: Sequence[str]) -> Counts:
    """Run the tests of reliability among ``tests`` (files or folders; none for all) and count.

    Raises:
        Refused: a test failed, or nothing could be run.
    """
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "counts.json"
        command = [
            sys.executable,
            "-m",
            "pytest",
            "-p",
            "benchmarks.reliability",
            "-q",
            "-m",
            " or ".join(MARKERS),
        ]
        done = subprocess.run([*command, f"{_OPTION}={path}", *tests])
        if done.returncode != _PASSED or not path.exists():
            what = "a test failed" if done.returncode == _FAILED else "the tests could not be run"
            raise Refused(f"{what}: pytest ended with code {done.returncode}")
        counts: Counts = json.loads(path.read_text())
    return counts


def render(counts: Counts) -> str:
    """The table in Markdown, without the markers.

    Raises:
        Refused: a weight was changed wrongly, or a row has nothing to count.
    """
    rows = [
        ("tests of the optimizer contract", "contract"),
        ("hostile inputs refused or survived", "hostile_inputs"),
        ("tests of scikit-learn and scipy passed by `randomized_svd`", "upstream"),
        ("runs killed and resumed to the same bits", "kills_survived"),
    ]
    if missing := [name for _, name in rows if not counts.get(name)]:
        raise Refused(f"nothing was counted as {', '.join(missing)}")
    wrong = counts.get("bytes_changed_wrongly")
    if wrong is None:
        raise Refused("no test has looked for bytes that were changed wrongly")
    if wrong:
        raise Refused(f"{wrong} bytes of weight were changed that should not have been")
    lines = [*((label, f"{counts[name]}") for label, name in rows), ("bytes of weight changed wrongly", "0")]
    table = markdown([("", ""), *lines])
    return f"{table}\n\nCounted by `{RERUN}`, which runs them all."


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command; returns its exit code."""
    parser = Parser(prog="python -m benchmarks.reliability", description="Count the tests of reliability.")
    parser.add_argument("tests", nargs="*", help="files or folders of tests (default: all)")
    parser.add_argument("--write", type=Path, metavar="README.md", help="replace what is between its markers")
    options = parser.parse_args(arguments)
    return answer(parser, lambda: _put(options.tests, options.write))


def _put(tests: Sequence[str], page: Path | None) -> None:
    """Count, and print the table or write it into a page."""
    # What can be refused is refused before the tests take their minutes.
    if page is not None:
        SLOT.filled(page, "")
    report = render(count(tests))
    if page is None:
        print(report)
    else:
        write_whole(page, SLOT.filled(page, report))


if __name__ == "__main__":
    sys.exit(main())
