"""Turn a benchmark result into Markdown: ``python -m benchmarks.report RESULT.json [--write README.md]``.

The tables are printed, or written between the markers of a Markdown file; ``--details`` writes a page of all
numbers, and its figures beside it. A result that cannot be vouched for is refused with one line and exit code
2, and nothing is written: one that is not of these benchmarks, lacks a row, a peer or a check without saying
why, has a failed check, or was measured on a tree that is not a known commit.
"""

import argparse
import io
import os
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

from benchmarks import device_report
from benchmarks.command import Parser, Refused, answer
from benchmarks.markdown import count
from benchmarks.results import NOISY, Result, load, read_json
from benchmarks.rows import ROWS, row
from benchmarks.sections import SECTIONS, Section
from lip_fast.cli.atomic import write_whole
from lip_fast.harness.files.slots import Slot

__all__ = ["SLOT", "main", "page", "render"]

SLOT = Slot("benchmarks")
RERUN = "make bench"


def render(result: Result, pictures: Mapping[str, str] | None = None) -> str:
    """The report for README in Markdown, without the markers.

    Args:
        result: what was measured.
        pictures: where the figures of sections are, by name.
    """
    parts = [_about(result)]
    for section in SECTIONS:
        if section.in_readme:
            parts.append(_part(section, "###", section.summary(result), result, pictures))
    return "\n\n".join([*parts, *_busy(result, whole=False)])


def page(result: Result, pictures: Mapping[str, str] | None = None) -> str:
    """The page of all numbers."""
    parts = ["# Benchmarks\n\n<!-- Written by `make bench`. -->", _about(result)]
    for section in SECTIONS:
        parts.append(_part(section, "##", section.details(result), result, pictures))
    return "\n\n".join([*parts, *_busy(result, whole=True)]) + "\n"


def _about(result: Result) -> str:
    machine = result.machine
    commit = f"commit `{result.commit[:12]}`" if result.commit != "unknown" else "unknown commit"
    if result.dirty:
        commit += " with changes"
    variables = "".join(f", {name}={value}" for name, value in machine["environment"].items())
    return (
        f"{machine['cpu']}, {count(machine['cores'], 'core')}, "
        f"{count(machine['threads'], 'thread')}, {machine['system']}; "
        f"Python {machine['python']}, torch {machine['torch']}{variables}; {commit}, {result.date}. "
        f"Rerun with `{RERUN}`.\n\n"
        "Medians. The variants of a row take turns in one run, so that its ratios are of times measured side "
        "by side. Each result is checked before anything is timed, most against `lip_fast.reference` in "
        "float64; *error* is how far ours was off, as a relative Frobenius distance where nothing else is "
        "said, and what it may be. *Bytes, flops* is the larger of what either takes at the least, at the "
        "rate of a copy and of a large product measured in the same run, and how many times that ours takes. "
        "Ratios are shown with their target where there is one: ✓ met, ✗ missed."
    )


def _part(
    section: Section, heading: str, text: str, result: Result, pictures: Mapping[str, str] | None
) -> str:
    parts = [f"{heading} {section.title}", text]
    if pictures and section.name in pictures:
        parts.append(f"![{section.title}]({pictures[section.name]})")
    parts += _missing(section, result)
    keys = [one.key for one in ROWS if one.kind in section.kinds]
    patterns = " ".join(kind if kind in keys else f"{kind}-*" for kind in section.kinds)
    parts.append(f"Any row again: `make bench-rows ROWS='{patterns}'`.")
    return "\n\n".join(parts)


def _missing(section: Section, result: Result) -> list[str]:
    """What was not measured, and why."""
    reasons: dict[str, list[str]] = {}
    for key, reason in result.left_out.items():
        if row(key).kind in section.kinds:
            reasons.setdefault(reason, []).append(f"`{key}`")
    for entry in result.entries:
        if entry.row.kind in section.kinds and not section.own_gaps:
            for variant, reason in entry.skipped.items():
                if variant not in reasons.setdefault(reason, []):
                    reasons[reason].append(variant)
    if not reasons:
        return []
    said = "; ".join(f"{', '.join(what)} ({reason})" for reason, what in reasons.items())
    return [f"Not measured: {said}."]


def _busy(result: Result, *, whole: bool) -> list[str]:
    """Which numbers were disturbed; README counts those of the ops."""
    noisy = [e.row for e in result.entries if e.quartiles[1] > NOISY * e.quartiles[0]]
    named = [row.key for row in noisy if whole or row.kind != "op"]
    if len(named) < len(noisy):
        named.append(f"{len(noisy) - len(named)} of the {sum(1 for _ in result.of('op'))} rows of the ops")
    if not named:
        return []
    return [
        f"The machine was busy: our quartiles are more than {NOISY:g}x apart in {', '.join(named)}. "
        "Their numbers are not to be trusted."
    ]


def _pictures(result: Result) -> dict[str, bytes]:
    """PNG figures by the name of their section."""
    drawn = {}
    for section in SECTIONS:
        try:
            figure = section.figure(result) if section.figure is not None else None
        except ImportError:
            raise Refused("figures need matplotlib: pip install 'lip-fast[harness]'") from None
        if figure is not None:
            stream = io.BytesIO()
            figure.savefig(stream, format="png", dpi=120)
            drawn[section.name] = stream.getvalue()
    return drawn


# Command line --------------------------------------------------------------------------------------------


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command; returns its exit code."""
    parser = Parser(prog="python -m benchmarks.report", description="Report a benchmark result.")
    parser.add_argument("result", type=Path, help="JSON of pytest --benchmark-json or benchmarks/device.py")
    parser.add_argument("--write", type=Path, metavar="README.md", help="replace what is between its markers")
    parser.add_argument(
        "--details",
        type=Path,
        metavar="PAGE.md",
        help="also write all numbers, and figures into a folder beside it",
    )
    parser.add_argument(
        "--allow-dirty", action="store_true", help="accept uncommitted changes, unknown commits"
    )
    options = parser.parse_args(arguments)
    return answer(parser, lambda: _run(options))


def _run(options: argparse.Namespace) -> None:
    details: Path | None = options.details
    if details is not None and details.suffix.lower() != ".md":
        raise Refused(f"expected a .md file for --details, got {details}")
    checkout = options.write.resolve().parent if options.write is not None else Path.cwd()
    data = read_json(options.result)
    if data.get("kind") == device_report.KIND:
        if details is not None:
            raise Refused("the report of a GPU has no page of its own: leave out --details")
        text = device_report.render_device(data, checkout=checkout, allow_dirty=options.allow_dirty)
        _put(options.write, text, _whole(options.write, text, device_report.SLOT))
        return
    result = load(options.result, checkout=checkout, allow_dirty=options.allow_dirty)
    # Everything that can be refused is refused before the first file is written.
    drawn = {} if details is None else _pictures(result)
    folder = None if details is None else details.parent / details.stem
    report = render(result, _links(folder, checkout, drawn))
    whole = _whole(options.write, report, SLOT)
    if details is not None and folder is not None:
        folder.mkdir(parents=True, exist_ok=True)
        for name, picture in drawn.items():
            write_whole(folder / f"{name}.png", picture)
        write_whole(details, page(result, _links(folder, details.resolve().parent, drawn)))
    _put(options.write, report, whole)


def _whole(page: Path | None, report: str, slot: Slot) -> str | None:
    """The page with the report in its place; None without a page."""
    return None if page is None else slot.filled(page, report)


def _put(page: Path | None, report: str, whole: str | None) -> None:
    if page is None or whole is None:
        print(report)
    else:
        write_whole(page, whole)


def _links(folder: Path | None, home: Path, drawn: Mapping[str, bytes]) -> dict[str, str]:
    """Where a page in ``home`` finds the figures."""
    if folder is None:
        return {}
    way = Path(os.path.relpath(folder.resolve(), home)).as_posix()
    return {name: f"{way}/{name}.png" for name in drawn}


if __name__ == "__main__":
    sys.exit(main())
