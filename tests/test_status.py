"""The status word: its bits, their names, and the arithmetic that sets them."""

import pytest
import torch

from lip_fast import status


def test_every_bit_has_a_name_and_no_two_share_one() -> None:
    assert list(status.NAMES.values()) == [1, 2, 4, 8, 16]
    assert status.reasons(0) == []
    assert status.reasons(status.NOT_FINITE | status.NOT_ORTHOGONAL) == ["not_finite", "not_orthogonal"]
    assert status.reasons(31) == list(status.NAMES)


@pytest.mark.parametrize(
    ("word", "before", "after", "expected"),
    [(0, True, True, 0), (0, True, False, 4), (0, False, False, 0), (8, False, False, 8)],
)
@pytest.mark.usefixtures("arithmetic")
def test_a_step_that_is_lost_has_a_reason(word: int, before: bool, after: bool, expected: int) -> None:
    result = status.lost(torch.tensor(word), torch.tensor(before), torch.tensor(after), status.NOT_CONVERGED)
    assert int(result) == expected
    assert result.dtype == torch.int64
