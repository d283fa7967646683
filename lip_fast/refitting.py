"""What becomes of the directions that a step has found."""

from typing import NamedTuple

__all__ = ["Refitting"]


class Refitting(NamedTuple):
    """How many directions are kept, and how those below them are refitted."""

    rank: int
    """So many are kept."""
    drop: bool
    """Whether directions below those refitted are removed."""
    clip: bool
    """As of :func:`lip_fast.ops.refit`, also below."""
    tolerance: float
