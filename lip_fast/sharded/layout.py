"""Where the parts of a weight lie: DTensors by class, by feature or replicated, and whose batches differ.

A weight M (l, q) may be a DTensor sharded by class (``Shard(0)``), by feature (``Shard(1)``) or replicated,
on meshes of any number of dimensions; and the processes that hold it may see one batch (tensor parallelism)
or different ones (``fully_shard``, ``DistributedDataParallel``).
"""

import math
from collections.abc import Sequence
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from lip_fast.sharded.collectives import explained
from lip_fast.sharded.tensors import full_tensor, is_sharded, is_split, local_part, managed_by_fsdp
from lip_fast.validation import describe

__all__ = ["DataGroup", "Sharding", "anywhere"]


# An odd number without structure (2^64 over the golden ratio), to set seeds apart.
_APART = 0x9E3779B97F4A7C15


class DataGroup:
    """The ``data_group`` of a LIP or an optimizer, which copies of them share: it cannot be copied."""

    def __init__(self, value: object) -> None:
        self.value = value

    def __deepcopy__(self, memo: dict[int, Any]) -> "DataGroup":
        return self


# Layout ---------------------------------------------------------------------------------------------------


class Sharding:
    """Where the parts of one weight (l, q) lie, and which processes see different batches.

    Attributes:
        shape: (l, q) of the whole weight.
        dim: 0 where it is sharded by class, 1 by feature, None where each process has all of it.
        offset: of this process's rows (columns), in those of the weight.
        length: number of this process's rows (columns).
        shards: the groups over which it is sharded, one a dimension of the mesh.
        gathered: those of ``shards`` whose batches differ.
        outer: further groups of different batches, along which the weight is replicated.
        alone: whether the weight is a plain tensor, of which this process sees every batch.
        communicates: whether a step needs other processes.
        batches_differ: whether some other process sees another batch.
    """

    def __init__(self, weight: Tensor, data_group: object) -> None:
        self.shape = (weight.shape[0], weight.shape[1])
        self.dim: int | None = None
        self.offset, self.length = 0, weight.shape[0]
        self.shards: tuple[Any, ...] = ()
        # Of this process in each group of ``shards``.
        self._coordinates: tuple[int, ...] = ()
        self._mesh: Any = None
        self._placements: tuple[Any, ...] = ()
        replicas: list[Any] = []
        if is_sharded(weight):
            replicas = self._read_layout(weight)
        self.gathered, self.outer = self._read_data_group(data_group, replicas)
        self.alone = data_group is None and not is_sharded(weight)
        self.communicates = bool(self.shards or self.outer)
        self.batches_differ = bool(self.gathered or self.outer)

    @staticmethod
    def of(weight: Tensor, data_group: object) -> "Sharding":
        """The layout of the weight of a head.

        Raises:
            TypeError: ``data_group`` is neither a process group nor a device mesh.
            ValueError: a layout that LIP cannot act on, or a group that does not fit it.
        """
        if data_group is None and is_sharded(weight) and managed_by_fsdp(weight):
            raise ValueError(
                "expected data_group with a weight that fully_shard manages, since each process of its mesh "
                "sees another batch, got None: pass the mesh that was given to fully_shard"
            )
        return Sharding(weight, data_group)

    def __deepcopy__(self, memo: dict[int, Any]) -> "Sharding":
        # Of a copy of an optimizer: groups of processes cannot be copied, and need not be.
        return self

    @property
    def groups(self) -> tuple[Any, ...]:
        """Every group that takes part in a step."""
        return (*self.shards, *self.outer)

    @property
    def same_batch(self) -> tuple[Any, ...]:
        """Those of ``shards`` that see one batch."""
        return tuple(group for group in self.shards if group not in self.gathered)

    @property
    def peers(self) -> int:
        """How many processes take part in a step."""
        return math.prod(dist.get_world_size(group) for group in self.groups)

    @property
    def place(self) -> int:
        """This process among them, from 0."""
        place = 0
        for group in self.groups:
            place = place * dist.get_world_size(group) + dist.get_rank(group)
        return place

    def first(self, groups: Sequence[Any], device: torch.device) -> Tensor:
        """() float64: 1 on the first process of each of these groups, which counts for all; else 0."""
        one = torch.ones((), dtype=torch.float64, device=device)
        for group in groups:
            held = group in self.shards
            place = self._coordinates[self.shards.index(group)] if held else dist.get_rank(group)
            one = one * (torch.full_like(one, place) == 0)
        return one

    def _read_layout(self, weight: Any) -> list[Any]:
        from torch.distributed.tensor import Replicate, Shard
        from torch.distributed.tensor._utils import compute_local_shape_and_global_offset

        mesh, placements = weight.device_mesh, weight.placements
        if mesh.get_coordinate() is None:
            raise ValueError(
                f"expected a weight on a mesh that holds this process (rank {dist.get_rank()}), got {mesh}"
            )
        dims, replicas = set(), []
        for i, placement in enumerate(placements):
            # With FSDP2 on top of tensor parallelism the placement is a kind of Shard that says so.
            dim = getattr(placement, "dim", None)
            if isinstance(placement, Replicate):
                replicas.append(mesh.get_group(i))
            elif isinstance(placement, Shard) or type(placement).__name__ == "_StridedShard":
                dims.add(dim)
                self.shards += (mesh.get_group(i),)
                self._coordinates += (mesh.get_local_rank(i),)
            else:
                raise ValueError(
                    f"expected a weight that is sharded or replicated, got placements {placements}"
                )
        if len(dims) > 1:
            raise ValueError(
                "expected a weight that is sharded by class (Shard(0)) or by feature (Shard(1)), not by "
                f"both, got placements {placements}"
            )
        self._mesh, self._placements = mesh, tuple(placements)
        if dims:
            self.dim = dims.pop()
            assert self.dim is not None
            shape, offset = compute_local_shape_and_global_offset(weight.shape, mesh, placements)
            self.offset, self.length = offset[self.dim], shape[self.dim]
        # One process is no group.
        large = [i for i, group in enumerate(self.shards) if dist.get_world_size(group) > 1]
        self.shards = tuple(self.shards[i] for i in large)
        self._coordinates = tuple(self._coordinates[i] for i in large)
        return [g for g in replicas if dist.get_world_size(g) > 1]

    def _read_data_group(
        self, data_group: object, replicas: list[Any]
    ) -> tuple[tuple[Any, ...], tuple[Any, ...]]:
        """The groups of different batches: those along which the weight is sharded, and the others."""
        gathered: list[Any] = []
        outer: list[Any] = []
        for group in _groups_of(data_group):
            ranks = set(dist.get_process_group_ranks(group))
            if len(ranks) == 1:
                continue
            plane = self._plane()
            # The mesh's own objects: another group of the same ranks is not equal to them.
            within, beside = (
                [g for g in groups if set(dist.get_process_group_ranks(g)) <= ranks]
                for groups in (self.shards, replicas)
            )
            if ranks & plane == {dist.get_rank()} and not beside:
                outer.append(group)
            elif math.prod(dist.get_world_size(g) for g in (*within, *beside)) == len(ranks):
                gathered += within
                outer += beside
            else:
                raise ValueError(
                    "expected data_group along whole dimensions of the mesh that the weight lies on, got "
                    "the ranks "
                    f"{sorted(ranks)} where its shards lie on {sorted(plane)}"
                )
        return tuple(dict.fromkeys(gathered)), tuple(dict.fromkeys(outer))

    def _plane(self) -> set[int]:
        """The ranks that together hold the weight once, this one among them."""
        if not self.shards:
            return {dist.get_rank()} if dist.is_initialized() else {0}
        ranks = self._mesh.mesh
        where = (ranks == dist.get_rank()).nonzero()[0].tolist()
        sharded = [getattr(p, "dim", None) is not None for p in self._placements]
        index = tuple(slice(None) if s else w for s, w in zip(sharded, where, strict=True))
        return set(ranks[index].flatten().tolist())

    # Parts of tensors ---------------------------------------------------------------------------------

    def part(self, full: Tensor, dim: int = 0) -> Tensor:
        """The rows (columns) of a tensor of the length of the sharded side that belong to this process."""
        return full if self.dim is None else full.narrow(dim, self.offset, self.length)

    def own_seed(self, seed: int) -> int:
        """A seed of random numbers for this process's part of the weight, another one for each part."""
        return seed if self.dim is None else (seed + _APART * (1 + self.offset)) % 2**63

    def features_of(self, B: Tensor) -> Tensor:
        """The rows of B (q, t) that belong to this process's part of the weight."""
        return self.part(B) if self.dim == 1 else B

    def gather(self, part: Tensor, length: int) -> Tensor:
        """All ``length`` rows of a matrix of which each process has those of its part; exact."""
        return full_tensor(self.as_dtensor(part, (length, part.shape[1]), 0))

    def as_dtensor(self, part: Tensor, shape: tuple[int, ...], dim: int | None) -> Tensor:
        """``part`` as a DTensor of the weight's mesh, sharded along ``dim`` or replicated."""
        from torch.distributed.tensor import DTensor, Replicate

        placements = [
            Replicate() if dim is None or isinstance(p, Replicate) else _by(p, dim) for p in self._placements
        ]
        stride = torch.empty(shape, device="meta").stride()
        result: Tensor = DTensor.from_local(
            part.contiguous(), self._mesh, placements, run_check=False, shape=torch.Size(shape), stride=stride
        )
        return result

    def bias_part(self, bias: Tensor) -> Tensor:
        """The biases of the rows of A that this process has: its classes, or all of them.

        Raises:
            ValueError: sharded in another way than a weight that is sharded by class.
        """
        if self.dim != 0:
            return full_tensor(bias)
        if not is_split(bias):
            return self.part(full_tensor(bias))
        self.check_bias(bias)
        return local_part(bias)

    def check_bias(self, bias: Tensor) -> None:
        """ValueError where this process has other biases than rows of a weight that is sharded by class."""
        if self.dim != 0 or not is_split(bias):
            return
        where: Any = bias
        if where.device_mesh != self._mesh or tuple(where.placements) != self._placements:
            raise ValueError(
                f"expected a bias sharded as the weight is, by {self._placements}, got {where.placements}"
            )

    @property
    def _form(self) -> str:
        """What has to be alike on all processes that make a LIP of this weight."""
        differ = [i for i, group in enumerate(self.shards) if group in self.gathered]
        sizes = [dist.get_world_size(group) for group in self.outer]
        return f"{self._placements}, other batches along {differ} of its dimensions and in {sizes} replicas"

    def agree(self, settings: str, error: Exception | None = None) -> None:
        """Compare settings with all other processes; a collective, to be called by each of them.

        Raises:
            ValueError: another process has other settings, or refused its own; on every process.
        """
        settings = f"{settings}, placements and data_group: {self._form}"
        # Those of the mesh first: what lies beside it may be known to some of them alone.
        mesh = () if self._mesh is None else self._mesh.get_all_groups()
        for group in dict.fromkeys((*mesh, *self.groups)):
            if dist.get_backend(group) == "fake":
                continue
            # What a group of one dimension learned, the next passes on.
            mine = (settings, None if error is None else f"{type(error).__name__}: {error}")
            everyone: list[Any] = [None] * dist.get_world_size(group)
            with explained():
                dist.all_gather_object(everyone, mine, group=group)
            ranks = dist.get_process_group_ranks(group)
            problem = _disagreement(dict(zip(ranks, everyone, strict=True)))
            if error is None and problem is not None:
                error = ValueError(problem)
        if error is not None:
            raise error


def _by(placement: Any, dim: int) -> Any:
    """A placement with the dimension it shards replaced."""
    if placement.dim == dim:
        return placement
    factor = getattr(placement, "split_factor", None)
    return type(placement)(dim) if factor is None else type(placement)(dim, split_factor=factor)


def _groups_of(data_group: object) -> list[Any]:
    if data_group is None:
        return []
    from torch.distributed.device_mesh import DeviceMesh

    if isinstance(data_group, DeviceMesh):
        holds, got = data_group.get_coordinate() is not None, str(data_group)
    elif data_group is dist.GroupMember.NON_GROUP_MEMBER:
        # What new_group returns where it does not hold the process that calls it.
        holds, got = False, "one that does not"
    elif isinstance(data_group, dist.ProcessGroup):
        ranks = dist.get_process_group_ranks(data_group)
        holds, got = dist.get_rank() in ranks, f"the ranks {ranks}"
    else:
        raise TypeError(
            "expected data_group as a torch.distributed.ProcessGroup or DeviceMesh of the processes whose "
            f"batches differ, got {describe(data_group)}"
        )
    if not holds:
        raise ValueError(f"expected a data_group that holds this process (rank {dist.get_rank()}), got {got}")
    return data_group.get_all_groups() if isinstance(data_group, DeviceMesh) else [data_group]


def _disagreement(settings: dict[int, tuple[str, str | None]]) -> str | None:
    for rank, (_, refused) in settings.items():
        if refused is not None:
            return f"rank {rank} refused its settings of LIP: {refused}"
    first, (expected, _) = next(iter(settings.items()))
    for rank, (got, _) in settings.items():
        if got != expected:
            return (
                f"expected the same settings of LIP on every process, got {expected} on rank {first} and "
                f"{got} on rank {rank}"
            )
    return None


def anywhere(here: Tensor, tensors: Sequence[Tensor], shardings: Sequence[Sharding]) -> Tensor:
    """Whether something is so on any process that shares one of these tensors, or a step of these weights.

    Args:
        here: () bool, whether it is so on this one.
        tensors: DTensors among them are shared over their mesh.
        shardings: layouts of weights.

    Returns:
        () bool, the same on all of them.
    """
    groups: dict[Any, None] = {}
    for tensor in tensors:
        if is_sharded(tensor):
            groups |= dict.fromkeys(tensor.device_mesh.get_all_groups())  # type: ignore[attr-defined]
    for sharding in shardings:
        groups |= dict.fromkeys(sharding.groups)
    if not groups:
        return here
    flag = here.float()
    with explained():
        for group in groups:
            dist.all_reduce(flag, dist.ReduceOp.MAX, group=group)
    return flag > 0
