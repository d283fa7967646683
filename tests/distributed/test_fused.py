from pathlib import Path

import pytest
import torch
from distributed.launch import launch

from lip_fast import ops

pytestmark = pytest.mark.process


@pytest.mark.skipif(not ops.fuses_updates(torch.device("cpu")), reason="needs the interpreter of Triton")
def test_parts_of_a_weight_are_updated_within_the_step(tmp_path: Path) -> None:
    results = launch(2, "distributed.fused:compare", tmp_path)
    assert len(results) == 12
    for name, result in results.items():
        # Rounding of another order of sums over four steps; refitted values of small batches carry it on.
        assert result["distance"] < 2e-4, name
        assert result["equal"], name
        # All but the first step; a weight that is split by feature is updated before.
        assert result["fused"] == (0 if "by feature" in name else 3), name


@pytest.mark.skipif(ops.fuses_updates(torch.device("cpu")), reason="asks nothing of the kernels")
def test_replicas_that_are_split_by_products_are_updated_within_the_step(tmp_path: Path) -> None:
    results = launch(2, "distributed.fused:by_products", tmp_path)
    for name, result in results.items():
        assert result["distance"] < 1e-3, name
        assert result["equal"], name
        # All but the first step; parts are updated before.
        assert result["fused"] == (0 if name.startswith("by") else 3), name
