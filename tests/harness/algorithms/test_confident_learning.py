import numpy as np
import pytest
import torch
from harness.algorithms.problems import make

from lip_fast.cli.errors import UserError
from lip_fast.harness.algorithms import ALGORITHMS, Algorithm


def choose(labels: np.ndarray, P: np.ndarray, **options: float) -> tuple[list[int], list[int]]:
    """The rows that are left, and what folds were asked for."""
    algorithm, asked = ALGORITHMS["confident-learning"], []

    def cross_predict(folds: int) -> torch.Tensor:
        asked.append(folds)
        return torch.tensor(P)

    merged = algorithm.checked_options(options)
    rows = algorithm.choose_rows(torch.tensor(labels), P.shape[1], merged, cross_predict)
    assert rows is not None
    assert rows.dtype == torch.int64
    return rows.tolist(), asked


def sure(labels: np.ndarray, classes: int = 4, seed: int = 0) -> np.ndarray:
    """Probabilities around 0.9 for the labels."""
    generator = np.random.default_rng(seed)
    P = np.eye(classes)[labels] + generator.uniform(0.02, 0.06, (len(labels), classes))
    return P / P.sum(1, keepdims=True)


def test_planted_wrong_labels_are_left_out_and_no_others() -> None:
    clean = np.arange(200) % 4
    noisy = clean.copy()
    wrong = np.random.default_rng(0).choice(200, 40, replace=False)
    noisy[wrong] = (clean[wrong] + 1) % 4
    rows, asked = choose(noisy, sure(clean))
    assert rows == sorted(set(range(200)) - set(wrong.tolist()))
    assert asked == [5]


def test_a_row_that_is_merely_unsure_stays() -> None:
    labels = np.arange(40) % 4
    P = sure(labels)
    P[0] = 0.3, 0.4, 0.2, 0.1  # another class is likelier, though not as likely as where it is the label
    assert choose(labels, P)[0] == list(range(40))


def test_folds_can_be_set() -> None:
    labels = np.arange(40) % 4
    rows, asked = choose(labels, sure(labels), folds=3.0)
    assert rows == list(range(40))
    assert asked == [3]
    assert isinstance(asked[0], int)


def test_no_class_is_left_out_wholly(monkeypatch: pytest.MonkeyPatch) -> None:
    labels = np.arange(40) % 4
    P = sure(labels)
    # Whatever the library says.
    monkeypatch.setattr("cleanlab.filter.find_label_issues", lambda labels, *a, **k: labels % 2 == 0)
    rows, _ = choose(labels, P)
    left = labels[rows]
    assert np.bincount(left, minlength=4).tolist() == [1, 10, 1, 10]
    for i in (0, 2):
        of_class = np.flatnonzero(labels == i)
        assert of_class[P[of_class, i].argmax()] in rows


def test_a_class_that_no_row_has() -> None:
    labels = np.arange(60) % 3
    rows, _ = choose(labels, sure(labels))
    assert rows == list(range(60))


def test_a_class_whose_rows_all_look_wrong() -> None:
    clean = np.arange(80) % 4
    noisy = np.where(clean == 2, 1, clean)
    noisy[:3] = 2  # of classes 0, 1 and 2: one right, two wrong
    rows, _ = choose(noisy, sure(clean))
    assert 2 in rows
    assert not {0, 1} & set(rows)
    # All of class 2 are right where the label is 1.
    noisy[2], noisy[6] = 1, 1
    assert 2 in noisy[choose(noisy, sure(clean))[0]]


def test_the_rest_is_cross_entropy() -> None:
    algorithm = ALGORITHMS["confident-learning"]
    assert algorithm.loss is ALGORITHMS["cross-entropy"].loss
    assert algorithm.classifier is Algorithm.classifier


@pytest.mark.parametrize("folds", [1.0, 2.5, 0.0])
def test_range(folds: float) -> None:
    with pytest.raises(UserError, match="option folds of confident learning a whole number of at least 2"):
        make("confident-learning", [0, 1], folds=folds)
