"""Heads that LIP cannot act on: why, and what to pass in their place."""

import warnings

from torch import Tensor, nn, strided
from torch.nn.parameter import is_lazy
from torch.nn.utils.parametrize import is_parametrized

from lip_fast.sharded.tensors import is_sharded
from lip_fast.validation import FLOATS, describe

__all__ = ["check_trained", "unfit", "warn_unless_linear"]

_HEAD = "expected a head with a 2-D weight, such as nn.Linear"


def unfit(weight: object, module: object) -> Exception:
    """The error of what is no dense matrix of floating-point numbers.

    Args:
        weight: what is in the place of the weight.
        module: the head; None where only the weight is known.
    """
    if isinstance(weight, Tensor) and is_lazy(weight):
        return ValueError(f"{_HEAD}, got one without a shape yet: call the model on a batch first")
    got = " with weight ".join(describe(X) for X in (module, weight) if X is not None)
    if isinstance(weight, Tensor) and weight.dim() == 2:
        if weight.is_meta:
            return ValueError(
                "expected a weight that holds numbers, got one on meta: materialize the model first"
            )
        codes = weight.dtype.itemsize == 1 or not (weight.is_floating_point() or weight.is_complex())
        advice = ": a quantized weight cannot be refitted" if codes else ""
        return TypeError(f"expected a dense weight in one of {FLOATS}, got {got}{advice}")
    if isinstance(module, Tensor):
        return TypeError(f"{_HEAD}, got its weight, {describe(module)}: pass the module")
    if isinstance(weight, Tensor) and weight.dim() > 2 and set(weight.shape[2:]) == {1}:
        return TypeError(
            f"{_HEAD}, got {got}: nn.Linear on flattened features does the same as a convolution of 1 x 1"
        )
    return TypeError(f"{_HEAD}, got {got}{_linear_inside(module)}")


def check_trained(weight: Tensor, module: object) -> None:
    """Refuse a weight, of right shape and type, that no optimizer trains as it is.

    Raises:
        TypeError, ValueError: it is computed from other tensors, is a tensor of codes, or was made where
            nothing is trained.
    """
    if hasattr(module, "base_layer") and isinstance(module, nn.Module):
        raise TypeError(
            f"expected a head whose weight is trained, got {describe(module)}, which trains matrices beside "
            "the weight of its base_layer: have the whole head trained (modules_to_save in peft), or merge "
            "first, and pass the nn.Linear"
        )
    if isinstance(module, nn.Module) and is_parametrized(module, "weight"):
        raise TypeError(
            f"expected a head whose weight is a parameter, got {describe(module)}, whose weight is computed "
            "by a parametrization: call torch.nn.utils.parametrize.remove_parametrizations(head, 'weight') "
            "first, or pass the module underneath"
        )
    if not weight.is_leaf:
        raise TypeError(
            f"expected a head whose weight is a parameter, got {describe(module or weight)}, whose weight is "
            "computed from others (torch.nn.utils.weight_norm, spectral_norm): remove that from it first"
        )
    if weight.is_inference():
        raise ValueError(
            "expected a head that can be trained, got one made in torch.inference_mode(): make it outside"
        )
    coded = type(weight).__torch_dispatch__ is not Tensor.__torch_dispatch__
    if coded and not is_sharded(weight):
        raise TypeError(
            f"expected a weight of numbers, got {type(weight).__name__}: quantized, it cannot be refitted"
        )


# How far the logits may lie from the products, of their largest: bfloat16 products differ by a hundredth,
# another formula by as much as they are.
_TOLERANCE = 0.1


def warn_unless_linear(features: Tensor, logits: Tensor, weight: Tensor, bias: Tensor | None) -> None:
    """Warn of a head whose output is not features M^T + bias: what LIP refits is another model.

    Args:
        features: (..., q) what the head was called with.
        logits: the first rows of what it made of them.
        weight: M (l, q).
        bias: (l,) or None.
    """
    tensors = [features, weight, *([] if bias is None else [bias])]
    if any(is_sharded(t) or t.layout != strided for t in tensors) or not logits.numel():
        return
    l, q = weight.shape
    x = features.detach().reshape(-1, q)[: len(logits)].float()
    fits = logits.shape == (len(x), l)
    if fits:
        b = None if bias is None else bias.detach().float()
        expected = nn.functional.linear(x, weight.detach().float(), b)
        difference = (logits.float() - expected).abs().max()
        # Where something is not finite nothing is said of it here.
        fits = not bool(difference > _TOLERANCE * expected.abs().max())
    if not fits:
        warnings.warn(
            "LIP refits the weight of a head that computes features @ weight.T + bias, and this one computes "
            "something else (normalised features or weights, another layout)",
            UserWarning,
            stacklevel=2,
        )


def _linear_inside(module: object) -> str:
    """Advice that names the linear layers inside of a module; nothing where there are none."""
    if not isinstance(module, nn.Module):
        return ""
    names = [name for name, inside in module.named_modules() if isinstance(inside, nn.Linear)]
    if not names:
        return ""
    # The head is the last one, as a rule.
    listed = ", ".join(repr(name) for name in names[-3:])
    return f": pass the nn.Linear inside that makes the logits ({'..., ' if len(names) > 3 else ''}{listed})"
