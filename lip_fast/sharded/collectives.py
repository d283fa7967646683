"""Collectives, and what is said where one of them fails."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

__all__ = ["PeerError", "all_gather", "explained"]


class PeerError(RuntimeError):
    """Another process failed in LIP, is gone, or takes another step than this one.

    LIP has written nothing in this step: the weight is what the base optimizer made it.
    """


def all_gather(out: Tensor, tensor: Tensor, group: Any) -> None:
    """``tensor`` of every process of a group, one after the other in ``out``."""
    # The name of torch 2.13; before, it had another.
    gather = getattr(dist, "all_gather_single", None) or dist.all_gather_into_tensor
    gather(out, tensor, group=group)


@contextmanager
def explained() -> Iterator[None]:
    """Raise a failed collective as a :class:`PeerError` that says what the failure means."""
    try:
        yield
    except (PeerError, torch.OutOfMemoryError):
        raise
    except RuntimeError as error:
        raise PeerError(
            f"a collective of LIP failed on rank {dist.get_rank()}: another process is gone, or later than "
            "the time-out of the process group. LIP wrote nothing in this step: start all processes again, "
            f"from the last checkpoint. The collective says: {error}"
        ) from error
