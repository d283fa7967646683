"""Independent random streams from one seed, without the global random state."""

from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
import torch

__all__ = ["BatchOrder", "initialisation", "stream"]

# The place of a purpose in this tuple enters its stream: append, never reorder.
PURPOSES = ("noise", "initialisation", "order", "split", "holdout")


def stream(seed: int, purpose: str) -> np.random.Generator:
    """The generator of one purpose; streams of different seeds or purposes are independent.

    Args:
        seed: the experiment's seed, at least 0.
        purpose: one of ``PURPOSES``.
    """
    return np.random.default_rng([seed, PURPOSES.index(purpose)])


class BatchOrder:
    """The order in which each epoch takes the samples: the same for every method, and in every process.

    It is a function of seed and epoch alone, so that a place in it is told by two numbers: the epoch and the
    batch.

    Args:
        seed: the experiment's seed, at least 0.
        samples: number of training samples.
    """

    def __init__(self, seed: int, samples: int) -> None:
        self._seed, self._samples = seed, samples
        self._restart()

    def epoch(self, number: int) -> torch.Tensor:
        """(samples,) int64, a permutation; quickest in the order of epochs, counted from 0."""
        if number < self._next:
            self._restart()
        while True:
            order = torch.randperm(self._samples, generator=self._generator)
            self._next += 1
            if self._next > number:
                return order

    def _restart(self) -> None:
        self._next = 0
        self._generator = torch.Generator().manual_seed(_torch_seed(self._seed, "order"))


@contextmanager
def initialisation(seed: int) -> Iterator[None]:
    """Inside, torch's layers start from ``seed``; outside, the global state is as it was."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(_torch_seed(seed, "initialisation"))
        yield


def _torch_seed(seed: int, purpose: str) -> int:
    return int(stream(seed, purpose).integers(2**63))
