"""The settings of LIP on one weight: the arguments of LIP, and what a group of an optimizer says of it."""

import math
import warnings
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

from lip_fast.validation import check_int, describe

__all__ = ["GROUP_SETTINGS", "LASTING", "Settings", "warn_of_first_step"]

# Directions of the smallest weight of which "auto" keeps some and refits two.
_FEWEST = 4


@dataclass(frozen=True, kw_only=True)
class Settings:
    """How LIP acts on one weight (l, q); :class:`lip_fast.LIP` says what each of them means.

    Made without a look at the values: :meth:`check` raises.
    """

    rank: int | float | str | None = None
    tail_rank: int | str | None = None
    tail: str = "refit"
    rest: str = "keep"
    every: int = 1
    start: int = 0
    decay: float | None = None
    clip: bool = True
    seed: int = 0
    strict: bool = False

    def check(self, d: int) -> None:
        """Check every setting for a weight whose smaller side is ``d``.

        Raises:
            TypeError, ValueError: a setting that does not fit; the message names what was expected.
        """
        if self.rank != "auto":
            self.kept(d)
        elif d < _FEWEST:
            raise ValueError(
                f'expected at least {_FEWEST} classes and features for rank="auto", got {d}: a tail needs '
                "two directions, and next to nothing is left to keep. To try it all the same pass rank=1"
            )
        if isinstance(self.tail_rank, str):
            if self.tail_rank != "all":
                raise ValueError(f'expected tail_rank as an int, None or "all", got {self.tail_rank!r}')
        elif self.tail_rank is not None:
            check_int("tail_rank", self.tail_rank, 0)
        for name, value, choices in (
            ("tail", self.tail, ("refit", "zero")),
            ("rest", self.rest, ("keep", "drop")),
        ):
            if value not in choices:
                raise ValueError(f"expected {name} to be one of {choices}, got {value!r}")
        check_int("every", self.every, 1)
        check_int("start", self.start, 0)
        # An integer of an op's schema has 63 bits beside its sign.
        check_int("seed", self.seed, 0, 2**63 - 1)
        if self.decay is not None and not (isinstance(self.decay, float) and 0 < self.decay < 1):
            raise ValueError(f"expected decay in (0, 1) or None, got {self.decay!r}")
        if not isinstance(self.clip, bool):
            raise TypeError(f"expected clip as a bool, got {describe(self.clip)}")

    def kept(self, d: int) -> int | None:
        """How many of ``d`` directions are kept; None where the spectrum of the weight is to decide it."""
        if self.rank == "auto":
            return None
        if isinstance(self.rank, float):
            if not 0 < self.rank <= 1:
                raise ValueError(f"expected a rank fraction in (0, 1], got {self.rank}")
            # Up, so that no fraction of a small head means no direction at all; but not to all of them.
            return d if self.rank == 1 else min(math.ceil(self.rank * d), max(d - 1, 1))
        if isinstance(self.rank, str):
            raise ValueError(f'expected rank as an int, a fraction or "auto", got {self.rank!r}')
        return check_int("rank", self.rank, 0, d)

    @staticmethod
    def most_kept(d: int) -> int:
        """The largest rank that "auto" takes of ``d`` directions.

        A softmax ignores equal logits, and their direction is where a trained head has its lowest singular
        value: with one direction in the tail next to nothing is repaired.
        """
        return d - max(2, math.ceil(d / 10))

    def changes_nothing(self, d: int, rank: int) -> bool:
        """Whether a step that keeps ``rank`` of ``d`` directions leaves the weight as it is."""
        return rank == d or (self.tail_rank == 0 and self.rest == "keep")

    def warn_of_no_effect(self, d: int) -> None:
        """Warn where LIP changes nothing whatever it sees."""
        kept = self.kept(d)
        if kept is not None and self.changes_nothing(d, kept):
            warnings.warn(
                f"LIP with rank={self.rank!r} and tail_rank={self.tail_rank!r} changes nothing: it keeps "
                f"{kept} of the {d} directions of the weight, and repairs no other. Pass a rank of at most "
                f"{max(d - 2, 0)}, and a tail_rank other than 0",
                UserWarning,
                stacklevel=2,
            )

    @staticmethod
    def of_group(group: Mapping[str, Any], *, seed: int, strict: bool) -> "Settings":
        """The settings that a group of an optimizer has under the names of :data:`GROUP_SETTINGS`."""
        of_lip = {name.removeprefix("lip_"): group[name] for name in GROUP_SETTINGS}
        return Settings(**of_lip, seed=seed, strict=strict)


# What a group of an optimizer may say of LIP, and what it says where it is silent: scalars, so that they go
# through every checkpoint of an optimizer. A rank of None is no LIP.
GROUP_SETTINGS: dict[str, Any] = {
    f"lip_{name}": value for name, value in asdict(Settings()).items() if name not in ("seed", "strict")
}
# Those that LIP's state depends on; the others may change from step to step.
LASTING = ("lip_rank", "lip_tail_rank", "lip_tail", "lip_rest", "lip_decay")


def warn_of_first_step(rank: int, d: int) -> None:
    """Warn that "auto" chose a rank by the spectrum of a weight that may not have learned yet."""
    warnings.warn(
        f'rank="auto" keeps {rank} of {d} directions, by the spectrum that the weight had at the first step: '
        "a fresh head is flat and tells nothing. Pass start=, the step from which on LIP acts, once the head "
        "has learned",
        UserWarning,
        stacklevel=2,
    )
