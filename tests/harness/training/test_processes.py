"""Several processes of torchrun that train one network."""

import functools
import json
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch
from harness import together
from harness.command_line import environment, interpreter, without_times

from lip_fast.cli import main
from lip_fast.cli.errors import UserError
from lip_fast.harness.training import processes
from lip_fast.harness.training.processes import ALONE, Processes

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="looks for processes in /proc")

SMALL = ["--epochs", "4", "--seeds", "2", "--hidden", "24", "--samples", "300", "--batch-size", "64"]
SMALL += ["--optimizer", "sgd", "--lr", "0.1", "--name", "a", "--rank", "5"]
SMALL += ["--methods", "plain", "in-step"]
# Values that are limited are equal: which of their directions are kept is then a matter of rounding.
SMALL += ["--clip", "false", "--every", "3"]
ENDLESS = [*SMALL, "--epochs", "1000000", "--methods", "plain", "--checkpoint-every", "1"]


@contextmanager
def torchrun(folder: Path, count: int, *program: str) -> Iterator["subprocess.Popen[str]"]:
    """torchrun with so many processes of a program; whatever the block does, none of them is left."""
    folder.mkdir(exist_ok=True)
    mark = f"LIP_FAST_TEST={folder}/{time.monotonic_ns()}"
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(count)]
    process = subprocess.Popen(
        [*command, *program],
        cwd=folder,
        env={**environment(), **dict([mark.split("=", 1)])},
        text=True,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        start_new_session=True,
    )
    try:
        yield process
        deadline = time.monotonic() + 10
        while (left := marked(mark)) and time.monotonic() < deadline:
            time.sleep(0.05)
        assert not left, "processes are left"
    finally:
        for pid in [*marked(mark), process.pid]:
            if process.poll() is None or pid != process.pid:
                os.kill(pid, signal.SIGKILL)
        process.communicate()


def marked(mark: str) -> list[int]:
    """The processes that are not dead and have a variable of the environment."""
    found = []
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                variables = (entry / "environ").read_bytes()
            except OSError:
                continue
            if mark.encode() in variables.split(b"\0"):
                found.append(int(entry.name))
    return found


def run(folder: Path, count: int, *program: str) -> tuple[int, str, str]:
    """Its exit code, stdout and stderr."""
    with torchrun(folder, count, *program) as process:
        output, error = process.communicate(timeout=100)
    return process.returncode, output, error


def train(folder: Path, count: int, *arguments: str) -> tuple[int, str, str]:
    return run(folder, count, "-m", "lip_fast.harness", "train", *arguments)


def said(error: str) -> list[str]:
    """What lip-fast says on stderr; torchrun adds a report of its own."""
    return [line for line in error.splitlines() if line.startswith("lip-fast")]


def check_alike(found: Any, expected: Any, loss: float = 1e-5) -> None:
    """Records of several processes, and of one: the same up to rounding."""
    found, expected = without_times(found), without_times(expected)
    assert found.keys() == expected.keys()
    for method, record in expected.items():
        for name in ("test_accuracy", "validation", "memorised"):
            # At most one of 20 held-out samples, the fewest, is so close to a boundary.
            check_close(found[method][name], record[name], absolute=0.051)
        check_close(found[method]["train_loss"], record["train_loss"], relative=loss)
        largest = max(record["singular_values"], default=1.0)
        check_close(found[method]["singular_values"], record["singular_values"], absolute=1e-3 * largest)
        assert found[method]["lip"] == record["lip"]
        assert found[method]["rank"] == record["rank"]


def check_close(
    found: list[float | None], expected: list[float | None], *, relative: float = 0.0, absolute: float = 0.0
) -> None:
    assert len(found) == len(expected)
    for value, other in zip(found, expected, strict=True):
        assert (value is None) == (other is None)
        assert value is None or value == pytest.approx(other, rel=relative, abs=absolute)


# The same as one process --------------------------------------------------------------------------------


# Of four, those that exchange most.
OF_FOUR = ["plain", "passing", "in-step", "in-step, some directions", "elr in-step", "proden in-step", "cnn"]
OF_TWO = [*together.SCENARIOS, *together.NORMALISED]
CASES = [(2, name) for name in OF_TWO] + [(4, name) for name in OF_FOUR]


@pytest.fixture(scope="module")
def found(tmp_path_factory: pytest.TempPathFactory) -> Callable[[int], dict[str, Any]]:
    """What so many processes find; of four, the third fails in the end, as the others wait for it."""

    @functools.cache
    def outcome(count: int) -> tuple[Path, int, str]:
        folder = tmp_path_factory.mktemp("together")
        rest = OF_TWO if count == 2 else [*OF_FOUR, "--fail", "2"]
        ended = interpreter().group(
            count, together.__file__, "found.json", *rest, cwd=folder, env=environment()
        )
        code = next((process.returncode for process in ended if process.returncode > 0), 0)
        assert code or not any(process.returncode for process in ended)
        return folder / "found.json", code, "".join(process.stderr for process in ended)

    def results(count: int) -> dict[str, Any]:
        path, code, error = outcome(count)
        assert path.exists(), error
        return {"code": code, "error": error, **json.loads(path.read_text())}

    return results


@functools.cache
def alone(name: str) -> dict[str, Any]:
    """What one process finds."""
    return together.trained(together.SCENARIOS[name])[0]


@pytest.mark.process
@pytest.mark.parametrize(("count", "name"), [case for case in CASES if case[1] in together.SCENARIOS])
def test_several_processes_find_what_one_finds(found: Any, count: int, name: str) -> None:
    check_alike(found(count)[name]["records"], alone(name))


@pytest.mark.process
@pytest.mark.parametrize(("count", "name"), CASES)
def test_replicas_have_the_same_bits_after_each_epoch(found: Any, count: int, name: str) -> None:
    first, *others = found(count)[name]["hashes"]
    assert first
    assert len(others) == count - 1
    for hashes in others:
        assert hashes == first


@pytest.mark.process
def test_a_failure_of_one_process_ends_all_and_is_told_once(found: Any) -> None:
    assert found(2)["code"] == 0, found(2)["error"]
    assert found(4)["code"] != 0
    assert re.findall(r"^told: .*", found(4)["error"], re.MULTILINE) == ["told: expected something else"]


@pytest.mark.parametrize("size", [1, 2, 3, 4, 7])
@pytest.mark.parametrize("rows", [0, 1, 3, 4, 36])
def test_parts_are_a_partition_in_order(size: int, rows: int) -> None:
    order = torch.randperm(rows, generator=torch.Generator().manual_seed(0))
    parts = [Processes(rank, size).part(order) for rank in range(size)]
    assert torch.equal(torch.cat(parts), order)
    sizes = [len(part) for part in parts]
    assert sizes == sorted(sizes, reverse=True)
    assert max(sizes) - min(sizes) <= 1


def test_one_process_communicates_with_nobody() -> None:
    x = torch.arange(3.0)
    ALONE.sum_([x])
    ALONE.copy_from_first_([x])
    ALONE.check_same("numbers", 1)
    assert torch.equal(x, torch.arange(3.0))
    assert ALONE.from_first(lambda: "x") == "x"
    assert ALONE.part(x) is x
    assert ALONE.first
    assert ALONE.group is None
    assert not torch.distributed.is_initialized()


# The command line ---------------------------------------------------------------------------------------


def checked_run(folder: Path, expected: dict[str, Any], count: int) -> None:
    """The results in a folder are those of one process."""
    metrics = json.loads((folder / "metrics.json").read_text())
    assert metrics["processes"] == count
    assert [entry["seed"] for entry in metrics["seeds"]] == [0, 1]
    for entry, other in zip(metrics["seeds"], expected["seeds"], strict=True):
        assert entry["labels_sha256"] == other["labels_sha256"]
        check_alike(entry["methods"], other["methods"], loss=1e-4)


@pytest.fixture(scope="module")
def straight(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """The results of a run of one process."""
    folder = tmp_path_factory.mktemp("straight")
    assert main(["train", *SMALL, "--out", str(folder)]) == 0
    return json.loads((folder / "a" / "metrics.json").read_text())


@pytest.mark.process
@pytest.mark.parametrize(("before", "after"), [(2, 1), (1, 2)])
def test_ctrl_c_stops_all_and_another_number_of_processes_goes_on(
    tmp_path: Path,
    straight: dict[str, Any],
    monkeypatch: pytest.MonkeyPatch,
    capfd,
    before: int,
    after: int,
) -> None:
    stopped = together.__file__.replace("together", "stopped")
    monkeypatch.chdir(tmp_path)
    code, output, error = run(tmp_path, before, stopped, "train", *SMALL, "--checkpoint-every", "3")
    assert code != 0
    assert said(error) == ["lip-fast train: stopped; to continue: lip-fast train --resume runs/a"]
    assert output.count("300 training and 360 test samples, 4 epochs") == 1
    if after == 1:
        assert main(["train", "--resume", "runs/a"]) == 0
        output, error = capfd.readouterr()
    else:
        code, output, error = train(tmp_path, after, "--resume", "runs/a")
        assert code == 0, error
        assert output.count("300 training and 360 test samples, 4 epochs, 2 processes\n") == 1
    assert len(re.findall(r"^continued after [1-9]\d* of 16 epochs\n", output, re.MULTILINE)) == 1
    assert len(re.findall("^LIP in the step ", output, re.MULTILINE)) == 1
    assert output.endswith("run folder: runs/a\n")
    assert said(error) == [f"lip-fast train: processes was {before}, is {after}; the bits may change with it"]
    files = ["config.yaml", "curves.png", "labels.npz", "metrics.json", "spectrum.png"]
    assert sorted(path.name for path in (tmp_path / "runs" / "a").iterdir()) == files
    checked_run(tmp_path / "runs" / "a", straight, after)


def wait_for(path: Path, process: "subprocess.Popen[str]") -> None:
    deadline = time.monotonic() + 60
    while not path.exists():
        assert process.poll() is None, process.communicate()
        assert time.monotonic() < deadline
        time.sleep(0.01)


@pytest.mark.process
def test_a_mistake_is_told_once(tmp_path: Path) -> None:
    code, output, error = train(tmp_path, 2, "--epochz", "3")
    assert code != 0
    assert output == ""
    (line,) = said(error)
    assert line.startswith("lip-fast train: unknown option '--epochz'")
    assert error.count("Traceback") == 1  # of torchrun


@pytest.mark.process
def test_a_process_that_is_killed_ends_the_others(tmp_path: Path) -> None:
    with torchrun(tmp_path, 2, "-m", "lip_fast.harness", "train", *ENDLESS) as process:
        wait_for(tmp_path / "runs" / "a" / "checkpoint.pt", process)
        os.kill(of_rank(1, process.pid), signal.SIGKILL)
        _, error = process.communicate(timeout=60)
    assert process.returncode != 0
    assert len(said(error)) <= 1  # torchrun may have ended the first before it could speak
    for line in said(error):
        assert re.search(r"expected 2 processes to the end, lost one: .*; to continue: lip-fast train", line)
    assert (tmp_path / "runs" / "a" / "checkpoint.pt").exists()


def of_rank(rank: int, parent: int) -> int:
    """The child of torchrun with this number."""
    children = Path(f"/proc/{parent}/task/{parent}/children").read_text().split()
    return next(
        int(pid)
        for pid in children
        if f"RANK={rank}".encode() in Path(f"/proc/{pid}/environ").read_bytes().split(b"\0")
    )


@pytest.mark.parametrize("command", ["sweep", "report", "study", "repair"])
def test_other_subcommands_are_refused_in_one_line(command: str, monkeypatch, capsys) -> None:
    monkeypatch.setattr(processes, "_launched", lambda: (0, 2, None))
    assert main([command]) == 2
    expected = "expected one process, got 2 of torchrun, which only lip-fast train can use"
    assert capsys.readouterr().err == f"lip-fast {command}: {expected}\n"
    monkeypatch.setattr(processes, "_launched", lambda: (1, 2, None))
    with pytest.raises(SystemExit) as stop:
        main([command])
    assert stop.value.code == 0
    assert capsys.readouterr() == ("", "")


def test_each_process_takes_its_own_device(monkeypatch) -> None:
    taken: list[int] = []
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setattr(torch.cuda, "set_device", taken.append)
    monkeypatch.setenv("LOCAL_RANK", "1")
    Processes(5, 8).take_device("cuda")
    Processes(5, 8).take_device("cpu")
    ALONE.take_device("cuda")
    assert taken == [1]
    monkeypatch.setenv("LOCAL_RANK", "2")
    with pytest.raises(UserError, match="expected a CUDA device for each process of a machine, found 2 for"):
        Processes(6, 8).take_device("cuda")
