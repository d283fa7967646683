"""benchmarks.reliability: what is counted, and what is refused."""

import re
from pathlib import Path

import pytest

from benchmarks import reliability
from benchmarks.report import Refused

COUNTS = {
    "contract": 7,
    "hostile": 3,
    "reliability": 2,
    "upstream": 5,
    "hostile_inputs": 1234,
    "kills_survived": 40,
    "bytes_changed_wrongly": 0,
}
SAMPLE = """
import pytest

@pytest.fixture
def weights(record_property):
    yield
    record_property("bytes_changed_wrongly", {wrong})

@pytest.mark.contract
@pytest.mark.parametrize("i", range(3))
def test_contract(i, weights):
    pass

@pytest.mark.hostile
def test_many(record_property):
    record_property("hostile_inputs", 20)

@pytest.mark.hostile
def test_one():
    pass

@pytest.mark.hostile
def test_skipped():
    pytest.skip()

@pytest.mark.reliability
def test_kills(record_property):
    record_property("kills_survived", 5)
    record_property("hostile_inputs", 100)

@pytest.mark.upstream
def test_upstream():
    pass

def test_other(record_property):
    record_property("kills_survived", 1000)
"""


def sample(folder: Path, wrong: int = 0, more: str = "") -> list[str]:
    """Arguments that run a file of tests apart from ours."""
    path = folder / "test_sample.py"
    path.write_text(SAMPLE.format(wrong=wrong) + more)
    (folder / "pytest.ini").write_text(
        "[pytest]\nmarkers =\n" + "".join(f"    {name}\n" for name in reliability.MARKERS)
    )
    return ["-c", str(folder / "pytest.ini"), str(path)]


@pytest.mark.process
def test_passed_tests_and_what_they_recorded_are_counted(tmp_path: Path) -> None:
    assert reliability.count(sample(tmp_path)) == {
        "contract": 3,
        "hostile": 2,
        "reliability": 1,
        "upstream": 1,
        "hostile_inputs": 121,
        "kills_survived": 5,
        "bytes_changed_wrongly": 0,
    }


@pytest.mark.process
def test_a_failure_is_refused(tmp_path: Path) -> None:
    failing = "\n@pytest.mark.contract\ndef test_fails():\n    assert False\n"
    with pytest.raises(Refused, match="a test failed: pytest ended with code 1"):
        reliability.count(sample(tmp_path, more=failing))
    with pytest.raises(Refused, match="could not be run"):
        reliability.count([str(tmp_path / "nowhere")])


def test_the_table() -> None:
    text = reliability.render(COUNTS)
    assert "| tests of the optimizer contract | 7 |" in text
    assert "| hostile inputs refused or survived | 1234 |" in text
    assert "| runs killed and resumed to the same bits | 40 |" in text
    assert "| bytes of weight changed wrongly | 0 |" in text


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"bytes_changed_wrongly": 8}, "8 bytes of weight were changed"),
        ({"bytes_changed_wrongly": None}, "no test has looked"),
        ({"kills_survived": 0}, "nothing was counted as kills_survived"),
        ({"contract": None, "upstream": None}, "nothing was counted as contract, upstream"),
    ],
)
def test_what_cannot_be_said_is_refused(changes: dict[str, int | None], message: str) -> None:
    counts = {name: value for name, value in (COUNTS | changes).items() if value is not None}
    with pytest.raises(Refused, match=message):
        reliability.render(counts)


def test_writes_between_its_markers_only(tmp_path: Path, monkeypatch, capsys) -> None:
    monkeypatch.setattr(reliability, "count", lambda tests: COUNTS)
    readme = tmp_path / "README.md"
    readme.write_bytes(f"a\r\n{reliability.SLOT.begin}\nold\n{reliability.SLOT.end}\nb\n".encode())
    assert reliability.main(["--write", str(readme)]) == 0
    content = readme.read_bytes().decode()
    assert content.startswith(f"a\r\n{reliability.SLOT.begin}\n|  |  |\n")
    assert content.endswith(f"all.\n{reliability.SLOT.end}\nb\n")
    assert reliability.main(["--write", str(readme)]) == 0
    assert readme.read_bytes().decode() == content
    assert reliability.main([]) == 0
    assert "| 1234 |" in capsys.readouterr().out


def test_nothing_runs_for_a_file_without_markers(tmp_path: Path, monkeypatch, capsys) -> None:
    monkeypatch.setattr(reliability, "count", lambda tests: pytest.fail("must not run"))
    readme = tmp_path / "README.md"
    readme.write_text("nothing")
    assert reliability.main(["--write", str(readme)]) == 2
    assert capsys.readouterr().err.count("\n") == 1
    assert reliability.main(["--write", str(tmp_path / "nowhere")]) == 2
    assert "cannot read" in capsys.readouterr().err
    assert readme.read_text() == "nothing"


def test_the_readme_has_the_table() -> None:
    readme = (Path(__file__).parents[1] / "README.md").read_text(encoding="utf-8")
    assert readme.count(reliability.SLOT.begin) == readme.count(reliability.SLOT.end) == 1
    table = readme.partition(reliability.SLOT.begin)[2].partition(reliability.SLOT.end)[0]
    rows = re.findall(r"^\| ([^|]+) \| (\d+) \|$", table, re.MULTILINE)
    assert len(rows) == 5
    assert rows[-1] == ("bytes of weight changed wrongly", "0")
