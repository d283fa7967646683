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
command._ROUNDS = 5
assert lip_fast.cli.main(["bench"]) == 0
print("cold")
"""


@pytest.mark.process
def test_the_core_runs_with_torch_and_numpy_alone() -> None:
    result = subprocess.run([sys.executable, "-c", _COLD], capture_output=True, text=True, timeout=300)
    assert result.returncode == 0, result.stdout + result.stderr
    assert result.stdout.endswith("\ncold\n")
    assert result.stdout.count(": measured\n") == len(CORE)
    assert "no torchao: torchao's PruneOptimizer is not there: No module named 'torchao'\n" in result.stdout


# Lower layers first. An entry is a file or a folder of the package, or by a dotted name a part of a folder.
# A module imports from lower layers, from its own entry, and from its own layer where that is listed below.
LAYERS = [
    {"host", "starting"},
    {
        "reference",
        "validation",
        "cholesky",
        "targets",
        "status",
        "refitting",
        "rounding",
        "cli.errors",
        "cli.parser",
        "cli.atomic",
        "head_input",
    },
    {"rules", "settings", "claims", "flops"},
    {"backends", "holdout"},
    {"ops"},
    {"projected"},
    {"sharded"},
    {"moments"},
    {"linear_path"},
    {"gaussian"},
    {"decompose", "statistics"},
    {"functional", "world"},
    {"directions", "repair"},
    {"captures", "cost", "counters", "fused", "observations", "unfit"},
    {"classifier"},
    {"head"},
    {"plugin", "group_heads"},
    {"with_lip"},
    {"integrations", "optim"},
    {"bench", "harness", "cli", "__main__"},
]
WITHIN_LAYER = {
    ("__main__", "cli"),
    ("bench", "cli"),
    ("cli.parser", "cli.errors"),
    ("harness", "cli"),
    ("targets", "validation"),
}


def _name(path: Path) -> str:
    """The dotted name of a file inside the package: "ops.gram", "ops" of its ``__init__``."""
    parts = path.relative_to(PACKAGE).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


FILES = sorted(PACKAGE.rglob("*.py"))
MODULES = {_name(path) for path in FILES}


def _entry(module: str) -> str | None:
    """The longest entry of the table that a module is, or is in."""
    parts = module.split(".")
    known = set().union(*LAYERS)
    prefixes = [".".join(parts[:n]) for n in range(len(parts), 0, -1)]
    return next((prefix for prefix in prefixes if prefix in known), None)


def _layer(entry: str) -> int:
    return next(i for i, layer in enumerate(LAYERS) if entry in layer)


def _imports(tree: ast.Module) -> set[str]:
    """Names of the modules of this package that a file imports, anywhere in it; "" is the package itself."""
    found = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom) and f"{node.module}.".startswith("lip_fast."):
            module = node.module.removeprefix("lip_fast").removeprefix(".")
            names = {f"{module}.{alias.name}".removeprefix(".") for alias in node.names}
            found |= {name if name in MODULES else module for name in names}
        elif isinstance(node, ast.Import):
            found |= {a.name.removeprefix("lip_fast.") for a in node.names if a.name.startswith("lip_fast.")}
    return found


def test_arrows_run_one_way() -> None:
    wrong = []
    for path in FILES:
        module = _name(path)
        entry = _entry(module)
        if module == "":
            continue
        if entry is None:
            wrong.append(f"{module} is in no layer: add it to LAYERS")
            continue
        for imported in sorted(_imports(ast.parse(path.read_text())) - {""}):
            other = _entry(imported)
            # Without an entry it is reported for itself.
            if other is None or other == entry or _layer(other) < _layer(entry):
                continue
            if (entry, other) not in WITHIN_LAYER:
                wrong.append(f"{module} imports {imported}, which is not in a lower layer")
    assert not wrong, "\n" + "\n".join(wrong)


# Methods of every NamedTuple, which are public in spite of their names.
NAMED_TUPLE = {"_asdict", "_fields", "_make", "_replace"}


def _private(name: str) -> bool:
    return name.startswith("_") and not name.startswith("__") and name not in NAMED_TUPLE


def _defined(tree: ast.Module) -> set[str]:
    """The names that a file defines or assigns, those of classes and of ``self`` included."""
    found = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
            found.add(node.name)
        elif isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store):
            found.add(node.id)
        elif isinstance(node, ast.Attribute) and isinstance(node.ctx, ast.Store):
            # Only what an object sets of itself: to set an attribute of another object is to reach into it.
            found |= {node.attr} if ast.unparse(node.value) in ("self", "cls") else set()
        elif isinstance(node, ast.Constant) and isinstance(node.value, str):
            found.add(node.value)  # __slots__
    return found


def _foreign(tree: ast.Module) -> set[str]:
    """The names that a file imports from other packages: their private parts are no matter of this law."""
    found = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            names = [a.asname or a.name.split(".")[0] for a in node.names]
            found |= {name for name in names if name != "lip_fast"}
        elif isinstance(node, ast.ImportFrom) and (node.module or "").split(".")[0] != "lip_fast":
            found |= {a.asname or a.name for a in node.names}
    return found


def _root(node: ast.expr) -> str | None:
    """The name that a chain of attributes begins with."""
    while isinstance(node, ast.Attribute):
        node = node.value
    return node.id if isinstance(node, ast.Name) else None


def _private_of_others(tree: ast.Module) -> dict[str, int]:
    """The private names of other files of this package that a file imports or reaches for, and where."""
    own, foreign, found = _defined(tree), _foreign(tree), {}
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom) and (node.module or "").split(".")[0] == "lip_fast":
            found |= {a.name: node.lineno for a in node.names if _private(a.name) and a.name not in MODULES}
        elif isinstance(node, ast.Attribute) and _private(node.attr) and node.attr not in own:
            root = _root(node.value)
            # What a class inherits is its own.
            if root not in foreign and ast.unparse(node.value) not in ("self", "cls", "super()"):
                found[node.attr] = node.lineno
    return found


def test_no_file_uses_the_private_names_of_another() -> None:
    found = []
    for path in FILES:
        file = path.relative_to(PACKAGE).as_posix()
        for name, line in _private_of_others(ast.parse(path.read_text())).items():
            found.append(f"{file}:{line} uses {name}, which is private to another file")
    assert not found, "\n" + "\n".join(found)


@pytest.mark.parametrize(
    "text",
    [
        "from lip_fast.plugin import _bias_of",
        "from lip_fast import _thing",
        "from lip_fast import plugin\nplugin._bias_of()",
        "import lip_fast\nlip_fast.plugin._bias_of()",
        "def f(lip): return lip._head",
        "def f(lip): lip._head = 1",
        "class A:\n    def f(self): return self.lip._head",
    ],
)
def test_a_private_name_of_another_file_is_seen(text: str) -> None:
    assert len(_private_of_others(ast.parse(text))) == 1


def test_private_names_of_the_same_file_and_of_other_packages_are_no_matter() -> None:
    text = (
        "import torch, os\nfrom torch import nn\ntorch._C._x()\nos._exit(1)\nnn._y\n"
        "class A:\n    def __init__(self): self._z = self._inherited\n"
        "    def same(self, other): return other._z\n"
        "def f(report): return report._replace(), report.__dict__"
    )
    assert not _private_of_others(ast.parse(text))


MOST_LINES = 600


def test_no_file_is_too_long_to_read_at_once() -> None:
    lengths = {path.relative_to(PACKAGE).as_posix(): len(path.read_text().splitlines()) for path in FILES}
    long = {file: lines for file, lines in lengths.items() if lines > MOST_LINES}
    assert not long, f"over {MOST_LINES} lines"


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


@pytest.mark.process
def test_an_unknown_backend_is_named() -> None:
    command = [sys.executable, "-c", "import lip_fast"]
    environment = {"LIP_FAST_BACKEND": "warp", "PATH": "/usr/bin:/bin"}
    result = subprocess.run(command, capture_output=True, text=True, env=environment, cwd=PACKAGE.parent)
    assert result.returncode != 0
    assert "LIP_FAST_BACKEND must be one of auto, default, native, triton, got 'warp'" in result.stderr
