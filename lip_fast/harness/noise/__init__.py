"""Wrong labels, made from clean ones: one kind of noise in each function."""

from collections.abc import Callable

import numpy as np

from lip_fast.harness.noise.candidates import competitor, partial
from lip_fast.harness.noise.classes import asymmetric, none, pair, symmetric
from lip_fast.harness.noise.instance_dependent import instance
from lip_fast.harness.noise.truth import Truth, next_class

__all__ = ["NOISES", "make_noisy"]

NOISES: dict[str, Callable[[Truth, float, np.random.Generator], np.ndarray]] = {
    "none": none,
    "symmetric": symmetric,
    "asymmetric": asymmetric,
    "pair": pair,
    "instance": instance,
    "partial": partial,
    "competitor": competitor,
}


def make_noisy(
    kind: str,
    labels: np.ndarray,
    rate: float,
    classes: int,
    generator: np.random.Generator,
    similar: np.ndarray | None = None,
    features: np.ndarray | None = None,
) -> np.ndarray:
    """Wrong labels made from clean ones.

    Args:
        kind: one of ``NOISES``.
        labels: (n,) int64 clean class indices.
        rate: share of wrong labels, or probability of a wrong candidate, 0 <= rate < 1.
        classes: number of classes l, at least 2.
        generator: source of all randomness.
        similar: (l,) int64, what each class is mistaken for in ``"asymmetric"`` and ``"competitor"``; None
            for the next class.
        features: (n, d) float32 of the rows; only ``"instance"`` looks at them and needs them.

    Returns:
        a new array: (n,) int64 labels, or (n, l) uint8 candidate sets for ``"partial"`` and ``"competitor"``.

    Raises:
        ValueError: the kind needs features and got None.
    """
    similar = next_class(classes) if similar is None else similar
    return NOISES[kind](Truth(labels, classes, similar, features), rate, generator)
