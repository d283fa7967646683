"""The benchmark of a step on a CPU beside its floor: every variant takes its turns, and is told."""

import pytest

from benchmarks import host_step
from lip_fast import flops


def test_steps_are_measured_and_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(host_step, "SECONDS", 0.0)
    monkeypatch.setattr(host_step, "ROUNDS", 1)
    monkeypatch.setattr(flops, "products_pay", lambda *_: True)
    dropped = host_step.of_step(40, 60, 8, 5, "SGD", "drop")
    kept = host_step.of_step(10, 60, 4, 3, "AdamW", "keep")
    assert set(dropped) == {*kept, "composed"}
    assert dropped["floor"] == dropped["base"] + dropped["products"]
    split = host_step.of_split(140, 150, 80)
    assert all(value > 0 for found in (dropped, kept, split) for value in found.values())
    text = host_step.tables(
        [((40, 60, 8, 5, "SGD", "drop"), {1: dropped}), ((10, 60, 4, 3, "AdamW", "keep"), {1: kept})],
        [((140, 150, 80), {1: split})],
        (1,),
    )
    assert "| 40 x 60 | 8 + 5 | SGD, drop |" in text
    assert f"{dropped['lip'] / dropped['floor']:.2f}, {dropped['composed'] / dropped['floor']:.2f}" in text
    assert "| 140 x 150, k = 80 |" in text
    assert f"| {split['lip'] / split['products']:.2f} |" in text
