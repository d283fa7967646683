"""What CONTRIBUTING.md shows works as it stands there."""

import importlib.util
import re
import sys
from pathlib import Path
from types import ModuleType

import pytest
from harness.algorithms import test_registry

from lip_fast.harness.algorithms import ALGORITHMS

TEXT = (Path(__file__).parents[3] / "CONTRIBUTING.md").read_text(encoding="utf-8")
MODULE, ENTRY, TEST = re.findall(r"^```python\n(.*?)^```$", TEXT, re.MULTILINE | re.DOTALL)


def load(folder: Path, name: str, source: str) -> ModuleType:
    path = folder / f"{name.rpartition('.')[2]}.py"
    path.write_text(source, encoding="utf-8")
    spec = importlib.util.spec_from_file_location(name, path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture
def name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """The example's name in the registry, where it is for the length of a test."""
    path = re.match(r"# (lip_fast/.*)\.py\n", MODULE)
    assert path
    module = load(tmp_path, path[1].replace("/", "."), MODULE)
    monkeypatch.setitem(sys.modules, module.__name__, module)
    entry = re.fullmatch(r' +"(.*)": (\w+),\n', ENTRY)
    assert entry
    assert module.__all__ == [entry[2]]
    assert entry[1].replace("-", "_") == module.__name__.rpartition(".")[2]
    assert entry[1] not in ALGORITHMS
    monkeypatch.setitem(ALGORITHMS, entry[1], getattr(module, entry[2]))
    return entry[1]


def own_tests(folder: Path) -> ModuleType:
    assert TEST.startswith("# tests/harness/algorithms/test_label_smoothing.py\n")
    return load(folder, "test_label_smoothing", TEST)


def test_the_examples_test_passes(name: str, tmp_path: Path) -> None:
    assert f'"{name}"' in TEST
    own_tests(tmp_path).test_formula()


def test_the_examples_test_can_fail(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ALGORITHMS[name], "loss", ALGORITHMS["cross-entropy"].loss)
    with pytest.raises(AssertionError):
        own_tests(tmp_path).test_formula()


def test_the_example_passes_what_all_algorithms_do(name: str) -> None:
    test_registry.test_every_algorithm_says_what_it_is(name)
    test_registry.test_options_are_checked(name)
    test_registry.test_losses_are_finite_for_logits_of_any_size(name, candidates=False)
    test_registry.test_every_algorithm_learns_what_most_labels_say(name, candidates=False)
    test_registry.test_a_state_continues_to_the_same_bits(name, candidates=False)
    test_registry.test_states_of_others_are_refused(name)


def test_what_it_points_to_is_there() -> None:
    root = Path(__file__).parents[3]
    paths = [*re.findall(r"`((?:lip_fast|tests)/[\w/]+(?:\.py)?)`", TEXT)]
    assert len(paths) >= 5
    for path in paths:
        assert (root / path).exists(), path
    for module in re.findall(r"\(`(\w+\.py)`\)", TEXT):
        assert (root / "lip_fast/harness/algorithms" / module).exists(), module
    for target in re.findall(r"`make (\w+)`", TEXT):
        assert re.search(rf"^{target}:", (root / "Makefile").read_text(encoding="utf-8"), re.MULTILINE), (
            target
        )
