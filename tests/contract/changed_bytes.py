"""Weights against what they should be, byte by byte."""

from collections.abc import Mapping

import torch
from torch import Tensor

Weights = Mapping[str, Tensor]


class ChangedBytes:
    """Counts the bytes that differ over all comparisons; each comparison asserts that there are none."""

    def __init__(self) -> None:
        self.count = 0

    def check(self, got: Weights, expected: Weights, what: str = "the weights are not what they should be"):
        """AssertionError that says ``what``, where the named tensors are not the same bytes."""
        assert got.keys() == expected.keys()
        different = 0
        for name, tensor in got.items():
            assert (tensor.shape, tensor.dtype) == (expected[name].shape, expected[name].dtype), what
            different += int((_bytes(tensor) != _bytes(expected[name])).sum())
        self.count += different
        assert not different, f"{what}: {different} bytes differ"


def _bytes(tensor: Tensor) -> Tensor:
    return tensor.detach().contiguous().flatten().view(torch.uint8)
