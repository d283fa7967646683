"""The oracle itself, against cases one can compute by hand and properties of the paper's formula."""

import torch
from problems import problem, relative_error

from lip_fast import reference


def test_a_diagonal_weight_is_refitted_direction_by_direction() -> None:
    W = torch.diag(torch.tensor([3.0, 2.0, 1.0], dtype=torch.float64))
    X = torch.diag(torch.tensor([1.0, 2.0, 5.0], dtype=torch.float64))
    Y = torch.diag(torch.tensor([7.0, 8.0, 10.0], dtype=torch.float64))
    # s_2* = 2 * 8 / 4 = 4 and s_3* = 5 * 10 / 25 = 2; the first is kept.
    expected = torch.diag(torch.tensor([3.0, 4.0, 2.0], dtype=torch.float64))
    assert torch.allclose(reference.lip(W, X, Y, 1), expected, atol=1e-15, rtol=0)


def test_the_formula_is_the_sum_over_directions() -> None:
    W, X, _, Y, bias = problem(9, 5, 40)
    U, S, Vh = torch.linalg.svd(W, full_matrices=False)
    k = 2
    expected = torch.zeros_like(W)
    for i in range(5):
        u, v = U[:, i], Vh[i]
        s = S[i] if i < k else (X @ u) @ (Y - bias) @ v / (X @ u).square().sum()
        expected += s * torch.outer(u, v)
    assert relative_error(reference.lip(W, X, Y, k, bias=bias), expected) < 1e-14


def test_least_squares_is_a_fixed_point() -> None:
    _, X, _, Y, _ = problem(12, 6, 80)
    W = torch.linalg.lstsq(X, Y).solution
    for k in range(7):
        assert relative_error(reference.lip(W, X, Y, k), W) < 1e-12


def test_an_unseen_direction_keeps_its_value() -> None:
    W = torch.diag(torch.tensor([2.0, 1.0], dtype=torch.float64))
    X = torch.tensor([[1.0, 0.0]], dtype=torch.float64)
    Y = torch.tensor([[5.0, 7.0]], dtype=torch.float64)
    expected = torch.diag(torch.tensor([5.0, 1.0], dtype=torch.float64))
    assert torch.equal(reference.lip(W, X, Y, 0), expected)


def test_the_step_with_everything_refitted_is_the_paper() -> None:
    W, X, _, Y, bias = problem(9, 5, 40)
    step = reference.lip_step(W.mT, X, Y, 2, clip=False, bias=bias)
    assert relative_error(step.mT, reference.lip(W, X, Y, 2, bias=bias)) < 1e-14


def test_tail_zero_and_rest_drop_truncate() -> None:
    W, X, _, Y, _ = problem(9, 5, 40)
    U, S, Vh = torch.linalg.svd(W.mT, full_matrices=False)
    rank2 = U[:, :2] * S[:2] @ Vh[:2]
    assert relative_error(reference.lip_step(W.mT, X, Y, 2, tail="zero"), rank2) < 1e-14
    dropped = reference.lip_step(W.mT, X, Y, 2, 0, rest="drop")
    assert relative_error(dropped, rank2) < 1e-14


def test_the_step_limits_refitted_values() -> None:
    W, X, _, Y, _ = problem(9, 5, 40)
    step = reference.lip_step(W.mT, X, 1e6 * Y, 2)
    S = torch.linalg.svdvals(W)
    assert torch.allclose(torch.linalg.svdvals(step)[1:], S[1].expand(4), rtol=1e-12)
