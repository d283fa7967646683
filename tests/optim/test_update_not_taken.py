import torch

from lip_fast.fused import FusedUpdate
from lip_fast.ops import Scaling
from lip_fast.rules import SGD


def test_an_update_that_was_not_taken_writes_nothing() -> None:
    # In a step of several processes, one that has failed goes on to the end without products.
    weight = torch.nn.Parameter(torch.ones(3, 4))
    weight.grad = torch.ones(3, 4)
    group = {"lr": 0.1, "momentum": 0.0, "dampening": 0.0, "weight_decay": 0.0, "nesterov": False}
    update = FusedUpdate(SGD, weight, group | {"maximize": False}, {}, Scaling(), replaces=True)
    A, s, B = torch.ones(3, 1), torch.ones(1), torch.ones(4, 1)
    ok, step = torch.tensor(True), torch.zeros((), dtype=torch.int64)
    written = update.rebuild_(A * 2, s, B, ok=ok, step=step, accumulate=False, seed=0)
    assert not bool(written)
    assert torch.equal(weight.detach(), torch.ones(3, 4))
    assert not update.settle()
