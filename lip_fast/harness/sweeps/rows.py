"""What a sweep runs: rows of settings, each of them with each of its seeds."""

import dataclasses
import itertools
import json
import re
import typing
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from lip_fast.cli.errors import UserError
from lip_fast.harness.files.reading import reading
from lip_fast.harness.settings.arguments import parse_values
from lip_fast.harness.settings.config import option
from lip_fast.harness.settings.train import TrainConfig

__all__ = ["Row", "Unit", "read_rows", "units_of"]

SUFFIXES = (".yaml", ".yml")
# Settings of lip-fast train that the sweep itself chooses for each run.
_OWN = ("out", "name")
# Options of lip-fast train that are not settings.
_OTHERS = ("config", "resume")
# What a file may hold beside settings: groups of settings that change together.
_TOGETHER = "together"
# Settings whose value is a list.
_LISTS = {s.name for s in dataclasses.fields(TrainConfig) if typing.get_origin(s.type) is tuple}


@dataclass(frozen=True)
class Row:
    """One row of a table: settings, run once for each seed.

    Attributes:
        name: unique in the sweep; a relative path, with ``/`` between its parts.
        config: the settings.
    """

    name: str
    config: TrainConfig


@dataclass(frozen=True)
class Unit:
    """What one process works on at a time: one seed of one row.

    Attributes:
        path: folder of the run, relative to that of the sweep.
        config: the settings, of one seed.
    """

    path: Path
    config: TrainConfig


def units_of(rows: Sequence[Row], folder: Path) -> list[Unit]:
    """The units of all rows: the first seed of each, then the second, so that what is there can be compared.

    Args:
        rows: of the sweep.
        folder: of the sweep.
    """
    units = []
    for place in range(max(row.config.seeds for row in rows)):
        for row in rows:
            if place < row.config.seeds:
                seed = row.config.first_seed + place
                path = Path(row.name) / f"seed-{seed}"
                out = str((folder / path).parent)
                config = dataclasses.replace(row.config, first_seed=seed, seeds=1, out=out, name=path.name)
                units.append(Unit(path, config))
    return units


def read_rows(paths: Sequence[Path], overrides: Sequence[str]) -> list[Row]:
    """The rows of files of settings.

    A file holds settings of ``lip-fast train``. A setting given as a list takes each of its values in turn,
    and several such settings all combinations; a setting that is a list itself, such as ``methods``, takes a
    list of lists. Settings that change together are entries of a group, and ``together`` is a list of groups,
    of each of which one entry holds at a time, over what the file says otherwise; its name tells it::

        together:
        - few: {noise_rate: 0.2, epochs: 20}
          many: {noise_rate: 0.6, epochs: 10}

    Args:
        paths: files, or folders whose files are taken, in the order of their names.
        overrides: options of ``lip-fast train`` that hold in every row.

    Raises:
        UserError: a file is missing or damaged, a setting is wrong, or two rows have one name.
    """
    for name in _OWN:
        if any(override.partition("=")[0] == option(name) for override in overrides):
            raise UserError(f"expected no {option(name)} after --: the sweep names the folders of its runs")
    rows: dict[str, Row] = {}
    for path, name in _files(paths):
        for settings, label in _combinations(_settings(path)):
            row = name + label
            if row in rows:
                raise UserError(f"expected rows of different names, got two named {row}")
            try:
                rows[row] = Row(row, parse_values(settings, TrainConfig, overrides))
            except UserError as error:
                raise UserError(f"{path}: {error}") from error
    if not rows:
        raise UserError("expected at least one file of settings, got none")
    return list(rows.values())


def _files(paths: Sequence[Path]) -> Iterator[tuple[Path, str]]:
    for path in paths:
        if path.is_dir():
            inside = sorted(file for file in path.iterdir() if file.suffix in SUFFIXES)
            if not inside:
                raise UserError(
                    f"expected files of settings ending in {' or '.join(SUFFIXES)}, found none in {path}"
                )
            for file in inside:
                yield file, f"{path.resolve().name}/{file.stem}"
        else:
            yield path, path.stem


def _settings(path: Path) -> dict[str, Any]:
    with reading(path, "a file of settings"):
        settings = yaml.safe_load(path.read_text(encoding="utf-8"))
        json.dumps(settings, default=str, skipkeys=True)  # refuses a list or mapping that holds itself
    if not isinstance(settings, dict):
        raise UserError(f"expected settings in {path}, found none")
    groups = settings.get(_TOGETHER, [])
    if not isinstance(groups, list) or not all(
        isinstance(group, dict) and group and all(isinstance(entry, dict) for entry in group.values())
        for group in groups
    ):
        raise UserError(
            f"expected {_TOGETHER} in {path} as a list of groups, each of entries with a name and settings, "
            f"got {groups}"
        )
    for part in (settings, *(entry for group in groups for entry in group.values())):
        for name in _OWN:
            if name in part:
                raise UserError(f"expected no {name} in {path}: the sweep names the folders of its runs")
        for name in _OTHERS:
            if name in part:
                raise UserError(f"expected settings in {path}, got {name}, which is none")
    for name, value in settings.items():
        if value == [] and name not in (*_LISTS, _TOGETHER):
            raise UserError(f"expected at least one value of {name} in {path}, got none")
    return settings


def _combinations(settings: dict[str, Any]) -> Iterator[tuple[dict[str, Any], str]]:
    """All settings with each combination of those that vary, and a text that tells it from others."""
    fixed = dict(settings)
    groups = [[(entry, _label(name)) for name, entry in group.items()] for group in fixed.pop(_TOGETHER, [])]
    choices = [
        [({name: value}, f"{name}={_label(value)}") for value in values]
        for name, values in fixed.items()
        if isinstance(values, list)
        and (name not in _LISTS or (values and all(isinstance(value, list) for value in values)))
    ]
    for chosen in itertools.product(*choices, *groups):
        combined = dict(fixed)
        for changes, _ in chosen:
            combined |= changes
        yield combined, "".join(f",{label}" for _, label in chosen)


def _label(value: Any) -> str:
    if isinstance(value, list):
        return "-".join(map(_label, value))
    if isinstance(value, dict):
        return "-".join(f"{key}={_label(entry)}" for key, entry in value.items())
    text = "null" if value is None else str(value).lower() if isinstance(value, bool) else str(value)
    # The text becomes a part of the name of a folder.
    return re.sub(r"[^\w.:#+-]+", "_", text)
