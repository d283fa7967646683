"""Heads on two processes."""

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from .emulations import updates_fused
from .training import OWN, STEPS, TORCH, gapped, linear

__all__ = ["cases"]


def _jointly(maker: str, layout: str, lip: Mapping[str, Any], labels: str, fused: bool) -> dict[str, Any]:
    """A head (30, 12) on two processes; what this one has of it."""
    import torch.distributed as dist
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.tensor import Shard, distribute_tensor

    import lip_fast

    l, q, rows = 30, 12, 24
    random = torch.Generator().manual_seed(7)
    head = linear(q, l, random, dtype=torch.float32)
    head.weight.data.copy_(gapped(l, q, random))
    gradients = torch.randn(STEPS, l, q, generator=random) / 10
    x = torch.randn(STEPS, rows, q, generator=random)
    y = torch.randint(0, l, (STEPS, rows), generator=random)
    sets = (torch.rand(STEPS, rows, l, generator=random) < 0.15).float()
    mesh = init_device_mesh("cpu", (2,))
    group: dict[str, Any] = {}
    if layout in ("replicas", "fully-sharded"):
        group = {"data_group": dist.group.WORLD if layout == "replicas" else mesh}
        mine = slice(dist.get_rank(), None, 2)
        x, y, sets = x[:, mine], y[:, mine], sets[:, mine]

    def placed(tensor: Tensor) -> Tensor:
        if layout == "replicas":
            return tensor.detach().clone()
        where = [Shard(1 if layout == "shard1" else 0)]
        found: Tensor = distribute_tensor(tensor.detach(), mesh, where, src_data_rank=None)
        return found

    head.weight = nn.Parameter(placed(head.weight))
    if layout == "fully-sharded":
        head.bias = nn.Parameter(placed(head.bias))
    optimizer: Any
    state: Any
    observe: Callable[..., None]
    if maker in TORCH:
        optimizer = torch.optim.SGD([head.weight], lr=0.05, momentum=0.9)
        state = lip_fast.LIP(head, **lip, **group)
        state.attach(optimizer)
        observe = state.observe
    else:
        settings = {f"lip_{key}": value for key, value in lip.items()}
        name, defaults = OWN[maker]
        groups = [{"params": [head.weight], **settings}]
        optimizer = getattr(lip_fast.optim, name)(groups, **defaults, **group)
        state, observe = optimizer.lip, partial(optimizer.observe, head)

    def train() -> None:
        for i in range(STEPS):
            head.weight.grad = placed(gradients[i])
            observe(x[i], sets[i].to_sparse_csr() if labels == "csr" else y[i])
            optimizer.step()

    if fused:
        with updates_fused():
            train()
    else:
        train()
    return {
        "weight": head.weight.detach(),
        "optimizer": optimizer.state_dict(),
        "lip": state.state_dict(),
        "stats": state.stats(),
    }


def cases() -> dict[str, Callable[[], Any]]:
    """Every layout of a weight, with several optimizers and settings."""
    truncated = {"rank": 1, "tail_rank": 2}
    options: dict[str, tuple[Sequence[str], dict[str, Any], str, bool]] = {
        "exact": (("SGD-nesterov", "LIPSGD", "LIPAdamW"), {"rank": 0.5}, "indices", False),
        "keep": (("SGD-nesterov", "LIPSGD-momentum", "LIPAdamW"), truncated, "indices", False),
        "drop": (("SGD-nesterov", "LIPAdamW"), truncated | {"rest": "drop"}, "indices", False),
        "decay": (("SGD-nesterov", "LIPAdamW"), truncated | {"decay": 0.9}, "indices", False),
        "rank-auto": (("SGD-nesterov",), {"rank": "auto", "tail": "zero"}, "indices", False),
        "csr": (("SGD-nesterov",), truncated, "csr", False),
        "fused-keep": (("LIPSGD-momentum", "LIPAdamW"), truncated, "indices", True),
        "fused-drop": (("LIPAdamW",), truncated | {"rest": "drop"}, "indices", True),
    }
    return {
        f"{layout}/{maker}/{name}": partial(_jointly, maker, layout, lip, labels, fused)
        for layout in ("shard0", "shard1", "replicas", "fully-sharded")
        for name, (makers, lip, labels, fused) in options.items()
        for maker in makers
    }
