"""LIP as one would first write it: an SVD in a post-step hook, with its sums in the optimizer's state."""

import torch
from torch import Tensor, nn


class NaiveHook:
    """Keeps ``rank`` directions and refits the others after every step, whatever the step was."""

    def __init__(self, head: nn.Linear, rank: int, *, own_sums: bool = False) -> None:
        self.head, self.rank = head, rank
        self._own: dict[str, Tensor] | None = {} if own_sums else None
        self.batch: tuple[Tensor, Tensor] | None = None

    def attach(self, optimizer: torch.optim.Optimizer):
        self.optimizer = optimizer
        return optimizer.register_step_post_hook(self._after_step)

    def observe(self, features: Tensor, targets: Tensor) -> None:
        self.batch = features.detach(), targets

    def statistics(self) -> dict[str, Tensor]:
        state = self._state(self.optimizer)
        return {name: state[name] for name in ("gram", "cross")}

    def _state(self, optimizer: torch.optim.Optimizer) -> dict[str, Tensor]:
        return optimizer.state[self.head.weight] if self._own is None else self._own

    @torch.no_grad()
    def _after_step(self, optimizer: torch.optim.Optimizer, args: object, kwargs: object) -> None:
        weight = self.head.weight
        l, q = weight.shape
        state = self._state(optimizer)
        if "gram" not in state:
            state["gram"] = torch.zeros(q, q, dtype=torch.float64)
            state["cross"] = torch.zeros(q, l, dtype=torch.float64)
        if self.batch is not None:
            X, Y = self.batch[0].double(), nn.functional.one_hot(self.batch[1], l).double()
            state["gram"].mul_(0.9).add_(X.mT @ X)
            state["cross"].mul_(0.9).add_(X.mT @ (Y - self.head.bias.double()))
        U, S, Vh = torch.linalg.svd(weight.double(), full_matrices=False)
        A, B = U[:, self.rank :], Vh[self.rank :].mT
        numerator = (B * (state["cross"].double() @ A)).sum(0)
        denominator = (B * (state["gram"].double() @ B)).sum(0)
        S[self.rank :] = numerator / denominator.clamp(min=1e-6)
        weight.copy_(U * S @ Vh)
