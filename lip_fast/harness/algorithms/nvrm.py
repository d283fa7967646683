"""NVRM: gradients are taken at weights that are disturbed afresh in each step."""

from collections.abc import Mapping
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from lip_fast.harness.algorithms.algorithm import Task
from lip_fast.harness.algorithms.label_loss import LabelLoss
from lip_fast.harness.models import Network
from lip_fast.harness.seeding import stream

__all__ = ["NeuralVariability"]


class NeuralVariability(LabelLoss):
    """Cross entropy (CC for candidate sets) at weights theta + N(0, b^2) of all layers, the head's too.

    The noise is drawn before each forward pass and taken away before the step, so that the step, its weight
    decay, and all scores are of theta itself. LIP in the step sees the features of the disturbed network,
    those that the gradient is of.

    Source: Xie et al. 2021, "Artificial Neural Variability for Deep Learning: On Overfitting, Noise
    Memorization, and Catastrophic Forgetting" (arXiv:2011.06220), algorithm 1 with Gaussian noise; b is the
    default of the authors' code.

    Options:
        b: standard deviation of the noise, at least 0, 0.01.
    """

    TITLE = "NVRM"
    OPTIONS: ClassVar = {"b": 0.01}

    def __init__(self, task: Task) -> None:
        super().__init__(task)
        # On the device of the weights: drawing on the CPU and copying takes longer than a step.
        self._generator = torch.Generator(task.features.device)
        self._generator.manual_seed(int(stream(task.seed, "weights").integers(2**63)))
        # Weights of a step under way, and their values without noise: to subtract it again would round.
        self._disturbed: list[tuple[nn.Parameter, Tensor]] = []

    @classmethod
    def check(cls, options: Mapping[str, float]) -> None:
        """See the class."""
        cls.expect("b", options["b"], "at least 0 and finite", 0 <= options["b"] < float("inf"))

    @torch.no_grad()
    def before_forward(self, model: Network) -> None:
        """Disturb the weights."""
        self.before_step(model)  # removes the noise of a step that an error cut short
        for weight in model.parameters():
            if weight.requires_grad:
                self._disturbed.append((weight, weight.clone()))
                noise = torch.empty_like(weight).normal_(generator=self._generator)
                weight.add_(noise, alpha=self.options["b"])

    @torch.no_grad()
    def before_step(self, model: Network) -> None:
        """Put the weights back, to the bit."""
        for weight, undisturbed in self._disturbed:
            weight.copy_(undisturbed)
        self._disturbed.clear()

    def state_dict(self) -> dict[str, Any]:
        """``generator``: the state of the random stream, between two steps."""
        return {"generator": self._generator.get_state()}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """See :meth:`Algorithm.load_state_dict`."""
        if set(state) != {"generator"}:
            raise ValueError(f"expected a state of generator, got {', '.join(state) or 'nothing'}")
        found = state["generator"]
        if not isinstance(found, Tensor) or found.dtype != torch.uint8:
            raise ValueError("expected the state of a generator as a tensor of bytes")
        self._generator.set_state(found.cpu())
