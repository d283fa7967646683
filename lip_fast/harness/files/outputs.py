"""The files that a command writes at its end: all of them, or none."""

import os
import shutil
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path

from lip_fast.cli.atomic import replace, sync, temporary_name
from lip_fast.cli.errors import UserError

__all__ = ["check_outputs", "new_files", "new_folder"]


def check_outputs(outputs: Mapping[str, Path], inputs: Mapping[str, Path], replaced: Sequence[Path]) -> None:
    """Check that files can be written where they should be, before hours are spent on their content.

    Args:
        outputs: files to write, by what they are for.
        inputs: files that are read, likewise.
        replaced: those of the outputs that may be there already.

    Raises:
        UserError: one is there already, is another output or an input, or has no folder to be written to.
    """
    taken = {_real(path): name for name, path in inputs.items()}
    for name, path in outputs.items():
        real = _real(path)
        if real in taken:
            raise UserError(f"expected {name} to be a file of its own, found {path}, which is {taken[real]}")
        taken[real] = name
        if os.path.isdir(path):
            raise UserError(f"expected {name} to be a file, found the folder {path}")
        if os.path.exists(path) and path not in replaced:
            raise UserError(f"expected {name} to be new, found {path}: --overwrite replaces it")
        if not os.path.isdir(real.parent):
            raise UserError(f"expected {name} in a folder that is there, found none at {real.parent}")
        if not os.access(real.parent, os.W_OK):
            raise UserError(f"expected {name} in a folder that can be written, found {real.parent}")


def _real(path: Path) -> Path:
    """The file that a path leads to: of a link the target is replaced, not the link."""
    try:
        return path.resolve()
    except (OSError, RuntimeError, ValueError) as error:  # links in a circle, a zero byte
        raise UserError(f"expected a path that leads somewhere, got {path}: {error}") from error


@contextmanager
def new_files(targets: Sequence[Path], replaced: Sequence[Path]) -> Iterator[list[Path]]:
    """Write files under hidden names beside their own; they get those when the block ends, or disappear.

    Args:
        targets: files to write.
        replaced: those of them that may be there already.

    Yields:
        the hidden paths to write to, in the order of ``targets``.

    Raises:
        UserError: a file cannot be written, or has appeared meanwhile. None has been written then.
    """
    finals = [_real(path) for path in targets]
    hidden = [temporary_name(path) for path in finals]
    made: list[Path] = []
    try:
        yield hidden
        for target, path, final in zip(targets, hidden, finals, strict=True):
            if target in replaced:
                replace(path, final)
            else:
                _rename_new(path, final)
                made.append(final)
    except BaseException as error:
        for path in made:
            path.unlink(missing_ok=True)
        if isinstance(error, OSError):
            names = ", ".join(map(str, targets))
            raise UserError(f"expected to write {names}, which failed: {error}") from error
        raise
    finally:
        for path in hidden:
            with suppress(OSError):
                path.unlink(missing_ok=True)


@contextmanager
def new_folder(target: Path) -> Iterator[Path]:
    """Fill a folder under a hidden name; it gets its own when the block ends, or disappears.

    Yields:
        the hidden folder.

    Raises:
        UserError: it cannot be written, or ``target`` has appeared meanwhile.
    """
    final = _real(target)
    hidden = temporary_name(final)
    try:
        hidden.mkdir()
        yield hidden
        for path in hidden.iterdir():
            sync(path)
        sync(hidden)
        if os.path.exists(final):
            raise UserError(f"expected {target} to be new, found a folder that has appeared meanwhile")
        os.rename(hidden, final)
        sync(final.parent)
    except BaseException as error:
        shutil.rmtree(hidden, ignore_errors=True)
        if isinstance(error, OSError):
            raise UserError(f"expected to write {target}, which failed: {error}") from error
        raise


def _rename_new(path: Path, final: Path) -> None:
    """Rename a file, never over another."""
    try:
        os.link(path, final)  # unlike a rename, it fails where a file has that name
    except FileExistsError:
        raise UserError(f"expected {final} to be new, found a file that has appeared meanwhile") from None
    except OSError:  # the file system has no links
        if final.exists():
            raise UserError(f"expected {final} to be new, found a file that has appeared meanwhile") from None
        os.replace(path, final)
