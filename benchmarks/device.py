"""Everything that needs a GPU, in one command: ``python3 benchmarks/device.py --out DIR``.

Builds the extensions in place for the GPU that is there, runs the device tests, those of the Triton kernels,
compute-sanitizer, the checks of streams, captures and waiting, and the timings; in a plain checkout, with
nothing installed, in less than eight minutes. Each part is a process of its own with a limit on its time: one
that fails leaves the others.
DIR gets ``device.json`` (machine, commit, parts, rows), rewritten after every part, and ``device.log``; a
short table is printed last.

Exit code: 0; 1 where a part failed or a row is void; 2 where there is no GPU, or the arguments do not fit.
"""

import argparse
import contextlib
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import xml.etree.ElementTree as ElementTree
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
# Started as a file, the folder of this one is on the path in place of the checkout.
sys.path[:] = [str(ROOT), *(path for path in sys.path if path != str(Path(__file__).resolve().parent))]

from benchmarks.checkout import digest, tree  # noqa: E402

__all__ = ["Part", "Script", "main", "parse_junit", "parse_sanitizer", "table"]

SANITIZERS = ("memcheck", "racecheck", "initcheck", "synccheck")
TIMINGS = {
    "solver": 10,
    "sketch": 20,
    "update": 20,
    "warm": 15,
    "step": 40,
    "optim": 45,
    "decompositions": 20,
    "ops": 60,
}
NAMES = ("build", "doctor", "tests", "triton", "checks", *TIMINGS, "sanitizer")
# Seconds for everything; the last part to start gets what is left of them.
BUDGET = 465
# A part that would have less than this is not started.
_LEAST_SECONDS = 5
_TAIL = 4000
_SHOWN_TAIL = 700
# They start processes of their own, which need no device.
_WITHOUT_DEVICE = ("triton: interpreted", "triton: compiles")
_SANITIZER_FOUND = 9  # what it exits with where the program itself ends well


@dataclass
class Part:
    """One process.

    Attributes:
        name: in the results.
        command: what is run; empty where it is skipped.
        limit: seconds after which it is ended.
        skipped: why it is not run.
        environment: added to that of this process.
        finish: reads what it left; returns why it failed, or None, and facts for the record. Without it, the
            result is lines of JSON.
        reads: whether that is its "output", or the "result" that ``{result}`` in its command names.
    """

    name: str
    command: Sequence[str] = ()
    limit: float = 60
    skipped: str | None = None
    environment: Mapping[str, str] = field(default_factory=dict)
    finish: Callable[[str], tuple[str | None, dict[str, Any]]] | None = None
    reads: str = "output"


@dataclass
class _Running:
    part: Part
    process: "subprocess.Popen[bytes]"
    output: Path
    result: Path
    start: float
    limit: float


class Script:
    """Runs parts and keeps what they found.

    Args:
        out: folder of the results.
        budget: seconds for all parts.
        commit: what the sources were checked out from, where git cannot tell; with "-dirty" at its end where
            they were changed.
        dry: whether this is a dry run, for the record.
    """

    def __init__(self, out: Path, *, budget: float, commit: str | None = None, dry: bool = False) -> None:
        self.out, self.budget = out, budget
        self.start = time.monotonic()
        found = tree()
        if found is None and commit is not None:
            found = commit.removesuffix("-dirty"), commit.endswith("-dirty")
        self.data: dict[str, Any] = {
            "kind": "lip_fast device run",
            "dry": dry,
            "datetime": datetime.now(UTC).isoformat(timespec="seconds"),
            "commit": {
                "id": found[0] if found else "unknown",
                "dirty": found[1] if found else None,
                "sources": digest(),
            },
            "machine": {},
            "parts": [],
            "checks": [],
            "rows": [],
        }
        out.mkdir(parents=True, exist_ok=True)
        self._log = out / "device.log"
        self._log.write_text("")

    @property
    def spent(self) -> float:
        """Seconds since the start."""
        return time.monotonic() - self.start

    def run(self, *parts: Part) -> list[dict[str, Any]]:
        """Run parts at the same time, and save what they left."""
        with tempfile.TemporaryDirectory() as folder:
            running, records = [], []
            for i, part in enumerate(parts):
                left = self.budget - self.spent
                if part.skipped is None and left < _LEAST_SECONDS:
                    part.skipped = f"no time left of {self.budget:.0f} s"
                if part.skipped is not None:
                    records.append(self._keep(part, "skipped", part.skipped, 0.0, "", []))
                    continue
                running.append(self._start(part, min(part.limit, left), Path(folder) / str(i)))
            try:
                records += [self._end(one) for one in running]
            finally:
                for one in running:
                    _kill(one.process)
        self.save()
        return records

    def _start(self, part: Part, limit: float, folder: Path) -> _Running:
        folder.mkdir()
        output, result = folder / "output", folder / "result"
        result.touch()
        # Forced, a backend would serve the ops that are to be compared; Triton's interpreter knows no device.
        mine = {
            name: value
            for name, value in os.environ.items()
            if name not in ("LIP_FAST_BACKEND", "TRITON_INTERPRET")
        }
        environment = {**mine, **_ENVIRONMENT, **part.environment}
        command = [word.replace("{result}", str(result)) for word in part.command]
        with output.open("wb") as file:
            process = subprocess.Popen(
                command,
                cwd=ROOT,
                env=environment,
                stdin=subprocess.DEVNULL,
                stdout=file,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )
        return _Running(part, process, output, result, time.monotonic(), limit)

    def _end(self, one: _Running) -> dict[str, Any]:
        part, status, reason = one.part, "ok", None
        try:
            code = one.process.wait(max(0.1, one.start + one.limit - time.monotonic()))
            if code < 0:
                status, reason = "failed", f"ended by {_signal(-code)}"
            elif code:
                status, reason = "failed", f"ended with {code}"
        except subprocess.TimeoutExpired:
            _kill(one.process)
            status, reason = "timeout", f"not done after {one.limit:.0f} s"
        seconds = time.monotonic() - one.start
        output = one.output.read_text(errors="replace")
        facts: dict[str, Any] = {}
        if part.finish is not None:
            try:
                said, facts = part.finish(one.result.read_text() if part.reads == "result" else output)
            except (ValueError, ElementTree.ParseError):
                said = "left no report" if status == "ok" else None
            if said is not None and status != "timeout":
                status, reason = "failed", said
        lines = [] if part.finish is not None else _records(one.result)
        return self._keep(part, status, reason, seconds, output, lines, facts)

    def _keep(
        self,
        part: Part,
        status: str,
        reason: str | None,
        seconds: float,
        output: str,
        lines: list[dict[str, Any]],
        facts: Mapping[str, Any] | None = None,
    ) -> dict[str, Any]:
        for line in lines:
            kind = line.pop("kind", None)
            if kind == "environment":
                self.data["machine"] = line
            elif kind in ("row", "check"):
                self.data[f"{kind}s"].append({"part": part.name, **line})
        void = [line["row"] for line in lines if line.get("void")]
        void += [line["check"] for line in lines if line.get("passed") is False]
        if void and status == "failed":
            reason = f"{reason}: {len(void)} of {len(lines)} failed"
        record = {
            "name": part.name,
            "status": status,
            "reason": reason,
            "seconds": round(seconds, 1),
            **(facts or {}),
            "tail": output[-_TAIL:],
        }
        self.data["parts"].append(record)
        with self._log.open("a") as log:
            log.write(f"==== {part.name}: {status}, {seconds:.1f} s, {reason or 'no remarks'}\n{output}\n")
        words = f"[{self.spent:4.0f} s] {part.name:<22} {status:<8} {seconds:6.1f} s"
        print(f"{words}  {reason or ''}".rstrip(), flush=True)
        return record

    def save(self) -> None:
        """Write the result as a whole."""
        self.data["seconds"] = round(self.spent, 1)
        path = self.out / "device.json"
        temporary = path.with_name(f".{path.name}.{os.getpid()}")
        temporary.write_text(json.dumps(self.data, indent=1, allow_nan=True) + "\n")
        os.replace(temporary, path)

    @property
    def sound(self) -> bool:
        """Whether no part failed and no row is void."""
        failed = any(part["status"] in ("failed", "timeout") for part in self.data["parts"])
        return not failed and not any(row["void"] for row in self.data["rows"])


# Read by every part. cuBLAS gives the same bits on every stream with a workspace of its own only.
_ENVIRONMENT = {"CUBLAS_WORKSPACE_CONFIG": ":4096:8", "PYTHONUNBUFFERED": "1"}


def _signal(number: int) -> str:
    try:
        return signal.Signals(number).name
    except ValueError:
        return f"signal {number}"


def _kill(process: "subprocess.Popen[bytes]") -> None:
    """End a part and all that it started, if it still runs."""
    if process.poll() is None:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()


def _records(path: Path) -> list[dict[str, Any]]:
    """The lines of a result, but for one that was cut off."""
    found = []
    for line in path.read_text(errors="replace").splitlines():
        with contextlib.suppress(ValueError):
            found.append(json.loads(line))
    return found


# Parts -------------------------------------------------------------------------------------------------


def parse_junit(text: str) -> tuple[str | None, dict[str, Any]]:
    """Why the tests of a JUnit file failed, and how many there are of each kind.

    Raises:
        ParseError: it is none.
    """
    root = ElementTree.fromstring(text)
    suites = [root] if root.tag == "testsuite" else root.findall("testsuite")
    counts = {
        name: sum(int(suite.get(name, 0)) for suite in suites)
        for name in ("tests", "failures", "errors", "skipped")
    }
    broken = [
        f"{case.get('classname', '')}::{case.get('name', '')}"
        for suite in suites
        for case in suite.findall("testcase")
        if case.find("failure") is not None or case.find("error") is not None
    ]
    why = sorted(
        {
            " ".join((skip.get("message") or "").split())
            for suite in suites
            for skip in suite.iterfind("testcase/skipped")
        }
    )
    passed = counts["tests"] - counts["failures"] - counts["errors"] - counts["skipped"]
    facts = {"passed": passed, **counts, "broken": broken, "why skipped": why[:10]}
    reason = f"{len(broken)} of {counts['tests']} tests failed" if broken else None
    return reason, facts


def parse_sanitizer(text: str) -> tuple[str | None, dict[str, Any]]:
    """Why a run of compute-sanitizer failed, from its output, and how much it found."""
    errors = re.search(r"ERROR SUMMARY: (\d+) error", text)
    hazards = re.search(r"RACECHECK SUMMARY: (\d+) hazards? displayed", text)
    found = int((hazards or errors or [0, -1])[1])
    if found > 0:
        return f"{found} {'hazards' if hazards else 'errors'}", {"found": found}
    if found < 0:
        said = re.search(r"^=+ (?:Error|Internal).*$", text, re.MULTILINE)
        return f"no summary{f': {said[0]}' if said else ''}", {"found": None}
    return None, {"found": 0}


def _python(*arguments: str) -> list[str]:
    return [sys.executable, *arguments]


def _module(name: str, *arguments: str, dry: bool) -> list[str]:
    return _python("-m", name, *arguments, *(["--dry"] if dry else []))


# By itself: it imports torch and nothing of the package, which may be what does not work.
_ENVIRONMENT_FILE = ROOT / "lip_fast" / "bench" / "environment.py"


def environment_part() -> Part:
    """What this is run on; also tells whether there is a GPU."""
    return Part("environment", _python("-P", str(_ENVIRONMENT_FILE), "--result", "{result}"), 90)


def build_part(dry: bool, gpu: Mapping[str, Any] | None) -> Part:
    """The extensions, in place, for this GPU alone."""
    if dry or gpu is None:
        return Part("build", skipped="a dry run builds nothing")
    if shutil.which("nvcc") is None and not any(os.environ.get(name) for name in ("NVCC", "CUDA_HOME")):
        return Part("build", skipped="nvcc is not there")
    major, minor = gpu["capability"]
    environment = {"LIP_FAST_EXT": "require", "LIP_FAST_CUDA_ARCHS": f"{major}{minor}"}
    return Part("build", _python("setup.py", "build_ext", "--inplace"), 200, environment=environment)


def test_parts() -> list[Part]:
    """The device tests, a process a file: an error of the device that stays ends one of them only."""
    return _pytest_parts("tests", ROOT / "tests" / "device", {})


def triton_parts() -> list[Part]:
    """The tests of the Triton kernels, likewise; most of their time goes into compiling, on one core each."""
    # Where there are native kernels too, they would serve some of the ops.
    parts = _pytest_parts("triton", ROOT / "tests" / "triton_kernels", {"LIP_FAST_BACKEND": "triton"})
    found = [part for part in parts if part.name not in _WITHOUT_DEVICE]
    if _has_module("triton"):
        return found
    # Nothing would be left to force.
    return [Part("triton", skipped="Triton is not installed")]


def _pytest_parts(name: str, folder: Path, environment: Mapping[str, str]) -> list[Part]:
    files = sorted(folder.glob("test_*.py"))
    if not files:
        return [Part(name, skipped=f"there are none in {folder.relative_to(ROOT)}")]
    if not _has_module("pytest"):
        return [Part(name, skipped="pytest is not installed")]
    options = ("-q", "-p", "no:cacheprovider", "--maxfail=20", "--junitxml={result}")
    # Whatever plugins are installed: the tests need none, and take warnings for errors.
    environment = {"PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1", **environment}
    return [
        Part(
            f"{name}: {file.stem.removeprefix('test_')}",
            _python("-m", "pytest", *options, str(file)),
            100,
            environment=environment,
            finish=parse_junit,
            reads="result",
        )
        for file in files
    ]


def _has_module(name: str) -> bool:
    done = subprocess.run(_python("-c", f"import {name}"), cwd=ROOT, capture_output=True)
    return done.returncode == 0


def sanitizer_parts(dry: bool) -> list[Part]:
    """compute-sanitizer's tools over the native kernels; a dry run is the program alone."""
    program = _module("benchmarks.gpu.sanitize", dry=dry)
    if dry:
        return [Part("sanitizer: program", program)]
    tool = shutil.which("compute-sanitizer")
    if tool is None:
        return [Part("sanitizer", skipped="compute-sanitizer is not there")]
    return [
        Part(
            f"sanitizer: {name}",
            [tool, f"--tool={name}", f"--error-exitcode={_SANITIZER_FOUND}", "--print-limit=20", *program],
            150,
            environment={"PYTORCH_NO_CUDA_MEMORY_CACHING": "1"},
            finish=parse_sanitizer,
        )
        for name in SANITIZERS
    ]


def timing_part(name: str, dry: bool, rows: str = "*") -> Part:
    """One set of rows, or those of its rows whose names match a pattern."""
    seconds = 5 if dry else TIMINGS[name]
    options = ("--result", "{result}", "--seconds", str(seconds), "--rows", rows)
    command = _module("benchmarks.gpu.rows", name, *options, dry=dry)
    return Part(name, command, seconds + 25)


def _plan(
    names: Sequence[str], dry: bool, gpu: Mapping[str, Any] | None, rows: str = "*"
) -> list[list[Part]]:
    """Parts in the order they run; those of one list run at the same time."""
    checks = _module("benchmarks.gpu.checks", "--result", "{result}", dry=dry)
    plan: dict[str, list[list[Part]]] = {
        "build": [[build_part(dry, gpu)]],
        "doctor": [[Part("doctor", _python("-m", "lip_fast", "doctor"), 60)]],
        "tests": [[part] for part in test_parts()],
        "triton": [
            triton_parts() if gpu is not None else [Part("triton", skipped="there is no CUDA device")]
        ],
        "checks": [[Part("checks", checks, 75)]],
        **{name: [[timing_part(name, dry, rows)]] for name in TIMINGS},
        # Nothing is timed there, and the tools take most of their time on one core each.
        "sanitizer": [sanitizer_parts(dry)],
    }
    return [parts for name in NAMES if name in names for parts in plan[name]]


# The table ------------------------------------------------------------------------------------------------


def table(data: Mapping[str, Any]) -> str:
    """What was found, in as few lines as it takes."""
    machine = data.get("machine") or {}
    gpu = machine.get("gpu") or {}
    commit = data["commit"]
    state = {True: " with changes", False: "", None: ", changes unknown"}[commit["dirty"]]
    lines = [
        f"{gpu.get('name', 'no GPU')}, torch {machine.get('torch')}, CUDA {machine.get('cuda of torch')}, "
        f"nvcc {machine.get('nvcc')}, Triton {machine.get('triton')}; "
        f"commit {commit['id'][:12]}{state}, {data['datetime'][:10]}"
    ]
    for part in data["parts"]:
        counts = f"{part['passed']} passed, {part['skipped']} skipped" if "passed" in part else ""
        words = [
            f"{part['name']:<24}{part['status']:<9}{part['seconds']:6.1f} s",
            counts,
            part["reason"] or "",
        ]
        lines.append("  ".join(word for word in words if word))
    failed = [check for check in data["checks"] if check["passed"] is False]
    if data["checks"]:
        passed = sum(check["passed"] is True for check in data["checks"])
        lines.append(f"checks of the step: {passed} passed, {len(failed)} failed")
        lines += [f"  FAILED {check['check']}: {check['reason']}" for check in failed]
    if data["rows"]:
        lines.append("rows: medians in us; * replays of a graph; the targets are an H200's")
        lines += [_line(row) for row in data["rows"]]
    return "\n".join(lines)


def _line(row: Mapping[str, Any]) -> str:
    name = f"{row['row']:<38}"
    if row["void"]:
        return f"{name}VOID {row['void'][:160]}"
    if row.get("skipped"):
        return f"{name}skipped: {row['skipped']}"
    words = []
    for variant, found in row["times"].items():
        mark = "*" if found["mode"] == "graph" else ""
        words.append(f"{variant} {_microseconds(found['median_us'])}{mark}")
    facts, ours = row.get("facts", {}), row["times"][row["ours"]]["median_us"]
    if "sweeps" in facts:
        words.append(f"sweeps {facts['sweeps']['warm']}/{facts['sweeps']['cold']}")
    for floor, value in row.get("floors_us", {}).items():
        part = row["times"].get("LIP alone", {}).get("median_us") if floor.startswith("alone") else ours
        if part:
            words.append(f"floor ({floor}) {_microseconds(value)} = {value / part:.0%}")
    words += [f"no {variant}: {why}" for variant, why in row.get("variants_skipped", {}).items()]
    words += [f"{target['text']}: {'met' if target['met'] else 'MISSED'}" for target in row["targets"]]
    return name + " | ".join(words)


def _microseconds(value: float) -> str:
    return f"{value:.1f}" if value < 100 else f"{value:.0f}"


# Command line ---------------------------------------------------------------------------------------------


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the script; returns its exit code."""
    parser = argparse.ArgumentParser(
        prog="benchmarks/device.py", description="Build, test, check and time the GPU kernels."
    )
    parser.add_argument(
        "--out",
        type=Path,
        default=ROOT / "benchmarks" / "results",
        metavar="DIR",
        help="takes device.json and device.log (default: benchmarks/results)",
    )
    parser.add_argument(
        "--parts",
        help=f"which of them, by commas (default: all, with --rows the timings): {','.join(NAMES)}",
    )
    parser.add_argument("--rows", metavar="PATTERN", help="time only rows whose names match it")
    parser.add_argument("--budget", type=float, default=BUDGET, help="seconds for all (default: %(default)s)")
    parser.add_argument("--commit", help="of the sources, where git cannot tell: HASH or HASH-dirty")
    parser.add_argument("--dry", action="store_true", help="run what can run on a CPU, on small problems")
    options = parser.parse_args(arguments)
    everything = NAMES if options.rows is None else ("build", *TIMINGS)
    names = list(everything) if options.parts is None else [name for name in options.parts.split(",") if name]
    unknown = [name for name in names if name not in NAMES]
    if unknown:
        parser.error(f"--parts: expected some of {', '.join(NAMES)}, got {', '.join(unknown)}")
    if options.commit is not None and not re.fullmatch(r"[0-9a-f]{7,40}(-dirty)?", options.commit):
        parser.error(f"--commit: expected a hash, with -dirty or without, got {options.commit!r}")
    if not options.budget > 0:
        parser.error(f"--budget: expected more than 0 seconds, got {options.budget:g}")
    try:
        script = Script(options.out, budget=options.budget, commit=options.commit, dry=options.dry)
    except OSError as error:
        parser.error(f"--out: cannot write {options.out}: {error.strerror}")
    (environment,) = script.run(environment_part())
    gpu = script.data["machine"].get("gpu")
    if environment["status"] != "ok":
        print(environment["tail"], end="")
        print("device.py: torch cannot be used here: nothing was run")
        return 2
    if gpu is None and not options.dry:
        print(
            "device.py: torch sees no CUDA device: nothing was run. --dry runs what can run without one",
            file=sys.stderr,
        )
        return 2
    for parts in _plan(names, options.dry, gpu, options.rows or "*"):
        script.run(*parts)
    for part in script.data["parts"]:
        if part["status"] in ("failed", "timeout"):
            print(f"---- the end of {part['name']} ({part['reason']})\n{part['tail'][-_SHOWN_TAIL:].strip()}")
    print(f"\n{table(script.data)}")
    if options.rows is not None and not script.data["rows"]:
        print(
            f"device.py: no row matches {options.rows!r}; without --rows all names are shown", file=sys.stderr
        )
        return 2
    return 0 if script.sound else 1


if __name__ == "__main__":
    sys.exit(main())
