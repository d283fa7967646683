"""What processes of tests/distributed/test_traffic.py run."""

import warnings
from typing import Any
from unittest import mock

import torch
import torch.distributed as dist
import torch.distributed._functional_collectives as functional
from distributed.heads import distance, make_head, make_problem, shard
from torch import Tensor, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.tensor import DTensor, Replicate, Shard
from torch.distributed.tensor.debug import CommDebugMode

import lip_fast
from benchmarks.traffic import Traffic


def calls() -> dict[str, Any]:
    """Every kind of collective once, as the recorder sees it, and how many torch's own counter has seen."""
    world, rank = dist.get_world_size(), dist.get_rank()
    six, three = torch.ones(6), torch.ones(3, dtype=torch.float64)
    parts = [torch.ones(3, dtype=torch.float64) for _ in range(world)]
    mesh = init_device_mesh("cpu", (world,))
    sharded = DTensor.from_local(torch.ones(4, 2), mesh, [Shard(0)])

    def pass_on() -> None:
        if rank == 0:
            dist.send(six, 1)
        elif rank == 1:
            dist.recv(six, 0)

    wide = torch.empty(3 * world, dtype=torch.float64)
    few = [torch.ones(2) for _ in range(world)]
    found = {}
    for name, call in {
        "all_reduce": lambda: dist.all_reduce(six),
        "all_reduce of integers": lambda: dist.all_reduce(torch.ones(5, dtype=torch.int64)),
        "reduce": lambda: dist.reduce(six, 0),
        "broadcast": lambda: dist.broadcast(six, 0),
        "all_gather": lambda: dist.all_gather(parts, three),
        "all_gather, one tensor": lambda: dist.all_gather_into_tensor(wide, three),
        "gather": lambda: dist.gather(three, parts if rank == 0 else None),
        "scatter": lambda: dist.scatter(torch.empty(2), few if rank == 0 else None),
        "reduce_scatter": lambda: dist.reduce_scatter(torch.empty(2), few),
        "all_to_all": lambda: dist.all_to_all_single(torch.empty(2 * world), torch.ones(2 * world)),
        "barrier": dist.barrier,
        "point to point": pass_on,
        "functional all_reduce": lambda: functional.all_reduce(six, "sum", mesh).sum(),
        "functional all_gather": lambda: functional.all_gather_tensor(three, 0, mesh).sum(),
        "functional reduce_scatter": lambda: functional.reduce_scatter_tensor(
            torch.ones(2 * world), "sum", 0, mesh
        ).sum(),
        "functional broadcast": lambda: functional.broadcast(six, 0, mesh).sum(),
        "full_tensor": sharded.full_tensor,
        "to another dimension": lambda: sharded.redistribute(placements=[Shard(1)]).to_local().sum(),
        "sum of a DTensor": lambda: sharded.sum().redistribute(placements=[Replicate()]).to_local().sum(),
        "nothing": lambda: sharded.add_(1),
    }.items():
        with warnings.catch_warnings():
            # Names of collectives that torch is about to change.
            warnings.simplefilter("ignore", FutureWarning)
            with Traffic() as traffic, CommDebugMode() as theirs:
                call()
        counts = {str(op): n for op, n in theirs.get_comm_counts().items()}
        found[name] = {"ours": traffic.collectives, "theirs": sum(counts.values())}
    return found


def steps() -> list[list[Any]]:
    """What two steps of LIP put in, in real processes."""
    mesh = init_device_mesh("cpu", (dist.get_world_size(),))
    problem = make_problem(40, 24, dtype=torch.float32)
    head = shard(make_head(problem), mesh, [Shard(0)])
    return _step(head, problem.features[0], problem.targets[0])


def local_tensors(world: int) -> dict[str, Any]:
    """The same in one process that stands for several, each with its own part, and how far it is from one."""
    from torch.distributed._local_tensor import LocalTensor, LocalTensorMode
    from torch.testing._internal.distributed.fake_pg import FakeStore

    problem = make_problem(40, 24, dtype=torch.float64)
    X, Y = problem.features[0], problem.targets[0]
    alone = make_head(problem)
    _step(alone, X, Y)
    plain = make_head(problem).weight.detach()
    dist.init_process_group("fake", store=FakeStore(), rank=0, world_size=world)
    # Numbers that differ between the simulated processes are no integers to an op; this one serves narrow
    # formats alone.
    seeds = mock.patch("lip_fast.world.Peers.rounding_seed", lambda self, seed: seed)
    with seeds, LocalTensorMode(world):
        mesh = init_device_mesh("cpu", (world,))
        head = shard(make_head(problem), mesh, [Shard(0)])
        found = _step(head, _everywhere(LocalTensor, X, world), _everywhere(LocalTensor, Y, world), world)
        whole: Any = head.weight.detach().full_tensor()
        weight = whole.reconcile()
    dist.destroy_process_group()
    return {
        "steps": found,
        "distance": distance(weight, alone.weight.detach()),
        "moved": distance(plain, alone.weight.detach()),
    }


def _everywhere(kind: Any, tensor: Tensor, world: int) -> Tensor:
    result: Tensor = kind({rank: tensor.clone() for rank in range(world)})
    return result


def _step(head: nn.Linear, X: Tensor, Y: Tensor, processes: int = 1) -> list[list[Any]]:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)
        lip = lip_fast.LIP(head, 6, tail_rank=4)
    optimizer = torch.optim.SGD([head.weight], lr=1e-2)
    lip.attach(optimizer)
    found = []
    for _ in range(2):
        head.weight.grad = head.weight.detach().clone()
        lip.observe(X, Y)
        with Traffic() as traffic:
            optimizer.step()
        found.append(traffic.collectives)
    # A counter that all simulated processes share counts each of them.
    assert lip.stats()["applied"] == 2 * processes
    return found


def benchmark() -> dict[str, Any]:
    """A small row and a small comparison of benchmarks.sharded."""
    from benchmarks import sharded

    row = sharded.Row(dist.get_world_size(), 301, 64, 8, 4, 3)
    error = sharded.ErrorRow(dist.get_world_size(), "float64", 301, 64, 8, 4, 1e-9)
    return {"row": sharded._measure(row), "error": sharded._error(error)}
