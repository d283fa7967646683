import warnings

import numpy as np
import pytest
import scipy.stats

from lip_fast.harness.runs.paired import Difference, holm, paired_difference


@pytest.mark.parametrize("pairs", [2, 3, 10])
def test_as_scipy_has_it(pairs: int) -> None:
    generator = np.random.default_rng(pairs)
    ours, theirs = generator.random((2, pairs))
    found = paired_difference(ours.tolist(), theirs.tolist())
    expected = scipy.stats.ttest_rel(ours, theirs)
    interval = expected.confidence_interval(0.95)
    assert found.pairs == pairs
    assert found.mean == pytest.approx((ours - theirs).mean())
    assert found.sd == pytest.approx((ours - theirs).std(ddof=1))
    assert found.p == pytest.approx(expected.pvalue)
    assert (found.low, found.high) == (pytest.approx(interval.low), pytest.approx(interval.high))


def test_a_difference_by_hand() -> None:
    # 1, 2, 3: mean 2, sd 1, t = 2 sqrt(3) with two degrees of freedom, of which 0.95 lie within 4.303.
    found = paired_difference([2.0, 4.0, 6.0], [1.0, 2.0, 3.0])
    assert (found.mean, found.sd) == (2.0, 1.0)
    assert found.high == pytest.approx(2 + 4.302653 / 3**0.5)
    assert found.low == pytest.approx(2 - 4.302653 / 3**0.5)
    assert found.p == pytest.approx(0.0741799)


def test_ties_and_constant_differences_are_no_accident_of_rounding() -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert paired_difference([0.1, 0.7], [0.1, 0.7]) == Difference(0.0, 0.0, None, None, 1.0, 2)
        # 0.3 - 0.1 and 0.9 - 0.7 are not the same number.
        constant = paired_difference([0.3, 0.9, 0.5], [0.1, 0.7, 0.3])
    # Three signs of three: 2 / 2^3, however small the difference is.
    assert (constant.sd, constant.p) == (0.0, 0.25)
    assert constant.mean == pytest.approx(0.2)
    assert (constant.low, constant.high) == (None, None)
    rounded = paired_difference([0.1 + 0.2, 0.7], [0.3, 0.7])
    assert rounded.p == 1.0


def test_one_pair_has_a_difference_and_no_more() -> None:
    assert paired_difference([0.5], [0.25]) == Difference(0.25, None, None, None, None, 1)


@pytest.mark.parametrize(("ours", "theirs"), [([], []), ([1.0], [1.0, 2.0])])
def test_what_is_no_pair(ours: list[float], theirs: list[float]) -> None:
    with pytest.raises(ValueError, match="as many values on both sides"):
        paired_difference(ours, theirs)


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        ([], []),
        ([0.03], [0.03]),
        # By hand: 4 * 0.005, 3 * 0.01, then 2 * 0.03 = 0.06, which 1 * 0.04 may not fall below.
        ([0.01, 0.04, 0.03, 0.005], [0.03, 0.06, 0.06, 0.02]),
        # p.adjust(c(0.01, 0.02, 0.03, 0.04, 0.05), "holm") of R, and multipletests of statsmodels.
        ([0.01, 0.02, 0.03, 0.04, 0.05], [0.05, 0.08, 0.09, 0.09, 0.09]),
        ([0.6, 0.7], [1.0, 1.0]),
        ([0.02, 0.02, 1.0], [0.06, 0.06, 1.0]),
    ],
)
def test_holm(values: list[float], expected: list[float]) -> None:
    assert holm(values) == pytest.approx(expected)
