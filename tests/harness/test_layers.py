"""Which folder of the harness may import which: in the order below, a later one those before it."""

import ast
from pathlib import Path

import lip_fast.harness

ROOT = Path(lip_fast.harness.__file__).parent
ORDER = [
    *("seeding", "files", "data", "noise", "models", "algorithms", "settings", "training", "repairs", "runs"),
    *("sweeps", "reports", "studies", "commands"),
]


def imported(path: Path) -> set[str]:
    modules = [n.module for n in ast.walk(ast.parse(path.read_text())) if isinstance(n, ast.ImportFrom)]
    return {name.split(".")[2] for name in modules if name and name.startswith("lip_fast.harness.")}


def test_arrows_run_one_way() -> None:
    places = {p for p in ROOT.iterdir() if p.name.strip("_") == p.name and (p.is_dir() or p.suffix == ".py")}
    assert {p.stem for p in places} == set(ORDER)
    for path in ROOT.rglob("*.py"):
        own = path.relative_to(ROOT).parts[0].removesuffix(".py")
        if own in ORDER:
            back = {name for name in imported(path) if ORDER.index(name) > ORDER.index(own)}
            assert not back, f"{path} imports {back}"
