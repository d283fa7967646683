import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from benchmarks import conftest
from benchmarks.results import LEFT_OUT
from benchmarks.rows import ROWS

ROOT = Path(__file__).resolve().parents[1]

# A machine without memory.
STARVED = """
import sys

import pytest

from lip_fast.bench import cases

cases._free_memory = lambda: 1
sys.exit(pytest.main(sys.argv[1:]))
"""


@pytest.mark.parametrize(
    ("pattern", "named"),
    [
        ("truncated-adamw-1000x2049", "near are truncated-adamw-1000x2048"),
        ("optimizer-1000x2048", "near are optimizer-1000x2048-"),
        ("op-skech-100x512-float32", "near are op-sketch-100x512-float32"),
        ("op-sketch-3x4-float32", "near are op-sketch-"),
        ("qqq", "there are rows of the kinds epoch, exact"),
    ],
)
def test_a_pattern_that_matches_no_row_is_named(pattern: str, named: str) -> None:
    with pytest.raises(pytest.UsageError) as refusal:
        conftest._require_known(pattern)
    assert f"no row matches '{pattern}'" in str(refusal.value)
    assert named in str(refusal.value).replace("decomposition, ", "")
    assert "\n" not in str(refusal.value)


def test_keys_and_names_are_there_once() -> None:
    keys = [row.key for row in ROWS]
    assert len(set(keys)) == len(keys)
    for row in ROWS:
        conftest._require_known(row.key)
        assert len(set(row.peers)) == len(row.peers)
        assert row.gates[0] == "distance"
        # The command that is printed for a kind finds its rows.
        assert row.key.startswith(row.kind)


@pytest.mark.process
def test_every_row_is_a_test_that_can_be_chosen() -> None:
    command = [sys.executable, "-m", "pytest", "benchmarks", "--collect-only", "-q", "--benchmark-disable"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=200)
    assert done.returncode == 0, done.stdout + done.stderr
    found = re.findall(r"^benchmarks/\S+\[(\S+)\]$", done.stdout, re.MULTILINE)
    assert sorted(found) == sorted(row.key for row in ROWS)


@pytest.mark.process
def test_rows_are_chosen_and_what_is_not_measured_is_in_the_result(tmp_path: Path) -> None:
    result = tmp_path / "result.json"
    rows = "optimizer-1000x2048-keep plain-optimizer-2x64"
    options = ["benchmarks", "-q", "--benchmark-quiet", "--rows", rows, "--benchmark-json", str(result)]
    # Nothing is timed in a worker of pytest-xdist, or so its variables say.
    environment = {name: value for name, value in os.environ.items() if not name.startswith("PYTEST_")}
    done = subprocess.run(
        [sys.executable, "-c", STARVED, *options],
        cwd=ROOT,
        env=environment | {"PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        timeout=200,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    data = json.loads(result.read_text())
    assert [one["extra_info"]["row"] for one in data["benchmarks"]] == ["plain-optimizer-2x64"]
    (reason,) = (data[LEFT_OUT].pop(key) for key in ["optimizer-1000x2048-keep"])
    assert reason.startswith("needs 0.16 GB of memory")
    assert not data[LEFT_OUT]
    assert f"optimizer-1000x2048-keep: not measured: {reason}" in done.stdout
    assert "  base step: " in done.stdout
    assert "  check of distance: " in done.stdout
    assert {"cpu", "threads", "torch", "versions"} <= set(data["machine_info"])
    assert "node" not in data["machine_info"]
