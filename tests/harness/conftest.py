from collections.abc import Iterator

import pytest
import torch

from lip_fast.harness.data import Dataset, load


@pytest.fixture(scope="session")
def digits() -> Dataset:
    return load("digits")


@pytest.fixture(autouse=True)
def _one_thread() -> Iterator[None]:
    """As the command line does by default; for other tests the number is as it was."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)
