from pathlib import Path
from typing import Any

import pytest
from distributed.launch import launch

pytestmark = pytest.mark.process


@pytest.mark.parametrize("world", [pytest.param(2, marks=pytest.mark.smoke), 4])
def test_every_layout_does_what_one_process_does(world: int, tmp_path: Path) -> None:
    results: dict[str, Any] = launch(world, "distributed.layouts:compare", tmp_path)
    assert len(results) == 10 * {2: 13, 4: 16}[world]
    wrong = []
    for name, result in results.items():
        # float64 differs by rounding; float32 by that of products in another order, over four steps.
        limit = 3e-6 if result["float32"] else 1e-12
        stats = result["stats"]
        sound = stats["applied"] == stats["steps"] == 4 and stats["masked"] == 0
        if not (result["distance"] < limit and result["equal"] and sound and result["moved"] > 0.1):
            wrong.append((name, result))
    assert not wrong
