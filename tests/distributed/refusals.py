"""What LIP refuses of sharded heads, on every process, before anything is written.

python -m distributed.refusals folder
"""

import json
import sys
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from distributed.faults import VICTIM, each, quietly, raised_by
from distributed.heads import make_head, make_problem, shard
from torch import nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor, Partial, Shard

import lip_fast
from lip_fast.optim import LIPSGD, LIPAdamW
from lip_fast.sharded import local_part


def check(wrong: list[str], name: str, head: nn.Module, make: Callable[[], Any], told: str) -> None:
    """``make`` raises a TypeError or ValueError that says ``told``, and leaves the weight alone."""
    before = local_part(head.weight).clone()  # type: ignore[arg-type]
    error = raised_by(make)
    if not isinstance(error, TypeError | ValueError) or told not in str(error):
        wrong.append(f"{name}: expected an error that says {told!r}, got {error!r}")
    if not torch.equal(local_part(head.weight), before):  # type: ignore[arg-type]
        wrong.append(f"{name}: the weight was written")


def settings(layout: str, _: dict[str, Any]) -> list[str]:
    """Arguments that differ between processes, or that one of them refuses."""
    wrong: list[str] = []
    mesh = init_device_mesh("cpu", (dist.get_world_size(),))
    victim = dist.get_rank() == VICTIM
    group = {"by class": None, "fully sharded": mesh, "replicas": dist.group.WORLD}[layout]

    def head(dtype: torch.dtype = torch.float32) -> nn.Linear:
        made = make_head(make_problem(30, 12, dtype=dtype))
        return made if layout == "replicas" else shard(made, mesh, [Shard(0)])

    good: dict[str, Any] = {"rank": 3, "decay": 0.5, "seed": 1, "tail_rank": 2, "every": 2}
    other: list[dict[str, Any]] = [
        {"rank": 4},
        {"rank": "auto"},
        {"decay": None},
        {"decay": 0.6},
        {"seed": 2},
        {"tail_rank": None},
        {"every": 1},
        {"start": 1},
        {"tail": "zero"},
        {"rest": "drop"},
        {"clip": False},
        {"strict": True},
    ]
    for change in other:
        mine = head()
        arguments = good | (change if victim else {})
        check(
            wrong,
            f"{layout}: {change}",
            mine,
            lambda: lip_fast.LIP(mine, data_group=group, **arguments),  # noqa: B023
            "expected the same settings of LIP on every process",
        )
    mine = head(torch.float64 if victim else torch.float32)
    check(
        wrong,
        f"{layout}: dtype",
        mine,
        lambda: lip_fast.LIP(mine, data_group=group, **good),
        "expected the same settings of LIP on every process",
    )
    refused = [{"rank": 13}, {"tail": "x"}, {"decay": 1.5}, {"every": 0}, {"seed": -1}]
    for change in refused:
        mine = head()
        name, arguments = next(iter(change)), good | (change if victim else {})
        check(
            wrong,
            f"{layout}: {change}",
            mine,
            lambda: lip_fast.LIP(mine, data_group=group, **arguments),  # noqa: B023
            f"expected {name}" if victim else f"rank {VICTIM} refused its settings of LIP",
        )
        for kind in (LIPSGD, LIPAdamW):
            if name == "seed":
                continue
            mine = head()
            lip = {f"lip_{key}": value for key, value in arguments.items() if key != "seed"}
            check(
                wrong,
                f"{kind.__name__}, {layout}: {change}",
                mine,
                lambda: kind([mine.weight], data_group=group, **lip),  # noqa: B023
                f"expected {name}" if victim else f"rank {VICTIM} refused its settings of LIP",
            )
    wrong += statistics(head(), group)
    if layout != "replicas":
        mine = head()
        check(
            wrong,
            f"{layout}: data_group on one process",
            mine,
            lambda: lip_fast.LIP(mine, data_group=mesh if victim else None, **good),
            "expected the same settings of LIP on every process",
        )
    return wrong


def statistics(head: nn.Linear, group: Any) -> list[str]:
    """Rows that one process refuses are refused by all, and the next are taken."""
    wrong: list[str] = []
    victim = dist.get_rank() == VICTIM or group is None
    collected = lip_fast.LabelStatistics.for_head(head.weight, data_group=group)
    features, targets = torch.ones(4, 12), torch.arange(4)
    for name, X, y, told in (
        ("label", features, targets + 27, "0..29"),
        ("width", features[:, :5], targets, "12 columns"),
        ("triple", [(features, targets, targets)], None, "got 3 values"),
    ):
        before = collected.C.clone()
        rows = (X, y) if victim else (features, targets)
        error = raised_by(lambda: collected.update(*rows))  # noqa: B023
        expected = (TypeError if y is None else ValueError) if victim else lip_fast.PeerError
        if not isinstance(error, expected) or (victim and told not in str(error)):
            wrong.append(f"statistics, {name}: expected {expected.__name__}, got {error!r}")
        if not torch.equal(collected.C, before):
            wrong.append(f"statistics, {name}: something was added")
    # Of another dtype in each process.
    collected.update(features.double() if victim else features, targets)
    if collected.rows != 4 * (1 if group is None else dist.get_world_size()):
        wrong.append(f"statistics: {collected.rows} rows")
    return wrong


def layouts(_: str, __: dict[str, Any]) -> list[str]:
    """Placements, meshes and groups that do not fit, in a world of 4."""
    wrong: list[str] = []
    rank = dist.get_rank()
    line = init_device_mesh("cpu", (4,))
    square = init_device_mesh("cpu", (2, 2), mesh_dim_names=("a", "b"))
    S0, S1 = Shard(0), Shard(1)

    def head(mesh: Any, placements: list[Any], bias: Any = None) -> nn.Linear:
        return shard(make_head(make_problem(30, 12)), mesh, placements, bias)

    def lip(made: nn.Module, **more: Any) -> Callable[[], Any]:
        return lambda: lip_fast.LIP(made, 3, **more)

    mixed = head(square, [S0, S1])
    check(wrong, "mixed placements", mixed, lip(mixed), "not by both")
    partial = nn.Linear(12, 30)
    partial.weight = nn.Parameter(DTensor.from_local(torch.randn(30, 12), line, [Partial()], run_check=False))
    check(wrong, "partial", partial, lip(partial), "sharded or replicated")
    whole = head(line, [S0])
    for value in ("world", 4, [0, 1], torch.ones(2)):
        told = "expected data_group as a torch.distributed.ProcessGroup or DeviceMesh"
        check(wrong, f"data_group {type(value).__name__}", whole, lip(whole, data_group=value), told)
    pairs = [dist.new_group([0, 1]), dist.new_group([2, 3])]
    told = "expected data_group along whole dimensions of the mesh"
    check(wrong, "half of a mesh", whole, lip(whole, data_group=pairs[rank // 2]), told)
    crossed = [dist.new_group([0, 3]), dist.new_group([1, 2])]
    deep = head(square, [S0, S0])
    check(wrong, "askew", deep, lip(deep, data_group=crossed[rank in (1, 2)]), told)
    row = head(square["b"], [S0])
    check(wrong, "more than the mesh", row, lip(row, data_group=dist.group.WORLD), told)
    three = dist.new_group([0, 1, 2])
    told = "holds this process" if rank == 3 else told
    check(wrong, "a group without this rank", whole, lip(whole, data_group=three), told)
    fsdp = nn.Linear(12, 30)
    fully_shard(fsdp, mesh=line)
    check(wrong, "fully_shard without data_group", fsdp, lip(fsdp), "pass the mesh that was given to")
    optimizer: Any = lambda: LIPSGD([fsdp.weight], lip_rank=3)  # noqa: E731
    check(wrong, "fully_shard, LIPSGD", fsdp, optimizer, "pass the mesh that was given to")
    # One after the other: a mesh of a part of the world is no business of the rest of it.
    X, Y = torch.randn(8, 12, dtype=torch.float64), torch.arange(8)
    weight = whole.weight.detach()
    check(wrong, "lip()", whole, lambda: lip_fast.lip(weight.mT, X, Y, 3), "got a DTensor")
    check(wrong, "lip_path()", whole, lambda: lip_fast.lip_path(weight.mT, X, Y), "got a DTensor")
    statistics = lip_fast.LabelStatistics(12, 30).update(X, Y)
    check(wrong, "repair()", whole, lambda: lip_fast.repair(whole, statistics), "got a DTensor")
    other = init_device_mesh("cpu", (2, 2), mesh_dim_names=("c", "d"))
    for bias_mesh, bias_placements in ((line, [S0]), (other["d"], [S0])):
        odd = head(square, [S0, S0])
        odd.bias = nn.Parameter(shard(make_head(make_problem(30, 12)), bias_mesh, [S0], bias_placements).bias)
        check(wrong, "bias sharded differently", odd, lip(odd), "expected a bias sharded as the weight is")
    return wrong


def main(folder: str) -> None:
    quietly()
    warnings.simplefilter("ignore")
    names = ("by class", "fully sharded", "replicas")
    found = each(settings, [(name, {}) for name in names], Path(folder, "settings"))
    found += each(layouts, [("hybrid", {})], Path(folder, "layouts"))
    Path(folder, "found.json").write_text(json.dumps(found))


if __name__ == "__main__":
    main(*sys.argv[1:])
