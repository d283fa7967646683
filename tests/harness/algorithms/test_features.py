import numpy as np
import pytest
import torch
from harness.algorithms.problems import blobs, make_network
from torch import nn

from lip_fast.harness.algorithms.features import features_of, statistics_of
from lip_fast.harness.models import Network
from lip_fast.harness.seeding import initialisation


def network() -> Network:
    """One whose features depend on its mode."""
    with initialisation(0):
        body = nn.Sequential(nn.Linear(2, 6), nn.BatchNorm1d(6), nn.Dropout(0.5))
        model = Network(body, nn.Linear(6, 3))
    return model.train()


def test_features_are_those_of_eval_mode_and_the_mode_comes_back() -> None:
    X = blobs(2300)[0]
    model = network()
    model.body[1].eval()
    found = features_of(model, X)
    assert [module.training for module in model.body] == [True, False, True]
    assert model.training
    assert not found.requires_grad
    model.eval()
    torch.testing.assert_close(found, model.features(X))


def test_the_mode_comes_back_from_an_error() -> None:
    model = network()
    with pytest.raises(RuntimeError):
        features_of(model, torch.zeros(3, 7))
    assert all(module.training for module in model.modules())


def test_batch_statistics_do_not_move() -> None:
    model = network()
    before = model.body[1].running_mean.clone()
    features_of(model, blobs()[0])
    assert torch.equal(model.body[1].running_mean, before)


def test_statistics() -> None:
    X, clean, _ = blobs(2300)
    model = network()
    F = features_of(model, X).double().numpy()
    statistics = statistics_of(model, X, torch.tensor(clean))
    assert statistics.rows == 2300
    np.testing.assert_allclose(statistics.G[:-1, :-1], F.T @ F, rtol=1e-10)
    np.testing.assert_allclose(statistics.C[:-1], F.T @ np.eye(3)[clean], rtol=1e-10, atol=1e-9)


def test_plain_networks_too() -> None:
    X = blobs()[0]
    model = make_network()
    assert torch.equal(features_of(model, X), model.features(X))
