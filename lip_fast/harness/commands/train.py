"""``lip-fast train``: plain training against LIP in the step and LIP afterwards, on wrong labels."""

import dataclasses
import sys
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from tqdm import tqdm

from lip_fast.harness.arguments import parse_resumed, parse_stored, parse_train
from lip_fast.harness.config import METHODS, TrainConfig
from lip_fast.harness.data import Dataset, load
from lip_fast.harness.experiment import as_plain, check_fits, run_seed, trained_methods
from lip_fast.harness.figures import save_spectrum
from lip_fast.harness.labels import describe_labels
from lip_fast.harness.noise import labels_sha256, save_labels
from lip_fast.harness.progress import Progress
from lip_fast.harness.runs import CONFIG, METRICS, RunFolder, environment, new_run, opened_run, write_json
from lip_fast.harness.summary import summarise
from lip_fast.harness.tables import summary_table

__all__ = ["main"]


def main(arguments: Sequence[str]) -> int:
    """Run the comparison, write the run folder, print the table; returns the exit code 0.

    With ``--resume`` an interrupted comparison is ended, with the bits that it would have had.

    Raises:
        UserError: arguments, data or the run folder are not what they must be.
        KeyboardInterrupt: with a text that says how to continue.
    """
    config, resume = parse_train(arguments)
    if resume is not None:
        return _resume(arguments, resume)
    dataset = _prepare(config)
    with new_run(Path(config.out), config.name, config.as_dict()) as folder:
        _train(folder, config, dataset, Progress(folder, config, dataset))
    return 0


def _resume(arguments: Sequence[str], path: Path) -> int:
    with opened_run(path) as folder:
        config = parse_stored(path / CONFIG, whole=not folder.complete)
        parse_resumed(arguments, config, path)
        if folder.complete:
            print(f"nothing to resume: the run in {path} is complete")
            return 0
        dataset = _prepare(config)
        progress = Progress(folder, config, dataset)
        progress.load(dataset)
        for note in progress.notes:
            print(f"lip-fast train: {note}; the bits may change with it", file=sys.stderr)
        _train(folder, config, dataset, progress)
    return 0


def _prepare(config: TrainConfig) -> Dataset:
    dataset = load(config.data)
    check_fits(config, dataset)
    if config.threads is not None:
        torch.set_num_threads(config.threads)
    return dataset


def _train(folder: RunFolder, config: TrainConfig, dataset: Dataset, progress: Progress) -> None:
    """Train what is not trained yet, and write the results."""
    subject = f"{dataset.name}, {describe_labels(config.noise, config.noise_rate, dataset)}"
    total = config.seeds * len(trained_methods(config)) * config.epochs
    print(
        f"{subject}: {len(dataset.train_labels)} training and {len(dataset.test_labels)} test samples, "
        f"{config.epochs} epochs of {config.optimizer}",
        flush=True,
    )
    if progress.epochs:
        print(f"continued after {progress.epochs} of {total} epochs", flush=True)
    # disable=None: a bar where stderr is a terminal, silence in files and pipes.
    with tqdm(total=total, initial=progress.epochs, unit="epoch", disable=None, leave=False) as bar:

        def advance(method: str, accuracy: float) -> None:
            bar.set_postfix_str(f"{METHODS[method]}: {100 * accuracy:.1f}%", refresh=False)
            bar.update()

        for seed in range(len(progress.results), config.seeds):
            bar.set_description(f"seed {seed + 1} of {config.seeds}", refresh=False)
            state = progress.current
            progress.finish_seed(run_seed(config, dataset, seed, advance, state=state, keep=progress.keep))
    progress.save()
    folder.finish(lambda results: _write(results, dataset, progress, subject))
    print(f"test accuracy in %, mean ± standard deviation; seeds: {config.seeds}\n")
    print(summary_table(summarise(progress.results)))
    print(f"\nrun folder: {folder.path}")


def _write(folder: Path, dataset: Dataset, progress: Progress, subject: str) -> None:
    results = progress.results
    write_json(
        folder / METRICS,
        {
            "environment": environment(),
            "seconds": progress.seconds,
            "sessions": progress.sessions,
            "summary": {m: dataclasses.asdict(s) for m, s in summarise(results).items()},
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
    save_spectrum(folder / "spectrum.png", results, f"Spectrum of the head: {subject}")
