import pytest

from lip_fast.harness.runs.paired import Difference
from lip_fast.harness.runs.records import Record
from lip_fast.harness.runs.summary import SELECTIONS, Spread, Summary, selected, summarise
from lip_fast.harness.runs.table import percent, points, summary_table


def record(**values: object) -> Record:
    epochs = len(values["test_accuracy"])  # type: ignore[arg-type]
    filled = {
        "validation": [None] * epochs,
        "memorised": [None] * epochs,
        "step_seconds": [1.0] * epochs,
        "lip_seconds": [0.0] * epochs,
    }
    return Record(**filled | values)  # type: ignore[arg-type]


def test_last_best_and_times_are_told_apart() -> None:
    first = record(
        test_accuracy=[0.5, 0.9, 0.6],
        memorised=[0.0, 0.1, 0.2],
        step_seconds=[9.0, 1.0, 2.0],
        lip_seconds=[5.0, 0.5, 0.25],
    )
    second = record(
        test_accuracy=[0.7, 0.4, 0.4],
        memorised=[0.0, 0.1, 0.4],
        step_seconds=[1.0, 2.0, 9.0],
        lip_seconds=[0.5, 0.5, 6.0],
    )
    summary = summarise([{"plain": first}, {"plain": second}])["plain"]
    assert summary.last == Spread(pytest.approx(0.5), pytest.approx(0.02**0.5))
    assert summary.last_five == Spread(pytest.approx(3.5 / 6), pytest.approx((2 / 36 * 0.25) ** 0.5 / 1.0))
    assert summary.best == Spread(pytest.approx(0.8), pytest.approx(0.02**0.5))
    assert summary.memorised == Spread(pytest.approx(0.3), pytest.approx(0.02**0.5))
    assert summary.step_seconds == 2.0
    assert summary.lip_seconds == 0.5
    assert summary.repair_seconds is None
    assert summary.chosen is None
    assert summary.gain is None


def test_one_seed_has_no_deviation() -> None:
    summary = summarise([{"plain": record(test_accuracy=[0.5], repair_seconds=[3.0])}])["plain"]
    assert summary.last == Spread(0.5, None)
    assert summary.memorised is None
    assert summary.repair_seconds == 3.0


@pytest.mark.parametrize(
    ("accuracy", "validation", "expected"),
    [
        ([0.1, 0.2, 0.3], [0.5, 0.9, 0.4], [0.3, 0.2, 0.2, 0.3]),
        ([0.1, 0.2, 0.3], [0.9, 0.4, 0.9], [0.3, 0.2, 0.3, 0.3]),  # of equals the latest
        ([0.8, 0.7, 0.6], [0.4, 0.4, 0.3], [0.6, 0.7, 0.7, 0.8]),
        ([0.1, 0.2, 0.3], [None, None, None], [0.3, 0.2, None, 0.3]),
        ([0.0] + [0.5] * 3 + [1.0] * 2, [1.0] + [0.0] * 5, [1.0, 0.7, 0.0, 1.0]),
        ([0.25], [0.1], [0.25, 0.25, 0.25, 0.25]),
    ],
)
def test_the_epoch_that_counts(accuracy: list, validation: list, expected: list) -> None:
    found = selected(record(test_accuracy=accuracy, validation=validation))
    assert list(found._fields) == list(SELECTIONS)
    assert list(found) == [None if value is None else pytest.approx(value) for value in expected]


def test_gains_are_paired_seed_by_seed() -> None:
    plain, ours = [0.5, 0.9], [0.6, 0.9]
    seeds = [
        {"plain": record(test_accuracy=[1.0, a]), "in-step": record(test_accuracy=[0.0, b])}
        for a, b in zip(plain, ours, strict=True)
    ]
    summaries = summarise(seeds)
    assert summaries["plain"].gain is None
    gain = summaries["in-step"].gain
    assert gain is not None
    assert (gain.mean, gain.pairs) == (pytest.approx(0.05), 2)
    # Unpaired, the spread would be that of 0.5 and 0.9.
    assert gain.sd == pytest.approx(0.1 / 2**0.5)
    assert summarise([{"in-step": seed["in-step"]} for seed in seeds])["in-step"].gain is None


def test_the_choice_needs_a_hold_out_in_every_seed() -> None:
    with_one = record(test_accuracy=[0.1, 0.2], validation=[0.9, 0.1])
    without = record(test_accuracy=[0.1, 0.2])
    assert summarise([{"plain": with_one}] * 2)["plain"].chosen == Spread(0.1, 0.0)
    assert summarise([{"plain": with_one}, {"plain": without}])["plain"].chosen is None


def summary(last: Spread, memorised: Spread | None, step: float, lip: float = 0.0, **rest: object) -> Summary:
    values = {"last_five": Spread(0.65, 0.02), "chosen": None, "best": Spread(0.9, None), "gain": None}
    return Summary(
        last=last,
        memorised=memorised,
        step_seconds=step,
        lip_seconds=lip,
        **{**values, "repair_seconds": None, **rest},
    )


def test_table() -> None:
    gain = Difference(0.01, 0.01, -0.01, 0.03, 0.04, 3)
    table = summary_table(
        {
            "plain": summary(Spread(0.7, 0.05), Spread(0.5, 0.1), 1e-4, chosen=Spread(0.72, 0.01)),
            "in-step": summary(Spread(0.71, None), None, 3e-4, 2e-4, gain=gain),
            "post-hoc": summary(Spread(0.6, 0.0), Spread(0.25, 0.0), 1e-4, repair_seconds=2e-3),
        }
    )
    lines = [" | ".join(cell.strip() for cell in line.split("  ") if cell) for line in table.splitlines()]
    assert lines == [
        "last epoch | to plain | last five | chosen epoch | best epoch | wrong labels fitted | "
        "optimizer step",
        "plain | 70.0 ± 5.0 | - | 65.0 ± 2.0 | 72.0 ± 1.0 | 90.0 | 50.0 ± 10.0 | 100 us",
        "LIP in the step | 71.0 | +1.0 (p 0.04) | 65.0 ± 2.0 | - | 90.0 | - | 300 us: LIP adds 200 to 100 us",
        "LIP afterwards | 60.0 ± 0.0 | - | 65.0 ± 2.0 | - | 90.0 | 25.0 ± 0.0 | 100 us, then 2.0 ms once",
    ]
    # Columns begin at the same place.
    places = {
        line.index(word)
        for line, word in zip(table.splitlines(), ("last e", "70.0", "71.0", "60.0"), strict=True)
    }
    assert len(places) == 1


@pytest.mark.parametrize(
    ("p", "expected"),
    [
        (None, "-0.5"),
        (1.0, "-0.5 (p 1.00)"),
        (0.034, "-0.5 (p 0.03)"),
        (0.0012, "-0.5 (p 0.0012)"),
        (0.0001, "-0.5 (p < 0.001)"),
    ],
)
def test_points(p: float | None, expected: str) -> None:
    assert points(Difference(-0.005, 0.1, -0.1, 0.1, p, 3)) == expected


def test_what_is_not_there_is_a_dash() -> None:
    assert points(None) == percent(None) == "-"
