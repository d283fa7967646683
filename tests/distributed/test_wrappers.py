from typing import Any

import pytest
from distributed.launch import launch

pytestmark = pytest.mark.process

# Sums of float64 in another order, over a few steps of training.
ROUNDING = 1e-11


@pytest.fixture(scope="module")
def two(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """What the checks of one launch found: to start processes takes longer than most of them."""
    found: dict[str, Any] = launch(2, "distributed.wrappers:everything", tmp_path_factory.mktemp("two"))
    return found


@pytest.fixture(scope="module")
def four(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    found: dict[str, Any] = launch(4, "distributed.wrappers:everything", tmp_path_factory.mktemp("four"))
    return found


@pytest.fixture(params=["two", "four"])
def results(request: pytest.FixtureRequest) -> dict[str, Any]:
    found: dict[str, Any] = request.getfixturevalue(request.param)
    return found


def wrong(
    outcomes: dict[str, Any], *, limit: float = ROUNDING, skipped: int = 0, steps: int = 4
) -> list[Any]:
    """The runs that do not end as one process does, on every process, with LIP in all steps but these."""

    def right(result: dict[str, Any]) -> bool:
        stats = result["stats"]
        counted = (stats["steps"], stats["applied"], stats["masked"]) == (steps, steps - skipped, 0)
        return result["distance"] < limit and result["equal"] and result["moved"] > 0.01 and counted

    return [(name, result) for name, result in outcomes.items() if not right(result)]


def test_wrappers_do_what_one_process_does(results: dict[str, Any]) -> None:
    assert len(results["compare"]) >= 29
    assert not wrong(results["compare"])


def test_micro_batches_count_as_one_batch(two: dict[str, Any]) -> None:
    assert len(two["micro_batches"]) == 6
    assert not wrong(two["micro_batches"])


def test_all_skip_a_step_where_one_has_a_gradient_that_is_not_finite(results: dict[str, Any]) -> None:
    assert len(results["not_finite"]) == 6
    assert not wrong(results["not_finite"], skipped=1)


def test_all_skip_a_step_that_a_scaler_skips(two: dict[str, Any]) -> None:
    one = {name: two["overflow"].pop(name) for name in ("one alone, plugin", "one alone, adamw")}
    assert len(two["overflow"]) == 2
    assert not wrong(two["overflow"], skipped=1)
    assert [(r["stats"]["steps"], r["stats"]["applied"]) for r in one.values()] == [(4, 3), (4, 3)]
    # An optimizer that is not fused is not called.
    assert len(two["scaler"]) == 4
    assert not wrong(two["scaler"], steps=3)


def test_mixed_precision_of_fully_shard(two: dict[str, Any]) -> None:
    assert len(two["mixed_precision"]) == 4
    assert all("bfloat16" in name for name in two["mixed_precision"])
    assert not wrong(two["mixed_precision"], limit=3e-6)


def test_a_lip_made_before_fully_shard(results: dict[str, Any]) -> None:
    assert len(results["made_before"]) == 2
    assert not wrong(results["made_before"])


def test_copies_go_on_as_the_originals(two: dict[str, Any]) -> None:
    assert len(two["copies"]) == 4
    assert not wrong(two["copies"], limit=1e-300, steps=3)


def test_fresh_columns_are_the_same_everywhere(results: dict[str, Any]) -> None:
    assert results["columns"] == {"drawn": 4, "equal": True, "as alone": True, "random state": True}


def test_a_missing_data_group_is_told(two: dict[str, Any]) -> None:
    said = two["refusals"]
    assert "expected data_group with a weight that fully_shard manages" in said["plugin"]
    assert "expected data_group with a weight that fully_shard manages" in said["adamw"]
    assert "pass data_group, or their weights drift apart" in said["whole"]
    assert said["none"] == ""


def test_statistics_are_those_of_all_rows(results: dict[str, Any]) -> None:
    errors = results["statistics"]
    assert len(errors) == 5 * (10 + 9 + 9)
    assert not {name: error for name, error in errors.items() if not error < ROUNDING}


def test_decompositions_of_dtensors(results: dict[str, Any]) -> None:
    found = results["decompositions"]
    assert len(found) == 3 * 3 * 4
    for name, result in found.items():
        # Those of a random start converge as (s_13 / s_4)^13.
        limit = 1e-12 if "exact" in name or "warm" in name else 1e-8
        errors = (result["distance"], result["values"], result["orthonormal"])
        assert max(errors) < limit, (name, result)
        assert result["placed"], name
        assert result["equal"], name


def test_the_guide_does_what_it_says(four: dict[str, Any]) -> None:
    assert len(four["recipes"]) == 5
    for recipe, result in four["recipes"].items():
        assert result["equal"], recipe
        assert result["same"], recipe
        assert result["stats"]["steps"] == result["stats"]["applied"] == 3, recipe
