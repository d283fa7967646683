"""What the commands of this folder have in common: refusals in one line."""

import argparse
import sys
from collections.abc import Callable
from typing import NoReturn

from lip_fast.cli.errors import UserError

__all__ = ["Parser", "Refused", "answer"]


class Refused(UserError):  # noqa: N818 (it is an answer, not an accident)
    """What was asked for cannot be done; the message says why, in one line."""


class Parser(argparse.ArgumentParser):
    """A parser of ``python -m benchmarks.NAME``."""

    def error(self, message: str) -> NoReturn:
        """One line, without the usage: as every other refusal."""
        print(f"{_name(self)}: {message}", file=sys.stderr)
        raise SystemExit(2)


def answer(parser: Parser, work: Callable[[], None]) -> int:
    """Do the work of a command; returns its exit code, 2 where something was refused or cannot be written."""
    try:
        work()
    except UserError as refusal:
        print(f"{_name(parser)}: {refusal}", file=sys.stderr)
        return 2
    except OSError as error:
        print(f"{_name(parser)}: cannot write {error.filename}: {error.strerror}", file=sys.stderr)
        return 2
    return 0


def _name(parser: Parser) -> str:
    return parser.prog.removeprefix("python -m ")
