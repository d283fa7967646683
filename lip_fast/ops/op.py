"""The declaration of an op: its schema, its checks, what it returns, and the kernels that may serve it."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from lip_fast import backends
from lip_fast.backends.kernel import Kernel
from lip_fast.validation import AS_THEY_ARE, PRODUCTS, full_precision

__all__ = ["OPS", "Op", "on_its_device"]

OPS: dict[str, "Op"] = {}
"""Every op, by its name."""


class Op:
    """One op of the namespace ``lip_fast``, defined by making it.

    None of the ops is differentiable: they run inside an optimizer step.

    Args:
        schema: as ``torch.library.define`` takes it, with the name before it: "gram(Tensor X) -> Tensor".
        check: raises where the arguments do not fit. Run before every call and while the op is traced;
            kernels trust it.
        outputs: makes empty tensors like those that the op returns, for tracing.
        default: the path of the kernel in plain torch, as of :class:`Kernel`.
        kernels: those that come before it where they take the arguments, best first.
        small_algebra: whether the kernel in plain torch multiplies small matrices, whose products no switch
            of torch may round (``torch.set_float32_matmul_precision``, autocast): a basis would not be
            orthogonal. In a step they are off for all ops; this is for ops that are called by themselves.

    Attributes:
        run: the op as torch dispatches it, without the check.
        plain: the kernel in plain torch, as the op runs it.
    """

    def __init__(
        self,
        schema: str,
        *,
        check: Callable[..., None],
        outputs: Callable[..., Any],
        default: str,
        kernels: tuple[Kernel, ...] = (),
        small_algebra: bool = False,
    ) -> None:
        self.name = schema.partition("(")[0]
        self.check = check

        def fake(*arguments: Any) -> Any:
            check(*arguments)
            return outputs(*arguments)

        name = f"lip_fast::{self.name}"
        torch.library.define(name, schema.removeprefix(self.name))
        torch.library.register_fake(name, self.taking(fake))
        fallback = Kernel(default)
        backends.declare(self.name, (fallback, *kernels))
        # "default" is one kernel for every device that has none of its own.
        self.plain: Kernel | _Unrounded = _Unrounded(fallback) if small_algebra else fallback
        plain = self.plain
        torch.library.register_kernel(name, "default", self.taking(_first_that_takes([], plain)))
        for device in backends.devices():
            if found := backends.candidates(self.name, device):
                chosen = self.taking(_first_that_takes(found, plain))
                torch.library.register_kernel(
                    name, device, on_its_device(chosen) if device == "cuda" else chosen
                )
        # Bound once: the attribute look-ups of torch.ops cost as much as a small kernel.
        self.run: Callable[..., Any] = getattr(torch.ops.lip_fast, self.name).default
        OPS[self.name] = self

    def taking(self, function: Callable[..., Any]) -> Callable[..., Any]:
        """``function`` as torch calls it, with the operands of the schema."""
        return function

    def __call__(self, *arguments: Any) -> Any:
        """Check the arguments, and run the kernel that serves them."""
        self.check(*arguments)
        return self.run(*arguments)


class _Unrounded:
    """A kernel whose float32 products are in float32, whatever torch's switches say."""

    def __init__(self, kernel: Kernel) -> None:
        self._kernel = kernel
        self._guarded = full_precision(lambda *arguments: kernel.run(*arguments))

    def run(self, *arguments: Any) -> Any:
        # Asked here, and not by the guard: a warm step goes through few functions.
        rounds = any(products.fp32_precision not in AS_THEY_ARE for products in PRODUCTS)
        autocast = torch.is_autocast_enabled("cpu") or torch.is_autocast_enabled("cuda")
        return (self._guarded if rounds or autocast else self._kernel.run)(*arguments)


def _first_that_takes(found: list[backends.Candidate], fallback: Kernel | _Unrounded) -> Callable[..., Any]:
    choices = [(candidate.takes, candidate.kernel) for candidate in found]

    def chosen(*arguments: Any) -> Any:
        for takes, kernel in choices:
            if takes(*arguments):
                return kernel.run(*arguments)
        return fallback.run(*arguments)

    return chosen


def on_its_device(run: Callable[..., Any]) -> Callable[..., Any]:
    """``run`` with the device of its first argument as the current one, on which CUDA launches."""

    def guarded(first: Tensor, *rest: Any) -> Any:
        if first.device.index == torch.cuda.current_device():
            return run(first, *rest)
        with torch.cuda.device(first.device):
            return run(first, *rest)

    return guarded


backends.check_choice()
