"""The pages build without a warning, hold every public name, and every public docstring is complete."""

import dataclasses
import importlib.util
import inspect
import re
import subprocess
import sys
import warnings
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

import lip_fast
from lip_fast import ops, optim, reference, repair, statistics, status  # noqa: F401

ROOT = Path(__file__).parents[1]
DOCS = ROOT / "docs"
with warnings.catch_warnings():
    # Of what they import in turn.
    warnings.simplefilter("ignore")
    ADAPTERS = [
        name for name in ("accelerate", "lightning", "transformers") if importlib.util.find_spec(name)
    ]
    for name in ADAPTERS:
        importlib.import_module(f"lip_fast.integrations.{name}")
SECTIONS = ("Args", "Attributes", "Returns", "Yields", "Raises")


def _documented() -> Iterator[tuple[str, Any]]:
    """Functions, classes and methods that users may call, by their full name."""
    adapters = [importlib.import_module(f"lip_fast.integrations.{name}") for name in ADAPTERS]
    for module in (lip_fast, optim, ops, reference, status, *adapters):
        for name in module.__all__:
            value = getattr(module, name)
            if isinstance(value, ModuleType) or not callable(value):
                continue
            yield f"{module.__name__}.{name}", value
            if not inspect.isclass(value) or issubclass(value, Exception):
                continue
            for method, function in vars(value).items():
                # What a library calls is explained there.
                if any(hasattr(base, method) for base in value.__mro__[1:]):
                    continue
                if not method.startswith("_") and (
                    inspect.isfunction(function) or isinstance(function, property)
                ):
                    yield f"{module.__name__}.{name}.{method}", function


PUBLIC = dict(_documented())


def _sections(value: Any) -> dict[str, str]:
    """The text of each section of a docstring, and what stands before them as ""."""
    parts = re.split(rf"^({'|'.join(SECTIONS)}):\n", inspect.getdoc(value) or "", flags=re.MULTILINE)
    return {"": parts[0]} | dict(zip(parts[1::2], parts[2::2], strict=True))


def _parameters(value: Any) -> list[inspect.Parameter]:
    if isinstance(value, property) or (inspect.isclass(value) and issubclass(value, Exception)):
        return []
    if inspect.isclass(value) and (dataclasses.is_dataclass(value) or issubclass(value, tuple)):
        return []  # fields are attributes
    parameters = inspect.signature(value).parameters.values()
    return [p for p in parameters if p.name != "self"]


@pytest.mark.parametrize("name", list(PUBLIC))
def test_docstrings_are_complete(name: str) -> None:
    value = PUBLIC[name]
    sections = _sections(value)
    assert sections[""].strip(), "no summary"
    parameters = _parameters(value)
    for parameter in parameters:
        text = sections.get("Args", "")
        alike = rf"^ +(?:\w+, )*\**{re.escape(parameter.name)}(?:, \w+)*: "
        named = re.search(alike, text, re.MULTILINE)
        # One that the summary speaks of needs no section.
        assert named or f"``{parameter.name}``" in sections[""], f"{parameter.name} is not explained"
    for named in re.findall(r"^ {4}\**(\w+): ", sections.get("Args", ""), re.MULTILINE):
        assert named in {p.name for p in parameters}, f"{named} is explained, but no parameter"
    if inspect.isfunction(value) and len(parameters) > 1:
        returned = inspect.signature(value).return_annotation
        if returned not in (None, "None"):
            assert sections.keys() & {"Returns", "Yields"}, "what is returned is not said"


def test_the_pages_hold_every_public_name() -> None:
    text = "\n".join(path.read_text(encoding="utf-8") for path in DOCS.rglob("*.md"))
    for name in [*lip_fast.__all__, *optim.__all__]:
        if not isinstance(getattr(lip_fast, name, None), ModuleType) or name == "repair":
            assert re.search(rf"^\.\. auto(class|function|exception):: {name}$", text, re.MULTILINE), name
    for module in (ops, reference, status):
        assert f".. automodule:: {module.__name__}\n" in text
    integrations = {path.stem for path in (ROOT / "lip_fast" / "integrations").glob("[!_]*.py")}
    for name in integrations:
        assert f".. automodule:: lip_fast.integrations.{name}\n" in text


@pytest.mark.process
@pytest.mark.skipif(
    any(importlib.util.find_spec(name) is None for name in ("sphinx", "furo", "myst_parser")),
    reason="needs sphinx, furo and myst-parser (make docs has its own)",
)
def test_the_pages_build_without_a_warning(tmp_path: Path) -> None:
    command = [
        sys.executable,
        "-m",
        "sphinx",
        "-W",
        "--keep-going",
        "-q",
        "-b",
        "html",
        "-d",
        tmp_path / "trees",
    ]
    done = subprocess.run(
        [*command, DOCS, tmp_path / "html"], cwd=ROOT, capture_output=True, text=True, timeout=600
    )
    assert done.returncode == 0, done.stderr
    page = (tmp_path / "html" / "api" / "training.html").read_text(encoding="utf-8")
    assert 'id="lip_fast.LIP.observe"' in page
