"""Two optimizers on equal parameters: one of ours, and torch's with a LIP attached to it or without."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from capture_runs import same
from problems import linear
from torch import Tensor, nn

from lip_fast import LIP
from lip_fast.optim import LIPSGD, LIPAdamW, LIPNAdam

L, Q, N = 7, 11, 13
STEPS = 7
BASES: dict[type, type[torch.optim.Optimizer]] = {
    LIPSGD: torch.optim.SGD,
    LIPAdamW: torch.optim.AdamW,
    LIPNAdam: torch.optim.NAdam,
}
IMPLEMENTATIONS = {"for-loop": {"foreach": False}, "foreach": {"foreach": True}, "fused": {"fused": True}}
# The exact path, and the one that tracks a basis, which random columns and averages over batches enter.
LIPS: dict[str, dict[str, Any]] = {
    "exact": {"rank": 3},
    "tracked": {"rank": 2, "tail_rank": 1, "decay": 0.9},
}


def implementations_of(optimizer: type) -> list[dict[str, bool]]:
    """Those that torch has of an optimizer: there is no fused NAdam."""
    without = issubclass(optimizer, torch.optim.NAdam)
    return [options for options in IMPLEMENTATIONS.values() if not (without and "fused" in options)]


def settings(lip: dict[str, Any]) -> dict[str, Any]:
    """Arguments of LIP as the settings of a group."""
    return {f"lip_{name}": value for name, value in lip.items()}


def random(shape: tuple[int, ...], seed: int, dtype: torch.dtype = torch.float32) -> Tensor:
    """Normal numbers from a generator of their own."""
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64).to(dtype)


class Side:
    """A head and other parameters, whose gradients depend on the step alone, so that sides can be compared.

    Args:
        optimizer: the class of it.
        lip: arguments of the LIP of the head's weight: a group of ours has them, to torch's it is attached.
        others: makes the parameters beside the head.
        options: of the constructor.
    """

    def __init__(
        self,
        optimizer: type,
        options: dict[str, Any],
        lip: dict[str, Any] | None = None,
        *,
        dtype: torch.dtype = torch.float32,
        device: str = "cpu",
        others: Callable[[], list[Tensor]] | None = None,
        names: bool = False,
    ) -> None:
        if options.get("fused") and {"fused": True} not in implementations_of(optimizer):
            pytest.skip("torch has no fused NAdam")
        self.dtype, self.device = dtype, device
        self.name = f"{options} with LIP {lip}"
        self.head = linear(Q, L, bias=True, dtype=dtype).to(device)
        made = self.shapes(fused=bool(options.get("fused"))) if others is None else others()
        self.others = [nn.Parameter(p.to(device)) for p in made]
        self.ours = optimizer in BASES
        group: dict[str, Any] = {"params": [self.head.weight]}
        if lip is not None and self.ours:
            group |= settings(lip)
        rest: list[Any] = [self.head.bias, *self.others]
        if names:
            group["params"] = [("head.weight", self.head.weight)]
            rest = [(f"other{i}", p) for i, p in enumerate(rest)]
        self.optimizer = optimizer([group, {"params": rest}], **options)
        self.lip = None
        if lip is not None and not self.ours:
            self.lip = LIP(self.head, **lip)
            self.lip.attach(self.optimizer)
        self.shown = lip is not None

    def shapes(self, *, fused: bool) -> list[Tensor]:
        """A matrix, one by columns, a number, and a matrix with gaps in its memory."""
        dtype = self.dtype
        made = [random((3, 2), 2, dtype), random((5, 4), 3, dtype).mT, random((), 4, dtype)]
        # torch's fused kernels on CPU take any memory for a row of numbers.
        return made if fused else [*made, random((5, 18), 5, dtype)[:, ::2]]

    @property
    def parameters(self) -> list[Tensor]:
        return [self.head.weight, self.head.bias, *self.others]

    def gradients(self, i: int) -> None:
        """Those of step ``i``: the first of the others has none in the step 2, the weight in 3 and 4."""
        for j, p in enumerate(self.parameters):
            p.grad = torch.empty_like(p).copy_(random(tuple(p.shape), 100 * i + j, p.dtype))
        self.others[0].grad = None if i == 2 else self.others[0].grad
        self.head.weight.grad = None if i in (3, 4) else self.head.weight.grad

    def show(self, i: int) -> None:
        features = random((N, Q), 1000 + i, self.dtype).to(self.device)
        labels = torch.randint(0, L, (N,), generator=torch.Generator().manual_seed(i)).to(self.device)
        if self.ours:
            self.optimizer.observe(self.head, features, labels)
        else:
            self.lip.observe(features, labels)

    def step(self, i: int) -> None:
        self.gradients(i)
        if self.shown:
            self.show(i)
        self.optimizer.step()

    def steps(self, first: int, last: int) -> "Side":
        for i in range(first, last):
            self.step(i)
        return self

    @property
    def values(self) -> list[Tensor]:
        return [p.detach().clone() for p in self.parameters]

    @property
    def lip_state(self) -> dict[str, Any]:
        """The state of the LIP of the weight."""
        if self.ours:
            (state,) = self.optimizer.lip.state_dict().values()
            # Which an attached LIP looks up in its head.
            del state["bias"]
            return state
        return self.lip.state_dict()


def groups_of_torch(optimizer: torch.optim.Optimizer) -> list[dict[str, Any]]:
    """The groups of ``state_dict()`` without what LIP adds."""
    groups = optimizer.state_dict()["param_groups"]
    return [{k: v for k, v in group.items() if not k.startswith("lip_")} for group in groups]


def assert_equal(ours: Side, base: Side) -> None:
    """Parameters, state, groups and LIP are the same bits on both sides."""
    for i, (a, b) in enumerate(zip(ours.values, base.values, strict=True)):
        assert same(a, b), f"{ours.name}: parameter {i} of shape {tuple(a.shape)} differs"
    assert same(ours.optimizer.state_dict()["state"], base.optimizer.state_dict()["state"]), ours.name
    assert same(groups_of_torch(ours.optimizer), groups_of_torch(base.optimizer)), ours.name
    if ours.shown and base.shown:
        assert same(ours.lip_state, base.lip_state), ours.name
