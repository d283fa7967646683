"""Which sources a result was measured on. Nothing but the standard library is imported."""

import hashlib
import subprocess
from pathlib import Path

__all__ = ["MEASURED", "RESULTS", "ROOT", "digest", "tree"]

ROOT = Path(__file__).resolve().parents[1]
# What decides the numbers. A README or a result written after a run does not make the tree dirty.
MEASURED = ("lip_fast", "csrc", "benchmarks", "setup.py", "pyproject.toml")
RESULTS = "benchmarks/results"
_SOURCES = {".py", ".h", ".cpp", ".cu", ".cuh", ".toml"}


def tree() -> tuple[str, bool] | None:
    """The commit checked out and whether what is measured differs from it; None where git cannot tell."""
    paths = [path for path in MEASURED if (ROOT / path).exists()]
    try:
        commit = _git("rev-parse", "HEAD")
        changes = _git("status", "--porcelain", "--", *paths, f":(exclude){RESULTS}")
    except (OSError, subprocess.CalledProcessError):
        return None
    return commit, bool(changes)


def digest() -> str:
    """SHA-256 of the sources that are measured, for a copy of them that git knows nothing of."""
    total = hashlib.sha256()
    for path in MEASURED:
        found = [ROOT / path] if (ROOT / path).is_file() else sorted((ROOT / path).rglob("*"))
        for file in found:
            if file.is_file() and file.suffix in _SOURCES:
                name = file.relative_to(ROOT).as_posix()
                total.update(f"{name}\0{hashlib.sha256(file.read_bytes()).hexdigest()}\n".encode())
    return total.hexdigest()


def _git(*arguments: str) -> str:
    command = ["git", *arguments]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True).stdout.strip()
