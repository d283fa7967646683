"""Two trees of this repository run on the same seeds and compared bit for bit:
``python -m benchmarks.same_bits BASE [HEAD]``.

BASE is a commit; HEAD is another, or the folder of a checkout, and by default this checkout: as it is, with
changes that are not committed and the native kernels that were built last. The cases of
:mod:`benchmarks.bit_cases` run in fresh processes of either tree, with one thread. What they return (weights,
states, counts) must have the same keys, dtypes and bits. States that BASE has saved halfway are loaded in
both trees.

Where csrc and setup.py are the same in the commits and in this checkout, commits get copies of the checkout's
native CPU kernels; otherwise the kernels of each commit are built, which takes half a minute.

Exit code: 0; 1 where a case differs, or fails in one tree or both; 2 where the comparison is refused.
"""

import argparse
import fnmatch
import math
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from benchmarks import bit_cases, checkout, worktrees
from benchmarks.command import Parser, Refused, answer

__all__ = ["differences", "main", "verdict"]

# Appended, so that no module of a tree or a library is hidden by one of this folder.
_PROGRAM = "import sys; sys.path.append(sys.argv.pop(1)); from bit_cases.program import main; main()"
# Seconds that a world may take on a machine that has other things to do.
_PATIENCE = 900

# Comparing ------------------------------------------------------------------------------------------------


def differences(base: Any, head: Any, where: str = "") -> list[str]:
    """Where two results differ, and how; nothing where they are the same bit for bit.

    A NaN is the same as any other NaN; 0 and -0 differ.

    Args:
        base: nested dictionaries, lists and tuples of tensors and plain values.
        head: likewise.
        where: in the result of a case both are.
    """
    if type(base) is not type(head):
        return [f"{where}: {_kind(base)} became {_kind(head)}"]
    if isinstance(base, dict):
        found = [f"{where}: lacks {key!r} at head" for key in base.keys() - head.keys()]
        found += [f"{where}: has {key!r} at head alone" for key in head.keys() - base.keys()]
        for key in base.keys() & head.keys():
            found += differences(base[key], head[key], f"{where}.{key}" if where else str(key))
        return sorted(found)
    if isinstance(base, list | tuple):
        if len(base) != len(head):
            return [f"{where}: {len(base)} entries became {len(head)}"]
        return [
            text
            for i, (a, b) in enumerate(zip(base, head, strict=True))
            for text in differences(a, b, f"{where}[{i}]")
        ]
    if isinstance(base, Tensor):
        return [f"{where}: {how}"] if (how := _tensors_differ(base, head)) else []
    if isinstance(base, float):
        same = base.hex() == head.hex() or (math.isnan(base) and math.isnan(head))
    else:
        same = base == head
    return [] if same else [f"{where}: {_short(base)} became {_short(head)}"]


def _tensors_differ(base: Tensor, head: Tensor) -> str | None:
    """How two tensors differ; None where they have the same form and bits."""
    forms = [(t.layout, t.dtype, tuple(t.shape)) for t in (base, head)]
    if forms[0] != forms[1]:
        return f"{_kind(base)} became {_kind(head)}"
    if base.layout == torch.sparse_coo:
        base, head = base.coalesce(), head.coalesce()
        pairs = [(base.indices(), head.indices()), (base.values(), head.values())]
    elif base.layout == torch.sparse_csr:
        pairs = [(t(base), t(head)) for t in (Tensor.crow_indices, Tensor.col_indices, Tensor.values)]
    else:
        return _bits_differ(base, head)
    return next((how for a, b in pairs if (how := _tensors_differ(a, b))), None)


def _bits_differ(base: Tensor, head: Tensor) -> str | None:
    a, b = (t.detach().contiguous().reshape(-1, 1) for t in (base, head))
    unlike = (a.view(torch.uint8) != b.view(torch.uint8)).any(1)
    if base.is_floating_point():
        unlike &= ~(a.isnan() & b.isnan()).squeeze(1)
    count = int(unlike.sum())
    if not count:
        return None
    distance = float((a[unlike].double() - b[unlike].double()).abs().max())
    return f"{count} of {len(a)} values differ, by up to {distance:.3g}"


def _kind(value: Any) -> str:
    if isinstance(value, Tensor):
        layout = "" if value.layout == torch.strided else f"{value.layout} "
        return f"{layout}{value.dtype} {tuple(value.shape)}"
    return f"{type(value).__name__} {_short(value)}"


def _short(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 60 else f"{text[:57]}..."


def verdict(base: Mapping[str, Any] | None, head: Mapping[str, Any] | None) -> str:
    """What became of a case: "same", or what differs.

    Args:
        base: what the case left in that tree: its "result", or the "error" that it failed with; None where it
            left nothing.
        head: likewise.
    """
    errors = {
        name: "left no result" if found is None else found["error"]
        for name, found in {"base": base, "head": head}.items()
        if found is None or "error" in found
    }
    if errors:
        where = "both" if len(errors) == 2 else next(iter(errors))
        return f"fails in {where}: {next(reversed(errors.values()))}"
    assert base is not None
    assert head is not None
    found = differences(base["result"], head["result"])
    more = f" (and {len(found) - 3} more)" if len(found) > 3 else ""
    return f"differs in {'; '.join(found[:3])}{more}" if found else "same"


# Running --------------------------------------------------------------------------------------------------


def _trees(stack: ExitStack, options: argparse.Namespace) -> dict[str, Path]:
    """The folders of both trees, with native kernels."""
    if checkout.tree() is None:
        raise Refused(f"{checkout.ROOT} is not a git checkout: there are no commits to compare")
    commits = {"base": worktrees.commit_of(options.base)}
    head = checkout.ROOT if options.head is None else Path(options.head).resolve()
    if not (head / "lip_fast").is_dir():
        commits["head"] = worktrees.commit_of(options.head)
    trees = stack.enter_context(worktrees.checked_out(commits))
    worktrees.put_native(trees, commits)
    return {"head": head, **trees}


def _absent(world: str, trees: Mapping[str, Path]) -> str | None:
    """Why a world cannot be compared on this machine; None where it can.

    Raises:
        Refused: one tree has native kernels and the other has none.
    """
    native = [any((tree / "lip_fast").glob("_native_cpu*.so")) for tree in trees.values()]
    if len(set(native)) > 1:
        there = [name for name, found in zip(trees, native, strict=True) if found]
        raise Refused(f"only {there[0]} has native kernels: build those of the other with setup.py build_ext")
    if world == "native" and not all(native):
        return "there are no native kernels"
    if world == "triton" and find_spec("triton") is None:
        return "Triton is not installed"
    return None


def _start(world: str, tree: Path, folder: Path, pattern: str, base: Path) -> list["subprocess.Popen[str]"]:
    """The processes of a world in one tree; each writes to a folder of its own."""
    environment = worktrees.environment_of(tree) | bit_cases.ENVIRONMENTS[world]
    environment |= {"OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}
    command = [sys.executable, "-P", "-c", _PROGRAM, str(Path(__file__).resolve().parent), world]
    settings = ["--cases", pattern, "--base", str(base), "--tree", str(tree)]
    processes = []
    for rank in range(bit_cases.PROCESSES.get(world, 1)):
        joined = (
            ["--rank", str(rank), "--store", str(folder / "store")] if world in bit_cases.PROCESSES else []
        )
        with (folder / f"{world}-{rank}.err").open("w") as errors:
            processes.append(
                subprocess.Popen(
                    [*command, str(folder / str(rank)), *settings, *joined],
                    cwd=folder,
                    env=environment,
                    stdout=subprocess.DEVNULL,
                    stderr=errors,
                    text=True,
                )
            )
    return processes


@contextmanager
def _running(
    world: str, trees: Mapping[str, Path], folders: Mapping[str, Path], pattern: str
) -> Iterator[dict[str, list["subprocess.Popen[str]"]]]:
    """The processes of a world in both trees; those that are left at the end of the block are killed."""
    started: dict[str, list[subprocess.Popen[str]]] = {}
    try:
        for name, tree in trees.items():
            started[name] = _start(world, tree, folders[name], pattern, folders["base"] / "0")
        yield started
    finally:
        for process in (process for processes in started.values() for process in processes):
            if process.poll() is None:
                process.kill()
                process.wait()


def _wait(world: str, folder: Path, processes: Sequence["subprocess.Popen[str]"], end: float) -> str | None:
    """Why the processes of one tree did not come to their end; None where they did."""
    for rank, process in enumerate(processes):
        try:
            code = process.wait(max(end - time.monotonic(), 1))
        except subprocess.TimeoutExpired:
            return f"was not done after {_PATIENCE} s"
        if code:
            said = worktrees.last_line((folder / f"{world}-{rank}.err").read_text())
            return f"the process ended with {code}: {said or 'without a word'}"
    return None


def _result(name: str, world: str, folder: Path, ended: str | None) -> dict[str, Any] | None:
    """What the processes of one tree left of a case, or how it failed."""
    found = {}
    for rank in range(bit_cases.PROCESSES.get(world, 1)):
        path = folder / str(rank) / f"{name}.pt"
        if not path.exists():
            return {"error": ended} if ended else None
        left: dict[str, Any] = torch.load(path, weights_only=True)
        if "error" in left:
            return left
        found[f"rank {rank}"] = left["result"]
    return {"result": found if world in bit_cases.PROCESSES else found["rank 0"]}


def _compare(options: argparse.Namespace) -> bool:
    """Run and compare; whether all is the same."""
    worlds = {
        world: names
        for world in bit_cases.ENVIRONMENTS
        if (names := fnmatch.filter(bit_cases.cases(world), options.cases))
    }
    if not worlds:
        raise Refused(
            f"no case is called {options.cases!r}: their names begin with {', '.join(bit_cases.ENVIRONMENTS)}"
        )
    counts = {"same": 0, "other": 0}
    with ExitStack() as stack:
        trees = _trees(stack, options)
        top = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="lip-fast-same-bits-")))
        folders = {name: top / name for name in trees}
        for folder in folders.values():
            folder.mkdir()
        saved = {name.replace("loaded/", "auto/saved/") for name in worlds.get("loaded", ())}
        if not saved <= set(worlds.get("auto", ())):
            # What is loaded has to be saved first.
            _run("auto", trees, folders, "auto/saved/*")
        for world, names in worlds.items():
            if absent := _absent(world, trees):
                print(f"{world + '/*':<44} not compared: {absent}", flush=True)
                continue
            ended = _run(world, trees, folders, options.cases)
            groups: dict[str, int] = {}
            for name in names:
                said = verdict(
                    *(_result(name, world, folders[tree], ended[tree]) for tree in ("base", "head"))
                )
                counts["same" if said == "same" else "other"] += 1
                if said != "same" or options.verbose:
                    print(f"{name:<44} {said}", flush=True)
                else:
                    group = name.rpartition("/")[0] + "/*"
                    groups[group] = groups.get(group, 0) + 1
            for group, count in groups.items():
                print(f"{group:<44} same ({count} cases)", flush=True)
    print(f"{sum(counts.values())} cases: {counts['same']} same, {counts['other']} not")
    return not counts["other"]


def _run(
    world: str, trees: Mapping[str, Path], folders: Mapping[str, Path], pattern: str
) -> dict[str, str | None]:
    """Run a world in both trees at the same time; why the processes of a tree did not come to their end."""
    worktrees.say(f"running {world}")
    start = time.monotonic()
    with _running(world, trees, folders, pattern) as started:
        ended = {
            name: _wait(world, folders[name], processes, start + _PATIENCE)
            for name, processes in started.items()
        }
    worktrees.say(f"running {world}: {time.monotonic() - start:.0f} s")
    return ended


def main(arguments: Sequence[str] | None = None) -> int:
    """Compare two trees; returns the exit code."""
    parser = Parser(
        prog="python -m benchmarks.same_bits", description="Compare the results of two trees bit for bit."
    )
    parser.add_argument("base", metavar="BASE", help="a commit")
    parser.add_argument(
        "head", metavar="HEAD", nargs="?", help="another, or a folder (default: this checkout as it is)"
    )
    parser.add_argument("--cases", metavar="PATTERN", default="*", help="names, with * and ? (default: all)")
    parser.add_argument("--verbose", action="store_true", help="a line for each case, and not for its family")
    options = parser.parse_args(arguments)
    same: list[bool] = []
    before = signal.signal(signal.SIGTERM, _end)
    try:
        code = answer(parser, lambda: same.append(_compare(options)))
    except KeyboardInterrupt:
        print("benchmarks.same_bits: stopped", file=sys.stderr)
        return 130
    finally:
        signal.signal(signal.SIGTERM, before)
    return code or int(not all(same))


def _end(*_: object) -> None:
    """Leave as after an error, so that worktrees and processes are removed."""
    raise SystemExit(128 + signal.SIGTERM)


if __name__ == "__main__":
    sys.exit(main())
