"""What a step is said to cost, against the operations that it takes."""

from typing import Any

import pytest
import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from lip_fast import LIP, ops
from lip_fast.cli.main import main
from lip_fast.cost import cost
from lip_fast.settings import Settings


def _step(l: int, q: int, rows: int, **settings: Any) -> tuple[LIP, float, float]:
    """A LIP that is warm, the operations of products in its next step, and those of the head."""
    with torch.random.fork_rng():
        head = nn.Linear(q, l, bias=False)
    lip = LIP(head, **settings)
    g = torch.Generator().manual_seed(0)
    features, labels = torch.randn(rows, q, generator=g), torch.randint(0, l, (rows,), generator=g)
    for _ in range(2):
        lip.observe(features, labels)
        lip.apply()
    lip.observe(features, labels)
    with FlopCounterMode(display=False) as step:
        lip.apply()
    features.requires_grad_()
    with FlopCounterMode(display=False) as own:
        nn.functional.cross_entropy(head(features), labels).backward()
    return lip, step.get_total_flops(), own.get_total_flops()


@pytest.mark.parametrize(("l", "q"), [(400, 500), (500, 400)])
@pytest.mark.parametrize(
    "settings", [{"rank": 200}, {"rank": 100}, {"rank": 120, "tail_rank": 60, "rest": "drop"}]
)
@pytest.mark.filterwarnings("ignore:rest=.drop. removes")
def test_it_is_what_a_step_by_products_takes(
    l: int, q: int, settings: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    rows = 64
    # What is one call is not counted.
    for name in ("projected_step_", "split"):
        monkeypatch.setattr(ops, name, lambda *arguments, **options: None)
    lip, taken, own = _step(l, q, rows, **settings)
    said = lip.cost(rows)
    assert said.path == "by products"
    assert said.head_flops == own
    assert said.ratio == said.flops / own
    # Decompositions and triangular solves, which the counter does not see, are up to half of it.
    assert 0.5 * said.flops < taken < 1.05 * said.flops


@pytest.mark.parametrize(
    ("path", "settings"),
    [("exact", {"rank": 150, "tail_rank": "all"}), ("truncated", {"rank": 30, "tail_rank": 20})],
)
def test_the_other_paths_take_their_products_at_least(path: str, settings: dict[str, Any]) -> None:
    l, q = 200, 300
    said = cost(l, q, Settings(**settings), 64)
    assert said.path == path
    least = 2 * l * l * q if path == "exact" else 4 * l * q * 50
    assert least < said.flops < 10 * least


def test_nothing_costs_nothing() -> None:
    said = cost(10, 64, Settings(rank=10), 128)
    assert (said.path, said.flops, said.bytes, said.ratio) == ("nothing", 0, 0, 0)


@pytest.mark.parametrize("rows", [0, -1, 1.5, "many"])
def test_rows_are_a_positive_number(rows: Any) -> None:
    with torch.random.fork_rng():
        lip = LIP(nn.Linear(64, 10), 3)
    with pytest.raises((TypeError, ValueError), match="batch_rows"):
        lip.cost(rows)


def test_the_doctor_tells_it(capsys: pytest.CaptureFixture[str]) -> None:
    main(["doctor", "--head", "1000x2048", "--rank", "781"])
    text = capsys.readouterr().out
    assert "what LIP costs on a head of 1000 x 2048" in text
    assert "by products  781   104" in text
    assert main(["doctor", "--head", "3x64"]) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert "at least 4 classes" in err


def test_a_head_in_parts_is_said_to_be_split_by_products(monkeypatch: pytest.MonkeyPatch) -> None:
    settings = Settings(rank=12)
    assert cost(140, 180, settings, 128).path == "truncated"
    monkeypatch.setattr("lip_fast.cost.is_split", lambda weight: True)
    assert cost(140, 180, settings, 128).path == "by products"
