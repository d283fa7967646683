"""Results of one problem joined by their seeds, and what they have over early stopping; all by hand."""

import dataclasses
from collections.abc import Mapping, Sequence

import pytest
import scipy.stats

from lip_fast.cli.errors import UserError
from lip_fast.harness.reports.collect import Result
from lip_fast.harness.reports.figures import draw_gains
from lip_fast.harness.reports.problems import Column, columns_of, compared, problems_of
from lip_fast.harness.reports.tables import main_table, tables_of, titles_of
from lip_fast.harness.runs.records import Record
from lip_fast.harness.settings.train import TrainConfig

# Of three epochs the held-out labels choose the second.
CHOSEN, MIDDLE = [0.4, 0.6, 0.5], 1


def record(*accuracy: float | None, validation: Sequence[float | None] = CHOSEN) -> Record:
    epochs = len(accuracy)
    zeros = [0.0] * epochs
    return Record(list(accuracy), list(validation), [None] * epochs, [1.0] * epochs, [1e-4] * epochs, zeros)


def result(name: str, seeds: Mapping[int, Mapping[str, Record]], **settings: object) -> Result:
    methods = tuple(next(iter(seeds.values())))
    config = TrainConfig(**{"data": "digits", "methods": methods, **settings})
    by_seed = {seed: dict(records) for seed, records in seeds.items()}
    return Result(name, config, "digits", "40% wrong", str(config.algorithm), by_seed, {}, 1.0)


EARLY = [0.60, 0.62, 0.70]
RIDGE = [0.63, 0.66, 0.75]  # of the network that early stopping takes


@pytest.fixture
def results() -> list[Result]:
    plain = [record(0.5, early, 0.45) for early in EARLY]
    ridge = [record(0.1, r, 0.2, validation=[0.0, 0.1, 0.9]) for r in RIDGE]
    return [
        result("repairs", {s: {"plain": plain[s], "ridge": ridge[s]} for s in range(3)}),
        result(
            "half",
            {s: {"in-step": record(0.1, EARLY[s] + 0.02, 0.3)} for s in range(3)},
            rank=0.5,
        ),
        result(
            "auto",
            {s: {"in-step": record(0.1, 0.2, 0.65, validation=[0, 1, 2])} for s in (0, 2)},
            rank="auto",
        ),
        result(
            "gce",
            {s: {"plain": record(0.1, 0.8, 0.3, validation=[0, 0.5 + s / 10, 0.1])} for s in range(3)},
            algorithm="gce",
            options={"q": 0.5},
        ),
        result(
            "elr",
            {s: {"plain": record(0.9, 0.2, 0.7, validation=[0.65, 0.1, 0.2])} for s in range(3)},
            algorithm="elr",
        ),
    ]


def test_titles_tell_results_apart_but_not_by_what_tables_show(results: list[Result]) -> None:
    # Their methods differ too.
    assert titles_of(results[:3]) == ["auto (rank 0.9)", "auto (rank 0.5)", "auto (rank auto)"]


def test_algorithms_and_ranks_are_one_row(results: list[Result]) -> None:
    (problem,) = problems_of(results)
    assert problem.names == ("repairs", "half", "auto", "gce", "elr")
    assert problem.early == dict(enumerate(EARLY))
    chosen = problem.scores["chosen"]
    assert chosen[Column("plain")] == dict.fromkeys(range(3), 0.45)  # the last epoch always
    # Of the epoch that plain training would stop at, not of its own.
    assert chosen[Column("ridge")] == dict(enumerate(RIDGE))
    assert chosen[Column("in-step", 0.5)] == {s: EARLY[s] + 0.02 for s in range(3)}
    assert chosen[Column("in-step", "auto")] == {0: 0.65, 2: 0.65}
    # Seed by seed the one that agrees best: 0.5, 0.6, 0.7 of GCE against 0.65 of ELR.
    assert chosen[Column("robust")] == {0: 0.9, 1: 0.9, 2: 0.8}
    last = problem.scores["last"]
    assert last[Column("ridge")] == dict.fromkeys(range(3), 0.2)
    assert last[Column("in-step", 0.5)] == dict.fromkeys(range(3), 0.3)
    assert last[Column("robust")] == dict.fromkeys(range(3), 0.7)
    assert [column.title for column in columns_of([problem])] == [
        "plain, last epoch",
        "best robust loss",
        "LIP in the step, rank 0.5",
        "LIP in the step, rank auto",
        "ridge afterwards",
    ]


def test_other_settings_are_other_rows(results: list[Result]) -> None:
    other = dataclasses.replace(results[0], config=dataclasses.replace(results[0].config, lr=0.5))
    wide = dataclasses.replace(other, config=dataclasses.replace(other.config, features="random-relu:8"))
    problems = problems_of([*results, other, wide])
    assert [problem.model for problem in problems] == ["mlp, lr 0.002", "mlp, lr 0.5", "mlp on random-relu:8"]
    assert Column("robust") not in problems[1].scores["chosen"]


def test_differences_are_paired_and_adjusted_together(results: list[Result]) -> None:
    problems = problems_of(results)
    found = compared(problems, "chosen")
    p = scipy.stats.ttest_rel(RIDGE, EARLY).pvalue
    ridge = found[0, Column("ridge")]
    assert ridge.difference.p == pytest.approx(p)
    assert ridge.difference.mean == pytest.approx(0.04)
    # Five have a p-value, and this is the smallest.
    assert min(c.difference.p for c in found.values()) == ridge.difference.p
    assert ridge.adjusted == pytest.approx(5 * p)
    half, auto = found[0, Column("in-step", 0.5)], found[0, Column("in-step", "auto")]
    assert (half.difference.low, half.difference.p) == (None, 0.25)  # all three are better by the same
    assert auto.difference.pairs == 2
    assert auto.difference.mean == pytest.approx((0.65 - 0.60 + 0.65 - 0.70) / 2)


def test_the_table_says_what_is_missing(results: list[Result]) -> None:
    table = tables_of(results)[0]
    (row,) = table.rows
    cells = dict(zip(table.header, row, strict=True))
    interval = scipy.stats.ttest_rel(RIDGE, EARLY).confidence_interval(0.95)
    assert cells["ridge afterwards"] == f"+4.0 [{100 * interval.low:+.1f}, {100 * interval.high:+.1f}]"
    assert cells["early stopping"] == "64.0 ± 5.3"
    assert cells["LIP in the step, rank 0.5"] == "+2.0"
    assert cells["LIP in the step, rank auto"].startswith("+0.0 [")
    assert cells["LIP in the step, rank auto"].endswith(" (of 2 seeds)")
    assert tables_of(results)[1].title == "Without stopping early"


def test_candidate_sets() -> None:
    plain, robust = record(0.1, 0.5, 0.3), record(0.1, 0.6, 0.3)
    found = problems_of(
        [
            result("cc", {0: {"plain": plain}}, noise="partial", algorithm="cc"),
            result("proden", {0: {"plain": robust}}, noise="partial", algorithm="proden"),
            # It is told clean labels, and no matter of losses.
            result("clean", {0: {"plain": record(0.1, 0.9, 0.3)}}, noise="partial", algorithm="clean-head"),
        ]
    )
    (problem,) = found
    assert problem.early == {0: 0.5}
    assert problem.scores["chosen"] == {Column("plain"): {0: 0.3}, Column("robust"): {0: 0.6}}


def test_without_a_hold_out_or_plain_training_there_is_no_row() -> None:
    none = [None] * 3
    blind = result("a", {0: {"plain": record(0.1, 0.2, 0.3, validation=none)}}, holdout_fraction=0)
    alone = result("b", {0: {"in-step": record(0.1, 0.2, 0.3)}})
    assert problems_of([blind, alone]) == []
    assert tables_of([blind, alone])[0].title == "Beside the last epoch, by algorithm"
    assert draw_gains([blind, alone]) == []
    with pytest.raises(UserError, match="expected runs of plain training with a hold-out"):
        main_table([blind, alone])


def test_part_of_the_table(results: list[Result]) -> None:
    other = dataclasses.replace(
        results[0], name="other", config=dataclasses.replace(results[0].config, lr=0.5)
    )
    table = main_table([*results, other], ["hal*"], ["plain", "in-step"])
    assert table.header[4:] == (
        "plain, last epoch",
        "LIP in the step, rank 0.5",
        "LIP in the step, rank auto",
    )
    (row,) = table.rows
    assert row[1:] == ("mlp, lr 0.002", "3", "64.0 ± 5.3", "-19.0", "+2.0", "+0.0 (of 2 seeds)")
    assert len(main_table([*results, other]).rows) == 2
    with pytest.raises(
        UserError, match=r"whose rows fit x\*, found only repairs, half, auto, gce, elr, other"
    ):
        main_table([*results, other], ["x*"])
    with pytest.raises(UserError, match="unknown column 'gaussian': known are plain, robust, in-step, ridge"):
        main_table(results, columns=["gaussian"])


def test_figures_are_a_page_high_at_most(results: list[Result]) -> None:
    many = [
        dataclasses.replace(each, data=data, labels=f"{labels}% wrong", name=f"{data} {labels} {each.name}")
        for data, count in (("digits", 40), ("faces", 3), ("words", 3))
        for labels in range(count)
        for each in results
    ]
    pages = draw_gains(many)
    assert len(pages) > 1
    assert all(page.get_figheight() <= 10 for page in pages)
    rows = [len(axes.get_yticks()) for page in pages for axes in page.axes]
    assert sum(rows) == 46
    assert len(draw_gains(results)) == 1
