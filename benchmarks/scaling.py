"""How something grows with a size: the exponent of the power law through its largest points."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TypeVar

__all__ = ["LEAST_POINTS", "Exponent", "fit", "upper_half"]

T = TypeVar("T")

# Of a line through two points nothing is left over to tell its error by.
LEAST_POINTS = 3
# Below this, ten times the size is a half more: that is called constant, where two standard errors say so.
FLAT = 0.2


@dataclass(frozen=True)
class Exponent:
    """Of y = c x^slope.

    Attributes:
        slope: the exponent.
        error: its standard error.
    """

    slope: float
    error: float

    @property
    def flat(self) -> bool:
        """Whether y hardly depends on x, and the points tell."""
        return abs(self.slope) + 2 * self.error <= FLAT

    @property
    def shown(self) -> str:
        """The exponent in two digits, without the sign of what rounds to zero."""
        return f"{round(self.slope, 2) + 0.0:.2f}"

    def __str__(self) -> str:
        return f"{self.shown} ± {self.error:.2f}"


def fit(xs: Sequence[float], ys: Sequence[float]) -> Exponent:
    """Least squares through the logarithms of at least three points.

    Raises:
        ValueError: there are fewer, or all at one x.
    """
    if len(xs) != len(ys) or len(set(xs)) < LEAST_POINTS:
        raise ValueError(f"expected {LEAST_POINTS} or more different x with a y each, got {xs} and {ys}")
    us, vs = [math.log(x) for x in xs], [math.log(y) for y in ys]
    middle, height = math.fsum(us) / len(us), math.fsum(vs) / len(vs)
    spread = math.fsum((u - middle) ** 2 for u in us)
    slope = math.fsum((u - middle) * (v - height) for u, v in zip(us, vs, strict=True)) / spread
    left = math.fsum((v - height - slope * (u - middle)) ** 2 for u, v in zip(us, vs, strict=True))
    return Exponent(slope, math.sqrt(left / (len(us) - 2) / spread))


def upper_half(points: Sequence[T]) -> Sequence[T]:
    """The points that an exponent is fitted to, of ascending ones: what calls cost rules the others."""
    return points[-max((len(points) + 1) // 2, LEAST_POINTS) :]
