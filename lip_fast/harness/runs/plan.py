"""The plan that settings and data give, and the check of both before anything is trained."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import nn

from lip_fast.cli.errors import UserError
from lip_fast.harness.algorithms import ALGORITHMS, Algorithm, resolved
from lip_fast.harness.data import Dataset
from lip_fast.harness.files.reading import explain_error
from lip_fast.harness.models import make_model
from lip_fast.harness.noise.labels import training_labels
from lip_fast.harness.seeding import initialisation
from lip_fast.harness.settings.train import METHODS, OF_PLAIN, REPAIRS, TrainConfig
from lip_fast.harness.training.lip import check_lip
from lip_fast.harness.training.problem import split

__all__ = ["Plan", "plan_of", "trained_methods"]


@dataclass(frozen=True)
class Plan:
    """What the settings come to with these data.

    Attributes:
        algorithm: what is minimised.
        epochs: passes over the data of each training.
        trained: the methods that need a training of their own.
        epochs_of_seed: of all trainings of a seed.
    """

    algorithm: type[Algorithm]
    epochs: int
    trained: Sequence[str]
    epochs_of_seed: int


def plan_of(config: TrainConfig, dataset: Dataset) -> Plan:
    """Refuse settings that do not fit each other, the head or the data, at once.

    Raises:
        UserError: what does not fit, with LIP's own message where it is LIP that refuses.
    """
    seeds = range(config.first_seed, config.first_seed + config.seeds)
    for seed in seeds:
        labels = training_labels(config.noise, config.noise_rate, dataset.for_seed(seed), seed)
    if (
        config.noise == "auto"
        and dataset.given_labels is not None
        and config.noise_rate != TrainConfig.noise_rate
    ):
        raise UserError(
            f"expected --noise with --noise-rate {config.noise_rate:g}, for the labels of {dataset.name} are "
            "taken as they are: --noise symmetric makes wrong ones"
        )
    candidates = labels.ndim == 2
    name = resolved(config.algorithm, candidates=candidates)
    algorithm = ALGORITHMS[name]
    form = "candidates" if candidates else "indices"
    if form not in algorithm.LABELS:
        came = "candidate sets" if candidates else "one label for each sample"
        fitting = [other for other, cls in ALGORITHMS.items() if form in cls.LABELS]
        raise UserError(
            f"expected an algorithm that learns from {came}, one of {', '.join(fitting)}, got {name}"
        )
    unfit = _unfit(algorithm, config)
    if unfit:
        raise UserError(f"expected no method {', '.join(unfit)} with --algorithm {name}: {_why(algorithm)}")
    if algorithm.WHOLE and config.model != "linear":
        raise UserError(
            f"expected --model linear with --algorithm {name}, which trains no network, got {config.model}"
        )
    if algorithm.WHOLE and config.statistics == "passing":
        raise UserError(
            f"expected --statistics separate with --algorithm {name}, which takes no steps, got passing"
        )
    if config.augment != "none" and dataset.image_shape is None:
        raise UserError(f"expected --augment none, for {dataset.name} has no images, got {config.augment}")
    if config.device == "cuda" and not torch.cuda.is_available():
        raise UserError("expected a CUDA device for --device cuda, found none")
    split(config, len(labels), config.first_seed)
    try:
        with torch.device("meta"):  # takes no time, and no random numbers
            sizes = make_model(
                config.model,
                inputs=dataset.train_features.shape[1],
                image_shape=dataset.image_shape,
                hidden=config.hidden,
                classes=len(dataset.class_names),
            ).head
        with initialisation(seed=0):  # the global random state stays as it is
            head = nn.Linear(sizes.in_features, sizes.out_features)
        check_lip(config, head)
    except (TypeError, ValueError) as error:
        raise UserError(str(error)) from error
    except RuntimeError as error:
        raise UserError(f"expected a network that fits into memory: {explain_error(error)}") from error
    epochs, trained = 1 if algorithm.WHOLE else config.epochs, trained_methods(config)
    folds = int(algorithm.checked_options(config.options).get("folds", 0))
    return Plan(algorithm, epochs, trained, (len(trained) + folds) * epochs)


def _unfit(algorithm: type[Algorithm], config: TrainConfig) -> list[str]:
    """The methods of the settings that do not fit the algorithm."""
    steps = [] if not algorithm.WHOLE else ["in-step", "per-epoch"]
    repairs = [] if algorithm.LINEAR else [*REPAIRS]
    return [method for method in config.methods if method in (*steps, *repairs)]


def _why(algorithm: type[Algorithm]) -> str:
    return "it has no linear head" if not algorithm.LINEAR else "it takes no steps"


def trained_methods(config: TrainConfig) -> list[str]:
    """The methods that need a training of their own: early stopping and repairs share the plain one."""
    wanted = {"plain" if method in OF_PLAIN else method for method in config.methods}
    return [method for method in METHODS if method in wanted]
