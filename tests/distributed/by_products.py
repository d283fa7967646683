"""Replicas of a weight that is split by products, each of which goes by what it finds."""

from typing import Any

import torch
import torch.distributed as dist
from torch import nn

from lip_fast import LIP, status, world


def unsound() -> dict[str, Any]:
    """What becomes of steps whose split is not sound on any of the replicas."""
    l, q, k = 240, 260, 100
    torch.manual_seed(0)
    head = nn.Linear(q, l)
    optimizer = torch.optim.AdamW(head.parameters(), 1e-3)
    lip = LIP(head, k, data_group=dist.group.WORLD)
    lip.attach(optimizer)
    g = torch.Generator().manual_seed(dist.get_rank())
    features, labels = torch.randn(16, q, generator=g), torch.randint(0, l, (16,), generator=g)
    taken, not_converged = world.split, torch.tensor(status.NOT_CONVERGED)
    for step in range(6):
        if step == 3:
            world.split = lambda *given, **how: taken(*given, **how)._replace(status=not_converged)  # type: ignore[attr-defined]
        optimizer.zero_grad()
        nn.functional.cross_entropy(head(features), labels).backward()
        for p in head.parameters():
            dist.all_reduce(p.grad)
        lip.observe(features, labels)
        optimizer.step()
    world.split = taken  # type: ignore[attr-defined]
    weights = [torch.empty_like(head.weight) for _ in range(dist.get_world_size())]
    dist.all_gather(weights, head.weight.detach())
    directions = lip._step.directions
    assert directions is not None
    return {
        "applied": lip.stats()["applied"],
        "by products": directions.projects,
        "equal": all(torch.equal(weights[0], weight) for weight in weights),
    }
