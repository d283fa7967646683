import numpy as np
import pytest
import torch
from harness.algorithms.problems import blobs, candidates_of, make, make_network, make_task

from lip_fast.cli.errors import UserError
from lip_fast.harness.algorithms import ALGORITHMS


@pytest.mark.parametrize(("components", "expected"), [(0, 3), (1, 1), (5, 5), (16, 16)])
def test_it_is_the_head_on_the_leading_singular_directions_of_the_features(
    components: int, expected: int
) -> None:
    X, clean, noisy = blobs()
    X = torch.cat([X, X.square(), X[:, :1] * X[:, 1:]], 1)
    model = make_network(inputs=5, hidden=16)
    F = model.features(X).detach().double().numpy()
    V = np.linalg.svd(F, full_matrices=False)[2][:expected]
    for targets in (noisy, candidates_of(clean)):
        task = make_task(targets, X, options={"components": float(components)})
        head = ALGORITHMS["truncation"](task).classifier(model)
        np.testing.assert_allclose(
            head.weight.detach(), model.head.weight.detach().numpy() @ V.T @ V, rtol=1e-4, atol=1e-6
        )
        assert torch.equal(head.bias, model.head.bias)
        assert head is not model.head


def test_more_classes_than_features() -> None:
    X, _, noisy = blobs()
    model = make_network(hidden=2)
    head = ALGORITHMS["truncation"](make_task(noisy, X)).classifier(model)
    torch.testing.assert_close(head.weight, model.head.weight)


def test_more_components_than_features() -> None:
    algorithm = make("truncation", [0, 1, 2], components=17.0)
    with pytest.raises(UserError, match="components of spectral truncation up to 16, the features, got 17"):
        algorithm.classifier(make_network())


@pytest.mark.parametrize("components", [-1.0, 1.5])
def test_range(components: float) -> None:
    with pytest.raises(UserError, match="components of spectral truncation a whole number of at least 0"):
        make("truncation", [0, 1], components=components)
