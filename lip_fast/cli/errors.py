"""What a user can put right, said in one line."""

import difflib
import re
from collections.abc import Iterable

__all__ = ["UserError", "unknown_name"]


class UserError(ValueError):
    """A mistake of the user: the command line prints its message and exits with code 2.

    Args:
        message: made into one line, for messages of libraries may have several. What cannot be printed is
            escaped: names in a damaged or hostile file may hold sequences that a terminal obeys.
    """

    def __init__(self, message: str = "") -> None:
        line = re.sub(r"\s*[\r\n]\s*", " ", message)
        super().__init__("".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in line))


def unknown_name(kind: str, name: str, known: Iterable[str]) -> UserError:
    """The error for a name that is not among the known ones; it names them and the nearest.

    Args:
        kind: what the name is of, e.g. ``"optimizer"``.
        name: what came.
        known: the names there are, at least one.
    """
    known = list(known)
    # cutoff 0: the nearest name is told however far it is, for the message lists all names too.
    nearest = difflib.get_close_matches(name.lower(), known, n=1, cutoff=0.0)[0]
    return UserError(f"unknown {kind} {name!r}: known are {', '.join(known)}; the nearest is {nearest!r}")
