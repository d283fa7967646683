"""What a run began with, which its continuation must find again: settings, data, software."""

import hashlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from lip_fast.backends import served
from lip_fast.cli.errors import UserError
from lip_fast.harness.data import Dataset
from lip_fast.harness.runs.environment import environment
from lip_fast.harness.settings.config import option

__all__ = ["Origin"]


class Origin:
    """Settings, data and software of a run.

    Args:
        settings: as plain values, ``data`` among them.
        dataset: the data.
        processes: how many train together; each sums its part of a batch.
    """

    def __init__(self, settings: Mapping[str, Any], dataset: Dataset, processes: int = 1) -> None:
        self._settings = dict(settings)
        self._data = _fingerprint(dataset)
        self._software = _software() | {"processes": str(processes)}

    def state_dict(self) -> dict[str, Any]:
        """Plain values for a checkpoint."""
        return {"settings": self._settings, "data": self._data, "software": self._software}

    def check(self, state: Mapping[str, Any], folder: Path) -> list[str]:
        """Compare with what a checkpoint has of :meth:`state_dict`, and keep the software that it began with.

        Args:
            state: the checkpoint's entries.
            folder: of the run, for messages.

        Returns:
            what of the software has changed since, and may change the bits.

        Raises:
            UserError: settings or data are others.
        """
        for name in sorted(self._settings.keys() | state["settings"].keys()):
            began, now = state["settings"].get(name), self._settings.get(name)
            if began != now:
                raise UserError(
                    f"expected {option(name)} {began} in the settings of {folder}, with which its checkpoint "
                    f"was made, found {now}"
                )
        if state["data"] != self._data:
            raise UserError(
                f"expected data with hash {state['data'][:12]}, with which the run began, "
                f"found {self._data[:12]} in {self._settings['data']}"
            )
        notes = [
            f"{name} was {began}, is {self._software.get(name)}"
            for name, began in state["software"].items()
            if began != self._software.get(name)
        ]
        self._software = state["software"]
        return notes


def _software() -> dict[str, str]:
    """What the bits depend on beside settings and data."""
    versions = environment()
    software = {name: str(versions[name]) for name in ("torch", "numpy", "machine", "threads")}
    return software | {f"the kernel of {row.op}": row.backend for row in served() if row.device == "cpu"}


def _fingerprint(dataset: Dataset) -> str:
    """SHA-256 (hex) of the data."""
    digest = hashlib.sha256()
    for array in (dataset.train_features, dataset.train_labels, dataset.test_features, dataset.test_labels):
        digest.update(f"{array.dtype.str} {array.shape}".encode())
        digest.update(np.ascontiguousarray(array).data)
    return digest.hexdigest()
