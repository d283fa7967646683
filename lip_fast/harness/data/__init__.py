"""The data sets: asked for by name, as ``name:FOLDER``, or as a ``.mat`` or ``.npz`` file.

All come as float32 features and int64 labels, one reader in each module.
"""

import os
from collections.abc import Callable
from pathlib import Path

from lip_fast.cli.errors import UserError, unknown_name
from lip_fast.harness.data.cifar10 import cifar10
from lip_fast.harness.data.dataset import Dataset
from lip_fast.harness.data.digit_numbers import digit_pairs, digit_triples
from lip_fast.harness.data.digits import digits
from lip_fast.harness.data.embeddings import read_embeddings
from lip_fast.harness.data.fashion_mnist import fashion_mnist
from lip_fast.harness.data.features import GIVEN, with_features
from lip_fast.harness.data.partial_labels import read_partial_labels

__all__ = ["GIVEN", "LOADERS", "READERS", "Dataset", "load"]

LOADERS: dict[str, Callable[[str], Dataset]] = {
    "digits": digits,
    "digit-pairs": digit_pairs,
    "digit-triples": digit_triples,
    "fashion-mnist": fashion_mnist,
    "cifar10": cifar10,
}
READERS: dict[str, Callable[[Path], Dataset]] = {
    ".mat": read_partial_labels,
    ".npz": read_embeddings,
}


def load(name: str, features: str = GIVEN) -> Dataset:
    """The data set called ``name`` or ``name:argument``, or the one in a file ``*.mat`` or ``*.npz``.

    Args:
        name: of the data set.
        features: what the model sees of it; see :func:`with_features`.

    Raises:
        UserError: there is no such data set or no such features, or it cannot be read.
    """
    return with_features(_read(name), features)


def _read(name: str) -> Dataset:
    kind, _, argument = name.partition(":")
    if kind in LOADERS:
        return LOADERS[kind](argument)
    if read := READERS.get(Path(name).suffix.lower()):
        return read(Path(name))
    own = f"data of your own come in a file ending in {' or '.join(READERS)}"
    if os.path.isdir(name):
        raise UserError(
            f"expected the name of a data set or a file, got the folder {name}: {own}, and those in a "
            f"folder are asked for as fashion-mnist:{name} or cifar10:{name}"
        )
    if Path(name).suffix:
        raise UserError(
            f"expected a data file ending in {' or '.join(READERS)}, got {name}: np.savez('data.npz', "
            "train_features=..., train_labels=..., test_features=..., test_labels=...) writes one"
        )
    raise UserError(f"{unknown_name('data set', kind, LOADERS)}; {own}")
