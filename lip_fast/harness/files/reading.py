"""Shared by all readers of files: errors in one line whatever a file holds, and checks of its arrays."""

import os
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Literal

import numpy as np

from lip_fast.cli.errors import UserError

__all__ = [
    "as_integers",
    "checked_features",
    "checked_labels",
    "class_map",
    "explain_error",
    "read_npz",
    "reading",
    "real_matrix",
]


def explain_error(error: Exception) -> str:
    """Kind and text of an exception, as one line cut to what fits."""
    text = " ".join(str(error).split())
    return (f"{type(error).__name__}: {text}" if text else type(error).__name__)[:300]


@contextmanager
def reading(
    path: Path,
    expected: str,
    *,
    on_warning: Literal["error", "ignore"] = "error",
    explain: Callable[[Exception], str] = explain_error,
) -> Iterator[None]:
    """Turn whatever goes wrong inside into one line for the user.

    Args:
        path: the file that is read.
        expected: what it should be, e.g. ``"a NumPy .npz archive"``.
        on_warning: take what a parser warns of for damage, or not.
        explain: what is said of an exception that is not the operating system's.

    Raises:
        UserError: the block raised anything but an interruption.
    """
    try:
        with warnings.catch_warnings():
            warnings.simplefilter(on_warning)
            yield
    except UserError:
        raise
    except OSError as error:
        reason = error.strerror or str(error)
        raise UserError(f"expected {expected}, {path} cannot be read: {reason}") from error
    # Parsers meet damage with exceptions of every kind, from KeyError to zlib.error.
    except Exception as error:
        if _is_empty(path):
            raise UserError(f"expected {expected}, {path} is empty") from error
        raise UserError(f"expected {expected}, {path} cannot be read: {explain(error)}") from error


def _is_empty(path: Path) -> bool:
    try:
        return os.path.getsize(path) == 0
    except (OSError, ValueError):  # a name that cannot be
        return False


def read_npz(path: Path, wanted: Callable[[list[str]], Sequence[str]]) -> dict[str, np.ndarray]:
    """Arrays of a NumPy archive.

    Args:
        path: the archive.
        wanted: gives the names to read among those that there are, or refuses them.

    Raises:
        UserError: it is no archive, is damaged, or an array that is read holds Python objects.
    """
    with reading(path, "a NumPy .npz archive"), path.open("rb") as file:
        archive = np.load(file, allow_pickle=False)
        if not isinstance(archive, np.lib.npyio.NpzFile):
            raise UserError(f"expected a NumPy .npz archive, {path} holds a single array")
        return {name: _member(path, archive, name) for name in wanted(archive.files)}


def _member(path: Path, archive: Mapping[str, np.ndarray], name: str) -> np.ndarray:
    try:
        return archive[name]
    except ValueError as error:
        if "Object arrays" in str(error):
            raise UserError(
                f"expected {name} of {path} to be an array of numbers, found Python objects: rows of "
                "different lengths, or numbers among other things"
            ) from error
        raise


def real_matrix(path: Path, name: str, value: object) -> np.ndarray:
    """``value`` as (n, d) array of real numbers with n, d >= 1.

    Raises:
        UserError: it is anything else.
    """
    if not isinstance(value, np.ndarray) or value.dtype.kind not in "buif":
        raise UserError(f"expected {name} of {path} to be an array of real numbers, found {_kind(value)}")
    if value.ndim != 2 or 0 in value.shape:
        advice = ": flatten images, or take what a network makes of them" if value.ndim > 2 else ""
        raise UserError(
            f"expected {name} of {path} to be a matrix with rows and columns, found {value.shape}{advice}"
        )
    return value


def checked_features(path: Path, name: str, value: object) -> np.ndarray:
    """``value`` as (n, d) float32 features with n, d >= 1, in the order of rows.

    Raises:
        UserError: it is no matrix of real numbers, or one of them is not finite in float32.
    """
    matrix = real_matrix(path, name, value)
    with np.errstate(over="ignore", invalid="ignore"):
        features = np.ascontiguousarray(matrix, dtype=np.float32)
    finite = np.isfinite(features).all(1)
    if not finite.all():
        row = int(finite.argmin())
        value = matrix[row][~np.isfinite(features[row])][0]
        raise UserError(f"expected {name} of {path} to be finite in float32, found {value} in row {row}")
    return features


def checked_labels(path: Path, name: str, value: object, rows: int, classes: int | None = None) -> np.ndarray:
    """``value`` as (rows,) int64 class indices.

    Args:
        path: the file they are of.
        name: theirs in the file.
        value: what the file holds.
        rows: how many there must be.
        classes: the number of classes, which all of them are below; None where they say it themselves.

    Raises:
        UserError: it is no vector of integers, of another length, or holds an index out of range.
    """
    if not isinstance(value, np.ndarray) or value.dtype.kind not in "ui" or value.ndim != 1:
        raise UserError(
            f"expected {name} of {path} to be a vector of integers, found {_kind(value)}{as_integers(value)}"
        )
    if len(value) != rows:
        raise UserError(f"expected {name} of {path} to hold {rows} labels, found {len(value)}")
    # Checked before the cast to int64, which makes the largest unsigned numbers negative.
    outside = (value < 0) | (value > (np.iinfo(np.int64).max if classes is None else classes - 1))
    if outside.any():
        row = outside.argmax()
        expected = "class indices from 0 on" if classes is None else f"classes 0 to {classes - 1}"
        count = f", and others in {outside.sum() - 1} more rows" if outside.sum() > 1 else ""
        advice = ": leave out rows without a label" if value[row] < 0 else ""
        raise UserError(
            f"expected {name} of {path} to be {expected}, found {value[row]} in row {row}{count}{advice}"
        )
    return value.astype(np.int64)


def as_integers(value: object) -> str:
    """How to make class indices of labels of another kind, for the end of a message."""
    if not isinstance(value, np.ndarray):
        return ""
    if value.dtype.kind in "US":
        return "; names become integers by np.unique(labels, return_inverse=True)[1]"
    if value.dtype.kind == "f" and value.ndim == 1:
        return "; make them integers by labels.astype(int)"
    if value.ndim == 2 and value.shape[1] == 1:
        return "; make them a vector by labels.ravel()"
    if value.ndim == 2 and value.dtype.kind in "buif":
        return "; one-hot rows become class indices by labels.argmax(1)"
    return ""


def class_map(confusions: Mapping[int, int], classes: int) -> np.ndarray:
    """(classes,) int64: what each class is mistaken for, itself where ``confusions`` says nothing."""
    similar = np.arange(classes)
    similar[list(confusions)] = list(confusions.values())
    return similar


def _kind(value: object) -> str:
    if isinstance(value, np.ndarray):
        return f"{value.dtype} of shape {value.shape}"
    return type(value).__name__
