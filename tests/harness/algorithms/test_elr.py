import numpy as np
import pytest
import torch
from harness.algorithms.problems import LABELS, ROWS, Z, assert_loss_is, make, softmax

from lip_fast.cli.errors import UserError


def formula(Z: np.ndarray, t: np.ndarray, strength: float = 3.0) -> float:
    y = np.array(LABELS)[ROWS]
    P = softmax(Z)
    regularization = np.log(1 - (P.clip(1e-4, 1 - 1e-4) * t).sum(1))
    return float((-np.log(P[range(3), y]) + strength * regularization).mean())


def test_formula_of_two_passes() -> None:
    algorithm = make("elr", LABELS)
    first = 0.3 * softmax(Z)
    assert_loss_is(algorithm, Z, ROWS, lambda Z: formula(Z, first))
    np.testing.assert_allclose(algorithm.state_dict()["t"][ROWS], first, rtol=1e-6)
    assert (algorithm.state_dict()["t"][2] == 0).all()
    second = 0.7 * first + 0.3 * softmax(-Z)
    assert_loss_is(algorithm, -Z, ROWS, lambda Z: formula(Z, second))
    np.testing.assert_allclose(algorithm.state_dict()["t"][ROWS], second, rtol=1e-6)


def test_options() -> None:
    algorithm = make("elr", LABELS, **{"beta": 0.5, "lambda": 1.0})
    t = 0.5 * softmax(Z)
    assert_loss_is(algorithm, Z, ROWS, lambda Z: formula(Z, t, 1.0))


def test_probabilities_are_kept_off_the_ends() -> None:
    algorithm = make("elr", LABELS, beta=0.0)
    algorithm.loss(torch.tensor([[100.0, 0.0, 0.0]]), torch.tensor([1]))
    clamped = np.array([1 - 1e-4, 1e-4, 1e-4])
    np.testing.assert_allclose(algorithm.state_dict()["t"][1], clamped / clamped.sum(), rtol=1e-5)


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({"beta": 1.0}, r"beta of ELR in \[0, 1\), got 1"),
        ({"beta": -0.1}, r"beta of ELR in \[0, 1\)"),
        ({"lambda": -1.0}, "lambda of ELR at least 0"),
    ],
)
def test_ranges(options: dict[str, float], expected: str) -> None:
    with pytest.raises(UserError, match=expected):
        make("elr", LABELS, **options)
