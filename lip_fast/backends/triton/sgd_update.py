"""The weight that SGD leaves, computed alike in every kernel that needs it, to the bit.

Products and sums are rounded one by one: the forms switch their fusion off.
"""

import triton
import triton.language as tl


@triton.jit
def sgd_direction(old, g, weight_decay, sign):
    """The gradient, turned round to maximize, with the decay of the weight."""
    direction = g * sign
    # Of an infinite weight, 0 times it is NaN.
    return tl.where(weight_decay == 0, direction, direction + weight_decay * old)


@triton.jit
def sgd_weight(old, g, buffer, rate, momentum, weight_decay, sign, NESTEROV: tl.constexpr, apply):
    """M' of float32 tiles: the old weight, the gradient, the updated buffer or None; old unless ``apply``."""
    if buffer is None:
        direction = sgd_direction(old, g, weight_decay, sign)
    elif NESTEROV:
        direction = sgd_direction(old, g, weight_decay, sign) + momentum * buffer
    else:
        direction = buffer
    return tl.where(apply, old - rate * direction, old)


@triton.jit
def sgd_recompute(
    M, grad, momentum_buffer, where, where_grad, needed, rate, momentum, weight_decay, sign,
    NESTEROV: tl.constexpr, apply,
):  # fmt: skip
    """M' from the old weight, the gradient and the updated buffer in memory; 0 where it is not needed."""
    old = tl.load(M + where, mask=needed, other=0.0).to(tl.float32)
    g = old
    if momentum_buffer is None or NESTEROV:
        g = tl.load(grad + where_grad, mask=needed, other=0.0).to(tl.float32)
    if momentum_buffer is None:
        return sgd_weight(old, g, None, rate, momentum, weight_decay, sign, NESTEROV, apply)
    else:
        buffer = tl.load(momentum_buffer + where, mask=needed, other=0.0).to(tl.float32)
        return sgd_weight(old, g, buffer, rate, momentum, weight_decay, sign, NESTEROV, apply)
