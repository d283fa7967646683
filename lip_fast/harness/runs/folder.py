"""Run folders: settings from the start, a checkpoint while the run goes on, results when it is over.

``config.yaml`` is there from the first moment on, ``checkpoint.pt`` as soon as there is something to lose.
``metrics.json`` is the last of the results to appear: with it the run is complete, and the checkpoint goes.
Each file is there whole or not at all, and no folder of another run is ever written to.
"""

import io
import itertools
import os
import shlex
import shutil
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from datetime import datetime
from pathlib import Path
from typing import Any

import torch

from lip_fast.cli.atomic import remove_leftovers, sync, temporary_name, write_whole
from lip_fast.cli.errors import UserError
from lip_fast.harness.files.plain import write_yaml
from lip_fast.harness.files.torch_files import load_torch
from lip_fast.harness.training.processes import LostError

try:
    import fcntl
except ImportError:  # Windows: two processes in one folder are not told apart
    fcntl = None  # type: ignore[assignment]

__all__ = [
    "CHECKPOINT",
    "CONFIG",
    "METRICS",
    "RunFolder",
    "check_name",
    "lock_folder",
    "new_run",
    "opened_run",
]

CONFIG = "config.yaml"
CHECKPOINT = "checkpoint.pt"
METRICS = "metrics.json"
# The first entry of a checkpoint, by subcommand. The number changes with the content of checkpoints.
_FORMATS = {"train": "lip-fast train, 2", "study": "lip-fast study, 1"}
# File systems take 255 bytes; a hidden name beside it is longer.
_LONGEST_NAME = 200


class RunFolder:
    """The folder of one run, which this process alone works on.

    Args:
        path: of the folder.
        lock: descriptor that holds the lock on it; None where there are no locks.
        command: the subcommand whose run it is, ``"train"`` or ``"study"``.
    """

    def __init__(self, path: Path, lock: int | None = None, command: str = "train") -> None:
        self.path = path
        self._lock = lock
        self._command = command

    @property
    def complete(self) -> bool:
        """Whether the run is over: its results are all there."""
        return (self.path / METRICS).exists()

    @property
    def has_checkpoint(self) -> bool:
        """Whether there is something to go on from."""
        return (self.path / CHECKPOINT).exists()

    @property
    def continuation(self) -> str:
        """The command that continues the run."""
        return f"lip-fast {self._command} --resume {shlex.quote(str(self.path))}"

    def save(self, state: Mapping[str, Any]) -> None:
        """Replace the checkpoint.

        Args:
            state: tensors, numbers, strings and containers of them.
        """
        # Through memory: of a full disk torch.save raises a RuntimeError, but writing bytes an OSError.
        content = io.BytesIO()
        torch.save({"format": _FORMATS[self._command], **state}, content)
        write_whole(self.path / CHECKPOINT, content.getbuffer())

    def load(self) -> dict[str, Any] | None:
        """Read what :meth:`save` was given last; None where nothing was saved.

        No partial file can be met here, for a checkpoint gets its name when it is whole. Damage that came
        later is found by the checksums that ``torch.save`` writes with every tensor.

        Raises:
            UserError: the checkpoint is damaged, or of another subcommand or version.
        """
        path = self.path / CHECKPOINT
        if not self.has_checkpoint:
            return None
        state = load_torch(path, "the checkpoint of a run")
        if not isinstance(state, dict) or "format" not in state:
            raise UserError(f"expected the checkpoint of a run, found something else in {path}")
        if (found := state.pop("format")) != (expected := _FORMATS[self._command]):
            raise UserError(f"expected a checkpoint of {expected!r} in {path}, found {found!r}")
        return state

    def finish(self, write: Callable[[Path], None]) -> None:
        """Complete the run; it can be done again where it was cut short.

        Args:
            write: writes the results to the folder that it is given, ``metrics.json`` among them.
        """
        staging = temporary_name(self.path / "results")
        shutil.rmtree(staging, ignore_errors=True)
        staging.mkdir()
        write(staging)
        files = sorted(staging.iterdir(), key=lambda file: (file.name == METRICS, file.name))
        for file in files:
            sync(file)
        for file in files:
            if file.name == METRICS:  # the other names must be on the disk before this one
                sync(self.path)
            os.replace(file, self.path / file.name)
        sync(self.path)
        self.clean()

    def clean(self) -> None:
        """Remove what is of no use: leftovers of a killed process, and the checkpoint of a complete run."""
        remove_leftovers(self.path)
        if self.complete:
            (self.path / CHECKPOINT).unlink(missing_ok=True)

    def close(self) -> None:
        """Let others work on the folder."""
        if self._lock is not None:
            os.close(self._lock)
            self._lock = None


@contextmanager
def new_run(
    out: Path, name: str | None, settings: Mapping[str, Any], command: str = "train"
) -> Iterator[RunFolder]:
    """Make the folder of a run.

    It disappears where the block fails for a reason of the run's own (:class:`UserError`), or before there is
    a checkpoint; else it stays, to be continued.

    Args:
        out: folder to make it in; made if it is not there.
        name: of the run folder; None for the present time.
        settings: written to ``config.yaml``.
        command: the subcommand whose run it is, see :class:`RunFolder`.

    Raises:
        UserError: the name is no folder name or is taken, or the folder cannot be written.
        KeyboardInterrupt, LostError: with a text that says how to continue, where that is possible.
    """
    check_name(name)
    # Unlike Path.exists, os.path.exists takes a path that is too long: mkdir then says so.
    made = [folder for folder in (out, *out.parents) if not os.path.exists(folder)]
    folder = None
    try:
        out.mkdir(parents=True, exist_ok=True)
        folder = _make(out, name, settings, command)
        with _explaining(folder, stays=False):
            yield folder
    except BaseException as error:
        kept = folder is not None and (
            folder.complete or (folder.has_checkpoint and not isinstance(error, UserError))
        )
        if folder is not None and not kept:
            folder.close()
            shutil.rmtree(folder.path, ignore_errors=True)
        if not kept:
            with suppress(OSError):  # a folder with files of others stays
                for parent in made:
                    parent.rmdir()
        if isinstance(error, OSError):
            raise UserError(_not_written(out, error, folder if kept else None)) from error
        raise
    finally:
        if folder is not None:
            folder.close()


def check_name(name: str | None) -> None:
    """UserError where ``name`` cannot be the name of a folder; None can."""
    if name is None:
        return
    if not name or Path(name).name != name or name.startswith(".") or "\0" in name:
        raise UserError(f"expected --name to be the name of a folder, got {name!r}")
    if (size := len(os.fsencode(name))) > _LONGEST_NAME:
        raise UserError(f"expected --name of at most {_LONGEST_NAME} bytes, got {size}")


@contextmanager
def opened_run(path: Path, command: str = "train") -> Iterator[RunFolder]:
    """Open the folder of a run that was interrupted, or is complete.

    Args:
        path: the folder.
        command: the subcommand whose run it is, see :class:`RunFolder`.

    Raises:
        UserError: it is no run folder, another process is at work on it, or it cannot be written.
        KeyboardInterrupt, LostError: with a text that says how to continue.
    """
    if not path.is_dir():
        raise UserError(f"expected --resume to be the folder of a run, found none at {path}")
    if not (path / CONFIG).is_file():
        raise UserError(f"expected --resume to be the folder of a run, found no {CONFIG} in {path}")
    folder = RunFolder(path, command=command)
    try:
        folder = RunFolder(path, lock_folder(path), command)
        folder.clean()
        with _explaining(folder, stays=True):
            yield folder
    except OSError as error:
        raise UserError(_not_written(path, error, folder)) from error
    finally:
        folder.close()


@contextmanager
def _explaining(folder: RunFolder, *, stays: bool) -> Iterator[None]:
    """Give an interruption a text that says how to continue, if the folder ``stays`` or has a checkpoint."""
    try:
        yield
    except (KeyboardInterrupt, LostError) as error:
        if folder.complete or not (stays or folder.has_checkpoint):
            raise
        how = f"to continue: {folder.continuation}"
        if isinstance(error, LostError):
            raise LostError(f"{error}; {how}") from error
        raise KeyboardInterrupt(f"stopped; {how}") from error


def _not_written(path: Path, error: OSError, folder: RunFolder | None) -> str:
    text = f"expected a folder that can be written, got {path}: {error}"
    return text if folder is None or folder.complete else f"{text}; to continue: {folder.continuation}"


def _make(out: Path, name: str | None, settings: Mapping[str, Any], command: str) -> RunFolder:
    """A folder that no other run uses, with its settings in it from the first moment on."""
    now = f"{datetime.now():%Y%m%d-%H%M%S}"
    later = (f"{now}-{number}" for number in itertools.count(2))
    names = itertools.chain([now], later) if name is None else iter([name])
    temporary = temporary_name(out / (name or now))
    temporary.mkdir()
    lock = None
    try:
        write_yaml(temporary / CONFIG, settings)
        sync(temporary / CONFIG)
        sync(temporary)
        lock = lock_folder(temporary)  # before others can find it
        target = next((out / name for name in names if _renamed(temporary, out / name)), None)
        if target is None:
            raise UserError(f"expected --name to be new, got {name!r}: {out / str(name)} exists already")
        sync(out)
    except BaseException:
        shutil.rmtree(temporary, ignore_errors=True)
        if lock is not None:
            os.close(lock)
        raise
    # This run has the name: hidden files with that name were left by a process that was killed.
    remove_leftovers(out, target.name)
    return RunFolder(target, lock, command)


def _renamed(folder: Path, target: Path) -> bool:
    """Rename a folder with something in it, never over another: of two at once the second fails."""
    if target.exists():
        return False
    try:
        os.rename(folder, target)
    except OSError:
        if target.exists():
            return False
        raise
    return True


def lock_folder(path: Path) -> int | None:
    """Lock a folder, until the descriptor is closed or the process is no more, however it ends.

    Raises:
        UserError: another process has the lock.
    """
    if fcntl is None:
        return None
    descriptor = os.open(path, os.O_RDONLY)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError as error:
        os.close(descriptor)
        raise UserError(f"expected a run that has stopped, found a process at work in {path}") from error
    except OSError:  # a file system without locks
        os.close(descriptor)
        return None
    return descriptor
