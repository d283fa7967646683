"""Saved models: a linear layer read from a checkpoint, and the checkpoint written with another in its place.

Two formats: safetensors, and what ``torch.save`` makes of a state dict. No code that a file may hold is ever
run: the latter is read with ``weights_only=True``.
"""

import os
from collections.abc import Callable
from pathlib import Path
from typing import BinaryIO, Protocol

from lip_fast.cli.errors import UserError
from lip_fast.harness.repairs.layers import Layer
from lip_fast.harness.repairs.safetensors_files import SafetensorsFile, Shards
from lip_fast.harness.repairs.state_dicts import StateDict

__all__ = ["INDEX", "SAFETENSORS", "TORCH", "Checkpoint", "find_checkpoint", "read_checkpoint"]

SAFETENSORS = (".safetensors",)
TORCH = (".pt", ".pth", ".bin", ".ckpt")
INDEX = ".safetensors.index.json"
# What Transformers calls the weights in a folder with other files of these formats.
MODELS = ("model.safetensors", "pytorch_model.bin")


class Checkpoint(Protocol):
    """An opened checkpoint.

    Attributes:
        folder: where its files lie, if it is not one file alone.
    """

    folder: Path | None

    def layer(self, name: str) -> Layer:
        """The linear layer ``name``; wrappers (``module.``, ``_orig_mod.``) may be left out.

        Raises:
            UserError: there is none or more than one, or its tensors are not those of a linear layer.
        """

    def files(self, layer: Layer) -> dict[Path, Callable[[BinaryIO], None]]:
        """The files that a layer lies in, and for each what writes it anew to an open file.

        All but the tensors of the layer comes out as it went in: names, shapes, dtypes, bits and metadata.

        Args:
            layer: one that :meth:`layer` gave, with other values.
        """


def find_checkpoint(path: Path) -> Path:
    """The file at ``path``; of a folder the index of its safetensors files, or its only checkpoint.

    Raises:
        UserError: there is none, or more than one.
    """
    if os.path.isfile(path):
        return path
    if not os.path.isdir(path):
        raise UserError(f"expected a checkpoint, found no file at {path}")
    names = sorted(entry.name for entry in path.iterdir() if entry.is_file())
    suffixes = (*SAFETENSORS, *TORCH)
    for found in (
        [name for name in names if name.endswith(INDEX)],
        [name for name in names if name in MODELS],
        [name for name in names if Path(name).suffix.lower() in suffixes],
    ):
        if len(found) == 1:
            return path / found[0]
        if found:
            raise UserError(f"expected one checkpoint in {path}, found {', '.join(found[:10])}: name one")
    some = ", ".join(names[:10]) or "no file"
    raise UserError(f"expected a checkpoint (*{', *'.join((INDEX, *suffixes))}) in {path}, found {some}")


def read_checkpoint(path: Path) -> Checkpoint:
    """Open a checkpoint; the suffix tells the format.

    Raises:
        UserError: missing, damaged or of another format.
    """
    if path.name.endswith(INDEX):
        return Shards(path)
    if path.suffix.lower() in SAFETENSORS:
        return SafetensorsFile(path)
    if path.suffix.lower() in TORCH:
        return StateDict(path)
    raise UserError(
        f"expected a checkpoint that ends in one of {', '.join((*SAFETENSORS, *TORCH, INDEX))}, found {path}"
    )
