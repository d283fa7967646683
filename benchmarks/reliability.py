"""Run the tests of reliability and count: ``python -m benchmarks.reliability [--write README.md]``.

The table is printed, or written between the markers of a Markdown file; it holds counts alone, no date and no
time, so that the same tree gives the same table. Where a test fails, nothing ran, or a weight was changed that
should not have been, it is refused with one line and exit code 2, and nothing is written.

Tests are chosen by their markers. What a test counts it says itself, with pytest's ``record_property``:
``hostile_inputs`` (a test marked ``hostile`` that says nothing counts as one), ``kills_survived``,
``bytes_changed_wrongly``. This module is also the pytest plugin that collects these.
"""

import argparse
import json
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from benchmarks.report import Refused, read_text, replace_between_markers, write_whole

__all__ = ["BEGIN", "END", "MARKERS", "main", "render"]

BEGIN = "<!-- reliability:begin -->"
END = "<!-- reliability:end -->"
RERUN = "make reliability"
MARKERS = ("contract", "hostile", "reliability", "upstream")
PROPERTIES = ("hostile_inputs", "kills_survived", "bytes_changed_wrongly")
# What pytest exits with: all is well, tests failed.
_PASSED, _FAILED = 0, 1

Counts = Mapping[str, int]
"""Tests that passed by marker, and what they recorded by property."""


# The plugin ----------------------------------------------------------------------------------------------

_OPTION = "--reliability-json"
_counts: dict[str, int] = {}


def pytest_addoption(parser: Any) -> None:
    """Where to write the counts."""
    parser.addoption(_OPTION, type=Path, help="write counts of the tests of reliability to this file")


def pytest_collection_modifyitems(items: Sequence[Any]) -> None:
    """Let each report carry the markers of its test."""
    for item in items:
        item.user_properties.extend(
            ("reliability_marker", name) for name in MARKERS if item.get_closest_marker(name) is not None
        )


def pytest_runtest_logreport(report: Any) -> None:
    """Count a test that has passed, and what it recorded, which fixtures may do as late as in the teardown."""
    properties = list(report.user_properties)
    markers = [value for name, value in properties if name == "reliability_marker"]
    recorded = [(name, value) for name, value in properties if name in PROPERTIES]
    if report.when == "call" and report.passed:
        for marker in markers:
            _counts[marker] = _counts.get(marker, 0) + 1
        if "hostile" in markers and not any(name == "hostile_inputs" for name, _ in recorded):
            recorded.append(("hostile_inputs", 1))
            report.user_properties.append(("hostile_inputs", 0))  # counted: not again in the teardown
        elif not recorded:
            return
    elif report.when != "teardown":
        return
    # Properties add up from phase to phase.
    for name, value in recorded[_counted.pop(report.nodeid, 0) :]:
        _counts[name] = _counts.get(name, 0) + int(value)
    if report.when == "call":
        _counted[report.nodeid] = len([name for name, _ in report.user_properties if name in PROPERTIES])


_counted: dict[str, int] = {}


def pytest_sessionfinish(session: Any) -> None:
    """Write the counts, in the process that has all reports."""
    path = session.config.getoption(_OPTION)
    if path is not None and not hasattr(session.config, "workerinput"):
        path.write_text(json.dumps(_counts))
