"""Features made from pixels."""

import numpy as np

__all__ = ["standardised"]


def standardised(train: np.ndarray, test: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Pixels scaled to [0, 1], then by mean and standard deviation of all training pixels together.

    Args:
        train: (n, d) uint8.
        test: (m, d) uint8.

    Returns:
        (n, d) and (m, d) float32.
    """
    # There are 256 values: their counts give mean and deviation exactly, and a table gives the features
    # without a float64 copy of the images.
    counts = np.zeros(256, dtype=np.int64)
    for rows in np.array_split(train, max(1, train.size // 2**22)):
        counts += np.bincount(rows.ravel(), minlength=256)
    values = np.arange(256) / 255
    mean = (counts * values).sum() / counts.sum()
    deviation = np.sqrt((counts * (values - mean) ** 2).sum() / counts.sum())
    table = ((values - mean) / (deviation if deviation > 0 else 1)).astype(np.float32)
    return table[train], table[test]
