"""Independent random streams from one seed, without the global random state."""

from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
import torch

__all__ = ["BatchOrder", "initialisation", "stream", "torch_stream"]

# The stream of a purpose depends on its place in this tuple: append, never reorder.
PURPOSES = (
    "noise",
    "initialisation",
    "order",
    "split",
    "holdout",
    "subset",
    "clean",
    "folds",
    "augmentation",
    "weights",
)


def stream(seed: int, purpose: str, *place: int) -> np.random.Generator:
    """The generator of one purpose; streams of different seeds, purposes or places are independent.

    Args:
        seed: the experiment's seed, at least 0.
        purpose: one of ``PURPOSES``.
        place: numbers that tell the streams of one purpose apart, such as epoch and batch.
    """
    return np.random.default_rng([seed, PURPOSES.index(purpose), *place])


def torch_stream(seed: int, purpose: str, *place: int) -> torch.Generator:
    """The generator of :func:`stream` for torch, on the CPU."""
    return torch.Generator().manual_seed(int(stream(seed, purpose, *place).integers(2**63)))


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
        self._generator = torch_stream(self._seed, "order")


@contextmanager
def initialisation(seed: int) -> Iterator[None]:
    """Inside, torch's layers start from ``seed``; outside, the global state is as it was."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(torch_stream(seed, "initialisation").initial_seed())
        yield
