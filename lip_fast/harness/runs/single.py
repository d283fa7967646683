"""One run, from its settings to the results in its folder."""

import dataclasses
import math
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch

from lip_fast.harness.data import Dataset
from lip_fast.harness.files.labels import labels_sha256, save_labels
from lip_fast.harness.files.plain import write_json
from lip_fast.harness.noise.labels import describe_labels
from lip_fast.harness.runs.environment import environment
from lip_fast.harness.runs.experiment import FOLD, run_seed
from lip_fast.harness.runs.figures import save_curves, save_spectrum
from lip_fast.harness.runs.folder import METRICS, RunFolder
from lip_fast.harness.runs.plan import Plan, plan_of
from lip_fast.harness.runs.progress import Progress
from lip_fast.harness.runs.records import as_plain
from lip_fast.harness.runs.summary import summarise
from lip_fast.harness.runs.tensorboard import check_installed, curves_in
from lip_fast.harness.settings.train import METHODS, TrainConfig
from lip_fast.harness.training.processes import ALONE, Processes

__all__ = ["OnEpoch", "complete", "prepare", "subject_of"]

# Called after each epoch with the seed, and a text that names what was trained and its test accuracy.
OnEpoch = Callable[[int, str], None]


def prepare(config: TrainConfig, dataset: Dataset) -> Plan:
    """Check the settings against the data, and set the number of threads.

    Raises:
        UserError: they do not fit.
    """
    if config.tensorboard:
        check_installed()
    plan = plan_of(config, dataset)
    if config.threads is not None:
        torch.set_num_threads(config.threads)
    return plan


def subject_of(config: TrainConfig, dataset: Dataset, plan: Plan) -> str:
    """The title of a run: data, labels, algorithm and model."""
    labels = describe_labels(config.noise, config.noise_rate, dataset)
    return f"{dataset.name}, {labels}: {plan.algorithm.TITLE}, {config.model}"


def complete(
    folder: RunFolder | None,
    config: TrainConfig,
    dataset: Dataset,
    plan: Plan,
    progress: Progress,
    on_epoch: OnEpoch,
    *,
    stopped: Callable[[], bool] = lambda: False,
    processes: Processes = ALONE,
) -> None:
    """Train what is not trained yet, and write the results.

    Args:
        folder: of the run; None of a process that is not the first, which writes nothing.
        config: its settings.
        dataset: its data.
        plan: what the settings come to with them.
        progress: of the run; loaded where it goes on.
        on_epoch: called after each epoch with the seed and what was trained.
        stopped: asked after each step whether to save a checkpoint and stop.
        processes: those that train together; all call this.

    Raises:
        UserError: a training diverged, or what was loaded does not fit.
        KeyboardInterrupt: it was ``stopped``.
    """

    def keep(state: Callable[[], dict[str, Any]], epoch: bool) -> None:
        if stopped():
            progress.save(state)
            raise KeyboardInterrupt
        progress.keep(state, epoch)

    with curves_in(folder.path if folder is not None and config.tensorboard else None) as curves:

        def advance(seed: int, method: str, accuracy: float) -> None:
            if method == FOLD and stopped():  # before the rows are chosen there is no state to save
                raise KeyboardInterrupt
            name = METHODS.get(method, method)
            on_epoch(seed, name if math.isnan(accuracy) else f"{name}: {100 * accuracy:.1f}%")

        for seed in range(config.first_seed + len(progress.results), config.first_seed + config.seeds):
            result = run_seed(
                config,
                dataset,
                seed,
                partial(advance, seed),
                plan=plan,
                state=progress.current,
                keep=keep,
                processes=processes,
            )
            progress.finish_seed(result)
            curves(result)
    progress.save()
    if folder is not None:
        folder.finish(lambda results: _write(results, config, dataset, plan, progress, processes.size))


def _write(
    folder: Path, config: TrainConfig, dataset: Dataset, plan: Plan, progress: Progress, processes: int
) -> None:
    results = progress.results
    write_json(
        folder / METRICS,
        {
            "environment": environment(),
            "processes": processes,
            "seconds": progress.seconds,
            "sessions": progress.sessions,
            "data": dataset.name,
            "labels": describe_labels(config.noise, config.noise_rate, dataset),
            "algorithm": plan.algorithm.TITLE,
            "summary": {
                m: dataclasses.asdict(s) for m, s in summarise([result.records for result in results]).items()
            },
            "seeds": [
                {
                    "seed": result.seed,
                    "labels_sha256": labels_sha256(result.labels),
                    "methods": as_plain(result.records),
                }
                for result in results
            ],
        },
    )
    parts = [dataset.for_seed(result.seed) for result in results]
    shared = dataset.split is None
    save_labels(
        folder / "labels.npz",
        [result.seed for result in results],
        dataset.train_indices if shared else np.stack([part.train_indices for part in parts]),
        dataset.train_labels if shared else np.stack([part.train_labels for part in parts]),
        np.stack([result.labels for result in results]),
    )
    subject = subject_of(config, dataset, plan)
    if any(record.singular_values for record in results[0].records.values()):
        save_spectrum(folder / "spectrum.png", results, f"Spectrum of the head: {subject}")
    if plan.epochs > 1:
        save_curves(folder / "curves.png", results, subject)
