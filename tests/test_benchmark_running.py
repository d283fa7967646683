import math
import time
from collections.abc import Callable
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from benchmarks import running
from benchmarks.rows import row
from benchmarks.running import Plan, measure, plan, require, run
from benchmarks.signed_steps import signed_steps
from lip_fast.bench.cases import Case, Skip
from lip_fast.bench.gates import Gate
from lip_fast.bench.steps import step_floors
from lip_fast.bench.timing import Variant

ROW = row("truncated-sgd-10x512")
RIGHT = Gate("distance", 1e-6, 1e-5, 1e-2)


class Recorder:
    """As much of the ``benchmark`` fixture as is used."""

    def __init__(self, *, disabled: bool = False) -> None:
        self.extra_info: dict[str, Any] = {}
        self.disabled = disabled
        self.stats: Any = None

    def pedantic(self, function: Callable[[], object], setup: Callable[[], None], rounds: int) -> None:
        for _ in range(1 if self.disabled else rounds):
            setup()
            function()


@pytest.mark.parametrize(
    ("value", "control", "right"),
    [(1e-6, 1e-2, True), (2e-5, 1e-2, False), (math.nan, 1e-2, False), (1e-6, 1e-6, False)],
)
def test_a_check_fails_on_a_wrong_result_and_where_it_could_not_tell(
    value: float, control: float, right: bool
) -> None:
    recorder, gates = Recorder(), [Gate("distance", value, 1e-5, control)]
    if right:
        require(recorder, gates)
    else:
        with pytest.raises(AssertionError, match="not timed"):
            require(recorder, gates)
    assert recorder.extra_info["gates"][0]["passed"] is right


class Calls:
    """Variants that note when they are called and made ready."""

    def __init__(self) -> None:
        self.made: list[str] = []

    def variant(self, name: str, seconds: float = 0.0) -> Variant:
        def call() -> None:
            self.made.append(name)
            time.sleep(seconds)

        return Variant(name, call, between=lambda: self.made.append(f"ready {name}"))


def test_variants_take_turns() -> None:
    calls, recorder = Calls(), Recorder()
    variants = [calls.variant(name) for name in ("ours", "a", "b", "slow")]
    measure(recorder, variants, Plan(3, {"slow": 2}, warm=True), sums={"both": ("a", "b")})
    # An untimed call and a timed one of each; the order rotates; "slow" sits out every second round.
    rounds = [["a", "b", "slow", "ours"], ["b", "a", "ours"], ["slow", "a", "b", "ours"]]
    twice = [word for names in rounds for name in names for word in (f"ready {name}", name) * 2]
    assert calls.made == twice
    results = recorder.extra_info["peers"]
    counts = {name: result["rounds"] for name, result in results.items()}
    assert counts == {"a": 3, "b": 3, "slow": 2, "both": 3}
    _, a, b, _ = variants
    sums = [1e6 * (x + y) for x, y in zip(a.samples, b.samples, strict=True)]
    assert results["both"]["median_us"] == pytest.approx(sorted(sums)[1])
    assert all(result["q1_us"] <= result["median_us"] <= result["q3_us"] for result in results.values())


class Clock:
    """Goes on by what is slept, and by nothing else."""

    def __init__(self) -> None:
        self.now = 0.0

    def perf_counter(self) -> float:
        return self.now

    def sleep(self, seconds: float) -> None:
        self.now += seconds


def test_slow_variants_take_part_less_often(monkeypatch: pytest.MonkeyPatch) -> None:
    calls, clock = Calls(), Clock()
    monkeypatch.setattr(running, "time", clock)
    monkeypatch.setattr(time, "sleep", clock.sleep)
    seconds = {"ours": 1e-3, "alike": 2e-3, "slow": 2e-2}
    how = plan([calls.variant(name, cost) for name, cost in seconds.items()], 1.0)
    assert how.every["alike"] == 1
    assert 2 <= how.every["slow"] <= how.rounds // 4
    assert how.warm
    # What all calls of a round take, twice.
    cost = 2 * sum(seconds[name] / how.every.get(name, 1) for name in seconds)
    assert 0.4 < how.rounds * cost < 1.5


def test_a_call_of_seconds_is_not_made_twice() -> None:
    calls = Calls()
    how = plan([calls.variant("ours", 1e-3), calls.variant("peer", 0.31)], 0.5)
    assert calls.made.count("peer") == 1
    assert not how.warm


def test_each_variant_runs_once_where_timing_is_disabled() -> None:
    calls, recorder = Calls(), Recorder(disabled=True)
    variants = [calls.variant("ours"), calls.variant("peer")]
    run(recorder, ROW, lambda: Case([RIGHT], variants), seconds=9)
    assert calls.made == ["ready peer", "peer", "ready ours", "ours"]
    assert recorder.extra_info["peers"]["peer"]["rounds"] == 1


def test_a_row_says_what_it_is_and_what_it_lacks() -> None:
    calls, recorder = Calls(), Recorder(disabled=True)
    case = Case(
        [RIGHT],
        [calls.variant("ours")],
        facts={"m": 8},
        floors={"copy": 2.0},
        skipped={"peer": "is not there"},
    )
    run(recorder, ROW, lambda: case, seconds=9)
    extra = recorder.extra_info
    assert (extra["row"], extra["facts"], extra["floors_us"]) == (ROW.key, {"m": 8}, {"copy": 2.0})
    assert extra["skipped"] == {"peer": "is not there"}


def test_nothing_is_timed_where_a_check_fails_and_a_row_that_cannot_be_measured_is_skipped() -> None:
    calls, recorder = Calls(), Recorder()
    red = Gate("distance", 1e-3, 1e-5, 1e-2)
    with pytest.raises(AssertionError, match="not timed"):
        run(recorder, ROW, lambda: Case([red], [calls.variant("ours")]), seconds=9)

    def impossible() -> Case:
        raise Skip("needs 9 GB of memory, 1 GB are free")

    with pytest.raises(pytest.skip.Exception, match="needs 9 GB"):
        run(recorder, ROW, impossible, seconds=9)
    assert calls.made == []


def test_times_of_steps_that_were_not_repaired_are_void() -> None:
    calls, recorder = Calls(), Recorder(disabled=True)
    case = Case([RIGHT], [calls.variant("ours")], after=lambda: "not every step was repaired")
    with pytest.raises(AssertionError, match="not every step"):
        run(recorder, ROW, lambda: case, seconds=9)


def test_a_run_of_several_calls_counts_as_one_each() -> None:
    calls = Calls()
    recorder = Recorder()
    recorder.stats = SimpleNamespace(stats=SimpleNamespace(data=[8e-3, 8e-3, 16e-3]))
    ours, peer = (replace(calls.variant(name, 4e-3), calls=4) for name in ("ours", "peer"))
    measure(recorder, [ours, peer], Plan(3, {}, warm=False))
    assert recorder.extra_info["ours"]["median_us"] == pytest.approx(2000)
    assert 1000 <= recorder.extra_info["peers"]["peer"]["median_us"] < 3000


def test_signs_are_drawn_for_one_step_after_the_other() -> None:
    step, seen = torch.tensor(5), []
    variant = signed_steps("ours", lambda: seen.append(int(step)), step)
    variant.run()
    variant.run()
    assert seen == list(range(6, 6 + 2 * variant.calls))


def test_the_floors_of_a_step_are_those_of_its_bytes_and_flops(monkeypatch: pytest.MonkeyPatch) -> None:
    rates = SimpleNamespace(of=lambda size, flops: {"copy": size, "arithmetic": flops})
    monkeypatch.setattr("lip_fast.bench.steps.shared_floors", lambda device: rates)
    cpu, l, q = torch.device("cpu"), 1000, 2048
    # Seven passes of AdamW, one read and one write; 64 columns twice and a rebuild of 56.
    found = step_floors(row("truncated-adamw-1000x2048"), cpu)
    assert found == {"copy": 4 * l * q * 9, "arithmetic": 2 * l * q * (64 + 64 + 56)}
    # The weight is read again, and 24 directions are added.
    found = step_floors(row("optimizer-1000x2048-keep"), cpu)
    assert found == {"copy": 4 * l * q * 10, "arithmetic": 2 * l * q * (64 + 64 + 24)}
    # Five passes of SGD; a Gram matrix of the small side and 100 directions.
    found = step_floors(row("exact-sgd-1000x2048"), cpu)
    assert found == {"copy": 4 * l * q * 8, "arithmetic": 2 * l * q * (1000 + 100)}
    # Fewer classes than columns: exact.
    found = step_floors(row("truncated-sgd-10x512"), cpu)
    assert found == {"copy": 4 * 10 * 512 * 7, "arithmetic": 2 * 10 * 512 * (10 + 3)}
