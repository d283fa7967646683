from pathlib import Path
from typing import Any

import pytest
from distributed.launch import launch

pytestmark = pytest.mark.process


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("checkpoints")


@pytest.fixture(scope="module")
def saved(folder: Path) -> dict[str, Any]:
    """What two processes found that wrote checkpoints and went on from them."""
    found: dict[str, Any] = launch(2, "distributed.checkpoints:here", folder, str(folder))
    return found


def in_all_steps(result: dict[str, Any]) -> bool:
    stats = result["stats"]
    return bool(stats["steps"] == stats["applied"] == 6)


def test_as_many_processes_go_on_with_the_same_bits(saved: dict[str, Any]) -> None:
    assert len(saved["save"]) == 6
    for name, result in saved["save"].items():
        assert result["same"], name
        assert result["moved"] > 0.01
        assert in_all_steps(result), (name, result)


def test_replicas_go_on_from_a_file_of_the_first(saved: dict[str, Any]) -> None:
    assert len(saved["plainly"]) == 2
    for name, result in saved["plainly"].items():
        assert result["same"], name
        assert in_all_steps(result), (name, result)


@pytest.mark.parametrize("world", [1, 4])
def test_other_numbers_of_processes_go_on_alike(saved: dict[str, Any], folder: Path, world: int) -> None:
    results = launch(world, "distributed.checkpoints:resume", folder, str(folder))
    assert len(results) == len(saved["save"])
    for name, result in results.items():
        assert result["distance"] < 1e-11, (name, result)
        assert result["equal"], name
        assert in_all_steps(result), (name, result)


def test_states_hold_what_any_process_may_load(saved: dict[str, Any]) -> None:
    for name, result in saved["contents"].items():
        # Those of one process among several that see different batches are left out.
        assert result["pending"] == (1 if name.startswith("TP") else 0), name
        assert result["C"] == ("decay" in name and not name.startswith("DDP")), name
