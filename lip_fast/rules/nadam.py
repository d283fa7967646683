"""The update of ``torch.optim.NAdam``."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from lip_fast.rounding import compute_dtype
from lip_fast.rules.adamw import advance_moments, check_betas, counted
from lip_fast.rules.rule import Rule

__all__ = ["NAdam"]

# Base of the momentum schedule.
_SCHEDULE = 0.96


@dataclass(frozen=True)
class NAdam(Rule):
    """NAdam (Dozat, "Incorporating Nesterov Momentum into Adam", 2016).

    With n the update count, mu_n = beta1 (1 - 0.96^(n momentum_decay) / 2) and p their product up to mu_n::

        d = g (-g to maximize), + weight_decay M unless decoupled
        m = beta1 m + (1 - beta1) d            v = beta2 v + (1 - beta2) d^2
        M' = (1 - lr weight_decay, where decoupled) M
             - lr ((1 - mu_n) d / (1 - p) + mu_(n+1) m / (1 - p mu_(n+1))) / (sqrt(v / (1 - beta2^n)) + eps)
    """

    NAME = "nadam"
    STATE = ("exp_avg", "exp_avg_sq")
    NEEDED = 2
    SCALARS = ("lr", "update_count", "mu_product")

    lr: Tensor
    update_count: Tensor
    """``state["step"]``, already increased for this step."""
    mu_product: Tensor
    """``state["mu_product"]``, with this step's mu in it."""
    beta1: float = 0.9
    beta2: float = 0.999
    eps: float = 1e-8
    weight_decay: float = 0.0
    momentum_decay: float = 4e-3
    decoupled_weight_decay: bool = False
    maximize: bool = False

    @classmethod
    def fits(cls, group: Mapping[str, Any], state: Mapping[str, Any]) -> bool:
        settings = (*group["betas"], group["weight_decay"], group["momentum_decay"])
        return bool(state) and not any(isinstance(value, Tensor) for value in settings)

    @classmethod
    def held(cls, group: Mapping[str, Any]) -> tuple[str, ...]:
        return cls.STATE

    @classmethod
    def next(
        cls, group: Mapping[str, Any], state: Mapping[str, Any], like: Tensor, found_inf: Tensor | None
    ) -> tuple["NAdam", dict[str, Tensor]]:
        count, product = counted(state["step"], found_inf), state["mu_product"]
        after = product * _mu(count.double(), group["betas"][0], group["momentum_decay"]).to(product)
        if found_inf is not None:
            after = torch.where(found_inf.to(product.device) != 0, product, after)
        return cls.of_group(group, like, count, after), {"step": count, "mu_product": after}

    def check(self, state: Sequence[Tensor]) -> None:
        check_betas(self.beta1, self.beta2)

    def advance(self, M: Tensor, grad: Tensor, state: Sequence[Tensor], skip: Tensor | bool) -> None:
        advance_moments(state, self._direction(M, grad), self.beta1, self.beta2, skip)

    def updated(self, M: Tensor, grad: Tensor, state: Sequence[Tensor]) -> Tensor:
        dtype = compute_dtype(M)
        n, rate, product = self.update_count.double(), self.lr.double(), self.mu_product.double()
        mu, mu_next = (_mu(k, self.beta1, self.momentum_decay) for k in (n, n + 1))
        of_gradient = (rate * (1 - mu) / (1 - product)).to(dtype)
        of_mean = (rate * mu_next / (1 - product * mu_next)).to(dtype)
        correction = (1 - self.beta2**n).to(dtype)
        denominator = (state[1].to(dtype) / correction).sqrt().add_(self.eps)
        new = M.to(dtype)
        if self.weight_decay and self.decoupled_weight_decay:
            new = new * (1 - rate * self.weight_decay).to(dtype)
        new = new - of_gradient * self._direction(M, grad) / denominator
        return new - of_mean * state[0].to(dtype) / denominator

    def _direction(self, M: Tensor, grad: Tensor) -> Tensor:
        dtype = compute_dtype(M)
        direction = -grad.to(dtype) if self.maximize else grad.to(dtype)
        if self.weight_decay and not self.decoupled_weight_decay:
            direction = direction + self.weight_decay * M.to(dtype)
        return direction


def _mu(n: Tensor, beta1: float, momentum_decay: float) -> Tensor:
    return beta1 * (1.0 - 0.5 * _SCHEDULE ** (n * momentum_decay))
