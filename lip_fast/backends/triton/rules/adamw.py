"""AdamW: see :class:`lip_fast.rules.AdamW`."""

import math
from collections.abc import Sequence

import triton
import triton.language as tl

from lip_fast.backends.triton.rules.form import Example, Form
from lip_fast.backends.triton.update import recall
from lip_fast.rules import AdamW


def log(beta: float) -> float:
    """Of a decay rate, 0 among them."""
    return math.log(beta) if beta else -math.inf


@triton.jit
def one_less_power(log_beta, n):
    """1 - beta^n to float32: 1 - beta of a first step has lost three digits where beta^n is taken first."""
    x = n * log_beta
    # The series of expm1 to x^10 / 10!, below float32 up to |x| = 1.
    series = 1.0 + x / 10.0
    for i in tl.static_range(9, 1, -1):
        series = 1.0 + x * series / i
    return tl.where(x > -1.0, -x * series, 1.0 - tl.exp(x))


@triton.jit
def advance_moments(g, exp_avg, exp_avg_sq, where, there, kept, share1, share2):
    """Both means, updated in memory and returned in the formats of the state."""
    mean = tl.load(exp_avg + where, mask=there, other=0.0).to(tl.float32)
    square = tl.load(exp_avg_sq + where, mask=there, other=0.0).to(tl.float32)
    # By what is left of 1, and not by beta: its rounding to float32 would change the limit by 1e-5.
    mean = (mean + share1 * (g - mean)).to(exp_avg.dtype.element_ty)
    # An infinite one stays so, and is no NaN: its entry is never updated again.
    square = tl.where(square < float("inf"), square - share2 * square, square) + share2 * g * g
    square = square.to(exp_avg_sq.dtype.element_ty)
    tl.store(exp_avg + where, mean, mask=kept)
    tl.store(exp_avg_sq + where, square, mask=kept)
    return mean, square


@triton.jit
def _prepare(lr, update_count, unused, log_beta1, log_beta2, share1, share2, eps, weight_decay, sign, x7):
    """lr / (1 - beta1^n), sqrt(1 - beta2^n), 1 - lr weight_decay, and the other numbers as they are."""
    rate = tl.load(lr).to(tl.float32)
    n = tl.load(update_count).to(tl.float32)
    step_size = tl.div_rn(rate, one_less_power(log_beta1, n))
    correction = tl.sqrt_rn(one_less_power(log_beta2, n))
    return step_size, correction, 1.0 - rate * weight_decay, share1, share2, eps, sign


@triton.jit
def _advance(old, g, exp_avg, exp_avg_sq, max_exp_avg_sq, where, there, kept, values, VARIANT: tl.constexpr):
    _, _, _, share1, share2, _, sign = values
    mean, square = advance_moments(g * sign, exp_avg, exp_avg_sq, where, there, kept, share1, share2)
    if max_exp_avg_sq is not None:
        largest = recall(max_exp_avg_sq, where, there)
        square = tl.maximum(largest, square.to(tl.float32), propagate_nan=tl.PropagateNan.ALL)
        square = square.to(max_exp_avg_sq.dtype.element_ty)
        tl.store(max_exp_avg_sq + where, square, mask=kept)
    return mean.to(tl.float32), square.to(tl.float32)


@triton.jit
def _weight(old, g, mean, squares, values, VARIANT: tl.constexpr):
    step_size, correction, shrinkage, _, _, eps, _ = values
    denominator = tl.div_rn(tl.sqrt_rn(squares), correction) + eps
    # One factor, as in torch: what is infinite stays so, where inf - decay * inf is NaN.
    return old * shrinkage - tl.div_rn(step_size * mean, denominator)


def _numbers(rule: AdamW) -> Sequence[float]:
    shares = (1 - rule.beta1, 1 - rule.beta2)
    sign = -1.0 if rule.maximize else 1.0
    return (log(rule.beta1), log(rule.beta2), *shares, rule.eps, rule.weight_decay, sign)


FORM = Form(
    _prepare,
    _advance,
    _weight,
    _numbers,
    lambda rule, states: 0,
    # The mean, and the squares or, with amsgrad, the largest of them.
    lambda rule, grad, state: (None, (state[0], state[-1])),
    (Example(0, 2, 2, False), Example(0, 3, 2, False)),
)
