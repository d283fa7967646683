"""Features and labels for a repair, from a NumPy archive or a safetensors file."""

from collections.abc import Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from safetensors import safe_open
from torch import Tensor

from lip_fast.cli.errors import UserError
from lip_fast.harness.files.reading import as_integers, read_npz
from lip_fast.harness.files.torch_files import reading
from lip_fast.harness.repairs.layers import describe_tensor
from lip_fast.harness.seeding import stream
from lip_fast.targets import IGNORE_INDEX
from lip_fast.validation import FLOATS

__all__ = ["RepairData", "Rows", "read_features", "split_off"]

REQUIRED = ("features", "labels")
HOLDOUT = ("holdout_features", "holdout_labels")
LABELS = (REQUIRED[1], HOLDOUT[1])
# Rows that are copied at a time.
BLOCK = 1 << 14


class Rows(NamedTuple):
    """Rows of features and their labels.

    Attributes:
        X: (n, q) floating point, n >= 1; possibly a view of the file.
        Y: (n,) int64 class indices, -100 for no label, or (n, l) dense.
    """

    X: Tensor
    Y: Tensor

    def labelled(self) -> Tensor:
        """The rows that have a label: (m,) int64 indices, ascending."""
        return (self.Y >= 0).nonzero()[:, 0] if self.Y.dim() == 1 else torch.arange(len(self.Y))

    def blocks(self, index: Tensor) -> Iterator[tuple[Tensor, Tensor]]:
        """The rows of ``index``, block by block."""
        for block in index.split(BLOCK):
            yield self.X[block], self.Y[block]


class RepairData(NamedTuple):
    """What a file for a repair holds.

    Attributes:
        rows: for the statistics, and for the hold-out where the file brings none.
        holdout: the file's own, or None.
    """

    rows: Rows
    holdout: Rows | None


def read_features(path: Path, *, q: int, l: int) -> RepairData:
    """Read ``features`` and ``labels``, and ``holdout_features`` and ``holdout_labels`` where they are.

    Args:
        path: a ``.npz`` or ``.safetensors`` file.
        q: number of features of the layer.
        l: number of its classes.

    Raises:
        UserError: the file is missing or damaged, or its arrays do not fit the layer or each other.
    """
    if path.suffix.lower() == ".npz":
        arrays = _read_npz(path)
    elif path.suffix.lower() == ".safetensors":
        arrays = _read_safetensors(path)
    else:
        raise UserError(
            f"expected a file of features that ends in .npz or .safetensors, found {path}: "
            "np.savez('features.npz', features=X, labels=y) writes one"
        )
    rows = _checked(path, REQUIRED, arrays, q, l)
    return RepairData(rows, _checked(path, HOLDOUT, arrays, q, l) if HOLDOUT[0] in arrays else None)


def split_off(rows: Rows, fraction: float, seed: int) -> tuple[Tensor, Tensor]:
    """Split the labelled rows at random.

    Args:
        rows: of the file.
        fraction: share of the labelled rows to hold out; 0 for none.
        seed: of the draw.

    Returns:
        indices of the rows for the statistics and of those held out, both ascending.

    Raises:
        UserError: too few labelled rows for both.
    """
    labelled = rows.labelled()
    if not fraction:
        if not len(labelled):
            raise UserError("expected at least one row with a label, found none")
        return labelled, labelled[:0]
    held = max(1, round(fraction * len(labelled)))
    if held >= len(labelled):
        raise UserError(
            f"expected rows with a label for the statistics and the hold-out, found {len(labelled)} in all"
        )
    order = torch.from_numpy(stream(seed, "split").permutation(len(labelled)))
    return labelled[order[held:].sort().values], labelled[order[:held].sort().values]


def _read_npz(path: Path) -> dict[str, Tensor]:
    arrays = read_npz(path, partial(_wanted, path))
    return {name: _tensor(path, name, array) for name, array in arrays.items()}


def _tensor(path: Path, name: str, array: np.ndarray) -> Tensor:
    if array.dtype.kind not in "buif" or array.dtype.itemsize > 8:
        raise UserError(
            f"expected {name} of {path} to be an array of real numbers of at most 64 bits, "
            f"found {array.dtype} of shape {array.shape}{as_integers(array) if name in LABELS else ''}"
        )
    return torch.from_numpy(np.ascontiguousarray(array, dtype=array.dtype.newbyteorder("=")))


def _read_safetensors(path: Path) -> dict[str, Tensor]:
    with reading(path, "a safetensors file"), safe_open(path, "pt") as file:
        return {name: file.get_tensor(name) for name in _wanted(path, list(file.keys()))}


def _wanted(path: Path, names: Sequence[str]) -> list[str]:
    """The names to read; UserError where one is missing."""
    wanted = [*REQUIRED, *(HOLDOUT if set(HOLDOUT) & set(names) else ())]
    if missing := [name for name in wanted if name not in names]:
        raise UserError(
            f"expected {', '.join(wanted)} in {path}, found no {' and no '.join(missing)}"
            f" among {', '.join(sorted(names)) or 'nothing'}"
        )
    return wanted


def _checked(path: Path, names: tuple[str, str], arrays: dict[str, Tensor], q: int, l: int) -> Rows:
    (features, labels), X, Y = names, arrays[names[0]], arrays[names[1]]
    if X.dtype not in FLOATS or X.dim() != 2 or X.shape[1] != q or not len(X):
        raise UserError(
            f"expected {features} of {path} as floating-point numbers of shape (n >= 1, {q}), "
            f"found {describe_tensor(X)}: what comes into the layer, neither images nor logits"
        )
    for i in range(0, len(X), BLOCK):
        if not bool((finite := torch.isfinite(X[i : i + BLOCK]).all(1)).all()):
            row = i + int(finite.logical_not().nonzero()[0])
            raise UserError(f"expected {features} of {path} to be finite, found NaN or infinity in row {row}")
    if Y.dim() == 1:
        return Rows(X, _indices(path, labels, Y, len(X), l))
    if Y.dtype in (torch.uint16, torch.uint32, torch.uint64):
        Y = Y.double()  # torch has hardly any functions for these dtypes
    if Y.shape != (len(X), l) or Y.is_complex() or (Y.is_floating_point() and Y.dtype not in FLOATS):
        raise UserError(
            f"expected {labels} of {path} of shape ({len(X)},) or ({len(X)}, {l}), found {describe_tensor(Y)}"
        )
    if not bool(torch.isfinite(Y).all()):
        raise UserError(f"expected {labels} of {path} to be finite, found NaN or infinity")
    return Rows(X, Y)


def _indices(path: Path, name: str, Y: Tensor, rows: int, l: int) -> Tensor:
    if Y.dtype == torch.bool or Y.is_floating_point() or Y.is_complex():
        raise UserError(
            f"expected class indices in {name} of {path} as integers, found {describe_tensor(Y)}; "
            "make them integers by labels.astype(int)"
        )
    if len(Y) != rows:
        raise UserError(f"expected {rows} class indices in {name} of {path}, one a row, found {len(Y)}")
    indices = Y.to(torch.int64)
    wrong = (indices < 0) | (indices >= l)
    # Unsigned numbers above the largest int64 become negative, and one of them becomes -100, "no label".
    if Y.dtype.is_signed:
        wrong &= indices != IGNORE_INDEX
    if bool(wrong.any()):
        row = int(wrong.nonzero()[0])
        raise UserError(
            f"expected class indices in 0..{l - 1} (or {IGNORE_INDEX} for no label) in {name} of {path}, "
            f"found {Y.numpy()[row]} in row {row}"
        )
    return indices
