"""Settings read from the command line, from YAML files and from plain values (with jsonargparse)."""

import argparse
import dataclasses
import json
import re
import tempfile
import typing
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Generic, NamedTuple, TypeVar

import yaml
from jsonargparse import ActionConfigFile, ArgumentParser

from lip_fast.cli.errors import UserError, unknown_name
from lip_fast.harness.files.reading import reading
from lip_fast.harness.settings.config import Config, option
from lip_fast.harness.settings.study import StudyConfig
from lip_fast.harness.settings.train import TrainConfig

__all__ = ["Parsed", "check_resumed", "parse", "parse_stored", "parse_values"]

C = TypeVar("C", bound=Config)
# A file with settings of the one may be given where those of the other are expected.
_KINDS: tuple[type[Config], ...] = (TrainConfig, StudyConfig)


class Parsed(NamedTuple, Generic[C]):
    """What the arguments of a subcommand ask for.

    Attributes:
        config: the settings.
        resume: folder of the run to continue, or None for a new one.
    """

    config: C
    resume: Path | None


def parse(arguments: Sequence[str], kind: type[C]) -> Parsed[C]:
    """Read the arguments of a subcommand with settings.

    Args:
        arguments: options, and ``--config FILE`` with a YAML file of settings; later ones win.
        kind: the settings of the subcommand, each of them with a default.

    Raises:
        UserError: an unknown option or a value that cannot be.
        SystemExit: after ``--help``, with code 0.
    """
    return _parse(arguments, kind())


def check_resumed(arguments: Sequence[str], stored: Config, folder: Path) -> None:
    """Check that arguments with ``--resume`` ask for nothing but what the run was made with.

    Args:
        arguments: as of :func:`parse`.
        stored: the settings of the run.
        folder: of the run, for the message.

    Raises:
        UserError: a setting is given another value than it has.
    """
    asked = _parse(arguments, stored).config.as_dict()
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


def parse_stored(path: Path, kind: type[C], *, whole: bool) -> C:
    """The settings in the ``config.yaml`` of a run or a study.

    Args:
        path: the file.
        kind: whose settings they are.
        whole: refuse a file without all settings, those aside that earlier versions of this package did not
            have.

    Raises:
        UserError: it cannot be read, or holds other things than settings of that kind.
    """
    with reading(path, "the settings of a run"):
        stored = yaml.safe_load(path.read_text(encoding="utf-8"))
    if not isinstance(stored, dict):
        raise UserError(f"expected the settings of a run in {path}, found none")
    known = kind.names()
    for other in _KINDS:
        if other is not kind and set(other.names()) - set(known) <= stored.keys():
            raise UserError(
                f"expected settings of lip-fast {kind.COMMAND} in {path}, "
                f"found those of lip-fast {other.COMMAND}"
            )
    missing = [name for name in known if name not in kind.completed(stored)]
    if whole and missing:
        raise UserError(f"expected all settings of a run in {path}, found none of {', '.join(missing)}")
    return parse(["--config", str(path)], kind).config


def parse_values(values: Mapping[str, Any], kind: type[C], overrides: Sequence[str] = ()) -> C:
    """Settings from plain values, as YAML gives them.

    Args:
        values: by the names of settings; what is missing has its default.
        kind: whose settings they are.
        overrides: options that come after them.

    Raises:
        UserError: an unknown setting or a value that cannot be.
    """
    # Through a file, so that there is one reader of settings.
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "settings.yaml"
        path.write_text(yaml.safe_dump(dict(values)), encoding="utf-8")
        parsed = parse(["--config", str(path), *overrides], kind)
    if parsed.resume is not None:
        raise UserError("expected options of settings, got --resume")
    return parsed.config


def _parse(arguments: Sequence[str], defaults: C) -> Parsed[C]:
    """Read arguments; a setting that they do not name has the value that it has in ``defaults``."""
    parser = ArgumentParser(
        prog=f"lip-fast {defaults.COMMAND}",
        description=defaults.DESCRIPTION,
        exit_on_error=False,
        allow_abbrev=False,
    )
    parser.add_argument("--config", action=ActionConfigFile, help="YAML file with settings")
    parser.add_argument("--resume", type=str, metavar="RUN_FOLDER", help=defaults.RESUME)
    for one in dataclasses.fields(defaults):
        parser.add_argument(option(one.name), **_reading(one), **one.metadata)
    parser.set_defaults(defaults.as_dict())
    try:
        values: dict[str, Any] = parser.parse_args(list(arguments)).as_dict()
    except argparse.ArgumentError as error:
        raise _user_error(error, ["config", "resume", *defaults.names()]) from error
    except UnicodeDecodeError as error:
        raise UserError(f"expected --config to be text in UTF-8: {error}") from error
    resume = values.pop("resume")
    del values["config"]
    return Parsed(type(defaults)(**values), None if resume is None else Path(resume))


def _spelled(value: object) -> str:
    """A value as one writes it after an option."""
    if isinstance(value, dict):
        return json.dumps(value)
    if isinstance(value, list):
        return " ".join(map(str, value))
    return "null" if value is None else str(value).lower() if isinstance(value, bool) else str(value)


def _reading(one: "dataclasses.Field[Any]") -> dict[str, Any]:
    """How ``add_argument`` reads the values of a setting."""
    if typing.get_origin(one.type) is tuple:
        return {"type": typing.get_args(one.type)[0], "nargs": "+"}
    return {"type": one.type}


def _user_error(error: argparse.ArgumentError, names: Sequence[str]) -> UserError:
    """The parser's complaint; of an unknown name it also knows the nearest among ``names``."""
    text = re.sub(r"<class '(\w+)'>", r"\1", str(error))
    # Two wordings each: jsonargparse 4.40 and 4.53.
    if match := re.search(r"[Uu]nrecognized arguments: (?!-)(\S+)", text):
        return UserError(
            f"expected options alone, got {match[1]!r}: --data takes data, --config a file of settings"
        )
    if match := re.match(r'Parser key "(\w+)"[^:]*:\s*Expected an? (\w+)\. Got value: (.*)', text):
        several = ": several values are separated by spaces" if "," in match[3] else ""
        return UserError(f"expected {option(match[1])} to be of kind {match[2]}, got {match[3]}{several}")
    if match := re.search(r"[Uu]nrecognized arguments: .*?(--[^\s=]+)", text):
        return unknown_name("option", match[1], [option(name) for name in names])
    if match := re.search(r"(?:Option|Key) '(.+)' is not (?:accepted|expected)", text):
        return unknown_name("setting", match[1], names)
    if match := re.match(r"Unexpected config:\s*(.*)", text, re.DOTALL):
        return UserError(f"expected --config to hold settings, name: value, got {match[1] or 'nothing'}")
    # This is what jsonargparse says of a list setting that is given no list; it does not name the setting.
    if "does not support item assignment" in text or "object is not iterable" in text:
        return UserError("expected a list, such as [256, 128], for each setting that takes several values")
    return UserError(text)
