"""The status word: why the LIP of a step was not taken.

A 0-d int64 on the device of the weight, so that no one waits for it: 0 is sound, else the sum of the bits
below. Kernels set the bits they find true and say nothing of the others.
"""

from torch import Tensor

from lip_fast import host

__all__ = [
    "NAMES",
    "NOT_CONVERGED",
    "NOT_FINITE",
    "NOT_ORTHOGONAL",
    "OUT_OF_STEP",
    "RANK_DEFICIENT",
    "lost",
    "reasons",
]

# The weight, the features, the labels, their sums or the result: a NaN, an infinity, or values too large to
# be multiplied out in the dtype of the step.
NOT_FINITE = 1
# A factor lost rank where the solver in use needs it full. Solvers that continue through a reflection or an
# SVD never set it: a weight without full rank is no fault as such.
RANK_DEFICIENT = 2
# A finite matrix whose eigenvalues or singular values were not found.
NOT_CONVERGED = 4
# max |B^T B - I| > 1e-4: directions that are none, though every number is finite.
NOT_ORTHOGONAL = 8
# Another process of a sharded head failed, or saw another batch where all should see one.
OUT_OF_STEP = 16

# As the counters of LIP.stats() are called, in the order of the bits.
NAMES = {
    "not_finite": NOT_FINITE,
    "rank_deficient": RANK_DEFICIENT,
    "not_converged": NOT_CONVERGED,
    "not_orthogonal": NOT_ORTHOGONAL,
    "out_of_step": OUT_OF_STEP,
}


def reasons(status: int) -> list[str]:
    """Names of the bits of ``status``, for a report."""
    return [name for name, bit in NAMES.items() if status & bit]


def lost(status: Tensor, before: Tensor, after: Tensor, reason: int) -> Tensor:
    """``status`` with the bit ``reason`` where the step could be taken ``before`` and no longer ``after``.

    Args:
        status: the word; 0 where ``before``.
        before: () bool.
        after: () bool, implies ``before``.
        reason: one of the bits.

    Returns:
        () int64, the word.
    """
    if status.device.type in host.READABLE:
        return status | reason if bool(before) and not bool(after) else status
    return status.add(before ^ after, alpha=reason)
