"""Turn a benchmark result into Markdown: ``python -m benchmarks.report RESULT.json [--write README.md]``.

The tables are printed, or written between the markers of a Markdown file. A result that cannot be vouched
for is refused with one line and exit code 2, and nothing is written: one that is not of these benchmarks,
lacks a row, a peer or a check, has a failed check, or was measured on a tree that is not a known commit.
"""

import argparse
import json
import math
import os
import re
import subprocess
import sys
import tempfile
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks.command import Parser, Refused, answer
from benchmarks.rows import BATCH, ROWS, Row, Target

__all__ = [
    "BEGIN",
    "END",
    "Refused",
    "Result",
    "load",
    "main",
    "read_text",
    "render",
    "replace_between_markers",
    "write_whole",
]

BEGIN = "<!-- benchmarks:begin -->"
END = "<!-- benchmarks:end -->"
RERUN = "make bench"
# Quartiles of one variant this far apart: something else was running. An idle machine stays below 1.2.
NOISY = 1.5
_MACHINE = {"cpu": str, "cores": int, "threads": int, "system": str, "python": str, "torch": str}


@dataclass(frozen=True)
class Entry:
    """One measured row: times in microseconds, medians; memory in bytes."""

    row: Row
    ours: float
    peers: Mapping[str, float]
    quartiles: tuple[float, float]
    memory: Mapping[str, int]
    error: float
    bound: float


@dataclass(frozen=True)
class Result:
    """A benchmark result that was found complete."""

    entries: tuple[Entry, ...]
    machine: Mapping[str, Any]
    commit: str
    dirty: bool
    date: str

    def of(self, kind: str) -> Iterator[Entry]:
        """The entries of one kind of row, in the order of the rows."""
        return (entry for entry in self.entries if entry.row.kind == kind)


# Reading -----------------------------------------------------------------------------------------------


def load(path: Path, *, checkout: Path, allow_dirty: bool = False) -> Result:
    """Read a result of pytest-benchmark and check that it can be vouched for.

    Args:
        path: the JSON file.
        checkout: a folder of the git checkout in which the measured commit must exist; where it is in none,
            the commit cannot be looked up and only its form is checked.
        allow_dirty: accept a tree with changes, or an unknown commit. The report then says so.

    Raises:
        Refused: it cannot.
    """
    try:
        data = json.loads(path.read_bytes())
    except OSError as error:
        raise Refused(f"cannot read {path}: {error.strerror}") from None
    except ValueError:  # not UTF-8, or not JSON
        raise Refused(f"{path} is not JSON") from None
    if not isinstance(data, dict) or not isinstance(data.get("benchmarks"), list):
        raise Refused(f"{path} is not a result of pytest-benchmark")
    machine = _machine(data.get("machine_info"))
    commit, dirty = _commit(data.get("commit_info"), checkout, allow_dirty)
    found: dict[str, Entry] = {}
    rows = {row.key: row for row in ROWS}
    for benchmark in data["benchmarks"]:
        extra = benchmark.get("extra_info") if isinstance(benchmark, dict) else None
        key = extra.get("row") if isinstance(extra, dict) else None
        if not isinstance(key, str) or key not in rows:
            raise Refused(f"{path} holds an entry that is not a row of these benchmarks: {key!r}")
        if key in found:
            raise Refused(f"{path} holds row {key} twice")
        found[key] = _entry(rows[key], benchmark)
    missing = [key for key in rows if key not in found]
    if missing:
        raise Refused(f"no result for {', '.join(missing)}: a check failed or the run was not complete")
    date = data.get("datetime")
    if not isinstance(date, str) or not re.match(r"\d{4}-\d{2}-\d{2}T", date):
        raise Refused(f"expected the date of the run, got {date!r}")
    return Result(tuple(found[key] for key in rows), machine, commit, dirty, date[:10])


def _machine(info: object) -> dict[str, Any]:
    if not isinstance(info, dict):
        raise Refused("the result does not describe the machine")
    for name, kind in _MACHINE.items():
        if not isinstance(info.get(name), kind):
            raise Refused(
                f"expected machine_info.{name}, got {info.get(name)!r}: not a result of these benchmarks"
            )
    return {name: info[name] for name in _MACHINE}


def _commit(info: object, checkout: Path, allow_dirty: bool) -> tuple[str, bool]:
    info = info if isinstance(info, dict) else {}
    commit, dirty = info.get("id"), info.get("dirty") is not False
    known = isinstance(commit, str) and re.fullmatch(r"[0-9a-f]{40}", commit) is not None
    if known and _git(checkout, "rev-parse", "--is-inside-work-tree"):
        known = _git(checkout, "cat-file", "-e", f"{commit}^{{commit}}")
    if not allow_dirty:
        if not known:
            raise Refused(f"measured on an unknown commit, {commit!r} (--allow-dirty accepts it)")
        if dirty:
            raise Refused("measured on a tree with changes that are in no commit (--allow-dirty accepts it)")
    return (str(commit) if known else "unknown"), dirty


def _git(folder: Path, *arguments: str) -> bool:
    """Whether the command succeeds; False where there is no git."""
    try:
        done = subprocess.run(["git", *arguments], cwd=folder, capture_output=True)
    except OSError:
        return False
    return done.returncode == 0


_STATS = ("median", "q1", "q3")


def _entry(row: Row, benchmark: Mapping[str, Any]) -> Entry:
    extra, stats = benchmark["extra_info"], benchmark.get("stats")
    if not isinstance(stats, dict):
        raise Refused(f"row {row.key} has no timings")
    own = extra.get("ours")
    if isinstance(own, dict):  # timed elsewhere, beside its peers
        stats = {name: _positive(own.get(f"{name}_us"), f"{name} of row {row.key}") / 1e6 for name in _STATS}
    ours, low, high = (1e6 * _positive(stats.get(name), f"{name} of row {row.key}") for name in _STATS)
    measured = extra.get("peers")
    peers = {}
    for name in row.peers:
        peer = measured.get(name) if isinstance(measured, dict) else None
        value = peer.get("median_us") if isinstance(peer, dict) else None
        peers[name] = _positive(value, f"median of {name} in row {row.key}")
    gates = _gates(row, extra.get("gates"))
    memory = {}
    if row.target("memory", "reference"):
        sizes = extra.get("extra_peak_bytes")
        for name in ("ours", "reference"):
            value = sizes.get(name) if isinstance(sizes, dict) else None
            memory[name] = int(_positive(value, f"peak memory of {name} in row {row.key}"))
    error, bound = gates["distance"]
    return Entry(row, ours, peers, (low, high), memory, error, bound)


def _gates(row: Row, recorded: object) -> dict[str, tuple[float, float]]:
    """(value, bound) of each check, all of which passed."""
    gates = {}
    for gate in recorded if isinstance(recorded, list) else []:
        if isinstance(gate, dict) and isinstance(gate.get("name"), str):
            gates[gate["name"]] = gate
    passed = {}
    for name in row.gates:
        gate = gates.get(name)
        if gate is None:
            raise Refused(f"row {row.key} lacks the check {name!r}")
        value, bound, control = (_number(gate.get(key)) for key in ("value", "bound", "control"))
        # Judged by its numbers as well: a flag is easily copied. Comparisons with NaN are false.
        if gate.get("passed") is not True or not value <= bound < control:
            raise Refused(f"row {row.key} failed the check {name!r}: {value:.3g}, at most {bound:.3g}")
        passed[name] = value, bound
    return passed


def _number(value: object) -> float:
    """A finite number; NaN for anything else."""
    if isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value):
        return float(value)
    return math.nan


def _positive(value: object, what: str) -> float:
    number = _number(value)
    if not number > 0:
        raise Refused(f"expected the {what} as a positive number, got {value!r}")
    return number


# Writing -----------------------------------------------------------------------------------------------


def render(result: Result) -> str:
    """The report in Markdown, without the markers."""
    sections = (_about, _one_shot, _truncated, _exact, _optimizer, _statistics, _small_svd, _tail_svd, _epoch)
    parts = [section(result) for section in sections]
    noisy = [e.row.key for e in result.entries if e.quartiles[1] > NOISY * e.quartiles[0]]
    if noisy:
        parts.append(
            f"The machine was busy: our quartiles are more than {NOISY:g}x apart in {', '.join(noisy)}. "
            "Their numbers are not to be trusted."
        )
    return "\n\n".join(parts)


def _about(result: Result) -> str:
    machine = result.machine
    commit = f"commit `{result.commit[:12]}`" if result.commit != "unknown" else "unknown commit"
    if result.dirty:
        commit += " with changes"
    return (
        f"{machine['cpu']}, {_count(machine['cores'], 'core')}, "
        f"{_count(machine['threads'], 'thread')}, {machine['system']}; "
        f"Python {machine['python']}, torch {machine['torch']}; {commit}, {result.date}. "
        f"Rerun with `{RERUN}`.\n\n"
        "Medians. The variants of a row take turns in one run, so that its ratios are of times measured side "
        "by side. Before anything is timed each result is compared with `lip_fast.reference` in float64: "
        "*error* is our relative Frobenius distance from it. Ratios are shown with their target where there "
        "is one: ✓ met, ✗ missed."
    )


def _one_shot(result: Result) -> str:
    blocks = []
    for entry in result.of("one-shot"):
        row = entry.row
        ours, peer = entry.memory["ours"], entry.memory["reference"]
        memory_target = row.target("memory", "reference")
        floor = entry.peers["floor"]
        table = _table(
            ["", "`lip_fast.lip`", "`reference.lip`", "ratio", "floor", "ours / floor"],
            [
                [
                    "time",
                    _time(entry.ours),
                    _time(entry.peers["reference"]),
                    _faster(entry, "reference"),
                    _time(floor),
                    f"{entry.ours / floor:.2f}x",
                ],
                [
                    "extra peak memory",
                    _size(ours),
                    _size(peer),
                    f"{ours / peer:.2f}x of it" + _verdict(memory_target, ours, peer),
                    "",
                    "",
                ],
                ["error", _error(entry), "", "", "", ""],
            ],
        )
        blocks.append(
            f"**One-shot LIP**, n = {row.n}, q = {row.q}, l = {row.l}, k = {row.k}, float32, from class "
            "indices. The reference's label matrix is part of its cost. *Floor* is the product of the "
            "features with the refitted directions, alone.\n\n" + table
        )
    return "\n\n".join(blocks)


def _truncated(result: Result) -> str:
    lines = []
    for entry in result.of("truncated"):
        row, peers = entry.row, entry.peers
        slower = f"{entry.ours / peers['floor']:.2f}x"
        lines.append(
            [
                f"{row.l} x {row.q}",
                f"{row.k} + {row.tail_rank}",
                _time(entry.ours),
                _time(peers["floor"]),
                slower + _verdict(row.target("time", "floor"), entry.ours, peers["floor"]),
                _time(peers["full SVD"]),
                _faster(entry, "full SVD"),
                _time(peers["svd_lowrank"]),
                _faster(entry, "svd_lowrank"),
                _error(entry),
            ]
        )
    header = ["head", "k + r", "ours", "floor", "ours / floor", "full SVD", "ours is"]
    header += ["`svd_lowrank`", "ours is", "error"]
    return (
        "**One optimizer step with truncated LIP**: `AdamW(fused=True)` and `LIP(..., tail_rank=r, "
        f'rest="drop")`, warm, batch {BATCH}, float32. *Floor* is the base step plus the three products that '
        "no such step can do without (M V, Mᵀ Y and the rebuild), timed alone. The other two are the same "
        "step with M decomposed by `torch.linalg.svd`, and by `torch.svd_lowrank` with two power "
        "iterations and as many columns. The 10-class head has fewer classes than columns: there LIP takes "
        "the exact path.\n\n" + _table(header, lines)
    )


def _exact(result: Result) -> str:
    lines = [
        [
            f"{entry.row.l} x {entry.row.q}",
            str(entry.row.k),
            _time(entry.ours),
            _time(entry.peers["reference"]),
            _faster(entry, "reference"),
            _error(entry),
        ]
        for entry in result.of("exact")
    ]
    return (
        "**One optimizer step with exact LIP**: `LIP(..., tail_rank=None)`, k near 0.9 min(l, q), against "
        "the same step with `reference.lip_step`.\n\n"
        + _table(["head", "k", "ours", "reference", "ours is", "error"], lines)
    )


def _optimizer(result: Result) -> str:
    lines = []
    for entry in result.of("optimizer"):
        row, peers = entry.row, entry.peers
        lines.append(
            [
                f"{row.l} x {row.q}",
                row.rest,
                _time(entry.ours),
                _time(peers["base step"]),
                _time(peers["three products"]),
                f"{entry.ours / peers['floor']:.2f}x"
                + _verdict(row.target("time", "floor"), entry.ours, peers["floor"]),
                _error(entry),
            ]
        )
    plain = []
    for entry in result.of("plain-optimizer"):
        row, base = entry.row, entry.peers["base step"]
        ratio = f"{entry.ours / base:.2f}x" + _verdict(row.target("time", "base step"), entry.ours, base)
        plain.append([f"{row.n}, {row.q} wide", _time(entry.ours), _time(base), ratio])
    first = next(result.of("optimizer")).row
    header = ["head", "rest", "`LIPAdamW`", "`AdamW`", "three products", "ours / both", "error"]
    return (
        f"**LIP inside of the optimizer**: a step of `LIPAdamW(fused=True)` that LIP acts on, k = {first.k}, "
        f"r = {first.tail_rank}, warm, batch {BATCH}, float32. *Both* is `AdamW(fused=True)` and the three "
        "products, each timed alone.\n\n"
        + _table(header, lines)
        + "\n\nOn a network without any weight for LIP, to the same bits as `AdamW(fused=True)`:\n\n"
        + _table(["linear layers", "`LIPAdamW`", "`AdamW`", "ours / it"], plain)
    )


def _statistics(result: Result) -> str:
    lines = []
    for entry in (*result.of("statistics"), *result.of("ridge-path")):
        row = entry.row
        if row.kind == "statistics":
            what = f"`update`, {row.n} rows streamed"
            others = {"products": "X\u1d40 X alone"}
        else:
            what = f"`ridge_path`, {row.k} alphas"
            others = {"one alpha": "one alpha", "solve": "`torch.linalg.solve`, one alpha"}
        for peer, label in others.items():
            ratio = entry.ours / entry.peers[peer]
            verdict = _verdict(row.target("time", peer), entry.ours, entry.peers[peer])
            cells = [what, _time(entry.ours), label, _time(entry.peers[peer]), f"{ratio:.2f}x" + verdict]
            lines.append([*cells, _error(entry)])
    return (
        "**Label statistics**, q = 512, l = 100, from float32 features and class indices into float64 "
        "accumulators.\n\n" + _table(["", "ours", "beside", "it takes", "ours / it", "error"], lines)
    )


def _small_svd(result: Result) -> str:
    lines = [
        [
            str(entry.row.l),
            _time(entry.ours),
            _time(entry.peers["cold"]),
            _time(entry.peers["linalg.svd"]),
            _time(entry.peers["linalg.eigh"]),
            _time(entry.peers["op"]),
            _error(entry),
        ]
        for entry in result.of("small-svd")
    ]
    header = ["m", "native, warm", "native, cold", "`torch.linalg.svd`", "`torch.linalg.eigh`"]
    return (
        "**The solver of the small problem**, m x m, float32: one-sided Jacobi in one thread, *warm* from "
        "the decomposition of a matrix 1% away. It is there for GPUs, where the library waits for the host; "
        "on a CPU `ops.small_svd` takes whichever was faster when measured. *eigh* is of the symmetric "
        "TᵀT.\n\n" + _table([*header, "`ops.small_svd`, cold", "error"], lines)
    )


def _tail_svd(result: Result) -> str:
    lines = [
        [
            f"{entry.row.l} x {entry.row.q}",
            str(entry.row.k),
            _time(entry.ours),
            _time(entry.peers["default"]),
            _faster(entry, "default"),
            _error(entry),
        ]
        for entry in result.of("tail-svd")
    ]
    return (
        "**The exact decomposition of a small head**: all singular values and the vectors below the kept "
        "ones, by the native kernel and by plain torch.\n\n"
        + _table(["head", "k", "native", "plain torch", "native is", "error"], lines)
    )


def _epoch(result: Result) -> str:
    lines = []
    for entry in result.of("epoch"):
        row, peers = entry.row, entry.peers
        ratio = f"{entry.ours / peers['by hand']:.2f}x"
        lines.append(
            [
                f"{row.n} rows",
                _time(entry.ours),
                _time(peers["by hand"]),
                ratio + _verdict(row.target("time", "by hand"), entry.ours, peers["by hand"]),
                _time(peers["LIP in the step"]),
                f"{peers['LIP in the step'] / entry.ours:.2f}x",
                _error(entry),
            ]
        )
    header = ["epoch", "harness", "by hand", "harness / by hand", "with LIP", "LIP / without", "error"]
    return (
        "**An epoch of the training harness**: its default network on data of the size of Fashion-MNIST, "
        "batches of 64, scored on training and test part; *by hand* is the shortest loop over the same "
        "tensors, scored on the test part. LIP acts in each step, on a head of 10 classes.\n\n"
        + _table(header, lines)
    )


def _table(header: Sequence[str], lines: Iterable[Sequence[str]]) -> str:
    rule = ["---"] + ["---:"] * (len(header) - 1)
    return "\n".join("| " + " | ".join(line) + " |" for line in (header, rule, *lines))


def _faster(entry: Entry, peer: str) -> str:
    ours, theirs = entry.ours, entry.peers[peer]
    ratio = theirs / ours
    words = f"{ratio:.1f}x faster" if ratio >= 1 else f"{1 / ratio:.1f}x slower"
    return words + _verdict(entry.row.target("time", peer), ours, theirs)


def _verdict(target: Target | None, ours: float, peer: float) -> str:
    if target is None:
        return ""
    return f" ({target} {'✓' if target.met(ours, peer) else '✗'})"


def _error(entry: Entry) -> str:
    return f"{entry.error:.0e} (≤ {entry.bound:.0e})"


def _time(microseconds: float) -> str:
    if microseconds < 1000:
        return f"{microseconds:.0f} µs"
    milliseconds = microseconds / 1000
    return f"{milliseconds:.2f} ms" if milliseconds < 10 else f"{milliseconds:.0f} ms"


def _size(number: int) -> str:
    return f"{number / 1e6:.1f} MB"


def _count(number: int, noun: str) -> str:
    return f"{number} {noun}" + ("" if number == 1 else "s")


def replace_between_markers(text: str, report: str, begin: str = BEGIN, end: str = END) -> str:
    """``text`` with the report between its markers, everything else as it was.

    Raises:
        Refused: the markers are not there, once each and in order.
    """
    if text.count(begin) != 1 or text.count(end) != 1 or text.index(begin) > text.index(end):
        raise Refused(f"expected the markers {begin} and {end} once each, in this order")
    before, rest = text.split(begin)
    _, after = rest.split(end)
    return f"{before}{begin}\n{report}\n{end}{after}"


def read_text(path: Path) -> str:
    """A text file with its line endings as they are.

    Raises:
        Refused: it cannot be read, or is no UTF-8.
    """
    try:
        return path.read_bytes().decode()
    except OSError as error:
        raise Refused(f"cannot read {path}: {error.strerror}") from None
    except UnicodeDecodeError:
        raise Refused(f"{path} is not UTF-8 text") from None


def write_whole(path: Path, content: bytes) -> None:
    """Replace the file as a whole, or leave it as it was."""
    descriptor, temporary = tempfile.mkstemp(dir=path.resolve().parent, prefix=f".{path.name}.")
    try:
        with os.fdopen(descriptor, "wb") as file:
            file.write(content)
        # mkstemp makes files that only their owner can read.
        mode = path.stat().st_mode & 0o777 if path.exists() else 0o644
        os.chmod(temporary, mode)
        os.replace(temporary, path.resolve())
    except BaseException:
        os.unlink(temporary)
        raise


def _figure(result: Result) -> bytes:
    """A PNG with one panel per kind of row: median times with quartiles of ours, on a logarithmic axis."""
    try:
        from matplotlib.figure import Figure
    except ImportError:
        raise Refused("--figure needs matplotlib: pip install 'lip-fast[harness]'") from None
    import io

    titles = {"one-shot": "one-shot lip()", "truncated": "truncated step", "exact": "exact step"}
    figure = Figure(figsize=(11, 4.2), layout="constrained")
    axes = figure.subplots(1, len(titles), sharex=True)
    for axis, (kind, title) in zip(axes, titles.items(), strict=True):
        labels: list[str] = []
        for entry in result.of(kind):
            name = f"{entry.row.l}x{entry.row.q}"
            shown = {"ours": entry.ours, **entry.peers}
            for part in ("base step", "three products"):  # their sum is the floor
                shown.pop(part, None)
            for variant, microseconds in shown.items():
                position = len(labels)
                ours = variant == "ours"
                color = "tab:blue" if ours else "0.5"
                if ours:
                    low, high = entry.quartiles
                    axis.plot([low / 1e3, high / 1e3], [position] * 2, color=color)
                # Points: a bar has no beginning on a logarithmic axis.
                axis.plot(microseconds / 1e3, position, "o", color=color)
                labels.append(f"{name} {variant}")
        axis.set_yticks(range(len(labels)), labels, fontsize=8)
        axis.invert_yaxis()
        axis.set_xscale("log")
        axis.grid(axis="x", alpha=0.3)
        axis.set_xlabel("median time, ms")
        axis.set_title(title)
    stream = io.BytesIO()
    figure.savefig(stream, format="png", dpi=120)
    return stream.getvalue()


# Command line --------------------------------------------------------------------------------------------


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command; returns its exit code."""
    parser = Parser(prog="python -m benchmarks.report", description="Report a benchmark result.")
    parser.add_argument("result", type=Path, help="JSON written by pytest --benchmark-json")
    parser.add_argument("--write", type=Path, metavar="README.md", help="replace what is between its markers")
    parser.add_argument("--figure", type=Path, metavar="OUT.png", help="also draw the times")
    parser.add_argument(
        "--allow-dirty", action="store_true", help="accept uncommitted changes, unknown commits"
    )
    options = parser.parse_args(arguments)
    return answer(parser, lambda: _run(options))


def _run(options: argparse.Namespace) -> None:
    if options.figure is not None and options.figure.suffix.lower() != ".png":
        raise Refused(f"expected a .png file for --figure, got {options.figure}")
    checkout = options.write.resolve().parent if options.write is not None else Path.cwd()
    result = load(options.result, checkout=checkout, allow_dirty=options.allow_dirty)
    report = render(result)
    # Everything that can be refused is refused before the first file is written.
    text = None
    if options.write is not None:
        before = read_text(options.write)
        try:
            text = replace_between_markers(before, report)
        except Refused as refusal:
            raise Refused(f"{options.write}: {refusal}") from None
    picture = None if options.figure is None else _figure(result)
    if picture is not None:
        write_whole(options.figure, picture)
    if text is None:
        print(report)
    else:
        write_whole(options.write, text.encode())


if __name__ == "__main__":
    sys.exit(main())
