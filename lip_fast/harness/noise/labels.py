"""The labels that a seed is trained on: made, the data's own, given by people, or those of another run."""

from collections.abc import Iterable
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from lip_fast.cli.errors import UserError, unknown_name
from lip_fast.harness.data import Dataset
from lip_fast.harness.data.human_labels import read_human_labels
from lip_fast.harness.files.labels import labels_sha256, load_labels
from lip_fast.harness.files.reading import checked_labels
from lip_fast.harness.noise import NOISES, make_noisy
from lip_fast.harness.seeding import stream

__all__ = [
    "SOURCES",
    "as_targets",
    "check_source",
    "describe_classes",
    "describe_labels",
    "label_warnings",
    "listed",
    "span",
    "training_labels",
]

# Sources of labels beside the kinds of noise that are made; the value is the form of their argument, if any.
SOURCES: dict[str, str] = {
    "auto": "",
    "own": "",
    "human": "FILE or human:FILE#SET",
    "file": "LABELS.npz",
}


def check_source(noise: str) -> None:
    """Refuse the name of a label source that cannot be.

    Raises:
        UserError: the name is unknown, lacks its argument or has one it does not take.
    """
    kind, mark, argument = noise.partition(":")
    if kind not in NOISES and kind not in SOURCES:
        raise unknown_name("label noise", kind, [*NOISES, *SOURCES])
    form = SOURCES.get(kind, "")
    if form and not argument:
        raise UserError(f"expected --noise {kind}:{form}, got {noise!r}")
    if mark and not form:
        raise UserError(f"label noise {kind} takes no argument, got {argument!r}")


def training_labels(noise: str, rate: float, dataset: Dataset, seed: int) -> np.ndarray:
    """The labels that a seed is trained on.

    Args:
        noise: one of ``NOISES``, made from the clean labels; ``own``, those that the data come with;
            ``auto``, own where there are such, symmetric otherwise; ``human:FILE#SET``; ``file:LABELS.npz``.
        rate: of the noise that is made.
        dataset: in the split of the seed.
        seed: of the noise that is made; whose labels are read from a file.

    Returns:
        (n,) int64 class indices, or (n, l) uint8 candidate sets.

    Raises:
        UserError: the labels cannot be had, or are of other data.
    """
    kind, _, argument = _resolved(noise, dataset).partition(":")
    clean, classes = dataset.train_labels, len(dataset.class_names)
    if kind == "own":
        if dataset.given_labels is None:
            raise UserError(f"expected data that come with wrong labels for --noise own, got {dataset.name}")
        return dataset.given_labels
    if kind == "human":
        return read_human_labels(argument, clean, classes)
    if kind == "file":
        return _saved_labels(Path(argument), dataset, seed)
    generator, features = stream(seed, "noise"), dataset.train_features
    return make_noisy(kind, clean, rate, classes, generator, dataset.similar_classes, features)


def describe_labels(noise: str, rate: float, dataset: Dataset) -> str:
    """What titles say of the labels, e.g. ``40% symmetric label noise``."""
    kind, _, argument = _resolved(noise, dataset).partition(":")
    if kind == "own":
        sets = dataset.given_labels is not None and dataset.given_labels.ndim == 2
        return "its own candidate sets" if sets else "its own labels"
    if kind == "none":
        return "clean labels"
    if kind == "partial":
        return f"candidate sets with {100 * rate:g}% of the wrong classes"
    if kind == "competitor":
        return f"candidate sets with a similar class in {100 * rate:g}%"
    if kind in ("human", "file"):
        return f"{'human labels' if kind == 'human' else 'labels'} of {Path(argument).name}"
    kind = "instance-dependent" if kind == "instance" else kind
    return f"{100 * rate:g}% {kind} label noise"


def describe_classes(dataset: Dataset) -> str:
    """How many classes the data have and of how many samples, for a line of output."""
    counts = dataset.counts()
    return f"{len(counts)} classes of {span(counts)} training samples"


def label_warnings(noise: str, dataset: Dataset) -> list[str]:
    """What of the labels may not be as the user thinks, a line each."""
    made = _resolved(noise, dataset).partition(":")[0] in set(NOISES) - {"none"}
    warnings = []
    empty = np.flatnonzero(dataset.counts() == 0)
    if len(empty):
        which = f"class {empty[0]}" if len(empty) == 1 else f"{len(empty)} classes ({listed(empty)})"
        warnings.append(
            f"{dataset.name} has no training sample of {which}; classes are numbered from 0"
            + (f", and wrong labels of --noise {noise} may be of classes without samples" if made else "")
        )
    if (
        made
        and dataset.given_labels is not None
        and np.array_equal(dataset.given_labels, dataset.train_labels)
    ):
        warnings.append(
            f"{dataset.name} does not say which of its labels are clean: --noise {noise} makes wrong labels "
            "beside those that it may have; --noise own leaves them as they are"
        )
    return warnings


def as_targets(labels: np.ndarray) -> Tensor:
    """Labels as the loss and LIP take them: (n,) int64, or candidate sets (n, l) float32."""
    targets = torch.from_numpy(labels)
    return targets if targets.ndim == 1 else targets.float()


def _resolved(noise: str, dataset: Dataset) -> str:
    if noise != "auto":
        return noise
    return "symmetric" if dataset.given_labels is None else "own"


def _saved_labels(path: Path, dataset: Dataset, seed: int) -> np.ndarray:
    """The labels of a seed in the ``labels.npz`` of a run; UserError where that run used other data."""
    saved = load_labels(path)
    places = np.flatnonzero(saved["seeds"] == seed)
    if len(places) != 1:
        raise UserError(f"expected labels of seed {seed} in {path}, found seeds {listed(saved['seeds'])}")
    place = places[0]
    clean, indices = (
        saved[key][place] if saved[key].ndim == 2 else saved[key] for key in ("clean", "indices")
    )
    rows, classes = len(dataset.train_labels), len(dataset.class_names)
    if len(clean) != rows:
        raise UserError(f"expected labels of {rows} rows in {path}, found {len(clean)}")
    expected, found = labels_sha256(dataset.train_labels), labels_sha256(clean)
    if found != expected or not np.array_equal(indices, dataset.train_indices):
        what = f"hash {found[:12]}" if found != expected else "them in other rows"
        raise UserError(
            f"expected {path} to have the data's clean labels, hash {expected[:12]}, found {what}"
        )
    noisy = saved["noisy"][place]
    if noisy.ndim == 1:
        return checked_labels(path, "noisy", noisy, rows, classes)
    if noisy.shape[1] != classes or noisy.max() > 1 or noisy.min() < 0 or not noisy.any(1).all():
        raise UserError(
            f"expected candidate sets among {classes} classes in {path}, none of them empty, found "
            f"{noisy.shape[1]} classes, values {noisy.min()} to {noisy.max()}"
        )
    return noisy.astype(np.uint8)


def span(counts: np.ndarray) -> str:
    """The smallest and the largest of some counts."""
    few, many = counts.min(), counts.max()
    return str(few) if few == many else f"{few} to {many}"


def listed(numbers: Iterable[int], most: int = 10) -> str:
    """The first numbers, "none" where there are none."""
    names = [str(number) for number in numbers]
    return ", ".join(names[:most]) + (", ..." if len(names) > most else "") if names else "none"
