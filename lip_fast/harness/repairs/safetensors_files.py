"""Weights in safetensors files: one, or several with an index, as Transformers saves large models."""

import json
import shutil
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any, BinaryIO

import torch
from safetensors import safe_open
from torch import Tensor

from lip_fast.cli.errors import UserError
from lip_fast.harness.files.torch_files import reading
from lip_fast.harness.repairs.layers import (
    Layer,
    checked_layer,
    layers_of,
    meant,
    no_layer,
    several_layers,
    tensor_name,
)

__all__ = ["SafetensorsFile", "Shards"]


class SafetensorsFile:
    """A safetensors file, whose bytes are copied but for those of the layer.

    Attributes:
        names: of its tensors.
    """

    folder: Path | None = None

    def __init__(self, path: Path) -> None:
        self.path = path
        with reading(path, "a safetensors file"):
            with safe_open(path, "pt") as file:  # checks the header against the file
                self.names = set(file.keys())
            with path.open("rb") as raw:
                size = int.from_bytes(raw.read(8), "little")
                self.header: dict[str, Any] = json.loads(raw.read(size))
                self.start = 8 + size

    def layer(self, name: str) -> Layer:
        """As of :class:`Checkpoint`."""
        stored = found_layer(self.path, name, self.shapes())
        weight, bias = tensor_name(stored, "weight"), tensor_name(stored, "bias")
        return checked_layer(
            self.path, stored, self.tensor(weight), self.tensor(bias) if bias in self.names else None
        )

    def shapes(self) -> dict[str, tuple[int, ...]]:
        """The shapes of its tensors, by name."""
        return {key: tuple(self.header[key]["shape"]) for key in sorted(self.names)}

    def tensor(self, key: str) -> Tensor:
        """A copy of one of its tensors."""
        with reading(self.path, "a safetensors file"), safe_open(self.path, "pt") as file:
            tensor: Tensor = file.get_tensor(key).clone()  # a view of the file, which may be replaced
            with self.path.open("rb") as raw:
                begin, end = self._place(key)
                raw.seek(begin)
                # The header must mean the same here and to safetensors, or other bytes are replaced.
                if raw.read(end - begin) != _bytes(tensor):
                    raise UserError(f"expected one meaning of {key} in {self.path}, found two")
        return tensor

    def files(self, layer: Layer) -> dict[Path, Callable[[BinaryIO], None]]:
        """As of :class:`Checkpoint`."""
        return {self.path: partial(self.write, layer=layer)}

    def write(self, file: BinaryIO, layer: Layer) -> None:
        """Write the file with the tensors of ``layer`` in the place of its own."""
        self.write_tensors(file, layer.tensors())

    def write_tensors(self, file: BinaryIO, tensors: Mapping[str, Tensor]) -> None:
        """Write the file with other values of these tensors."""
        with self.path.open("rb") as original:
            shutil.copyfileobj(original, file)
        for key, tensor in tensors.items():
            file.seek(self._place(key)[0])
            file.write(_bytes(tensor))

    def _place(self, key: str) -> tuple[int, int]:
        begin, end = self.header[key]["data_offsets"]
        return self.start + begin, self.start + end


def _bytes(tensor: Tensor) -> bytes:
    data: bytes = tensor.contiguous().view(torch.uint8).numpy().tobytes() if tensor.numel() else b""
    return data


class Shards:
    """Safetensors files in one folder, and the index that says which tensor lies in which.

    Args:
        index: the file ``*.safetensors.index.json``.
    """

    def __init__(self, index: Path) -> None:
        self.index = index
        self.folder: Path | None = index.parent
        with reading(index, "the index of safetensors files"):
            places = json.loads(index.read_text(encoding="utf-8"))["weight_map"]
            # A name with a folder in it would lead elsewhere.
            if not all(isinstance(name, str) and Path(name).name == name for name in places.values()):
                raise UserError(f"expected names of files in the weight_map of {index}, found {places}"[:300])
        self.places: dict[str, str] = places
        if missing := [n for n in sorted(set(places.values())) if not (index.parent / n).is_file()]:
            raise UserError(f"expected the files that {index} names, found no {', '.join(missing)}")
        self.shards = {name: SafetensorsFile(index.parent / name) for name in sorted(set(places.values()))}
        for key, name in places.items():
            if key not in self.shards[name].names:
                raise UserError(f"expected {key} in {name}, as {index} says, found none")

    def layer(self, name: str) -> Layer:
        """As of :class:`Checkpoint`."""
        all_shapes = {shard: file.shapes() for shard, file in self.shards.items()}
        stored = found_layer(
            self.index, name, {key: all_shapes[shard][key] for key, shard in self.places.items()}
        )
        weight, bias = tensor_name(stored, "weight"), tensor_name(stored, "bias")
        return checked_layer(
            self.index, stored, self._tensor(weight), self._tensor(bias) if bias in self.places else None
        )

    def files(self, layer: Layer) -> dict[Path, Callable[[BinaryIO], None]]:
        """As of :class:`Checkpoint`."""
        changed: dict[str, dict[str, Tensor]] = {}
        for key, tensor in layer.tensors().items():
            changed.setdefault(self.places[key], {})[key] = tensor
        return {
            self.shards[name].path: partial(self.shards[name].write_tensors, tensors=tensors)
            for name, tensors in changed.items()
        }

    def _tensor(self, key: str) -> Tensor:
        return self.shards[self.places[key]].tensor(key)


def found_layer(path: Path, asked: str, shapes: Mapping[str, tuple[int, ...]]) -> str:
    """The name that the layer ``asked`` for has in the file.

    Raises:
        UserError: there is none of that name, or more than one.
    """
    found = meant(asked, layers_of(shapes))
    if not found:
        raise no_layer(path, asked, shapes)
    if len(found) > 1:
        raise several_layers(path, asked, found)
    return found[0]
