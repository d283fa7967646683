"""scikit-learn's own tests of ``randomized_svd``, on ours.

They are taken from the installed wheel: every test there that calls ``randomized_svd`` runs here, but for
those named below.
"""

import inspect

import pytest
from numerics import adapters

upstream = pytest.importorskip("sklearn.utils.tests.test_extmath")

pytestmark = pytest.mark.upstream

INAPPLICABLE = {
    "test_randomized_svd_sparse_warnings": "is about formats of sparse matrices; ours takes dense ones",
    "test_randomized_svd_array_api_compliance": "is about arrays of other libraries; ours takes tensors",
}
TESTS = {
    name: value
    for name, value in vars(upstream).items()
    if name.startswith("test_") and inspect.isfunction(value) and "randomized_svd" in value.__code__.co_names
}
globals().update({name: test for name, test in TESTS.items() if name not in INAPPLICABLE})


@pytest.fixture(autouse=True)
def _ours(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(upstream, "randomized_svd", adapters.randomized_svd)


def test_the_named_cases_are_there() -> None:
    assert set(INAPPLICABLE) < set(TESTS)
    assert len(TESTS) - len(INAPPLICABLE) >= 8
