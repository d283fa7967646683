import json
import math
from pathlib import Path

import numpy as np
import pytest
import yaml
from matplotlib.image import imread

from lip_fast.cli import main
from lip_fast.harness.arguments import parse_study
from lip_fast.harness.config import TrainConfig
from lip_fast.harness.study_config import StudyConfig

TINY = ["study", "--epochs", "2", "--seeds", "1", "--hidden", "16"]


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("study") / "runs"
    arguments = [*TINY, "--rates", "0", "0.5", "--first-seed", "3", "--rank", "4"]
    assert main([*arguments, "--out", str(out), "--name", "a"]) == 0
    return out / "a"


def test_the_folder_holds_what_was_studied(finished: Path) -> None:
    assert sorted(path.name for path in finished.iterdir()) == [
        "angles.png",
        "config.yaml",
        "metrics.json",
        "similarity.png",
        "spectra.png",
        "study.md",
    ]
    config = yaml.safe_load((finished / "config.yaml").read_text())
    assert (config["rates"], config["epochs"], config["noise"]) == ([0.0, 0.5], 2, "symmetric")


def test_metrics_have_every_training(finished: Path) -> None:
    metrics = json.loads((finished / "metrics.json").read_text())
    assert (metrics["features"], metrics["classes"], metrics["rank"]) == (16, 10, 4)
    assert [(one["seed"], one["rate"]) for one in metrics["trainings"]] == [(3, 0.0), (3, 0.5)]
    clean, noisy = metrics["trainings"]
    assert clean["wrong_rows"] == 0
    assert noisy["wrong_rows"] == pytest.approx(0.5, abs=1e-3)
    assert noisy["wrong_entries"] == pytest.approx(2 * noisy["wrong_rows"] / 10)
    # The network that learned from clean labels is told from the other.
    np.testing.assert_allclose(clean["similarity"]["head_features"], 1)
    assert noisy["similarity"]["head_features"][0][0] < 1
    assert np.shape(noisy["similarity"]["ridge_features"]) == (9, 9)
    assert [turn["k"] for turn in noisy["turns"]] == list(range(1, 9))
    for turn in noisy["turns"]:
        assert turn["bound"] is None or turn["features"] <= turn["bound"] <= turn["theorem"]
    summary = {one["rate"]: one for one in metrics["summary"]}
    assert summary[0.5]["test_accuracy"] == noisy["test_accuracy"]
    assert summary[0.5]["principal"]["ridge_features"] == noisy["similarity"]["ridge_features"][3][3]
    assert summary[0.5]["turn"]["features"] == noisy["turns"][3]["features"]
    assert all(penalty > 0 and math.isfinite(penalty) for penalty in metrics["penalties"])


def test_both_trainings_start_alike(finished: Path, tmp_path: Path) -> None:
    # Without steps to speak of, heads are what the common initialisation made them.
    arguments = [*TINY, "--rates", "0.5", "--lr", "1e-12", "--out", str(tmp_path), "--name", "a"]
    assert main(arguments) == 0
    still = json.loads((tmp_path / "a" / "metrics.json").read_text())["trainings"][1]
    np.testing.assert_allclose(still["similarity"]["head_features"], 1, atol=1e-6)


@pytest.mark.parametrize("name", ["spectra", "similarity", "angles"])
def test_figures_are_drawn(finished: Path, name: str) -> None:
    image = imread(finished / f"{name}.png")
    height, width = image.shape[:2]
    assert 500 < width < 4000
    assert 500 < height < 2000
    assert len(np.unique(image.reshape(-1, image.shape[2]), axis=0)) > 20


def test_the_report_is_printed_and_kept(finished: Path, tmp_path: Path, capsys) -> None:
    arguments = ["study", "--config", str(finished / "config.yaml"), "--out", str(tmp_path), "--name", "b"]
    assert main(arguments) == 0
    output = capsys.readouterr()
    assert output.err == ""
    lines = output.out.splitlines()
    assert lines[-1] == f"run folder: {tmp_path / 'b'}"
    assert "k = 4 of 9 directions" in output.out
    report = (tmp_path / "b" / "study.md").read_text(encoding="utf-8")
    assert report == (finished / "study.md").read_text(encoding="utf-8")
    for line in lines:
        if line.startswith(("| 0.5 ", "| by chance ")):
            assert line in report.splitlines()
    # All k stand in the report alone.
    assert sum(line.startswith("| 0.5  | ") for line in lines) == 1
    assert sum(line.startswith("| 0.5  | ") for line in report.splitlines()) == 8
    first, second = (
        json.loads((folder / "metrics.json").read_text()) for folder in (finished, tmp_path / "b")
    )
    assert first["trainings"] == second["trainings"]


def test_candidate_sets(tmp_path: Path) -> None:
    arguments = [*TINY, "--noise", "partial", "--rates", "0.3", "--model", "linear", "--samples", "200"]
    assert main([*arguments, "--out", str(tmp_path), "--name", "a"]) == 0
    metrics = json.loads((tmp_path / "a" / "metrics.json").read_text())
    assert metrics["features"] == 64
    clean, noisy = metrics["trainings"]
    assert clean["wrong_entries"] == 0
    assert noisy["wrong_entries"] == pytest.approx(0.9 * 0.3, abs=0.03)


def test_labels_that_no_rate_makes_wrong_can_be_drawn(tmp_path: Path) -> None:
    assert main([*TINY, "--rates", "1e-6", "--out", str(tmp_path), "--name", "a"]) == 0
    noisy = json.loads((tmp_path / "a" / "metrics.json").read_text())["trainings"][1]
    assert noisy["wrong_rows"] == 0
    assert {turn["bound"] for turn in noisy["turns"]} == {0.0}


def test_settings() -> None:
    assert parse_study([]) == StudyConfig()
    assert parse_study(["--rates", "0.5", "0.1", "0.5"]).rates == (0.0, 0.1, 0.5)
    training = StudyConfig(epochs=3, hidden=(5,), noise="pair").training(0.25)
    assert training == TrainConfig(
        epochs=3, hidden=(5,), noise="pair", noise_rate=0.25, methods=("plain",), holdout_fraction=0.0
    )
    assert StudyConfig(**StudyConfig(rank=3).as_dict()) == StudyConfig(rank=3)


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (["--noise", "own"], ["expected --noise to be of a kind that has a rate: symmetric", "got 'own'"]),
        (["--noise", "human:f.pt#worse_label"], ["kind that has a rate", "got 'human:f.pt#worse_label'"]),
        (["--noise", "file:labels.npz"], ["kind that has a rate", "got 'file:labels.npz'"]),
        (["--noise", "auto"], ["kind that has a rate", "got 'auto'"]),
        (["--noise", "none"], ["kind that has a rate", "got 'none'"]),
        (["--noise", "symetric"], ["unknown label noise 'symetric'", "nearest is 'symmetric'"]),
        (["--rates", "0"], ["expected --rates to have at least one above 0"]),
        (["--rates", "0.5", "1"], ["expected --rates in [0, 1), got 1"]),
        (["--rates", "-0.1"], ["expected --rates in [0, 1), got -0.1"]),
        (["--rates", "much"], ["rates", "float", "much"]),
        (["--ridge", "0"], ["expected --ridge above 0 and finite, got 0"]),
        (["--ridge", "null"], ["ridge", "float"]),
        (["--rank", "0"], ["expected --rank at least 1, got 0"]),
        (
            ["--rank", "9", "--epochs", "1"],
            ["expected --rank below the 9 directions of the ridge head, got 9"],
        ),
        (["--seeds", "0"], ["expected --seeds at least 1, got 0"]),
        (["--model", "mpl"], ["unknown model 'mpl'", "nearest is 'mlp'"]),
        (["--methods", "plain"], ["unknown option '--methods'"]),
        (["--noise-rate", "0.2"], ["unknown option '--noise-rate'"]),
        (["--resume", "a"], ["unknown option '--resume'"]),
        (["--tail", "zero"], ["unknown option '--tail'"]),
        (["--samples", "1000000"], ["expected --samples of at most the 1437"]),
        (["--optimizer", "sgd", "--lr", "1e9", "--epochs", "1"], ["training diverged"]),
        (["--name", "a/b"], ["expected --name to be the name of a folder"]),
        (["--config", "c.yaml"], ["c.yaml"]),
    ],
    ids=lambda value: " ".join(value),
)
def test_a_mistake_is_one_line_and_leaves_no_folder(
    arguments: list[str], expected: list[str], tmp_path: Path, capsys, monkeypatch
) -> None:
    monkeypatch.chdir(tmp_path)
    assert main(["study", *arguments]) == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1
    assert error.startswith("lip-fast study: ")
    for part in expected:
        assert part in error
    assert list(tmp_path.iterdir()) == []


def test_settings_of_lip_are_no_settings_of_a_study(tmp_path: Path, capsys) -> None:
    (tmp_path / "c.yaml").write_text("clip: true")
    assert main(["study", "--config", str(tmp_path / "c.yaml")]) == 2
    assert "unknown setting 'clip'" in capsys.readouterr().err


@pytest.mark.parametrize("place", ["train_network", "save_angles"])
def test_ctrl_c_leaves_nothing(place: str, tmp_path: Path, capsys, monkeypatch) -> None:
    def interrupt(*arguments: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(f"lip_fast.harness.commands.study.{place}", interrupt)
    assert main([*TINY, "--rates", "0.5", "--out", str(tmp_path / "runs")]) == 130
    assert capsys.readouterr().err == "\nlip-fast study: stopped\n"
    assert list(tmp_path.iterdir()) == []


def test_help_names_the_settings(capsys) -> None:
    with pytest.raises(SystemExit, match="0"):
        main(["study", "--help"])
    text = capsys.readouterr().out
    for option in ("--rates", "--ridge", "--rank", "--noise"):
        assert option in text
    assert "--methods" not in text
