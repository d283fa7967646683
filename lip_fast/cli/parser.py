"""The parser of commands with few options: complaints are one line, unknown names come with the nearest."""

import argparse
from collections.abc import Sequence
from typing import NoReturn

from lip_fast.cli.errors import UserError, unknown_name

__all__ = ["Parser"]


class Parser(argparse.ArgumentParser):
    """``argparse``'s parser, which raises :class:`UserError` for what the user can put right."""

    def error(self, message: str) -> NoReturn:
        """Raise what argparse would print before it exits."""
        raise UserError(message)

    def parse_all(self, arguments: Sequence[str]) -> argparse.Namespace:
        """The options.

        Raises:
            UserError: an option is unknown or wrong, or there are too many other arguments.
            SystemExit: after ``--help``, with code 0.
        """
        options, rest = self.parse_known_args(list(arguments))
        if rest and rest[0].startswith("-"):
            known = [name for action in self._actions for name in action.option_strings]
            raise unknown_name("option", rest[0].partition("=")[0], known)
        if rest:
            raise UserError(f"expected no further argument, got {rest[0]!r}")
        return options
