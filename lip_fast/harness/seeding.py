"""Independent random streams from one seed, without the global random state."""

from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
import torch

__all__ = ["initialisation", "order_generator", "stream"]

# The place of a purpose in this tuple enters its stream: append, never reorder.
PURPOSES = ("noise", "initialisation", "order", "split", "holdout")


def stream(seed: int, purpose: str) -> np.random.Generator:
    """The generator of one purpose; streams of different seeds or purposes are independent.

    Args:
        seed: the experiment's seed, at least 0.
        purpose: one of ``PURPOSES``.
    """
    return np.random.default_rng([seed, PURPOSES.index(purpose)])


def order_generator(seed: int) -> torch.Generator:
    """The torch generator that shuffles the batches: the same batches for every method."""
    return torch.Generator().manual_seed(_torch_seed(seed, "order"))


@contextmanager
def initialisation(seed: int) -> Iterator[None]:
    """Inside, torch's layers start from ``seed``; outside, the global state is as it was."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(_torch_seed(seed, "initialisation"))
        yield


def _torch_seed(seed: int, purpose: str) -> int:
    return int(stream(seed, purpose).integers(2**63))
