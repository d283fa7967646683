"""Refitted singular values and each guard, on numbers one can follow."""

import pytest
import torch

from lip_fast import ops

S = torch.tensor([8.0, 4.0, 2.0, 1.0, 1e-9])
TRUE = torch.tensor(True)


def _sums(numerator: list[float], denominator: list[float], energy: float = 100.0) -> ops.Sums:
    return ops.Sums(
        torch.tensor(numerator, dtype=torch.float64),
        torch.tensor(denominator, dtype=torch.float64),
        torch.tensor(energy, dtype=torch.float64),
        torch.tensor(0),
    )


def _refit(sums: ops.Sums, *, rank: int = 2, clip: bool = True, ok: torch.Tensor = TRUE) -> ops.Refit:
    return ops.refit(S, sums, ok, rank=rank, tolerance=1e-6, clip=clip)


def test_values_are_quotients() -> None:
    s, ok, clipped = _refit(_sums([3.0, -1.0], [2.0, 4.0]))
    assert s.tolist() == [1.5, -0.25]
    assert bool(ok)
    assert int(clipped) == 0


def test_values_are_limited_to_the_smallest_kept() -> None:
    s, _, clipped = _refit(_sums([30.0, -70.0], [2.0, 4.0]))
    assert s.tolist() == [4.0, -4.0]
    assert int(clipped) == 2
    assert _refit(_sums([30.0, -70.0], [2.0, 4.0]), clip=False).s.tolist() == [15.0, -17.5]


def test_with_nothing_kept_the_limit_is_the_largest() -> None:
    assert _refit(_sums([90.0], [2.0]), rank=0).s.tolist() == [8.0]


def test_a_direction_the_batch_hardly_sees_keeps_its_value() -> None:
    s, ok, clipped = _refit(_sums([30.0, 0.0], [0.9e-4, 0.0]))
    assert s.tolist() == [2.0, 1.0]
    assert _refit(_sums([3e-4, 0.0], [1.1e-4, 0.0])).s.tolist()[0] == pytest.approx(3 / 1.1)
    assert bool(ok)
    assert int(clipped) == 0


def test_a_value_that_is_no_direction_is_kept() -> None:
    s, _, _ = _refit(_sums([1.0, 1.0, 5.0], [1.0, 1.0, 1.0]))
    assert s.tolist() == [1.0, 1.0, pytest.approx(1e-9)]


@pytest.mark.parametrize(
    "sums",
    [
        _sums([float("nan"), 1.0], [1.0, 1.0]),
        _sums([1.0, 1.0], [float("inf"), 1.0]),
        _sums([1.0, 1.0], [1.0, 1.0], float("nan")),
    ],
    ids=["numerator", "denominator", "energy"],
)
def test_sums_that_are_not_finite_are_reported(sums: ops.Sums) -> None:
    assert not bool(_refit(sums).ok)
    assert int(_refit(sums).clipped) == 0


def test_values_too_large_to_multiply_out_are_reported() -> None:
    huge = _sums([3e38, 1.0], [1.0, 1.0])
    assert not bool(_refit(huge, clip=False).ok)
    assert bool(_refit(huge, clip=True).ok)


def test_what_failed_before_stays_failed() -> None:
    assert not bool(_refit(_sums([1.0], [1.0]), ok=torch.tensor(False)).ok)


def test_more_values_than_there_are_is_refused() -> None:
    with pytest.raises(ValueError, match="within the 5 singular values"):
        _refit(_sums([1.0] * 4, [1.0] * 4))


def test_opcheck() -> None:
    sums = _sums([3.0, -1.0], [2.0, 4.0])
    arguments = (S, sums.numerator, sums.denominator, sums.energy, TRUE, 2, 1e-6, True)
    torch.library.opcheck(torch.ops.lip_fast.refit.default, arguments)
