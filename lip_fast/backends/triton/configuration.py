"""How a kernel is launched, written down where it can be compiled without a device."""

from collections.abc import Mapping
from typing import Any, NamedTuple

__all__ = ["Configuration"]


class Configuration(NamedTuple):
    """One shipped form of a kernel.

    A launcher takes block sizes, warps and stages from here. Every file of kernels lists what it launches as
    ``CONFIGURATIONS``, which a test compiles for the devices there are: all forms, or, where formats and
    options multiply, some that stand for the rest.

    Attributes:
        kernel: the function under ``@triton.jit``.
        signature: type of each argument that is no constexpr, as Triton spells it ("*bf16", "i32").
        constexprs: the other arguments. A stride of 1 may be listed here: Triton compiles it in.
        num_warps: warps of a program.
        num_stages: stages of its software pipeline.
        fp_fusion: whether a product and a sum may be rounded once. Which of them are then is the compiler's
            choice, and another one in another kernel: off where two kernels must agree to the bit.
        registers: most that a thread may take. Left to itself (None), ptxas may spill a few of them for one
            more program on a multiprocessor.
    """

    kernel: Any
    signature: Mapping[str, str]
    constexprs: Mapping[str, Any]
    num_warps: int = 4
    num_stages: int = 2
    fp_fusion: bool = False
    registers: int | None = None

    @property
    def options(self) -> dict[str, Any]:
        """What Triton is told beside the arguments."""
        # Always: what is meant by saying nothing changes with Triton 3.10.
        return {
            "num_warps": self.num_warps,
            "num_stages": self.num_stages,
            "enable_fp_fusion": self.fp_fusion,
            "maxnreg": self.registers,
        }

    def launch(self, grid: tuple[int, ...], **arguments: Any) -> None:
        """Start the kernel with the arguments of the signature, by name."""
        self.kernel[grid](**{**self.constexprs, **arguments}, **self.options)
