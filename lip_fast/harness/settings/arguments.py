"""The command line and YAML files read into settings (jsonargparse)."""

import argparse
import dataclasses
import json
import re
import tempfile
import typing
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import yaml
from jsonargparse import ActionConfigFile, ArgumentParser

from lip_fast.cli.errors import UserError, unknown_name
from lip_fast.harness.files.reading import reading
from lip_fast.harness.settings.study import StudyConfig
from lip_fast.harness.settings.train import TrainConfig, option

__all__ = [
    "StudyCommand",
    "TrainCommand",
    "parse_resumed",
    "parse_stored",
    "parse_stored_study",
    "parse_study",
    "parse_train",
    "parse_values",
]


class TrainCommand(NamedTuple):
    """What the arguments of ``lip-fast train`` ask for.

    Attributes:
        config: the settings.
        resume: folder of the run to continue, or None for a new one.
    """

    config: TrainConfig
    resume: Path | None


class StudyCommand(NamedTuple):
    """What the arguments of ``lip-fast study`` ask for, as :class:`TrainCommand`."""

    config: StudyConfig
    resume: Path | None


def parse_train(arguments: Sequence[str]) -> TrainCommand:
    """Read the arguments of ``lip-fast train``.

    Args:
        arguments: options, and ``--config FILE`` with a YAML file of settings; later ones win.

    Raises:
        UserError: an unknown option or a value that cannot be.
        SystemExit: after ``--help``, with code 0.
    """
    return _parsed(arguments, TrainConfig())


def parse_study(arguments: Sequence[str]) -> StudyCommand:
    """Read the arguments of ``lip-fast study``, as :func:`parse_train` does those of ``lip-fast train``."""
    return _parsed_study(arguments, StudyConfig())


def parse_resumed(arguments: Sequence[str], stored: TrainConfig | StudyConfig, folder: Path) -> None:
    """Check that arguments with ``--resume`` ask for nothing but what the run was made with.

    Args:
        arguments: as of :func:`parse_train`, or of :func:`parse_study`.
        stored: the settings of the run.
        folder: of the run, for the message.

    Raises:
        UserError: a setting is given another value than it has.
    """
    if isinstance(stored, TrainConfig):
        asked = _parsed(arguments, stored).config.as_dict()
    else:
        asked = _parsed_study(arguments, stored).config.as_dict()
    conflicts = [
        f"{option(name)} {_spelled(value)}, got {_spelled(asked[name])}"
        for name, value in stored.as_dict().items()
        if asked[name] != value
    ]
    if conflicts:
        raise UserError(
            f"expected the settings of {folder}, which is continued with them: {'; '.join(conflicts)}. "
            "Leave them out, or start a new run"
        )


def parse_stored(path: Path, *, whole: bool) -> TrainConfig:
    """The settings in the ``config.yaml`` of a run.

    Args:
        path: the file.
        whole: refuse a file without all settings; an earlier version of this package may have written it.

    Raises:
        UserError: it cannot be read, or holds other things than settings of ``lip-fast train``.
    """
    _check_stored(path, "train", whole)
    return parse_train(["--config", str(path)]).config


def parse_stored_study(path: Path, *, whole: bool) -> StudyConfig:
    """The settings in the ``config.yaml`` of a study, as :func:`parse_stored` reads those of a run."""
    _check_stored(path, "study", whole)
    return parse_study(["--config", str(path)]).config


def parse_values(values: Mapping[str, Any], overrides: Sequence[str] = ()) -> TrainConfig:
    """Settings of ``lip-fast train`` from plain values, as YAML gives them.

    Args:
        values: by the names of settings; what is missing has its default.
        overrides: options that come after them.

    Raises:
        UserError: an unknown setting or a value that cannot be.
    """
    # Through a file, so that there is one reader of settings.
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "settings.yaml"
        path.write_text(yaml.safe_dump(dict(values)), encoding="utf-8")
        command = parse_train(["--config", str(path), *overrides])
    if command.resume is not None:
        raise UserError("expected options of settings, got --resume")
    return command.config


def _parsed(arguments: Sequence[str], defaults: TrainConfig) -> TrainCommand:
    values, resume = _resumable(
        "train",
        "Train a network on wrong labels: plain, with LIP in the step and after each epoch, and with LIP and "
        "other repairs applied to the trained plain network.",
        "continue the interrupted run in this folder from its last checkpoint, to the same bits",
        arguments,
        defaults,
    )
    return TrainCommand(TrainConfig(**values), resume)


def _parsed_study(arguments: Sequence[str], defaults: StudyConfig) -> StudyCommand:
    values, resume = _resumable(
        "study",
        "Train a network on labels of rising inaccuracy, and compare the singular subspaces of its weight "
        "with those that clean labels give: why accurate models can be learned from wrong labels.",
        "continue the interrupted study in this folder after the last network that it trained",
        arguments,
        defaults,
    )
    return StudyCommand(StudyConfig(**values), resume)


def _resumable(
    command: str, description: str, how: str, arguments: Sequence[str], defaults: TrainConfig | StudyConfig
) -> tuple[dict[str, Any], Path | None]:
    """The values of all settings of a subcommand, and the folder that it is to continue in, if any."""
    parser = _parser(command, description)
    parser.add_argument("--resume", type=str, metavar="RUN_FOLDER", help=how)
    values = _values(parser, arguments, defaults, "resume")
    resume = values.pop("resume")
    return values, None if resume is None else Path(resume)


def _check_stored(path: Path, command: str, whole: bool) -> None:
    """UserError where ``path`` does not hold settings of the subcommand, or not all where all must be."""
    with reading(path, "the settings of a run"):
        stored = yaml.safe_load(path.read_text(encoding="utf-8"))
    if not isinstance(stored, dict):
        raise UserError(f"expected the settings of a run in {path}, found none")
    names = {
        "train": [setting.name for setting in dataclasses.fields(TrainConfig)],
        "study": [setting.name for setting in dataclasses.fields(StudyConfig)],
    }
    known = names.pop(command)
    for other, others in names.items():
        if set(others) - set(known) <= stored.keys():
            raise UserError(
                f"expected settings of lip-fast {command} in {path}, found those of lip-fast {other}"
            )
    missing = [name for name in known if name not in stored]
    if whole and missing:
        raise UserError(f"expected all settings of a run in {path}, found none of {', '.join(missing)}")


def _parser(command: str, description: str) -> ArgumentParser:
    parser = ArgumentParser(
        prog=f"lip-fast {command}", description=description, exit_on_error=False, allow_abbrev=False
    )
    parser.add_argument("--config", action=ActionConfigFile, help="YAML file with settings")
    return parser


def _values(
    parser: ArgumentParser, arguments: Sequence[str], defaults: TrainConfig | StudyConfig, *others: str
) -> dict[str, Any]:
    """The values of all settings, and of the ``others`` that the parser knows.

    Args:
        parser: gets an option for each setting.
        arguments: of the subcommand.
        defaults: the settings, with the values they have where the arguments give none.
        others: names of further options, beside ``config``.
    """
    settings = dataclasses.fields(defaults)
    for setting in settings:
        parser.add_argument(option(setting.name), **_reading(setting), **setting.metadata)
    parser.set_defaults(defaults.as_dict())
    try:
        values: dict[str, Any] = parser.parse_args(list(arguments)).as_dict()
    except argparse.ArgumentError as error:
        raise _user_error(error, ["config", *others, *(setting.name for setting in settings)]) from error
    except UnicodeDecodeError as error:
        raise UserError(f"expected --config to be text in UTF-8: {error}") from error
    del values["config"]
    return values


def _spelled(value: object) -> str:
    """A value as one writes it after an option."""
    if isinstance(value, dict):
        return json.dumps(value)
    if isinstance(value, list):
        return " ".join(map(str, value))
    return "null" if value is None else str(value).lower() if isinstance(value, bool) else str(value)


def _reading(setting: "dataclasses.Field[Any]") -> dict[str, Any]:
    """How ``add_argument`` reads the values of a setting."""
    if typing.get_origin(setting.type) is tuple:
        default: Any = setting.default
        return {"type": typing.get_args(setting.type)[0], "nargs": "+", "default": list(default)}
    return {"type": setting.type, "default": _default(setting)}


def _default(setting: "dataclasses.Field[Any]") -> Any:
    """The default of a field, made anew where it has a factory."""
    if setting.default_factory is not dataclasses.MISSING:
        return setting.default_factory()
    return setting.default


def _user_error(error: argparse.ArgumentError, names: Sequence[str]) -> UserError:
    """The parser's complaint; of an unknown name it also knows the nearest among ``names``."""
    text = str(error)
    # Two wordings each: jsonargparse 4.40 and 4.53.
    if match := re.search(r"[Uu]nrecognized arguments: .*?(--[^\s=]+)", text):
        return unknown_name("option", match[1], [option(name) for name in names])
    if match := re.search(r"(?:Option|Key) '(.+)' is not (?:accepted|expected)", text):
        return unknown_name("setting", match[1], names)
    if match := re.match(r"Unexpected config:\s*(.*)", text, re.DOTALL):
        return UserError(f"expected --config to hold settings, name: value, got {match[1] or 'nothing'}")
    # So jsonargparse says that a list is none, without the name.
    if "does not support item assignment" in text or "object is not iterable" in text:
        return UserError("expected a list, such as [256, 128], for each setting that takes several values")
    return UserError(re.sub(r"<class '(\w+)'>", r"\1", text))
