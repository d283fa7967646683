"""Two commits timed side by side on this machine: ``python -m benchmarks.compare BASE [HEAD]``.

Each commit is checked out into a folder of its own, which is removed again, and ``lip-fast bench`` runs in
fresh processes of either in turn, in the other order from round to round. What is compared are commits:
without HEAD the one that is checked out, and then a tree with changes is refused, for they would not be
measured. Where csrc and setup.py are the same in both commits and the checkout, both get the checkout's
native CPU kernels as they are; otherwise each commit's are built.

A row has a ratio d = log(head / base) of the medians of ours for each round. It is a regression or an
improvement only where

- the interval of Student's t for the mean of d excludes 0, at 99% for all rows together (Bonferroni), and
- the mean is larger than the noise: the root mean square of the same ratio between consecutive runs of one
  and the same commit in this run.

Where nothing changed, at most 1 run in 100 finds a change, and 1 in 200 a regression. With the default number
of rounds, all rows and a noise of 3% in the median of either process, more than 95 in 100 find a row that has
become 10% slower: tests/test_benchmark_compare.py simulates both.

A machine that becomes slower or faster meanwhile does so for both commits of a round, and alternating orders
cancel what is left. So nothing is divided by the time of a peer in the same process: that would add the
peer's noise, and hide what slows both down.

Exit code: 0; 1 where a row is a regression, or void at HEAD alone; 2 where the comparison is refused.
"""

import fnmatch
import functools
import itertools
import json
import math
import signal
import statistics
import subprocess
import sys
from argparse import Namespace
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Literal

from scipy import stats

from benchmarks import checkout, worktrees
from benchmarks.command import Parser, Refused, answer
from lip_fast.cli.atomic import write_whole

__all__ = ["ROUNDS", "Change", "compare", "main", "render"]

# Of 8 rounds 70% would find what of 12 more than 95% do.
ROUNDS = 12
SECONDS = 60.0
# That no row differs is contradicted wrongly in so many runs, at most.
_ERROR = 0.01
# What measures, in the commits themselves.
_BENCH = "lip_fast/bench/command.py"
# Folders of equal length: where a process finds its files decides where its memory begins.
_NAMES = ("base", "head")

Runs = Mapping[str, Sequence[float]]
"""Microseconds of a row by commit, "base" and "head", a round each."""


@dataclass(frozen=True)
class Change:
    """What became of a row.

    Attributes:
        ratio: head / base, the geometric mean over the rounds.
        low: where the interval of the ratio begins.
        high: where it ends.
        noise: the root mean square of log ratios between consecutive runs of one commit.
        verdict: what follows.
    """

    ratio: float
    low: float
    high: float
    noise: float
    verdict: Literal["regression", "improvement", "no change seen"]


def compare(runs: Runs, rows: int) -> Change:
    """Compare the times of one row.

    Args:
        runs: at least two rounds.
        rows: how many are compared: the interval of each is so much wider.
    """
    base, head = ([math.log(time) for time in runs[name]] for name in _NAMES)
    ratios = [b - a for a, b in zip(base, head, strict=True)]
    mean = statistics.fmean(ratios)
    half = _quantile(len(ratios), rows) * statistics.stdev(ratios) / math.sqrt(len(ratios))
    same = [b - a for times in (base, head) for a, b in itertools.pairwise(times)]
    noise = math.sqrt(statistics.fmean([step * step for step in same]))
    changed = abs(mean) > half and abs(mean) > noise
    verdict: Literal["regression", "improvement", "no change seen"] = "no change seen"
    if changed:
        verdict = "regression" if mean > 0 else "improvement"
    return Change(math.exp(mean), math.exp(mean - half), math.exp(mean + half), noise, verdict)


@functools.cache
def _quantile(rounds: int, rows: int) -> float:
    """Student's, for one row of so many."""
    return float(stats.t.ppf(1 - _ERROR / (2 * rows), rounds - 1))


# Commits --------------------------------------------------------------------------------------------------


def _commits(base: str, head: str | None) -> dict[str, str]:
    """The hash of either commit.

    Raises:
        Refused: there is none, it has nothing to be measured with, or changes of the checkout are meant.
    """
    found = checkout.tree()
    if found is None:
        raise Refused(f"{checkout.ROOT} is not a git checkout: there are no commits to compare")
    if head is None and found[1]:
        raise Refused("the checkout has changes that would not be measured: commit them, or name HEAD")
    commits = {}
    for name, revision in zip(_NAMES, (base, head or found[0]), strict=True):
        commits[name] = worktrees.commit_of(revision)
        if worktrees.git("cat-file", "-e", f"{commits[name]}:{_BENCH}", check=False).returncode:
            raise Refused(f"{revision} has no lip-fast bench ({_BENCH}) to be measured with")
    return commits


# Measuring ------------------------------------------------------------------------------------------------


def _bench(tree: Path, *arguments: str, result: Path | None = None) -> str:
    """What ``lip-fast bench`` of a worktree prints.

    Raises:
        Refused: it broke. Where a row is void it ends with 1 and leaves a result all the same.
    """
    settings = [] if result is None else ["--json", str(result)]
    command = [sys.executable, "-m", "lip_fast", "bench", *arguments, *settings]
    environment = worktrees.environment_of(tree)
    done = subprocess.run(command, cwd=tree, env=environment, capture_output=True, text=True)
    if done.returncode and not (done.returncode == 1 and result is not None and result.exists()):
        why = worktrees.last_line(done.stderr) or "without a word"
        raise Refused(f"lip-fast bench of {tree.name} ended with {done.returncode}: {why}")
    return done.stdout


def _keys(trees: Mapping[str, Path], patterns: Sequence[str] | None) -> tuple[list[str], list[str]]:
    """Names of the rows that are compared, and why others are not.

    Raises:
        Refused: none is left.
    """
    lists = {
        name: [line.split()[0] for line in _bench(tree, "--list").splitlines()]
        for name, tree in trees.items()
    }
    every = list(dict.fromkeys(lists["base"] + lists["head"]))
    for pattern in patterns or ():
        if not fnmatch.filter(every, pattern):
            raise Refused(f"no row is called {pattern!r}: known are {', '.join(every)}")
    wanted = [key for key in every if not patterns or any(fnmatch.fnmatch(key, p) for p in patterns)]
    alone = {
        key: "base" if key in lists["base"] else "head"
        for key in wanted
        if not all(key in listed for listed in lists.values())
    }
    both = [key for key in wanted if key not in alone]
    if not both:
        raise Refused(f"no row is in both commits: {', '.join(wanted)}")
    return both, [f"{key}: in {name} only" for key, name in alone.items()]


@dataclass
class _Measured:
    """All runs: records of rows by name and commit, a round each, and what else the first run says."""

    records: dict[str, dict[str, list[dict[str, Any]]]]
    facts: dict[str, Any]


def _measure(
    trees: Mapping[str, Path], commits: Mapping[str, str], keys: Sequence[str], options: Namespace
) -> _Measured:
    measured = _Measured({key: {name: [] for name in _NAMES} for key in keys}, {})
    for turn in range(options.rounds):
        for name in _NAMES if turn % 2 == 0 else _NAMES[::-1]:
            result = trees[name].parent / f"{name}-{turn}.json"
            settings = ("--ours", "--seconds", f"{options.seconds:g}", "--rows", *keys)
            _bench(trees[name], *settings, result=result)
            data = json.loads(result.read_text())
            if (data["commit"] or {}).get("id") != commits[name]:
                raise Refused(f"what ran for {name} was not {commits[name][:12]} but {data['commit']}")
            facts = {"native": data["native"], "machine": data["machine"]}
            if facts["native"] != measured.facts.setdefault("native", facts["native"]):
                raise Refused("one of the commits has run with native kernels and the other on plain torch")
            measured.facts = facts
            for record in data["rows"]:
                measured.records[record["row"]][name].append(record)
        worktrees.say(f"round {turn + 1} of {options.rounds}")
    return measured


def _missing(records: Mapping[str, Sequence[Mapping[str, Any]]]) -> tuple[str, bool] | None:
    """Why a row cannot be compared, and whether that is a mistake of HEAD; None where it can."""
    reasons = {
        name: next((f"void: {r['void']}" for r in records[name] if r["void"]), None)
        or next((f"skipped: {r['skipped']}" for r in records[name] if r.get("skipped")), None)
        for name in _NAMES
    }
    said = [f"{reason} at {name}" for name, reason in reasons.items() if reason]
    void = {name: bool(reason and reason.startswith("void")) for name, reason in reasons.items()}
    return ("; ".join(said), void["head"] and not void["base"]) if said else None


def _times(records: Mapping[str, Sequence[Mapping[str, Any]]]) -> Runs:
    return {name: [r["times"][r["ours"]]["median_us"] for r in records[name]] for name in _NAMES}


# The report -----------------------------------------------------------------------------------------------


def render(data: Mapping[str, Any]) -> str:
    """The comparison in Markdown."""
    machine = data["machine"]
    lines = [
        f"{data['base'][:12]} (base) and {data['head'][:12]} (head), {data['rounds']} rounds in turn: "
        f"{machine['processor']}, threads of torch: {machine['threads']}, torch {machine['torch']}, "
        f"{'native kernels' if data['native'] else 'plain torch: there are no native kernels'}",
        "",
        "| row | base | head | head/base | 99% interval | noise | verdict |",
        "| --- | ---: | ---: | ---: | ---: | ---: | --- |",
    ]
    for row in data["rows"]:
        base, head = (f"{statistics.median(row['us'][name]):.4g} us" for name in _NAMES)
        verdict = f"**{row['verdict']}**" if row["verdict"] == "regression" else row["verdict"]
        lines.append(
            f"| {row['row']} | {base} | {head} | {row['ratio']:.3f} | {row['low']:.3f} to {row['high']:.3f} "
            f"| {row['noise']:.1%} | {verdict} |"
        )
    return "\n".join([*lines, *([""] if data["not_compared"] else []), *data["not_compared"]])


def main(arguments: Sequence[str] | None = None) -> int:
    """Compare two commits; returns the exit code."""
    parser = Parser(
        prog="python -m benchmarks.compare", description="Time two commits side by side on this machine."
    )
    parser.add_argument("base", metavar="BASE", help="a commit")
    parser.add_argument("head", metavar="HEAD", nargs="?", help="another (default: what is checked out)")
    parser.add_argument("--rows", nargs="+", metavar="PATTERN", help="names, with * and ? (default: all)")
    parser.add_argument("--rounds", type=int, default=ROUNDS, metavar="N", help="default: %(default)s")
    parser.add_argument(
        "--seconds",
        type=float,
        default=SECONDS,
        metavar="S",
        help="of each process, about (default: %(default)g)",
    )
    parser.add_argument(
        "--json", type=Path, metavar="OUT", help="write the comparison and all times to this file"
    )
    options = parser.parse_args(arguments)
    if options.rounds < 2:
        parser.error(f"--rounds: expected at least 2, got {options.rounds}")
    if not 0 < options.seconds < math.inf:
        parser.error(f"--seconds: expected more than 0, got {options.seconds:g}")
    if options.json is not None and not options.json.absolute().parent.is_dir():
        parser.error(f"--json: there is no folder {options.json.parent}")
    worse: list[str] = []
    before = signal.signal(signal.SIGTERM, _end)
    try:
        code = answer(parser, lambda: worse.extend(_compare(options)))
    except KeyboardInterrupt:
        print("benchmarks.compare: stopped", file=sys.stderr)
        return 130
    finally:
        signal.signal(signal.SIGTERM, before)
    return code or int(bool(worse))


def _end(*_: object) -> None:
    """Leave as after an error, so that the worktrees are removed."""
    raise SystemExit(128 + signal.SIGTERM)


def _compare(options: Namespace) -> list[str]:
    """Compare, print and write; returns the rows in which HEAD is worse."""
    commits = _commits(options.base, options.head)
    with worktrees.checked_out(commits) as trees:
        worktrees.put_native(trees, commits)
        keys, notes = _keys(trees, options.rows)
        minutes = 2 * options.rounds * options.seconds / 60
        worktrees.say(f"{len(keys)} rows, {options.rounds} rounds, about {minutes:.0f} minutes")
        measured = _measure(trees, commits, keys, options)
    worse, found = [], {}
    for key, records in measured.records.items():
        missing = _missing(records)
        if missing is None:
            found[key] = _times(records)
            continue
        notes.append(f"{key}: {missing[0]}")
        worse += [key] * missing[1]
    if not found and not worse:
        raise Refused(f"no row was measured in every round: {'; '.join(notes)}")
    changes = {key: compare(runs, len(found)) for key, runs in found.items()}
    worse += [key for key, change in changes.items() if change.verdict == "regression"]
    data = {
        "kind": "lip_fast comparison",
        "datetime": datetime.now(UTC).isoformat(timespec="seconds"),
        **commits,
        "rounds": options.rounds,
        "seconds": options.seconds,
        **measured.facts,
        "rows": [{"row": key, "us": found[key], **asdict(change)} for key, change in changes.items()],
        "not_compared": notes,
    }
    print(render(data), flush=True)
    if options.json is not None:
        write_whole(options.json, json.dumps(data, indent=1) + "\n")
    return worse


if __name__ == "__main__":
    sys.exit(main())
