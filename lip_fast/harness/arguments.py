"""The command line and YAML files read into settings (jsonargparse)."""

import argparse
import dataclasses
import re
import typing
from collections.abc import Sequence
from typing import Any

from jsonargparse import ActionConfigFile, ArgumentParser

from lip_fast.harness.config import TrainConfig, option
from lip_fast.harness.errors import UserError, unknown_name

__all__ = ["parse_train"]


def parse_train(arguments: Sequence[str]) -> TrainConfig:
    """The settings that the arguments of ``lip-fast train`` ask for.

    Args:
        arguments: options, and ``--config FILE`` with a YAML file of settings; later ones win.

    Raises:
        UserError: an unknown option or a value that cannot be.
        SystemExit: after ``--help``, with code 0.
    """
    parser = ArgumentParser(
        prog="lip-fast train",
        description="Train a small network on wrong labels: plain, with LIP in the step, and with LIP "
        "applied to the trained plain network.",
        exit_on_error=False,
        allow_abbrev=False,
    )
    parser.add_argument("--config", action=ActionConfigFile, help="YAML file with settings")
    for setting in dataclasses.fields(TrainConfig):
        parser.add_argument(option(setting.name), **_reading(setting), **setting.metadata)
    try:
        values = parser.parse_args(list(arguments)).as_dict()
    except argparse.ArgumentError as error:
        raise _user_error(error) from error
    del values["config"]
    return TrainConfig(**values)


def _reading(setting: "dataclasses.Field[Any]") -> dict[str, Any]:
    """How ``add_argument`` reads the values of a setting."""
    if typing.get_origin(setting.type) is tuple:
        default: Any = setting.default
        return {"type": typing.get_args(setting.type)[0], "nargs": "+", "default": list(default)}
    return {"type": setting.type, "default": setting.default}


def _user_error(error: argparse.ArgumentError) -> UserError:
    """The parser's complaint; of an unknown name it also knows the nearest."""
    text = str(error)
    names = [setting.name for setting in dataclasses.fields(TrainConfig)]
    # Two wordings each: jsonargparse 4.40 and 4.53.
    if match := re.search(r"[Uu]nrecognized arguments: .*?(--[^\s=]+)", text):
        return unknown_name("option", match[1], [option(name) for name in names])
    if match := re.search(r"(?:Option|Key) '(.+)' is not (?:accepted|expected)", text):
        return unknown_name("setting", match[1], names)
    return UserError(re.sub(r"<class '(\w+)'>", r"\1", text))
