"""What the model sees of a data set: its features as they are, or random features of them."""

import dataclasses
import math

import numpy as np

from lip_fast.cli.errors import UserError
from lip_fast.harness.data.dataset import Dataset

__all__ = ["GIVEN", "with_features"]

GIVEN = "given"
_RANDOM_RELU = "random-relu"
# The spread of the biases beside inputs of length 2: neurons then differ in how often they are silent.
_BIAS = 0.3


def with_features(dataset: Dataset, name: str) -> Dataset:
    """The data set with the features that ``name`` stands for.

    Args:
        dataset: with its own features.
        name: "given", or "random-relu:WIDTH": max(0, 2 P x / sqrt(d) + b) with so many Gaussian rows of P and
            entries of b, the same in every run (random kitchen sinks, Rahimi and Recht 2008), scaled to a
            mean square of 1 over the training part. A linear model on them is a network whose first layer is
            not trained.

    Raises:
        UserError: another name.
    """
    kind, _, width = name.partition(":")
    if name == GIVEN:
        return dataset
    if kind != _RANDOM_RELU or not width.isdecimal() or not int(width):
        raise UserError(f"expected --features {GIVEN} or {_RANDOM_RELU}:WIDTH, got {name!r}")
    source = np.random.default_rng(0)
    d = dataset.train_features.shape[1]
    P = source.standard_normal((d, int(width)), dtype=np.float32) * (2 / math.sqrt(d))
    b = source.standard_normal(int(width), dtype=np.float32) * _BIAS

    def seen(dataset: Dataset) -> Dataset:
        train, test = (np.maximum(X @ P + b, 0) for X in (dataset.train_features, dataset.test_features))
        scale = np.float32(math.sqrt(float(np.square(train, dtype=np.float64).mean())) or 1.0)
        split = dataset.split
        return dataclasses.replace(
            dataset,
            train_features=train / scale,
            test_features=test / scale,
            image_shape=None,
            split=None if split is None else lambda seed: seen(split(seed)),
        )

    return seen(dataset)
