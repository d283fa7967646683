"""The benchmark of LIP in the step: what it runs once and never again, what it chooses, and what it tells."""

from pathlib import Path
from typing import Any

import pytest
import torch

from benchmarks import lip_in_step, lip_in_step_runs
from benchmarks.lip_in_step_figure import save_figure
from benchmarks.lip_in_step_report import Curve, Setting, settings, tables
from benchmarks.lip_in_step_runs import Spec
from lip_fast.harness.data.rows import Rows


@pytest.mark.parametrize(
    "spec",
    [
        Spec("digits", "sgd", 0.03, 4),
        Spec("digit-pairs", "adamw", 1e-3, 0, 3e-4, 0.35),
        Spec("clinc150", "adamw", 1e-3, 0, 0.0, "auto", centred=True, every=4),
    ],
)
def test_a_key_names_one_training(spec: Spec) -> None:
    assert Spec.of(spec.key) == spec


def test_lip_begins_at_its_start_and_a_centred_weight_predicts_the_same() -> None:
    given = lip_in_step_runs.problem(lip_in_step_runs.data_of("digits"), 0)
    assert given.train.size + given.held.size == 1437
    plain, lip, centred = (
        lip_in_step_runs.train(given, Spec("digits", "sgd", 0.01, 0, rank=rank, centred=at_centre), 250)
        for rank, at_centre in ((None, False), (0.35, False), (None, True))
    )
    assert len(plain["test"]) == len(plain["held"]) == 5
    assert lip["test"][:4] == plain["test"][:4]
    assert lip["test"][4] != plain["test"][4]
    assert lip["rank"] == 4
    # SGD never moves the class mean, so that centring changes rounding alone.
    assert max(abs(a - b) for a, b in zip(centred["test"], plain["test"], strict=True)) <= 2


def test_shuffled_labels_tell_how_many_directions_are_not_chance() -> None:
    g = torch.Generator().manual_seed(0)
    labels = torch.randint(0, 40, (4000,), generator=g)
    centres = torch.cat([torch.randn(40, 5, generator=g), torch.zeros(40, 35)], 1)
    rows = Rows(centres[labels] + torch.randn(4000, 40, generator=g), labels)
    assert lip_in_step_runs.structured_rank(rows, 40, seed=0) == 5
    chance = Rows(torch.randn(4000, 40, generator=g), labels)
    assert lip_in_step_runs.structured_rank(chance, 40, seed=0) <= 3


def _setting() -> Setting:
    def curve(*looks: tuple[float, float]) -> Curve:
        test, held = zip(*looks, strict=True)
        return Curve(test, held)

    seed = {
        (0.0, None): curve((0.7, 0.4), (0.6, 0.3)),
        (0.1, None): curve((0.5, 0.3), (0.65, 0.35)),
        (0.0, 0.2): curve((0.8, 0.5), (0.9, 0.45)),
        (0.0, 0.5): curve((0.8, 0.4), (0.85, 0.46)),
        (0.0, "auto"): curve((0.1, 0.1), (0.2, 0.2)),
        **{(0.1, rank): curve((0.1, 0.1), (0.2 + rank, rank)) for rank in lip_in_step_runs.ON_DECAY},
    }
    return Setting("some", "sgd", 1.0, 10, {0: seed, 1: seed}, {})


def test_the_hold_out_chooses_what_is_told_and_the_test_part_does_not() -> None:
    setting = _setting()
    plain = setting.fixed()
    assert plain.last == [0.6] * 2
    assert plain.stopped == [0.7] * 2
    decay, rank = setting.chosen("decay"), setting.chosen("rank")
    assert (decay.last, decay.stopped) == ([0.65] * 2, [0.7] * 2)
    assert (rank.last, rank.stopped) == ([0.85] * 2, [0.8] * 2)
    assert setting.chosen("both").last == [pytest.approx(1.1)] * 2
    assert setting.oracle("rank") == (0.2, pytest.approx(0.9))
    assert setting.rival() == ("early stopping", [0.7] * 2)


def test_results_are_run_once_and_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    runs: list[str] = []

    def train(given: Any, spec: Spec) -> dict[str, Any]:
        runs.append(spec.key)
        rank = {} if spec.rank is None else {"rank": 5}
        return {"test": [len(runs) % 360] * 20, "held": [len(runs) % 100] * 20, "seconds": 1.0} | rank

    monkeypatch.setattr(lip_in_step, "train", train)
    path, figure, page = tmp_path / "results.json", tmp_path / "figure.png", tmp_path / "page.md"
    threads = torch.get_num_threads()
    page.write_text(f"before\n{lip_in_step.SLOT.begin}\n{lip_in_step.SLOT.end}\nafter\n")
    asked = ["--data", "digits", "--seeds", "2", "--json", str(path), "--figure", str(figure)]
    try:
        assert lip_in_step.main([*asked, "--write", str(page)]) == 0
        assert len(runs) == len(set(runs)) > 50
        done = len(runs)
        assert lip_in_step.main([*asked, "--write", str(page)]) == 0
        assert len(runs) == done
    finally:
        torch.set_num_threads(threads)
    text = page.read_text()
    assert "| digits (2 seeds)" in text
    assert text.endswith("after\n")
    assert figure.stat().st_size > 10_000
    results = lip_in_step.Results(path)
    # A seed under way is left out.
    last = next(reversed(results.runs))
    assert len(settings(results.runs, results.about)) == 2
    del results.runs[last]
    found = settings(results.runs, results.about)
    assert [len(setting.seeds) for setting in found] == [2, 1]
    assert "SGD" in tables(found)
    save_figure(figure, found)
