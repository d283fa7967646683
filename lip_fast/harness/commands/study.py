"""``lip-fast study``: what wrong labels do to the singular subspaces of a classifier's weight."""

import sys
from collections.abc import Sequence
from functools import partial
from pathlib import Path

import torch
from tqdm import tqdm

from lip_fast.harness.data import Dataset, load
from lip_fast.harness.models import make_model
from lip_fast.harness.noise.labels import describe_classes, label_warnings
from lip_fast.harness.runs.experiment import train_network
from lip_fast.harness.runs.folder import CONFIG, new_run, opened_run
from lip_fast.harness.runs.plan import plan_of
from lip_fast.harness.settings.arguments import check_resumed, parse, parse_stored
from lip_fast.harness.settings.study import StudyConfig
from lip_fast.harness.studies.page import explanation, write_results
from lip_fast.harness.studies.progress import Progress, trainings
from lip_fast.harness.studies.results import Study, check_directions
from lip_fast.harness.studies.tables import similarity_table, turn_table
from lip_fast.harness.training.processes import refuse_several

__all__ = ["main"]


def main(arguments: Sequence[str]) -> int:
    """Train on labels of every rate, compare the weights, write the run folder; returns the exit code 0.

    With ``--resume`` an interrupted study is ended, with the numbers that it would have had.

    Raises:
        UserError: arguments, data or the run folder are not what they must be.
        KeyboardInterrupt: with a text that says how to continue, once a network is trained.
    """
    refuse_several()
    config, resume = parse(arguments, StudyConfig)
    if resume is not None:
        return _resume(arguments, resume)
    dataset = _prepare(config)
    with new_run(Path(config.out), config.name, config.as_dict(), "study") as folder:
        _study(config, dataset, Progress(folder, config, dataset))
    return 0


def _resume(arguments: Sequence[str], path: Path) -> int:
    with opened_run(path, "study") as folder:
        config = parse_stored(path / CONFIG, StudyConfig, whole=not folder.complete)
        check_resumed(arguments, config, path)
        if folder.complete:
            print(f"nothing to resume: the study in {path} is complete")
            return 0
        dataset = _prepare(config)
        progress = Progress(folder, config, dataset)
        progress.load()
        for note in progress.notes:
            print(f"lip-fast study: {note}; the bits may change with it", file=sys.stderr)
        _study(config, dataset, progress)
    return 0


def _prepare(config: StudyConfig) -> Dataset:
    """The data, where they fit the settings."""
    dataset = load(config.data)
    for rate in config.rates:
        plan_of(config.training(rate), dataset)
    l = len(dataset.class_names)
    with torch.device("meta"):  # takes no time, and no random numbers
        head = make_model(
            config.model,
            inputs=dataset.train_features.shape[1],
            image_shape=dataset.image_shape,
            hidden=config.hidden,
            classes=l,
        ).head
    # Rows of clean labels sum to 1, so that centring takes one of the directions among classes.
    check_directions(min(head.in_features, l - 1), (head.in_features, l), config.rank)
    if config.threads is not None:
        torch.set_num_threads(config.threads)
    return dataset


def _study(config: StudyConfig, dataset: Dataset, progress: Progress) -> None:
    subject = f"{dataset.name}, {config.noise} label noise, {config.model}"
    print(
        f"{subject}: rates {', '.join(f'{rate:g}' for rate in config.rates)}; seeds: {config.seeds}; "
        f"{config.epochs} epochs of {config.optimizer}",
        flush=True,
    )
    print(describe_classes(dataset), flush=True)
    for warning in label_warnings(config.noise, dataset):
        print(f"lip-fast study: {warning}", file=sys.stderr)
    done, every = len(progress.measured), trainings(config)
    if done:
        print(f"continued after {done} of {len(every)} networks", flush=True)
    # disable=None: a bar where stderr is a terminal, silence in files and pipes.
    with tqdm(
        total=len(every) * config.epochs,
        initial=done * config.epochs,
        unit="epoch",
        disable=None,
        leave=False,
    ) as bar:
        for seed, rate in every[done:]:
            bar.set_description(f"seed {seed}, rate {rate:g}", refresh=False)
            trained = train_network(config.training(rate), dataset, seed, lambda loss: bar.update())
            progress.add(*trained, seed, rate)
    assert progress.clean is not None
    q, l = progress.clean.W.shape
    study = Study(progress.measured, (q, l), config.rank)
    progress.folder.finish(partial(write_results, study=study, penalties=progress.penalties, subject=subject))
    print(f"\n{explanation(study)}\n\n{similarity_table(study)}\n")
    print(f"Largest angles of the ridge heads, and what bounds them:\n\n{turn_table(study, [study.rank])}")
    print(f"\nrun folder: {progress.folder.path}")
