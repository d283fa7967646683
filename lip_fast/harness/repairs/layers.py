"""A linear layer among the tensors of a saved model: how it is named, found and checked."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from lip_fast.cli.errors import UserError, unknown_name
from lip_fast.validation import FLOATS

__all__ = [
    "Layer",
    "checked_layer",
    "describe_tensor",
    "layers_of",
    "meant",
    "no_layer",
    "several_layers",
    "tensor_name",
]

# What DataParallel, torch.compile, FSDP and activation checkpointing put into the names of what they wrap.
WRAPPERS = ("module", "_orig_mod", "_fsdp_wrapped_module", "_checkpoint_wrapped_module")


@dataclass(frozen=True)
class Layer:
    """A linear layer of a checkpoint.

    Attributes:
        name: prefix of its tensors.
        weight: (l, q), floating point.
        bias: (l,), floating point, or None.
        shared: names of other tensors in the same memory.
        place: names of the mappings that its state dict lies in, the outermost first.
    """

    name: str
    weight: Tensor
    bias: Tensor | None
    shared: tuple[str, ...] = ()
    place: tuple[str, ...] = ()

    def tensors(self) -> dict[str, Tensor]:
        """Its tensors by their names in the state dict."""
        tensors = {tensor_name(self.name, "weight"): self.weight}
        return tensors if self.bias is None else tensors | {tensor_name(self.name, "bias"): self.bias}

    @property
    def full_name(self) -> str:
        """Its name in the whole file."""
        return ".".join(filter(None, (*self.place, self.name)))


def tensor_name(layer: str, tensor: str) -> str:
    """The name of the ``"weight"`` or ``"bias"`` of a layer."""
    # The state dict of a bare nn.Linear has no prefixes.
    return f"{layer}.{tensor}" if layer else tensor


def layers_of(names: Iterable[object]) -> list[str]:
    """The layers that have a weight, whatever its shape."""
    return [
        name.removesuffix("weight").removesuffix(".")
        for name in names
        if isinstance(name, str) and (name == "weight" or name.endswith(".weight"))
    ]


def meant(asked: str, names: Iterable[str]) -> list[str]:
    """The names that ``asked`` may mean: itself, or else those that differ from it in wrappers alone."""
    names = list(names)
    exact = [name for name in names if name == asked]
    return exact or [name for name in names if _unwrapped(name) == _unwrapped(asked)]


def _unwrapped(name: str) -> str:
    return ".".join(part for part in name.split(".") if part not in WRAPPERS)


def no_layer(path: Path, asked: str, shapes: Mapping[str, tuple[int, ...]]) -> UserError:
    """The error for a layer that is not there.

    Args:
        path: of the file.
        asked: the name that was given.
        shapes: of all tensors of the file, by name.
    """
    matrices = [name for name in layers_of(shapes) if len(shapes[tensor_name(name, "weight")]) == 2]
    if not matrices:
        found = f"no layer with a 2-D weight at all among {', '.join(list(shapes)[:10]) or 'no tensors'}"
        return UserError(f"expected layer {asked!r} in {path}, found {found}")
    return UserError(f"{unknown_name('layer', asked, matrices)} (those of {path} with a 2-D weight)")


def several_layers(path: Path, asked: str, found: Sequence[str]) -> UserError:
    """The error for a name that several layers have."""
    return UserError(
        f"expected layer {asked!r} once in {path}, found {', '.join(found)}: --layer takes one of these names"
    )


def checked_layer(
    path: Path,
    name: str,
    weight: object,
    bias: object,
    shared: Sequence[str] = (),
    place: tuple[str, ...] = (),
) -> Layer:
    """The layer.

    Raises:
        UserError: its tensors are not those of a linear layer, or not finite.
    """
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
                f"expected {tensor_name(name, tensor)} of {path} to be a tensor of shape {shape} in one of "
                f"{dtypes}, found {describe_tensor(value)}"
            )
    assert isinstance(weight, Tensor)
    if isinstance(bias, Tensor) and len(bias) != len(weight):
        raise UserError(
            f"expected {tensor_name(name, 'bias')} of {path} to have the {len(weight)} entries that "
            f"{tensor_name(name, 'weight')} has rows, found {len(bias)}"
        )
    detached = bias.detach() if isinstance(bias, Tensor) else None
    layer = Layer(name, weight.detach(), detached, tuple(sorted(shared)), place)
    for key, value in layer.tensors().items():
        if not bool(torch.isfinite(value).all()):
            raise UserError(f"expected {key} of {path} to be finite, found NaN or infinity")
    return layer


def describe_tensor(value: object) -> str:
    """What ``value`` is, for a message."""
    if isinstance(value, Tensor):
        return f"{str(value.dtype).removeprefix('torch.')} of shape {tuple(value.shape)}"
    return type(value).__name__
