"""NAdam: see :class:`lip_fast.rules.NAdam`."""

import math
from collections.abc import Sequence

import triton
import triton.language as tl

from lip_fast.backends.triton.rules.adamw import advance_moments, log, one_less_power
from lip_fast.backends.triton.rules.form import Example, Form
from lip_fast.rules import NAdam

# The bit of VARIANT.
_DECOUPLED = 1


@triton.jit
def _prepare(
    lr, update_count, mu_product, log_beta2, beta1, log_schedule, share1, share2, eps, weight_decay, sign
):
    """The sizes of the steps along gradient and mean, 1 - beta2^n, 1 - lr weight_decay, and other numbers."""
    rate = tl.load(lr).to(tl.float32)
    n = tl.load(update_count).to(tl.float32)
    product = tl.load(mu_product).to(tl.float32)
    mu = beta1 * (1.0 - 0.5 * tl.exp(n * log_schedule))
    mu_next = beta1 * (1.0 - 0.5 * tl.exp((n + 1.0) * log_schedule))
    of_gradient = tl.div_rn(rate * (1.0 - mu), 1.0 - product)
    of_mean = tl.div_rn(rate * mu_next, 1.0 - product * mu_next)
    correction, shrinkage = one_less_power(log_beta2, n), 1.0 - rate * weight_decay
    return of_gradient, of_mean, correction, shrinkage, share1, share2, eps, weight_decay, sign


@triton.jit
def _direction(old, g, values, VARIANT: tl.constexpr):
    """The gradient, turned round to maximize, with the decay of the weight unless that is decoupled."""
    _, _, _, _, _, _, _, weight_decay, sign = values
    direction = g * sign
    if VARIANT & 1 == 0:
        # Of an infinite weight, 0 times it is NaN.
        direction = tl.where(weight_decay == 0, direction, direction + weight_decay * old)
    return direction


@triton.jit
def _advance(old, g, exp_avg, exp_avg_sq, unused, where, there, kept, values, VARIANT: tl.constexpr):
    _, _, _, _, share1, share2, _, _, _ = values
    direction = _direction(old, g, values, VARIANT)
    mean, square = advance_moments(direction, exp_avg, exp_avg_sq, where, there, kept, share1, share2)
    return mean.to(tl.float32), square.to(tl.float32)


@triton.jit
def _weight(old, g, mean, square, values, VARIANT: tl.constexpr):
    of_gradient, of_mean, correction, shrinkage, _, _, eps, _, _ = values
    denominator = tl.sqrt_rn(tl.div_rn(square, correction)) + eps
    new = old
    if VARIANT & 1 != 0:
        new = old * shrinkage
    new = new - tl.div_rn(of_gradient * _direction(old, g, values, VARIANT), denominator)
    return new - tl.div_rn(of_mean * mean, denominator)


def _numbers(rule: NAdam) -> Sequence[float]:
    shares = (1 - rule.beta1, 1 - rule.beta2)
    schedule = rule.momentum_decay * math.log(0.96)
    sign = -1.0 if rule.maximize else 1.0
    return (log(rule.beta2), rule.beta1, schedule, *shares, rule.eps, rule.weight_decay, sign)


FORM = Form(
    _prepare,
    _advance,
    _weight,
    _numbers,
    lambda rule, states: _DECOUPLED * bool(rule.decoupled_weight_decay),
    lambda rule, grad, state: (grad, state),
    (Example(0, 2, 2, True), Example(_DECOUPLED, 2, 2, True)),
)
