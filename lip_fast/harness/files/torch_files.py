"""Files of ``torch.save``, read without running any code that they may hold."""

import re
import zipfile
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import torch

from lip_fast.cli.errors import UserError
from lip_fast.harness.files.numpy_values import Dtype, scalar
from lip_fast.harness.files.reading import explain_error as explain_any_error
from lip_fast.harness.files.reading import reading as shared_reading

__all__ = ["explain_error", "load_torch", "reading"]


# Numbers of NumPy, such as an accuracy that a script saves beside the weights; before NumPy 2 and since.
_NUMBERS: list[Callable[..., Any] | tuple[Callable[..., Any], str]] = [
    (scalar, "numpy.core.multiarray.scalar"),
    (scalar, "numpy._core.multiarray.scalar"),
    (Dtype, "numpy.dtype"),
]


def explain_error(error: Exception) -> str:
    """What an exception of torch says, without its advice to run the code in the file."""
    text = str(error)
    if match := re.search(r"GLOBAL (\S+) (?:was not an allowed global|whose module)", text):
        return f"it holds {match[1]}, and only tensors, numbers and plain containers are read"
    if "Weights only load failed" in text:
        return "it is damaged, or holds more than tensors, numbers and plain containers"
    return explain_any_error(error)


# torch warns of old formats; they are read all the same.
reading = partial(shared_reading, on_warning="ignore", explain=explain_error)


def load_torch(path: Path, expected: str) -> Any:
    """What ``torch.save`` wrote, tensors on the CPU.

    Args:
        path: the file.
        expected: what it should be, e.g. ``"a state dict of torch.save"``.

    Raises:
        UserError: it cannot be read, is damaged, or holds more than tensors, numbers (NumPy's too) and plain
            containers.
    """
    with reading(path, expected):
        _check_archive(path)
        with torch.serialization.safe_globals(_NUMBERS):
            return torch.load(path, map_location="cpu", weights_only=True)


def _check_archive(path: Path) -> None:
    """UserError where the checksum of an archive member is wrong; torch does not compare it."""
    with path.open("rb") as file:
        if file.read(4) != b"PK\x03\x04":
            return  # the format of torch before 1.6 has no checksums
        with zipfile.ZipFile(file) as archive:
            if (member := archive.testzip()) is not None:
                raise UserError(
                    f"expected an undamaged file, found a wrong checksum in {path}: that of {member}"
                )
