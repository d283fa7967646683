"""benchmarks.compare: what it takes for a change, what it refuses, and what it leaves behind."""

import json
import math
import os
import random
import signal
import subprocess
import tempfile
import textwrap
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from benchmarks import checkout, compare
from benchmarks.compare import ROUNDS

# As many as lip-fast bench has.
ROWS = 13

# Statistics -----------------------------------------------------------------------------------------------


def runs(
    generator: random.Random,
    *,
    slower: float = 1.0,
    noise: float = 0.03,
    machine: Callable[[int], float] = lambda _: 1.0,
    rounds: int = ROUNDS,
) -> dict[str, list[float]]:
    """Times as they come: ``machine`` is how slow it is at each of the runs, in their order."""
    times: dict[str, list[float]] = {"base": [], "head": []}
    for turn in range(rounds):
        for i, name in enumerate(("base", "head") if turn % 2 == 0 else ("head", "base")):
            own = slower if name == "head" else 1.0
            times[name].append(100 * own * machine(2 * turn + i) * math.exp(generator.gauss(0, noise)))
    return times


@pytest.mark.parametrize("drift", [0.0, 0.3])
def test_where_nothing_changed_hardly_a_run_finds_a_change(drift: float) -> None:
    generator = random.Random(0)
    count, changed, worse = 500, 0, 0
    for _ in range(count):
        verdicts = {
            compare.compare(runs(generator, machine=lambda i: 1 + drift * i / (2 * ROUNDS)), ROWS).verdict
            for _ in range(ROWS)
        }
        changed += verdicts != {"no change seen"}
        worse += "regression" in verdicts
    # 1% and 0.5% are expected at most, and 0.6% and 0.25% were found in 3000 runs without a drift.
    assert changed / count < 0.02
    assert worse / count < 0.01


@pytest.mark.parametrize(("slower", "verdict"), [(1.1, "regression"), (1 / 1.1, "improvement")])
def test_ten_percent_are_found(slower: float, verdict: str) -> None:
    generator = random.Random(0)
    found = [compare.compare(runs(generator, slower=slower), ROWS) for _ in range(500)]
    assert sum(change.verdict == verdict for change in found) > 0.95 * len(found)
    inside = sum(change.low <= slower <= change.high for change in found)
    assert inside >= 0.99 * len(found)
    ratios = [change.ratio for change in found]
    assert math.isclose(sum(ratios) / len(ratios), slower, rel_tol=5e-3)
    noises = [change.noise for change in found]
    # Of a ratio of two runs.
    assert math.isclose(sum(noises) / len(noises), 0.03 * 2**0.5, rel_tol=0.05)


def test_what_is_smaller_than_the_noise_is_no_change() -> None:
    generator = random.Random(0)
    quiet = runs(generator, slower=1.02, noise=0.001)
    assert compare.compare(quiet, ROWS).verdict == "regression"
    # From round to round the machine changes its pace, for both commits: the ratios are as they were.
    uneven = runs(generator, slower=1.02, noise=0.001, machine=lambda i: (1, 1.05)[i // 2 % 2])
    change = compare.compare(uneven, ROWS)
    assert change.low > 1
    assert change.verdict == "no change seen"


def test_the_interval_is_that_of_student() -> None:
    # d = 0, 0.2: mean 0.1, standard error 0.1, t of one degree of freedom at 0.995 is 63.66.
    change = compare.compare({"base": [1, 1], "head": [1, math.exp(0.2)]}, rows=1)
    assert math.isclose(math.log(change.high), 0.1 + 6.3657, rel_tol=1e-4)
    assert math.isclose(math.log(change.low), 0.1 - 6.3657, rel_tol=1e-4)
    assert math.isclose(change.noise, math.sqrt(0.2**2 / 2))


# A toy repository -----------------------------------------------------------------------------------------

# Says what lip-fast bench would, with a noise of 0.5%; FACTORS tells how slow each row is.
TOY = """
import argparse, json, pathlib, random, sys
from lip_fast.factors import FACTORS, VOID

parser = argparse.ArgumentParser()
parser.add_argument("bench")
parser.add_argument("--list", action="store_true")
parser.add_argument("--ours", action="store_true")
parser.add_argument("--seconds", type=float)
parser.add_argument("--rows", nargs="+")
parser.add_argument("--json", type=pathlib.Path)
options = parser.parse_args()
if options.list:
    print("\\n".join(f"{key}  a row" for key in FACTORS))
    sys.exit()
assert options.ours and options.seconds == 5
if "crash" in FACTORS:
    sys.exit("Traceback\\nsomething broke")
rows = []
for key in options.rows:
    noise = 1 + 0.005 * random.Random(key + options.json.name).gauss(0, 1)
    times = {"LIP": {"median_us": 100 * FACTORS[key] * noise}}
    record = {"row": key, "void": None, "times": times, "ours": "LIP"}
    rows.append(record | {"void": "wrong", "times": {}} if key in VOID else record)
# What .git of a worktree names is its folder in the repository, where the commit stands.
folder = pathlib.Path(pathlib.Path(__file__).parents[1].joinpath(".git").read_text().split()[1])
commit = {"id": "f00" if "elsewhere" in FACTORS else folder.joinpath("HEAD").read_text().strip()}
machine = {"processor": "abacus", "threads": 1, "torch": "2"}
native = any(pathlib.Path(__file__).parent.glob("*.so")) or "native" in FACTORS
options.json.write_text(json.dumps({"commit": commit, "native": native, "machine": machine, "rows": rows}))
sys.exit(any(row["void"] for row in rows))
"""
SETTINGS = ["--rounds", "4", "--seconds", "5"]


class Toy:
    """A repository whose lip-fast bench takes no time."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.git("init", "-q")
        (folder / "lip_fast" / "bench").mkdir(parents=True)
        (folder / ".gitignore").write_text("*.so\n__pycache__\n")
        (folder / "lip_fast" / "__init__.py").write_text("")
        self.without_bench = self.commit({"a": 1})
        (folder / "lip_fast" / "bench" / "command.py").write_text("")
        (folder / "lip_fast" / "__main__.py").write_text(textwrap.dedent(TOY))

    def git(self, *arguments: str) -> str:
        command = ["git", "-c", "user.name=a", "-c", "user.email=a@b.c", *arguments]
        done = subprocess.run(command, cwd=self.folder, capture_output=True, text=True, check=True)
        return done.stdout.strip()

    def commit(self, factors: dict[str, float], void: tuple[str, ...] = ()) -> str:
        text = f"FACTORS = {factors!r}\nVOID = {void!r}\n"
        (self.folder / "lip_fast" / "factors.py").write_text(text)
        self.git("add", "-A")
        self.git("commit", "-qm", "a", "--allow-empty")
        return self.git("rev-parse", "HEAD")


@pytest.fixture
def temporary(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Where temporary folders are made."""
    folder = tmp_path / "temporary"
    folder.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(folder))
    return folder


@pytest.fixture
def toy(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Toy:
    folder = tmp_path / "toy"
    folder.mkdir()
    monkeypatch.setattr(checkout, "ROOT", folder)
    return Toy(folder)


def assert_nothing_is_left(toy: Toy, temporary: Path) -> None:
    assert toy.git("worktree", "list", "--porcelain").count("worktree ") == 1
    assert list(temporary.iterdir()) == []
    assert toy.git("status", "--porcelain") == ""


@pytest.mark.process
def test_two_commits(
    toy: Toy,
    temporary: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    bench, order = compare._bench, []

    def noted(tree: Path, *arguments: str, **options: Any) -> str:
        order.extend([tree.name] if options else [])
        return bench(tree, *arguments, **options)

    monkeypatch.setattr(compare, "_bench", noted)
    monkeypatch.setenv("PYTHONSAFEPATH", "1")  # the folder that a process starts in is not enough
    base = toy.commit({"same": 1, "slower": 1, "faster": 1, "gone": 1, "other": 1})
    head = toy.commit({"same": 1, "slower": 1.3, "faster": 0.7, "new": 1, "other": 1})
    out = tmp_path / "out.json"
    arguments = [base[:10], *SETTINGS, "--rows", "same", "*er", "gone", "new", "--json", str(out)]
    # Not measured, not of this kind.
    (toy.folder / "README.md").write_text("a note")
    toy.git("add", "-A")
    assert compare.main(arguments) == 1
    toy.git("rm", "-qf", "README.md")
    assert order == ["base", "head", "head", "base", "base", "head", "head", "base"]
    assert_nothing_is_left(toy, temporary)
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].startswith(f"{base[:12]} (base) and {head[:12]} (head), 4 rounds in turn: abacus, ")
    assert lines[0].endswith("plain torch: there are no native kernels")
    cells = {line.split("|")[1].strip(): line.split("|")[2:-1] for line in lines if line.startswith("| ")}
    verdicts = {key: texts[-1].strip() for key, texts in cells.items()}
    assert verdicts.pop("row") == "verdict"
    assert verdicts.pop("---") == "---"
    assert verdicts == {
        "same": "no change seen",
        "slower": "**regression**",
        "faster": "improvement",
        "other": "no change seen",
    }
    assert lines[-2:] == ["gone: in base only", "new: in head only"]
    data = json.loads(out.read_text())
    assert (data["base"], data["head"], data["rounds"]) == (base, head, 4)
    (slower,) = (row for row in data["rows"] if row["row"] == "slower")
    assert len(slower["us"]["base"]) == len(slower["us"]["head"]) == 4
    assert slower["low"] < 1.3 < slower["high"]

    # The other way round.
    assert compare.main([head, base, *SETTINGS, "--rows", "slower"]) == 0
    assert "improvement" in capsys.readouterr().out


@pytest.mark.process
def test_the_checkouts_native_kernels_are_taken_where_they_fit(
    toy: Toy, temporary: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    base = toy.commit({"a": 1})
    (toy.folder / "lip_fast" / "_native_cpu.x.so").write_text("")
    settings = ["--rounds", "2", "--seconds", "5"]
    assert compare.main([base, *settings]) == 0
    assert ", native kernels\n" in capsys.readouterr().out
    # Where sources differ, each is built, here by a script that builds the first commit's alone.
    (toy.folder / "setup.py").write_text(
        "import sys, os; assert sys.argv[1:] == ['build_ext', '--inplace']\n"
        "assert os.environ['NVCC'] == 'none'\n"
        "open('lip_fast/_native_cpu.so', 'w')\n"
    )
    built = toy.commit({"a": 1})
    (toy.folder / "setup.py").write_text("import sys; sys.exit('no compiler')")
    broken = toy.commit({"a": 1})
    assert compare.main([built, built, *settings]) == 0
    captured = capsys.readouterr()
    assert ", native kernels\n" in captured.out
    assert "building the native kernels of base\nbuilding the native kernels of head\n" in captured.err
    assert compare.main([built, broken, *settings]) == 2
    assert capsys.readouterr().err.endswith("cannot build the native kernels of head: no compiler\n")
    assert_nothing_is_left(toy, temporary)


@pytest.mark.process
def test_a_row_that_has_become_wrong(toy: Toy, temporary: Path, capsys: pytest.CaptureFixture[str]) -> None:
    sound = toy.commit({"a": 1, "b": 1})
    void = toy.commit({"a": 1, "b": 1}, void=("b",))
    settings = ["--rounds", "2", "--seconds", "5"]
    assert compare.main([sound, void, *settings]) == 1
    assert capsys.readouterr().out.splitlines()[-1] == "b: void: wrong at head"
    assert compare.main([void, sound, *settings]) == 0
    out = capsys.readouterr().out
    assert "b: void: wrong at base" in out
    assert "| a |" in out
    assert compare.main([void, void, *settings]) == 0
    capsys.readouterr()
    assert compare.main([void, void, "--rows", "b", *settings]) == 2
    assert "no row was measured in every round: b: void: wrong" in capsys.readouterr().err
    assert compare.main([sound, void, "--rows", "b", *settings]) == 1
    assert_nothing_is_left(toy, temporary)


@pytest.mark.process
@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["nonsense"], "there is no commit 'nonsense' in this checkout"),
        (["HEAD", "v1"], "there is no commit 'v1' in this checkout"),
        (["HEAD~1"], "HEAD~1 has no lip-fast bench (lip_fast/bench/command.py) to be measured with"),
        (["HEAD", "--rows", "c*"], "no row is called 'c*': known are a, b"),
        (["HEAD", "--rounds", "1"], "--rounds: expected at least 2, got 1"),
        (["HEAD", "--seconds", "0"], "--seconds: expected more than 0, got 0"),
        (["HEAD", "--json", "/no/such/a.json"], "--json: there is no folder /no/such"),
        ([], "the following arguments are required: BASE"),
    ],
)
def test_refusals(
    arguments: list[str], message: str, toy: Toy, temporary: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    toy.commit({"a": 1, "b": 1})
    try:
        code = compare.main(arguments)
    except SystemExit as stopped:
        code = stopped.code
    assert code == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err == f"benchmarks.compare: {message}\n"
    assert_nothing_is_left(toy, temporary)


@pytest.mark.process
def test_changes_that_would_not_be_measured_are_refused(
    toy: Toy, temporary: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    commit = toy.commit({"a": 1})
    (toy.folder / "lip_fast" / "new.py").write_text("")
    assert compare.main([commit, *SETTINGS]) == 2
    assert "the checkout has changes that would not be measured" in capsys.readouterr().err
    assert compare.main([commit, "HEAD", "--rounds", "2", "--seconds", "5"]) == 0


@pytest.mark.process
@pytest.mark.parametrize(
    ("what", "message"),
    [
        # As where a row is void, but without a result.
        ("crash", "lip-fast bench of head ended with 1: something broke"),
        ("elsewhere", "what ran for head was not {head} but {{'id': 'f00'}}"),
        ("native", "one of the commits has run with native kernels and the other on plain torch"),
    ],
)
def test_a_bench_that_cannot_be_trusted_is_refused(
    what: str, message: str, toy: Toy, temporary: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    base = toy.commit({"a": 1})
    head = toy.commit({"a": 1, what: 1})
    assert compare.main([base, *SETTINGS]) == 2
    assert capsys.readouterr().err.endswith(f"benchmarks.compare: {message.format(head=head[:12])}\n")
    assert_nothing_is_left(toy, temporary)


@pytest.mark.process
def test_what_is_not_a_checkout_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(checkout, "ROOT", tmp_path)
    assert compare.main(["HEAD"]) == 2
    assert f"{tmp_path} is not a git checkout" in capsys.readouterr().err


@pytest.mark.process
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_nothing_is_left_where_it_is_stopped(
    number: signal.Signals, toy: Toy, temporary: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    base = toy.commit({"a": 1})
    bench, there = compare._bench, []

    def stopped(tree: Path, *arguments: str, **options: Any) -> str:
        if "--list" in arguments:
            return bench(tree, *arguments)
        there.append((tree / "lip_fast").is_dir())
        os.kill(os.getpid(), number)
        pytest.fail("it goes on")

    monkeypatch.setattr(compare, "_bench", stopped)
    before = [signal.signal(signal.SIGINT, signal.default_int_handler), signal.getsignal(signal.SIGTERM)]
    try:
        code = compare.main([base, *SETTINGS])
    except SystemExit as ended:
        code = ended.code
    finally:
        signal.signal(signal.SIGINT, before[0])
    assert code == 128 + number
    assert there == [True]
    assert signal.getsignal(signal.SIGTERM) == before[1]
    assert_nothing_is_left(toy, temporary)
