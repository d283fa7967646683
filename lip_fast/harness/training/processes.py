"""Several processes that train one network, as torchrun starts them: all that knows of torch.distributed.

Each process has the same data, plan and weights, and takes its part of every batch. The first alone prints,
and reads and writes the run folder.
"""

import atexit
import gc
import importlib
import os
import signal
import traceback
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager, nullcontext, redirect_stdout, suppress
from datetime import timedelta
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from lip_fast.cli.errors import UserError
from lip_fast.sharded import PeerError

__all__ = ["ALONE", "LostError", "Processes", "refuse_several", "started"]

# A process that is not heard for so long counts as lost. All do the same at the same time; the longest waits
# are for the first process to save a checkpoint, and for data that are not on the disk of every machine.
_PATIENCE = timedelta(minutes=10)
# Where all processes fail, one prints the message. The others wait so long for it, far longer than it takes.
_HEARING = timedelta(seconds=5)
_FAILED = 1


class LostError(Exception):
    """Another process has ended, or is not heard any more."""


class Processes:
    """This process among those that train one network together.

    Args:
        rank: the number of this one, from 0.
        size: how many there are; of one alone no method communicates.

    Attributes:
        rank: as given.
        size: as given.
    """

    def __init__(self, rank: int = 0, size: int = 1) -> None:
        self.rank, self.size = rank, size

    @property
    def first(self) -> bool:
        """Whether this is the one that prints, and reads and writes files of the run."""
        return self.rank == 0

    @property
    def group(self) -> object | None:
        """The group of all processes, as :class:`lip_fast.LIP` takes it; None of one alone."""
        return None if self.size == 1 else dist.group.WORLD

    def take_device(self, kind: str) -> None:
        """Make the CUDA device with this process's number on its machine the current one.

        Args:
            kind: "cpu", for which there is nothing to do, or "cuda".

        Raises:
            UserError: there are fewer devices than processes.
        """
        if self.size == 1 or kind != "cuda":
            return
        place, count = dist.get_node_local_rank(), torch.cuda.device_count()
        if place >= count:
            raise UserError(f"expected a CUDA device for each process of a machine, found {count} for more")
        torch.cuda.set_device(place)

    def part(self, rows: Tensor) -> Tensor:
        """This process's part of the rows of a batch, in their order; it may be empty.

        Parts differ by one row at most, the larger ones come first.
        """
        return rows if self.size == 1 else rows.tensor_split(self.size)[self.rank]

    def sum_(self, tensors: Sequence[Tensor]) -> None:
        """Replace tensors by their sums over all processes, which get the same bits.

        Args:
            tensors: of one dtype and device, and of the same shapes on every process.

        Raises:
            LostError: another process has ended.
        """
        if self.size == 1:
            return
        # One exchange for all tensors: each exchange has a cost of its own.
        flat = torch.cat([tensor.reshape(-1) for tensor in tensors])
        with _losing():
            dist.all_reduce(flat)
        for tensor, part in zip(tensors, flat.split([t.numel() for t in tensors]), strict=True):
            tensor.copy_(part.view_as(tensor))

    @torch.no_grad()
    def copy_from_first_(self, tensors: Iterable[Tensor]) -> None:
        """Replace tensors by those of the first process.

        Args:
            tensors: of any dtypes, and of the same shapes on every process.

        Raises:
            LostError: another process has ended.
        """
        if self.size == 1:
            return
        with _losing():
            for tensor in tensors:
                dist.broadcast(tensor.detach(), 0)

    def from_first(self, function: Callable[[], Any]) -> Any:
        """What a function returns to the first process, which alone calls it.

        Raises:
            LostError: another process has ended; with what the function raised, for one.
        """
        if self.size == 1:
            return function()
        box = [function() if self.first else None]
        with _losing():
            dist.broadcast_object_list(box, 0)
        return box[0]

    def check_same(self, what: str, value: object) -> None:
        """Refuse processes that would train different things.

        Args:
            what: the name of ``value`` in the message.
            value: to be equal on every process.

        Raises:
            UserError: it is not; on every process.
            LostError: another process has ended.
        """
        if self.size == 1:
            return
        found: list[object] = [None] * self.size
        with _losing():
            dist.all_gather_object(found, value)
        others = [str(rank) for rank, other in enumerate(found) if other != found[0]]
        if others:
            raise UserError(
                f"expected the same {what} on every process, found others than the first's on process "
                f"{', '.join(others)} of {self.size}"
            )


# One process that trains by itself.
ALONE = Processes()


@contextmanager
def started() -> Iterator[Processes]:
    """The processes that torchrun has started, this one among them; :data:`ALONE` without torchrun.

    Inside, all but the first are silent on stdout and deaf to Ctrl-C: they end with the first. Where several
    fail, one of them lets its exception through, to be told, and the others exit.

    Raises:
        UserError: another process was lost.
        SystemExit: the process failed, and another one tells why.
    """
    rank, size, store = _launched()
    if size == 1:
        yield ALONE
        return
    # Its functions take the group of the moment of import for a default. It is imported while there is none:
    # otherwise torch's optimizers import it later, and it keeps the group alive.
    importlib.import_module("torch.distributed.nn")
    # Also for a training on the CPU: NCCL connects only when it is first used.
    nccl = torch.cuda.is_available() and dist.is_nccl_available()
    dist.init_process_group(
        "cpu:gloo,cuda:nccl" if nccl else "gloo", store=store, rank=rank, world_size=size, timeout=_PATIENCE
    )
    try:
        with _silence() if rank > 0 else nullcontext():
            yield Processes(rank, size)
    except BaseException as error:
        if not nccl:  # to end a group of NCCL may wait for processes that are gone
            _destroy(error)
        if isinstance(error, SystemExit) and not error.code:  # after --help
            raise
        _leave(dist.PrefixStore("lip-fast", store), error, size)
    _destroy(None)


def refuse_several() -> None:
    """Refuse several processes of torchrun: for subcommands that cannot use them.

    Raises:
        UserError: there are several; in the first.
        SystemExit: with code 0, in the others.
    """
    rank, size, _ = _launched()
    if size == 1:
        return
    if rank > 0:
        raise SystemExit(
            0
        )  # after a failure torchrun would end the first process before it has told the reason
    raise UserError(f"expected one process, got {size} of torchrun, which only lip-fast train can use")


def _launched() -> tuple[int, int, Any]:
    """Rank, size and the store that torchrun keeps for its processes; one process by itself has no store."""
    if not (dist.is_available() and dist.is_torchelastic_launched()):
        return 0, 1, None
    store, rank, size = next(dist.rendezvous("env://", timeout=_PATIENCE))
    return rank, size, store


@contextmanager
def _silence() -> Iterator[None]:
    """Inside, nothing is printed on stdout, and Ctrl-C is ignored."""
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        with open(os.devnull, "w") as nothing, redirect_stdout(nothing):
            yield
    finally:
        signal.signal(signal.SIGINT, before)


def _destroy(error: BaseException | None) -> None:
    """End the group, and its threads: at the end of the interpreter they may abort the process."""
    while error is not None:  # frames of the traceback may hold the group
        traceback.clear_frames(error.__traceback__)
        error = error.__context__
    dist.destroy_process_group()
    # LIP and an optimizer refer to each other and to the group: only the collector frees them.
    gc.collect()


def _leave(store: "dist.Store", error: BaseException, size: int) -> None:
    """Raise the error, where this is the first process to fail, otherwise exit."""
    first = True
    with suppress(RuntimeError):  # torchrun has ended, and the store with it
        first = store.add("failures", 1) == 1
    if not first:
        # When torchrun sees that a process has failed it ends the others: wait until the reason is told.
        with suppress(RuntimeError):
            store.wait(["told"], _HEARING)
        raise SystemExit(_FAILED) from error
    atexit.register(_tell, store)
    if _is_loss(error):
        raise UserError(f"expected {size} processes to the end, lost one: {_last_line(error)}") from error
    raise error


def _tell(store: "dist.Store") -> None:
    with suppress(RuntimeError):
        store.set("told", "")


@contextmanager
def _losing() -> Iterator[None]:
    """Raise :class:`LostError` where the block failed because another process is gone."""
    try:
        yield
    except RuntimeError as error:
        if not _is_loss(error):
            raise
        raise LostError(_last_line(error)) from error


def _is_loss(error: BaseException) -> bool:
    """Whether this error says that another process cannot be reached."""
    return isinstance(error, LostError | PeerError | dist.DistError) or "gloo" in str(error)


def _last_line(error: BaseException) -> str:
    return str(error).strip().rpartition("\n")[2]
