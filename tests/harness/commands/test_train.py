import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import yaml
from harness.command_line import interpreter
from warm import python

from lip_fast.cli import main
from lip_fast.harness.files.labels import labels_sha256, load_labels
from lip_fast.harness.settings.arguments import parse
from lip_fast.harness.settings.train import TrainConfig

REPOSITORY = Path(__file__).parents[3]
TINY = ["train", "--epochs", "1", "--seeds", "1", "--hidden", "16"]


def run(arguments: list[str], **options: object) -> subprocess.CompletedProcess[str]:
    return subprocess.run(arguments, capture_output=True, text=True, env=environment(), **options)


def environment() -> dict[str, str]:
    path = os.pathsep.join([str(REPOSITORY), os.environ.get("PYTHONPATH", "")])
    return {**os.environ, "PYTHONPATH": path, "PYTHONWARNINGS": "error", "PYTHONIOENCODING": "utf-8"}


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> tuple[subprocess.CompletedProcess[str], Path]:
    """A whole run in a process of its own, and its folder."""
    out = tmp_path_factory.mktemp("cli") / "runs"
    arguments = ["--out", str(out), "--name", "a", "--epochs", "2", "--seeds", "2", "--hidden", "32"]
    return run([sys.executable, "-m", "lip_fast", "train", *arguments]), out / "a"


@pytest.mark.process
@pytest.mark.smoke
def test_run_ends_with_the_table_and_the_folder(finished) -> None:
    process, folder = finished
    assert process.returncode == 0, process.stderr
    assert process.stderr == ""
    lines = process.stdout.splitlines()
    assert lines[-1] == f"run folder: {folder}"
    for start in ("plain ", "LIP in the step ", "LIP each epoch ", "LIP afterwards "):
        assert sum(line.startswith(start) for line in lines) == 1
    assert sum("LIP adds" in line for line in lines) == 2


@pytest.mark.process
@pytest.mark.smoke
def test_run_folder_holds_what_was_run(finished) -> None:
    _, folder = finished
    assert sorted(p.name for p in folder.iterdir()) == [
        "config.yaml",
        "curves.png",
        "labels.npz",
        "metrics.json",
        "spectrum.png",
    ]
    assert [p.name for p in folder.parent.iterdir()] == ["a"]
    config = yaml.safe_load((folder / "config.yaml").read_text())
    assert (config["epochs"], config["seeds"], config["hidden"]) == (2, 2, [32])
    for name in ("spectrum.png", "curves.png"):
        assert (folder / name).read_bytes().startswith(b"\x89PNG")


@pytest.mark.process
@pytest.mark.smoke
def test_metrics_have_every_seed_method_and_epoch(finished) -> None:
    _, folder = finished
    metrics = json.loads((folder / "metrics.json").read_text())
    assert metrics["environment"]["threads"] == 1
    assert metrics["environment"]["torch"]
    assert [entry["seed"] for entry in metrics["seeds"]] == [0, 1]
    for entry in metrics["seeds"]:
        assert list(entry["methods"]) == ["plain", "in-step", "per-epoch", "post-hoc"]
        for record in entry["methods"].values():
            for values in ("test_accuracy", "validation", "train_loss", "step_seconds", "lip_seconds"):
                assert len(record[values]) == 2
    last = [entry["methods"]["plain"]["test_accuracy"][-1] for entry in metrics["seeds"]]
    assert metrics["summary"]["plain"]["last"]["mean"] == pytest.approx(np.mean(last))


@pytest.mark.process
@pytest.mark.smoke
def test_labels_are_those_of_the_metrics(finished) -> None:
    _, folder = finished
    labels = load_labels(folder / "labels.npz")
    metrics = json.loads((folder / "metrics.json").read_text())
    for entry, noisy, sha256 in zip(metrics["seeds"], labels["noisy"], labels["sha256"], strict=True):
        assert entry["labels_sha256"] == sha256 == labels_sha256(noisy)
        assert (noisy != labels["clean"]).sum() == round(0.4 * 1437)


@pytest.mark.process
def test_the_folders_config_repeats_the_run(finished, tmp_path: Path, capsys) -> None:
    _, folder = finished
    config = ["--config", str(folder / "config.yaml")]
    assert main(["train", *config]) == 2  # the name is taken
    assert "exists already" in capsys.readouterr().err
    assert main(["train", *config, "--out", str(tmp_path), "--name", "b"]) == 0
    first, second = (
        [
            {method: record["test_accuracy"] for method, record in entry["methods"].items()}
            for entry in json.loads((run_folder / "metrics.json").read_text())["seeds"]
        ]
        for run_folder in (folder, tmp_path / "b")
    )
    assert first == second


def test_settings_are_read_as_what_they_are(tmp_path: Path) -> None:
    assert parse([], TrainConfig).config == TrainConfig()
    for text, rank in (("5", 5), ("0.5", 0.5), ("auto", "auto")):
        parsed = parse(["--rank", text], TrainConfig).config.rank
        assert (parsed, type(parsed)) == (rank, type(rank))
    (tmp_path / "c.yaml").write_text("epochs: 7\nhidden: [5, 6]\nlr: 1e-2\ndecay: null\n")
    config = parse(
        ["--config", str(tmp_path / "c.yaml"), "--epochs", "8", "--methods", "plain"], TrainConfig
    ).config
    assert config == TrainConfig(epochs=8, hidden=(5, 6), lr=0.01, decay=None, methods=("plain",))
    assert parse(
        ["--noise-rate", "0", "--clip", "false", "--tail-rank", "3"], TrainConfig
    ).config == TrainConfig(noise_rate=0, clip=False, tail_rank=3)


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (["trian"], ["unknown subcommand 'trian'", "train"]),
        (["--verbose"], ["unknown option '--verbose'", "known are --help, --version"]),
        (["train", "--data", "digit"], ["unknown data set 'digit'", "nearest is 'digits'"]),
        (["train", "--noise", "symetric"], ["unknown label noise 'symetric'", "nearest is 'symmetric'"]),
        (["train", "--optimizer", "adam"], ["unknown optimizer 'adam'", "nearest is 'adamw'"]),
        (["train", "--methods", "plain", "posthoc"], ["unknown method 'posthoc'", "nearest is 'post-hoc'"]),
        (["train", "--noise_rate", "0.2"], ["unknown option '--noise_rate'", "nearest is '--noise-rate'"]),
        (["train", "--epoch=2"], ["unknown option '--epoch'", "nearest is '--epochs'"]),
        (["train", "extra"], ["extra"]),
        (["train", "--noise-rate", "1"], ["expected --noise-rate in [0, 1), got 1"]),
        (["train", "--noise-rate", "-0.1"], ["expected --noise-rate in [0, 1), got -0.1"]),
        (["train", "--noise-rate", "nan"], ["noise", "nan"]),
        (["train", "--seeds", "0"], ["expected --seeds at least 1, got 0"]),
        (["train", "--seeds", "two"], ["seeds", "int", "two"]),
        (["train", "--epochs", "0"], ["expected --epochs at least 1, got 0"]),
        (["train", "--batch-size", "-1"], ["expected --batch-size at least 1, got -1"]),
        (["train", "--hidden", "8", "0"], ["expected --hidden at least 1, got 0"]),
        (["train", "--threads", "0"], ["expected --threads at least 1, got 0"]),
        (["train", "--lr", "0"], ["expected --lr above 0 and finite, got 0"]),
        (["train", "--weight-decay", "-1"], ["expected --weight-decay", "got -1"]),
        (["train", "--momentum", "1"], ["expected --momentum in [0, 1), got 1"]),
        (["train", "--rank", "11"], ["rank", "0..10", "11"]),
        (["train", "--rank", "1.5"], ["rank", "(0, 1]", "1.5"]),
        (["train", "--rank", "most"], ["rank", "auto", "most"]),
        (["train", "--tail", "cut"], ["tail", "refit", "cut"]),
        (["train", "--decay", "2"], ["decay", "2"]),
        (["train", "--every", "0"], ["every", "0"]),
        (["train", "--config", "nowhere.yaml"], ["nowhere.yaml"]),
    ],
    ids=lambda value: " ".join(value) if value and value[0] in ("train", "trian") else "",
)
def test_a_mistake_is_one_line_and_exit_code_2(
    arguments: list[str], expected: list[str], tmp_path: Path, capsys, monkeypatch
) -> None:
    monkeypatch.chdir(tmp_path)
    assert main(arguments) == 2
    output = capsys.readouterr()
    assert output.out == ""
    assert output.err.count("\n") == 1
    for part in expected:
        assert part in output.err
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("epoch: 2", ["unknown setting 'epoch'", "nearest is 'epochs'"]),
        ("epochs: [2", ["config"]),
        ("epochs: many", ["epochs", "int", "many"]),
        ("hidden: []", ["expected --hidden at least one width, got []"]),
    ],
)
def test_a_mistake_in_a_config_file(text: str, expected: list[str], tmp_path: Path, capsys) -> None:
    (tmp_path / "c.yaml").write_text(text)
    assert main(["train", "--config", str(tmp_path / "c.yaml")]) == 2
    output = capsys.readouterr()
    assert output.err.count("\n") == 1
    for part in expected:
        assert part in output.err


def test_a_folder_that_cannot_be_written(tmp_path: Path, capsys) -> None:
    (tmp_path / "file").write_text("")
    assert main([*TINY, "--out", str(tmp_path / "file")]) == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1
    assert "expected a folder that can be written" in error


def test_divergence_leaves_no_folder(tmp_path: Path, capsys) -> None:
    arguments = [*TINY, "--optimizer", "sgd", "--lr", "1e9", "--out", str(tmp_path / "runs")]
    assert main(arguments) == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1
    assert "training diverged with --lr" in error
    assert list(tmp_path.iterdir()) == []


def test_help_and_version(capsys) -> None:
    assert main([]) == main(["--help"]) == 0
    texts = capsys.readouterr().out.split("usage: ")[1:]
    assert len(texts) == 2
    assert all("\n  train  " in text for text in texts)
    assert main(["--version"]) == 0
    assert capsys.readouterr().out.startswith("lip-fast ")
    with pytest.raises(SystemExit, match="0"):
        main(["train", "--help"])
    assert "--noise-rate" in capsys.readouterr().out


@pytest.mark.process
def test_ctrl_c_stops_in_one_line_and_says_how_to_continue(tmp_path: Path) -> None:
    folder = tmp_path / "runs" / "a b"
    words = ("train", "--epochs", "100000", "--name", "a b")
    process = interpreter().start("-m", "lip_fast", *words, env=environment(), cwd=tmp_path)
    while process.poll() is None and not (folder / "checkpoint.pt").exists():
        time.sleep(0.01)
    process.send_signal(signal.SIGINT)
    _, error = process.communicate(timeout=60)
    assert process.returncode == 130
    assert error == "\nlip-fast train: stopped; to continue: lip-fast train --resume 'runs/a b'\n"
    assert sorted(path.name for path in folder.iterdir()) == ["checkpoint.pt", "config.yaml"]


def test_ctrl_c_before_the_first_checkpoint_leaves_nothing(tmp_path: Path, capsys, monkeypatch) -> None:
    def interrupt(*arguments: object, **options: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("lip_fast.harness.runs.single.run_seed", interrupt)
    assert main([*TINY, "--out", str(tmp_path / "runs")]) == 130
    assert capsys.readouterr().err == "\nlip-fast train: stopped\n"
    assert list(tmp_path.iterdir()) == []


EXTRA = ("jsonargparse", "matplotlib", "sklearn", "tqdm", "yaml")


@pytest.mark.process
def test_command_line_starts_without_the_extra_and_names_what_is_missing() -> None:
    script = f"""
import sys
for name in {EXTRA}:
    sys.modules[name] = None  # importing it raises ImportError
from lip_fast.cli import main
assert main(["--help"]) == 0
print(main(["train"]))
"""
    process = python("torch").run("-c", script, env=environment())
    assert process.stdout.splitlines()[-1] == "2", process.stderr
    assert process.stderr == (
        "lip-fast train needs the harness extra: pip install 'lip-fast[harness]' "
        "(missing: jsonargparse, matplotlib, sklearn, tqdm, yaml)\n"
    )


@pytest.mark.process
def test_one_missing_package_is_named_alone() -> None:
    script = "import sys; sys.modules['sklearn'] = None; from lip_fast.cli import main; main(['train'])"
    process = python("torch").run("-c", script, env=environment())
    assert "(missing: sklearn)" in process.stderr


@pytest.mark.parametrize("arguments", [["report", "x" * 5000], ["train", "--resume", "y" * 5000]])
def test_a_path_that_is_too_long_is_one_line(arguments: list[str], capsys) -> None:
    assert main(arguments) == 2
    error = capsys.readouterr().err
    assert error.startswith(f"lip-fast {arguments[0]}: ")
    assert error.count("\n") == 1
