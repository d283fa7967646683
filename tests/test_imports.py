"""The import law: what the core needs, and which module may import which."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

import lip_fast
from lip_fast.bench.rows import CORE

PACKAGE = Path(lip_fast.__file__).parent

_COLD = """
import sys

ALLOWED = {"torch", "numpy", "lip_fast"}
# What torch itself needs to be imported.
ALLOWED |= {"typing_extensions", "sympy", "mpmath", "networkx", "jinja2", "markupsafe", "filelock", "fsspec",
            "packaging", "cuda", "functorch", "torchgen", "setuptools", "_distutils_hack"}

# A finder that does not find what is not allowed.
class Without:
    def __init__(self, finder):
        self.finder = finder

    def __getattr__(self, name):
        return getattr(self.finder, name)

    def find_spec(self, name, path=None, target=None):
        root = name.partition(".")[0]
        if root in ALLOWED or root in sys.stdlib_module_names or root.startswith("_"):
            return self.finder.find_spec(name, path, target)
        return None

sys.meta_path[:] = [Without(finder) for finder in sys.meta_path]
import torch
import lip_fast, lip_fast.cli
W, X = torch.eye(5, 3), torch.randn(9, 5)
y = torch.randint(0, 3, (9,))
lip_fast.lip(W, X, y, 1)
head = torch.nn.Linear(5, 3)
optimizer = torch.optim.SGD(head.parameters(), lr=0.1)
plugin = lip_fast.LIP(head, 1)
plugin.attach(optimizer)
head(X).sum().backward()
plugin.observe(X, y)
optimizer.step()
assert plugin.stats()["applied"] == 1
from dataclasses import replace
from lip_fast.bench import command, rows
sizes = {"one-shot": (8, 16, 3, None, 500), "truncated": (24, 48, 4, 3, 32), "exact": (8, 16, 7, None, 32)}
names = ("l", "q", "k", "tail_rank", "n")
rows.CORE = [replace(row, **dict(zip(names, sizes[row.kind]))) for row in rows.CORE]
command._CPU_ROUNDS = 3
assert lip_fast.cli.main(["bench"]) == 0
print("cold")
"""


def test_the_core_runs_with_torch_and_numpy_alone() -> None:
    result = subprocess.run([sys.executable, "-c", _COLD], capture_output=True, text=True, timeout=300)
    assert result.returncode == 0, result.stdout + result.stderr
    assert result.stdout.endswith("\ncold\n")
    assert result.stdout.count(": measured\n") == len(CORE)
    assert "no torchao: torchao's PruneOptimizer is not there: No module named 'torchao'\n" in result.stdout


# Lower layers first; a module may import its own layer only where listed here.
LAYERS = [
    {"host"},
    {"reference", "validation", "targets", "status", "rounding"},
    {"rules"},
    {"backends", "holdout"},
    {"ops", "sharded"},
    {"joint_step"},
    {"statistics"},
    {"functional"},
    {"subspace", "repair"},
    {"counters", "fused", "observations"},
    {"plugin"},
    {"integrations", "optim"},
    {"bench", "harness", "cli", "__main__", "doctor"},
]
WITHIN_LAYER = {
    ("cli", "harness"),
    ("__main__", "cli"),
    ("bench", "harness"),
    ("targets", "validation"),
}


def _layer(module: str) -> int:
    return next(i for i, layer in enumerate(LAYERS) if module in layer)


def _imports(path: Path) -> set[str]:
    """Names of the modules of this package that a file imports, anywhere in it."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ImportFrom) and node.module and node.module.startswith("lip_fast"):
            parts = node.module.split(".")
            found |= {parts[1]} if len(parts) > 1 else {alias.name for alias in node.names}
        elif isinstance(node, ast.Import):
            found |= {a.name.split(".")[1] for a in node.names if a.name.startswith("lip_fast.")}
    return {name for name in found if (PACKAGE / name).exists() or (PACKAGE / f"{name}.py").exists()}


@pytest.mark.parametrize("path", sorted(PACKAGE.rglob("*.py")), ids=lambda p: str(p.relative_to(PACKAGE)))
def test_arrows_run_one_way(path: Path) -> None:
    module = path.relative_to(PACKAGE).parts[0].removesuffix(".py")
    if module == "__init__":
        return
    for imported in _imports(path):
        allowed = (
            imported == module or _layer(imported) < _layer(module) or (module, imported) in WITHIN_LAYER
        )
        assert allowed, f"{module} imports {imported}"


@pytest.mark.parametrize(
    ("folder", "heavy"),
    [
        (
            "harness",
            {
                "sklearn",
                "matplotlib",
                "jsonargparse",
                "tqdm",
                "yaml",
                "scipy",
                "cleanlab",
                "pandas",
                "jinja2",
            },
        ),
        ("integrations", {"lightning", "pytorch_lightning", "transformers", "accelerate"}),
    ],
)
def test_only_the_folder_of_an_extra_imports_its_libraries(folder: str, heavy: set[str]) -> None:
    for path in PACKAGE.rglob("*.py"):
        if folder in path.relative_to(PACKAGE).parts:
            continue
        for node in ast.walk(ast.parse(path.read_text())):
            names = [a.name for a in node.names] if isinstance(node, ast.Import) else []
            names += [node.module or ""] if isinstance(node, ast.ImportFrom) else []
            assert not heavy & {name.split(".")[0] for name in names}, path


def test_only_the_backends_read_the_environment() -> None:
    for path in PACKAGE.rglob("*.py"):
        if path != PACKAGE / "backends" / "__init__.py":
            assert "os.environ" not in path.read_text(), path
            assert "getenv" not in path.read_text(), path


def test_an_unknown_backend_is_named() -> None:
    command = [sys.executable, "-c", "import lip_fast"]
    environment = {"LIP_FAST_BACKEND": "warp", "PATH": "/usr/bin:/bin"}
    result = subprocess.run(command, capture_output=True, text=True, env=environment, cwd=PACKAGE.parent)
    assert result.returncode != 0
    assert "LIP_FAST_BACKEND must be one of auto, default, native, triton, got 'warp'" in result.stderr
