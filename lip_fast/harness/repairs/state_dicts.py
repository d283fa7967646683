"""State dicts that ``torch.save`` wrote, alone or among other things."""

import copy
from collections.abc import Callable, Iterator, MutableMapping
from functools import partial
from pathlib import Path
from typing import Any, BinaryIO

import torch
from torch import Tensor, nn

from lip_fast.cli.errors import UserError
from lip_fast.harness.files.torch_files import explain_error, load_torch
from lip_fast.harness.repairs.layers import (
    Layer,
    checked_layer,
    describe_tensor,
    layers_of,
    meant,
    no_layer,
    several_layers,
    tensor_name,
)

__all__ = ["StateDict"]

State = MutableMapping[Any, Any]
Place = tuple[str, ...]


class StateDict:
    """A file of ``torch.save`` with a state dict anywhere in its mappings. Tensors are brought to the CPU.

    A layer is asked for by its name in the whole file, or by that in its state dict where no other has it:
    ``ema.head`` is the layer ``head`` of what is saved as ``"ema"``.
    """

    folder: Path | None = None

    def __init__(self, path: Path) -> None:
        self.path = path
        self.content = load_torch(path, "a state dict, as torch.save(model.state_dict(), ...) writes it")
        if not isinstance(self.content, MutableMapping):
            raise UserError(
                f"expected a state dict in {path}, found {describe_tensor(self.content)}: "
                "save model.state_dict()"
            )
        self.states: dict[Place, State] = dict(_states(self.content))

    def layer(self, name: str) -> Layer:
        """As of :class:`Checkpoint`."""
        place, stored = self._find(name)
        state = self.states[place]
        weight, bias = state[tensor_name(stored, "weight")], state.get(tensor_name(stored, "bias"))
        shared: list[str] = []
        if isinstance(weight, Tensor) and weight.layout == torch.strided:
            shared = [
                ".".join((*other, key))
                for other, key, value in self._tensors()
                if value is not bias
                and (other, key) != (place, tensor_name(stored, "weight"))
                and _overlap(value, weight)
            ]
        return checked_layer(self.path, stored, weight, bias, shared, place)

    def files(self, layer: Layer) -> dict[Path, Callable[[BinaryIO], None]]:
        """As of :class:`Checkpoint`."""
        return {self.path: partial(self.write, layer=layer)}

    def write(self, file: BinaryIO, layer: Layer) -> None:
        """Write the file with the tensors of ``layer`` in the place of its own."""
        state = self.states[layer.place]
        # Shallow copies: what was read stays as it is. They keep the attribute in which the state dict of a
        # module has the versions of its parts, unlike those of dict.copy.
        changed = copy.copy(state)
        for key, tensor in layer.tensors().items():
            changed[key] = _alike(tensor, state[key])
        for i in reversed(range(len(layer.place))):
            outer = copy.copy(self.states[layer.place[:i]])
            outer[layer.place[i]] = changed
            changed = outer
        try:
            torch.save(changed, file)
        except RuntimeError as error:  # what torch raises for a full disk
            raise UserError(f"expected to write {file.name}, which failed: {explain_error(error)}") from error

    def _find(self, asked: str) -> tuple[Place, str]:
        """The one layer of that name, and the state dict that it lies in."""
        layers = [(place, name) for place, state in self.states.items() for name in layers_of(state)]
        found = [layer for layer in layers if _joined(*layer) == asked]
        if not found:
            names = meant(asked, [name for _, name in layers] + [_joined(*layer) for layer in layers])
            found = [layer for layer in layers if layer[1] in names or _joined(*layer) in names]
        if not found:
            shapes = {_joined(place, key): tuple(value.shape) for place, key, value in self._tensors()}
            raise no_layer(self.path, asked, shapes)
        if len(found) > 1:
            raise several_layers(self.path, asked, [_joined(*layer) for layer in found])
        return found[0]

    def _tensors(self) -> Iterator[tuple[Place, str, Tensor]]:
        for place, state in self.states.items():
            for key, value in state.items():
                if isinstance(key, str) and isinstance(value, Tensor):
                    yield place, key, value


def _joined(place: Place, name: str) -> str:
    return ".".join(filter(None, (*place, name)))


def _states(content: State) -> Iterator[tuple[Place, State]]:
    """Every mapping with its place; one that is there twice, or holds itself, is entered once."""
    waiting: list[tuple[Place, State]] = [((), content)]
    entered: set[int] = set()
    for place, state in waiting:
        yield place, state
        if id(state) not in entered:
            entered.add(id(state))
            waiting += [
                ((*place, key), value)
                for key, value in state.items()
                if isinstance(key, str) and isinstance(value, MutableMapping)
            ]


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
