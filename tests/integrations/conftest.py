"""Libraries that train seed, and draw, as they like."""

import os
import random
import sys
from collections.abc import Iterator

import numpy as np
import pytest
import torch


@pytest.fixture(autouse=True)
def _their_own_random_state(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    python, numpy, threads = random.getstate(), np.random.get_state(), torch.get_num_threads()
    environment = dict(os.environ)
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    torch.set_num_threads(1)
    with torch.random.fork_rng(devices=[]):
        yield
    torch.set_num_threads(threads)
    random.setstate(python)
    np.random.set_state(numpy)
    for name in set(os.environ) - set(environment):
        del os.environ[name]


@pytest.fixture(autouse=True)
def _no_state_of_other_accelerators() -> Iterator[None]:
    _forget_accelerators()
    yield
    _forget_accelerators()


def _forget_accelerators() -> None:
    """What accelerate keeps for the whole process, where something has imported it."""
    if (states := sys.modules.get("accelerate.state")) is not None:
        for state in (states.AcceleratorState, states.GradientState, states.PartialState):
            state._reset_state()
