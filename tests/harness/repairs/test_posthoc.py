import itertools

import pytest
import torch
from torch import nn

import lip_fast
from lip_fast.harness.data.rows import Rows
from lip_fast.harness.repairs.posthoc import RULES, rank_path
from lip_fast.harness.settings.train import TrainConfig
from lip_fast.harness.training.evaluation import agreement


def problem(
    n: int = 200, q: int = 8, l: int = 5, seed: int = 0
) -> tuple[nn.Linear, lip_fast.LabelStatistics, Rows, Rows]:
    """A head in float64, statistics of the rows it was trained on, and rows held out and tested on."""
    generator = torch.Generator().manual_seed(seed)
    head = nn.utils.skip_init(nn.Linear, q, l, dtype=torch.float64)
    centres = torch.randn(l, q, generator=generator, dtype=torch.float64)
    with torch.no_grad():
        for parameter in head.parameters():
            parameter.normal_(generator=generator)

    def rows(count: int) -> Rows:
        Y = torch.randint(l, (count,), generator=generator)
        X = centres[Y] + torch.randn(count, q, generator=generator, dtype=torch.float64)
        wrong = torch.rand(count, generator=generator) < 0.3
        return Rows(X, torch.where(wrong, torch.randint(l, (count,), generator=generator), Y))

    return head, lip_fast.LabelStatistics(q, l).update(*rows(n)), rows(60), rows(60)


@pytest.mark.parametrize("seed", [0, 1, 2])
def test_a_path_is_lip_at_every_rank(seed: int) -> None:
    head, trained, held, test = problem(seed=seed)
    before = head.weight.clone()
    heads: list[torch.Tensor] = []

    def score(repaired: nn.Linear) -> tuple[float, float | None]:
        heads.append(repaired.weight.detach().clone())
        assert torch.equal(repaired.bias, head.bias)
        return agreement(repaired(test.X), test.Y), agreement(repaired(held.X), held.Y)

    path = rank_path(TrainConfig(rank_afterwards=2), head, trained, held, score)
    assert torch.equal(head.weight, before)
    assert path["ranks"] == [0, 1, 2, 3, 4, 5]
    with torch.no_grad():
        for k, found in zip(path["ranks"], heads, strict=True):
            expected = lip_fast.lip(head.weight.T, trained, k=k, bias=head.bias).T
            torch.testing.assert_close(found, expected, rtol=1e-9, atol=1e-9)
        for part, name in ((test, "test_accuracy"), (held, "validation")):
            assert path[name] == [
                agreement(nn.functional.linear(part.X, weight, head.bias), part.Y) for weight in heads
            ]
    singular_values = torch.linalg.svdvals(head.weight)
    assert list(path["rules"]) == list(RULES)
    assert [path["rules"][fraction] for fraction in ("0.5", "0.8", "0.9")] == [3, 4, 5]
    assert path["rules"]["95% of the energy"] == lip_fast.select_rank(singular_values)
    best = max(path["validation"])
    assert path["validation"][path["rules"]["held-out labels"]] == best


def test_of_equals_the_largest_rank_is_taken() -> None:
    head, trained, held, _ = problem()
    validations = iter([0.1, 0.7, 0.2, 0.7, 0.3, 0.6])
    path = rank_path(TrainConfig(), head, trained, held, lambda repaired: (0.5, next(validations)))
    assert path["rules"]["held-out labels"] == 3


def test_without_a_hold_out_nothing_is_chosen_by_it() -> None:
    head, trained, held, _ = problem()
    none = Rows(held.X[:0], held.Y[:0])
    path = rank_path(TrainConfig(), head, trained, none, lambda repaired: (0.5, None))
    assert list(path["rules"]) == list(RULES[:-1])
    assert path["validation"] == [None] * 6


def test_of_a_large_head_some_ranks_are_tried_and_those_of_the_rules() -> None:
    head, trained, held, _ = problem(n=400, q=150, l=130)
    path = rank_path(TrainConfig(rank_afterwards=101), head, trained, held, lambda repaired: (0.5, 0.5))
    ranks = path["ranks"]
    assert ranks == sorted(set(ranks))
    assert (ranks[0], ranks[-1]) == (0, 130)
    assert 64 <= len(ranks) <= 64 + len(RULES)
    assert set(path["rules"].values()) <= set(ranks)
    assert 101 in ranks
    # Evenly spaced, but for those of the rules.
    assert max(b - a for a, b in itertools.pairwise(ranks)) <= 3
