"""``lip-fast report``: what many runs come to, as one HTML file, Markdown, figures and numbers."""

import argparse
import os
from collections.abc import Sequence
from datetime import date
from pathlib import Path
from typing import Any

from lip_fast.cli.atomic import replacing, write_whole
from lip_fast.cli.errors import UserError
from lip_fast.cli.parser import Parser
from lip_fast.harness.files.plain import write_json
from lip_fast.harness.files.slots import Slot
from lip_fast.harness.reports.collect import Result, collect
from lip_fast.harness.reports.figures import FIGURES
from lip_fast.harness.reports.pages import as_html, as_markdown, table_as_markdown
from lip_fast.harness.reports.tables import main_table, plain_numbers, problem_numbers, tables_of
from lip_fast.harness.training.processes import refuse_several

__all__ = ["main"]

_RESULTS = Slot("results")


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
    part = None
    if options.into is not None:
        _RESULTS.filled(Path(options.into), "")  # a page without the markers is refused at once
        table = main_table(results, options.only, options.columns)
        part = f"{table.note}\n\n{table_as_markdown(table)}"
    try:
        out.mkdir(parents=True, exist_ok=True)
        figures = _draw(out, results)
        _write(out, options.title, results, unfinished, figures)
        if part is not None:
            write_whole(Path(options.into), _RESULTS.filled(Path(options.into), part))
    except OSError as error:
        raise UserError(f"expected a folder that can be written, got {out}: {error}") from error
    runs = sum(len(result.seeds) for result in results)
    print(f"{len(results)} rows of {runs} runs; {len(unfinished)} runs are not complete")
    for name in ("report.html", "report.md", "report.json"):
        print(out / name)
    return 0


def _draw(out: Path, results: Sequence[Result]) -> dict[str, str]:
    """Captions of the figures that there are data for, by file name; a figure may have several pages."""
    captions = {}
    for stem, (caption, draw) in FIGURES.items():
        pages = draw(results)
        for number, figure in enumerate(pages, 1):
            name = f"{stem}.png" if number == 1 else f"{stem}-{number}.png"
            captions[name] = caption if len(pages) == 1 else f"{caption} ({number} of {len(pages)})"
            with replacing(out / name) as temporary:
                figure.savefig(temporary, format="png")
        for path in (out / f"{stem}.png", *out.glob(f"{stem}-*.png")):
            if path.name not in captions:  # of an earlier report
                path.unlink(missing_ok=True)
    return captions


def _write(
    out: Path, title: str, results: Sequence[Result], unfinished: Sequence[Path], figures: dict[str, str]
) -> None:
    tables, lead = tables_of(results), _lead(results, unfinished)
    foot = f"lip-fast report, {date.today().isoformat()}"
    write_whole(out / "report.md", as_markdown(title, lead, tables, figures, foot))
    inside = {out / name: caption for name, caption in figures.items()}
    write_whole(out / "report.html", as_html(title, lead, tables, inside, foot))
    numbers: dict[str, Any] = {
        "environment": results[0].environment,
        "early_stopping": problem_numbers(results),
        "rows": plain_numbers(results),
    }
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
        help=f"write the first table into this file too, between {_RESULTS.begin} and {_RESULTS.end}",
    )
    parser.add_argument(
        "--only",
        nargs="+",
        default=[],
        metavar="NAME",
        help="with --into, of the rows those with a result of this name alone, such as 'digits,*', and no "
        "intervals",
    )
    parser.add_argument(
        "--columns",
        nargs="+",
        default=[],
        metavar="METHOD",
        help="with --into, of the columns these alone, e.g. plain robust in-step gaussian, and no intervals",
    )
    options = parser.parse_all(arguments)
    if options.into is None and (options.only or options.columns):
        raise UserError("expected --into FILE.md with --only and --columns, which are of the table in it")
    if options.into is not None and not os.path.isfile(options.into):
        raise UserError(f"expected --into to be a file, found none at {options.into}")
    return options
