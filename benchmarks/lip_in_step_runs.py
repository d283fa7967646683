"""One training of :mod:`benchmarks.lip_in_step`: a linear head on features in memory, scored as it learns."""

import time
import warnings
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from lip_fast import LIP
from lip_fast.harness.data import GIVEN, LOADERS, Dataset, load
from lip_fast.harness.data.rows import Rows
from lip_fast.harness.noise.labels import training_labels
from lip_fast.harness.seeding import BatchOrder, initialisation
from lip_fast.harness.settings.train import TrainConfig
from lip_fast.harness.training.problem import split
from lip_fast.settings import Settings

__all__ = [
    "BATCH",
    "EVERY",
    "FEATURES",
    "NOISE",
    "ON_DECAY",
    "SHUFFLED",
    "START",
    "STEPS",
    "Problem",
    "Spec",
    "data_of",
    "problem",
    "structured_rank",
    "train",
]

NOISE = 0.4
BATCH = 256
STEPS = 1000
# LIP acts from here on: a fresh head has nothing to keep.
START = 200
# Steps from one look at test part and hold-out to the next: early stopping takes one of them.
EVERY = 50
# Ranks tried on top of the chosen decay, as fractions.
ON_DECAY = (0.2, 0.5, 0.9)
# The rank of :func:`structured_rank`.
SHUFFLED = "shuffled"
FEATURES = "random-relu:512"


class Problem(NamedTuple):
    """What a seed learns from, chooses by and is scored on.

    Labels of the first two are wrong at the rate NOISE; those of the test part are clean.
    """

    train: Rows
    held: Rows
    test: Rows
    classes: int


@dataclass(frozen=True)
class Spec:
    """A training.

    Attributes:
        data: name of the data set.
        optimizer: "adamw" or "sgd", the latter with a momentum of 0.9.
        lr: learning rate, constant.
        seed: of noise, hold-out, initialisation and batches.
        fade: learning rate times weight decay: the share that weights lose in a step.
        rank: of LIP, or SHUFFLED; None without it.
        centred: whether LIP sees the weight without the mean of its rows, which no softmax sees.
        every: LIP acts on each so many steps.
    """

    data: str
    optimizer: str
    lr: float
    seed: int
    fade: float = 0.0
    rank: int | float | str | None = None
    centred: bool = False
    every: int = 1

    @property
    def key(self) -> str:
        """Its name in the results."""
        parts = [self.data, self.optimizer, f"lr {self.lr:g}", f"seed {self.seed}", f"fade {self.fade:g}"]
        parts += [f"rank {self.rank}"] if self.rank is not None else []
        parts += ["centred"] if self.centred else []
        parts += [f"every {self.every}"] if self.every != 1 else []
        return ", ".join(parts)

    @classmethod
    def of(cls, key: str) -> "Spec":
        """The training that has this key."""
        data, optimizer, *rest = key.split(", ")
        said = dict(part.partition(" ")[::2] for part in rest)
        rank = said.get("rank")
        return cls(
            data,
            optimizer,
            float(said["lr"]),
            int(said["seed"]),
            float(said["fade"]),
            None if rank is None else rank if rank in ("auto", SHUFFLED) else float(rank),
            "centred" in said,
            int(said.get("every", 1)),
        )


def data_of(name: str) -> Dataset:
    """A data set of the harness on random features, or embeddings of a file as they are."""
    return load(name, FEATURES if Path(name).name in LOADERS else GIVEN)


def problem(dataset: Dataset, seed: int) -> Problem:
    """The rows and labels of a seed, as ``lip-fast train --noise symmetric`` takes them."""
    dataset = dataset.for_seed(seed)
    labels = torch.from_numpy(training_labels("symmetric", NOISE, dataset, seed))
    kept, held = split(TrainConfig(), len(labels), seed)
    X = torch.from_numpy(dataset.train_features)
    test = Rows(torch.from_numpy(dataset.test_features), torch.from_numpy(dataset.test_labels))
    return Problem(Rows(X[kept], labels[kept]), Rows(X[held], labels[held]), test, len(dataset.class_names))


def structured_rank(rows: Rows, classes: int, seed: int) -> int:
    """How many directions of features and labels belong together beyond what chance gives.

    Counted are the singular values of the covariance of features and labels that are above the largest one of
    the same rows with their labels shuffled (parallel analysis: Horn 1965), at least 1 and at most as many as
    rank="auto" keeps. Wrong labels that do not depend on the features raise both alike.
    """
    shuffled = rows.Y[torch.randperm(rows.size, generator=torch.Generator().manual_seed(seed))]
    found, chance = (torch.linalg.svdvals(_covariance(rows.X, Y, classes)) for Y in (rows.Y, shuffled))
    most = Settings.most_kept(min(classes, rows.X.shape[1]))
    return min(max(int((found > chance[0]).sum()), 1), most)


def _covariance(X: Tensor, Y: Tensor, classes: int) -> Tensor:
    """(classes, q), times the number of rows."""
    sums = X.new_zeros(classes, X.shape[1]).index_add_(0, Y, X)
    return sums - torch.bincount(Y, minlength=classes)[:, None] * X.mean(0)


def train(given: Problem, spec: Spec, steps: int = STEPS) -> dict[str, Any]:
    """Train a head; returns how many of test part and hold-out were right after each EVERY steps.

    Returns:
        ``test`` and ``held``, a number for each look; ``seconds`` of the whole run; with LIP the ``rank``.
    """
    with initialisation(spec.seed):
        head = nn.Linear(given.train.X.shape[1], given.classes)
    decay = spec.fade / spec.lr
    optimizer: torch.optim.Optimizer
    if spec.optimizer == "sgd":
        optimizer = torch.optim.SGD(head.parameters(), spec.lr, momentum=0.9, weight_decay=decay)
    else:
        optimizer = torch.optim.AdamW(head.parameters(), spec.lr, weight_decay=decay)
    if spec.centred:
        # Before LIP, as hooks are called in their order. What the head predicts stays the same.
        optimizer.register_step_post_hook(lambda *_: _centre_(head.weight))
    lip = None
    if spec.rank is not None:
        rank = structured_rank(given.train, given.classes, spec.seed) if spec.rank == SHUFFLED else spec.rank
        lip = LIP(head, rank, start=START, every=spec.every)
        lip.attach(optimizer)
    order, step, epoch = BatchOrder(spec.seed, given.train.size), 0, 0
    test, held = [], []
    begun = time.perf_counter()
    with warnings.catch_warnings():
        # rank="auto" tells what it keeps.
        warnings.simplefilter("ignore", UserWarning)
        while step < steps:
            for rows in order.epoch(epoch).split(BATCH):
                X, Y = given.train.X[rows], given.train.Y[rows]
                optimizer.zero_grad()
                nn.functional.cross_entropy(head(X), Y).backward()
                if lip is not None:
                    lip.observe(X, Y)
                optimizer.step()
                step += 1
                if step % EVERY == 0:
                    test.append(_right(head, given.test))
                    held.append(_right(head, given.held))
                if step == steps:
                    break
            epoch += 1
    result: dict[str, Any] = {"test": test, "held": held}
    result["seconds"] = round(time.perf_counter() - begun, 1)
    if lip is not None:
        result["rank"] = lip.stats()["rank"]
    return result


@torch.no_grad()
def _centre_(weight: Tensor) -> None:
    weight -= weight.mean(0)


@torch.no_grad()
def _right(head: nn.Module, rows: Rows) -> int:
    return int((head(rows.X).argmax(1) == rows.Y).sum())
