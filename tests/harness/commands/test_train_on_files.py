"""``lip-fast train`` on files, in a process of its own and with what cannot be read."""

import json
from pathlib import Path

import numpy as np
import pytest
from harness.command_line import environment, interpreter
from harness.sample_files import write_human, write_mat, write_npz

from lip_fast.cli import main
from lip_fast.harness.files.labels import load_labels
from lip_fast.harness.settings.arguments import parse
from lip_fast.harness.settings.train import TrainConfig

SHORT = ["--epochs", "1", "--seeds", "2", "--hidden", "16", "--rank", "2"]


def train(folder: Path, *arguments: str, warning: str = "") -> str:
    """Standard output of a run in ``folder/run``, which warns of nothing else."""
    words = ("train", *SHORT, "--out", str(folder), "--name", "run", *arguments)
    process = interpreter().run("-m", "lip_fast", *words, env=environment() | {"PYTHONWARNINGS": "error"})
    assert (process.returncode, process.stderr) == (0, warning)
    return process.stdout


@pytest.mark.process
def test_embeddings(tmp_path: Path) -> None:
    path = write_npz(tmp_path / "faces.npz")
    warning = (
        "lip-fast train: faces does not say which of its labels are clean: --noise pair makes wrong labels "
        "beside those that it may have; --noise own leaves them as they are\n"
    )
    output = train(tmp_path, "--data", str(path), "--noise", "pair", "--noise-rate", "0.2", warning=warning)
    assert "\n3 classes of 20 training samples\n" in output
    assert output.startswith(
        "faces, 20% pair label noise: cross entropy, mlp: 60 training and 30 test samples"
    )
    labels = load_labels(tmp_path / "run" / "labels.npz")
    assert labels["noisy"].shape == (2, 60)
    np.testing.assert_array_equal((labels["noisy"] != labels["clean"]).sum(1), [12, 12])


@pytest.mark.process
def test_embeddings_without_clean_labels_get_no_noise_unless_asked(tmp_path: Path) -> None:
    path = write_npz(tmp_path / "faces.npz")
    assert train(tmp_path, "--data", str(path)).startswith("faces, its own labels: cross entropy, mlp: 60 ")
    labels = load_labels(tmp_path / "run" / "labels.npz")
    np.testing.assert_array_equal(labels["noisy"], np.stack([labels["clean"]] * 2))


@pytest.mark.process
def test_partial_labels_and_back_through_their_file(tmp_path: Path) -> None:
    path = write_mat(tmp_path / "faces.mat", sparse=True)
    output = train(tmp_path, "--data", str(path))
    assert output.startswith("faces, its own candidate sets: CC, mlp: 20 training and 20 test samples")
    labels = load_labels(tmp_path / "run" / "labels.npz")
    assert labels["noisy"].shape == (2, 20, 4)
    assert labels["indices"].shape == labels["clean"].shape == (2, 20)
    assert (labels["indices"][0] != labels["indices"][1]).any()
    noise = f"file:{tmp_path / 'run' / 'labels.npz'}"
    arguments = ["--data", str(path), "--noise", noise, "--out", str(tmp_path), "--name", "again"]
    assert main(["train", *SHORT, *arguments]) == 0
    first, again = (
        [
            entry["labels_sha256"]
            for entry in json.loads((tmp_path / name / "metrics.json").read_text())["seeds"]
        ]
        for name in ("run", "again")
    )
    assert first == again


def test_noise_none_is_a_name_and_no_null() -> None:
    assert parse(["--noise", "none"], TrainConfig).config.noise == "none"


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (["--data", "nowhere.mat"], ["expected a MATLAB file", "nowhere.mat", "No such file"]),
        (["--data", "nowhere.npz"], ["expected a NumPy .npz archive", "nowhere.npz", "No such file"]),
        (["--data", "text.npz"], ["expected a NumPy .npz archive", "text.npz"]),
        (["--data", "text.txt"], ["expected a data file ending in .mat or .npz, got text.txt: np.savez("]),
        (["--data", "."], ["got the folder .: data of your own come in a file ending in .mat or .npz"]),
        (["--data", "mnist"], ["unknown data set 'mnist'", "data of your own come in a file"]),
        (["text.npz"], ["expected options alone, got 'text.npz': --data takes data"]),
        (["--epochs", "2.5"], ["expected --epochs to be of kind int, got 2.5"]),
        (
            ["--hidden", "8,8"],
            ["--hidden to be of kind int, got 8,8: several values are separated by spaces"],
        ),
        (["--methods", "plain,in-step"], ["unknown method", "several are separated by spaces"]),
        (["--data", "cifar10:."], ["expected data_batch_1 or data_batch_1.bin"]),
        (["--data", "fashion-mnist:nowhere"], ["expected train-images-idx3-ubyte", "nowhere"]),
        (["--data", "a\0b.npz"], ["a NumPy .npz archive", "null"]),
        (
            ["--noise", "file:nowhere.npz"],
            ["expected the labels.npz of a run", "nowhere.npz", "No such file"],
        ),
        (["--noise", "file:text.npz"], ["expected the labels.npz of a run", "text.npz"]),
        (["--noise", "human:text.npz"], ["expected a file of human labels", "text.npz"]),
        (["--noise", "human:h.pt#best"], ["unknown set of human labels 'best'"]),
        (["--noise", "human:h.pt"], ["clean_label", "to hold 1437 labels, found 3"]),
        (["--noise", "own"], ["for --noise own, got digits"]),
        (
            ["--data", "faces.npz", "--noise-rate", "0.2"],
            ["expected --noise with --noise-rate 0.2", "labels of faces are taken as they are"],
        ),
    ],
    ids=" ".join,
)
def test_what_cannot_be_read_is_one_line_and_leaves_nothing(
    arguments: list[str], expected: list[str], tmp_path: Path, capsys, monkeypatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "text.npz").write_text("text")
    write_npz(tmp_path / "faces.npz")
    (tmp_path / "text.txt").write_text("text")
    write_human(tmp_path / "h.pt", {"clean_label": np.arange(3), "worse_label": np.arange(3)})
    before = sorted(tmp_path.iterdir())
    assert main(["train", *arguments]) == 2
    output = capsys.readouterr()
    assert output.out == ""
    assert output.err.count("\n") == 1
    for part in expected:
        assert part in output.err
    assert sorted(tmp_path.iterdir()) == before
