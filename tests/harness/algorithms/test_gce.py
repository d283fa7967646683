import numpy as np
import pytest
import torch
from harness.algorithms.problems import LABELS, ROWS, Z, assert_loss_is, make, softmax

from lip_fast.cli.errors import UserError


@pytest.mark.parametrize("q", [0.7, 0.2, 1.0])
def test_formula(q: float) -> None:
    y = np.array(LABELS)[ROWS]
    algorithm = make("gce", LABELS) if q == 0.7 else make("gce", LABELS, q=q)
    assert_loss_is(algorithm, Z, ROWS, lambda Z: ((1 - softmax(Z)[range(3), y] ** q) / q).mean())


def test_a_small_q_is_cross_entropy() -> None:
    logits, rows = torch.tensor(Z), torch.tensor(ROWS)
    small, plain = make("gce", LABELS, q=1e-9), make("cross-entropy", LABELS)
    torch.testing.assert_close(small.loss(logits, rows), plain.loss(logits, rows))


def test_where_the_label_has_no_probability_left() -> None:
    logits = torch.tensor([[0.0, 200.0, 0.0]], requires_grad=True)  # exp(-200) is 0 in float32
    loss = make("gce", [0]).loss(logits, torch.tensor([0]))
    (gradient,) = torch.autograd.grad(loss, logits)
    assert loss.item() == pytest.approx(1 / 0.7)
    assert gradient.abs().max() < 1e-30
    assert gradient.isfinite().all()


@pytest.mark.parametrize("q", [0.0, -0.1, 1.1])
def test_range(q: float) -> None:
    with pytest.raises(UserError, match=rf"expected option q of GCE in \(0, 1\], got {q:g}"):
        make("gce", LABELS, q=q)
