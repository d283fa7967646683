import numpy as np
import pytest
import torch
from harness.algorithms.problems import blobs, candidates_of, make, make_task

from lip_fast.cli.errors import UserError
from lip_fast.harness.algorithms import ALGORITHMS
from lip_fast.harness.algorithms.pl_knn import Votes
from lip_fast.harness.models import Linear
from lip_fast.harness.seeding import initialisation


def scores(X: torch.Tensor, targets: object, x: torch.Tensor, **options: float) -> torch.Tensor:
    with initialisation(0):
        model = Linear(X.shape[1], 3)
    algorithm = ALGORITHMS["pl-knn"](make_task(targets, X, options=options))
    algorithm.fit(model)
    scores: torch.Tensor = algorithm.classifier(model)(x)
    return scores


def test_votes_by_hand() -> None:
    X = torch.tensor([[0.0], [1.0], [3.0], [100.0]])
    S = [[1.0, 1.0, 0.0], [0.0, 1.0, 0.0], [0.0, 0.0, 1.0], [1.0, 0.0, 0.0]]
    # Distances 1, 0 and 2 of the three nearest: weights 2/3, 1 and 1/3.
    found = scores(X, S, torch.tensor([[1.0]]), neighbours=3.0)
    np.testing.assert_allclose(found, [[2 / 3, 5 / 3, 1 / 3]], rtol=1e-12)
    assert found.dtype == torch.float64


def test_labels_vote_for_themselves() -> None:
    X = torch.tensor([[0.0], [1.0], [3.0]])
    np.testing.assert_allclose(
        scores(X, [2, 0, 2], torch.tensor([[1.0]]), neighbours=3.0), [[1, 0, 1]], rtol=1e-12
    )


def test_scores_of_many_rows_are_those_of_the_formula() -> None:
    X, clean, _ = blobs(700)
    S = candidates_of(clean)
    x = blobs(600, seed=1)[0]
    D = np.linalg.norm(x.double().numpy()[:, None] - X.double().numpy(), axis=2)
    expected = np.zeros((600, 3))
    for i, row in enumerate(D):
        near = np.argsort(row)[:10]
        expected[i] = ((1 - row[near] / row[near].sum())[:, None] * S[near]).sum(0)
    np.testing.assert_allclose(scores(X, S, x), expected, rtol=1e-9)


@pytest.mark.parametrize("q", [1, 784])  # a tree serves few features, products many: those round
def test_neighbours_at_no_distance_weigh_alike(q: int) -> None:
    place = torch.randn(1, q, generator=torch.Generator().manual_seed(1))
    X = torch.cat([place, place, place + 5])
    found = scores(X, [[1.0, 1.0, 0.0], [1.0, 0.0, 0.0], [0.0, 0.0, 1.0]], place, neighbours=2.0)
    assert found.tolist() == [[2, 1, 0]]


def test_equal_votes_go_to_the_first_class() -> None:
    X = torch.tensor([[-1.0], [1.0]])
    found = scores(X, [2, 1], torch.tensor([[0.0]]), neighbours=2.0)
    assert found.tolist() == [[0, 0.5, 0.5]]
    assert found.argmax(1).tolist() == [1]


def test_a_single_neighbour_decides() -> None:
    X = torch.tensor([[0.0], [4.0]])
    assert scores(X, [2, 1], torch.tensor([[1.0]]), neighbours=1.0).tolist() == [[0, 0, 1]]


def test_fewer_rows_than_neighbours() -> None:
    X = torch.tensor([[0.0], [4.0]])
    assert scores(X, [2, 1], torch.tensor([[1.0]])).tolist() == [[0, 0.25, 0.75]]
    assert Votes(X[:1], torch.eye(3)[:1], 10)(X).tolist() == [[1, 0, 0], [1, 0, 0]]


def test_it_takes_no_steps_and_is_not_linear() -> None:
    algorithm = make("pl-knn", [0, 1, 2])
    assert algorithm.WHOLE
    assert not algorithm.LINEAR
    with pytest.raises(NotImplementedError):
        algorithm.loss(torch.zeros(1, 3), torch.tensor([0]))


@pytest.mark.parametrize("k", [0.0, 2.5])
def test_range(k: float) -> None:
    with pytest.raises(UserError, match="neighbours of PL-KNN a whole number of at least 1"):
        make("pl-knn", [0, 1], neighbours=k)
