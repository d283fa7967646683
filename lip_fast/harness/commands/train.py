"""``lip-fast train``: plain training against LIP in the step and LIP afterwards, on wrong labels."""

import dataclasses
import time
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from tqdm import tqdm

from lip_fast.harness.arguments import parse_train
from lip_fast.harness.config import METHODS, TrainConfig
from lip_fast.harness.data import Dataset, load
from lip_fast.harness.experiment import SeedResult, check_fits, run_seed, trained_methods
from lip_fast.harness.figures import save_spectrum
from lip_fast.harness.labels import describe_labels
from lip_fast.harness.noise import labels_sha256, save_labels
from lip_fast.harness.runs import environment, new_run, write_json, write_yaml
from lip_fast.harness.summary import summarise
from lip_fast.harness.tables import summary_table

__all__ = ["main"]


def main(arguments: Sequence[str]) -> int:
    """Run the comparison, write the run folder, print the table; returns the exit code 0.

    Raises:
        UserError: arguments, data or the run folder are not what they must be.
    """
    config = parse_train(arguments)
    dataset = load(config.data)
    check_fits(config, dataset)
    if config.threads is not None:
        torch.set_num_threads(config.threads)
    subject = f"{dataset.name}, {describe_labels(config.noise, config.noise_rate, dataset)}"
    with new_run(Path(config.out), config.name) as (folder, final_folder):
        print(
            f"{subject}: {len(dataset.train_labels)} training and {len(dataset.test_labels)} test samples, "
            f"{config.epochs} epochs of {config.optimizer}",
            flush=True,
        )
        start = time.perf_counter()
        results = _run(config, dataset)
        seconds = time.perf_counter() - start
        _write(folder, config, dataset, results, seconds, subject)
    print(f"test accuracy in %, mean ± standard deviation; seeds: {config.seeds}\n")
    print(summary_table(summarise(results)))
    print(f"\nrun folder: {final_folder}")
    return 0


def _run(config: TrainConfig, dataset: Dataset) -> list[SeedResult]:
    total = config.seeds * len(trained_methods(config)) * config.epochs
    # disable=None: a bar where stderr is a terminal, silence in files and pipes.
    with tqdm(total=total, unit="epoch", disable=None, leave=False) as bar:

        def advance(method: str, accuracy: float) -> None:
            bar.set_postfix_str(f"{METHODS[method]}: {100 * accuracy:.1f}%", refresh=False)
            bar.update()

        results = []
        for seed in range(config.seeds):
            bar.set_description(f"seed {seed + 1} of {config.seeds}", refresh=False)
            results.append(run_seed(config, dataset, seed, advance))
    return results


def _write(
    folder: Path,
    config: TrainConfig,
    dataset: Dataset,
    results: Sequence[SeedResult],
    seconds: float,
    subject: str,
) -> None:
    write_yaml(folder / "config.yaml", config.as_dict())
    write_json(
        folder / "metrics.json",
        {
            "environment": environment(),
            "seconds": seconds,
            "summary": {m: dataclasses.asdict(s) for m, s in summarise(results).items()},
            "seeds": [
                {
                    "seed": result.seed,
                    "labels_sha256": labels_sha256(result.labels),
                    "methods": {m: dataclasses.asdict(r) for m, r in result.records.items()},
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
