"""The benchmarks of the default step: what it costs, every column of it, and where it leads."""

import pytest
import torch
from torch import nn

from benchmarks import first_use, trajectory
from lip_fast import flops


def test_a_head_and_a_network_are_measured_and_told() -> None:
    with torch.random.fork_rng():
        head = first_use.measure(300, 310, 150)
        network = nn.Sequential(nn.Linear(20, 32), nn.ReLU(), nn.Linear(32, 10))
        last = network[2]
        assert isinstance(last, nn.Linear)
        share = first_use.share(network, last, torch.randn(16, 20), 8)
    assert head["path"] == "by products"
    assert all(value > 0 for value in head.values() if isinstance(value, float))
    text = first_use.tables({"heads": [head], "networks": {"two layers": share}})
    assert "300 x 310, k = 150 | by products" in text
    assert "two layers | 8" in text


def test_a_trajectory_is_the_same_again_and_another_without_lip(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(flops, "products_pay", lambda *_: True)
    shape, name = trajectory.SHAPES[0], "AdamW, 1e-3"
    exact, _ = trajectory.run(shape, name, 180, steps=3, tail_rank="all")
    weight, stats = trajectory.run(shape, name, 180, steps=3)
    assert stats["applied"] == 3
    assert stats["gamma"] is not None
    perturbed, _ = trajectory.run(shape, name, 180, steps=3, tail_rank="all", perturbed=1e-6)
    plain, _ = trajectory.run(shape, name, None, steps=3)
    assert trajectory.distance(weight, exact) < 1e-4
    assert 0 < trajectory.distance(perturbed, exact) < 1e-3
    assert trajectory.distance(plain, exact) > 1e-3
