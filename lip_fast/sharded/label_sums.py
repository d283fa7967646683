"""The sums of the refit over the batches of several processes."""

from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from lip_fast import ops
from lip_fast.sharded.group import Group
from lip_fast.sharded.layout import Sharding
from lip_fast.sharded.rows import exchange
from lip_fast.sharded.tensors import full_tensor, is_split
from lip_fast.targets import CSR, IGNORE_INDEX, Targets

__all__ = ["PartSums", "label_sums", "part_sums"]


class PartSums(NamedTuple):
    """What the labels among the classes of this process say of r directions, in float64."""

    numerator: Tensor
    """(r,) sum of P times the label's row of A."""
    denominator: Tensor
    """(r,) sum of P squared."""
    column: Tensor
    """(r,) sum of P."""
    energy: Tensor
    """() sum of the squared features."""


def label_sums(
    group: Group,
    A: Tensor,
    B: Tensor,
    bias: Tensor | None,
    statistics: Callable[[Tensor, Tensor, Tensor | None], ops.Sums] | None = None,
) -> ops.Sums:
    """:func:`lip_fast.ops.label_sums` of the batches of all processes, which then know of all failures.

    Args:
        group: the processes.
        A: (l, r), of a weight sharded by class the rows of this process.
        B: (q, r).
        bias: (l,) of the classifier, whole or sharded; or None.
        statistics: returns the sums of statistics, which all processes have of the same rows and each of its
            own classes, in place of those of the batches.

    Raises:
        PeerError, Exception: as :meth:`lip_fast.sharded.group.Group.sum`.
    """
    sharding, r = group.sharding, A.shape[1]
    batches, projected = group.batches, False
    if statistics is None and sharding.dim == 0 and sharding.gathered:
        batches, projected = [_exchanged_projections(group, B)], True
    own_bias = None if bias is None else _own_bias(group, bias)

    def make() -> list[Tensor]:
        if statistics is not None:
            return _of_statistics(sharding, statistics(A, B, own_bias))
        if sharding.dim != 0:
            return _of_rows(group, A, B, own_bias)
        return _of_classes(group, batches, A, B, own_bias, projected=projected)

    shapes = [(r,)] * 4 + [()] * 2
    numerator, denominator, column, shift, energy, masked = group.sum(make, shapes, sharding.groups)
    # The target is Y - 1 bias^T.
    return ops.Sums(numerator - column * shift, denominator, energy, masked.nan_to_num().long())


def part_sums(
    X: Tensor, Y: Targets, A: Tensor, B: Tensor, offset: int, energies: Tensor | None, *, column: bool
) -> PartSums:
    """Sums over rows X (n, q) by labels of the classes ``offset`` and on, those of the rows of A.

    Class indices: over the rows whose label is among these classes. A matrix of labels: the numerator over
    its columns of these classes, all else over every row.

    Args:
        X: (n, q) features.
        Y: their labels, among all classes.
        A: (classes here, r), possibly none.
        B: (q, r).
        offset: of the classes here.
        energies: (n,) squared lengths of the features, where X is something made of them.
        column: whether the sums of P are wanted.
    """
    classes, r = A.shape
    X = X.to(B.dtype)
    nothing = torch.zeros(r, dtype=torch.float64, device=X.device)
    if isinstance(Y, Tensor) and Y.dim() == 1:
        here = (Y >= offset) & (Y < offset + classes)
        if not classes:
            return PartSums(nothing, nothing, nothing, nothing.sum())
        sums = ops.label_sums(X, torch.where(here, Y - offset, IGNORE_INDEX), A, B)
        energy = sums.energy if energies is None else energies.double().masked_fill(~here, 0).sum()
        total = (X.masked_fill(~here[:, None], 0).sum(0) @ B).double() if column else nothing
        return PartSums(sums.numerator, sums.denominator, total, energy)
    if isinstance(Y, CSR):
        here = (Y.col >= offset) & (Y.col < offset + classes)
        labels: Targets = CSR(Y.crow, torch.where(here, Y.col - offset, 0), torch.where(here, Y.values, 0))
    else:
        labels = Y[:, offset : offset + classes]
    if classes:
        sums = ops.label_sums(X, labels, A, B)
    else:
        sums = ops.Sums(
            nothing, (X @ B).square().sum(0).double(), X.square().sum().double(), nothing.sum().long()
        )
    energy = sums.energy if energies is None else energies.double().sum()
    total = (X.sum(0) @ B).double() if column else nothing
    return PartSums(sums.numerator, sums.denominator, total, energy)


# What a process adds to the sum: numerator, denominator, column, shift (r,), energy and masked () ---------


def _of_rows(group: Group, A: Tensor, B: Tensor, bias: Tensor | None) -> list[Tensor]:
    """Of the rows of this process: those that see the same batch leave it to the first of them."""
    parts = [ops.label_sums(X, Y, A, B, bias) for X, Y in group.batches]
    first = group.sharding.first(group.sharding.same_batch, group.device)
    nothing = torch.zeros(A.shape[1], dtype=torch.float64, device=A.device)
    total = [torch.stack(p).sum(0) for p in zip(*parts, strict=True)]
    numerator, denominator, energy, masked = (p * first for p in total)
    return [numerator, denominator, nothing, nothing, energy, masked]


def _of_statistics(sharding: Sharding, sums: ops.Sums) -> list[Tensor]:
    """Each process has those of its classes; of what all have, the first one's count."""
    device = sums.numerator.device
    first = sharding.first(sharding.groups, device)
    of_classes = sharding.first(sharding.outer, device) if sharding.dim == 0 else first
    nothing = torch.zeros_like(sums.numerator)
    numerator, denominator = sums.numerator * of_classes, sums.denominator * first
    return [numerator, denominator, nothing, nothing, sums.energy * first, sums.masked * first]


def _of_classes(
    group: Group,
    batches: Sequence[tuple[Tensor, Targets]],
    A: Tensor,
    B: Tensor,
    bias: Tensor | None,
    *,
    projected: bool,
) -> list[Tensor]:
    """Of the classes of this process, over all rows that its group has seen."""
    sharding, r = group.sharding, A.shape[1]
    parts = []
    for X, Y in batches:
        energies = X[:, r] if projected else None
        P, directions = (X[:, :r], torch.eye(r, dtype=A.dtype, device=A.device)) if projected else (X, B)
        sums = part_sums(P, Y, A, directions, sharding.offset, energies, column=bias is not None)
        if not (isinstance(Y, Tensor) and Y.dim() == 1):
            # A row of a label matrix is in every part of it; its own sums count once.
            first = sharding.first(sharding.shards, A.device)
            sums = PartSums(sums.numerator, *(p * first for p in sums[1:]))
        parts.append(sums)
    numerator, denominator, column, energy = (torch.stack(p).sum(0) for p in zip(*parts, strict=True))
    shift = torch.zeros(r, dtype=torch.float64, device=A.device)
    if bias is not None:
        # The same in each replica of the weight.
        shift = (bias.double() @ A.double()) * sharding.first(sharding.outer, A.device)
    masked = sum((_out_of_range(Y, sharding.shape[0]) for _, Y in group.batches), group.status * 0)
    masked = masked * sharding.first(sharding.same_batch, A.device)
    return [numerator, denominator, column, shift, energy, masked]


def _exchanged_projections(group: Group, B: Tensor) -> tuple[Tensor, Targets]:
    """[P, squared lengths] (n, r + 1) of the rows of every process that has other classes."""

    def project(X: Tensor) -> Tensor:
        X = X.to(B.dtype)
        return torch.cat([X @ B, X.square().sum(1, keepdim=True)], 1)

    return exchange(group, project, B.shape[1] + 1, group.sharding.gathered)


def _own_bias(group: Group, bias: Tensor) -> Tensor:
    """The biases that belong to the rows of A on this process."""
    if group.sharding.dim != 0 and is_split(bias) and group.joins():
        return full_tensor(bias)
    return group.compute_or(
        lambda: group.sharding.bias_part(bias),
        lambda: torch.zeros(0, dtype=group.dtype, device=group.device),
    )


def _out_of_range(Y: Targets, classes: int) -> Tensor | int:
    """How many class indices are of no class, and not marked as such."""
    if isinstance(Y, CSR) or Y.dim() == 2:
        return 0
    return (((Y < 0) | (Y >= classes)) & (Y != IGNORE_INDEX)).sum()
