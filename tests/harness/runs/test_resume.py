import io
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from harness.command_line import results, without_times
from harness.damage import damaged
from harness.fork_server import REPOSITORY, ForkServer
from harness.listed_figures import list_figures

from lip_fast.cli import main
from lip_fast.cli.errors import UserError
from lip_fast.harness.algorithms import ALGORITHMS, Task
from lip_fast.harness.data import Dataset
from lip_fast.harness.runs import progress
from lip_fast.harness.runs.experiment import FOLD, run_seed
from lip_fast.harness.runs.folder import RunFolder
from lip_fast.harness.runs.plan import plan_of
from lip_fast.harness.runs.progress import Pace, Progress
from lip_fast.harness.runs.records import as_plain
from lip_fast.harness.seeding import BatchOrder
from lip_fast.harness.settings.train import TrainConfig
from lip_fast.harness.training.loop import Training
from lip_fast.harness.training.problem import Problem

pytestmark = pytest.mark.reliability

FILES = ["config.yaml", "curves.png", "labels.npz", "metrics.json", "spectrum.png"]


@pytest.fixture(autouse=True)
def _figures_are_listed(monkeypatch: pytest.MonkeyPatch) -> None:
    list_figures(monkeypatch)


def copied(state: Any) -> Any:
    """A state as it comes out of a file."""
    file = io.BytesIO()
    torch.save(state, file)
    file.seek(0)
    return torch.load(file, weights_only=True)


def same(a: Any, b: Any) -> bool:
    if isinstance(a, torch.Tensor):
        return isinstance(b, torch.Tensor) and a.dtype == b.dtype and torch.equal(a, b)
    if isinstance(a, dict):
        return isinstance(b, dict) and list(a) == list(b) and all(same(a[key], b[key]) for key in a)
    if isinstance(a, list | tuple):
        return type(a) is type(b) and len(a) == len(b) and all(map(same, a, b))
    return type(a) is type(b) and a == b


# When a checkpoint is due ----------------------------------------------------------------------------


def test_model_files_take_two_percent_of_the_time(monkeypatch) -> None:
    clock = SimpleNamespace(now=0.0, perf_counter=lambda: clock.now)
    monkeypatch.setattr(progress, "time", clock)
    pace = Pace(None)
    assert pace.due(epoch=True)  # the first costs nothing that is known
    assert not pace.due(epoch=False)
    pace.saved(0.01)
    saved = 0
    for _ in range(1000):  # epochs of 10 ms, as long as a checkpoint takes
        clock.now += 0.01
        if pace.due(epoch=True):
            clock.now += 0.01
            pace.saved(0.01)
            saved += 1
    assert 19 <= saved <= 20
    clock.now += 59
    assert not pace.due(epoch=False)
    clock.now += 1  # an epoch that takes hours
    assert pace.due(epoch=False)


def test_model_files_by_steps() -> None:
    pace = Pace(3)
    due = []
    for step in range(9):
        due.append(pace.due(epoch=False))
        if due[-1]:
            pace.saved(1.0)
        if step == 3:
            assert not pace.due(epoch=True)
    assert due == [False, False, True] * 3


# Bit-exact continuation ------------------------------------------------------------------------------


def many_classes() -> Dataset:
    """So many that LIP in the step can be truncated."""
    generator = np.random.default_rng(0)
    features = generator.standard_normal((260, 12), dtype=np.float32)
    labels = generator.integers(0, 30, 260)
    return Dataset(
        "many classes",
        features[:200],
        labels[:200],
        np.arange(200),
        features[200:],
        labels[200:],
        tuple(map(str, range(30))),
    )


SETTINGS = {
    "adamw": {"optimizer": "adamw"},
    "sgd": {"optimizer": "sgd", "lr": 0.05},
    "sgd without momentum": {"optimizer": "sgd", "lr": 0.05, "momentum": 0.0},
}
LIPS: dict[str, dict[str, object] | None] = {
    "plain": None,
    "exact": {"rank": 20, "decay": None},
    "exact, decay": {"rank": 0.8, "decay": 0.9},
    "auto": {"rank": "auto", "start": 5},
    "truncated": {"rank": 6, "tail_rank": 4, "decay": None},
    "truncated, decay": {"rank": 6, "tail_rank": 4, "decay": 0.9, "every": 3, "start": 2},
    "dropped": {"rank": 14, "tail_rank": 4, "rest": "drop", "start": 1},
}


@pytest.mark.filterwarnings("ignore:rest=")
@pytest.mark.parametrize("optimizer", SETTINGS)
@pytest.mark.parametrize("lip", LIPS)
def test_a_training_goes_on_from_every_step_to_the_same_bits(optimizer: str, lip: str) -> None:
    dataset, epochs, batches = many_classes(), 3, 7  # the last batch of an epoch is smaller
    settings = {"hidden": (24, 28), "epochs": epochs, "batch_size": 32, "holdout_fraction": 0}
    config = TrainConfig(**settings | SETTINGS[optimizer] | (LIPS[lip] or {}), noise="none")
    problem = Problem(config, dataset, 3, ALGORITHMS["cross-entropy"], epochs)

    def fresh() -> Training:
        return problem.training(problem.learned(None), "plain" if LIPS[lip] is None else "in-step")

    states: list[dict[str, Any]] = []
    straight = fresh()
    losses = []
    for _ in range(epochs):
        losses.append(straight.run_epoch(lambda: states.append(copied(straight.state_dict()))).loss)
        states.append(copied(straight.state_dict()))
    assert len(states) == epochs * (batches + 1)
    assert {(state["epoch"], state["batch"]) for state in states} >= {(0, 3), (1, 0), (1, 7), (3, 0)}
    for state in states:
        resumed = fresh()
        resumed.load_state_dict(state)
        went_on = [resumed.run_epoch().loss for _ in range(resumed.epoch, epochs)]
        assert went_on == losses[state["epoch"] :]
        assert same(without_times(resumed.state_dict()), without_times(straight.state_dict()))


def test_the_state_of_another_training_is_refused() -> None:
    dataset = many_classes()

    def training(method: str, algorithm: str = "cross-entropy", **settings: object) -> Training:
        config = TrainConfig(**{"hidden": (8,), "rank": 4, "noise": "none", **settings})
        problem = Problem(config, dataset, 0, ALGORITHMS[algorithm], config.epochs)
        return problem.training(problem.learned(None), method)

    state = copied(training("in-step").state_dict())
    others = [training("plain"), training("in-step", hidden=(9,)), training("in-step", decay=None)]
    for other in [*others, training("in-step", "elr"), training("in-step", "nvrm")]:
        with pytest.raises((KeyError, RuntimeError, ValueError)):
            other.load_state_dict(state)
    with pytest.raises(KeyError):
        training("in-step").load_state_dict({"lip": {}})


def test_batches_are_a_function_of_seed_and_epoch() -> None:
    orders = [BatchOrder(5, 50).epoch(number) for number in range(4)]
    addressed = BatchOrder(5, 50)
    for number in (3, 0, 2, 2, 1):
        assert torch.equal(addressed.epoch(number), orders[number])
    assert len({tuple(order.tolist()) for order in orders}) == 4
    assert not torch.equal(BatchOrder(6, 50).epoch(0), orders[0])


@pytest.mark.parametrize("split", [False, True])
def test_a_seed_goes_on_from_every_place_to_the_same_records(split: bool, monkeypatch) -> None:
    dataset = many_classes()
    methods = ("plain", "in-step", "post-hoc", "ridge", "auto")
    config = TrainConfig(hidden=(16,), epochs=2, batch_size=64, methods=methods, rank=5, noise_rate=0.2)
    if split:
        dataset = Dataset(**{**vars(dataset), "split": lambda seed: many_classes()})
    states: list[tuple[bool, dict[str, Any]]] = []

    def keep(state: Callable[[], dict[str, Any]], epoch: bool) -> None:
        states.append((epoch, copied(state())))

    straight = run_seed(config, dataset, 1, lambda method, accuracy: None, keep=keep)
    expected = without_times(as_plain(straight.records))
    assert len(states) == 2 * 2 * (3 + 1)
    started: list[str] = []
    seen: list[str] = []
    original = Problem.training

    def training(self: Problem, task: Task, method: str) -> Training:
        started.append(method)
        return original(self, task, method)

    monkeypatch.setattr(Problem, "training", training)
    for epoch, state in states:
        started.clear()
        seen.clear()
        result = run_seed(config, dataset, 1, lambda method, accuracy: seen.append(method), state=state)
        assert without_times(as_plain(result.records)) == expected
        for method, record in result.records.items():
            assert len(record.step_seconds) == 2
            assert len(record.repair_seconds) == (2 if method in methods[2:] else 0)
        # What was trained is not trained again.
        done = len(state["records"]["plain"]["train_loss"]), len(state["records"]["in-step"]["train_loss"])
        assert seen == ["plain"] * (2 - done[0]) + ["in-step"] * (2 - done[1])
        assert started == list(dict.fromkeys(seen))
        assert epoch == (state["training"]["batch"] == 0)


def images() -> Dataset:
    """Of three classes, each bright in another place."""
    generator = np.random.default_rng(1)
    labels = np.arange(120) % 3
    pixels = generator.standard_normal((120, 8, 8), dtype=np.float32)
    for c in range(3):
        pixels[labels == c, 2 * c : 2 * c + 3] += 2
    features = pixels.reshape(120, 64)
    return Dataset(
        "images",
        features[:90],
        labels[:90],
        np.arange(90),
        features[90:],
        labels[90:],
        ("a", "b", "c"),
        image_shape=(1, 8, 8),
    )


# What keeps a state of its own, draws random numbers, or does something between two steps.
TRICKY: dict[str, dict[str, object]] = {
    "elr": {"algorithm": "elr"},
    "nvrm": {"algorithm": "nvrm"},
    "proden": {"algorithm": "proden", "noise": "partial"},
    "cc": {"algorithm": "cc", "noise": "partial"},
    "confident learning": {"algorithm": "confident-learning", "options": {"folds": 2}},
    "clean head": {"algorithm": "clean-head", "clean_per_class": 4},
    "truncation": {"algorithm": "truncation"},
    "subset, hold-out 0": {"samples": 60, "holdout_fraction": 0, "methods": ("plain", "in-step")},
    "cnn, augmentation, cosine": {"model": "cnn", "augment": "crop-flip", "schedule": "cosine"},
    "ridge": {"algorithm": "linear-ridge", "model": "linear", "methods": ("plain", "post-hoc", "ridge")},
    "passing": {"statistics": "passing", "methods": ("plain", "per-epoch", "post-hoc", "gaussian")},
    "passing, candidate sets": {
        "statistics": "passing", "noise": "partial", "methods": ("plain", "ridge", "gaussian+trained")
    },
    "nearest neighbours": {
        "algorithm": "pl-knn", "noise": "partial", "model": "linear", "methods": ("plain",)
    },
}  # fmt: skip


@pytest.mark.parametrize("name", TRICKY)
def test_every_algorithm_goes_on_from_every_place_to_the_same_records(name: str) -> None:
    dataset = images()
    settings = {"methods": ("plain", "in-step", "per-epoch", "post-hoc", "auto"), **TRICKY[name]}
    config = TrainConfig(hidden=(8,), epochs=3, batch_size=30, rank=2, noise_rate=0.3, **settings)
    plan = plan_of(config, dataset)
    states: list[dict[str, Any]] = []
    told: list[str] = []

    def tell(method: str, accuracy: float) -> None:
        told.append(method)

    def keep(state: Callable[[], dict[str, Any]], epoch: bool) -> None:
        states.append(copied(state()))

    straight = run_seed(config, dataset, 2, tell, keep=keep)
    expected = without_times(as_plain(straight.records))
    assert len(told) == plan.epochs_of_seed
    steps = 0 if plan.algorithm.WHOLE else -(-len(states[0]["chosen"] or range(81)) // 30)
    assert len(states) == len(plan.trained) * plan.epochs * (steps + 1) or name == "subset, hold-out 0"
    for state in states:
        told.clear()
        result = run_seed(config, dataset, 2, tell, state=state)
        assert without_times(as_plain(result.records)) == expected
        assert FOLD not in told  # rows are chosen once
        done = sum(len(state["records"][method]["train_loss"]) for method in plan.trained)
        assert len(told) == len(plan.trained) * plan.epochs - done


@pytest.mark.parametrize("name", ["elr", "proden", "nvrm"])
def test_what_an_algorithm_keeps_makes_a_difference(name: str) -> None:
    """Without its state a training would not go on to the same bits: the test above can fail."""
    config = TrainConfig(hidden=(8,), epochs=3, batch_size=30, noise_rate=0.3, **TRICKY[name])
    problem = Problem(config, images(), 2, ALGORITHMS[name], 3)
    straight, other = (problem.training(problem.learned(None), "plain") for _ in range(2))
    for _ in range(2):
        straight.run_epoch()
    state = copied(straight.state_dict())
    assert state["algorithm"]
    other.load_state_dict({**state, "algorithm": other.algorithm.state_dict()})
    assert other.run_epoch().loss != straight.run_epoch().loss


def test_what_has_passed_makes_a_difference() -> None:
    """Without these sums the repairs would not be the same: the test above can fail."""
    config = TrainConfig(hidden=(8,), epochs=1, batch_size=30, statistics="passing", methods=("gaussian",))
    problem = Problem(config, images(), 2, ALGORITHMS["cross-entropy"], 1)
    states: list[dict[str, Any]] = []
    straight, other = (problem.training(problem.learned(None), "plain") for _ in range(2))
    straight.run_epoch(lambda: states.append(copied(straight.state_dict())))
    other.load_state_dict({**states[1], "collected": other.state_dict()["collected"]})
    other.run_epoch()
    assert (straight.statistics()[0].rows, other.statistics()[0].rows) == (81, 21)


def test_killed_in_the_folds_and_after_them(tmp_path: Path, monkeypatch, capsys) -> None:
    monkeypatch.chdir(tmp_path)
    arguments = ["--algorithm", "confident-learning", "--options.folds", "2", "--seeds", "2", "--name", "a"]
    arguments += ["--hidden", "8", "--epochs", "2", "--batch-size", "256", "--methods", "plain", "in-step"]
    arguments += ["--checkpoint-every", "4"]
    assert main(["train", *arguments]) == 0
    expected = results(Path("runs/a"))
    Path("runs").rename("straight")
    original = Problem.choose_rows
    count = 0

    def dying(self: Problem, on_epoch: Callable[[float], None]) -> torch.Tensor | None:
        def told(accuracy: float) -> None:
            nonlocal count
            count += 1
            on_epoch(accuracy)
            if count in (2, 7):  # of the first seed, and of the second
                raise KeyboardInterrupt

        return original(self, told)

    monkeypatch.setattr(Problem, "choose_rows", dying)
    capsys.readouterr()
    assert main(["train", *arguments]) == 130
    assert capsys.readouterr().err == "\nlip-fast train: stopped\n"
    assert not Path("runs").exists()  # nothing to go on from
    assert main(["train", *arguments]) == 130
    assert capsys.readouterr().err.endswith("to continue: lip-fast train --resume runs/a\n")
    with monkeypatch.context() as patch:
        stop_after(patch, 2)  # after the folds
        assert main(["train", "--resume", "runs/a"]) == 130
    assert main(["train", "--resume", "runs/a"]) == 0
    assert results(Path("runs/a")) == expected


# The command -----------------------------------------------------------------------------------------

SMALL = [
    "--methods",
    "plain",
    "in-step",
    "post-hoc",
    "--hidden",
    "16",
    "--epochs",
    "4",
    "--batch-size",
    "256",
    "--name",
    "a",
]


@pytest.fixture
def interrupted(tmp_path: Path, monkeypatch, capsys) -> Path:
    """The folder of a run that was stopped by Ctrl-C in its second seed; relative, as one types it."""
    monkeypatch.chdir(tmp_path)
    with monkeypatch.context() as patch:
        stop_after(patch, 20)
        assert main(["train", *SMALL, "--checkpoint-every", "3"]) == 130
    error = capsys.readouterr().err
    assert error == "\nlip-fast train: stopped; to continue: lip-fast train --resume runs/a\n"
    return Path("runs/a")


def stop_after(monkeypatch: pytest.MonkeyPatch, saves: int) -> None:
    """Press Ctrl-C when so many checkpoints are saved."""
    original, count = Progress.save, 0

    def save(self: Progress, *arguments: Any) -> None:
        nonlocal count
        original(self, *arguments)
        count += 1
        if count == saves:
            raise KeyboardInterrupt

    monkeypatch.setattr(Progress, "save", save)


def refusal(arguments: list[str], capsys) -> str:
    """The one line that is said to a mistake."""
    capsys.readouterr()
    assert main(["train", *arguments]) == 2
    output = capsys.readouterr()
    assert output.out == ""
    assert output.err.count("\n") == 1
    return output.err


def test_ctrl_c_and_resume_give_what_an_uninterrupted_run_gives(interrupted: Path, capsys) -> None:
    assert main(["train", "--resume", str(interrupted)]) == 0
    output = capsys.readouterr().out
    assert "\ncontinued after 9 of 24 epochs\n" in output
    assert output.endswith("run folder: runs/a\n")
    assert sorted(path.name for path in interrupted.iterdir()) == FILES
    resumed = results(interrupted)
    metrics = json.loads((interrupted / "metrics.json").read_text())
    assert metrics["sessions"] == 2
    interrupted.rename("first")
    assert main(["train", *SMALL, "--checkpoint-every", "3"]) == 0
    assert results(interrupted) == resumed
    assert json.loads((interrupted / "metrics.json").read_text())["sessions"] == 1


def test_times_are_carried_over(interrupted: Path, monkeypatch) -> None:
    path = interrupted / "checkpoint.pt"
    state = torch.load(path, weights_only=True)
    assert 0 < state["seconds"] < 60
    torch.save({**state, "seconds": 1000.0}, path)
    earlier = [entry["records"]["plain"]["step_seconds"] for entry in state["finished"]]
    assert main(["train", "--resume", str(interrupted)]) == 0
    metrics = json.loads((interrupted / "metrics.json").read_text())
    assert 1000 < metrics["seconds"] < 1060
    seeds = metrics["seeds"]
    assert [entry["methods"]["plain"]["step_seconds"] for entry in seeds[: len(earlier)]] == earlier


def test_a_complete_run_is_left_as_it_is(interrupted: Path, capsys) -> None:
    assert main(["train", "--resume", str(interrupted)]) == 0
    before = {path.name: (path.read_bytes(), path.stat().st_mtime_ns) for path in interrupted.iterdir()}
    capsys.readouterr()
    assert main(["train", "--resume", str(interrupted)]) == 0
    assert capsys.readouterr().out == "nothing to resume: the run in runs/a is complete\n"
    assert before == {
        path.name: (path.read_bytes(), path.stat().st_mtime_ns) for path in interrupted.iterdir()
    }
    assert "--epochs 4, got 9" in refusal(["--resume", str(interrupted), "--epochs", "9"], capsys)
    # A run of an earlier version, which had fewer settings.
    config = yaml.safe_load((interrupted / "config.yaml").read_text())
    del config["checkpoint_every"]
    (interrupted / "config.yaml").write_text(yaml.safe_dump(config))
    assert main(["train", "--resume", str(interrupted)]) == 0


def test_a_run_without_a_checkpoint_begins_anew(interrupted: Path) -> None:
    (interrupted / "checkpoint.pt").unlink()
    assert main(["train", "--resume", str(interrupted)]) == 0
    assert sorted(path.name for path in interrupted.iterdir()) == FILES


def test_settings_are_those_of_the_run(interrupted: Path, capsys, tmp_path: Path) -> None:
    resume = ["--resume", str(interrupted)]
    error = refusal([*resume, "--epochs", "5", "--hidden", "16", "8", "--name", "b"], capsys)
    assert "expected the settings of runs/a" in error
    for conflict in ("--epochs 4, got 5", "--hidden 16, got 16 8", "--name a, got b"):
        assert conflict in error
    assert "Leave them out, or start a new run" in error
    assert "--decay 0.995, got null" in refusal([*resume, "--decay", "null"], capsys)
    (tmp_path / "other.yaml").write_text("seeds: 1\n")
    assert "--seeds 3, got 1" in refusal([*resume, "--config", "other.yaml"], capsys)
    # The same ones may be said again.
    assert main(["train", *resume, *SMALL]) == 0


@pytest.mark.parametrize(
    ("make", "expected"),
    [
        (lambda folder: shutil.rmtree(folder), "expected --resume to be the folder of a run, found none at"),
        (
            lambda folder: (folder / "config.yaml").unlink(),
            "expected --resume to be the folder of a run, found no config.yaml in",
        ),
        (lambda folder: (folder / "config.yaml").write_text("a: [1"), "expected the settings of a run"),
        (
            lambda folder: (folder / "config.yaml").write_text("lr: 0.1\n"),
            "expected all settings of a run in",
        ),
        (lambda folder: changed(folder / "config.yaml", models=1), "unknown setting 'models'"),
        (lambda folder: changed(folder / "config.yaml", epochs="x"), "epochs"),
        (lambda folder: (folder / "config.yaml").write_bytes(b"\xff\x00"), "expected the settings of a run"),
        (lambda folder: (folder / "config.yaml").write_text(""), "expected the settings of a run in"),
        (
            lambda folder: (folder / "config.yaml").write_text("epochs: 4\n"),
            "found none of data, features, samples, seeds",
        ),
        (
            lambda folder: changed(folder / "config.yaml", epochs=5),
            "expected --epochs 4 in the settings of runs/a, with which its checkpoint was made, found 5",
        ),
        (lambda folder: (folder / "checkpoint.pt").write_bytes(b""), "the checkpoint of a run"),
        (lambda folder: (folder / "checkpoint.pt").write_text("hello"), "the checkpoint of a run"),
        (lambda folder: torch.save({"w": torch.ones(2)}, folder / "checkpoint.pt"), "something else"),
        (lambda folder: torch.save([1, 2], folder / "checkpoint.pt"), "something else"),
        (lambda folder: torch.save(Path("x"), folder / "checkpoint.pt"), "it holds pathlib"),
        (lambda folder: edited(folder, format="lip-fast train, 99"), "found 'lip-fast train, 99'"),
        (lambda folder: edited(folder, data="0" * 64), "expected data with hash 000000000000"),
        (lambda folder: edited(folder, settings={}), "in the settings of runs/a"),
        (lambda folder: edited(folder, finished=[{}]), "expected the checkpoint in runs/a to fit"),
        (lambda folder: edited(folder, finished=None), "expected the checkpoint in runs/a to fit"),
        (lambda folder: edited(folder, current={}), "to fit these settings and this version"),
        (
            lambda folder: edited(folder, labels="0" * 64),
            "expected labels of seed 1 with hash 000000000000, with which the run began",
        ),
    ],
)
def test_what_cannot_be_resumed_is_said_in_one_line(
    interrupted: Path, capsys, make: Callable[[Path], object], expected: str
) -> None:
    make(interrupted)
    before = {path.name for path in interrupted.iterdir()} if interrupted.exists() else set()
    assert expected in refusal(["--resume", str(interrupted)], capsys)
    # Nothing of a run that exists is ever thrown away.
    assert before == ({path.name for path in interrupted.iterdir()} if interrupted.exists() else set())


def test_a_run_of_an_earlier_version_goes_on(interrupted: Path, tmp_path: Path) -> None:
    assert main(["train", *SMALL, "--out", "straight"]) == 0
    settings = yaml.safe_load((interrupted / "config.yaml").read_text())
    state = torch.load(interrupted / "checkpoint.pt", weights_only=True)
    for name in TrainConfig.LATER:
        del settings[name], state["settings"][name]
    for method in ("early-stop", "gaussian", "gaussian+trained"):
        del state["current"]["records"][method]
    (interrupted / "config.yaml").write_text(yaml.safe_dump(settings))
    torch.save(state, interrupted / "checkpoint.pt")
    assert main(["train", "--resume", str(interrupted)]) == 0
    numbers = [results(folder)["metrics.json"] for folder in (interrupted, Path("straight/a"))]
    assert numbers[0] == numbers[1]


def changed(path: Path, **settings: object) -> None:
    path.write_text(yaml.safe_dump({**yaml.safe_load(path.read_text()), **settings}))


def edited(folder: Path, labels: str | None = None, **entries: object) -> None:
    state = torch.load(folder / "checkpoint.pt", weights_only=True)
    if labels is not None:
        state["current"]["labels_sha256"] = labels
    torch.save({**state, **entries}, folder / "checkpoint.pt")


def test_a_file_is_no_run_folder(tmp_path: Path, capsys) -> None:
    (tmp_path / "file").write_text("x")
    assert "found none at" in refusal(["--resume", str(tmp_path / "file")], capsys)


def test_other_software_is_told(interrupted: Path, capsys) -> None:
    edited(interrupted, software={"torch": "1.0", "the kernel of small_svd": "magic"})
    assert main(["train", "--resume", str(interrupted)]) == 0
    error = capsys.readouterr().err
    assert f"lip-fast train: torch was 1.0, is {torch.__version__}; the bits may change with it" in error
    assert "the kernel of small_svd was magic, is " in error


def test_other_software_is_told_again_by_the_next(interrupted: Path, monkeypatch, capsys) -> None:
    edited(interrupted, software={"torch": "1.0"})
    for saves in (1, 1000):
        with monkeypatch.context() as patch:
            stop_after(patch, saves)
            main(["train", "--resume", str(interrupted)])
        assert f"torch was 1.0, is {torch.__version__}" in capsys.readouterr().err


def test_damaged_checkpoints_are_refused_or_are_what_was_saved(interrupted: Path, record_property) -> None:
    folder = RunFolder(interrupted)
    path = interrupted / "checkpoint.pt"
    content, original = path.read_bytes(), folder.load()
    copies = list(damaged(content, seed=0, cuts=40, flips=120))
    refused = 0
    for copy in copies:
        path.write_bytes(copy)
        try:
            state = folder.load()
        except UserError:
            refused += 1
        else:  # a bit that nothing depends on, such as a date in the archive
            assert same(state, original)
    assert refused > 100
    record_property("hostile_inputs", len(copies))


# SIGKILL ---------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def server() -> Iterator[ForkServer]:
    with ForkServer() as server:
        yield server


def continued(folder: Path, arguments: list[str]) -> list[str]:
    """What a user types after a kill: to resume, or to begin again where there is no run yet."""
    return ["train", "--resume", "runs/a"] if (folder / "runs" / "a").exists() else ["train", *arguments]


@pytest.mark.process
def test_killed_at_every_operation_on_files(server: ForkServer, tmp_path: Path, record_property) -> None:
    arguments = ["--seeds", "1", "--epochs", "1", "--hidden", "12", "--batch-size", "480", "--name", "a"]
    arguments += ["--methods", "plain", "in-step", "post-hoc", "--checkpoint-every", "3"]
    (tmp_path / "straight").mkdir()
    answer = server.run(tmp_path / "straight", ["train", *arguments])
    assert answer["code"] == 0, answer["output"]
    expected = results(tmp_path / "straight" / "runs" / "a")
    assert sorted(expected) == [name for name in FILES if name != "curves.png"]  # of a single epoch
    assert answer["operations"] > 20
    for operation in range(answer["operations"]):
        folder = tmp_path / str(operation)
        folder.mkdir()
        killed = server.run(folder, ["train", *arguments], operation=operation)
        assert killed["code"] == -signal.SIGKILL, killed["output"]
        resumed = server.run(folder, continued(folder, arguments))
        assert resumed["code"] == 0, resumed["output"]
        assert results(folder / "runs" / "a") == expected, f"killed before operation {operation}"
        assert [path.name for path in (folder / "runs").iterdir()] == ["a"]
        shutil.rmtree(folder)
    record_property("kills_survived", answer["operations"])


@pytest.mark.process
def test_killed_again_and_again_at_random_moments(
    server: ForkServer, tmp_path: Path, record_property
) -> None:
    arguments = ["--seeds", "2", "--epochs", "4", "--batch-size", "128", "--hidden", "32", "--name", "a"]
    arguments += ["--methods", "plain", "in-step", "auto", "--checkpoint-every", "2"]
    (tmp_path / "straight").mkdir()
    start = time.monotonic()
    answer = server.run(tmp_path / "straight", ["train", *arguments])
    whole = time.monotonic() - start
    assert answer["code"] == 0, answer["output"]
    expected = results(tmp_path / "straight" / "runs" / "a")
    delays = random.Random(0)
    kills, with_checkpoint = 0, 0
    for run in range(100):
        folder = tmp_path / str(run)
        folder.mkdir()
        while True:
            seconds = delays.uniform(0.02, 0.6 * whole)
            answer = server.run(folder, continued(folder, arguments), seconds=seconds)
            if answer["code"] == 0:
                break
            assert answer["code"] == -signal.SIGKILL, answer["output"]
            kills += 1
            with_checkpoint += (folder / "runs" / "a" / "checkpoint.pt").exists()
        assert results(folder / "runs" / "a") == expected
        if kills >= 24:
            break
    assert kills >= 24
    # Some are too early for that, or too late.
    assert with_checkpoint >= 12
    record_property("kills_survived", kills)


@pytest.mark.process
def test_killed_processes_of_the_command(tmp_path: Path, record_property) -> None:
    """The whole program, from its start to its end, in the default settings of checkpoints."""
    arguments = ["--seeds", "2", "--epochs", "15", "--methods", "plain", "in-step", "--name", "a"]
    environment = {
        **os.environ,
        "PYTHONPATH": os.pathsep.join([str(REPOSITORY), os.environ.get("PYTHONPATH", "")]),
        "OMP_NUM_THREADS": "1",
    }

    def start(folder: Path, command: list[str]) -> "subprocess.Popen[str]":
        return subprocess.Popen(
            [sys.executable, "-m", "lip_fast", *command],
            cwd=folder,
            env=environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )

    for name in ("straight", "killed"):
        (tmp_path / name).mkdir()
    straight = start(tmp_path / "straight", ["train", *arguments])
    folder, delays, kills = tmp_path / "killed", random.Random(1), 0
    checkpoint = folder / "runs" / "a" / "checkpoint.pt"
    for _ in range(2):
        before = checkpoint.stat().st_mtime_ns if checkpoint.exists() else None
        process = start(folder, continued(folder, arguments))
        # Its own first checkpoint, then a moment of training.
        while process.poll() is None:
            try:
                if checkpoint.stat().st_mtime_ns != before:
                    break
            except FileNotFoundError:
                pass
            time.sleep(0.001)
        time.sleep(delays.uniform(0, 0.4))
        process.kill()
        output = process.communicate(timeout=60)[0]
        assert process.returncode in (0, -signal.SIGKILL), output
        kills += process.returncode != 0
    process = start(folder, continued(folder, arguments))
    output = process.communicate(timeout=120)[0]
    assert process.returncode == 0, output
    output = straight.communicate(timeout=120)[0]
    assert straight.returncode == 0, output
    assert results(folder / "runs" / "a") == results(tmp_path / "straight" / "runs" / "a")
    assert kills >= 1
    record_property("kills_survived", kills)
