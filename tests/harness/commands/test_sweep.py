"""``lip-fast sweep``: the same results as its runs alone, whatever happens on the way."""

import os
import signal
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest
import yaml
from harness.command_line import environment, interpreter, members, results, start, workers

from lip_fast.cli import atomic, main
from lip_fast.harness.runs.folder import lock_folder

pytestmark = [
    pytest.mark.reliability,
    pytest.mark.skipif(sys.platform != "linux", reason="looks at processes in /proc"),
]

# Long enough to be interrupted: about a second a run.
SETTINGS = {
    "epochs": 40,
    "hidden": [16],
    "samples": 600,
    "methods": ["plain", "in-step", "post-hoc"],
    "seeds": 2,
    "checkpoint_every": 10,
}
RUNS = [f"{row}/seed-{seed}" for row in ("a,lr=0.001", "a,lr=0.01") for seed in (0, 1)]


def write_settings(folder: Path, **changes: object) -> None:
    path = folder / "a.yaml"
    path.write_text(yaml.safe_dump({**SETTINGS, "lr": [0.001, 0.01], **changes}))


def results_of(folder: Path) -> dict[str, dict[str, bytes]]:
    found = {str(path.parent.relative_to(folder)): path.parent for path in folder.rglob("config.yaml")}
    files = {name: results(path) for name, path in found.items()}
    for entry in files.values():
        # The sweep's folder is in the settings, and not in what they give.
        del entry["config.yaml"]
    return files


@pytest.fixture(scope="module")
def straight(tmp_path_factory: pytest.TempPathFactory) -> dict[str, dict[str, bytes]]:
    """The results of each run, by ``lip-fast train``."""
    folder = tmp_path_factory.mktemp("straight")
    for lr in ("0.001", "0.01"):
        for seed in ("0", "1"):
            write_settings(folder, lr=float(lr), seeds=1, first_seed=int(seed))
            arguments = ["--config", str(folder / "a.yaml"), "--out", str(folder / "runs" / f"a,lr={lr}")]
            assert main(["train", *arguments, "--name", f"seed-{seed}"]) == 0
    found = results_of(folder / "runs")
    assert sorted(found) == RUNS
    assert all(
        sorted(files) == ["curves.png", "labels.npz", "metrics.json", "spectrum.png"]
        for files in found.values()
    )
    return found


def wait_for(condition: Callable[[], bool], seconds: float = 60) -> bool:
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        if condition():
            return True
        time.sleep(0.02)
    return False


def checkpoints(folder: Path) -> list[Path]:
    return list(folder.rglob("checkpoint.pt"))


def at_work(folder: Path, began: float, runs: int) -> bool:
    """Whether so many runs have checkpoints of this session."""

    def fresh(path: Path) -> bool:
        try:
            return path.stat().st_mtime > began
        except FileNotFoundError:
            return False

    return sum(map(fresh, checkpoints(folder))) >= runs


def one_line(text: str) -> str:
    assert text.count("\n") == 1, text
    assert "Traceback" not in text
    return text


@pytest.mark.process
def test_interrupted_in_every_way_a_sweep_ends_with_what_its_runs_give_alone(
    tmp_path: Path,
    straight: dict[str, dict[str, bytes]],
    record_property: Callable[[str, object], None],
    capfd,
    monkeypatch,
) -> None:
    write_settings(tmp_path)
    folder = tmp_path / "runs" / "a b"
    resume = ["sweep", "--resume", "runs/a b", "--jobs", "2"]
    continuation = "to continue: lip-fast sweep --resume 'runs/a b'"

    # Every process is killed.
    began = time.time()
    process = start(tmp_path, "sweep", "a.yaml", "--name", "a b", "--jobs", "2")
    assert wait_for(lambda: at_work(folder, began, 2))
    assert len(workers(process.pid)) == 2
    assert main(["sweep", "--resume", str(folder)]) == 2
    assert "found a process at work in" in one_line(capfd.readouterr().err)
    os.killpg(process.pid, signal.SIGKILL)
    process.communicate(timeout=60)

    # The one that does the work is.
    began = time.time()
    process = start(tmp_path, *resume, "--jobs", "1")
    assert wait_for(lambda: at_work(folder, began, 1))
    os.kill(*workers(process.pid), signal.SIGKILL)
    error = one_line(process.communicate(timeout=60)[1])
    assert process.returncode == 2
    assert "expected the processes of the sweep to live, found one killed" in error
    assert continuation in error
    assert wait_for(lambda: not members(process.pid), 10)

    # The first process is, alone: the other ends with it.
    began = time.time()
    process = start(tmp_path, *resume, "--jobs", "1")
    assert wait_for(lambda: at_work(folder, began, 1))
    os.kill(process.pid, signal.SIGKILL)
    process.communicate(timeout=60)
    assert wait_for(lambda: not members(process.pid), 10)

    # Ctrl-C, which a terminal sends to all of them.
    began = time.time()
    process = start(tmp_path, *resume)
    assert wait_for(lambda: at_work(folder, began, 1))
    os.killpg(process.pid, signal.SIGINT)
    error = process.communicate(timeout=60)[1]
    assert process.returncode == 130
    assert error == f"\nlip-fast sweep: stopped; {continuation}\n"
    assert wait_for(lambda: not members(process.pid), 10)
    assert not list(folder.rglob(".partial.*"))
    assert not all((folder / run / "metrics.json").exists() for run in RUNS)

    monkeypatch.chdir(tmp_path)
    assert main(resume) == 0
    output = capfd.readouterr()
    assert "sweep folder: runs/a b\n" in output.out
    assert output.err == ""
    assert results_of(folder) == straight
    assert not checkpoints(folder)
    assert not list(folder.rglob(".partial.*"))
    assert sorted(path.name for path in folder.iterdir()) == ["a,lr=0.001", "a,lr=0.01", "sweep.yaml"]
    record_property("kills_survived", 4)


@pytest.mark.process
def test_ctrl_c_before_anything_has_begun_leaves_no_traceback(tmp_path: Path) -> None:
    write_settings(tmp_path, samples=100)
    process = start(tmp_path, "sweep", "a.yaml", "--name", "s", "--jobs", "1")
    # The process that is to do the work is still at its imports, but has read what it is to do.
    assert wait_for(lambda: len(workers(process.pid)) == 1)
    time.sleep(0.3)
    os.killpg(process.pid, signal.SIGINT)
    error = process.communicate(timeout=60)[1]
    assert process.returncode == 130
    assert error == "\nlip-fast sweep: stopped; to continue: lip-fast sweep --resume runs/s\n"
    assert wait_for(lambda: not members(process.pid), 10)
    assert not list((tmp_path / "runs").rglob("config.yaml"))


SHORT = {"epochs": 2, "samples": 200, "seeds": 1}


@pytest.mark.process
def test_a_run_that_fails_leaves_the_others_alone(tmp_path: Path, capfd, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    write_settings(tmp_path, **SHORT, optimizer="sgd", lr=[0.01, 1e9])
    assert main(["sweep", "a.yaml", "--name", "s", "--jobs", "1"]) == 2
    output = capfd.readouterr()
    error = one_line(output.err)
    assert "1 runs failed" in error
    assert "lip-fast sweep --resume runs/s. a,lr=1000000000.0/seed-0: training diverged with --lr" in error
    # What is complete is shown.
    assert "\na,lr=0.01: digits, 40% symmetric label noise, cross entropy; seeds: 1\n" in output.out
    assert (tmp_path / "runs/s/a,lr=0.01/seed-0/metrics.json").exists()
    assert list((tmp_path / "runs/s/a,lr=1000000000.0").iterdir()) == []


@pytest.mark.process
def test_a_full_disk_is_one_line_and_the_sweep_goes_on_later(tmp_path: Path) -> None:
    write_settings(tmp_path, **SHORT, lr=0.01)

    # No file may be larger: settings fit, a checkpoint does not.
    limit = "import resource as r; r.setrlimit(r.RLIMIT_FSIZE, (4096, r.RLIM_INFINITY)); "
    code = limit + "import sys; from lip_fast.cli import main; sys.exit(main(sys.argv[1:]))"
    arguments = ["sweep", "a.yaml", "--name", "s", "--jobs", "1", "--", "--checkpoint-every", "1"]
    process = interpreter().run("-c", code, *arguments, cwd=tmp_path, env=environment())
    error = one_line(process.stderr)
    assert process.returncode == 2
    assert "File too large" in error
    folder = tmp_path / "runs" / "s"
    assert sorted(path.name for path in folder.iterdir()) == ["a", "sweep.yaml"]
    assert list((folder / "a").iterdir()) == []
    assert main(["sweep", "--resume", str(folder), "--jobs", "1"]) == 0
    assert (folder / "a/seed-0/metrics.json").exists()


@pytest.mark.parametrize("error", [OSError(28, "No space left on device"), KeyboardInterrupt()])
def test_nothing_is_left_of_a_sweep_that_cannot_begin(
    tmp_path: Path, capsys, monkeypatch, error: BaseException
) -> None:
    monkeypatch.chdir(tmp_path)
    write_settings(tmp_path, **SHORT)

    def fail(descriptor: int) -> None:
        raise error

    monkeypatch.setattr(atomic.os, "fsync", fail)
    code = main(["sweep", "a.yaml", "--out", "deep/runs"])
    monkeypatch.undo()
    assert code == (2 if isinstance(error, OSError) else 130)
    text = capsys.readouterr().err
    assert ("No space left" in one_line(text)) if code == 2 else text == "\nlip-fast sweep: stopped\n"
    assert [path.name for path in tmp_path.iterdir()] == ["a.yaml"]


def test_a_full_disk_stops_train_in_one_line(tmp_path: Path, capsys, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    write_settings(tmp_path, **SHORT, lr=0.01)
    fsync, count = os.fsync, 0

    def full(descriptor: int) -> None:
        nonlocal count
        count += 1
        if count >= 12:  # after some checkpoints
            raise OSError(28, "No space left on device")
        fsync(descriptor)

    arguments = ["--config", "a.yaml", "--name", "x", "--checkpoint-every", "2"]
    assert main(["train", *arguments]) == 0
    expected = results(tmp_path / "runs" / "x")
    (tmp_path / "runs").rename("first")
    with monkeypatch.context() as patch:
        patch.setattr(atomic.os, "fsync", full)
        assert main(["train", *arguments]) == 2
    error = one_line(capsys.readouterr().err)
    assert "No space left on device; to continue: lip-fast train --resume runs/x" in error
    folder = tmp_path / "runs" / "x"
    assert sorted(path.name for path in folder.iterdir()) == ["checkpoint.pt", "config.yaml"]
    assert main(["train", "--resume", "runs/x"]) == 0
    assert results(folder) == expected


# Without processes -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        ([], "expected at least one file or folder of settings, got none"),
        (["a.yaml", "--jobs", "0"], "expected --jobs at least 1, got 0"),
        (["a.yaml", "--job", "1"], "unknown option '--job'"),
        (["a.yaml", "--jobs", "two"], "two"),
        (["a.yaml", "--name", "a/b"], "expected --name to be the name of a folder, got 'a/b'"),
        (["a.yaml", "--", "--epoch", "1"], "unknown option '--epoch'"),
        (["a.yaml", "--", "--rank", "11"], "a,lr=0.001/seed-0: expected rank in 0..10, got 11"),
        (["a.yaml", "--", "--samples", "9999"], "expected --samples of at most the 1437 there are"),
        (["b.yaml"], "b.yaml"),
        (["--resume", "."], "expected --resume to be the folder of a sweep, found no sweep.yaml in ."),
        (["--resume", "x", "a.yaml"], "expected --resume FOLDER alone"),
        (["--resume", "x", "--name", "a"], "expected --resume FOLDER alone"),
        (["a.yaml", "--out", "a.yaml"], "expected a folder that can be written"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_a_mistake_is_one_line_and_leaves_nothing(
    tmp_path: Path, capsys, monkeypatch, arguments: list[str], expected: str
) -> None:
    monkeypatch.chdir(tmp_path)
    write_settings(tmp_path)
    assert main(["sweep", *arguments]) == 2
    output = capsys.readouterr()
    assert output.out == ""
    assert expected in one_line(output.err)
    assert [path.name for path in tmp_path.iterdir()] == ["a.yaml"]


def test_a_folder_is_never_taken_twice(tmp_path: Path, capsys, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    write_settings(tmp_path)
    (tmp_path / "runs" / "a b").mkdir(parents=True)
    assert main(["sweep", "a.yaml", "--name", "a b"]) == 2
    assert "to continue it: lip-fast sweep --resume 'runs/a b'" in one_line(capsys.readouterr().err)


def test_two_sweeps_in_one_folder(tmp_path: Path, capsys, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "s").mkdir()
    (tmp_path / "s" / "sweep.yaml").write_text("a: {epochs: 1, samples: 100}\n")
    lock = lock_folder(tmp_path / "s")
    assert main(["sweep", "--resume", "s"]) == 2
    assert "found a process at work in s" in one_line(capsys.readouterr().err)
    assert lock is not None
    os.close(lock)


@pytest.mark.parametrize("text", ["", "[]", "a: {epoch: 1}", "a: [", "a: 3", "../x: {epochs: 1}"])
def test_a_damaged_sweep_file(tmp_path: Path, capsys, text: str) -> None:
    (tmp_path / "sweep.yaml").write_text(text)
    assert main(["sweep", "--resume", str(tmp_path)]) == 2
    one_line(capsys.readouterr().err)
    assert not (tmp_path.parent / "x").exists()
