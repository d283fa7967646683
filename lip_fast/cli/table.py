"""Tables of text: in aligned columns for a terminal, and as Markdown."""

from collections.abc import Sequence

__all__ = ["aligned", "markdown"]

Rows = Sequence[Sequence[str]]


def aligned(rows: Rows, *, names: int | None = None, least: int = 0, indent: str = "") -> str:
    """Rows of cells as lines with aligned columns, two blanks between them.

    Args:
        rows: the cells; a row may have fewer than the others.
        names: number of leading columns that are aligned to the left, as names are; the others are numbers,
            aligned to the right. None: all are names.
        least: the width that each column of numbers has at the least.
        indent: before each line.
    """
    widths = _widths(rows)
    names = len(widths) if names is None else names
    lines = []
    for row in rows:
        cells = [
            cell.ljust(width) if i < names else cell.rjust(max(width, least))
            for i, (cell, width) in enumerate(zip(row, widths, strict=False))
        ]
        lines.append((indent + "  ".join(cells)).rstrip())
    return "\n".join(lines)


def markdown(rows: Rows, *, names: int = 1, padded: bool = False) -> str:
    """Rows of cells, the header first, as a table of GitHub's Markdown.

    Args:
        rows: the cells, as many in each row.
        names: number of leading columns with names, aligned to the left; the others are numbers.
        padded: all columns hold names, and cells are filled up with blanks: the text reads well as it is.
    """
    header, *body = [[cell.replace("|", "\\|") for cell in row] for row in rows]
    rule = ["---" if i < names else "---:" for i in range(len(header))]
    lines = [header, rule, *body]
    if padded:
        widths = _widths([header, *body])
        lines[1] = ["-" * width for width in widths]
        lines = [[cell.ljust(width) for cell, width in zip(line, widths, strict=True)] for line in lines]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def _widths(rows: Rows) -> list[int]:
    columns = max(map(len, rows))
    return [max(len(row[i]) for row in rows if len(row) > i) for i in range(columns)]
