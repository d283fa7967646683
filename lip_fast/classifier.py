"""Where the weight and the bias of a classifier are looked up, and what they have to be."""

import torch
from torch import Tensor, nn
from torch.nn.parameter import is_lazy

from lip_fast.sharded.tensors import trained_weight
from lip_fast.unfit import unfit
from lip_fast.validation import FLOATS, describe

__all__ = ["Head", "check_bias", "check_matrix"]


class Head:
    """Where the weight and the bias of a classifier are looked up: what a module has at the moment."""

    def __init__(self, module: nn.Module | None) -> None:
        self.module = module

    def tensor(self) -> object:
        """What is in the place of the weight at the moment, unchecked."""
        return getattr(self.module, "weight", None)

    def weight(self) -> Tensor:
        """The weight (l, q) that an optimizer trains; TypeError or ValueError where there is none."""
        return check_matrix(getattr(self.module, "weight", None), of=self.module)

    def bias(self, l: int) -> Tensor | None:
        """The bias (l,), if there is one; TypeError where there is something else."""
        bias = getattr(self.module, "bias", None)
        return None if bias is None else check_bias(bias, l)


def check_matrix(weight: object, *, of: object = None) -> Tensor:
    """``weight`` of the head ``of``, checked, as the parameter (l, q) that an optimizer trains.

    Raises:
        TypeError, ValueError: no matrix that LIP can act on.
    """
    if not isinstance(weight, Tensor) or is_lazy(weight):
        raise unfit(weight, of)
    if weight.dim() != 2 or weight.dtype not in FLOATS or weight.layout != torch.strided or weight.is_meta:
        raise unfit(weight, of)
    # Asked here, so that a step of one process does not go through the module for several.
    several = torch.distributed.is_available() and torch.distributed.is_initialized()
    return trained_weight(weight) if several else weight


def check_bias(bias: object, l: int) -> Tensor:
    """The bias (l,) of what a head has; TypeError where it is something else."""
    if not isinstance(bias, Tensor) or tuple(bias.shape) != (l,):
        raise TypeError(f"expected a head with a bias of shape ({l},) or None, got {describe(bias)}")
    return bias
