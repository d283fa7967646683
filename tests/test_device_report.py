import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from benchmarks import device_report, report

README = f"# Title\n\n{device_report.SLOT.begin}\nold\n{device_report.SLOT.end}\nafter\n"
GREEN = {"name": "distance", "value": 1e-6, "bound": 1e-5, "control": 1e-2, "passed": True}


def timed(microseconds: float, mode: str = "graph") -> dict[str, Any]:
    return {"median_us": microseconds, "mode": mode}


def measured(name: str, **more: Any) -> dict[str, Any]:
    row = {
        "part": "step",
        "row": name,
        "gates": [dict(GREEN)],
        "times": {"LIP": timed(40.0), "SGD": timed(10.0), "eager": timed(300.0, "events")},
        "ours": "LIP",
        "void": None,
        "floors_us": {"copy": 4.0},
        "variants_skipped": {"one read": "the device cannot run it"},
        "targets": [{"text": "<= 50 us", "met": True}, {"text": "<= 30 us", "met": False}],
    }
    return row | more


def complete() -> dict[str, Any]:
    void = {"times": {}, "gates": [], "void": "RuntimeError: out of | memory"}
    skipped = {"times": {}, "gates": [], "skipped": "needs 90 GB of memory, 80 GB are free"}
    return {
        "kind": "lip_fast device run",
        "dry": False,
        "datetime": "2026-01-03T04:05:06+00:00",
        "commit": {"id": "0123456789abcdef0123456789abcdef01234567", "dirty": False},
        "machine": {
            "gpu": {"name": "Some GPU"},
            "torch": "2",
            "cuda of torch": "13",
            "triton": "3",
            "nvcc": "13",
        },
        "parts": [
            {"name": "tests: step", "status": "ok", "seconds": 9.4, "reason": None, "passed": 7},
            {"name": "sanitizer", "status": "skipped", "seconds": 0.0, "reason": "it is not there"},
        ],
        "checks": [
            {"check": "replay", "passed": True, "reason": None},
            {"check": "streams", "passed": False, "reason": "3 values differ"},
        ],
        "rows": [measured("step 100x512"), measured("big", **void), measured("bigger", **skipped)],
    }


class Files:
    """A result and a README in one folder."""

    def __init__(self, folder: Path) -> None:
        self.result, self.readme = folder / "device.json", folder / "README.md"
        self.readme.write_text(README)

    def run(self, data: Any, *options: str) -> int:
        self.result.write_text(json.dumps(data))
        return report.main([str(self.result), "--write", str(self.readme), *options])


@pytest.fixture
def files(tmp_path: Path) -> Files:
    return Files(tmp_path)


def test_shows_every_part_and_row_with_what_is_missing(files: Files) -> None:
    assert files.run(complete()) == 0
    text = files.readme.read_text()
    assert text.startswith(
        f"# Title\n\n{device_report.SLOT.begin}\nSome GPU, torch 2, CUDA 13, Triton 3, nvcc 13; "
    )
    assert text.endswith(f"|\n{device_report.SLOT.end}\nafter\n")
    assert "| tests: step | ok | 9 s | 7 tests passed |" in text
    assert "| sanitizer | skipped | 0 s | it is not there |" in text
    assert "1 passed, 1 failed; streams: 3 values differ." in text
    beside = "SGD 10 µs*, 0.25x; eager 300 µs, 7.5x; no one read: the device cannot run it"
    assert f"| step 100x512 | LIP 40 µs* | {beside} | 10% (copy) | <= 50 us ✓; <= 30 us ✗ |" in text
    assert "| big | void | RuntimeError: out of \\| memory |  |  |" in text
    assert "| bigger | not measured | needs 90 GB of memory, 80 GB are free |  |  |" in text


def test_what_lip_alone_takes_is_held_against_its_own_floor(files: Files) -> None:
    data = complete()
    row = data["rows"][0]
    row["times"]["LIP alone"] = timed(20.0)
    row["floors_us"]["alone copy"] = 3.0
    assert files.run(data) == 0
    assert "| 10% (copy), 15% (alone copy) |" in files.readme.read_text()


def _gate(**values: Any) -> Callable[[dict[str, Any]], None]:
    return lambda data: data["rows"][0]["gates"][0].update(values)


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (_gate(passed=False), "step 100x512 failed the check 'distance'"),
        (_gate(value=1e-4), "step 100x512 failed the check 'distance'"),
        (_gate(control=1e-6), "step 100x512 failed the check 'distance'"),
        (_gate(value=None), "step 100x512 failed the check 'distance'"),
        (lambda data: data["rows"][0].update(gates=[]), "has times and no check"),
        (lambda data: data["commit"].update(id="unknown"), "unknown commit"),
        (lambda data: data["commit"].update(dirty=None), "changes that are in no commit"),
        (lambda data: data.update(dry=True), "a dry run measures no GPU"),
        (lambda data: data["machine"].update(gpu=None), "no GPU was measured"),
        (lambda data: data.update(datetime="today"), "the date of the run, got 'today'"),
        (lambda data: data.pop("machine"), "KeyError: 'machine'"),
        (lambda data: data["rows"].append(3), "TypeError"),
    ],
)
def test_refuses(
    files: Files,
    capsys: pytest.CaptureFixture[str],
    change: Callable[[dict[str, Any]], None],
    reason: str,
) -> None:
    data = complete()
    change(data)
    assert files.run(data) == 2
    message = capsys.readouterr().err
    assert reason in message
    assert message.count("\n") == 1
    assert files.readme.read_text() == README


def test_allow_dirty_shows_a_dry_run_and_says_so(files: Files) -> None:
    data = complete() | {"dry": True}
    data["commit"]["dirty"] = True
    data["machine"]["gpu"] = None
    assert files.run(data, "--allow-dirty") == 0
    assert "no GPU, torch 2" in files.readme.read_text()
    assert "with changes, 2026-01-03 (a dry run on a CPU)" in files.readme.read_text()


def test_there_is_no_page_of_details(files: Files, capsys: pytest.CaptureFixture[str]) -> None:
    assert files.run(complete(), "--details", str(files.readme.parent / "page.md")) == 2
    assert "leave out --details" in capsys.readouterr().err
