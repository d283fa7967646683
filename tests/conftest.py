"""Fixtures that every test gets, and the laws of the two tiers of tests.

A test that starts a process (a compiler, an emulator, an interpreter) is marked ``process`` and fails without
the mark; git, which answers in milliseconds, needs none. ``make test`` runs those of them that are marked
``smoke`` as well, and no other.
"""

import importlib
import multiprocessing.util
import os
import signal
import sys
from collections.abc import Iterator
from typing import Any

import pytest
import torch

from lip_fast import host
from lip_fast.backends import triton

# Events of Python's audit hooks by which a process starts.
_STARTS = {"subprocess.Popen", "os.exec", "os.fork", "os.forkpty", "os.posix_spawn", "os.spawn", "os.system"}
_spawn = multiprocessing.util.spawnv_passfds


class _Watch:
    """The test that must start no process, and what it started in spite of that."""

    test: str | None = None
    started: list[str]


def _audit(event: str, arguments: tuple[Any, ...]) -> None:
    if event in _STARTS and _Watch.test is not None and arguments[:1] != ("git",):
        started = (
            f"{_Watch.test} starts a process ({event} {arguments!r:.200}): mark it as pytest.mark.process"
        )
        _Watch.started.append(started)
        raise RuntimeError(started)


def _audited_spawn(*arguments: Any) -> int:
    """How multiprocessing starts processes that are no forks, which raises no event of its own."""
    sys.audit("os.spawn", *arguments)
    return _spawn(*arguments)


if os.environ.get("TRITON_INTERPRET") == "1" and triton.problem() is None:
    importlib.import_module("interpreted").install()

# Hooks cannot be removed: one for good, which looks only while a test without the mark runs.
sys.addaudithook(_audit)
multiprocessing.util.spawnv_passfds = _audited_spawn


@pytest.hookimpl(wrapper=True, tryfirst=True)
def pytest_runtest_protocol(item: pytest.Item) -> Iterator[None]:
    """Watch a test and its fixtures, those of its module and of the session included."""
    _Watch.started = []
    _Watch.test = None if item.get_closest_marker("process") else item.nodeid
    try:
        return (yield)
    finally:
        _Watch.test = None


@pytest.fixture(autouse=True)
def _no_process_without_the_mark() -> Iterator[None]:
    """Also where the code under test caught the error."""
    yield
    assert not _Watch.started, _Watch.started[0]


@pytest.fixture(autouse=True)
def _poisoned_memory() -> Iterator[None]:
    """torch.empty comes filled with NaN (or the largest integer): what is not written is seen."""
    assert torch.utils.deterministic.fill_uninitialized_memory
    torch.use_deterministic_algorithms(True)
    yield
    torch.use_deterministic_algorithms(False)


@pytest.fixture(autouse=True)
def _global_random_state_is_left_alone() -> Iterator[None]:
    """Tests draw from generators of their own, and so does the package."""
    before = torch.get_rng_state()
    yield
    assert torch.equal(before, torch.get_rng_state()), "the global random state was touched"


@pytest.fixture(params=["host", "device"])
def arithmetic(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """The test runs twice: with the short ways round host values, and with what other devices run."""
    if request.param == "device":
        monkeypatch.setattr(host, "READABLE", frozenset())
    return request.param


@pytest.fixture
def generator() -> torch.Generator:
    return torch.Generator().manual_seed(0)


@pytest.fixture(scope="session", autouse=True)
def _ctrl_c_is_heard() -> Iterator[None]:
    """By the processes that tests start: what was started in the background hands down its deafness."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)
