"""Run folders: given their content whole or not at all, and never overwritten."""

import itertools
import json
import os
import platform
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from datetime import datetime
from pathlib import Path
from typing import Any

import numpy as np
import torch
import yaml

from lip_fast.harness.errors import UserError

__all__ = ["environment", "new_run", "write_json", "write_yaml"]


@contextmanager
def new_run(out: Path, name: str | None) -> Iterator[tuple[Path, Path]]:
    """Make a run folder while the block runs.

    The name is taken at once, by an empty folder. Files are written to a hidden folder beside it, which
    replaces it when the block ends; where the block fails or is interrupted, both disappear.

    Args:
        out: folder to make it in; made if it is not there.
        name: of the run folder; None for the present time.

    Yields:
        the hidden folder to write to, and the path that it will have.

    Raises:
        UserError: the name is no folder name or is taken, or the folder cannot be written.
    """
    made = [folder for folder in (out, *out.parents) if not folder.exists()]
    target: Path | None = None
    working: Path | None = None
    try:
        out.mkdir(parents=True, exist_ok=True)
        target = _claim(out, name)
        working = out / f".{target.name}.partial"
        shutil.rmtree(working, ignore_errors=True)  # the name is ours: this was left by a killed run
        working.mkdir()
        yield working, target
        target.rmdir()
        working.rename(target)
    except BaseException as error:
        if working is not None:
            shutil.rmtree(working, ignore_errors=True)
        with suppress(OSError):  # a folder that others have put something into stays
            for folder in made if target is None else [target, *made]:
                folder.rmdir()
        if isinstance(error, OSError):
            raise UserError(f"expected a folder that can be written, got {out}: {error}") from error
        raise


def _claim(out: Path, name: str | None) -> Path:
    """An empty folder that no other run uses."""
    if name is None:
        now = f"{datetime.now():%Y%m%d-%H%M%S}"
        names = itertools.chain([now], (f"{now}-{number}" for number in itertools.count(2)))
        return next(out / name for name in names if _made(out / name))
    if not name or Path(name).name != name or name.startswith("."):
        raise UserError(f"expected --name to be the name of a folder, got {name!r}")
    if not _made(out / name):
        raise UserError(f"expected --name to be new, got {name!r}: {out / name} exists already")
    return out / name


def _made(folder: Path) -> bool:
    try:
        folder.mkdir()
    except FileExistsError:
        return False
    return True


def environment() -> dict[str, Any]:
    """What results and times depend on beside the settings."""
    return {
        "python": platform.python_version(),
        "torch": torch.__version__,
        "numpy": np.__version__,
        "threads": torch.get_num_threads(),
        "processors": os.cpu_count(),
        "machine": platform.machine(),
        "system": platform.system(),
    }


def write_json(path: Path, value: Mapping[str, Any]) -> None:
    """Write ``value`` as JSON; ValueError for NaN and infinities, which JSON does not have."""
    path.write_text(json.dumps(value, indent=1, allow_nan=False) + "\n", encoding="utf-8")


def write_yaml(path: Path, value: Mapping[str, Any]) -> None:
    """Write ``value`` as YAML, in its own order."""
    path.write_text(yaml.safe_dump(dict(value), sort_keys=False), encoding="utf-8")
