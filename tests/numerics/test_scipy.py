"""scipy's tests that all solvers of ``svds`` share, on ours.

They are taken from the installed wheel: every one of them runs here, but for the cases named below. Many of
their matrices are so small that columns beyond the rank make the decomposition exact; so they run a second
time without any.
"""

import functools
from typing import Any, ClassVar

import numpy as np
import pytest
from numerics import adapters
from numerics.inapplicable import Inapplicable, skip_inapplicable

upstream = pytest.importorskip("scipy.sparse.linalg._eigen.tests.test_svds")

pytestmark = pytest.mark.upstream

COMPLEX = "takes a complex matrix; a weight is real"
SMALLEST = "asks for the smallest singular values; ours finds the largest"
WORDING = "is about the words with which svds refuses an argument; ours are in tests/test_functional.py"
OPERATOR = "takes a LinearOperator; ours takes a matrix"
complex_dtypes = {"dtype": [complex, np.complex64, np.complex128]}

INAPPLICABLE = [
    Inapplicable("test_svds_input_validation_A", WORDING),
    Inapplicable("test_svds_input_validation_k_1", WORDING),
    Inapplicable("test_svds_input_validation_k_2", WORDING),
    Inapplicable("test_svds_input_validation_tol_1", WORDING),
    Inapplicable("test_svds_input_validation_tol_2", WORDING),
    Inapplicable("test_svds_input_validation_which", WORDING),
    Inapplicable("test_svds_input_validation_v0_1", WORDING),
    Inapplicable("test_svds_input_validation_v0_2", WORDING),
    Inapplicable("test_svds_input_validation_v0_3", WORDING),
    Inapplicable("test_svds_input_validation_maxiter_1", WORDING),
    Inapplicable("test_svds_input_validation_maxiter_2", WORDING),
    Inapplicable("test_svds_input_validation_return_singular_vectors", WORDING),
    Inapplicable("test_svds_parameter_tol", "varies a tolerance; ours counts its iterations"),
    Inapplicable("test_svds_diff0_docstring_example", OPERATOR),
    Inapplicable("test_svd_linop", OPERATOR),
    Inapplicable("test_svd_simple", OPERATOR, {"lo_type": [upstream.aslinearoperator]}),
    Inapplicable("test_svd_simple", COMPLEX, {"real": [False]}),
    Inapplicable("test_svds_int_A", SMALLEST, {"which": ["SM"]}),
    Inapplicable("test_svds_parameter_k_which", SMALLEST, {"which": ["SM"]}),
    Inapplicable("test_small_sigma_sparse", SMALLEST),
    Inapplicable("test_small_sigma2", SMALLEST),
    Inapplicable("test_svd_LM_ones_matrix", COMPLEX, complex_dtypes),
    Inapplicable("test_zero_matrix", COMPLEX, complex_dtypes),
    Inapplicable("test_small_sigma", COMPLEX, complex_dtypes),
]


# On these matrices one column without company ends at the same bits from every start; on the second one it
# does so on some CPUs.
SAME_BITS = "expects other bits from another start; all end at the same"
CONVERGED = [Inapplicable("test_svd_v0", SAME_BITS), Inapplicable("test_svd_rng", SAME_BITS)]


class _Common(upstream.SVDSCommonTests):  # type: ignore[misc, name-defined]
    oversample = 8
    inapplicable: ClassVar = INAPPLICABLE

    def setup_method(self) -> None:
        self.solver = "lip_fast"

    @pytest.fixture(autouse=True)
    def _ours(self, request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
        skip_inapplicable(request, self.inapplicable)
        ours: Any = functools.partial(adapters.svds, oversample=self.oversample)
        monkeypatch.setattr(upstream, "svds", ours)


class TestSvds(_Common):
    pass


class TestSvdsWithoutOversampling(_Common):
    oversample = 0
    inapplicable: ClassVar = [*INAPPLICABLE, *CONVERGED]


def test_the_named_cases_are_there() -> None:
    tests = {name for name in dir(upstream.SVDSCommonTests) if name.startswith("test_")}
    assert {case.test for case in [*INAPPLICABLE, *CONVERGED]} < tests
