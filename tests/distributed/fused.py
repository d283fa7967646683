"""Optimizers whose update is a part of LIP's step, on parts of a weight."""

from typing import Any

import torch
import torch.distributed as dist
from distributed.heads import distance, make_head, make_problem, shard, train
from distributed.layouts import equal_everywhere, quietly, rows_of
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.tensor import Shard

from lip_fast import fused, host, ops


def compare() -> dict[str, Any]:
    """For each optimizer and layout: the distance to one process, and how many updates were fused there."""
    mesh = init_device_mesh("cpu", (dist.get_world_size(),))
    mine = rows_of(dist.get_world_size(), dist.get_rank(), even=True)
    taken = [0]
    take = fused.FusedUpdate.products

    def products(self: Any, V: torch.Tensor) -> Any:
        taken[0] += 1
        return take(self, V)

    fused.FusedUpdate.products = products  # type: ignore[method-assign]
    results = {}
    problem = make_problem(30, 12, dtype=torch.float32)
    for maker in ("sgd", "adamw"):
        for rest in ("keep", "drop"):
            how: dict[str, Any] = {"maker": maker, "tail_rank": 1, "rest": rest}
            expected, _ = quietly(lambda: train(problem, make_head(problem), 1, **how))  # noqa: B023
            for name, placements in (
                ("by class", [Shard(0)]),
                ("by feature", [Shard(1)]),
                ("replicas", None),
            ):
                head = make_head(problem)
                if placements is not None:
                    shard(head, mesh, placements)
                data = {} if placements is not None else {"data_group": dist.group.WORLD, "mine": mine}
                taken[0] = 0
                got, _ = quietly(lambda: train(problem, head, 1, **how, **data))  # noqa: B023
                results[f"{maker}, {rest}, {name}"] = {
                    "distance": distance(got, expected),
                    "equal": equal_everywhere(got),
                    "fused": taken[0],
                }
    return results


def by_products() -> dict[str, Any]:
    """The same off the host, of a weight that is split by products, with the kernels in torch."""
    mesh = init_device_mesh("cpu", (dist.get_world_size(),))
    mine = rows_of(dist.get_world_size(), dist.get_rank(), even=True)
    taken = [0]
    take = fused.FusedUpdate.sketch

    def sketch(self: Any, V: torch.Tensor) -> torch.Tensor:
        taken[0] += 1
        return take(self, V)

    fused.FusedUpdate.sketch = sketch  # type: ignore[method-assign]
    host.READABLE = frozenset()
    ops.fuses_updates = lambda device: True
    problem = make_problem(150, 140, dtype=torch.float32)
    expected, _ = quietly(lambda: train(problem, make_head(problem), 12, maker="adamw"))
    results = {"one process": {"distance": 0.0, "equal": True, "fused": taken[0]}}
    for name, placements in (("replicas", None), ("by class", [Shard(0)]), ("by feature", [Shard(1)])):
        head = make_head(problem)
        if placements is not None:
            shard(head, mesh, placements)
        taken[0] = 0
        how: dict[str, Any] = {"maker": "adamw", "data_group": dist.group.WORLD, "mine": mine}
        got, lip = quietly(lambda: train(problem, head, 12, **how))  # noqa: B023
        assert lip.stats()["1"]["applied"] == 4
        results[name] = {
            "distance": distance(got, expected),
            "equal": equal_everywhere(got),
            "fused": taken[0],
        }
    return results
