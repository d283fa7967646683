"""The rules of the optimizers in Triton, one a file, and how a kernel is made with one of them."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from lip_fast.backends.triton.configuration import Configuration
from lip_fast.backends.triton.rules import adamw, nadam, sgd
from lip_fast.backends.triton.rules.form import Form
from lip_fast.backends.triton.update import POINTERS, REGISTERS, signature, strides
from lip_fast.rules import RULES, SGD, AdamW, NAdam, Rule, Scaling, Updated

__all__ = ["FORMS", "Operands", "Source", "configuration", "examples", "product_forms"]

FORMS: dict[str, Form] = {AdamW.NAME: adamw.FORM, NAdam.NAME: nadam.FORM, SGD.NAME: sgd.FORM}
_NUMBERS = 8


class Operands(NamedTuple):
    """What a kernel is compiled for: formats, of an updated weight its rule and variant, what else is there.

    A stored weight has no rule; there is no gradient where it is not read.
    """

    weight: torch.dtype
    rule: str | None = None
    variant: int = 0
    gradient: torch.dtype | None = None
    state: tuple[torch.dtype, ...] = ()
    scaled: bool = False
    guarded: bool = False


class Source(NamedTuple):
    """What the entries of a weight come from: the weight that is stored, or what M' is computed from."""

    M: Tensor
    grad: Tensor | None = None
    state: Sequence[Tensor] = ()
    rule: Rule | None = None
    scaling: Scaling = Scaling()

    @classmethod
    def current(cls, updated: Updated) -> "Source":
        """Of M', once the update has been taken."""
        M, grad, state, rule, scaling = updated
        return cls(M, *FORMS[rule.NAME].current(rule, grad, state), rule, Scaling(None, scaling.found_inf))

    def operands(self) -> Operands:
        """What the kernel of a launch is compiled for."""
        M, grad, state, rule, scaling = self
        if rule is None:
            return Operands(M.dtype)
        return Operands(
            M.dtype,
            rule.NAME,
            FORMS[rule.NAME].variant(rule, len(state)),
            None if grad is None else grad.dtype,
            tuple(X.dtype for X in state),
            *(flag is not None for flag in scaling),
        )

    def arguments(self) -> dict[str, Any]:
        """Of a launch."""
        M, grad, state, rule, scaling = self
        given = {"M": M, **strides("M", M)}
        if rule is not None:
            numbers = FORMS[rule.NAME].numbers(rule)
            given |= {f"x{i}": x for i, x in enumerate((*numbers, *[0.0] * (_NUMBERS - len(numbers))))}
            given |= {f"scalar{i}": x for i, x in enumerate(rule.scalars())}
            given |= {f"state{i}": X for i, X in enumerate(state)}
            given |= {name: x for name, x in scaling._asdict().items() if x is not None}
        return given if grad is None else given | {"grad": grad, **strides("grad", grad)}


def examples(*, current: bool) -> Iterator[tuple[bool, list[Operands]]]:
    """Operands to compile ahead, in the formats float32, bfloat16 and float16 with a state in float32.

    Args:
        current: of a kernel that computes M' again, not of the one that updates the state.

    Yields:
        Whether all that is optional is there, and the operands by their formats.
    """
    single, half, double_byte = torch.float32, torch.bfloat16, torch.float16
    for name, form in FORMS.items():
        for i, example in enumerate(form.examples):
            states = example.current if current else example.states
            reads, all_there = example.gradient or not current, i > 0
            flags = {"scaled": all_there and not current, "guarded": all_there}
            yield (
                all_there,
                [
                    Operands(M, name, example.variant, g if reads else None, (state,) * states, **flags)
                    for M, g, state in ((single,) * 3, (half,) * 3, (double_byte, single, single))
                ],
            )


def product_forms(
    form: Callable[..., Configuration], single: Operands, half: Operands, with_all: bool = False
) -> list[Configuration]:
    """To compile ahead of a product: usual and widest tiles, with many rows and few, and a narrow format.

    With all that is optional at once, which takes most registers, the last two.
    """
    tiles = [(single, 64, True), (single, 128, True), (single, 64, False), (single, 128, False)]
    return [form(*tile) for tile in [*tiles, (half, 64, True)][3 * with_all :]]


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
        kernel: one of the kernels that read a weight, stored or updated.
        case: what it is compiled for.
        pointers: types of its own pointers.
        integers: names of its integers, without those of the weight and the gradient.
        constexprs: values that are compiled in.
        numbers: names of its floats.
        options: of :class:`Configuration`.
    """
    types = {"M": POINTERS[case.weight], **pointers}
    integers += " M_s0"
    fixed = {"M_s1": 1, **constexprs}
    if case.rule is not None:
        options = {"registers": REGISTERS, **options}
        form = FORMS[case.rule]
        types |= {f"state{i}": POINTERS[dtype] for i, dtype in enumerate(case.state)}
        types |= {f"scalar{i}": "*fp32" for i in range(len(RULES[case.rule].SCALARS))}
        types |= dict.fromkeys((*("grad_scale",) * case.scaled, *("found_inf",) * case.guarded), "*fp32")
        numbers += "".join(f" x{i}" for i in range(_NUMBERS))
        fixed |= {"PREPARE": form.prepare, "WEIGHT": form.weight, "VARIANT": case.variant}
        if "ADVANCE" in kernel.arg_names:
            fixed["ADVANCE"] = form.advance
        if case.gradient is None:
            fixed |= {"grad_s0": 0, "grad_s1": 1}
        else:
            types["grad"] = POINTERS[case.gradient]
            integers += " grad_s0"
            fixed["grad_s1"] = 1
    given = signature(types, integers, numbers)
    absent = {name: None for name in kernel.arg_names if name not in given and name not in fixed}
    return Configuration(kernel, given, {**absent, **fixed}, **options)
