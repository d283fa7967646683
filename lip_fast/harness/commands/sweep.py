"""``lip-fast sweep``: many runs of ``lip-fast train``, several at once, from files of settings."""

import argparse
import os
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from datetime import datetime
from pathlib import Path

import yaml
from tqdm import tqdm

from lip_fast.cli.atomic import replacing
from lip_fast.cli.errors import UserError
from lip_fast.cli.parser import Parser
from lip_fast.harness.files.plain import write_yaml
from lip_fast.harness.files.reading import reading
from lip_fast.harness.reports.collect import collect
from lip_fast.harness.runs.folder import METRICS, check_name, lock_folder
from lip_fast.harness.runs.summary import summarise
from lip_fast.harness.runs.table import summary_table
from lip_fast.harness.settings.arguments import parse_values
from lip_fast.harness.settings.train import TrainConfig
from lip_fast.harness.sweeps.pool import Failure, check_units, continuation, run_units, unit_warnings
from lip_fast.harness.sweeps.rows import Row, read_rows, units_of
from lip_fast.harness.training.processes import refuse_several

__all__ = ["main"]

# The file with the rows of a sweep. It is written first, so that the sweep can be continued whatever happens.
SWEEP = "sweep.yaml"


def main(arguments: Sequence[str]) -> int:
    """Run all rows with all their seeds, print a table for each row.

    Returns:
        0 where every run is complete, 2 where some failed; the others are complete then.

    Raises:
        UserError: arguments, settings, data or the folder are not what they must be, before any run starts.
        KeyboardInterrupt: with a text that says how to continue.
    """
    refuse_several()
    arguments = list(arguments)
    # Options for the rows come after "--", for their values may look like options of the sweep.
    cut = arguments.index("--") if "--" in arguments else len(arguments)
    options, overrides = _parse(arguments[:cut]), arguments[cut + 1 :]
    if options.resume is not None:
        if options.rows or overrides or options.name is not None:
            raise UserError(
                "expected --resume FOLDER alone, with --jobs at most: the folder knows what it runs"
            )
        folder = Path(options.resume)
        rows = _stored_rows(folder)
    else:
        rows = read_rows([Path(path) for path in options.rows], overrides)
        name = options.name or f"sweep-{datetime.now():%Y%m%d-%H%M%S}"
        folder = Path(options.out) / name
        if os.path.exists(folder):
            raise UserError(f"expected a new folder, found {folder}; to continue it: {continuation(folder)}")
    units = units_of(rows, folder)
    epochs = check_units(units)
    for warning in unit_warnings(units):
        print(f"lip-fast sweep: {warning}", file=sys.stderr)
    made = [path for path in (folder, *folder.parents) if not os.path.exists(path)]
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with _locked(folder):
            if options.resume is None:
                _store_rows(folder, rows)
            failures = _run(folder, rows, epochs, options.jobs)
    except (OSError, KeyboardInterrupt) as error:
        stays = os.path.exists(folder / SWEEP)
        if not stays:
            with suppress(OSError):  # a folder with files of others stays
                for path in made:
                    path.rmdir()
        then = f"; to continue: {continuation(folder)}" if stays else ""
        if isinstance(error, KeyboardInterrupt):
            raise KeyboardInterrupt(f"stopped{then}") from error
        raise UserError(f"expected a folder that can be written, got {folder}: {error}{then}") from error
    return _finish(folder, failures)


def _run(folder: Path, rows: Sequence[Row], epochs: dict[Path, int], jobs: int) -> list[Failure]:
    units = units_of(rows, folder)
    for row in rows:  # made here, before two seeds of a row try to make it at the same time
        (folder / row.name).mkdir(parents=True, exist_ok=True)
    left = [unit for unit in units if not _is_complete(folder / unit.path)]
    print(f"{len(rows)} rows, {len(units)} runs, {len(left)} to do, {jobs} at once", flush=True)
    finished = sum(epochs[unit.path] for unit in units) - sum(epochs[unit.path] for unit in left)
    with tqdm(total=sum(epochs.values()), initial=finished, unit="epoch", disable=None, leave=False) as bar:

        def advance(path: Path, count: int, done: str) -> None:
            bar.set_postfix_str(f"{path} {done}", refresh=False)
            bar.update(count)

        return run_units(left, folder, jobs, advance)


def _finish(folder: Path, failures: Sequence[Failure]) -> int:
    if any(folder.rglob(METRICS)):
        for result in collect([folder])[0]:
            title = f"{result.name}: {result.data}, {result.labels}, {result.algorithm}"
            print(f"\n{title}; seeds: {len(result.seeds)}")
            print(summary_table(summarise(list(result.seeds.values()))))
    print(f"\nsweep folder: {folder}\nreport: lip-fast report {folder}")
    if failures:
        listed = "; ".join(f"{failure.path}: {failure.message}" for failure in failures)
        raise UserError(f"{len(failures)} runs failed, to try them again: {continuation(folder)}. {listed}")
    return 0


def _parse(arguments: Sequence[str]) -> argparse.Namespace:
    parser = Parser(
        prog="lip-fast sweep",
        usage="lip-fast sweep [options] SETTINGS.yaml|FOLDER ... [-- OPTIONS OF EVERY ROW]",
        description="Run lip-fast train for each file of settings and each seed, several at once. A setting "
        "that is a list takes each of its values in turn. What follows -- are options of lip-fast train for "
        "every row.",
        allow_abbrev=False,
    )
    parser.add_argument("rows", nargs="*", metavar="SETTINGS.yaml|FOLDER", help="settings, one file a row")
    parser.add_argument("--resume", metavar="FOLDER", help="continue the sweep in this folder")
    parser.add_argument(
        "--jobs", type=int, default=os.cpu_count() or 1, help="runs at once (default: one a processor)"
    )
    parser.add_argument("--out", default="runs", help="folder that sweep folders are made in (default: runs)")
    parser.add_argument("--name", help="name of the sweep folder (default: the time of the start)")
    options = parser.parse_all(arguments)
    if options.jobs < 1:
        raise UserError(f"expected --jobs at least 1, got {options.jobs}")
    if options.resume is None and not options.rows:
        raise UserError("expected at least one file or folder of settings, got none")
    check_name(options.name)
    return options


# The folder ------------------------------------------------------------------------------------------


def _is_complete(run: Path) -> bool:
    return (run / METRICS).exists()


def _store_rows(folder: Path, rows: Sequence[Row]) -> None:
    with replacing(folder / SWEEP) as temporary:
        write_yaml(temporary, {row.name: row.config.as_dict() for row in rows})


def _stored_rows(folder: Path) -> list[Row]:
    path = folder / SWEEP
    if not path.is_file():
        raise UserError(f"expected --resume to be the folder of a sweep, found no {SWEEP} in {folder}")
    with reading(path, "the settings of a sweep"):
        stored = yaml.safe_load(path.read_text(encoding="utf-8"))
    if not isinstance(stored, dict) or not stored or not all(isinstance(s, dict) for s in stored.values()):
        raise UserError(f"expected the rows of a sweep in {path}, found none")
    for name in map(str, stored):  # the names of folders inside
        if not name or Path(name).is_absolute() or ".." in Path(name).parts:
            raise UserError(f"expected names of rows in {path}, found {name!r}")
    return [Row(str(name), parse_values(settings, TrainConfig)) for name, settings in stored.items()]


@contextmanager
def _locked(folder: Path) -> Iterator[None]:
    descriptor = lock_folder(folder)
    try:
        yield
    finally:
        if descriptor is not None:
            os.close(descriptor)
