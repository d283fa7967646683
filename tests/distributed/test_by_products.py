from pathlib import Path

import pytest
from distributed.launch import launch

pytestmark = pytest.mark.process


def test_replicas_decompose_exactly_what_they_cannot_split(tmp_path: Path) -> None:
    assert launch(2, "distributed.by_products:unsound", tmp_path) == {
        "applied": 6,
        "by products": True,
        "equal": True,
    }
