"""The weight that AdamW leaves, computed alike in every kernel that needs it, to the bit.

Products and sums are rounded one by one (the forms switch their fusion off), quotients and roots to nearest.
"""

import math

import triton
import triton.language as tl


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
def adamw_scalars(lr, update_count, log_beta1, log_beta2, weight_decay):
    """lr / (1 - beta1^n), sqrt(1 - beta2^n) and 1 - lr weight_decay, from what lies in memory."""
    rate = tl.load(lr).to(tl.float32)
    n = tl.load(update_count).to(tl.float32)
    step_size = tl.div_rn(rate, one_less_power(log_beta1, n))
    return step_size, tl.sqrt_rn(one_less_power(log_beta2, n)), 1.0 - rate * weight_decay


@triton.jit
def adamw_weight(old, exp_avg, squares, step_size, correction, shrinkage, eps, apply):
    """M' of float32 tiles: the old weight, the updated state; the old weight unless ``apply``."""
    denominator = tl.div_rn(tl.sqrt_rn(squares), correction) + eps
    # One factor, as in torch: what is infinite stays so, where inf - decay * inf is NaN.
    new = old * shrinkage - tl.div_rn(step_size * exp_avg, denominator)
    return tl.where(apply, new, old)


@triton.jit
def adamw_recompute(M, exp_avg, squares, where, needed, step_size, correction, shrinkage, eps, apply):
    """M' from the old weight and the updated state in memory; 0 where it is not needed."""
    old = tl.load(M + where, mask=needed, other=0.0).to(tl.float32)
    mean = tl.load(exp_avg + where, mask=needed, other=0.0).to(tl.float32)
    square = tl.load(squares + where, mask=needed, other=0.0).to(tl.float32)
    new = adamw_weight(old, mean, square, step_size, correction, shrinkage, eps, apply)
    # 0 / 0 where eps is 0.
    return tl.where(needed, new, 0.0)
