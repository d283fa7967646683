"""The benchmark of the parts of the step by products: a part that is taken away is missed."""

import pytest

from benchmarks import projected_parts, trajectory
from lip_fast import flops


@pytest.fixture(autouse=True)
def _by_products(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(flops, "products_pay", lambda *_: True)


@pytest.mark.filterwarnings("ignore:rest=.drop. removes")
def test_every_variant_is_timed() -> None:
    times = projected_parts.step_times(200, 210, 100, rounds=1)
    assert set(times) == {*projected_parts.VARIANTS, "exact LIP"}
    assert times["every 4"] == times["as it is"] / 4


@pytest.mark.filterwarnings("ignore:rest=.drop. removes")
def test_a_patch_ends_with_its_block_and_moves_the_trajectory() -> None:
    def run(name: str) -> float:
        patches, settings = projected_parts.VARIANTS[name]
        with projected_parts.varied(patches):
            weight, _ = trajectory.run((200, 320), "AdamW, 1e-3", 180, steps=6, **settings)
        return trajectory.distance(weight, exact)

    exact, _ = trajectory.run((200, 320), "AdamW, 1e-3", 180, steps=6, tail_rank="all")
    whole = run("as it is")
    assert 0 < whole < run("a tail of 16, the rest dropped")
    assert run("no rotation") != whole
    assert run("no rotation, two power steps") != whole
    assert run("as it is") == whole


@pytest.mark.filterwarnings("ignore:.* grew below")
def test_guards_catch_what_appears_between_two_steps() -> None:
    without, caught = (projected_parts.guarded(guards, 4, 0)[0] for guards in (0, 8))
    assert caught > 0.9
    assert without < 0.6
    assert projected_parts.guarded(8, 0, 4)[1] > 0.5
