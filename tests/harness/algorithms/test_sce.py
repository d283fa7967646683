import numpy as np
import pytest
from harness.algorithms.problems import LABELS, ROWS, Z, assert_loss_is, make, softmax

from lip_fast.cli.errors import UserError


def formula(Z: np.ndarray, alpha: float, beta: float, A: float) -> float:
    y = np.eye(3)[np.array(LABELS)[ROWS]]
    P = softmax(Z)
    log_y = np.where(y == 1, 0.0, A)
    return float((-alpha * (y * np.log(P)).sum(1) - beta * (P * log_y).sum(1)).mean())


def test_formula() -> None:
    assert_loss_is(make("sce", LABELS), Z, ROWS, lambda Z: formula(Z, 0.1, 1.0, -4.0))
    algorithm = make("sce", LABELS, alpha=6.0, beta=0.1, A=-2.0)
    assert_loss_is(algorithm, Z, ROWS, lambda Z: formula(Z, 6.0, 0.1, -2.0))


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({"alpha": -0.1}, "alpha of SCE at least 0"),
        ({"beta": -1.0}, "beta of SCE at least 0"),
        ({"alpha": 0.0, "beta": 0.0}, "beta of SCE above 0 where alpha is 0"),
        ({"A": 0.0}, "A of SCE below 0"),
    ],
)
def test_ranges(options: dict[str, float], expected: str) -> None:
    with pytest.raises(UserError, match=expected):
        make("sce", LABELS, **options)


def test_one_part_alone() -> None:
    make("sce", LABELS, alpha=0.0)
    make("sce", LABELS, beta=0.0)
