import importlib.util
import json
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from lip_fast.cli import main

ARGUMENTS = ["train", "--epochs", "2", "--seeds", "2", "--hidden", "8", "--samples", "200", "--name", "a"]
CURVES = ("test_accuracy", "validation", "memorised", "train_loss", "step_seconds", "lip_seconds")


def curves_of(folder: Path) -> dict[tuple[str, str], list[float]]:
    """What is to be drawn, by folder and name."""
    metrics = json.loads((folder / "metrics.json").read_text())
    return {
        (f"{method}-seed{entry['seed']}", name): record[name]
        for entry in metrics["seeds"]
        for method, record in entry["methods"].items()
        for name in CURVES
    }


def test_without_the_package_it_is_one_line_before_anything_begins(
    tmp_path: Path, monkeypatch, capsys
) -> None:
    monkeypatch.chdir(tmp_path)
    find_spec = importlib.util.find_spec
    monkeypatch.setattr(
        importlib.util,
        "find_spec",
        lambda name, *rest: None if name == "tensorboard" else find_spec(name, *rest),
    )
    assert main([*ARGUMENTS, "--tensorboard", "true"]) == 2
    output = capsys.readouterr()
    assert output.err == (
        "lip-fast train: expected the package tensorboard for --tensorboard true: pip install tensorboard\n"
    )
    assert list(tmp_path.iterdir()) == []
    assert main(ARGUMENTS) == 0  # nobody else needs it
    assert not (tmp_path / "runs" / "a" / "tensorboard").exists()


def test_every_curve_is_written(tmp_path: Path, monkeypatch) -> None:
    """With a writer in the place of the package's."""
    written: dict[tuple[str, str], list[float]] = {}

    class Writer:
        def __init__(self, folder: str) -> None:
            self.folder = Path(folder)
            assert self.folder.parent == Path("runs/a/tensorboard")

        def __enter__(self) -> "Writer":
            return self

        def __exit__(self, *error: object) -> None:
            pass

        def add_scalar(self, name: str, value: float, epoch: int) -> None:
            values = written.setdefault((self.folder.name, name), [])
            values.append(value)
            assert epoch == len(values)

    module: Any = ModuleType("torch.utils.tensorboard")
    module.SummaryWriter = Writer
    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", module)
    monkeypatch.setattr("lip_fast.harness.runs.single.check_installed", lambda: None)
    monkeypatch.chdir(tmp_path)
    assert main([*ARGUMENTS, "--tensorboard", "true"]) == 0
    assert written == curves_of(tmp_path / "runs" / "a")
    assert all(len(values) == 2 for values in written.values())
    assert len(written) == 2 * 4 * len(CURVES)  # seeds and methods


@pytest.mark.skipif(importlib.util.find_spec("tensorboard") is None, reason="needs tensorboard")
@pytest.mark.filterwarnings("ignore")
def test_tensorboard_reads_them(tmp_path: Path, monkeypatch) -> None:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    monkeypatch.chdir(tmp_path)
    assert main([*ARGUMENTS, "--tensorboard", "true"]) == 0
    for (folder, name), values in curves_of(tmp_path / "runs" / "a").items():
        events = EventAccumulator(str(tmp_path / "runs" / "a" / "tensorboard" / folder)).Reload()
        found = [(event.step, event.value) for event in events.Scalars(name)]
        assert found == [(epoch, pytest.approx(value, rel=1e-6)) for epoch, value in enumerate(values, 1)]
