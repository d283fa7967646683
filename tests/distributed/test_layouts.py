from pathlib import Path
from typing import Any

import pytest
from distributed.launch import launch

pytestmark = pytest.mark.process


@pytest.mark.parametrize("world", [pytest.param(2, marks=pytest.mark.smoke), 4])
def test_every_layout_does_what_one_process_does(world: int, tmp_path: Path) -> None:
    results: dict[str, Any] = launch(world, "distributed.layouts:compare", tmp_path)
    assert len(results) == 12 * {2: 13, 4: 16}[world]
    wrong = []
    for name, result in results.items():
        stats = result["stats"]
        sound = stats["applied"] == stats["steps"] == 4 and stats["masked"] == 0
        if not (result["distance"] < result["limit"] and result["equal"] and sound and result["moved"] > 0.1):
            wrong.append((name, result))
    assert not wrong
