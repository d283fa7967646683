"""What the settings of all subcommands have in common: fields with a help text, checks, plain values."""

import dataclasses
import typing
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, ClassVar

from lip_fast.cli.errors import UserError

__all__ = ["Config", "option", "setting"]


def setting(default: Any, text: str) -> Any:
    """A field of a :class:`Config` with its help text; the command line has an option for it."""
    return field(default=default, metadata={"help": text})


def option(name: str) -> str:
    """How a setting is spelled on the command line: ``noise_rate`` is ``--noise-rate``."""
    return "--" + name.replace("_", "-")


@dataclass(frozen=True, kw_only=True)
class Config:
    """The settings of a subcommand, a field for each; what a field means is its help text.

    A subclass checks its values in ``__post_init__``.

    Attributes:
        COMMAND: name of the subcommand.
        DESCRIPTION: what its ``--help`` says of it.
        RESUME: what ``--help`` says of ``--resume``.
        LATER: settings that runs of earlier versions do not have; their defaults are what those runs did.

    Raises:
        UserError: a field without None among its types is None: the parser lets a null of YAML through
            whatever the type is.
    """

    COMMAND: ClassVar[str]
    DESCRIPTION: ClassVar[str]
    RESUME: ClassVar[str]
    LATER: ClassVar[tuple[str, ...]] = ()

    def __post_init__(self) -> None:
        for one in dataclasses.fields(self):
            if getattr(self, one.name) is None and type(None) not in typing.get_args(one.type):
                raise UserError(f"expected {option(one.name)} to have a value, got null")

    def as_dict(self) -> dict[str, Any]:
        """The settings as plain values (lists, not tuples), for YAML."""
        values = dataclasses.asdict(self)
        return {k: list(v) if isinstance(v, tuple) else v for k, v in values.items()}

    @classmethod
    def completed(cls, settings: Mapping[str, Any]) -> dict[str, Any]:
        """Settings as plain values, those of ``LATER`` that are missing with their defaults."""
        defaults = {one.name: one.default for one in dataclasses.fields(cls) if one.name in cls.LATER}
        return {**defaults, **settings}

    @classmethod
    def names(cls) -> list[str]:
        """The names of all settings."""
        return [one.name for one in dataclasses.fields(cls)]
