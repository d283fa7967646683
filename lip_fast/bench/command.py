"""``lip-fast bench``: the core rows timed on this machine, every result checked before it is timed.

It needs torch and numpy alone. A package that LIP would be compared with and that is not installed is named.
"""

import argparse
import fnmatch
import json
import logging
import math
import subprocess
import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import Any

import torch

import lip_fast
from lip_fast.backends.native import library
from lip_fast.bench import rows
from lip_fast.bench.cases import Case, run_cases
from lip_fast.bench.environment import describe
from lip_fast.bench.exact_step import exact_step
from lip_fast.bench.one_shot import one_shot_lip
from lip_fast.bench.rows import Row
from lip_fast.bench.table import render
from lip_fast.bench.timing import Timer, spin_up
from lip_fast.bench.truncated_step import truncated_step
from lip_fast.cli.atomic import write_whole
from lip_fast.cli.errors import UserError, unknown_name
from lip_fast.cli.parser import Parser
from lip_fast.cli.table import aligned
from lip_fast.cli.version import installed

__all__ = ["MAKERS", "main"]

MAKERS: Mapping[str, Callable[[Row, torch.device], Case]] = {
    "one-shot": one_shot_lip,
    "truncated": truncated_step,
    "exact": exact_step,
}
SECONDS = 60.0
# With samples of one call each, the rounds of a small row would be over long before its time.
_ROUNDS = 400


def main(arguments: Sequence[str]) -> int:
    """Measure, print a line for each row and a table at the end.

    Returns:
        0, or 1 where a row is void: its result was wrong, or the check could not have told.

    Raises:
        UserError: an option cannot be met; nothing has been measured then.
        KeyboardInterrupt: it was stopped; what was measured has been printed.
    """
    options = _parse(arguments)
    chosen = _chosen(options.rows)
    if options.list:
        _print_rows(chosen)
        return 0
    device = torch.device(options.device)
    if device.type == "cuda" and not torch.cuda.is_available():
        raise UserError("expected a CUDA device for --device cuda, found none that torch can use")
    if not 0 < options.seconds < math.inf:
        raise UserError(f"expected --seconds to be more than 0, got {options.seconds:g}")
    if options.threads is not None and options.threads < 1:
        raise UserError(f"expected --threads to be at least 1, got {options.threads}")
    if options.json is not None:
        _check_folder(options.json)
    if options.threads is not None:
        torch.set_num_threads(options.threads)
    # torch would print a warning about the way in which torchao registers itself.
    logging.getLogger("torch.utils._pytree").setLevel(logging.ERROR)

    native = (library.cuda() if device.type == "cuda" else library.cpu()) is not None
    print(
        f"{len(chosen)} rows on {device}, threads of torch: {torch.get_num_threads()}, "
        f"{'native kernels' if native else 'no native kernels (lip-fast doctor says why)'}, "
        f"about {options.seconds:g} s",
        flush=True,
    )
    records: list[dict[str, Any]] = []
    try:
        return 0 if _measure(chosen, device, options, records) else 1
    finally:
        # Written and printed also where Ctrl-C stopped the measuring.
        if options.json is not None:
            _write(options.json, device, native, records)
        if records:
            print(f"\n{render(chosen, records)}\n")
        print("These are the core rows; make bench in a checkout of the repository measures the full set.")


def _parse(arguments: Sequence[str]) -> argparse.Namespace:
    parser = Parser(
        prog="lip-fast bench",
        description="Time LIP beside what it replaces on this machine. Each result is checked first, against "
        "the same computation in float64: one that is wrong is not timed.",
        allow_abbrev=False,
    )
    parser.add_argument(
        "--rows", nargs="+", metavar="PATTERN", help="names of rows, with * and ? (default: all)"
    )
    parser.add_argument("--list", action="store_true", help="name the rows and measure nothing")
    parser.add_argument(
        "--device", choices=("cpu", "cuda"), default="cpu", help="cpu (default, also beside a GPU) or cuda"
    )
    parser.add_argument(
        "--seconds",
        type=float,
        default=SECONDS,
        metavar="N",
        help="for all rows together, about (default: %(default)g); rows that have no time left are skipped",
    )
    parser.add_argument("--threads", type=int, metavar="N", help="of torch (default: torch's own)")
    parser.add_argument(
        "--ours", action="store_true", help="time LIP alone, without what it is compared with"
    )
    parser.add_argument("--json", type=Path, metavar="OUT", help="write all that was found to this file")
    return parser.parse_all(arguments)


def _chosen(patterns: Sequence[str] | None) -> list[Row]:
    """The rows that a pattern fits, in their order."""
    keys = [row.key for row in rows.CORE]
    for pattern in patterns or ():
        if not fnmatch.filter(keys, pattern):
            raise unknown_name("row", pattern, keys)
    fits = [patterns is None or any(fnmatch.fnmatch(key, pattern) for pattern in patterns) for key in keys]
    return [row for row, fit in zip(rows.CORE, fits, strict=True) if fit]


def _print_rows(chosen: Sequence[Row]) -> None:
    lines = []
    for row in chosen:
        tail = "all" if row.tail_rank is None else row.tail_rank
        what = "samples" if row.kind == "one-shot" else "samples a step"
        sizes = f"{row.l} classes, {row.q} features, {row.k} directions kept, {tail} refitted, {row.n} {what}"
        lines.append((row.key, sizes))
    print(aligned(lines))


def _check_folder(path: Path) -> None:
    """Refuse a file that cannot be written before a minute of measuring is spent."""
    if path.is_dir():
        raise UserError(f"expected --json to be a file, found the folder {path}")
    try:
        with tempfile.TemporaryFile(dir=path.parent):
            pass
    except OSError as error:
        raise UserError(
            f"expected --json in a folder that can be written: {path}: {error.strerror}"
        ) from None


def _measure(
    chosen: Sequence[Row], device: torch.device, options: argparse.Namespace, records: list[dict[str, Any]]
) -> bool:
    """Measure the chosen rows into ``records``; returns whether no row is void."""
    # A sample is one call, so that each call finds a gradient, features and targets as after a backward pass.
    timer = Timer(device, sample_seconds=0, most_rounds=_ROUNDS, warm=True)
    spin_up(device)
    # Small rows first: the time that they do not need goes to the large rows.
    ordered = sorted(chosen, key=lambda row: row.l * row.q)
    cases = [(row.key, partial(_case, row, device, options.ours)) for row in ordered]
    # Variants composed of torch's decompositions draw from torch's global random state.
    with torch.random.fork_rng([device] if device.type == "cuda" else []):
        torch.manual_seed(0)
        return run_cases(cases, timer, options.seconds, records.append)


def _case(row: Row, device: torch.device, ours_alone: bool) -> Case:
    case = MAKERS[row.kind](row, device)
    return replace(case, variants=case.variants[:1], skipped={}, sums={}) if ours_alone else case


def _write(path: Path, device: torch.device, native: bool, records: Sequence[Mapping[str, Any]]) -> None:
    data = {
        "kind": "lip_fast bench",
        "datetime": datetime.now(UTC).isoformat(timespec="seconds"),
        "version": installed(),
        "commit": _commit(),
        "device": device.type,
        "native": native,
        "machine": describe(),
        "rows": records,
    }
    write_whole(path, json.dumps(data, indent=1) + "\n")


def _commit() -> dict[str, Any] | None:
    """The commit of this package's checkout, and whether files differ from it; None outside a checkout."""
    try:
        # The environment with this package may lie in the checkout of another project.
        _git("ls-files", "--error-unmatch", "__init__.py")
        changes = _git("status", "--porcelain", "--", ".", ":/csrc", ":/setup.py")
        return {"id": _git("rev-parse", "HEAD"), "dirty": bool(changes)}
    except (OSError, subprocess.CalledProcessError):
        return None


def _git(*arguments: str) -> str:
    folder = Path(lip_fast.__file__).parent
    command = ["git", *arguments]
    return subprocess.run(command, cwd=folder, capture_output=True, text=True, check=True).stdout.strip()
