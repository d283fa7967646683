"""Commits of this repository, each checked out into a folder of its own with its native CPU kernels built."""

import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

from benchmarks import checkout
from benchmarks.command import Refused

__all__ = [
    "NATIVE_SOURCES",
    "checked_out",
    "commit_of",
    "environment_of",
    "git",
    "last_line",
    "put_native",
    "say",
]

NATIVE_SOURCES = ("csrc", "setup.py")


def git(*arguments: str, check: bool = True) -> "subprocess.CompletedProcess[str]":
    """Run git in the checkout of this file."""
    command = ["git", *arguments]
    return subprocess.run(command, cwd=checkout.ROOT, capture_output=True, text=True, check=check)


def commit_of(revision: str) -> str:
    """The hash of a commit.

    Raises:
        Refused: there is no such commit.
    """
    said = git("rev-parse", "--verify", "--quiet", "--end-of-options", f"{revision}^{{commit}}", check=False)
    if said.returncode:
        raise Refused(f"there is no commit {revision!r} in this checkout")
    return said.stdout.strip()


@contextmanager
def checked_out(commits: Mapping[str, str]) -> Iterator[dict[str, Path]]:
    """Check commits out into folders of their own, which are removed when the block ends.

    Args:
        commits: hashes by name; a folder has the name of its commit.

    Raises:
        Refused: git cannot check one out.
    """
    with tempfile.TemporaryDirectory(prefix="lip-fast-compare-") as folder:
        trees = {name: Path(folder).resolve() / name for name in commits}
        try:
            for name, tree in trees.items():
                said = git("worktree", "add", "--quiet", "--detach", str(tree), commits[name], check=False)
                if said.returncode:
                    raise Refused(f"cannot check {commits[name][:12]} out: {last_line(said.stderr)}")
            yield trees
        finally:
            for tree in trees.values():
                # One that was never made is no mistake here.
                git("worktree", "remove", "--force", str(tree), check=False)


def put_native(trees: Mapping[str, Path], commits: Mapping[str, str]) -> None:
    """Give each tree its native CPU kernels.

    Where the sources of the kernels are the same in all commits and the checkout, the trees get copies of the
    checkout's kernels as they are; otherwise the kernels of each tree are built.

    Raises:
        Refused: they cannot be built.
    """
    same = not git("status", "--porcelain", "--", *NATIVE_SOURCES).stdout.strip() and not any(
        git("diff", "--quiet", "HEAD", commit, "--", *NATIVE_SOURCES, check=False).returncode
        for commit in commits.values()
    )
    for name, tree in trees.items():
        if same:
            for library in (checkout.ROOT / "lip_fast").glob("_native_cpu*.so"):
                shutil.copy2(library, tree / "lip_fast")
            continue
        say(f"building the native kernels of {name}")
        # No nvcc by that name: the CUDA kernels take minutes, and nothing here runs them.
        environment = {**os.environ, "LIP_FAST_EXT": "auto", "NVCC": "none", "LIP_FAST_CUDA_ARCHS": ""}
        command = [sys.executable, "setup.py", "build_ext", "--inplace"]
        done = subprocess.run(command, cwd=tree, env=environment, capture_output=True, text=True)
        if done.returncode or not any((tree / "lip_fast").glob("_native_cpu*")):
            raise Refused(f"cannot build the native kernels of {name}: {last_line(done.stderr)}")


def environment_of(tree: Path) -> dict[str, str]:
    """The environment of a process that imports ``lip_fast`` from a tree."""
    path = os.pathsep.join(filter(None, [str(tree), os.environ.get("PYTHONPATH")]))
    return {**os.environ, "PYTHONPATH": path}


def say(text: str) -> None:
    """Print progress."""
    print(text, file=sys.stderr, flush=True)


def last_line(text: str) -> str:
    """The last line of what a process printed, "" where it printed nothing."""
    return (text.strip().splitlines() or [""])[-1]
