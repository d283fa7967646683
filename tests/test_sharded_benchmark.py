"""benchmarks.sharded and benchmarks.scale: what is reported, what is refused, and what the page says."""

import copy
import json
import math
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from benchmarks import scale, sharded
from benchmarks.traffic import Case, Collective, simulated

ROOT = Path(__file__).parents[1]
COMMIT = "0123456789abcdef0123456789abcdef01234567"
README = f"# Title\n\nbefore\n{sharded.SLOT.begin}\nold\n{sharded.SLOT.end}\nafter\n"


# benchmarks.sharded ---------------------------------------------------------------------------------------


def gate(name: str, bound: float) -> dict[str, Any]:
    return {"name": name, "value": bound / 10, "bound": bound, "control": 0.1, "passed": True}


def complete() -> dict[str, Any]:
    """A result that nothing is wrong with; of ours 2 ms, gathering 6 ms, alone 4 ms."""
    times = {"ours": 2000.0, "gathered": 6000.0, "alone": 4000.0}
    rows = [
        {
            "row": row._asdict(),
            "payload_bytes": {"ours": 164_000 * (row.world > 1), "gathered": 4_000_000 * (row.world > 1)},
            "times": {
                name: {"median_us": time, "q1_us": time, "q3_us": time, "rounds": row.rounds}
                for name, time in times.items()
            },
            "gates": [gate("ours", 1e-5), gate("gathered", 1e-5)],
        }
        for row in sharded.ROWS
    ]
    errors = [{"row": row._asdict(), "gates": [gate("distance", row.bound)]} for row in sharded.ERRORS]
    return {
        "machine_info": {
            "cpu": "Some CPU",
            "cores": 2,
            "threads": 1,
            "system": "Linux",
            "python": "3.11.7",
            "torch": "2.13.0",
        },
        "commit_info": {"id": COMMIT, "dirty": False},
        "datetime": "2026-01-03T04:05:06+00:00",
        "rows": rows,
        "errors": errors,
    }


class Files:
    """A result and a README in one folder, outside of any checkout."""

    def __init__(self, folder: Path) -> None:
        self.result, self.readme = folder / "sharded.json", folder / "README.md"
        self.readme.write_text(README)

    def report(self, data: Any, *arguments: str) -> int:
        self.result.write_text(data if isinstance(data, str) else json.dumps(data))
        return sharded.main(
            ["--report", "--result", str(self.result), "--write", str(self.readme), *arguments]
        )


@pytest.fixture
def files(tmp_path: Path) -> Files:
    return Files(tmp_path)


def test_a_complete_result_is_reported(files: Files) -> None:
    assert files.report(complete()) == 0
    text = files.readme.read_text()
    assert text.startswith("# Title\n\nbefore\n")
    assert text.endswith("\nafter\n")
    assert "\nold\n" not in text
    assert "Some CPU, 2 cores" in text
    assert COMMIT[:12] in text
    assert "4 processes share 2 cores" in text
    first, last = sharded.ROWS[0], sharded.ROWS[-1]
    assert (first.world, last.world) == (1, 4)
    assert (
        f"| {last.l} x {last.q} | 4 | 164 kB | 4.0 MB | 2.0 ms | 6.0 ms | 3.0x faster | 4.0 ms | 0.50x |"
        in text
    )
    assert f"| {first.l} x {first.q} | 1 | nothing | nothing |" in text
    assert (
        f"| {sharded.ERRORS[0].l} x {sharded.ERRORS[0].q} | 1 | float32 | 1e-04 (≤ 1e-03) | 1e-01 |" in text
    )


def test_enough_cores_need_no_note(files: Files) -> None:
    data = complete()
    data["machine_info"]["cores"] = 4
    assert files.report(data) == 0
    assert "share" not in files.readme.read_text()


def test_a_busy_machine_is_said_to_have_been_one(files: Files) -> None:
    data = complete()
    assert files.report(data) == 0
    assert "busy" not in files.readme.read_text()
    data["rows"][4]["times"]["ours"]["q3_us"] = 4000.0
    assert files.report(data) == 0
    row = sharded.ROWS[4]
    assert f"apart in {row.l} x {row.q} in {row.world} processes." in files.readme.read_text()


def test_a_tree_with_changes_is_said_to_be_one(files: Files) -> None:
    data = complete()
    data["commit_info"]["dirty"] = True
    assert files.report(data, "--allow-dirty") == 0
    assert f"`{COMMIT[:12]}` with changes" in files.readme.read_text()


def _without(*path: Any) -> Callable[[Any], None]:
    def change(data: Any) -> None:
        for key in path[:-1]:
            data = data[key]
        del data[path[-1]]

    return change


def _with(value: Any, *path: Any) -> Callable[[Any], None]:
    def change(data: Any) -> None:
        for key in path[:-1]:
            data = data[key]
        data[path[-1]] = value

    return change


REFUSED: dict[str, Callable[[Any], None]] = {
    "no rows": _without("rows"),
    "a row is missing": _without("rows", 3),
    "a comparison is missing": _without("errors", 0),
    "a row of other benchmarks": _with({"world": 3}, "rows", 0, "row"),
    "a row that is none": _with(3, "rows", 0),
    "a row twice": lambda data: data["rows"].append(copy.deepcopy(data["rows"][0])),
    "no machine": _without("machine_info"),
    "no date": _without("datetime"),
    "an unknown commit": _with("unknown", "commit_info", "id"),
    "a tree with changes": _with(True, "commit_info", "dirty"),
    "no time": _without("rows", 0, "times", "gathered"),
    "a time that is none": _with(math.nan, "rows", 0, "times", "ours", "median_us"),
    "nothing sent": _with(0, "rows", -1, "payload_bytes", "ours"),
    "one process that sends": _with(8, "rows", 0, "payload_bytes", "ours"),
    "a check that failed": _with(1e-4, "rows", 0, "gates", 0, "value"),
    "a check that is NaN": _with(math.nan, "rows", 0, "gates", 1, "value"),
    "a check that could not fail": _with(1e-6, "errors", 0, "gates", 0, "control"),
    "a check with a bound of its own": _with(1.0, "errors", 0, "gates", 0, "bound"),
    "a check that is missing": _without("errors", 1, "gates", 0),
}


@pytest.mark.parametrize("name", list(REFUSED))
def test_what_cannot_be_vouched_for_is_refused(
    name: str, files: Files, capsys: pytest.CaptureFixture[str]
) -> None:
    data = complete()
    REFUSED[name](data)
    assert files.report(data) == 2
    assert files.readme.read_text() == README
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 1
    assert lines[0].startswith("benchmarks.sharded: ")


@pytest.mark.parametrize(
    "text", ["", "[]", "{", '{"rows": 3}', '{"rows": [3]}', '{"rows": [{}], "errors": 1}']
)
def test_other_files_are_refused(text: str, files: Files, capsys: pytest.CaptureFixture[str]) -> None:
    assert files.report(text) == 2
    assert files.readme.read_text() == README
    assert len(capsys.readouterr().err.splitlines()) == 1


def test_a_readme_without_markers_is_refused_before_the_run(
    files: Files, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sharded, "run", lambda: pytest.fail("the run was begun"))
    files.readme.write_text("nothing")
    assert sharded.main(["--allow-dirty", "--write", str(files.readme)]) == 2
    assert "markers" in capsys.readouterr().err


def test_a_run_is_written_with_its_report(files: Files, monkeypatch: pytest.MonkeyPatch) -> None:
    data = complete()
    data["commit_info"]["dirty"] = True
    monkeypatch.setattr(sharded, "run", lambda: data)
    arguments = ["--allow-dirty", "--result", str(files.result), "--write", str(files.readme)]
    assert sharded.main(arguments) == 0
    assert json.loads(files.result.read_text()) == data
    assert "3.0x faster" in files.readme.read_text()


@pytest.mark.process
def test_processes_measure_a_row_and_a_comparison(tmp_path: Path) -> None:
    # A small one; a comparison of theirs takes seconds.
    from distributed.launch import launch

    found = launch(2, "distributed.collectives:benchmark", tmp_path)
    case = Case("class", 2, 301, 64, 8, 4)
    assert found["row"]["payload_bytes"] == {
        "ours": sum(c.payload for c in scale.collectives(case)),
        "gathered": scale.whole_weight(case).payload,
    }
    assert {name: times["rounds"] for name, times in found["row"]["times"].items()} == dict.fromkeys(
        sharded.VARIANTS, 3
    )
    assert [g["name"] for g in found["row"]["gates"]] == ["ours", "gathered"]
    assert all(g["passed"] for g in found["row"]["gates"] + found["error"]["gates"])


def test_readme_says_what_was_measured(tmp_path: Path) -> None:
    report = sharded.render(sharded.load(json.loads(sharded.RESULT.read_text()), checkout=tmp_path))
    assert f"{sharded.SLOT.begin}\n{report}\n{sharded.SLOT.end}" in (ROOT / "README.md").read_text(
        encoding="utf-8"
    )


# benchmarks.scale -----------------------------------------------------------------------------------------


def test_the_page_is_what_the_formulas_say() -> None:
    page = (ROOT / "docs" / "scaling.md").read_text(encoding="utf-8")
    assert f"{scale.SLOT.begin}\n{scale.render()}\n{scale.SLOT.end}" in page


@pytest.mark.process
def test_the_page_counts_the_bytes_that_simulated_worlds_send() -> None:
    # The cases of the page, on fewer classes, which bytes do not depend on.
    makers: list[Callable[..., Case]] = [
        scale._truncated,
        scale._exact,
        lambda world, l: scale._truncated(world, l, data=True),
    ]
    cases = [replace(make(world, 96 * world), rows=24) for make in makers for world in scale.WORLDS]
    assert [case.world for case in cases[:3]] == [8, 64, 512]
    for case, report in zip(cases, simulated(cases), strict=True):
        assert list(report.steps[-1]) == scale.collectives(case)
        same = replace(case, l=1_000_000)
        assert scale.collectives(same) == scale.collectives(case)


def test_what_a_network_takes_is_counted_by_hand() -> None:
    total, gather = Collective("allreduce_", "float64", 9_000_000), Collective("gather", "float32", 1000)
    # In a ring of eight: seven eighths of it, twice.
    assert scale.network_floor([total], 8)[0] == pytest.approx(15e-6 + 2 * 7 / 8 * 9e6 / 450e9)
    # Two nodes: each GPU exchanges half of its eighth, twice.
    across = 2 * 1 / 2 * 9e6 / 8 / 50e9
    assert scale.network_floor([total], 16)[0] == pytest.approx(40e-6 + 2 * 7 / 8 * 9e6 / 450e9 + across)
    seconds, latency = scale.network_floor([gather, gather], 16)
    assert latency == pytest.approx(80e-6)
    assert seconds == pytest.approx(80e-6 + 2 * (1000 / 50e9 + 7 * 2 * 1000 / 450e9))


def test_floors_and_memory_are_counted_by_hand() -> None:
    case = Case("class", 8, 800, 512, 64, 8)
    used = scale.memory(case)
    assert used.training == 100 * 512 * 16
    assert used.step == 100 * (20 * 80 - 8 * 80 + 12 * 72)
    times = scale.floors(case)
    sketch = max(100 * 4 * (512 + 80) / 4.3e12, 3 * 4 * 100 * 512 * 80 / 495e12)
    small = max(100 * 4 * (80 + 72) / 4.3e12, (3 * 100 * 80 * 80 + 2 * 100 * 80 * 72) / 67e12)
    write = max((8 * 100 * 512 + 4 * 100 * 8) / 4.3e12, 3 * 2 * 100 * 512 * 8 / 495e12)
    assert times.local == pytest.approx(sketch + small + write)
    assert times.local < times.written < times.total
    assert times.latency == pytest.approx(30e-6)
    exact = replace(case, rank=460, tail_rank="all")
    assert scale.memory(exact).step == 100 * 512 * 8
    # By products, 460 kept and 52 refitted, with nothing below them.
    by_products = replace(case, rank=460, tail_rank=None)
    assert scale.memory(by_products).step == 100 * 16 * 512
    # 200 kept, 104 refitted and 8 fresh columns: 424 columns of the factors are written.
    by_products = replace(case, rank=200, tail_rank=None)
    assert scale.memory(by_products).step == 100 * 8 * (424 + 512)


def test_the_page_is_written_between_its_markers(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    page = tmp_path / "scaling.md"
    page.write_text(f"before\n{scale.SLOT.begin}\n{scale.SLOT.end}\nafter\n")
    assert scale.main(["--write", str(page)]) == 0
    assert page.read_text() == f"before\n{scale.SLOT.begin}\n{scale.render()}\n{scale.SLOT.end}\nafter\n"
    page.write_text("nothing")
    assert scale.main(["--write", str(page)]) == 2
    assert len(capsys.readouterr().err.splitlines()) == 1
