"""Rows that go from process to process: features, or what is made of them, with their labels."""

from collections.abc import Callable, Sequence
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from lip_fast.sharded.collectives import all_gather, explained
from lip_fast.sharded.group import Group, Sizes, no_rows
from lip_fast.targets import CSR, IGNORE_INDEX, Targets

__all__ = ["all_rows", "exchange", "filled", "unpack"]


def all_rows(group: Group) -> list[tuple[Tensor, Targets]]:
    """Features and labels of every process whose batch differs, for statistics of all of them."""
    if not group.exchanges:
        return group.batches
    groups = (*group.sharding.gathered, *group.sharding.outer)
    return [exchange(group, lambda X: X.to(group.dtype), group.sharding.shape[1], groups)]


def exchange(
    group: Group, project: Callable[[Tensor], Tensor], columns: int, groups: Sequence[Any]
) -> tuple[Tensor, Targets]:
    """``project`` (n, columns) of the features of all processes of ``groups``, and the labels.

    One gather a process group, of bytes: all else would round. Each process sends as many rows as the largest
    has; those that fill up are zeros without a label. Of label matrices, where a row counts even if it has no
    entry, they are taken out again.
    """
    # Asked again when a failed process runs the step a second time, at the same place as the first time.
    if not group.knows_sizes:
        group.agree()
    sizes = group.sizes
    assert sizes is not None
    if not sizes.rows:
        return no_rows(columns, group.device)
    parts = {"rows": (sizes.rows * columns, group.dtype)}
    if sizes.matrix:
        parts |= {
            "row": (sizes.entries, torch.int64),
            "col": (sizes.entries, torch.int64),
            "value": (sizes.entries, group.dtype),
            "count": (1, torch.int64),
        }
    else:
        parts["label"] = (sizes.rows, torch.int64)
    packed = group.attempt(lambda: _pack(filled(group, project, sizes), parts))
    if packed is None:
        total = sum(n * dtype.itemsize for n, dtype in parts.values())
        packed = torch.zeros(total, dtype=torch.uint8, device=group.device)
    # Before the collective is counted: a process that fails here has not been in it.
    gathered, size = [], packed.numel()
    for one in groups:
        size *= dist.get_world_size(one)
        gathered.append(packed.new_zeros(size))
    joins = group.joins()
    with explained():
        for one, everyone in zip(groups, gathered, strict=True):
            if joins:
                all_gather(everyone, packed, one)
            packed = everyone
    received = packed
    return group.compute_or(
        lambda: _take_apart(unpack(received, parts), columns), lambda: no_rows(columns, group.device)
    )


def filled(group: Group, project: Callable[[Tensor], Tensor], sizes: Sizes) -> dict[str, Tensor]:
    """What this process has to give, filled up to the sizes of the largest."""
    labels = [Y for _, Y in group.batches]
    R = torch.cat([project(X) for X, _ in group.batches])
    parts = {"rows": _fill(R, sizes.rows, 0)}
    if not sizes.matrix:
        indices = torch.cat([Y for Y in labels if isinstance(Y, Tensor)])
        parts["label"] = _fill(indices, sizes.rows, IGNORE_INDEX)
        return parts
    # An entry that fills up is a zero in the last row, so that rows stay sorted.
    row, col, value = _entries(labels, group.sharding.shape[0])
    return parts | {
        "row": _fill(row, sizes.entries, max(sizes.rows - 1, 0)),
        "col": _fill(col, sizes.entries, 0),
        "value": _fill(value.to(group.dtype), sizes.entries, 0),
        "count": torch.tensor([len(R)], device=R.device),
    }


def unpack(packed: Tensor, parts: dict[str, tuple[int, torch.dtype]]) -> dict[str, Tensor]:
    """Each part of the bytes of all processes, (processes, numbers)."""
    lengths = [n * dtype.itemsize for n, dtype in parts.values()]
    pieces = packed.view(-1, sum(lengths)).split(lengths, 1)
    # A copy begins where any dtype may.
    return {
        name: piece.clone(memory_format=torch.contiguous_format).view(dtype)
        for (name, (_, dtype)), piece in zip(parts.items(), pieces, strict=True)
    }


def _pack(tensors: dict[str, Tensor], parts: dict[str, tuple[int, torch.dtype]]) -> Tensor:
    """The bytes of the parts, one after the other."""
    return torch.cat([tensors[name].contiguous().view(-1).view(torch.uint8) for name in parts])


def _take_apart(parts: dict[str, Tensor], columns: int) -> tuple[Tensor, Targets]:
    """Rows and labels of what was gathered, without the rows of label matrices that filled up."""
    R = parts["rows"].reshape(-1, columns)
    rows = parts["rows"].shape[1] // columns
    if "label" in parts:
        return R, parts["label"].reshape(-1)
    own = (torch.arange(rows, device=R.device) < parts["count"]).reshape(-1)
    # The rows of each process come after those of the one before.
    first = torch.arange(len(parts["row"]), device=R.device)[:, None] * rows
    row = (parts["row"] + first).reshape(-1)
    kept = own[row]
    R, row = R[own], (own.cumsum(0) - 1)[row[kept]]
    crow = torch.zeros(len(R) + 1, dtype=torch.int64, device=R.device)
    torch.cumsum(torch.bincount(row, minlength=len(R)), 0, out=crow[1:])
    return R, CSR(crow, parts["col"].reshape(-1)[kept], parts["value"].reshape(-1)[kept])


def _entries(labels: Sequence[Targets], classes: int) -> tuple[Tensor, Tensor, Tensor]:
    """Row, column and value of the entries of label matrices one below the other, by rows.

    Class indices are matrices with a one in each row; a row without a label is one without an entry.
    """
    rows, cols, values, first = [], [], [], 0
    for Y in labels:
        if isinstance(Y, CSR):
            row = torch.repeat_interleave(Y.crow.diff(), output_size=len(Y.col))
            entries, count = (row, Y.col, Y.values), len(Y.crow) - 1
        elif Y.dim() == 2:
            row, col = torch.ones_like(Y, dtype=torch.bool).nonzero(as_tuple=True)
            entries, count = (row, col, Y.reshape(-1)), len(Y)
        else:
            (row,) = ((Y >= 0) & (Y < classes)).nonzero(as_tuple=True)
            entries, count = (row, Y[row], torch.ones(len(row), device=Y.device)), len(Y)
        rows.append(entries[0] + first)
        cols.append(entries[1])
        values.append(entries[2].double())
        first += count
    return torch.cat(rows), torch.cat(cols), torch.cat(values)


def _fill(tensor: Tensor, length: int, value: float) -> Tensor:
    missing = length - len(tensor)
    return torch.cat([tensor, tensor.new_full((missing, *tensor.shape[1:]), value)]) if missing else tensor
