"""The update of ``torch.optim.AdamW``."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from lip_fast.rounding import compute_dtype
from lip_fast.rules.rule import Rule, write

__all__ = ["AdamW", "advance_moments", "check_betas", "counted"]


@dataclass(frozen=True)
class AdamW(Rule):
    """AdamW (Loshchilov and Hutter, arXiv:1711.05101), with amsgrad where there are three tensors of state.

    With n the update count::

        m = beta1 m + (1 - beta1) g            v = beta2 v + (1 - beta2) g^2        u = v, or max(u, v)
        M' = (1 - lr weight_decay) M - lr m / (1 - beta1^n) / (sqrt(u / (1 - beta2^n)) + eps)

    (-g in place of g to maximize).
    """

    NAME = "adamw"
    STATE = ("exp_avg", "exp_avg_sq", "max_exp_avg_sq")
    NEEDED = 2
    SCALARS = ("lr", "update_count")

    lr: Tensor
    update_count: Tensor
    """``state["step"]``, already increased for this step."""
    beta1: float = 0.9
    beta2: float = 0.999
    eps: float = 1e-8
    weight_decay: float = 0.01
    maximize: bool = False

    @classmethod
    def fits(cls, group: Mapping[str, Any], state: Mapping[str, Any]) -> bool:
        # amsgrad may have been switched on since the state was made.
        started = bool(state) and (not group["amsgrad"] or "max_exp_avg_sq" in state)
        settings = (*group["betas"], group["weight_decay"])
        return started and not any(isinstance(value, Tensor) for value in settings)

    @classmethod
    def held(cls, group: Mapping[str, Any]) -> tuple[str, ...]:
        return cls.STATE if group["amsgrad"] else cls.STATE[:2]

    @classmethod
    def next(
        cls, group: Mapping[str, Any], state: Mapping[str, Any], like: Tensor, found_inf: Tensor | None
    ) -> tuple["AdamW", dict[str, Tensor]]:
        count = counted(state["step"], found_inf)
        return cls.of_group(group, like, count), {"step": count}

    def check(self, state: Sequence[Tensor]) -> None:
        check_betas(self.beta1, self.beta2)

    def advance(self, M: Tensor, grad: Tensor, state: Sequence[Tensor], skip: Tensor | bool) -> None:
        dtype = compute_dtype(M)
        g = -grad.to(dtype) if self.maximize else grad.to(dtype)
        advance_moments(state, g, self.beta1, self.beta2, skip)
        for largest in state[2:]:
            write(largest, torch.maximum(largest.to(dtype), state[1].to(dtype)), skip)

    def updated(self, M: Tensor, grad: Tensor, state: Sequence[Tensor]) -> Tensor:
        dtype = compute_dtype(M)
        # In float64: 1 - beta^n of a first step has lost three digits in float32.
        n, rate = self.update_count.double(), self.lr.double()
        step_size = (rate / (1 - self.beta1**n)).to(dtype)
        correction = (1 - self.beta2**n).sqrt().to(dtype)
        denominator = (state[-1].to(dtype).sqrt() / correction).add_(self.eps)
        new = M.to(dtype)
        if self.weight_decay:
            # One factor, as in torch: what is infinite stays so, where inf - decay * inf is NaN.
            new = new * (1 - rate * self.weight_decay).to(dtype)
        return new - step_size * state[0].to(dtype) / denominator


def check_betas(beta1: float, beta2: float) -> None:
    """ValueError where a decay rate of the moments is not in [0, 1)."""
    for name, beta in (("beta1", beta1), ("beta2", beta2)):
        if not 0 <= beta < 1:
            raise ValueError(f"expected {name} in [0, 1), got {beta}")


def counted(step: Tensor, found_inf: Tensor | None) -> Tensor:
    """The update count of an optimizer after the step, which does not count where ``found_inf``."""
    count = step + 1
    return count if found_inf is None else count - found_inf.to(count.device)


def advance_moments(
    state: Sequence[Tensor], g: Tensor, beta1: float, beta2: float, skip: Tensor | bool
) -> None:
    """Update the running means of the gradient and of its square."""
    mean, square = state[0], state[1]
    write(mean, torch.lerp(mean.to(g.dtype), g, 1 - beta1), skip)
    write(square, beta2 * square.to(g.dtype) + (1 - beta2) * g * g, skip)
