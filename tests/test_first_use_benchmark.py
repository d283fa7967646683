"""The benchmark of README's first example: every column is measured and told."""

import torch
from torch import nn

from benchmarks import first_use


def test_a_head_and_a_network_are_measured_and_told() -> None:
    with torch.random.fork_rng():
        head = first_use.measure(140, 150, 100)
        network = nn.Sequential(nn.Linear(20, 32), nn.ReLU(), nn.Linear(32, 10))
        last = network[2]
        assert isinstance(last, nn.Linear)
        share = first_use.share(network, last, torch.randn(16, 20), 8)
    assert head["path"] == "by products"
    assert all(value > 0 for value in head.values() if isinstance(value, float))
    text = first_use.tables({"heads": [head], "networks": {"two layers": share}})
    assert "140 x 150, k = 100 | by products" in text
    assert "two layers | 8" in text
