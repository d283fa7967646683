import itertools
import json
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from harness.listed_figures import list_figures
from matplotlib.image import imread

from lip_fast.cli import main
from lip_fast.cli.errors import UserError
from lip_fast.harness.commands import study
from lip_fast.harness.runs.folder import RunFolder
from lip_fast.harness.settings.arguments import parse
from lip_fast.harness.settings.study import StudyConfig
from lip_fast.harness.settings.train import TrainConfig
from lip_fast.harness.studies import page

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


@pytest.mark.usefixtures("listed")
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
    # A pixel as one number: whole rows are sorted far more slowly.
    pixels = (255 * image).round().astype(int) @ 256 ** np.arange(image.shape[2])
    assert len(np.unique(pixels)) > 20


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


@pytest.mark.usefixtures("listed")
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
    assert parse([], StudyConfig) == (StudyConfig(), None)
    assert parse(["--rates", "0.5", "0.1", "0.5"], StudyConfig).config.rates == (0.0, 0.1, 0.5)
    assert parse(["--resume", "a"], StudyConfig) == (StudyConfig(), Path("a"))
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
        (["--resume", "a"], ["expected --resume to be the folder of a run, found none at a"]),
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


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (["--rank", "9"], "expected --rank below the 9 directions of the ridge head, got 9"),
        (["--hidden", "5", "--rank", "5"], "expected --rank below the 5 directions of the ridge head, got 5"),
        (["--hidden", "1"], "at least two directions to compare, one less than classes, got 1 with 1 feat"),
    ],
)
def test_too_few_directions_are_told_before_any_training(
    arguments: list[str], expected: str, tmp_path: Path, capsys, monkeypatch
) -> None:
    monkeypatch.setattr("lip_fast.harness.commands.study.train_network", None)
    monkeypatch.chdir(tmp_path)
    assert main(["study", *arguments]) == 2
    assert expected in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []


def test_too_few_directions_of_the_trained_network_are_told(tmp_path: Path, capsys, monkeypatch) -> None:
    # As with units that died in training: as many directions as classes and widths allow are not there.
    monkeypatch.setattr("lip_fast.harness.studies.results.directions", lambda W: 4)
    assert main([*TINY, "--rank", "4", "--rates", "0.5", "--out", str(tmp_path / "runs")]) == 2
    assert "expected --rank below the 4 directions of the ridge head, got 4" in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []


# To be continued ----------------------------------------------------------------------------------------


LONGER = ["study", "--epochs", "2", "--seeds", "2", "--hidden", "16", "--rates", "0.3", "0.6"]
LONGER += ["--out", "runs", "--name", "a"]


def stop_in(patch: pytest.MonkeyPatch, place: str, calls: int) -> None:
    """Ctrl-C in the call after so many."""
    module = page if place == "save_angles" else study
    original, count = getattr(module, place), itertools.count()

    def stopping(*arguments: Any) -> Any:
        if next(count) == calls:
            raise KeyboardInterrupt
        return original(*arguments)

    patch.setattr(module, place, stopping)


@pytest.fixture
def listed(monkeypatch: pytest.MonkeyPatch) -> None:
    list_figures(monkeypatch)


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    out = tmp_path_factory.mktemp("whole")
    with pytest.MonkeyPatch.context() as patch:
        list_figures(patch)
        patch.chdir(out)
        assert main(LONGER) == 0
    return contents(out / "runs" / "a")


@pytest.fixture
def interrupted(listed: None, tmp_path: Path, monkeypatch, capsys) -> Path:
    """Stopped in the fifth of six networks."""
    monkeypatch.chdir(tmp_path)
    with monkeypatch.context() as patch:
        stop_in(patch, "train_network", 4)
        assert main(LONGER) == 130
    capsys.readouterr()
    return Path("runs/a")


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def refusal(arguments: Sequence[str], capsys) -> str:
    assert main(arguments) == 2
    error: str = capsys.readouterr().err
    assert error.count("\n") == 1
    return error


def edited(folder: Path, **entries: object) -> None:
    state = torch.load(folder / "checkpoint.pt", weights_only=True)
    assert entries.keys() <= state.keys()
    torch.save({**state, **entries}, folder / "checkpoint.pt")


def test_ctrl_c_in_the_first_network_leaves_nothing(tmp_path: Path, capsys, monkeypatch) -> None:
    stop_in(monkeypatch, "train_network", 0)
    assert main([*TINY, "--rates", "0.5", "--out", str(tmp_path / "runs")]) == 130
    assert capsys.readouterr().err == "\nlip-fast study: stopped\n"
    assert list(tmp_path.iterdir()) == []


@pytest.mark.usefixtures("listed")
@pytest.mark.parametrize("networks", range(1, 6))
def test_ctrl_c_and_resume_give_what_an_uninterrupted_study_gives(
    networks: int, whole: dict[str, bytes], tmp_path: Path, capsys, monkeypatch
) -> None:
    monkeypatch.chdir(tmp_path)
    with monkeypatch.context() as patch:
        stop_in(patch, "train_network", networks)
        assert main(LONGER) == 130
    stopped = "\nlip-fast study: stopped; to continue: lip-fast study --resume runs/a\n"
    assert capsys.readouterr().err == stopped
    assert sorted(contents(Path("runs/a"))) == ["checkpoint.pt", "config.yaml"]
    trained = []
    original = study.train_network
    with monkeypatch.context() as patch:
        patch.setattr(study, "train_network", lambda *a: (trained.append(a[2]), original(*a))[1])
        assert main(["study", "--resume", "runs/a"]) == 0
    assert trained == [0, 0, 0, 1, 1, 1][networks:]
    output = capsys.readouterr()
    assert output.err == ""
    assert f"\ncontinued after {networks} of 6 networks\n" in output.out
    assert output.out.endswith("\nrun folder: runs/a\n")
    assert contents(Path("runs/a")) == whole


@pytest.mark.usefixtures("listed")
def test_ctrl_c_at_the_end_and_in_every_network(whole: dict[str, bytes], tmp_path: Path, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    arguments = LONGER
    for place, calls in [*[("train_network", 1)] * 5, ("save_angles", 0), ("save_angles", 0)]:
        with monkeypatch.context() as patch:
            stop_in(patch, place, calls)
            assert main(arguments) == 130
        arguments = ["study", "--resume", "runs/a"]
    assert main(arguments) == 0
    assert contents(Path("runs/a")) == whole


def test_killed_before_the_first_network_begins_anew(interrupted: Path, whole: dict[str, bytes]) -> None:
    (interrupted / "checkpoint.pt").unlink()
    assert main(["study", "--resume", str(interrupted)]) == 0
    assert contents(interrupted) == whole


def test_a_failure_of_a_resumed_study_throws_nothing_away(interrupted: Path, capsys, monkeypatch) -> None:
    before = contents(interrupted)

    def diverge(*arguments: object) -> None:
        raise UserError("training diverged")

    monkeypatch.setattr(study, "train_network", diverge)
    assert "training diverged" in refusal(["study", "--resume", str(interrupted)], capsys)
    assert contents(interrupted) == before


def test_a_complete_study_is_left_as_it_is(interrupted: Path, capsys) -> None:
    assert main(["study", "--resume", str(interrupted)]) == 0
    before = contents(interrupted)
    capsys.readouterr()
    assert main(["study", "--resume", str(interrupted)]) == 0
    assert capsys.readouterr().out == "nothing to resume: the study in runs/a is complete\n"
    assert contents(interrupted) == before
    error = refusal(["study", "--resume", str(interrupted), "--epochs", "9"], capsys)
    assert "--epochs 2, got 9" in error


def test_settings_are_those_of_the_study(interrupted: Path, capsys) -> None:
    before = contents(interrupted)
    resume = ["study", "--resume", str(interrupted)]
    error = refusal([*resume, "--rates", "0.1", "--epochs", "3", "--rank", "2"], capsys)
    assert "expected the settings of runs/a" in error
    for conflict in ("--rates 0.0 0.3 0.6, got 0.0 0.1", "--epochs 2, got 3", "--rank null, got 2"):
        assert conflict in error
    assert contents(interrupted) == before
    # The same ones may be said again.
    assert main([*resume, *LONGER[1:]]) == 0


@pytest.mark.parametrize(
    ("entries", "expected"),
    [
        ({"format": "lip-fast study, 99"}, "expected a checkpoint of 'lip-fast study, 1' in runs/a"),
        ({"data": "0" * 64}, "expected data with hash 000000000000, with which the run began"),
        ({"settings": {}}, "in the settings of runs/a, with which its checkpoint was made"),
        ({"labels_sha256": "0" * 64}, "expected labels of seed 1 with hash 000000000000"),
        ({"measured": [{}]}, "expected the checkpoint in runs/a to fit"),
        ({"measured": []}, "expected the networks of these settings in runs/a, found others"),
        ({"clean": None}, "expected the checkpoint in runs/a to fit"),
    ],
)
def test_what_cannot_be_resumed_is_said_in_one_line(
    entries: dict[str, object], expected: str, interrupted: Path, capsys
) -> None:
    edited(interrupted, **entries)
    before = contents(interrupted)
    assert expected in refusal(["study", "--resume", str(interrupted)], capsys)
    assert contents(interrupted) == before


def test_other_software_is_told(interrupted: Path, capsys) -> None:
    edited(interrupted, software={"torch": "1.0"})
    assert main(["study", "--resume", str(interrupted)]) == 0
    error = capsys.readouterr().err
    assert error == f"lip-fast study: torch was 1.0, is {torch.__version__}; the bits may change with it\n"


def test_other_software_is_told_again_by_the_next(interrupted: Path, capsys, monkeypatch) -> None:
    edited(interrupted, software={"torch": "1.0"})
    with monkeypatch.context() as patch:
        stop_in(patch, "train_network", 1)
        assert main(["study", "--resume", str(interrupted)]) == 130
    capsys.readouterr()
    assert main(["study", "--resume", str(interrupted)]) == 0
    assert f"torch was 1.0, is {torch.__version__}" in capsys.readouterr().err


def test_train_and_study_do_not_continue_each_other(interrupted: Path, capsys) -> None:
    error = refusal(["train", "--resume", str(interrupted)], capsys)
    settings = interrupted / "config.yaml"
    assert f"expected settings of lip-fast train in {settings}, found those of lip-fast study" in error
    assert main(["train", "--epochs", "1", "--seeds", "1", "--name", "b"]) == 0
    capsys.readouterr()
    settings = Path("runs/b/config.yaml")
    error = refusal(["study", "--resume", "runs/b"], capsys)
    assert f"expected settings of lip-fast study in {settings}, found those of lip-fast train" in error
    # The checkpoint alone.
    checkpoint = interrupted / "checkpoint.pt"
    edited(interrupted, format="lip-fast train, 2")
    assert refusal(["study", "--resume", str(interrupted)], capsys) == (
        f"lip-fast study: expected a checkpoint of 'lip-fast study, 1' in {checkpoint}, "
        "found 'lip-fast train, 2'\n"
    )


def test_the_checkpoint_of_a_study_is_none_of_train(interrupted: Path) -> None:
    assert RunFolder(interrupted, command="study").load() is not None
    with pytest.raises(UserError, match="expected a checkpoint of 'lip-fast train, 2' in"):
        RunFolder(interrupted).load()


def test_help_names_the_settings(capsys) -> None:
    with pytest.raises(SystemExit, match="0"):
        main(["study", "--help"])
    text = capsys.readouterr().out
    for option in ("--rates", "--ridge", "--rank", "--noise"):
        assert option in text
    assert "--methods" not in text
