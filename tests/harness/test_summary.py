import numpy as np
import pytest

from lip_fast.harness.experiment import Record, SeedResult
from lip_fast.harness.summary import Spread, Summary, summarise
from lip_fast.harness.tables import summary_table


def result(seed: int, **values: list[float]) -> SeedResult:
    return SeedResult(seed, np.zeros(3, np.int64), {"plain": Record(**values)})


def test_last_best_and_times_are_told_apart() -> None:
    first = result(0, test_accuracy=[0.5, 0.9, 0.6], memorised=[0.0, 0.1, 0.2], step_seconds=[9.0, 1.0, 2.0])
    second = result(1, test_accuracy=[0.7, 0.4, 0.4], memorised=[0.0, 0.1, 0.4], step_seconds=[1.0, 2.0, 9.0])
    summary = summarise([first, second])["plain"]
    assert summary.last == Spread(pytest.approx(0.5), pytest.approx(0.02**0.5))
    assert summary.best == Spread(pytest.approx(0.8), pytest.approx(0.02**0.5))
    assert summary.memorised == Spread(pytest.approx(0.3), pytest.approx(0.02**0.5))
    assert summary.step_seconds == 2.0
    assert summary.repair_seconds is None


def test_one_seed_has_no_deviation() -> None:
    record = {"test_accuracy": [0.5], "memorised": [None], "step_seconds": [1.0], "repair_seconds": [3.0]}
    summary = summarise([result(0, **record)])["plain"]
    assert summary.last == Spread(0.5, None)
    assert summary.memorised is None
    assert summary.repair_seconds == 3.0


def test_table() -> None:
    plain = Summary(Spread(0.7, 0.05), Spread(0.9, 0.001), Spread(0.5, 0.1), 1e-4, None)
    in_step = Summary(Spread(0.71, None), Spread(0.9, None), None, 3e-4, None)
    afterwards = Summary(Spread(0.6, 0.0), Spread(1.0, 0.0), Spread(0.25, 0.0), 1e-4, 2e-3)
    table = summary_table({"plain": plain, "in-step": in_step, "post-hoc": afterwards})
    assert table.splitlines() == [
        "                 last accuracy  best accuracy  wrong labels fitted  optimizer step",
        "plain            70.0 ± 5.0     90.0 ± 0.1     50.0 ± 10.0          100 us",
        "LIP in the step  71.0           90.0           -                    300 us (3.00 x plain)",
        "LIP afterwards   60.0 ± 0.0     100.0 ± 0.0    25.0 ± 0.0           100 us, then 2.0 ms once",
    ]
