"""Kernels in Triton, one op a file: streaming passes over the weight and the features.

A kernel's file is imported, and Triton with it, when the kernel is first needed; what is here looks at what
is installed and imports nothing of it.
"""

import functools
import importlib.metadata
import importlib.util
import re

import torch

__all__ = ["MAX_COLUMNS", "STORED", "problem", "serves", "version"]

STORED = (torch.float32, torch.bfloat16, torch.float16)
"""Formats of weights and features that the kernels read."""
MAX_COLUMNS = 128
"""Widest tile of columns that the products of an update keep in registers."""

# The oldest release whose language the kernels keep to: that of torch 2.9.
_OLDEST = (3, 5)
# Names that the package `triton` is published under: releases, and nightly builds of torch.
_DISTRIBUTIONS = ("triton", "pytorch-triton")
# Compute capability that bfloat16 and TF32 products begin with.
_CAPABILITY = (8, 0)


@functools.cache
def version() -> str | None:
    """The version of the Triton that would be imported; None where there is none."""
    spec = importlib.util.find_spec("triton")
    # Without a file of its own it is some folder of that name.
    if spec is None or spec.origin is None:
        return None
    for distribution in _DISTRIBUTIONS:
        try:
            return importlib.metadata.version(distribution)
        except importlib.metadata.PackageNotFoundError:
            continue
    return "of unknown version"


def problem() -> str | None:
    """Why Triton cannot be used; None where it can."""
    found = version()
    if found is None:
        return "Triton is not installed"
    number = re.match(r"(\d+)\.(\d+)", found)
    if number is None or (int(number[1]), int(number[2])) < _OLDEST:
        return f"Triton is {found}, expected {_OLDEST[0]}.{_OLDEST[1]} or newer"
    return None


@functools.cache
def serves(index: int) -> bool:
    """Whether the kernels compile for this device; asked when the first tensor of it comes.

    At import nothing is asked of a device: processes that are forked later could not use it.
    """
    return torch.cuda.get_device_capability(index) >= _CAPABILITY
