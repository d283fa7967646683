import pytest
import torch
from harness.algorithms.problems import LABELS, blobs, make, make_network, make_task, take_step

from lip_fast.cli.errors import UserError
from lip_fast.harness.algorithms import ALGORITHMS


def weights_of(model: torch.nn.Module) -> list[torch.Tensor]:
    return [weight.detach().clone() for weight in model.parameters()]


def same(a: list[torch.Tensor], b: list[torch.Tensor]) -> bool:
    return all(torch.equal(x.view(torch.int32), y.view(torch.int32)) for x, y in zip(a, b, strict=True))


def test_the_gradient_is_that_of_disturbed_weights_and_the_weights_come_back() -> None:
    X, _, noisy = blobs()
    algorithm = ALGORITHMS["nvrm"](make_task(noisy, X))
    model = make_network()
    with torch.no_grad():
        model.body[0].weight[0, 0] = -0.0
    before = weights_of(model)
    algorithm.before_forward(model)
    disturbed = weights_of(model)
    rows = torch.arange(40)
    algorithm.loss(model(X[rows]), rows).backward()
    algorithm.before_step(model)
    assert same(weights_of(model), before)

    twin = make_network(seed=1)
    with torch.no_grad():
        for weight, value in zip(twin.parameters(), disturbed, strict=True):
            weight.copy_(value)
    torch.nn.functional.cross_entropy(twin(X[rows]), torch.tensor(noisy)[rows]).backward()
    for mine, theirs in zip(model.parameters(), twin.parameters(), strict=True):
        assert mine.grad is not None
        assert torch.equal(mine.grad, theirs.grad)


def test_noise_of_every_layer_has_the_deviation_b_and_is_drawn_afresh() -> None:
    algorithm = make("nvrm", LABELS, b=0.5)
    model = make_network(inputs=100, hidden=200, classes=50)
    before = weights_of(model)
    draws = []
    for _ in range(2):
        algorithm.before_forward(model)
        draws.append([x - y for x, y in zip(weights_of(model), before, strict=True)])
        algorithm.before_step(model)
    for noise in draws[0]:
        assert noise.std().item() == pytest.approx(0.5, rel=5 / (2 * noise.numel()) ** 0.5)
        assert abs(noise.mean().item()) < 5 * 0.5 / noise.numel() ** 0.5
    assert not any(torch.equal(x, y) for x, y in zip(*draws, strict=True))


def test_the_default_deviation() -> None:
    algorithm, model = make("nvrm", LABELS), make_network(inputs=100, hidden=100)
    before = weights_of(model)
    algorithm.before_forward(model)
    assert (weights_of(model)[0] - before[0]).std().item() == pytest.approx(0.01, rel=0.05)


def test_seeds_differ_and_repeat() -> None:
    drawn = []
    for seed in (0, 0, 1):
        model = make_network()
        ALGORITHMS["nvrm"](make_task(LABELS, seed=seed)).before_forward(model)
        drawn.append(weights_of(model))
    assert same(drawn[0], drawn[1])
    assert not same(drawn[0], drawn[2])


def test_a_step_cut_short_leaves_no_noise() -> None:
    algorithm, model = make("nvrm", LABELS), make_network()
    before = weights_of(model)
    algorithm.before_forward(model)
    algorithm.before_forward(model)
    algorithm.before_step(model)
    assert same(weights_of(model), before)


def test_frozen_weights_stay() -> None:
    algorithm, model = make("nvrm", LABELS), make_network()
    model.head.requires_grad_(False)
    before = weights_of(model)
    algorithm.before_forward(model)
    after = weights_of(model)
    assert same(after[2:], before[2:])
    assert not torch.equal(after[0], before[0])


def test_without_noise_it_is_cross_entropy() -> None:
    X, _, noisy = blobs()
    models = []
    for name, options in (("nvrm", {"b": 0.0}), ("cross-entropy", {})):
        algorithm = ALGORITHMS[name](make_task(noisy, X, options=options))
        model = make_network()
        for _ in range(3):
            take_step(algorithm, model, torch.arange(150))
        models.append(model)
    assert same(*map(weights_of, models))


def test_range() -> None:
    with pytest.raises(UserError, match="option b of NVRM at least 0"):
        make("nvrm", LABELS, b=-0.01)
