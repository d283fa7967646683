"""Calls that draw the signs of a step, over as many steps as one drawing serves."""

from collections.abc import Callable

from torch import Tensor

from lip_fast.bench.timing import Variant

__all__ = ["signed_steps"]

# The default kernel draws the signs of eight steps at a time: a call for the last step would look them up.
_STEPS = 8


def signed_steps(name: str, call: Callable[[], object], step: Tensor) -> Variant:
    """A variant whose runs are eight calls, each for the next step, which is counted on in place."""

    def run() -> None:
        for _ in range(_STEPS):
            step.add_(1)
            call()

    return Variant(name, run, calls=_STEPS)
