"""What the kernels of the updates are told of a rule."""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

from torch import Tensor

__all__ = ["Example", "Form"]


class Example(NamedTuple):
    """A case to compile ahead.

    Attributes:
        variant: bits that are compiled in.
        states: tensors of the state.
        current: those that M' is computed from.
        gradient: whether M' is computed from the gradient, too.
    """

    variant: int
    states: int
    current: int
    gradient: bool


class Form(NamedTuple):
    """A rule: three functions under ``@triton.jit``, and what their arguments are made of.

    Attributes:
        prepare: (scalar0, scalar1, scalar2, x0, ..., x7) to a tuple of values, from the scalars of the rule,
            which lie in memory, and its numbers.
        advance: (old, g, state0, state1, state2, where, there, kept, values, VARIANT) to two tiles: updates
            the state in memory where ``kept`` and returns what the weight is computed from, as it is stored,
            in float32.
        weight: (old, g, current0, current1, values, VARIANT) to a tile of M' in float32. Every kernel
            computes the same bits: products and sums are rounded one by one (configurations switch their
            fusion off),
            quotients and roots to nearest.
        numbers: of the rule: at most eight.
        variant: of the rule and the number of its states: bits of ``VARIANT``, which is compiled in.
        current: of the rule, the gradient and the state: the gradient, or None where M' does not depend on
            it, and what ``advance`` returned, as tensors.
        examples: the first of the usual case, others with all that is optional.
    """

    prepare: Any
    advance: Any
    weight: Any
    numbers: Callable[[Any], Sequence[float]]
    variant: Callable[[Any, int], int]
    current: Callable[[Any, Tensor, Sequence[Tensor]], tuple[Tensor | None, Sequence[Tensor]]]
    examples: Sequence[Example]
