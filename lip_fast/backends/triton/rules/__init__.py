"""The rules of the optimizers in Triton, one a file, and how a kernel is made with one of them."""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from lip_fast.backends.triton.configuration import Configuration
from lip_fast.backends.triton.rules import adamw, nadam, sgd
from lip_fast.backends.triton.rules.form import Form
from lip_fast.backends.triton.update import POINTERS, REGISTERS, signature, strides
from lip_fast.rules import RULES, SGD, AdamW, NAdam, Rule

__all__ = ["FORMS", "Operands", "arguments", "configuration", "examples", "operands"]

FORMS: dict[str, Form] = {AdamW.NAME: adamw.FORM, NAdam.NAME: nadam.FORM, SGD.NAME: sgd.FORM}
_NUMBERS = 8


class Operands(NamedTuple):
    """What a kernel is compiled for: a rule, its variant, and formats; no gradient where it is not read."""

    rule: str
    variant: int
    weight: torch.dtype
    gradient: torch.dtype | None
    state: tuple[torch.dtype, ...]


def operands(rule: Rule, M: Tensor, grad: Tensor | None, state: Sequence[Tensor], variant: int) -> Operands:
    """Those of a launch."""
    gradient = None if grad is None else grad.dtype
    return Operands(rule.NAME, variant, M.dtype, gradient, tuple(X.dtype for X in state))


def examples(*, current: bool) -> Iterator[tuple[bool, list[Operands]]]:
    """Operands to compile ahead, in the formats float32, bfloat16 and float16 with a state in float32.

    Args:
        current: of a kernel that computes M' again, not of the one that updates the state.

    Yields:
        Whether all that is optional is to be there, and the operands by their formats.
    """
    single, half, double_byte = torch.float32, torch.bfloat16, torch.float16
    for name, form in FORMS.items():
        for i, example in enumerate(form.examples):
            states = example.current if current else example.states
            reads = example.gradient or not current
            yield (
                i > 0,
                [
                    Operands(name, example.variant, M, g if reads else None, (state,) * states)
                    for M, g, state in ((single,) * 3, (half,) * 3, (double_byte, single, single))
                ],
            )


def configuration(
    kernel: Any,
    case: Operands,
    pointers: Mapping[str, str],
    integers: str,
    constexprs: Mapping[str, Any],
    numbers: str = "",
    **options: Any,
) -> Configuration:
    """The form of a kernel for one case; arguments that are not named are None.

    Args:
        kernel: one of the kernels of the updates.
        case: what it is compiled for.
        pointers: types of its own pointers.
        integers: names of its integers, without the strides of the gradient.
        constexprs: values that are compiled in.
        numbers: names of its floats.
        options: of :class:`Configuration`.
    """
    form = FORMS[case.rule]
    types = {"M": POINTERS[case.weight], **pointers}
    types |= {f"state{i}": POINTERS[dtype] for i, dtype in enumerate(case.state)}
    types |= {f"scalar{i}": "*fp32" for i in range(len(RULES[case.rule].SCALARS))}
    fixed = {"PREPARE": form.prepare, "WEIGHT": form.weight, "VARIANT": case.variant, **constexprs}
    if case.gradient is None:
        fixed |= {"grad_s0": 0, "grad_s1": 1}
    else:
        types["grad"] = POINTERS[case.gradient]
        integers += " grad_s0"
        fixed["grad_s1"] = 1
    if "ADVANCE" in kernel.arg_names:
        fixed["ADVANCE"] = form.advance
    names = " ".join(f"x{i}" for i in range(_NUMBERS))
    given = signature(types, integers, f"{names} {numbers}")
    absent = {name: None for name in kernel.arg_names if name not in given and name not in fixed}
    options = {"registers": REGISTERS, **options}
    return Configuration(kernel, given, {**absent, **fixed}, **options)


def arguments(rule: Rule, grad: Tensor | None, state: Sequence[Tensor]) -> dict[str, Any]:
    """Of a launch: the gradient, the state, and what the rule is set to."""
    numbers = FORMS[rule.NAME].numbers(rule)
    return {
        **({} if grad is None else {"grad": grad, **strides("grad", grad)}),
        **{f"state{i}": X for i, X in enumerate(state)},
        **{f"scalar{i}": x for i, x in enumerate(rule.scalars())},
        **{f"x{i}": x for i, x in enumerate((*numbers, *[0.0] * (_NUMBERS - len(numbers))))},
    }
