"""``lip-fast report``: what many runs come to, as one HTML file, Markdown, figures and numbers."""

import argparse
import os
from collections.abc import Sequence
from datetime import date
from pathlib import Path
from typing import Any

from lip_fast.cli.atomic import replacing
from lip_fast.cli.errors import UserError
from lip_fast.cli.parser import Parser
from lip_fast.harness.files.reading import reading
from lip_fast.harness.reports.collect import Result, collect
from lip_fast.harness.reports.figures import FIGURES
from lip_fast.harness.reports.pages import as_html, as_markdown, table_as_markdown
from lip_fast.harness.reports.tables import plain_numbers, tables_of
from lip_fast.harness.runs.folder import write_json
from lip_fast.harness.training.processes import refuse_several

__all__ = ["main"]


def main(arguments: Sequence[str]) -> int:
    """Write the report; returns the exit code 0.

    Raises:
        UserError: arguments or runs are not what they must be, or a file cannot be written.
    """
    refuse_several()
    options = _parse(arguments)
    folders = [Path(folder) for folder in options.runs]
    results, unfinished = collect(folders)
    out = folders[0] if options.out is None else Path(options.out)
    around = None if options.into is None else _around(Path(options.into))
    try:
        out.mkdir(parents=True, exist_ok=True)
        figures = _draw(out, results)
        _write(out, options.title, results, unfinished, figures)
        if around is not None:
            _write_into(Path(options.into), around, results)
    except OSError as error:
        raise UserError(f"expected a folder that can be written, got {out}: {error}") from error
    runs = sum(len(result.seeds) for result in results)
    print(f"{len(results)} rows of {runs} runs; {len(unfinished)} runs are not complete")
    for name in ("report.html", "report.md", "report.json"):
        print(out / name)
    return 0


def _draw(out: Path, results: Sequence[Result]) -> dict[str, str]:
    """Captions of the figures that there are data for, by file name."""
    captions = {}
    for name, (caption, save) in FIGURES.items():
        drawn = []
        with replacing(out / name) as temporary:
            drawn.append(save(temporary, results))
            if not drawn[0]:
                temporary.touch()
        if drawn[0]:
            captions[name] = caption
        else:
            (out / name).unlink()
    return captions


def _write(
    out: Path, title: str, results: Sequence[Result], unfinished: Sequence[Path], figures: dict[str, str]
) -> None:
    tables, lead = tables_of(results), _lead(results, unfinished)
    foot = f"lip-fast report, {date.today().isoformat()}"
    with replacing(out / "report.md") as temporary:
        temporary.write_text(as_markdown(title, lead, tables, figures, foot), encoding="utf-8")
    inside = {out / name: caption for name, caption in figures.items()}
    with replacing(out / "report.html") as temporary:
        temporary.write_text(as_html(title, lead, tables, inside, foot), encoding="utf-8")
    numbers: dict[str, Any] = {"environment": results[0].environment, "rows": plain_numbers(results)}
    with replacing(out / "report.json") as temporary:
        write_json(temporary, numbers)


def _lead(results: Sequence[Result], unfinished: Sequence[Path]) -> list[str]:
    runs = sum(len(result.seeds) for result in results)
    seconds = sum(result.seconds for result in results)
    environment = results[0].environment
    lines = [
        f"{len(results)} rows, {runs} runs, {_duration(seconds)} of work; torch {environment['torch']}, "
        f"Python {environment['python']}, {environment['threads']} threads each, {environment['system']}. "
        "All methods of a row and seed have the same data, wrong labels, initialisation and batches.",
    ]
    if unfinished:
        listed = ", ".join(map(str, unfinished))
        lines.append(f"Not complete, and so not in the tables: {listed}.")
    few = [result.name for result in results if len(result.seeds) < 3]
    if few:
        lines.append(f"Fewer than three seeds, too few to tell differences from chance: {', '.join(few)}.")
    return lines


def _duration(seconds: float) -> str:
    return f"{seconds / 3600:.1f} hours" if seconds >= 3600 else f"{seconds / 60:.1f} minutes"


def _around(path: Path) -> tuple[str, str]:
    """What comes before and after the accuracies in a file, the marks with it."""
    begin, end = "<!-- results:begin -->", "<!-- results:end -->"
    with reading(path, "a text file"):
        text = path.read_text(encoding="utf-8")
    if text.count(begin) != 1 or text.count(end) != 1 or text.index(begin) > text.index(end):
        raise UserError(f"expected {begin} and, after it, {end} once each in {path}")
    return text[: text.index(begin) + len(begin)], text[text.index(end) :]


def _write_into(path: Path, around: tuple[str, str], results: Sequence[Result]) -> None:
    """Put the accuracies between the marks in a file."""
    before, after = around
    parts = [f"{table.note}\n\n{table_as_markdown(table)}" for table in tables_of(results)[:1]]
    with replacing(path) as temporary:
        temporary.write_text("\n".join([before, *parts, after]), encoding="utf-8")


def _parse(arguments: Sequence[str]) -> argparse.Namespace:
    parser = Parser(
        prog="lip-fast report",
        description="Put the results of runs together: report.html, which needs no other file, report.md "
        "with its figures, and report.json.",
        allow_abbrev=False,
    )
    parser.add_argument("runs", nargs="+", metavar="FOLDER", help="sweeps or runs, with all that is below")
    parser.add_argument("--out", metavar="FOLDER", help="where to write (default: the first of the folders)")
    parser.add_argument("--title", default="Learning with inaccurate labels", help="of the report")
    parser.add_argument(
        "--into",
        metavar="FILE.md",
        help="write the table of accuracies into this file too, between <!-- results:begin --> and "
        "<!-- results:end -->",
    )
    options = parser.parse_all(arguments)
    if options.into is not None and not os.path.isfile(options.into):
        raise UserError(f"expected --into to be a file, found none at {options.into}")
    return options
