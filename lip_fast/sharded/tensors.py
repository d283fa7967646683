"""DTensors: whether a tensor is one, the part of it that this process holds, and the parameter behind it."""

import warnings
from collections.abc import Iterator
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

from lip_fast.sharded.collectives import explained

__all__ = [
    "first_of_mesh",
    "full_tensor",
    "is_distributed",
    "is_sharded",
    "is_split",
    "local_part",
    "managed_by_fsdp",
    "trained_weight",
    "warn_of_replicas",
]


def _is_dtensor(tensor: object) -> bool:
    # DTensors exist only where this module was imported; to import it costs a second.
    if not dist.is_available():
        return False
    from torch.distributed.tensor import DTensor

    return isinstance(tensor, DTensor)


def is_sharded(tensor: Tensor) -> bool:
    """Whether a tensor is a DTensor, sharded or replicated."""
    return type(tensor) not in (Tensor, nn.Parameter) and _is_dtensor(tensor)


def is_split(tensor: Tensor) -> bool:
    """Whether a tensor is a DTensor of which each process has a part."""
    return is_sharded(tensor) and any(
        hasattr(placement, "dim")
        for placement in tensor.placements  # type: ignore[attr-defined]
    )


def local_part(tensor: Tensor) -> Tensor:
    """What this process holds of a tensor, for reading and writing; the tensor itself where that is all."""
    if not is_sharded(tensor):
        return tensor.detach()
    with torch.no_grad():
        local: Tensor = tensor.to_local()  # type: ignore[attr-defined]
    return local


def full_tensor(tensor: Tensor) -> Tensor:
    """All of a tensor, on every process; a collective where it is sharded."""
    if not is_sharded(tensor):
        return tensor
    with torch.no_grad(), explained():
        full: Tensor = tensor.full_tensor()  # type: ignore[attr-defined]
    return full


def first_of_mesh(tensor: Tensor, like: Tensor) -> Tensor:
    """A tensor of the first process of the mesh of a DTensor, on all of them; a collective."""
    tensor = tensor.contiguous()
    with explained():
        # What the first ones along one dimension have, the others of the next get from them.
        for group in like.device_mesh.get_all_groups():  # type: ignore[attr-defined]
            dist.broadcast(tensor, dist.get_global_rank(group, 0), group=group)
    return tensor


def is_distributed() -> bool:
    """Whether ``torch.distributed`` is initialised in this process."""
    return dist.is_available() and dist.is_initialized()


# FSDP2 ----------------------------------------------------------------------------------------------------


def _fsdp_parameters() -> Iterator[Any]:
    """Every parameter that ``fully_shard`` manages in this process."""
    from torch.distributed._composable_state import _module_state_mapping as states

    for reference in list(states.values()):
        state = reference()
        groups = getattr(state, "_fsdp_param_groups", None) or [getattr(state, "_fsdp_param_group", None)]
        for group in groups:
            yield from getattr(group, "fsdp_params", ())


def managed_by_fsdp(weight: Tensor) -> bool:
    """Whether ``fully_shard`` manages this parameter: its mesh then is one of different batches."""
    return any(managed.sharded_param is weight for managed in _fsdp_parameters())


def trained_weight(weight: Tensor) -> Tensor:
    """The parameter that an optimizer has, of a weight that ``fully_shard`` gathered for a forward pass.

    On top of tensor parallelism what it gathered is a DTensor too.
    """
    if not is_distributed():
        return weight
    for managed in _fsdp_parameters():
        if getattr(managed, "_unsharded_param", None) is weight:
            sharded: Tensor = managed.sharded_param
            return sharded
    return weight


def warn_of_replicas() -> None:
    """Warn of a weight without a data group that one of several processes has to itself."""
    if is_distributed() and dist.get_world_size() > 1:
        warnings.warn(
            f"LIP acts on a weight that this process has to itself, one of {dist.get_world_size()}: where "
            "they see different batches (DistributedDataParallel), pass data_group, or their weights drift "
            "apart",
            UserWarning,
            stacklevel=3,
        )
