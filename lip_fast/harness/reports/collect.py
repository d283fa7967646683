"""The results of many runs, put together from their folders."""

import dataclasses
import json
from collections.abc import Callable, Collection, Hashable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lip_fast.cli.errors import UserError
from lip_fast.harness.files.reading import reading
from lip_fast.harness.runs.environment import environment
from lip_fast.harness.runs.folder import CONFIG, METRICS
from lip_fast.harness.runs.records import Record
from lip_fast.harness.settings.arguments import parse_stored
from lip_fast.harness.settings.train import METHODS, TrainConfig

__all__ = ["Result", "collect", "settings_apart"]

# Settings in which runs of one row may differ: they say which seeds were run, where and how, and not what.
_APART = ("seeds", "first_seed", "out", "name", "threads", "checkpoint_every", "tensorboard", "device")


@dataclass(frozen=True)
class Result:
    """All seeds of one row of a table.

    Attributes:
        name: of the row: its folder's path below the one that was asked for.
        config: the settings, but for seeds and folders.
        data: what the data are called.
        labels: what the labels are, e.g. ``40% symmetric label noise``.
        algorithm: as tables call it.
        seeds: the records by method, by seed.
        environment: of the first run.
        seconds: wall time of all runs.
    """

    name: str
    config: TrainConfig
    data: str
    labels: str
    algorithm: str
    seeds: dict[int, dict[str, Record]]
    environment: dict[str, Any]
    seconds: float


def collect(folders: Iterable[Path]) -> tuple[list[Result], list[Path]]:
    """Read every run below the folders.

    Args:
        folders: of sweeps or of runs.

    Returns:
        the results, one for each row in the order of their names; and the runs that are not complete.

    Raises:
        UserError: there is no run, a file is damaged, or one seed of a row was run twice.
    """
    rows: dict[str, Result] = {}
    unfinished: list[Path] = []
    for folder in folders:
        if not folder.is_dir():
            raise UserError(f"expected a folder with runs, found none at {folder}")
        for settings in sorted(folder.rglob(CONFIG)):
            run = settings.parent
            if any(part.startswith(".") for part in run.relative_to(folder).parts):
                continue  # a run folder that is being made
            if not (run / METRICS).exists():
                unfinished.append(run)
                continue
            _add(rows, folder, run)
    if not rows:
        raise UserError(
            f"expected at least one complete run in {', '.join(map(str, folders))}, found none"
            + (f", and {len(unfinished)} that are not complete" if unfinished else "")
        )
    return list(rows.values()), unfinished


def settings_apart(
    results: Sequence[Result], alike: Callable[[Result], Hashable], hidden: Collection[str]
) -> list[str]:
    """Of each result the settings, separated by commas, in which it differs from others of its kind.

    Args:
        results: to tell apart.
        alike: the kind of a result.
        hidden: settings that are not told.
    """
    kinds: dict[Hashable, list[dict[str, Any]]] = {}
    for result in results:
        kinds.setdefault(alike(result), []).append(result.config.as_dict())
    return [
        ", ".join(
            f"{name} {value}"
            for name, value in result.config.as_dict().items()
            if name not in hidden and any(other[name] != value for other in kinds[alike(result)])
        )
        for result in results
    ]


def _add(rows: dict[str, Result], folder: Path, run: Path) -> None:
    with reading(run / METRICS, "the results of a run"):
        metrics = json.loads((run / METRICS).read_text(encoding="utf-8"))
        if "seeds" not in metrics:
            return  # the results of a study
        config = parse_stored(run / CONFIG, TrainConfig, whole=True)
        seeds = {
            int(entry["seed"]): {m: Record(**values) for m, values in entry["methods"].items()}
            for entry in metrics["seeds"]
        }
        found = Result(
            name=_row_name(folder, run),
            config=dataclasses.replace(config, **{s: _default(s) for s in _APART}),
            data=metrics["data"],
            labels=metrics["labels"],
            algorithm=metrics["algorithm"],
            seeds=seeds,
            environment={name: metrics["environment"][name] for name in environment()},
            seconds=float(metrics["seconds"]),
        )
        _check_records(seeds)
    key = json.dumps(found.config.as_dict(), sort_keys=True)
    if key not in rows:
        rows[key] = found
        return
    row = rows[key]
    if twice := sorted(row.seeds.keys() & found.seeds.keys()):
        raise UserError(f"expected each seed of {row.name} once, found seed {twice[0]} again in {run}")
    rows[key] = dataclasses.replace(
        row, seeds=dict(sorted({**row.seeds, **found.seeds}.items())), seconds=row.seconds + found.seconds
    )


def _check_records(seeds: Mapping[int, Mapping[str, Record]]) -> None:
    """ValueError where no tables can be made of the records: they were edited, or are of another version."""
    if not seeds:
        raise ValueError("expected at least one seed, found none")
    first = next(iter(seeds.values()))
    for seed, records in seeds.items():
        if not records or list(records) != list(first) or not records.keys() <= METHODS.keys():
            raise ValueError(f"expected the same known methods of each seed, found {list(records)} of {seed}")
        for method, record in records.items():
            epochs = len(record.test_accuracy)
            if not epochs or not epochs == len(record.validation) == len(record.memorised):
                raise ValueError(f"expected scores of each epoch of {method}, seed {seed}")
            scored = [value for value in record.test_accuracy[:-1] if value is not None]
            if not all(isinstance(value, int | float) for value in (*scored, record.test_accuracy[-1])):
                raise ValueError(f"expected numbers as scores of {method}, seed {seed}")
            if record.path and not set(record.path["rules"].values()) <= set(record.path["ranks"]):
                raise ValueError(f"expected scores of each rule's rank of {method}, seed {seed}")


def _row_name(folder: Path, run: Path) -> str:
    """The path of a run without that of the sweep and without its seed."""
    parts: Sequence[str] = run.relative_to(folder).parts or (run.resolve().name,)
    if len(parts) > 1 and parts[-1].startswith("seed-"):
        parts = parts[:-1]
    return "/".join(parts)


def _default(name: str) -> Any:
    return next(setting.default for setting in dataclasses.fields(TrainConfig) if setting.name == name)
