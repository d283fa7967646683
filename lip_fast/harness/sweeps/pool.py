"""The runs of a sweep, several at once, each in a process of its own."""

import concurrent.futures
import functools
import multiprocessing
import multiprocessing.connection
import multiprocessing.synchronize
import os
import queue
import shlex
import signal
import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lip_fast.cli.errors import UserError
from lip_fast.harness.data import Dataset, load
from lip_fast.harness.noise.labels import label_warnings
from lip_fast.harness.runs.folder import CONFIG, METRICS, RunFolder, new_run, opened_run
from lip_fast.harness.runs.progress import Progress
from lip_fast.harness.runs.single import complete, prepare
from lip_fast.harness.settings.arguments import parse_stored
from lip_fast.harness.settings.train import TrainConfig
from lip_fast.harness.sweeps.rows import Unit

__all__ = ["Failure", "check_units", "continuation", "load_once", "run_units", "unit_warnings"]

# Seconds after which the parent looks again at what the processes report.
_TICK = 0.2


@dataclass(frozen=True)
class Failure:
    """A run that could not be completed.

    Attributes:
        path: of its folder, relative to that of the sweep.
        message: what was wrong.
    """

    path: Path
    message: str


def continuation(folder: Path) -> str:
    """The command that continues the sweep in ``folder``."""
    return f"lip-fast sweep --resume {shlex.quote(str(folder))}"


@functools.lru_cache(maxsize=2)
def load_once(name: str, features: str) -> Dataset:
    """The data set ``name`` with these features, kept for the next run of the process."""
    return load(name, features)


def check_units(units: Sequence[Unit]) -> dict[Path, int]:
    """Check every run before the first one starts.

    Returns:
        the number of epochs of each run's trainings.

    Raises:
        UserError: settings do not fit the data; the message names the run.
    """
    epochs = {}
    for unit in sorted(units, key=lambda unit: unit.config.data):
        try:
            epochs[unit.path] = prepare(
                unit.config, load_once(unit.config.data, unit.config.features)
            ).epochs_of_seed
        except UserError as error:
            raise UserError(f"{unit.path}: {error}") from error
    return epochs


def unit_warnings(units: Sequence[Unit]) -> list[str]:
    """What of the labels of all runs may not be as the user thinks, each once."""
    sources = sorted({(unit.config.data, unit.config.features, unit.config.noise) for unit in units})
    found = [label_warnings(noise, load_once(data, features)) for data, features, noise in sources]
    return list(dict.fromkeys(warning for warnings in found for warning in warnings))


def run_units(
    units: Sequence[Unit], folder: Path, jobs: int, on_epochs: Callable[[Path, int, str], None]
) -> list[Failure]:
    """Run what is not complete yet.

    Args:
        units: the runs, in the order to start them.
        folder: of the sweep.
        jobs: how many at once, at least 1.
        on_epochs: called with a run, how many more epochs of it are done, and what was trained.

    Returns:
        the runs that failed; the others are complete.

    Raises:
        UserError: a process was killed.
        KeyboardInterrupt: after every process has stopped; each run goes on from its last checkpoint.
    """
    context = multiprocessing.get_context("spawn")  # forks of a process with threads may hang
    told, stop = context.Queue(), context.Event()
    failures = []
    pool = concurrent.futures.ProcessPoolExecutor(
        min(jobs, len(units)) or 1, mp_context=context, initializer=_begin, initargs=(told, stop, os.getpid())
    )
    try:
        with _without_interrupts():
            tasks = {pool.submit(_run, folder, unit.path, unit.config): unit for unit in units}
        waiting = set(tasks)
        while waiting:
            done, waiting = concurrent.futures.wait(waiting, timeout=_TICK)
            _tell(told, on_epochs)
            for task in done:
                if (message := task.result()) is not None:
                    failures.append(Failure(tasks[task].path, message))
    except BrokenProcessPool as error:
        raise UserError(
            "expected the processes of the sweep to live, found one killed (for want of memory?); "
            f"to continue: {continuation(folder)}"
        ) from error
    finally:
        stop.set()
        pool.shutdown(wait=True, cancel_futures=True)
        _tell(told, on_epochs)
        told.close()
    return failures


@contextmanager
def _without_interrupts() -> Iterator[None]:
    """Processes that start inside never see Ctrl-C, which a terminal sends to all: the parent acts on it.

    One that comes meanwhile reaches the parent at the end of the block.
    """
    if not hasattr(signal, "pthread_sigmask"):  # Windows
        yield
        return
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def _tell(told: Any, on_epochs: Callable[[Path, int, str], None]) -> None:
    while True:
        try:
            on_epochs(*told.get_nowait())
        except (queue.Empty, EOFError, OSError):
            return


# In the processes ------------------------------------------------------------------------------------

_told: Any = None
_stop: multiprocessing.synchronize.Event | None = None
_parent = 0


def _begin(told: Any, stop: multiprocessing.synchronize.Event, parent: int) -> None:
    global _told, _stop, _parent
    _told, _stop, _parent = told, stop, parent
    # On systems where SIGINT could not be blocked from the start.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    threading.Thread(target=_end_with_parent, daemon=True).start()


def _end_with_parent() -> None:
    """A process whose parent was killed would wait for work for ever, and hold the folder of its run."""
    parent = multiprocessing.parent_process()
    assert parent is not None
    multiprocessing.connection.wait([parent.sentinel])
    os._exit(1)  # nothing to clean up: every file is whole at any time


def _stopped() -> bool:
    """Whether the sweep is to stop, or is no more: a killed parent gives its processes to another."""
    assert _stop is not None
    return os.getppid() != _parent or _stop.is_set()


def _run(folder: Path, path: Path, config: TrainConfig) -> str | None:
    """Complete one run; returns the message of a mistake that the user can put right, or None."""
    if _stopped():
        return None
    try:
        if not (folder / path / CONFIG).exists():
            with new_run(folder / path.parent, path.name, config.as_dict()) as new:
                _complete(new, path, config)
        elif not (folder / path / METRICS).exists():
            with opened_run(folder / path) as old:
                _complete(old, path, parse_stored(folder / path / CONFIG, TrainConfig, whole=True))
    except UserError as error:
        return str(error)
    except KeyboardInterrupt:  # the run stopped because the parent asked for it
        return None
    return None


def _complete(folder: RunFolder, path: Path, config: TrainConfig) -> None:
    dataset = load_once(config.data, config.features)
    plan = prepare(config, dataset)
    progress = Progress(folder, config, dataset, plan)
    progress.load(dataset)
    if progress.epochs:
        _told.put((path, progress.epochs, ""))
    complete(
        folder,
        config,
        dataset,
        plan,
        progress,
        lambda seed, done: _told.put((path, 1, done)),
        stopped=_stopped,
    )
