"""SGD: see :class:`lip_fast.rules.SGD`."""

import triton
import triton.language as tl

from lip_fast.backends.triton.rules.form import Example, Form
from lip_fast.backends.triton.update import recall
from lip_fast.rules import SGD

# Bits of VARIANT.
_BUFFERED, _NESTEROV, _FIRST = 1, 2, 4


@triton.jit
def _prepare(lr, unused1, unused2, momentum, share, weight_decay, sign, x4, x5, x6, x7):
    return tl.load(lr).to(tl.float32), momentum, share, weight_decay, sign


@triton.jit
def _direction(old, g, weight_decay, sign):
    """The gradient, turned round to maximize, with the decay of the weight."""
    direction = g * sign
    # Of an infinite weight, 0 times it is NaN.
    return tl.where(weight_decay == 0, direction, direction + weight_decay * old)


@triton.jit
def _advance(old, g, buffer, unused1, unused2, where, there, kept, values, VARIANT: tl.constexpr):
    _, momentum, share, weight_decay, sign = values
    direction = _direction(old, g, weight_decay, sign)
    if buffer is not None:
        if VARIANT & 4 == 0:
            direction = momentum * recall(buffer, where, there) + share * direction
        stored = direction.to(buffer.dtype.element_ty)
        tl.store(buffer + where, stored, mask=kept)
        direction = stored.to(tl.float32)
    return direction, direction


@triton.jit
def _weight(old, g, buffer, unused, values, VARIANT: tl.constexpr):
    rate, momentum, _, weight_decay, sign = values
    if VARIANT & 1 == 0:
        direction = _direction(old, g, weight_decay, sign)
    elif VARIANT & 2 != 0:
        direction = _direction(old, g, weight_decay, sign) + momentum * buffer
    else:
        direction = buffer
    return old - rate * direction


def _variant(rule: SGD, states: int) -> int:
    return _BUFFERED * (states > 0) + _NESTEROV * bool(rule.nesterov) + _FIRST * bool(rule.first)


FORM = Form(
    _prepare,
    _advance,
    _weight,
    lambda rule: (rule.momentum, 1 - rule.dampening, rule.weight_decay, -1.0 if rule.maximize else 1.0),
    _variant,
    lambda rule, grad, state: (None if state and not rule.nesterov else grad, state),
    (Example(_BUFFERED, 1, 1, False), Example(_BUFFERED + _NESTEROV, 1, 1, True), Example(0, 0, 0, True)),
)
