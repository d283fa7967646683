"""``lip_fast.randomized_svd`` behind the signatures of scikit-learn and scipy, for their own tests."""

from typing import Any

import numpy as np
import scipy.sparse
import torch
from sklearn.utils import check_random_state
from sklearn.utils.extmath import randomized_svd as upstream_randomized_svd
from sklearn.utils.extmath import svd_flip

import lip_fast


def randomized_svd(
    M: Any,
    n_components: int,
    *,
    n_oversamples: int = 10,
    n_iter: Any = "auto",
    power_iteration_normalizer: str = "auto",
    transpose: Any = "auto",
    flip_sign: bool = True,
    random_state: Any = None,
    svd_lapack_driver: str = "gesdd",
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """As ``sklearn.utils.extmath.randomized_svd``.

    Ours orthonormalises after each product whatever ``power_iteration_normalizer`` says; "none" is handed
    back to scikit-learn, so that the rest of a test that compares it with others is about ours. The driver
    of LAPACK is torch's choice.
    """
    if power_iteration_normalizer == "none":
        return upstream_randomized_svd(
            M,
            n_components,
            n_oversamples=n_oversamples,
            n_iter=n_iter,
            power_iteration_normalizer="none",
            random_state=random_state,
        )
    M = _dense(M)
    if n_iter == "auto":  # as scikit-learn chooses
        n_iter = 7 if n_components < 0.1 * min(M.shape) else 4
    turned = M.shape[0] < M.shape[1] if transpose == "auto" else transpose
    if turned:
        M = M.T
    # Their random columns: on some of their matrices about half of all draws miss the accuracy asked for,
    # with their implementation as with ours.
    columns = check_random_state(random_state).normal(size=(M.shape[1], n_components + n_oversamples))
    U, S, Vh = _decompose(
        M,
        min(n_components, *M.shape),  # scikit-learn cuts off what is asked for beyond the small side
        oversample=n_oversamples,
        n_iter=n_iter,
        basis=torch.from_numpy(columns.astype(M.dtype)),
    )
    if turned:
        U, Vh = Vh.T, U.T
    if flip_sign:
        U, Vh = svd_flip(U, Vh)
    return U, S, Vh


def svds(
    A: Any,
    k: int = 6,
    which: str = "LM",
    *,
    v0: np.ndarray | None = None,
    maxiter: int | None = None,
    return_singular_vectors: Any = True,
    solver: Any = None,
    rng: Any = None,
    oversample: int = 8,
) -> Any:
    """As ``scipy.sparse.linalg.svds``, which iterates until it has converged: here, many times."""
    assert which == "LM", which
    U, S, Vh = _decompose(
        _dense(A),
        k,
        oversample=oversample,
        n_iter=maxiter or 200,
        basis=None if v0 is None else torch.from_numpy(v0)[:, None],
        generator=torch.Generator().manual_seed(int(np.random.default_rng(rng).integers(2**31))),
    )
    U, S, Vh = U[:, ::-1], S[::-1], Vh[::-1]  # ascending
    if return_singular_vectors is False:
        return S
    wanted = return_singular_vectors
    return (None if wanted == "vh" else U), S, (None if wanted == "u" else Vh)


def _dense(M: Any) -> np.ndarray:
    M = M.toarray() if scipy.sparse.issparse(M) else np.asarray(M)
    return M if M.dtype in (np.float32, np.float64) else M.astype(np.float64, casting="safe")


def _decompose(M: np.ndarray, rank: int, **options: Any) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    # A copy: torch takes no negative strides, and reversed views occur.
    U, S, Vh = lip_fast.randomized_svd(torch.from_numpy(M.copy()), rank, **options)
    return U.numpy(), S.numpy(), Vh.numpy()
