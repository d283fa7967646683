"""``lip-fast train``: plain training against LIP in the step, each epoch and afterwards, on wrong labels."""

import sys
from collections.abc import Sequence
from pathlib import Path

from tqdm import tqdm

from lip_fast.harness.arguments import parse_resumed, parse_stored, parse_train
from lip_fast.harness.config import TrainConfig
from lip_fast.harness.data import Dataset, load
from lip_fast.harness.plan import Plan
from lip_fast.harness.progress import Progress
from lip_fast.harness.runs import CONFIG, RunFolder, new_run, opened_run
from lip_fast.harness.single_run import complete, prepare, subject_of
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
    dataset = load(config.data)
    plan = prepare(config, dataset)
    with new_run(Path(config.out), config.name, config.as_dict()) as folder:
        _train(folder, config, dataset, plan, Progress(folder, config, dataset, plan))
    return 0


def _resume(arguments: Sequence[str], path: Path) -> int:
    with opened_run(path) as folder:
        config = parse_stored(path / CONFIG, whole=not folder.complete)
        parse_resumed(arguments, config, path)
        if folder.complete:
            print(f"nothing to resume: the run in {path} is complete")
            return 0
        dataset = load(config.data)
        plan = prepare(config, dataset)
        progress = Progress(folder, config, dataset, plan)
        progress.load(dataset)
        for note in progress.notes:
            print(f"lip-fast train: {note}; the bits may change with it", file=sys.stderr)
        _train(folder, config, dataset, plan, progress)
    return 0


def _train(folder: RunFolder, config: TrainConfig, dataset: Dataset, plan: Plan, progress: Progress) -> None:
    total = config.seeds * plan.epochs_of_seed
    samples = len(dataset.train_labels) if config.samples is None else config.samples
    print(
        f"{subject_of(config, dataset, plan)}: {samples} training and "
        f"{len(dataset.test_labels)} test samples, {plan.epochs} epochs",
        flush=True,
    )
    if progress.epochs:
        print(f"continued after {progress.epochs} of {total} epochs", flush=True)
    # disable=None: a bar where stderr is a terminal, silence in files and pipes.
    with tqdm(total=total, initial=progress.epochs, unit="epoch", disable=None, leave=False) as bar:

        def advance(seed: int, done: str) -> None:
            bar.set_description(f"seed {seed}", refresh=False)
            bar.set_postfix_str(done, refresh=False)
            bar.update()

        complete(folder, config, dataset, plan, progress, advance)
    print(f"test accuracy in %, mean ± standard deviation; seeds: {config.seeds}\n")
    print(summary_table(summarise([result.records for result in progress.results])))
    print(f"\nrun folder: {folder.path}")
