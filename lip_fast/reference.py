"""The paper, equation by equation, on ``torch.linalg.svd`` (arXiv:2505.16159).

This module is the oracle of every test and the baseline of every benchmark: literal, without cleverness.
It imports nothing of this package. Functions compute in the dtype they are given; as an oracle they are
called in float64.
"""

import torch
from torch import Tensor

__all__ = ["lip", "lip_step", "one_hot"]


def one_hot(y: Tensor, l: int, dtype: torch.dtype) -> Tensor:
    """The label matrix of class indices.

    Args:
        y: (n,) int64 in 0..l - 1.
        l: number of classes.
        dtype: of the matrix.

    Returns:
        Y (n, l) of zeros and ones.
    """
    return torch.nn.functional.one_hot(y, l).to(dtype)


def lip(W: Tensor, X: Tensor, Y: Tensor, k: int, *, bias: Tensor | None = None) -> Tensor:
    """Principal subspace preservation and label ambiguity purification, literally.

    ::

        W = U S V^T                                                  singular value decomposition
        PSP:  W_k = U_k S_k V_k^T                                    the top k triplets are kept
        LAP:  s_i* = u_i^T X^T (Y - X W_k) v_i / ||X u_i||^2,  i > k the least-squares singular values
              W*  = W_k + sum_{i>k} s_i* u_i v_i^T

    Args:
        W: (q, l) weight learned from inaccurate labels.
        X: (n, q) features.
        Y: (n, l) labels, same dtype as ``X``.
        k: number of principal directions kept, 0 <= k <= min(q, l).
        bias: (l,) bias of the classifier; the target is then ``Y - 1 bias^T``.

    Returns:
        (q, l) the repaired weight W*. Where ``X u_i = 0`` the formula is 0/0 and ``s_i`` is kept.
    """
    if bias is not None:
        Y = Y - bias
    U, S, Vh = torch.linalg.svd(W, full_matrices=False)
    V = Vh.mT
    W_k = U[:, :k] @ torch.diag(S[:k]) @ V[:, :k].mT
    U_r, V_r = U[:, k:], V[:, k:]
    residual = Y - X @ W_k
    numerator = torch.diagonal(U_r.mT @ (X.mT @ residual) @ V_r)
    denominator = torch.diagonal(U_r.mT @ (X.mT @ (X @ U_r)))
    s = torch.where(denominator > 0, numerator / denominator, S[k:])
    return W_k + U_r @ torch.diag(s) @ V_r.mT


def lip_step(
    M: Tensor,
    X: Tensor,
    Y: Tensor,
    k: int,
    r: int | None = None,
    *,
    tail: str = "refit",
    rest: str = "keep",
    clip: bool = True,
    bias: Tensor | None = None,
) -> Tensor:
    """LIP as it is applied inside an optimizer step, on a full decomposition.

    It is :func:`lip` on ``M = W^T`` with the choices that make it safe in training: only the ``r``
    directions below the kept ``k`` are refitted (``tail="refit"``) or set to zero (``tail="zero"``),
    deeper ones are left alone (``rest="keep"``) or removed (``rest="drop"``), directions the batch hardly
    sees (``||X b_i||^2 <= 1e-6 ||X||_F^2``) keep their value, and ``s_i*`` is limited to [-s_k, s_k].

    Args:
        M: (l, q) weight in the layout of ``nn.Linear``.
        X: (n, q) features of the batch.
        Y: (n, l) labels of the batch.
        k: number of principal directions kept.
        r: number of directions refitted below them; None for all that remain.
        tail: "refit" or "zero", for the directions k+1..k+r.
        rest: "keep" or "drop", for the directions below k+r.
        clip: limit the refitted values to [-s_k, s_k] (to s_1 where k = 0).
        bias: (l,) bias of the classifier.

    Returns:
        (l, q) the weight after the step.
    """
    if bias is not None:
        Y = Y - bias
    A, S, Bh = torch.linalg.svd(M, full_matrices=False)
    B = Bh.mT
    t = len(S) if r is None else min(k + r, len(S))
    s = S.clone()
    if tail == "zero":
        s[k:t] = 0
    else:
        numerator = torch.diagonal(B[:, k:t].mT @ X.mT @ Y @ A[:, k:t])
        denominator = (X @ B[:, k:t]).square().sum(0)
        refit = numerator / denominator
        if clip and len(S):
            limit = S[max(k - 1, 0)]
            refit = refit.clamp(-limit, limit)
        seen = denominator > 1e-6 * X.square().sum()
        # Not mere rounding, as in lip_fast.rounding.
        direction = S[k:t] > 8 * torch.finfo(M.dtype).eps * S[:1]
        s[k:t] = torch.where(seen & direction, refit, S[k:t])
    if rest == "drop":
        s[t:] = 0
    return A @ torch.diag(s) @ B.mT
