import dataclasses
import json
from collections.abc import Sequence
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import scipy.stats
import yaml

from lip_fast.cli import main
from lip_fast.cli.errors import UserError
from lip_fast.harness.repairs.posthoc import RULES
from lip_fast.harness.reports.collect import Result, collect
from lip_fast.harness.reports.pages import table_as_markdown
from lip_fast.harness.reports.tables import comparisons, tables_of, titles_of
from lip_fast.harness.runs.environment import environment
from lip_fast.harness.runs.records import Record
from lip_fast.harness.settings.train import TrainConfig

PNG = b"\x89PNG\r\n\x1a\n"
# Test accuracies after the last of two epochs, by method and seed.
PLAIN, LIP, AFTER = [0.50, 0.60, 0.70], [0.55, 0.66, 0.74], [0.48, 0.61, 0.70]


def record(accuracy: float, **values: Any) -> Record:
    return Record(
        **{
            "test_accuracy": [accuracy + 0.02, accuracy],
            "validation": [0.3, 0.2],
            "memorised": [0.1, 0.25],
            "train_loss": [2.0, 1.0],
            "step_seconds": [1e-4, 1e-4],
            "lip_seconds": [0.0, 0.0],
            "singular_values": [2.0, 1.0],
            **values,
        }
    )


def path_of(accuracy: float) -> dict[str, Any]:
    """Ranks 0 to 3: the last one changes nothing, and 2 is best."""
    rules = dict(zip(RULES, (1, 2, 2, 3, 0, 2), strict=True))
    tests = [accuracy - 0.1, accuracy + 0.01, accuracy + 0.03, accuracy]
    return {"ranks": [0, 1, 2, 3], "test_accuracy": tests, "validation": [0.1, 0.2, 0.3, 0.1], "rules": rules}


def records(seed: int) -> dict[str, Record]:
    return {
        "plain": record(PLAIN[seed]),
        "in-step": record(LIP[seed], step_seconds=[3e-4] * 2, lip_seconds=[2e-4] * 2, rank=2),
        "post-hoc": record(AFTER[seed], repair_seconds=[2e-3] * 2, rank=2, path=path_of(PLAIN[seed])),
    }


def write_run(folder: Path, seeds: Sequence[int], data: str = "digits", **settings: Any) -> Path:
    folder.mkdir(parents=True)
    config = TrainConfig(first_seed=seeds[0], seeds=len(seeds), epochs=2, name=folder.name, **settings)
    (folder / "config.yaml").write_text(yaml.safe_dump(config.as_dict()))
    metrics = {
        "environment": environment(),
        "seconds": 10.0,
        "data": data,
        "labels": "40% symmetric label noise",
        "algorithm": "cross entropy",
        "seeds": [
            {"seed": s, "methods": {m: dataclasses.asdict(r) for m, r in records(s).items()}} for s in seeds
        ],
    }
    (folder / "metrics.json").write_text(json.dumps(metrics))
    return folder


@pytest.fixture
def sweep(tmp_path: Path) -> Path:
    """Three seeds of one row, and one of another."""
    folder = tmp_path / "s"
    for seed in range(3):
        write_run(folder / "a" / f"seed-{seed}", [seed], out="x", threads=1 + seed)
    write_run(folder / "b" / "seed-0", [0], lr=0.5)
    return folder


def refusal(arguments: list[str], capsys) -> str:
    assert main(["report", *arguments]) == 2
    output = capsys.readouterr()
    assert output.out == ""
    assert output.err.count("\n") == 1
    return output.err


# Collected -------------------------------------------------------------------------------------------


def test_seeds_of_the_same_settings_are_one_row(sweep: Path) -> None:
    results, unfinished = collect([sweep])
    assert [(r.name, list(r.seeds), r.seconds) for r in results] == [("a", [0, 1, 2], 30.0), ("b", [0], 10.0)]
    assert unfinished == []
    assert results[0].seeds[2]["in-step"] == records(2)["in-step"]
    assert results[1].config.lr == 0.5
    assert results[0].config.name is None


def test_runs_of_earlier_versions_are_rows_of_later_ones(sweep: Path) -> None:
    path = sweep / "a" / "seed-0" / "config.yaml"
    settings = yaml.safe_load(path.read_text())
    path.write_text(yaml.safe_dump({k: v for k, v in settings.items() if k not in TrainConfig.LATER}))
    assert [list(result.seeds) for result in collect([sweep])[0]] == [[0, 1, 2], [0]]


def test_runs_of_several_seeds_and_folders_are_put_together(tmp_path: Path) -> None:
    first = write_run(tmp_path / "x", [1, 2])
    second = write_run(tmp_path / "y", [0], device="cpu", checkpoint_every=3, tensorboard=True)
    (result,), _ = collect([first, second])
    assert (result.name, list(result.seeds)) == ("x", [0, 1, 2])
    other = write_run(tmp_path / "z", [0], batch_size=32)
    assert [r.name for r in collect([first, other])[0]] == ["x", "z"]


def test_a_seed_that_was_run_twice_is_refused(sweep: Path) -> None:
    again = write_run(sweep / "c" / "seed-2", [2], out="y")
    with pytest.raises(UserError, match=f"expected each seed of a once, found seed 2 again in {again}"):
        collect([sweep])


def test_what_is_not_complete_is_listed(sweep: Path) -> None:
    run = sweep / "b" / "seed-0"
    (run / "metrics.json").unlink()
    hidden = write_run(sweep / "b" / ".partial.1.seed-1", [1])
    (hidden / "metrics.json").unlink()
    results, unfinished = collect([sweep])
    assert [r.name for r in results] == ["a"]
    assert unfinished == [run]


def test_where_nothing_is_complete(tmp_path: Path, capsys) -> None:
    assert f"found none at {tmp_path / 'x'}" in refusal([str(tmp_path / "x")], capsys)
    assert "expected at least one complete run" in refusal([str(tmp_path)], capsys)
    (write_run(tmp_path / "a", [0]) / "metrics.json").unlink()
    assert "found none, and 1 that are not complete" in refusal([str(tmp_path)], capsys)
    assert [path.name for path in tmp_path.iterdir()] == ["a"]


@pytest.mark.parametrize(
    "text",
    ["", "{", '{"seeds": [{}]}', '{"seeds": [{"seed": 0, "methods": {"plain": {"x": 1}}}]}', "3", "\xff"],
)
def test_damaged_results_are_one_line(sweep: Path, capsys, text: str) -> None:
    path = sweep / "b" / "seed-0" / "metrics.json"
    path.write_text(text, encoding="latin-1")
    told = "is empty" if not text else "cannot be read"
    assert f"expected the results of a run, {path} {told}" in refusal([str(sweep)], capsys)
    assert not (sweep / "report.html").exists()


def test_damaged_settings_are_one_line(sweep: Path, capsys) -> None:
    (sweep / "b" / "seed-0" / "config.yaml").write_text("epochs: [")
    assert "expected the settings of a run" in refusal([str(sweep)], capsys)


# Tables ----------------------------------------------------------------------------------------------


def cells(sweep: Path, title: str) -> list[dict[str, str]]:
    tables = {table.title: table for table in tables_of(collect([sweep])[0])}
    table = tables[title]
    return [dict(zip(table.header, row, strict=True)) for row in table.rows]


def test_accuracies_and_differences(sweep: Path) -> None:
    first, second = cells(sweep, "Beside the last epoch, by algorithm")
    assert first["data"] == "digits, 40% symmetric label noise"
    assert (first["seeds"], second["seeds"]) == ("3", "1")
    assert first["plain"] == "60.0 ± 10.0"
    assert second["plain"] == "50.0"
    interval = scipy.stats.ttest_rel(LIP, PLAIN).confidence_interval(0.95)
    assert first["LIP in the step"] == f"**+5.0 [{100 * interval.low:+.1f}, {100 * interval.high:+.1f}]**"
    interval = scipy.stats.ttest_rel(AFTER, PLAIN).confidence_interval(0.95)
    assert first["LIP afterwards"] == f"-0.3 [{100 * interval.low:+.1f}, {100 * interval.high:+.1f}]"
    assert second["LIP in the step"] == "+5.0"


def test_p_values_are_adjusted_for_all_differences_of_a_report(sweep: Path) -> None:
    results = collect([sweep])[0]
    compared = comparisons(results)
    assert set(compared) == {(place, method) for place in (0, 1) for method in ("in-step", "post-hoc")}
    p = scipy.stats.ttest_rel(LIP, PLAIN).pvalue
    assert compared[0, "in-step"].difference.p == pytest.approx(p)
    # Two have p-values; those of single seeds have none.
    assert compared[0, "in-step"].adjusted == pytest.approx(2 * p)
    assert compared[0, "in-step"].significant
    assert not compared[0, "post-hoc"].significant
    assert compared[1, "in-step"].adjusted is None
    many = [dataclasses.replace(results[0], name=str(i)) for i in range(4)]
    assert comparisons(many)[0, "in-step"].adjusted == pytest.approx(8 * p)
    assert not comparisons(many)[0, "in-step"].significant


def test_which_epoch(sweep: Path) -> None:
    rows = cells(sweep, "Which epoch")
    assert [row["method"] for row in rows] == ["plain", "LIP in the step", "LIP afterwards"] * 2
    assert rows[0] == {
        "data": "digits, 40% symmetric label noise",
        "algorithm": "cross entropy (lr 0.002)",
        "method": "plain",
        "last epoch": "60.0 ± 10.0",
        "mean of last five": "61.0 ± 10.0",
        "chosen by held-out labels": "62.0 ± 10.0",
        "best epoch (looks at the test part)": "62.0 ± 10.0",
        "wrong labels fitted": "25.0 ± 0.0",
    }


def test_which_rank(sweep: Path) -> None:
    row = cells(sweep, "Which rank")[0]
    gains = ["+1.0 (k = 1)", "+3.0 (k = 2)", "+3.0 (k = 2)", "+0.0 (k = 3)", "-10.0 (k = 0)", "+3.0 (k = 2)"]
    assert [row[rule] for rule in RULES] == gains
    assert row["best"] == "+3.0 (k = 2)"


def test_what_it_costs(sweep: Path) -> None:
    rows = cells(sweep, "What it costs")[:3]
    costs = [tuple(row.values())[-3:] for row in rows]
    assert costs == [("100 µs", "", ""), ("100 µs", "200 µs", ""), ("", "", "2.0 ms")]


def test_titles_say_what_differs(sweep: Path) -> None:
    results = collect([sweep])[0]
    assert titles_of(results) == ["cross entropy (lr 0.002)", "cross entropy (lr 0.5)"]
    assert titles_of(results[:1]) == ["cross entropy"]
    other = dataclasses.replace(results[1], data="faces")
    assert titles_of([results[0], other]) == ["cross entropy"] * 2


def test_without_repairs_hold_out_or_plain_training() -> None:
    only = {"in-step": record(0.5, validation=[None, None], memorised=[None, None])}
    result = Result("a", TrainConfig(), "d", "l", "ce", {0: only}, environment(), 1.0)
    tables = {table.title: table.rows for table in tables_of([result])}
    assert tables["Beside the last epoch, by algorithm"] == [("d, l", "ce", "1", "50.0")]
    assert tables["Which epoch"][0][-5:] == ("50.0", "51.0", "-", "52.0", "-")
    assert "Which rank" not in tables


# Files -----------------------------------------------------------------------------------------------


class Page(HTMLParser):
    """Tags that are open, what refers to elsewhere, and the text of cells."""

    VOID = ("meta", "img")

    def __init__(self, text: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.tags: list[str] = []
        self.references: list[str] = []
        self.cells: list[str] = []
        self.feed(text)
        self.close()

    def handle_starttag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.references += [value or "" for name, value in attributes if name in ("src", "href", "data")]
        if tag not in self.VOID:
            self.open.append(tag)
        if tag in ("td", "th"):
            self.cells.append("")

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        if self.open and {"td", "th"} & set(self.open):
            self.cells[-1] += data


def test_a_report_is_one_page_markdown_figures_and_numbers(sweep: Path, capsys) -> None:
    assert main(["report", str(sweep), "--title", "A & B"]) == 0
    output = capsys.readouterr().out.splitlines()
    assert output[0] == "2 rows of 4 runs; 0 runs are not complete"
    assert output[1:] == [str(sweep / f"report.{kind}") for kind in ("html", "md", "json")]
    figures = ["curves.png", "gains.png", "ranks.png"]
    files = [path for path in sweep.iterdir() if path.is_file()]
    assert sorted(path.name for path in files) == sorted(
        [*figures, "report.html", "report.json", "report.md"]
    )
    for name in figures:
        assert (sweep / name).read_bytes().startswith(PNG)
    markdown = (sweep / "report.md").read_text(encoding="utf-8")
    assert markdown.startswith("# A & B\n")
    linked = [line.partition("](")[2].rstrip(")") for line in markdown.splitlines() if line.startswith("![")]
    assert sorted(linked) == figures
    text = (sweep / "report.html").read_text(encoding="utf-8")
    page = Page(text)
    assert page.open == []
    assert "http:" not in text
    assert "https:" not in text
    assert len(page.references) == 3
    assert all(reference.startswith("data:image/png;base64,") for reference in page.references)
    assert not {"script", "link", "iframe"} & set(page.tags)
    assert "<h1>A &amp; B</h1>" in text
    # Both say the same.
    for table in tables_of(collect([sweep])[0]):
        assert table_as_markdown(table) in markdown
        for cell in (cell for row in table.rows for cell in row):
            assert cell.strip("*") in page.cells
    assert "<b>+5.0 [" in text
    numbers = json.loads((sweep / "report.json").read_text())
    assert numbers["rows"][0]["methods"]["in-step"]["last"] == LIP
    lip = numbers["early_stopping"][0]["last"]["LIP in the step, rank 0.9"]
    assert lip["test_accuracy"] == {str(seed): accuracy for seed, accuracy in enumerate(LIP)}
    assert numbers["early_stopping"][1]["chosen"]["plain, last epoch"]["adjusted_p"] is None
    assert numbers["rows"][0]["methods"]["plain"]["adjusted_p"] is None
    assert numbers["rows"][0]["seeds"] == [0, 1, 2]
    assert numbers["rows"][1]["methods"]["post-hoc"]["best"] == [pytest.approx(AFTER[0] + 0.02)]
    assert "Fewer than three seeds, too few to tell differences from chance: b." in markdown


def test_names_do_no_harm(tmp_path: Path) -> None:
    write_run(tmp_path / "a", [0, 1], data="<script>alert(1)</script> | $x$")
    assert main(["report", str(tmp_path)]) == 0
    text = (tmp_path / "report.html").read_text(encoding="utf-8")
    page = Page(text)
    assert "script" not in page.tags
    assert any("<script>alert(1)</script>" in cell for cell in page.cells)
    row = next(line for line in (tmp_path / "report.md").read_text().splitlines() if "alert" in line)
    assert "\\|" in row


def test_a_report_can_be_written_again_elsewhere_and_with_less(sweep: Path, tmp_path: Path) -> None:
    out = tmp_path / "deep" / "out"
    assert main(["report", str(sweep), "--out", str(out)]) == 0
    assert (out / "ranks.png").exists()
    for path in sweep.rglob("metrics.json"):
        metrics = json.loads(path.read_text())
        for entry in metrics["seeds"]:
            entry["methods"] = {"plain": entry["methods"]["plain"]}
        path.write_text(json.dumps(metrics))
    assert main(["report", str(sweep), "--out", str(out)]) == 0
    # What there are no data for any more is gone.
    assert sorted(path.name for path in out.iterdir()) == [
        "curves.png", "gains.png", "report.html", "report.json", "report.md"
    ]  # fmt: skip
    assert not (sweep / "report.md").exists()


MARKS = ("<!-- results:begin -->", "<!-- results:end -->")


def test_the_accuracies_go_between_the_marks(sweep: Path, tmp_path: Path) -> None:
    readme = tmp_path / "README.md"
    readme.write_text(f"before é\n{MARKS[0]}\nearlier\n{MARKS[1]}\nafter\n", encoding="utf-8")
    texts = []
    for _ in range(2):
        assert main(["report", str(sweep), "--into", str(readme)]) == 0
        text = readme.read_text(encoding="utf-8")
        assert text.startswith(f"before é\n{MARKS[0]}\n")
        assert text.endswith(f"\n{MARKS[1]}\nafter\n")
        assert "earlier" not in text
        assert text.count("| data | network | seeds | early stopping | plain, last epoch |") == 1
        assert text.count("62.0 ± 10.0 | -2.0 | ") == 1
        assert "| 52.0 |" in text
        texts.append(text)
    assert texts[0] == texts[1]


def test_rows_and_columns_between_the_marks(sweep: Path, tmp_path: Path) -> None:
    readme = tmp_path / "README.md"
    readme.write_text("\n".join(MARKS), encoding="utf-8")
    shown = ["--into", str(readme), "--only", "a", "--columns", "in-step"]
    assert main(["report", str(sweep), *shown]) == 0
    table = [line for line in readme.read_text(encoding="utf-8").splitlines() if line.startswith("|")]
    assert table[0] == "| data | network | seeds | early stopping | LIP in the step, rank 0.9 |"
    assert table[2:] == ["| digits, 40% symmetric label noise | mlp, lr 0.002 | 3 | 62.0 ± 10.0 | **+5.0** |"]
    # The report has all.
    assert "mlp, lr 0.5" in (sweep / "report.md").read_text(encoding="utf-8")


@pytest.mark.parametrize(
    "text", ["", MARKS[0], f"{MARKS[1]} {MARKS[0]}", f"{MARKS[0]} {MARKS[0]} {MARKS[1]}"]
)
def test_without_the_marks_a_file_is_left_alone(sweep: Path, tmp_path: Path, capsys, text: str) -> None:
    readme = tmp_path / "README.md"
    readme.write_text(text)
    error = refusal([str(sweep), "--into", str(readme)], capsys)
    assert f"expected {MARKS[0]} and, after it, {MARKS[1]} once each in {readme}" in error
    assert readme.read_text() == text
    assert not list(tmp_path.rglob(".partial.*"))


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        ([], "the following arguments are required: FOLDER"),
        (["s", "--titel", "x"], "unknown option '--titel'"),
        (["s", "--titel", "x"], "nearest is '--title'"),
        (["s", "--into", "nowhere.md"], "expected --into to be a file, found none at nowhere.md"),
        (["s", "--only", "a"], "expected --into FILE.md with --only and --columns"),
        (["s", "--out", "s/a/seed-0/config.yaml"], "expected a folder that can be written"),
    ],
)
def test_a_mistake_is_one_line(sweep: Path, capsys, monkeypatch, arguments: list[str], expected: str) -> None:
    monkeypatch.chdir(sweep.parent)
    assert expected in refusal(arguments, capsys)


def test_a_disk_that_is_full_leaves_no_half_written_report(sweep: Path, capsys, monkeypatch) -> None:
    def fail(descriptor: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("os.fsync", fail)
    assert "No space left on device" in refusal([str(sweep)], capsys)
    assert sorted(path.name for path in sweep.iterdir()) == ["a", "b"]


def test_figures_of_runs_whose_seeds_differ(sweep: Path) -> None:
    """Rules may ask for other ranks of each seed: those of all seeds are drawn."""
    path = sweep / "a" / "seed-1" / "metrics.json"
    metrics = json.loads(path.read_text())
    entry = metrics["seeds"][0]["methods"]["post-hoc"]["path"]
    for key in ("ranks", "test_accuracy", "validation"):
        del entry[key][1]
    entry["rules"] = {rule: 3 for rule in entry["rules"]}
    path.write_text(json.dumps(metrics))
    assert main(["report", str(sweep)]) == 0
    assert cells(sweep, "Which rank")[0][RULES[0]] == "+0.7 (k = 1-3)"
    assert np.isclose(0.7, 100 * (0.01 + 0.0 + 0.01) / 3, atol=0.05)
