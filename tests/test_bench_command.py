"""``lip-fast bench``: what it prints and writes, what it refuses, and how it ends."""

import json
import subprocess
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from lip_fast.bench import cases, command, rows, timing
from lip_fast.bench.cases import Case, Skip
from lip_fast.bench.gates import Gate
from lip_fast.bench.rows import Row
from lip_fast.bench.table import WIDTH, render
from lip_fast.bench.timing import Timer, Variant
from lip_fast.cli import main

ROOT = Path(__file__).resolve().parents[1]
CPU = torch.device("cpu")
GREEN = Gate("distance", 1e-7, 1e-5, 1e-2)
RED = Gate("values", 1e-3, 1e-5, 1e-2)
# Sizes by kind: l, q, k, tail_rank, n.
TINY = {"one-shot": (8, 16, 3, None, 500), "truncated": (24, 48, 4, 3, 32), "exact": (8, 16, 7, None, 32)}
KEYS = [row.key for row in rows.CORE]


def tiny(row: Row) -> Row:
    l, q, k, tail_rank, n = TINY[row.kind]
    return replace(row, l=l, q=q, k=k, tail_rank=tail_rank, n=n)


@pytest.fixture(autouse=True)
def _tiny_rows(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setattr(rows, "CORE", tuple(map(tiny, rows.CORE)))
    monkeypatch.setattr(command, "_ROUNDS", 5)  # so that no time need be set, which may be too little
    threads = torch.get_num_threads()
    yield
    torch.set_num_threads(threads)


def waiting(name: str) -> Variant:
    return Variant(name, lambda: None)


def stub(monkeypatch: pytest.MonkeyPatch, make: Callable[[Row, torch.device], Case]) -> None:
    for kind in command.MAKERS:
        monkeypatch.setitem(command.MAKERS, kind, make)


# What it prints and writes --------------------------------------------------------------------------------


@pytest.mark.process
def test_all_rows_are_measured(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "bench.json"
    path.write_text("an earlier one")
    assert main(["bench", "--threads", "2", "--json", str(path)]) == 0
    out = capsys.readouterr().out
    assert out.startswith("13 rows on cpu, threads of torch: 2, ")
    assert torch.get_num_threads() == 2
    for row in rows.CORE:
        assert f"\n{row.key}: measured\n" in out
    for title in ("one-shot lip()", "truncated step, AdamW", "truncated step, SGD", "exact step, AdamW"):
        assert out.count(f"\n{title} ") == 1
    assert max(map(len, out.splitlines())) <= WIDTH
    assert out.splitlines()[-1].count("make bench")

    data = json.loads(path.read_text())
    assert [file.name for file in tmp_path.iterdir()] == ["bench.json"]
    assert data["kind"] == "lip_fast bench"
    assert data["machine"]["torch"] == torch.__version__
    measured = [record["row"] for record in data["rows"]]
    assert sorted(measured) == sorted(KEYS)
    # The smaller ones first.
    assert all(key.startswith("truncated") for key in measured[-6:])
    names = {row.key: {"LIP", *row.peers} for row in rows.CORE}
    for record in data["rows"]:
        assert record["kind"] == "row"
        assert record["ours"] == "LIP"
        assert record["void"] is None
        assert all(gate["passed"] for gate in record["gates"])
        assert record["times"].keys() | record["variants_skipped"].keys() == names[record["row"]]
        # In a sample is one call; those that are sums have none.
        assert {time.get("calls", 1) for time in record["times"].values()} == {1}


@pytest.mark.skipif(not (ROOT / ".git").exists(), reason="not a git checkout")
def test_the_commit_is_that_of_the_package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def git(*arguments: str, folder: Path = ROOT) -> str:
        done = subprocess.run(["git", *arguments], cwd=folder, capture_output=True, text=True, check=True)
        return done.stdout.strip()

    found = command._commit()
    assert found is not None
    assert found["id"] == git("rev-parse", "HEAD")
    # In an environment that lies in a checkout of something else.
    git("init", "-q", folder=tmp_path)
    git("-c", "user.name=a", "-c", "user.email=a@b", "commit", "-qm", "a", "--allow-empty", folder=tmp_path)
    (tmp_path / "lip_fast").mkdir()
    monkeypatch.setattr(command.lip_fast, "__file__", str(tmp_path / "lip_fast" / "__init__.py"))
    assert command._commit() is None


def test_rows_are_chosen_by_patterns(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["bench", "--list", "--rows", "*sgd-10x*", "one-shot"]) == 0
    listed = capsys.readouterr().out.splitlines()
    assert [line.split()[0] for line in listed] == ["one-shot", "truncated-sgd-10x512", "exact-sgd-10x512"]
    assert listed[1].endswith("24 classes, 48 features, 4 directions kept, 3 refitted, 32 samples a step")
    assert main(["bench", "--list"]) == 0
    assert [line.split()[0] for line in capsys.readouterr().out.splitlines()] == KEYS


def test_ours_alone(capsys: pytest.CaptureFixture[str]) -> None:
    arguments = ["--rows", "truncated-sgd-10x512", "--ours"]
    assert main(["bench", *arguments]) == 0
    out = capsys.readouterr().out
    table = out.partition("\ntruncated step, SGD")[2].splitlines()
    assert [line.split()[0] for line in table[1:3]] == ["LIP", "worst"]
    assert "torchao" not in out


@pytest.mark.process
def test_the_same_numbers_whatever_was_drawn_before(tmp_path: Path) -> None:
    found = []
    for seed in (1, 2):
        path = tmp_path / f"{seed}.json"
        with torch.random.fork_rng([]):
            torch.manual_seed(seed)
            assert main(["bench", "--rows", "truncated-sgd-10x512", "--json", str(path)]) == 0
        found.append(json.loads(path.read_text())["rows"][0]["gates"])
    assert found[0] == found[1]


def test_many_rows_of_a_kind_are_shown_below_each_other() -> None:
    many = [replace(rows.CORE[-1], key=f"exact-of-quite-some-length-{i}") for i in range(7)]
    records = [{"row": row.key, "void": "wrong"} for row in many]
    lines = render(many, records).splitlines()
    assert max(map(len, lines)) <= WIDTH
    assert sum(line.startswith("exact step, SGD") for line in lines) == 3
    assert all(any(row.key in line for line in lines if line.startswith("exact step")) for row in many)


def test_times_and_ratios_of_a_table() -> None:
    row = next(row for row in rows.CORE if row.kind == "exact")
    gates = [{"value": 1e-6, "bound": 1e-5}, {"value": 5e-5, "bound": 1e-4}]
    medians = {"LIP": 1234.0, "base step": 12.34, "inside the optimizer": 1.3e5, "reference": 2.5e6}
    times = {name: {"median_us": median} for name, median in medians.items()}
    record = {"row": row.key, "void": None, "gates": gates, "times": times, "ours": "LIP"}
    lines = render([row], [record]).splitlines()[3:]
    assert [line.split() for line in lines] == [
        ["exact", "step,", "AdamW", row.key],
        ["LIP", "1.23", "ms"],
        ["base", "step", "12.3", "us", "0.010x"],
        ["inside", "the", "optimizer", "130", "ms", "105x"],
        ["reference", "2.50", "s", "2026x"],
        ["worst", "check", "0.50"],
    ]
    units = zip(lines[1:5], ("ms", "us", "ms", " s"), strict=True)
    assert len({line.index(unit) + len(unit) for line, unit in units}) == 1, "not below each other"


# What cannot be measured ----------------------------------------------------------------------------------


def test_a_void_row_is_told_apart(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    ran = []

    def make(row: Row, device: torch.device) -> Case:
        gates = [GREEN, RED] if row.optimizer == "SGD" else [GREEN]
        return Case(gates, [Variant("LIP", lambda: ran.append(row.key)), waiting("base step")])

    stub(monkeypatch, make)
    names = ["exact-adamw-10x512", "exact-sgd-10x512"]
    assert main(["bench", "--rows", *names]) == 1
    out = capsys.readouterr().out
    assert out.partition("exact step, SGD")[2].splitlines()[1].split() == ["LIP", "VOID"]
    reason = "exact-sgd-10x512: VOID: the result is wrong or the check cannot fail: values"
    assert reason in out.splitlines()
    # Two runs to begin with, then five rounds with a warm one in each.
    assert ran == 12 * ["exact-adamw-10x512"]


def test_what_is_skipped_is_named_once(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def make(row: Row, device: torch.device) -> Case:
        if row.kind == "truncated":
            raise Skip("not on a Sunday")
        return Case([GREEN], [waiting("LIP")], skipped={"reference": "it is not there " + 30 * "at all "})

    stub(monkeypatch, make)
    assert main(["bench", "--rows", "*-10x512"]) == 0
    out = capsys.readouterr().out
    for key in ("truncated-adamw-10x512", "truncated-sgd-10x512"):
        assert f"{key}: skipped: not on a Sunday" in out.splitlines()
    assert out.count("no reference: it is not there at all") == 1
    assert max(map(len, out.splitlines())) <= WIDTH


def test_a_step_without_memory_is_skipped(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(cases, "_free_memory", lambda: 10_000)
    assert main(["bench", "--rows", "*-adamw-10x512"]) == 0
    assert capsys.readouterr().out.count("skipped: needs ") == 2


@pytest.mark.process
def test_what_was_measured_is_printed_where_it_is_stopped(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def make(row: Row, device: torch.device) -> Case:
        if row.optimizer == "SGD":
            raise KeyboardInterrupt
        return Case([GREEN], [waiting("LIP")])

    stub(monkeypatch, make)
    path = tmp_path / "bench.json"
    arguments = ["--rows", "exact-*-10x512", "--json", str(path)]
    assert main(["bench", *arguments]) == 130
    captured = capsys.readouterr()
    assert "\nexact step, AdamW" in captured.out
    assert "exact-sgd" not in captured.out
    assert captured.err == "\nlip-fast bench: stopped\n"
    assert [record["row"] for record in json.loads(path.read_text())["rows"]] == ["exact-adamw-10x512"]


# What is refused ------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (
            ["--rows", "one-shot", "exact-adam-10x512"],
            "unknown row 'exact-adam-10x512': known are one-shot, ",
        ),
        (["--rows", "exact-adam-10x512"], "the nearest is 'exact-adamw-10x512'"),
        (["--list", "--rows", "fly*"], "unknown row 'fly*'"),
        (["--device", "tpu"], "invalid choice: 'tpu'"),
        (["--seconds", "0"], "expected --seconds to be more than 0, got 0"),
        (["--seconds", "nan"], "expected --seconds to be more than 0, got nan"),
        (["--seconds", "inf"], "expected --seconds to be more than 0, got inf"),
        (["--seconds", "soon"], "invalid float value: 'soon'"),
        (["--threads", "0"], "expected --threads to be at least 1, got 0"),
        (["--json", "/no/such/folder/a.json"], "No such file or directory"),
        (["--json", "/proc/a.json"], "expected --json in a folder that can be written: /proc/a.json"),
        (["--json", "/"], "expected --json to be a file, found the folder /"),
        (["--row", "one-shot"], "unknown option '--row'"),
        (["one-shot"], "expected no further argument, got 'one-shot'"),
    ],
)
def test_bad_arguments_are_one_line(
    arguments: list[str], message: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(command, "_measure", lambda *_: pytest.fail("it has been started"))
    assert main(["bench", *arguments]) == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err.startswith("lip-fast bench: ")
    assert captured.err.count("\n") == 1
    assert message in captured.err


def test_a_gpu_that_is_not_there_is_missed(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert main(["bench", "--device", "cuda"]) == 2
    assert "expected a CUDA device for --device cuda, found none" in capsys.readouterr().err


def test_help(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stopped:
        main(["bench", "--help"])
    assert stopped.value.code == 0
    assert "--rows PATTERN" in capsys.readouterr().out


# The clock ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("warm", "long"), [(False, 60.0), (True, 60.0), (True, 0.0)])
def test_a_warm_sample_follows_an_untimed_call(
    warm: bool, long: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(timing, "_LONG", long)
    calls: list[str] = []
    variant = Variant("a", lambda: calls.append("run"), between=lambda: calls.append("between"))
    timer = Timer(CPU, sample_seconds=0, most_rounds=5, warm=warm)
    found: dict[str, Any] = timer.measure([variant], 1.0)["a"]
    assert (found["rounds"], found["calls"]) == (5, 1)
    assert calls == ["between", "run"] * (2 + (10 if warm and long else 5))
