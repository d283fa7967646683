"""LIP among the other things that happen around a step: in which order, and what each of them sees."""

import itertools

import pytest
import torch
from integrations.plain import OPTIMIZERS, OPTIONS, Net, batches, overflowing, same, train, trained, weights
from problems import relative_error
from torch import Tensor
from torch.nn.functional import cross_entropy
from torch.optim import lr_scheduler
from torch.optim.swa_utils import SWALR, AveragedModel, get_ema_multi_avg_fn
from torch.utils.checkpoint import checkpoint

from lip_fast import LIP

pytestmark = pytest.mark.contract


def _by_hand(name: str, data: list, *, accumulate: int = 1, clip: float | None = None, **loop) -> Net:
    """The order spelled out: a step of the plain optimizer, then LIP on what was observed for it."""
    net = Net()
    lip = LIP(net.head, **OPTIONS)
    optimizer = OPTIMIZERS[name](net.parameters())
    train(net, optimizer, lip.observe, data, accumulate=accumulate, clip=clip, after_step=lip.apply, **loop)
    return net


@pytest.mark.parametrize("name", OPTIMIZERS)
@pytest.mark.parametrize("clip", [None, 0.1], ids=["", "clipped"])
@pytest.mark.parametrize("accumulate", [1, 3])
def test_gradients_are_accumulated_and_clipped_then_comes_the_step_then_lip(
    accumulate: int, clip: float | None, name: str
) -> None:
    data = batches(12)
    net, lip = trained(name, data, accumulate=accumulate, clip=clip)
    assert same(net, _by_hand(name, data, accumulate=accumulate, clip=clip))
    assert lip.stats()["applied"] == lip.stats()["steps"] == 12 // accumulate
    assert lip.state_dict()["subspace"]["basis"], "meant to be a truncated step, warm-started"


def test_micro_batches_count_as_the_batch_that_they_are_parts_of() -> None:
    data = batches(12)
    whole = [
        (torch.cat([x for x, _ in data[i : i + 3]]), torch.cat([y for _, y in data[i : i + 3]]))
        for i in (0, 3)
    ]
    parts, _ = trained("sgd", data[:6], accumulate=3)
    net, _ = trained("sgd", whole)
    assert relative_error(parts.head.weight, net.head.weight) < 1e-5


@pytest.mark.parametrize("when", ["before the loss", "before backward", "after backward"])
def test_it_may_be_observed_anywhere_between_forward_and_step(when: str) -> None:
    net = Net()
    optimizer = OPTIMIZERS["adamw fused"](net.parameters())
    lip = LIP(net.head, **OPTIONS)
    lip.attach(optimizer)
    for x, y in batches(4):
        logits, features = net(x)
        if when == "before the loss":
            lip.observe(features, y)
        loss = cross_entropy(logits, y)
        if when == "before backward":
            lip.observe(features, y)
        loss.backward()
        if when == "after backward":
            lip.observe(features, y)
        optimizer.step()
        optimizer.zero_grad()
    assert same(net, trained("adamw fused", batches(4))[0])


# Mixed precision ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_features_may_come_from_autocast(name: str) -> None:
    net, lip = trained(name, batches(6), autocast=torch.bfloat16)
    assert same(net, _by_hand(name, batches(6), autocast=torch.bfloat16))
    assert lip.stats()["applied"] == 6


@pytest.mark.parametrize("name", OPTIMIZERS)
@pytest.mark.parametrize("clip", [None, 0.1], ids=["", "clipped"])
def test_with_a_scaler_that_never_overflows_it_is_the_step_without_one(clip: float | None, name: str) -> None:
    # Powers of two scale and unscale without rounding.
    scaler = torch.amp.GradScaler("cpu", init_scale=2.0**10, growth_interval=2)
    net, lip = trained(name, batches(6), clip=clip, scaler=scaler)
    assert scaler.get_scale() == 2.0**13
    assert same(net, trained(name, batches(6), clip=clip)[0])
    assert lip.stats()["applied"] == 6


@pytest.mark.parametrize("clip", [None, 0.1], ids=["", "clipped"])
@pytest.mark.parametrize("name", OPTIMIZERS)
def test_a_step_that_the_scaler_skips_leaves_the_weights_alone(name: str, clip: float | None) -> None:
    data, history = batches(6), []
    net = Net()
    optimizer = OPTIMIZERS[name](net.parameters())
    lip = LIP(net.head, **OPTIONS)
    lip.attach(optimizer)
    scaler = torch.amp.GradScaler("cpu", init_scale=2.0**10)
    history.append(weights(net))
    train(
        net,
        optimizer,
        lip.observe,
        data,
        clip=clip,
        scaler=scaler,
        loss_of=overflowing({0, 3}),
        after_step=lambda: history.append(weights(net)),
    )
    moved = [not torch.equal(a[-2], b[-2]) for a, b in itertools.pairwise(history)]
    assert moved == [False, True, True, False, True, True]
    assert lip.stats()["applied"] == 4
    # Only fused optimizers are called at all.
    assert lip.stats()["skipped"] == (2 if "fused" in name else 0)


def test_after_a_step_that_a_scaler_left_out_what_was_observed_counts_with_the_next() -> None:
    data = batches(2)
    scaler = torch.amp.GradScaler("cpu", init_scale=1.0, backoff_factor=1.0 - 1e-9)
    net, _ = trained("sgd", data, scaler=scaler, loss_of=overflowing({0}))
    hand = Net()
    lip = LIP(hand.head, **OPTIONS)
    optimizer = OPTIMIZERS["sgd"](hand.parameters())
    lip.observe(hand(data[0][0])[1], data[0][1])
    train(hand, optimizer, lip.observe, data[1:], after_step=lip.apply)
    assert relative_error(net.head.weight, hand.head.weight) < 1e-6


def test_what_belonged_to_a_step_that_a_scaler_left_out_can_be_discarded() -> None:
    data = batches(2)
    weights = []
    for some in (data, data[1:]):
        net = Net()
        # On the exact path: a truncated step draws other columns after a step that was skipped.
        lip, optimizer = LIP(net.head, 3, decay=0.9, strict=True), OPTIMIZERS["sgd"](net.parameters())
        lip.attach(optimizer)
        scaler = torch.amp.GradScaler("cpu", init_scale=1.0, backoff_factor=0.5)
        for x, y in some:
            if len(some) == 2 and x is data[0][0]:
                x = x / 0  # as backbones overflow: their features are not finite either
            logits, features = net(x)
            scaler.scale(torch.nn.functional.cross_entropy(logits, y)).backward()
            lip.observe(features, y)
            scale = scaler.get_scale()
            scaler.step(optimizer)
            scaler.update()
            if scaler.get_scale() < scale:
                lip.discard()
            optimizer.zero_grad()
        weights.append(net.head.weight.detach())
    assert torch.equal(*weights)


def test_a_fused_step_that_was_skipped_discards_what_was_observed() -> None:
    data = batches(2)
    scaler = torch.amp.GradScaler("cpu", init_scale=1.0, backoff_factor=0.5)
    # On the exact path: a truncated step draws other columns after a step that was skipped.
    options = {"rank": 3, "decay": 0.9}
    net, _ = trained("adamw fused", data, options=options, scaler=scaler, loss_of=overflowing({0}))
    assert same(net, trained("adamw fused", data[1:], options=options)[0])


# Activation checkpointing ------------------------------------------------------------------------------


@pytest.mark.parametrize("reentrant", [True, False], ids=["reentrant", "not reentrant"])
def test_under_activation_checkpointing_what_is_observed_outside_is_observed_once(reentrant: bool) -> None:
    def forward(net: Net, x: Tensor) -> tuple[Tensor, Tensor]:
        features = checkpoint(net.backbone, x.clone().requires_grad_(), use_reentrant=reentrant)
        return checkpoint(net.head, features, use_reentrant=reentrant), features

    class Checkpointed(Net):
        def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
            return forward(self, x)

    net, calls = Checkpointed(), []
    optimizer = OPTIMIZERS["adamw fused"](net.parameters())
    lip = LIP(net.head, **OPTIONS)

    def observe(features: Tensor, y: Tensor) -> None:
        lip.observe(features, y)
        calls.append(len(lip.state_dict()["pending"]))

    with lip.attach(optimizer):
        train(net, optimizer, observe, batches(6))
    assert calls == [1] * 6
    assert same(net, trained("adamw fused", batches(6))[0])


# Averages of weights -----------------------------------------------------------------------------------


def _average(kind: str, net: Net) -> AveragedModel:
    return AveragedModel(net, multi_avg_fn=get_ema_multi_avg_fn(0.9) if kind == "ema" else None)


@pytest.mark.parametrize("kind", ["ema", "swa"])
def test_averages_are_of_the_weights_after_lip(kind: str) -> None:
    net = Net()
    averaged, by_hand = _average(kind, net), None
    optimizer = OPTIMIZERS["adamw fused"](net.parameters())
    lip = LIP(net.head, **OPTIONS)
    lip.attach(optimizer)
    seen: list[Tensor] = []

    def after_step() -> None:
        averaged.update_parameters(net)
        seen.append(net.head.weight.detach().double())

    train(net, optimizer, lip.observe, batches(6), after_step=after_step)
    for i, weight in enumerate(seen):
        share = 1 if i == 0 else 0.1 if kind == "ema" else 1 / (i + 1)
        by_hand = weight if by_hand is None else by_hand + share * (weight - by_hand)
    assert relative_error(averaged.module.head.weight, by_hand) < 1e-6
    # Training itself does not see the average.
    assert same(net, trained("adamw fused", batches(6))[0])


@pytest.mark.parametrize("first", ["lip", "average"])
def test_of_two_hooks_the_one_attached_last_comes_last(first: str) -> None:
    net = Net()
    optimizer = OPTIMIZERS["sgd"](net.parameters())
    lip, seen = LIP(net.head, **OPTIONS), []

    def hook(optimizer: object, args: object, kwargs: object) -> None:
        seen.append(net.head.weight.detach().clone())

    if first == "lip":
        lip.attach(optimizer)
    optimizer.register_step_post_hook(hook)
    if first == "average":
        lip.attach(optimizer)
    train(net, optimizer, lip.observe, batches(1))
    assert torch.equal(seen[0], net.head.weight) == (first == "lip")


def test_an_average_of_a_model_that_holds_its_lip_acts_on_nothing() -> None:
    class Holding(Net):
        lip: LIP

    net = Holding()
    net.lip = LIP(net.head, **OPTIONS)
    optimizer = OPTIMIZERS["sgd"](net.parameters())
    net.lip.attach(optimizer)
    averaged = AveragedModel(net)
    train(net, optimizer, net.lip.observe, batches(3), after_step=lambda: averaged.update_parameters(net))
    assert same(net, trained("sgd", batches(3))[0])
    assert averaged.module.lip.stats()["steps"] == 0


# Learning rates ----------------------------------------------------------------------------------------

SCHEDULES = {
    "step": lambda o: lr_scheduler.StepLR(o, 2),
    "cosine": lambda o: lr_scheduler.CosineAnnealingLR(o, 6),
    "one cycle": lambda o: lr_scheduler.OneCycleLR(o, 0.1, total_steps=8),
    "warm-up and decay": lambda o: lr_scheduler.SequentialLR(
        o, [lr_scheduler.LinearLR(o, 0.1, total_iters=2), lr_scheduler.ExponentialLR(o, 0.9)], [2]
    ),
    "swa": lambda o: SWALR(o, 0.05, anneal_epochs=3),
}


@pytest.mark.parametrize("schedule", SCHEDULES)
@pytest.mark.parametrize("name", ["sgd", "adamw fused"])
def test_schedulers_go_on_as_without_lip(name: str, schedule: str) -> None:
    net, lip = trained(name, batches(6), schedule=SCHEDULES[schedule])
    assert lip.stats()["applied"] == 6
    hand = Net()
    other = LIP(hand.head, **OPTIONS)
    optimizer = OPTIMIZERS[name](hand.parameters())
    scheduler = SCHEDULES[schedule](optimizer)
    train(hand, optimizer, other.observe, batches(6), scheduler=scheduler, after_step=other.apply)
    assert same(net, hand)


def test_it_may_be_attached_after_the_scheduler() -> None:
    net = Net()
    optimizer = OPTIMIZERS["sgd"](net.parameters())
    scheduler = SCHEDULES["cosine"](optimizer)
    lip = LIP(net.head, **OPTIONS)
    lip.attach(optimizer)
    train(net, optimizer, lip.observe, batches(6), scheduler=scheduler)
    assert same(net, trained("sgd", batches(6), schedule=SCHEDULES["cosine"])[0])


def test_what_is_observed_at_a_learning_rate_of_zero_counts_with_the_next_step() -> None:
    def warm_up(optimizer: torch.optim.Optimizer) -> lr_scheduler.LRScheduler:
        return lr_scheduler.LambdaLR(optimizer, lambda i: i / 4)

    options = {"rank": 3}
    net, lip = trained("adamw", batches(3), schedule=warm_up, options=options)
    assert lip.stats()["steps"] == lip.stats()["applied"] == 2
    hand = Net()
    other = LIP(hand.head, **options)
    optimizer = OPTIMIZERS["adamw"](hand.parameters())
    train(
        hand,
        optimizer,
        other.observe,
        batches(3),
        scheduler=warm_up(optimizer),
        after_step=lambda: optimizer.param_groups[0]["lr"] > 0.0025 and other.apply(),
    )
    assert same(net, hand)
