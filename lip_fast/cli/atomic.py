"""Files that are there whole or not at all, whenever the process or the machine stops."""

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

__all__ = ["remove_leftovers", "replace", "replacing", "sync", "temporary_name", "write_whole"]

# Before the name and not behind it: some writers choose the format by the suffix.
_PREFIX = ".partial."


def temporary_name(path: Path) -> Path:
    """A hidden path beside ``path`` to write to; within one folder a rename is all or nothing."""
    return path.with_name(f"{_PREFIX}{os.getpid()}.{path.name}")


def write_whole(path: Path, content: str | bytes | memoryview) -> None:
    """Write a file as :func:`replacing` does; text is written in UTF-8, its line ends as they are."""
    with replacing(path) as temporary:
        temporary.write_bytes(content.encode() if isinstance(content, str) else content)


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """Write a file under a hidden name; when the block ends, it takes the place of ``path``.

    Whoever opens ``path`` at any time, also after a crash, finds the whole old file or the whole new one: the
    content has reached the disk before the rename, and the rename before this returns. The old file goes by
    that same rename, so there is no time without one. Its permissions stay; a link stays, and the file that
    it leads to is replaced.

    Yields:
        the path to write to. Where the block or the rename fails, what was written disappears.
    """
    path = Path(os.path.realpath(path))
    temporary = temporary_name(path)
    try:
        yield temporary
        replace(temporary, path)
    except BaseException:
        with suppress(OSError):
            temporary.unlink(missing_ok=True)
        raise


def replace(written: Path, path: Path) -> None:
    """Put a file that was written in the place of ``path``, see :func:`replacing`."""
    with suppress(FileNotFoundError):
        shutil.copymode(path, written)
    sync(written)
    os.replace(written, path)
    sync(path.parent)


def sync(path: Path) -> None:
    """Wait until a file, or the names in a folder, are on the disk."""
    if path.is_dir() and os.name == "nt":
        return  # Windows cannot open folders, and writes names through
    descriptor = os.open(path, os.O_RDONLY if path.is_dir() else os.O_RDWR)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def remove_leftovers(folder: Path, name: str = "") -> None:
    """Remove what writers that were killed left in ``folder``: of the file ``name``, or of any file."""
    for path in folder.glob(f"{_PREFIX}*"):
        _, _, target = path.name.removeprefix(_PREFIX).partition(".")
        if name and target != name:
            continue
        if path.is_dir():
            shutil.rmtree(path, ignore_errors=True)
        else:
            path.unlink(missing_ok=True)
