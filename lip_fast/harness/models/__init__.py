"""The networks that are trained, by name."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from lip_fast.cli.errors import UserError, unknown_name
from lip_fast.harness.models.convolutional import CNN, ResNet, resnet18, resnet34
from lip_fast.harness.models.network import Network
from lip_fast.harness.models.perceptrons import MLP, Linear

__all__ = ["CNN", "MLP", "MODELS", "Linear", "Network", "ResNet", "Sizes", "make_model"]


@dataclass(frozen=True)
class Sizes:
    """What a network is built for.

    Attributes:
        model: its name in ``MODELS``, for messages.
        inputs: number of input features d.
        image_shape: (channels, height, width) of the inputs; None where they are no images.
        hidden: widths of the hidden layers of those networks that leave them open.
        classes: number of classes l.
    """

    model: str
    inputs: int
    image_shape: tuple[int, int, int] | None
    hidden: Sequence[int]
    classes: int

    def images(self) -> tuple[int, int, int]:
        """The shape of the inputs.

        Raises:
            UserError: they are no images.
            ValueError: the shape is not that of d features.
        """
        if self.image_shape is None:
            raise UserError(f"expected images for model {self.model}, got vectors of {self.inputs} features")
        if math.prod(self.image_shape) != self.inputs:
            raise ValueError(f"image_shape {self.image_shape} is not of {self.inputs} features")
        return self.image_shape


MODELS: dict[str, Callable[[Sizes], Network]] = {
    "linear": lambda sizes: Linear(sizes.inputs, sizes.classes),
    "mlp": lambda sizes: MLP(sizes.inputs, sizes.hidden, sizes.classes),
    "cnn": lambda sizes: CNN(sizes.images(), sizes.classes),
    "resnet18": lambda sizes: resnet18(sizes.images(), sizes.classes),
    "resnet34": lambda sizes: resnet34(sizes.images(), sizes.classes),
}


def make_model(
    name: str,
    *,
    inputs: int,
    image_shape: tuple[int, int, int] | None,
    hidden: Sequence[int],
    classes: int,
) -> Network:
    """A network with fresh weights, drawn from torch's global random state.

    Under ``torch.device("meta")`` it takes no memory and draws nothing, which tells its sizes.

    Args:
        name: one of ``MODELS``.
        inputs: number of input features d.
        image_shape: (channels, height, width) of the inputs; None where they are no images.
        hidden: widths of the hidden layers of ``"mlp"``; others ignore them.
        classes: number of classes l.

    Raises:
        UserError: the name is unknown, or a model of images is asked for where there are none.
        ValueError: ``image_shape`` is not that of d features.
    """
    if name not in MODELS:
        raise unknown_name("model", name, MODELS)
    return MODELS[name](Sizes(name, inputs, image_shape, hidden, classes))
