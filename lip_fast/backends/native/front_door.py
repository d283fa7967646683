"""Where tensors become addresses: what does not fit is refused before anything is followed."""

from collections.abc import Callable, Sequence
from types import ModuleType
from typing import Any

import torch
from torch import Tensor

from lip_fast.backends.native import library

__all__ = ["address", "module_and_stream", "on_its_device"]


def address(
    name: str,
    X: Tensor,
    shape: Sequence[int],
    dtype: torch.dtype,
    device: torch.device,
    *,
    columns: bool = False,
) -> int:
    """The address of X, once it is known to be what the kernel will take it for.

    Args:
        name: of the operand, for the message.
        X: the operand.
        shape: expected shape.
        dtype: expected dtype.
        device: where the kernel runs.
        columns: the last dimension but one is the contiguous one, as in a transposed matrix.

    Raises:
        TypeError: another dtype.
        ValueError: another shape, device or layout, or an address off the dtype's boundary.
    """
    if X.dtype != dtype:
        raise TypeError(f"expected {name} in {dtype}, got {X.dtype}")
    if X.device != device:
        raise ValueError(f"expected {name} on {device}, got {X.device}")
    if tuple(X.shape) != tuple(shape):
        raise ValueError(f"expected {name} of shape {tuple(shape)}, got {tuple(X.shape)}")
    if not (X.mT if columns else X).is_contiguous():
        layout = "columns" if columns else "rows"
        raise ValueError(f"expected {name} with contiguous {layout}, got strides {X.stride()}")
    start: int = X.data_ptr()
    if start % X.itemsize:
        raise ValueError(f"expected {name} on a boundary of {X.itemsize} bytes, got address {start}")
    return start


def module_and_stream(device: torch.device) -> tuple[ModuleType, int]:
    """The extension module for a device, and the address of the stream to run on.

    Raises:
        RuntimeError: the module is not there.
    """
    if device.type == "cuda":
        module, stream = library.cuda(), torch.cuda.current_stream(device).cuda_stream
    else:
        module, stream = library.cpu(), 0
    if module is None:
        raise RuntimeError(f"expected the native kernels for {device}, got none: {library.problems()}")
    return module, stream


def on_its_device(run: Callable[..., Any]) -> Callable[..., Any]:
    """``run`` with the device of its first argument as the current one, on which CUDA launches."""

    def guarded(first: Tensor, *rest: Any) -> Any:
        if first.device.index == torch.cuda.current_device():
            return run(first, *rest)
        with torch.cuda.device(first.device):
            return run(first, *rest)

    return guarded
