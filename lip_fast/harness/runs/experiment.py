"""One comparison: every method on the same data, noise, initialisation and batches."""

import copy
import math
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor

from lip_fast.cli.errors import UserError
from lip_fast.harness.algorithms.features import features_of
from lip_fast.harness.data import Dataset
from lip_fast.harness.data.rows import Rows
from lip_fast.harness.files.labels import labels_sha256
from lip_fast.harness.files.reading import explain_error
from lip_fast.harness.models import Network
from lip_fast.harness.runs.afterwards import Afterwards
from lip_fast.harness.runs.plan import Plan, plan_of
from lip_fast.harness.runs.records import Record, SeedResult, as_plain
from lip_fast.harness.settings.train import METHODS, TrainConfig
from lip_fast.harness.training.evaluation import Evaluator, Scores, Seen
from lip_fast.harness.training.loop import DivergedError, Training
from lip_fast.harness.training.problem import Problem
from lip_fast.harness.training.processes import ALONE, Processes

__all__ = ["FOLD", "Keep", "check_labels", "epochs_done", "restoring", "run_seed", "train_network"]

# Called with a function that gives the state of the seed: after each step, and with True after all that
# belongs to an epoch.
Keep = Callable[[Callable[[], dict[str, Any]], bool], None]
# The name under which epochs of the trainings for the choice of rows are reported.
FOLD = "a fold"


def epochs_done(state: Mapping[str, Any], plan: Plan) -> int:
    """How many epochs of all trainings were done when a state of :func:`run_seed` was saved."""
    trained = sum(len(state["records"][method]["train_loss"]) for method in plan.trained)
    # The first state is saved after the rows are chosen, so that the trainings for that choice are done.
    return trained + plan.epochs_of_seed - len(plan.trained) * plan.epochs


def check_labels(seed: int, labels: np.ndarray, sha256: str) -> None:
    """UserError where the labels of a seed do not have the hash of the labels with which the run began."""
    if (found := labels_sha256(labels)) != sha256:
        raise UserError(
            f"expected labels of seed {seed} with hash {sha256[:12]}, with which the run began, "
            f"found {found[:12]}"
        )


@contextmanager
def restoring(what: str) -> Iterator[None]:
    """Turn what goes wrong while a saved state is read into one line for the user.

    Raises:
        UserError: the block met a state that does not fit, or raised this itself.
    """
    try:
        yield
    except UserError:
        raise
    except (AttributeError, KeyError, RuntimeError, TypeError, ValueError) as error:
        raise UserError(
            f"expected {what} to fit these settings and this version of lip_fast: {explain_error(error)}"
        ) from error


def run_seed(
    config: TrainConfig,
    dataset: Dataset,
    seed: int,
    on_epoch: Callable[[str, float], None],
    *,
    plan: Plan | None = None,
    state: Mapping[str, Any] | None = None,
    keep: Keep = lambda state, epoch: None,
    processes: Processes = ALONE,
) -> SeedResult:
    """Train and score every method of the settings.

    Methods without a training of their own are scored beside the plain network, see :class:`Afterwards`.

    Args:
        config: the settings.
        dataset: the data; a part for testing is split off by the seed where they have none.
        seed: of noise, initialisation and batches.
        on_epoch: called after each epoch with the method in training and its test accuracy.
        plan: what the settings come to with the data, where that is known already: it takes the labels of
            every seed.
        state: what ``keep`` could have, to go on from; what was trained then is not trained again.
        keep: called with a function that gives the state: the scores so far, and the training under way. It
            is to be saved, or copied, before the next step.
        processes: those that train together. All call this, and get the same but for times.

    Raises:
        UserError: training diverged, the labels cannot be had, or the state is of other settings or labels.
    """
    plan = plan_of(config, dataset) if plan is None else plan
    problem = Problem(config, dataset, seed, plan.algorithm, plan.epochs, processes)
    sha256 = labels_sha256(problem.labels)
    processes.check_same(f"labels of seed {seed}", sha256)
    records = {method: Record() for method in METHODS}
    if state is not None:
        with restoring("the saved state"):
            check_labels(seed, problem.labels, state["labels_sha256"])
            saved = copy.deepcopy(state["records"])  # the lists grow from here
            # A run that an earlier version began has no methods that came later.
            records = {method: Record(**saved.get(method, {})) for method in METHODS}
            chosen = None if state["chosen"] is None else torch.tensor(state["chosen"])
    else:
        chosen = problem.choose_rows(lambda accuracy: on_epoch(FOLD, accuracy))
    evaluate, learned = problem.evaluator(), problem.learned(chosen)
    afterwards = Afterwards(config, records, evaluate)
    for method in plan.trained:
        if len(records[method].train_loss) == plan.epochs:
            continue
        training = problem.training(learned, method)
        if state is not None and state["method"] == method:
            with restoring("the saved state"):
                training.load_state_dict(state["training"])
        state_of = partial(_state, sha256, chosen, records, method, training)
        for epoch in range(training.epoch, plan.epochs):
            try:
                seen, scores = _run_epoch(training, records[method], evaluate, partial(keep, state_of, False))
                if method == "plain":
                    afterwards.score(training, seen, last=epoch + 1 == plan.epochs)
            except DivergedError as error:
                raise UserError(
                    f"training diverged with --lr {config.lr}, epoch {epoch + 1} of {METHODS[method]}, "
                    f"seed {seed}: {error}"
                ) from error
            on_epoch(method, scores.test_accuracy)
            keep(state_of, True)
    return SeedResult(
        seed, problem.labels, {method: records[method] for method in METHODS if method in config.methods}
    )


def train_network(
    config: TrainConfig, dataset: Dataset, seed: int, on_epoch: Callable[[float], None]
) -> tuple[Network, Rows, Rows]:
    """Train the plain network of a seed alone.

    Args:
        config: the settings; of methods and of those of LIP none matters.
        dataset: the data.
        seed: of noise, initialisation and batches.
        on_epoch: called after each epoch with the mean loss.

    Returns:
        the network, and what its head sees of the samples it was trained on and of the test part.

    Raises:
        UserError: training diverged, or the labels cannot be had.
    """
    plan = plan_of(config, dataset)
    problem = Problem(config, dataset, seed, plan.algorithm, plan.epochs)
    task = problem.learned(None)
    training = problem.training(task, "plain")
    for epoch in range(plan.epochs):
        try:
            loss = training.run_epoch().loss
        except DivergedError:
            loss = math.nan
        if loss is not None and not math.isfinite(loss):
            raise UserError(f"training diverged with --lr {config.lr}, epoch {epoch + 1}, seed {seed}")
        on_epoch(math.nan if loss is None else loss)
    trained = Rows(features_of(training.model, task.features), task.targets)
    return training.model, trained, problem.evaluator().look(training.model).test


def _state(
    sha256: str, chosen: Tensor | None, records: Mapping[str, Record], method: str, training: Training
) -> dict[str, Any]:
    return {
        "labels_sha256": sha256,
        "chosen": None if chosen is None else chosen.tolist(),
        "records": as_plain(records),
        "method": method,
        "training": training.state_dict(),
    }


def _run_epoch(
    training: Training, record: Record, evaluate: Evaluator, on_step: Callable[[], None]
) -> tuple[Seen, Scores]:
    """Train for an epoch and score the network; returns what its head sees then, and its scores."""
    epoch = training.run_epoch(on_step)
    model = training.model
    finite = epoch.loss is None or math.isfinite(epoch.loss)
    if not finite or not all(bool(p.isfinite().all()) for p in model.parameters()):
        raise DivergedError(f"expected a finite loss and weights, got a mean loss of {epoch.loss}")
    record.train_loss.append(epoch.loss)
    record.step_seconds.append(epoch.step_seconds)
    record.lip_seconds.append(epoch.lip_seconds)
    seen = evaluate.look(model)
    classifier = training.algorithm.classifier(model)
    scores = evaluate(seen, classifier)
    record.score(scores, classifier)
    if training.lip is not None:
        record.lip = training.lip.stats()
        record.rank = record.lip["rank"]
    elif training.rank is not None:
        record.rank = training.rank
    return seen, scores
