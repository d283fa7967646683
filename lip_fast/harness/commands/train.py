"""``lip-fast train``: plain training against LIP in the step, each epoch and afterwards, on wrong labels."""

import sys
from collections.abc import Sequence
from contextlib import nullcontext
from pathlib import Path

from tqdm import tqdm

from lip_fast.harness.data import Dataset, load
from lip_fast.harness.noise.labels import describe_classes, label_warnings
from lip_fast.harness.runs.folder import CONFIG, RunFolder, new_run, opened_run
from lip_fast.harness.runs.plan import Plan
from lip_fast.harness.runs.progress import Progress
from lip_fast.harness.runs.single import complete, prepare, subject_of
from lip_fast.harness.runs.summary import summarise
from lip_fast.harness.runs.table import summary_table
from lip_fast.harness.settings.arguments import check_resumed, parse, parse_stored
from lip_fast.harness.settings.train import TrainConfig
from lip_fast.harness.training.problem import device_of
from lip_fast.harness.training.processes import Processes, started

__all__ = ["main"]


def main(arguments: Sequence[str]) -> int:
    """Run the comparison, write the run folder, print the table; returns the exit code 0.

    With ``--resume`` an interrupted comparison is ended, with the bits that it would have had. As one of
    several processes of torchrun it trains together with the others, of which the first prints and writes.

    Raises:
        UserError: arguments, data or the run folder are not what they must be, or another process was lost.
        KeyboardInterrupt: with a text that says how to continue.
        SystemExit: another process says what is wrong.
    """
    with started() as processes:
        _run(arguments, processes)
    return 0


def _run(arguments: Sequence[str], processes: Processes) -> None:
    config, resume = parse(arguments, TrainConfig)
    if resume is not None:
        _resume(arguments, resume, processes)
        return
    dataset, plan = _prepared(config, processes)
    made = new_run(Path(config.out), config.name, config.as_dict()) if processes.first else nullcontext()
    with made as folder:
        progress = Progress(folder, config, dataset, plan, processes)
        _train(folder, config, dataset, plan, progress, processes)


def _resume(arguments: Sequence[str], path: Path, processes: Processes) -> None:
    with opened_run(path) if processes.first else nullcontext() as folder:
        config = processes.from_first(lambda: _settings_to_resume(arguments, path, folder))
        if config is None:
            print(f"nothing to resume: the run in {path} is complete")
            return
        dataset, plan = _prepared(config, processes)
        progress = Progress(folder, config, dataset, plan, processes)
        progress.load(dataset)
        for note in progress.notes:
            print(f"lip-fast train: {note}; the bits may change with it", file=sys.stderr)
        _train(folder, config, dataset, plan, progress, processes)


def _settings_to_resume(arguments: Sequence[str], path: Path, folder: RunFolder | None) -> TrainConfig | None:
    """The settings of a run that is not complete; None of another."""
    assert folder is not None  # the first process calls this
    config = parse_stored(path / CONFIG, TrainConfig, whole=not folder.complete)
    check_resumed(arguments, config, path)
    return None if folder.complete else config


def _prepared(config: TrainConfig, processes: Processes) -> tuple[Dataset, Plan]:
    dataset = load(config.data, config.features)
    plan = prepare(config, dataset)
    processes.take_device(device_of(config))
    return dataset, plan


def _train(
    folder: RunFolder | None,
    config: TrainConfig,
    dataset: Dataset,
    plan: Plan,
    progress: Progress,
    processes: Processes,
) -> None:
    total = config.seeds * plan.epochs_of_seed
    samples = len(dataset.train_labels) if config.samples is None else config.samples
    print(
        f"{subject_of(config, dataset, plan)}: {samples} training and "
        f"{len(dataset.test_labels)} test samples, {plan.epochs} epochs"
        + (f", {processes.size} processes" if processes.size > 1 else ""),
        flush=True,
    )
    print(describe_classes(dataset), flush=True)
    if processes.first:
        for warning in label_warnings(config.noise, dataset):
            print(f"lip-fast train: {warning}", file=sys.stderr)
    if progress.epochs:
        print(f"continued after {progress.epochs} of {total} epochs", flush=True)
    # None: a bar where stderr is a terminal, silence in files and pipes.
    silent = None if processes.first else True
    with tqdm(total=total, initial=progress.epochs, unit="epoch", disable=silent, leave=False) as bar:

        def advance(seed: int, done: str) -> None:
            bar.set_description(f"seed {seed}", refresh=False)
            bar.set_postfix_str(done, refresh=False)
            bar.update()

        complete(folder, config, dataset, plan, progress, advance, processes=processes)
    print(f"test accuracy in %, mean ± standard deviation; seeds: {config.seeds}\n")
    print(summary_table(summarise([result.records for result in progress.results])))
    if folder is not None:
        print(f"\nrun folder: {folder.path}")
