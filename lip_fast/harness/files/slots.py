"""Parts of a Markdown page that a command writes, between two markers."""

from dataclasses import dataclass
from pathlib import Path

from lip_fast.cli.errors import UserError

__all__ = ["Slot", "read_page"]


@dataclass(frozen=True)
class Slot:
    """The part of a page between ``<!-- NAME:begin -->`` and ``<!-- NAME:end -->``.

    Args:
        name: of the slot.
    """

    name: str

    @property
    def begin(self) -> str:
        """The marker before it."""
        return f"<!-- {self.name}:begin -->"

    @property
    def end(self) -> str:
        """The marker after it."""
        return f"<!-- {self.name}:end -->"

    def filled(self, path: Path, content: str) -> str:
        """The page at ``path`` with ``content`` in this slot, and everything else as it was.

        Raises:
            UserError: the file cannot be read, or does not have the markers once each and in order.
        """
        text = read_page(path)
        if (
            text.count(self.begin) != 1
            or text.count(self.end) != 1
            or text.index(self.begin) > text.index(self.end)
        ):
            raise UserError(f"expected {self.begin} and, after it, {self.end} once each in {path}")
        before, after = text[: text.index(self.begin)], text[text.index(self.end) :]
        return f"{before}{self.begin}\n{content}\n{after}"


def read_page(path: Path) -> str:
    """A text file with its line ends as they are.

    Raises:
        UserError: it cannot be read, or is not in UTF-8.
    """
    try:
        return path.read_bytes().decode()
    except OSError as error:
        raise UserError(f"cannot read {path}: {error.strerror}") from None
    except UnicodeDecodeError:
        raise UserError(f"{path} is not UTF-8 text") from None
