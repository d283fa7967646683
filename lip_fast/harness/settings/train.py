"""The settings of a training run: one place for names, defaults, help and checks."""

import math
from dataclasses import dataclass, field

from lip_fast.cli.errors import UserError, unknown_name
from lip_fast.harness.algorithms import ALGORITHMS, AUTO
from lip_fast.harness.data import GIVEN
from lip_fast.harness.data.augmentation import AUGMENTATIONS
from lip_fast.harness.models import MODELS
from lip_fast.harness.noise import NOISES
from lip_fast.harness.noise.labels import check_source
from lip_fast.harness.settings.config import Config, option, setting

__all__ = [
    "CHOOSING",
    "DEVICES",
    "METHODS",
    "OF_PLAIN",
    "OPTIMIZERS",
    "REPAIRS",
    "REPAIR_EPOCHS",
    "SCHEDULES",
    "STATISTICS",
    "TrainConfig",
]

METHODS = {
    "plain": "plain",
    "early-stop": "plain, epoch by hold-out",
    "in-step": "LIP in the step",
    "per-epoch": "LIP each epoch",
    "post-hoc": "LIP afterwards",
    "ridge": "ridge afterwards",
    "gaussian": "Gaussian head",
    "gaussian+trained": "Gaussian + trained",
    "auto": "best repair",
}
# Methods that repair the head of the plain network instead of training a network of their own.
REPAIRS = ("post-hoc", "ridge", "gaussian", "gaussian+trained", "auto")
# All methods whose training is the plain one's.
OF_PLAIN = ("early-stop", *REPAIRS)
# Methods that do nothing without held-out labels. LIP afterwards has another rule for its rank, and the best
# repair is the Gaussian head then.
CHOOSING = ("early-stop", "ridge")
# After which epochs repairs are computed.
REPAIR_EPOCHS = ("all", "best")
# Where their label statistics come from.
STATISTICS = ("separate", "passing")
DEFAULT_METHODS = ("plain", "in-step", "per-epoch", "post-hoc")
OPTIMIZERS = ("adamw", "sgd")
SCHEDULES = ("constant", "cosine")
DEVICES = ("auto", "cpu", "cuda")
# No processor has more; torch ends the process without a message when it is asked for far more.
_MOST_THREADS = 1024
# A seed of torch and of LIP is a non-negative int64.
_MOST_SEED = 2**63 - 1


@dataclass(frozen=True, kw_only=True)
class TrainConfig(Config):
    """Settings of ``lip-fast train``; each field's meaning is its help text.

    Raises:
        UserError: a value that cannot be; the message names what was expected and what came. Settings of
            LIP are checked by :class:`lip_fast.LIP` itself, which knows the size of the head.
    """

    COMMAND = "train"
    DESCRIPTION = (
        "Train a network on wrong labels: plain, stopped early, with LIP in the step and after each epoch, "
        "and with LIP and other repairs applied to the trained plain network."
    )
    RESUME = "continue the interrupted run in this folder from its last checkpoint, to the same bits"
    LATER = ("repair_epochs", "statistics")

    data: str = setting(
        "digits",
        "data set: digits, digit-pairs, digit-triples, fashion-mnist[:FOLDER], cifar10:FOLDER, partial "
        "labels in FILE.mat or embeddings in FILE.npz",
    )
    features: str = setting(
        GIVEN, "what the network sees of the data: given, or random-relu:WIDTH, random features of them"
    )
    samples: int | None = setting(
        None, "number of training samples, drawn by the seed; null: all that the data have"
    )
    seeds: int = setting(3, "number of repetitions: seeds first-seed to first-seed + N - 1")
    first_seed: int = setting(0, "the first of the seeds")
    noise: str = setting(
        "auto",
        f"wrong labels: made ({', '.join(NOISES)}), the data's own, as they are (own), human:FILE#SET of "
        "CIFAR-10N, or file:LABELS.npz of another run; auto: own of a file, symmetric of data that come with "
        "clean labels alone",
    )
    noise_rate: float = setting(
        0.4,
        "share of wrong training labels, in [0, 1); of partial labels the probability of a wrong candidate",
    )
    algorithm: str = setting(
        AUTO,
        f"what the network minimises: {', '.join(ALGORITHMS)}; auto: cross-entropy, or cc for candidate sets",
    )
    options: dict[str, float] = field(
        default_factory=dict,
        metadata={"help": "the algorithm's hyper-parameters, if not its source's: --options.q 0.5"},
    )
    clean_per_class: int = setting(
        10, "samples of each class whose clean label an algorithm that asks for some is told"
    )
    methods: tuple[str, ...] = setting(
        DEFAULT_METHODS, f"what to compare, one or more of: {', '.join(METHODS)}"
    )
    # A tenth is enough to tell candidates apart, and the training hardly loses by it.
    holdout_fraction: float = setting(
        0.1,
        "share of the training samples that no method trains on and whose labels, wrong as they are, "
        "choose epochs and repairs; 0: nothing is chosen",
    )
    # Network, epochs and learning rate: chosen on the plain network alone (seed 0, its test accuracy), so
    # that it trains in seconds and long enough to learn wrong labels by heart.
    model: str = setting("mlp", f"the network: {', '.join(MODELS)}")
    hidden: tuple[int, ...] = setting((256, 128), "widths of the hidden layers of mlp")
    augment: str = setting("none", f"change of images before each step: {', '.join(AUGMENTATIONS)}")
    epochs: int = setting(60, "passes over the training data")
    batch_size: int = setting(64, "samples in a step")
    optimizer: str = setting("adamw", f"base optimizer; known: {', '.join(OPTIMIZERS)}")
    lr: float = setting(2e-3, "learning rate, in the first epoch")
    schedule: str = setting(
        "constant", "learning rate of later epochs: constant, or cosine, down to 0 after the last"
    )
    weight_decay: float = setting(1e-2, "weight decay")
    momentum: float = setting(0.9, "momentum of sgd, in [0, 1)")
    # What README's tables support. In the step no fraction from 0.8 on did better or worse than another by
    # more than chance, and 0.5 cost accuracy.
    rank: int | float | str = setting(
        0.9, "directions of the head that LIP keeps in the step: a number, a fraction such as 0.9, or auto"
    )
    # Afterwards 0.8 cost 7 points where wrong labels were learned by heart; the choice by held-out labels did
    # best of all rules, for it keeps every direction where nothing else helps.
    rank_afterwards: int | float | str = setting(
        "auto",
        "directions that LIP keeps when it is applied to all samples at once, after an epoch or after the "
        "training: a number, a fraction, or auto: chosen by held-out labels, without them by energy",
    )
    repair_epochs: str = setting(
        "all",
        "epochs after which the plain network is repaired, which may take longer than the epoch did: all, or "
        "best: those that agree best so far with the held-out labels, and the last",
    )
    # In passing the Gaussian head lost 0.2, 2.1 and 5.0 points in three settings of 40% wrong labels.
    statistics: str = setting(
        "separate",
        "what repairs, and LIP after each epoch, know of features and labels: separate: a pass over the "
        "training samples after the epoch; passing: what passed in the steps of the epoch, without a pass of "
        "its own",
    )
    tail_rank: int | str | None = setting(
        None,
        "directions below them that LIP refits in the step; null: those that remain, at most 104 of larger "
        "heads; all: by an exact decomposition in each step",
    )
    tail: str = setting("refit", "what LIP does with those in the step: refit or zero")
    rest: str = setting("keep", "what LIP does with deeper directions in the step: keep or drop")
    every: int = setting(1, "LIP acts on each N-th step")
    # The singular values of a fresh head are alike: no rule could tell its directions apart.
    start: int | None = setting(None, "LIP acts from this step on; null: from the second epoch on")
    decay: float | None = setting(
        0.995, "fading of the average over past batches that LIP refits to; null: this batch alone"
    )
    clip: bool = setting(True, "limit the values refitted in the step")
    # One: more do not help networks of this size, and where another process holds a core, two threads that
    # wait for each other took 20 times as long (450 s against 19 s).
    threads: int | None = setting(1, "threads of torch; null: its own default")
    device: str = setting("auto", "where to train: cpu, cuda, or auto: cuda where there is one")
    checkpoint_every: int | None = setting(
        None,
        "steps from one checkpoint to the next; null: at the end of epochs, as often as takes 2% of the time",
    )
    tensorboard: bool = setting(False, "write curves for TensorBoard into the run folder")
    out: str = setting("runs", "folder that run folders are made in")
    name: str | None = setting(None, "name of the run folder; null: the time of the start")

    def __post_init__(self) -> None:
        super().__post_init__()
        # YAML and the command line give lists; a setting cannot be changed.
        object.__setattr__(self, "hidden", tuple(self.hidden))
        object.__setattr__(self, "methods", tuple(dict.fromkeys(self.methods)))
        object.__setattr__(self, "options", dict(self.options))
        check_source(self.noise)
        for kind, name, known in (
            ("optimizer", self.optimizer, OPTIMIZERS),
            ("model", self.model, MODELS),
            ("algorithm", self.algorithm, (*ALGORITHMS, AUTO)),
            ("augmentation", self.augment, AUGMENTATIONS),
            ("schedule", self.schedule, SCHEDULES),
            ("value of --repair-epochs", self.repair_epochs, REPAIR_EPOCHS),
            ("value of --statistics", self.statistics, STATISTICS),
            ("device", self.device, DEVICES),
            *(("method", method, METHODS) for method in self.methods),
        ):
            if name not in known:
                several = ": several are separated by spaces" if kind == "method" and "," in name else ""
                raise UserError(f"{unknown_name(kind, name, known)}{several}")
        if self.algorithm == AUTO:
            _check("options", self.options, "none with --algorithm auto", not self.options)
        else:
            ALGORITHMS[self.algorithm].checked_options(self.options)
        _check("methods", self.methods, "at least one", len(self.methods) > 0)
        _check("hidden", list(self.hidden), "at least one width", len(self.hidden) > 0)
        for name, value in (
            ("hidden", min(self.hidden, default=1)),
            ("seeds", self.seeds),
            ("clean_per_class", self.clean_per_class),
            ("epochs", self.epochs),
            ("batch_size", self.batch_size),
            ("threads", 1 if self.threads is None else self.threads),
            ("checkpoint_every", 1 if self.checkpoint_every is None else self.checkpoint_every),
        ):
            _check(name, value, "at least 1", value >= 1)
        _check("first_seed", self.first_seed, "at least 0", self.first_seed >= 0)
        last = self.first_seed + self.seeds - 1
        _check("first_seed", self.first_seed, f"with seeds up to {_MOST_SEED}", last <= _MOST_SEED)
        most = self.threads is None or self.threads <= _MOST_THREADS
        _check("threads", self.threads, f"at most {_MOST_THREADS}", most)
        _check("samples", self.samples, "at least 2", self.samples is None or self.samples >= 2)
        _check("holdout_fraction", self.holdout_fraction, "in [0, 1)", 0 <= self.holdout_fraction < 1)
        if self.holdout_fraction == 0 and (choosing := [m for m in self.methods if m in CHOOSING]):
            raise UserError(
                f"expected --holdout-fraction above 0 for {', '.join(choosing)}, which choose by held-out "
                "labels, got 0"
            )
        _check("noise_rate", self.noise_rate, "in [0, 1)", 0 <= self.noise_rate < 1)
        _check("lr", self.lr, "above 0 and finite", 0 < self.lr < math.inf)
        _check("weight_decay", self.weight_decay, "finite, 0 or more", 0 <= self.weight_decay < math.inf)
        _check("momentum", self.momentum, "in [0, 1)", 0 <= self.momentum < 1)


def _check(name: str, value: object, expected: str, holds: bool) -> None:
    if not holds:
        raise UserError(f"expected {option(name)} {expected}, got {value}")
