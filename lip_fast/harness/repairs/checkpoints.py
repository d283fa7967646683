"""Saved models: a linear layer read from a checkpoint, and the checkpoint written with another in its place.

Two formats: safetensors, and what ``torch.save`` makes of a state dict. No code that a file may hold is ever
run: the latter is read with ``weights_only=True``.
"""

import copy
import json
import shutil
from collections.abc import Iterator, Mapping, MutableMapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO, Protocol

import torch
from safetensors import safe_open
from torch import Tensor, nn

from lip_fast.cli.errors import UserError, unknown_name
from lip_fast.harness.files.torch_files import explain_error, load_torch, reading
from lip_fast.validation import FLOATS

__all__ = [
    "SAFETENSORS",
    "TORCH",
    "Checkpoint",
    "Layer",
    "describe_tensor",
    "read_checkpoint",
]

SAFETENSORS = (".safetensors",)
TORCH = (".pt", ".pth", ".bin", ".ckpt")
# Names under which training scripts put the state dict among other things.
NESTS = ("state_dict", "model")


@dataclass(frozen=True)
class Layer:
    """A linear layer of a checkpoint.

    Attributes:
        name: prefix of its tensors.
        weight: (l, q), floating point.
        bias: (l,), floating point, or None.
        shared: names of other tensors in the same memory.
    """

    name: str
    weight: Tensor
    bias: Tensor | None
    shared: tuple[str, ...] = ()

    def tensors(self) -> dict[str, Tensor]:
        """Its tensors by their names in the checkpoint."""
        tensors = {_key(self.name, "weight"): self.weight}
        return tensors if self.bias is None else tensors | {_key(self.name, "bias"): self.bias}


class Checkpoint(Protocol):
    """An opened checkpoint."""

    def layer(self, name: str) -> Layer:
        """The linear layer ``name``.

        Raises:
            UserError: there is none, or its tensors are not those of a linear layer.
        """

    def write(self, file: BinaryIO, layer: Layer) -> None:
        """Write the checkpoint with the tensors of ``layer`` in the place of its own.

        All else comes out as it went in: names, shapes, dtypes, bits and metadata.

        Args:
            file: a new file, open for writing.
            layer: one that :meth:`layer` gave, with other values.
        """


def read_checkpoint(path: Path) -> Checkpoint:
    """Open a checkpoint; the suffix tells the format.

    Raises:
        UserError: missing, damaged or of another format.
    """
    if path.suffix.lower() in SAFETENSORS:
        return _Safetensors(path)
    if path.suffix.lower() in TORCH:
        return _TorchFile(path)
    raise UserError(
        f"expected a checkpoint that ends in one of {', '.join(SAFETENSORS + TORCH)}, found {path}"
    )


def describe_tensor(value: object) -> str:
    """What ``value`` is, for a message."""
    if isinstance(value, Tensor):
        return f"{str(value.dtype).removeprefix('torch.')} of shape {tuple(value.shape)}"
    return type(value).__name__


# Layers ----------------------------------------------------------------------------------------------


def _key(name: str, tensor: str) -> str:
    # The state dict of a bare nn.Linear has no prefixes.
    return f"{name}.{tensor}" if name else tensor


def _prefixes(shapes: Mapping[str, tuple[int, ...]]) -> list[str]:
    """Names of the layers whose weight is a matrix."""
    return [
        key.removesuffix("weight").removesuffix(".")
        for key, shape in shapes.items()
        if (key == "weight" or key.endswith(".weight")) and len(shape) == 2
    ]


def _no_layer(path: Path, name: str, candidates: Sequence[str]) -> UserError:
    if not candidates:
        return UserError(f"expected layer {name!r} in {path}, found no layer with a 2-D weight at all")
    return UserError(f"{unknown_name('layer', name, candidates)} (those of {path} with a 2-D weight)")


def _checked_layer(path: Path, name: str, weight: object, bias: object, shared: Sequence[str] = ()) -> Layer:
    """The layer; UserError where its tensors are not those of a linear layer."""
    for tensor, value, dims in (("weight", weight, 2), ("bias", bias, 1)):
        if tensor == "bias" and value is None:
            continue
        if (
            not isinstance(value, Tensor)
            or value.layout != torch.strided
            or value.device.type != "cpu"
            or value.dtype not in FLOATS
            or value.dim() != dims
            or 0 in value.shape
        ):
            dtypes = ", ".join(str(dtype).removeprefix("torch.") for dtype in FLOATS)
            shape = "(l >= 1, q >= 1)" if dims == 2 else "(l,)"
            raise UserError(
                f"expected {_key(name, tensor)} of {path} to be a tensor of shape {shape} in one of "
                f"{dtypes}, found {describe_tensor(value)}"
            )
    assert isinstance(weight, Tensor)
    if isinstance(bias, Tensor) and len(bias) != len(weight):
        raise UserError(
            f"expected {_key(name, 'bias')} of {path} to have the {len(weight)} entries that "
            f"{_key(name, 'weight')} has rows, found {len(bias)}"
        )
    layer = Layer(
        name, weight.detach(), bias.detach() if isinstance(bias, Tensor) else None, tuple(sorted(shared))
    )
    for key, value in layer.tensors().items():
        if not bool(torch.isfinite(value).all()):
            raise UserError(f"expected {key} of {path} to be finite, found NaN or infinity")
    return layer


# safetensors -----------------------------------------------------------------------------------------


class _Safetensors:
    """A safetensors file, whose bytes are copied but for those of the layer."""

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
        weight, bias = _key(name, "weight"), _key(name, "bias")
        if weight not in self.names:
            shapes = {key: tuple(self.header[key]["shape"]) for key in sorted(self.names)}
            raise _no_layer(self.path, name, _prefixes(shapes))
        with reading(self.path, "a safetensors file"), safe_open(self.path, "pt") as file:
            # Clones: what was read is a view of the file, which may be replaced.
            tensors = {key: file.get_tensor(key).clone() for key in (weight, bias) if key in self.names}
            with self.path.open("rb") as raw:
                for key, tensor in tensors.items():
                    begin, end = self._place(key)
                    raw.seek(begin)
                    # The header must mean the same here and to safetensors, or other bytes are replaced.
                    if raw.read(end - begin) != _bytes(tensor):
                        raise UserError(f"expected one meaning of {key} in {self.path}, found two")
        return _checked_layer(self.path, name, tensors[weight], tensors.get(bias))

    def write(self, file: BinaryIO, layer: Layer) -> None:
        with self.path.open("rb") as original:
            shutil.copyfileobj(original, file)
        for key, tensor in layer.tensors().items():
            file.seek(self._place(key)[0])
            file.write(_bytes(tensor))

    def _place(self, key: str) -> tuple[int, int]:
        begin, end = self.header[key]["data_offsets"]
        return self.start + begin, self.start + end


def _bytes(tensor: Tensor) -> bytes:
    data: bytes = tensor.contiguous().view(torch.uint8).numpy().tobytes() if tensor.numel() else b""
    return data


# torch.save ------------------------------------------------------------------------------------------


class _TorchFile:
    """A state dict that ``torch.save`` wrote, alone or among other things. Tensors are brought to the CPU."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.content = load_torch(path, "a state dict of torch.save")
        if not isinstance(self.content, MutableMapping):
            raise UserError(
                f"expected a state dict in {path}, found {describe_tensor(self.content)}: "
                "save model.state_dict()"
            )

    def layer(self, name: str) -> Layer:
        state, _ = self._find(name)
        weight, bias = state[_key(name, "weight")], state.get(_key(name, "bias"))
        shared: list[str] = []
        if isinstance(weight, Tensor) and weight.layout == torch.strided:
            shared = [
                key
                for key, value in state.items()
                if isinstance(value, Tensor)
                and value is not bias
                and key != _key(name, "weight")
                and _overlap(value, weight)
            ]
        return _checked_layer(self.path, name, weight, bias, shared)

    def write(self, file: BinaryIO, layer: Layer) -> None:
        state, nest = self._find(layer.name)
        # Shallow copies: what was read stays as it is. They keep the attribute in which the state dict of a
        # module has the versions of its parts, unlike those of dict.copy.
        changed = copy.copy(state)
        for key, tensor in layer.tensors().items():
            changed[key] = _alike(tensor, state[key])
        for i in reversed(range(len(nest))):
            outer = copy.copy(_descend(self.content, nest[:i]))
            outer[nest[i]] = changed
            changed = outer
        try:
            torch.save(changed, file)
        except RuntimeError as error:  # what torch raises for a full disk
            raise UserError(f"expected to write {file.name}, which failed: {explain_error(error)}") from error

    def _find(self, name: str) -> tuple[MutableMapping[Any, Any], tuple[str, ...]]:
        """The one state dict that has the layer, and its place in the file."""
        nests = list(_nests(self.content))
        states = [_descend(self.content, nest) for nest in nests]
        holding = [i for i, state in enumerate(states) if _key(name, "weight") in state]
        if not holding:
            shapes = {
                key: tuple(value.shape)
                for state in states
                for key, value in state.items()
                if isinstance(key, str) and isinstance(value, Tensor)
            }
            raise _no_layer(self.path, name, _prefixes(shapes))
        if len(holding) > 1:
            places = ", ".join(".".join(nests[i]) or "the top" for i in holding)
            raise UserError(f"expected layer {name!r} once in {self.path}, found it in {places}")
        return states[holding[0]], nests[holding[0]]


def _nests(content: MutableMapping[Any, Any], prefix: tuple[str, ...] = ()) -> Iterator[tuple[str, ...]]:
    yield prefix
    for name in NESTS:
        # Each name once on the way down: a mapping that holds itself would have no end.
        if name not in prefix and isinstance(content.get(name), MutableMapping):
            yield from _nests(content[name], (*prefix, name))


def _descend(content: MutableMapping[Any, Any], nest: Sequence[str]) -> MutableMapping[Any, Any]:
    for name in nest:
        content = content[name]
    return content


def _alike(tensor: Tensor, original: Tensor) -> Tensor:
    """The values of ``tensor`` as the kind of tensor that ``original`` is."""
    if isinstance(original, nn.Parameter):
        return nn.Parameter(tensor, requires_grad=original.requires_grad)
    return tensor.clone().requires_grad_(original.requires_grad)


def _overlap(a: Tensor, b: Tensor) -> bool:
    if a.layout != torch.strided or a.device.type != "cpu" or b.device.type != "cpu":
        return False
    if not a.numel() or not b.numel():
        return False
    return _span(a)[0] < _span(b)[1] and _span(b)[0] < _span(a)[1]


def _span(tensor: Tensor) -> tuple[int, int]:
    """First byte of a tensor and the one after its last."""
    last = sum((size - 1) * stride for size, stride in zip(tensor.shape, tensor.stride(), strict=True))
    return tensor.data_ptr(), tensor.data_ptr() + (last + 1) * tensor.element_size()
