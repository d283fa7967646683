"""Labels that people gave: the file of CIFAR-10N (Wei et al. 2022, arXiv:2110.12088)."""

import io
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from lip_fast.cli.errors import UserError, unknown_name
from lip_fast.harness.data.pickled import unpickle_arrays
from lip_fast.harness.files.reading import checked_labels, reading
from lip_fast.harness.files.torch_files import load_torch

__all__ = ["read_human_labels"]

CLEAN = "clean_label"
DEFAULT_SET = "worse_label"


def read_human_labels(source: str, clean: np.ndarray, classes: int) -> np.ndarray:
    """One set of human labels for the training part.

    Args:
        source: ``FILE`` or ``FILE#SET``; without a set, ``worse_label``.
        clean: (n,) int64 labels of the training part, which the file's own must be, row by row.
        classes: number of classes.

    Returns:
        (n,) int64.

    Raises:
        UserError: the file is missing or damaged, has no such set, or is of other data.
    """
    name, mark, chosen = source.rpartition("#")
    path, chosen = (Path(name), chosen) if mark else (Path(source), DEFAULT_SET)
    sets = _sets(path)
    if CLEAN not in sets:
        raise UserError(f"expected {CLEAN} in {path}, found {', '.join(sets) or 'nothing'}")
    if chosen not in sets:
        raise unknown_name("set of human labels", chosen, sets)
    own = checked_labels(path, CLEAN, sets[CLEAN], len(clean), classes)
    if (different := own != clean).any():
        row = different.argmax()
        raise UserError(
            f"expected {CLEAN} of {path} to be the data's labels, found {own[row]} where they have "
            f"{clean[row]} in row {row}"
        )
    return checked_labels(path, chosen, sets[chosen], len(clean), classes)


def _sets(path: Path) -> dict[str, Any]:
    """The sets of labels by name, arrays where they are arrays or tensors of integers."""
    with reading(path, "a file of human labels"):
        archive = zipfile.ZipFile(io.BytesIO(path.read_bytes()))
        members = [member for member in archive.namelist() if member.endswith("/data.pkl")]
        if len(members) != 1:
            raise UserError(f"expected one data.pkl in {path}, found {len(members)}")
        pickled = archive.read(members[0])
        if b"torch._utils" not in pickled:  # names what makes a tensor
            return unpickle_arrays(pickled)
    sets = load_torch(path, "a file of human labels")
    if not isinstance(sets, dict):
        raise UserError(f"expected sets of labels by name in {path}, found {type(sets).__name__}")
    return {name: _array(value) for name, value in sets.items()}


def _array(value: object) -> object:
    if isinstance(value, Tensor) and value.layout == torch.strided and value.dtype != torch.bfloat16:
        return value.detach().numpy()
    return value
