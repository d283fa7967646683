"""The script for GPUs, on a CPU: what it runs, what it keeps where a part fails, what voids a row."""

import json
import math
import re
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from benchmarks import device
from benchmarks.checkout import digest
from benchmarks.device import Part, Script, parse_junit, parse_sanitizer, table
from benchmarks.gpu.checks import run_checks
from benchmarks.gpu.optim import cases as optim_cases
from benchmarks.gpu.sanitize import main as sanitize
from benchmarks.gpu.step import cases as step_cases
from benchmarks.gpu.warm import cases as warm_cases
from lip_fast import ops
from lip_fast.backends.native import library
from lip_fast.bench.cases import Bound, Case, Skip, run_cases
from lip_fast.bench.gates import Gate
from lip_fast.bench.timing import Timer, Variant, captured
from lip_fast.fused import FusedUpdate

ROOT = Path(__file__).resolve().parents[1]
CPU = torch.device("cpu")
needs_native = pytest.mark.skipif(library.cpu() is None, reason=f"no CPU extension: {library.problems()}")
GREEN = Gate("distance", 1e-7, 1e-5, 1e-2)
RED = Gate("distance", 1e-3, 1e-5, 1e-2)


def saved(folder: Path) -> dict[str, Any]:
    data: dict[str, Any] = json.loads((folder / "device.json").read_text())
    return data


def python(code: str) -> list[str]:
    return [sys.executable, "-c", code]


# The command -------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--parts", "solver,fly"], "expected some of build, doctor, .*, got fly"),
        (["--commit", "HEAD"], "expected a hash, with -dirty or without, got 'HEAD'"),
        (["--budget", "0"], "expected more than 0 seconds, got 0"),
        (["--unknown"], "unrecognized arguments"),
    ],
)
def test_bad_arguments_are_named(
    arguments: list[str], message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as raised:
        device.main([*arguments, "--out", str(tmp_path / "out")])
    assert raised.value.code == 2
    assert re.search(message, capsys.readouterr().err)
    assert not (tmp_path / "out").exists()


def test_a_folder_that_cannot_be_written_is_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(SystemExit) as raised:
        device.main(["--out", str(tmp_path / "file")])
    assert raised.value.code == 2
    assert "--out: cannot write" in capsys.readouterr().err


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
@pytest.mark.process
def test_without_a_gpu_nothing_is_run(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert device.main(["--out", str(tmp_path)]) == 2
    assert "torch sees no CUDA device" in capsys.readouterr().err
    assert [part["name"] for part in saved(tmp_path)["parts"]] == ["environment"]


@pytest.mark.process
def test_runs_as_a_file_from_anywhere(tmp_path: Path) -> None:
    command = [sys.executable, str(ROOT / "benchmarks" / "device.py"), "--help"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    assert "--dry" in done.stdout


# A machine with torch, Triton and compilers, and nothing from a registry.
BARE = """
import sys

ABSENT = {"sklearn", "scipy", "pytest", "pytest_benchmark", "torchao", "matplotlib", "yaml", "jsonargparse",
          "tqdm", "pybind11"}

# A finder that does not find what is not there.
class Without:
    def __init__(self, finder):
        self.finder = finder

    def __getattr__(self, name):
        return getattr(self.finder, name)

    def find_spec(self, name, path=None, target=None):
        absent = name.partition(".")[0] in ABSENT
        return None if absent else self.finder.find_spec(name, path, target)

sys.meta_path[:] = [Without(finder) for finder in sys.meta_path]
import benchmarks.device, benchmarks.gpu.checks, benchmarks.gpu.rows, benchmarks.gpu.sanitize
print("bare")
"""


@pytest.mark.process
def test_what_runs_on_a_gpu_needs_nothing_else() -> None:
    done = subprocess.run([sys.executable, "-c", BARE], cwd=ROOT, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    assert done.stdout == "bare\n"


@pytest.mark.process
@needs_native
def test_a_dry_run(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    code = device.main(["--out", str(tmp_path), "--dry", "--parts", "build,checks,solver"])
    out = capsys.readouterr().out
    assert code == 0, out
    data = saved(tmp_path)
    assert data["dry"] is True
    assert data["commit"]["sources"] == digest()
    assert data["machine"]["torch"] == torch.__version__
    status = {part["name"]: part["status"] for part in data["parts"]}
    assert status == {"environment": "ok", "build": "skipped", "checks": "ok", "solver": "ok"}
    assert data["checks"]
    assert all(check["passed"] is not False for check in data["checks"])
    assert any(check["passed"] is None and "no graphs" in check["reason"] for check in data["checks"])
    row = next(row for row in data["rows"] if row["row"] == "solver m=16 batch=1")
    assert row["part"] == "solver"
    assert row["ours"] == "warm"
    assert set(row["times"]) == {"warm", "cold", "linalg.svd", "linalg.eigh"}
    assert all(gate["passed"] for gate in row["gates"])
    assert {"median_us", "q1_us", "q3_us", "rounds", "mode", "calls"} == set(row["times"]["warm"])
    # What is seen where only the end of the output is kept.
    assert out.rstrip().splitlines()[-1].startswith("solver m=16 batch=8")
    text = json.dumps(data) + (tmp_path / "device.log").read_text()
    assert (name := subprocess.run(["uname", "-n"], capture_output=True, text=True).stdout.strip())
    assert name not in json.dumps(data)
    assert "solver" in text


@needs_native
@pytest.mark.parametrize("cases", [warm_cases, step_cases, optim_cases])
def test_small_rows_are_measured_on_a_cpu(cases: Callable[..., Any]) -> None:
    records: list[dict[str, Any]] = []
    timer = Timer(CPU, sample_seconds=1e-4, most_rounds=1)
    with torch.random.fork_rng(devices=[]):  # svd_lowrank draws from the global generator
        assert run_cases(list(cases(CPU, True)), timer, 30, records.append)
    assert records
    assert all(record["times"] and not record["void"] for record in records)


@needs_native
@pytest.mark.parametrize(("stray", "void"), [(1.0, False), (1.02, True)], ids=["right", "wrong"])
def test_rows_of_fused_updates_are_void_where_the_update_is_wrong(
    stray: float, void: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With the kernels that stand in for those of a device."""
    original, calls = FusedUpdate.products, []

    def products(self: FusedUpdate, V: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        calls.append(self._M.dtype)
        self._M.mul_(stray)
        return original(self, V)

    monkeypatch.setattr(ops, "fuses_updates", lambda device: True)
    monkeypatch.setattr(FusedUpdate, "products", products)
    forms = [(key, make) for key, make in optim_cases(CPU, True) if "LIPAdamW 60x80" in key]
    records: list[dict[str, Any]] = []
    with torch.random.fork_rng(devices=[]):
        run_cases(forms, Timer(CPU, sample_seconds=1e-4, most_rounds=1), 30, records.append)
    assert {torch.float32, torch.bfloat16} <= set(calls)
    assert len(records) == 4
    for record in records:
        failed = [gate["name"] for gate in record["gates"] if not gate["passed"]]
        assert failed == (["distance"] if void else []), record
        assert (record["void"] is not None) == void


@needs_native
def test_the_program_of_the_sanitizer_runs(capsys: pytest.CaptureFixture[str]) -> None:
    assert sanitize(["--dry"]) == 0
    kernels = {line.split()[0] for line in capsys.readouterr().out.splitlines()}
    assert kernels == {"fresh_columns", "refit", "small_svd", "sketch", "warm_svd", "round"}


def test_the_build_is_for_the_device_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(device.shutil, "which", lambda name: f"/bin/{name}")
    part = device.build_part(False, {"capability": [9, 0]})
    assert part.environment == {"LIP_FAST_EXT": "require", "LIP_FAST_CUDA_ARCHS": "90"}
    assert list(part.command[1:]) == ["setup.py", "build_ext", "--inplace"]
    monkeypatch.setattr(device.shutil, "which", lambda name: None)
    for name in ("NVCC", "CUDA_HOME"):
        monkeypatch.delenv(name, raising=False)
    assert device.build_part(False, {"capability": [9, 0]}).skipped == "nvcc is not there"
    (part,) = device.sanitizer_parts(False)
    assert part.skipped == "compute-sanitizer is not there"


def test_all_parts_have_time_within_the_budget() -> None:
    assert device.BUDGET < 8 * 60
    # What the timings are given leaves more than half of it to the others.
    assert sum(device.TIMINGS.values()) < device.BUDGET / 2


# Parts -------------------------------------------------------------------------------------------------


@pytest.mark.process
def test_a_part_that_fails_leaves_the_others(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    script = Script(tmp_path, budget=60)
    line = json.dumps({"kind": "row", "row": "a", "times": {}, "void": None, "skipped": "small"})
    write = f"import sys; open(sys.argv[1], 'a').write({line!r} + '\\n'); "
    script.run(Part("raises", python("print('to the log'); raise SystemExit('why')")))
    script.run(Part("killed", [*python(write + "import os; os.kill(os.getpid(), 9)"), "{result}"]))
    script.run(Part("slow", python("import time; print('started', flush=True); time.sleep(60)"), limit=2))
    script.run(Part("cut", [*python(write + "open(sys.argv[1], 'a').write('{\"kind\"')"), "{result}"]))
    script.run(Part("none", skipped="not here"))
    script.run(Part("sound", python("print('done')")))
    found = {part["name"]: (part["status"], part["reason"]) for part in saved(tmp_path)["parts"]}
    assert found == {
        "raises": ("failed", "ended with 1"),
        "killed": ("failed", "ended by SIGKILL"),
        "slow": ("timeout", "not done after 2 s"),
        "cut": ("ok", None),
        "none": ("skipped", "not here"),
        "sound": ("ok", None),
    }
    data = saved(tmp_path)
    assert [row["part"] for row in data["rows"]] == ["killed", "cut"]
    tails = {part["name"]: part["tail"] for part in data["parts"]}
    assert tails["raises"].split() == ["to", "the", "log", "why"]
    assert tails["slow"] == "started\n"
    assert not script.sound
    assert "to the log" in (tmp_path / "device.log").read_text()
    # A line of progress a part.
    assert len(capsys.readouterr().out.splitlines()) == len(found)


@pytest.mark.process
def test_what_a_part_started_ends_with_it(tmp_path: Path) -> None:
    script = Script(tmp_path, budget=60)
    child = "import subprocess, sys; subprocess.Popen([sys.executable, '-c', 'import time; time.sleep(90)'])"
    start = time.monotonic()
    script.run(Part("parent", python(f"{child}; import time; time.sleep(60)"), limit=2))
    assert time.monotonic() - start < 20
    assert saved(tmp_path)["parts"][0]["status"] == "timeout"


@pytest.mark.process
def test_parts_of_one_list_run_at_the_same_time(tmp_path: Path) -> None:
    script = Script(tmp_path, budget=60)
    wait = python("import time; time.sleep(2)")
    start = time.monotonic()
    script.run(*(Part(f"part {i}", wait) for i in range(3)))
    assert time.monotonic() - start < 5.5
    assert [part["status"] for part in saved(tmp_path)["parts"]] == ["ok"] * 3


def test_where_no_time_is_left_a_part_is_skipped(tmp_path: Path) -> None:
    script = Script(tmp_path, budget=1)
    script.run(Part("late", python("print('never')")))
    assert saved(tmp_path)["parts"][0]["reason"] == "no time left of 1 s"
    assert script.sound


def test_the_commit_can_be_told_where_git_knows_none(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(device, "tree", lambda: None)
    assert Script(tmp_path, budget=1).data["commit"]["id"] == "unknown"
    commit = Script(tmp_path, budget=1, commit=f"{'a' * 40}-dirty").data["commit"]
    assert (commit["id"], commit["dirty"]) == ("a" * 40, True)
    assert len(commit["sources"]) == 64


@pytest.mark.process
def test_a_forced_backend_does_not_reach_the_parts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LIP_FAST_BACKEND", "default")
    monkeypatch.setenv("TRITON_INTERPRET", "1")
    script = Script(tmp_path, budget=60)
    names = ("LIP_FAST_BACKEND", "TRITON_INTERPRET", "CUBLAS_WORKSPACE_CONFIG")
    show = python(f"import os; print(*(os.environ.get(name) for name in {names}))")
    (record,) = script.run(Part("shows", show))
    assert record["tail"] == "None None :4096:8\n"
    # Unless the part itself asks for one.
    (record,) = script.run(Part("asks", show, environment={"LIP_FAST_BACKEND": "triton"}))
    assert record["tail"] == "triton None :4096:8\n"


def test_the_tests_of_the_triton_kernels_run_on_the_device(monkeypatch: pytest.MonkeyPatch) -> None:
    present = {"pytest", "triton"}
    monkeypatch.setattr(device, "_has_module", lambda name: name in present)
    parts = device.triton_parts()
    names = {part.name for part in parts}
    assert {"triton: updates", "triton: rebuild_", "triton: fresh_columns", "triton: label_sums"} <= names
    assert not {"triton: interpreted", "triton: compiles"} & names
    assert all(part.environment["LIP_FAST_BACKEND"] == "triton" for part in parts)
    # All at the same time.
    plan = device._plan(["triton"], False, {"capability": [9, 0]})
    assert [[part.name for part in group] for group in plan] == [[part.name for part in parts]]
    present.remove("triton")
    assert [part.skipped for part in device.triton_parts()] == ["Triton is not installed"]
    (group,) = device._plan(["triton"], True, None)
    assert [part.skipped for part in group] == ["there is no CUDA device"]


JUNIT = """<?xml version="1.0"?>
<testsuites><testsuite name="pytest" errors="1" failures="1" skipped="1" tests="4" time="1">
<testcase classname="a" name="one"/>
<testcase classname="a" name="two"><failure message="x"/></testcase>
<testcase classname="a" name="three"><skipped message="no   GPU"/></testcase>
<testcase classname="a" name="four"><error/></testcase>
</testsuite></testsuites>"""


def test_tests_are_counted() -> None:
    reason, facts = parse_junit(JUNIT)
    assert reason == "2 of 4 tests failed"
    assert facts["passed"] == 1
    assert facts["broken"] == ["a::two", "a::four"]
    assert facts["why skipped"] == ["no GPU"]


@pytest.mark.process
def test_tests_that_leave_no_report_have_failed(tmp_path: Path) -> None:
    script = Script(tmp_path, budget=60)
    part = Part("tests", [*python("print('ok')"), "{result}"], finish=parse_junit, reads="result")
    (record,) = script.run(part)
    assert (record["status"], record["reason"]) == ("failed", "left no report")


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("========= ERROR SUMMARY: 0 errors\n", None),
        ("========= ERROR SUMMARY: 3 errors\n", "3 errors"),
        ("========= ERROR SUMMARY: 1 error\n", "1 errors"),
        ("========= RACECHECK SUMMARY: 0 hazards displayed (0 errors, 0 warnings)\n", None),
        ("========= RACECHECK SUMMARY: 2 hazards displayed (1 error, 1 warning)\n", "2 hazards"),
        ("", "no summary"),
        (
            "========= Error: Device not supported. Please refer to the manual\n",
            "no summary: ========= Error: Device not supported. Please refer to the manual",
        ),
    ],
)
def test_what_the_sanitizer_says(text: str, reason: str | None) -> None:
    assert parse_sanitizer(text)[0] == reason


# Rows --------------------------------------------------------------------------------------------------


def measured(case: Case | Exception, seconds: float = 1) -> dict[str, Any]:
    """The record of one row."""

    def make() -> Case:
        if isinstance(case, Exception):
            raise case
        return case

    records: list[dict[str, Any]] = []
    sound = run_cases([("row", make)], Timer(CPU, sample_seconds=1e-5), seconds, records.append)
    assert sound == (records[0]["void"] is None)
    json.dumps(records)
    return records[0]


@pytest.mark.parametrize(
    "gate",
    [RED, Gate("distance", math.nan, 1e-5, 1e-2), Gate("distance", 1e-7, 1e-5, 1e-6)],
    ids=["wrong", "not a number", "cannot fail"],
)
def test_a_red_gate_voids_the_row_and_nothing_is_timed(gate: Gate) -> None:
    calls: list[int] = []
    record = measured(Case([GREEN, gate], [Variant("ours", lambda: calls.append(1))]))
    assert "distance" in record["void"]
    assert record["times"] == {}
    assert calls == []
    assert [gate["passed"] for gate in record["gates"]] == [True, False]


def test_what_is_found_after_the_timing_voids_it_too() -> None:
    record = measured(Case([GREEN], [Variant("ours", lambda: None)], after=lambda: "3 steps were skipped"))
    assert record["void"] == "3 steps were skipped"
    assert record["times"] == {}


def test_an_error_and_a_skip_are_kept_with_their_reason(capsys: pytest.CaptureFixture[str]) -> None:
    assert measured(RuntimeError("out\n of memory"))["void"] == "RuntimeError: out of memory"
    assert "Traceback" in capsys.readouterr().err
    record = measured(Skip("needs 9 GB"))
    assert (record["void"], record["skipped"]) == (None, "needs 9 GB")
    assert measured(Case([GREEN], []), seconds=-1)["skipped"].startswith("no time left")


def test_targets_are_judged_by_medians() -> None:
    ours, peer = Variant("ours", lambda: None), Variant("peer", lambda: time.sleep(1e-3))
    bounds = [Bound(f"{n} times", lambda times, n=n: n * times["ours"] <= times["peer"]) for n in (2, 1e9)]
    record = measured(Case([GREEN], [ours, peer], bounds, floors={"copy": 1.0}))
    assert record["targets"] == [
        {"text": "2 times", "met": True},
        {"text": "1000000000.0 times", "met": False},
    ]
    assert record["times"]["peer"]["median_us"] > 900


def test_variants_take_turns_and_slow_ones_run_seldom() -> None:
    order: list[str] = []

    def run(name: str, seconds: float) -> Callable[[], None]:
        def call() -> None:
            order.append(name)
            time.sleep(seconds)

        return call

    variants = [
        Variant("slow", run("slow", 0.2)),
        Variant("a", run("a", 1e-3), between=lambda: order.append("-")),
        captured("b", run("b", 1e-3), CPU, calls=2),
    ]
    times = Timer(CPU, sample_seconds=1e-6, most_rounds=4).measure(variants, 0.15)
    assert times["slow"]["rounds"] == 1
    assert times["slow"]["median_us"] > 150e3
    assert (times["a"]["rounds"], times["b"]["rounds"]) == (4, 4)
    assert times["b"]["calls"] == 2
    assert times["b"]["median_us"] < 2.5e3
    # Two of each to warm up, and then in turn; a graph of two calls shows as two.
    shown = " ".join(order)
    assert shown == "slow slow - a - a b b b b - a b b b b - a - a b b b b - a"


def test_checks_go_on_after_one_that_fails(capsys: pytest.CaptureFixture[str]) -> None:
    def fails() -> None:
        raise AssertionError("7 values differ")

    def skips() -> None:
        raise Skip("no streams")

    records: list[dict[str, Any]] = []
    found = iter([("one", fails), ("two", skips), ("three", lambda: None)])
    assert not run_checks(found, records.append)
    assert [record["passed"] for record in records] == [False, None, True]
    assert records[0]["reason"] == "AssertionError: 7 values differ"


def test_the_table_fits_and_shows_what_failed(tmp_path: Path) -> None:
    script = Script(tmp_path, budget=60)
    row = measured(Case([GREEN], [Variant("ours", lambda: None)], floors={"copy": 1.0}))
    row["targets"] = [{"text": "<= 20 us", "met": False}]
    data = script.data
    data["machine"] = {"gpu": {"name": "Some GPU"}, "torch": "2.11"}
    data["rows"] = [
        row,
        row | {"row": "other", "void": "the result is wrong"},
        row | {"row": "third", "skipped": "needs 9 GB"},
    ]
    data["checks"] = [{"check": "waits for nothing", "passed": False, "reason": "it waited"}]
    lines = table(data).splitlines()
    assert lines[0].startswith("Some GPU, torch 2.11")
    assert "  FAILED waits for nothing: it waited" in lines
    assert lines[-3].endswith("<= 20 us: MISSED")
    assert "floor (copy) 1.0 =" in lines[-3]
    assert lines[-2].split(maxsplit=1) == ["other", "VOID the result is wrong"]
    assert lines[-1].split(maxsplit=1) == ["third", "skipped: needs 9 GB"]
