"""Counter-based signs: the published test vectors, and independence of how they are asked for."""

import numpy as np
import pytest
import torch

from lip_fast import ops
from lip_fast.backends.default.fresh_columns import philox


@pytest.mark.parametrize(
    ("counter", "key", "expected"),
    [
        # The known answers that ship with Random123 for philox4x32 with 10 rounds.
        ([0, 0, 0, 0], 0, [0x6627E8D5, 0xE169C58D, 0xBC57AC4C, 0x9B00DBD8]),
        ([0xFFFFFFFF] * 4, 2**64 - 1, [0x408F276D, 0x41C83B0E, 0xA20BC7C6, 0x6D5451FD]),
        (
            [0x243F6A88, 0x85A308D3, 0x13198A2E, 0x03707344],
            0x299F31D0A4093822,
            [0xD16CFE09, 0x94FDCCEB, 0x5001E420, 0x24126EA1],
        ),
    ],
    ids=["zeros", "ones", "pi"],
)
def test_philox_gives_the_published_words(counter: list[int], key: int, expected: list[int]) -> None:
    words = philox(np.array(counter, dtype=np.uint64)[:, None], key)
    assert [int(w) for w in words[:, 0]] == expected


def _step(value: int) -> torch.Tensor:
    return torch.tensor(value)


def test_the_signs_are_the_bits_of_the_words() -> None:
    signs = ops.fresh_columns(_step(3), 5, 300, seed=11)
    for row, column in [(0, 0), (4, 31), (2, 32), (1, 127), (3, 128), (4, 299)]:
        counter = np.array([[row], [3], [column // 128], [0]], dtype=np.uint64)
        word = int(philox(counter, 11)[column % 128 // 32, 0])
        expected = 1.0 if word >> (column % 32) & 1 else -1.0
        assert float(signs[row, column]) == expected


def test_fewer_rows_and_columns_are_a_corner_of_more() -> None:
    many = ops.fresh_columns(_step(7), 100, 140, seed=1)
    assert torch.equal(ops.fresh_columns(_step(7), 13, 9, seed=1), many[:13, :9])


def test_step_and_seed_change_them_and_the_mean_is_near_zero() -> None:
    a = ops.fresh_columns(_step(0), 4096, 8, seed=0)
    assert set(a.unique().tolist()) == {-1.0, 1.0}
    # Six standard deviations of a mean of 32768 signs.
    assert abs(float(a.mean())) < 6 / 4096**0.5 / 8**0.5
    for other in (ops.fresh_columns(_step(1), 4096, 8, seed=0), ops.fresh_columns(_step(0), 4096, 8, seed=1)):
        assert 0.45 < float((a == other).float().mean()) < 0.55


@pytest.mark.parametrize(("rows", "columns"), [(0, 8), (5, 0), (1, 1)])
def test_empty_and_single(rows: int, columns: int) -> None:
    assert ops.fresh_columns(_step(0), rows, columns, seed=0).shape == (rows, columns)


def test_opcheck() -> None:
    torch.library.opcheck(torch.ops.lip_fast.fresh_columns.default, (_step(2), 6, 8, 3))
