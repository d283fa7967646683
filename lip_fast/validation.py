"""Checks of arguments: each message names what was expected and what came."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import ExitStack
from functools import wraps
from typing import Any, ParamSpec, TypeVar

import torch
from torch import Tensor

__all__ = [
    "AS_THEY_ARE",
    "FLOATS",
    "PRODUCTS",
    "check_batches",
    "check_features",
    "check_finite",
    "check_float_matrix",
    "check_int",
    "check_like",
    "check_number",
    "check_pair",
    "check_sequence",
    "check_whole",
    "describe",
    "full_precision",
    "outside_inference_mode",
]

_P = ParamSpec("_P")
_R = TypeVar("_R")

FLOATS = (torch.float32, torch.float64, torch.bfloat16, torch.float16)
PRODUCTS: tuple[Any, ...] = (torch.backends.cuda.matmul, torch.backends.mkldnn.matmul)  # type: ignore[attr-defined]
"""What rounds the operands of float32 products where torch.set_float32_matmul_precision has it do so."""
AS_THEY_ARE = ("ieee", "none")
"""Their precisions of operands that are not rounded."""


def describe(value: object) -> str:
    """What ``value`` is, for a message."""
    if isinstance(value, Tensor):
        return f"a tensor of shape {tuple(value.shape)} and dtype {value.dtype}"
    return (
        f"{type(value).__name__} {value!r}" if isinstance(value, str | int | float) else type(value).__name__
    )


def check_int(name: str, value: object, least: int, most: int | None = None) -> int:
    """``value`` if it is an int in least..most; else TypeError or ValueError."""
    if not isinstance(value, int) or isinstance(value, bool):
        advice = f": pass int({name})" if hasattr(value, "__index__") and not isinstance(value, bool) else ""
        raise TypeError(f"expected {name} as an int, got {describe(value)}{advice}")
    if value < least or (most is not None and value > most):
        bounds = f">= {least}" if most is None else f"in {least}..{most}"
        raise ValueError(f"expected {name} {bounds}, got {value}")
    return value


def check_number(name: str, value: object) -> None:
    """TypeError unless ``value`` is a number, also as a tensor or an array of one."""
    several = getattr(value, "numel", lambda: 1)() != 1
    if several or not hasattr(value, "__float__"):
        raise TypeError(f"expected {name} as a number, got {describe(value)}")


def check_float_matrix(name: str, X: Tensor, dtypes: Sequence[torch.dtype] = FLOATS) -> None:
    """TypeError unless ``X`` is dense and of one of ``dtypes``, ValueError unless it is a matrix."""
    if not isinstance(X, Tensor):
        raise TypeError(f"expected {name} as a torch.Tensor, got {describe(X)}")
    if X.layout != torch.strided or X.dtype not in dtypes:
        names = ", ".join(str(dtype).removeprefix("torch.") for dtype in dtypes)
        raise TypeError(f"expected {name} dense in one of {names}, got {X.dtype} ({X.layout})")
    if X.dim() != 2:
        raise ValueError(f"expected {name} to be a matrix, got shape {tuple(X.shape)}")


def check_features(name: str, X: object) -> None:
    """As :func:`check_float_matrix` of features, with what to pass in place of what often comes instead."""
    if not isinstance(X, Tensor):
        advice = ": pass torch.as_tensor of it" if hasattr(X, "__array__") else ""
        raise TypeError(f"expected {name} as a torch.Tensor, got {describe(X)}{advice}")
    inputs = "features are the input of the last layer, not of the network"
    if X.dim() == 1:
        raise ValueError(
            f"expected {name} to be a matrix (rows, features), got shape {tuple(X.shape)}: of one row, pass "
            "X[None]"
        )
    if X.dim() > 2:
        raise ValueError(
            f"expected {name} to be a matrix (rows, features), got shape {tuple(X.shape)}: {inputs}; of "
            "sequences of them, pass X.flatten(0, -2) and as many labels"
        )
    if not X.is_floating_point() and not X.is_complex():
        raise TypeError(f"expected {name} of floating-point numbers, got {X.dtype}: {inputs}")
    check_float_matrix(name, X)


def check_batches(batches: object) -> Iterable[Any]:
    """``batches``; TypeError where they cannot be iterated over, or only look as if they could."""
    if isinstance(batches, Tensor | str | Mapping) or not isinstance(batches, Iterable):
        advice = ": pass a DataLoader of it" if hasattr(batches, "__getitem__") else ""
        raise TypeError(
            "expected features and labels, or an iterable of pairs (features, labels) such as a DataLoader, "
            f"got {describe(batches)}{advice}"
        )
    return batches


def check_pair(batch: Any, i: int) -> tuple[Any, Any]:
    """Features and labels of batch ``i``; TypeError where it is no pair."""
    if isinstance(batch, tuple | list) and len(batch) == 2:
        return batch[0], batch[1]
    if isinstance(batch, Mapping):
        got = f"the keys {', '.join(map(repr, batch))}"
        advice = "pass ((batch[FEATURES], batch[LABELS]) for batch in loader)"
    elif isinstance(batch, tuple | list):
        got, advice = f"{len(batch)} values", "pass ((x, y) for x, y, *_ in loader)"
    else:
        got, advice = describe(batch), "pass features and labels as two arguments, X and Y"
    raise TypeError(f"expected batch {i} as a pair (features, labels), got {got}: {advice}")


def check_sequence(name: str, values: object) -> None:
    """TypeError unless ``values`` are several, in an order."""
    several = hasattr(values, "__len__") and hasattr(values, "__getitem__")
    if not several or isinstance(values, str | Mapping):
        raise TypeError(f"expected {name} as a list, got {describe(values)}: pass [{name}] for one")


def check_finite(name: str, X: Tensor) -> None:
    """ValueError that names the first entry that is not finite. Waits for the device."""
    finite = torch.isfinite(X)
    if not bool(finite.all()):
        position = tuple(torch.nonzero(~finite)[0].tolist())
        raise ValueError(f"expected finite {name}, got {float(X[position])} at {position}")


def check_whole(name: str, X: Tensor) -> None:
    """TypeError of a DTensor, where each process would compute on its part alone."""
    # By its name: to import the class takes a second.
    if type(X).__name__ == "DTensor":
        raise TypeError(f"expected {name} whole on this process, got a DTensor: pass {name}.full_tensor()")


def check_like(name: str, value: object, template: object) -> None:
    """ValueError unless ``value`` is built as ``template`` is.

    A mapping has the same keys, each with such a value; a tensor has the same shape; a number is of the same
    type; None stands for an int >= 0 or None; a list or tuple is one of any length.
    """
    if isinstance(template, dict):
        if not isinstance(value, Mapping) or value.keys() != template.keys():
            got = f"the keys {', '.join(map(repr, value))}" if isinstance(value, Mapping) else describe(value)
            raise ValueError(f"expected {name} with the keys {', '.join(map(repr, template))}, got {got}")
        for key, like in template.items():
            check_like(f"{name}[{key!r}]", value[key], like)
        return
    if isinstance(template, Tensor):
        fits = isinstance(value, Tensor) and value.shape == template.shape
    elif isinstance(template, list | tuple):
        fits = isinstance(value, list | tuple)
    elif template is None:
        fits = value is None or (type(value) is int and value >= 0)
    else:
        fits = type(value) is type(template)
    if not fits:
        expected = "an int or None" if template is None else describe(template)
        raise ValueError(f"expected {name} to be like {expected}, got {describe(value)}")


def outside_inference_mode(function: Callable[_P, _R]) -> Callable[_P, _R]:
    """``function``, which makes ordinary tensors inside of ``torch.inference_mode()`` too.

    What is made in that mode can be neither trained nor written outside of it, and statistics or a repaired
    head live on after it. Gradients stay off. Of a generator only the call is outside: call a decorated
    function for each of its values.
    """

    @wraps(function)
    def wrapper(*args: _P.args, **kwargs: _P.kwargs) -> _R:
        if not torch.is_inference_mode_enabled():
            return function(*args, **kwargs)
        # To leave the mode turns gradients on.
        with torch.inference_mode(False), torch.no_grad():
            return function(*args, **kwargs)

    return wrapper


def full_precision(function: Callable[_P, _R]) -> Callable[_P, _R]:
    """``function`` with autocast off and float32 products in float32, whatever a training allows its own.

    In bfloat16 a decomposition would have no correct digits, in TF32 most of an optimizer's update would be
    lost where a weight is written from its factors. It is :func:`outside_inference_mode` too.
    """

    @wraps(function)
    def wrapper(*args: _P.args, **kwargs: _P.kwargs) -> _R:
        rounding = [(products, products.fp32_precision) for products in PRODUCTS]
        rounding = [(products, how) for products, how in rounding if how not in AS_THEY_ARE]
        enabled = [device for device in ("cpu", "cuda") if torch.is_autocast_enabled(device)]
        if not rounding and not enabled:
            return function(*args, **kwargs)
        with ExitStack() as stack:
            for device in enabled:
                stack.enter_context(torch.autocast(device, enabled=False))
            for products, how in rounding:
                products.fp32_precision = "ieee"
                stack.callback(_restore, products, how)
            return function(*args, **kwargs)

    return outside_inference_mode(wrapper)


def _restore(products: Any, how: str) -> None:
    """Have products take the precision ``how`` again: by themselves only where it is not that of all."""
    products.fp32_precision = "none"
    if products.fp32_precision != how:
        products.fp32_precision = how
