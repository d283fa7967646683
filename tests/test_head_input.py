"""observe(targets): the features are what the head was called with, or an error says why they are not."""

import copy
import gc
import weakref
from collections.abc import Callable
from typing import Any

import pytest
import torch
from problems import linear
from torch import Tensor, nn
from torch.nn.functional import cross_entropy
from torch.utils.checkpoint import checkpoint

import lip_fast

Q, L, N = 20, 12, 16
OPTIONS: dict[str, Any] = {"rank": 4, "tail_rank": 4}


class Net(nn.Module):
    """Backbone and head; ``run`` is how the head is called."""

    def __init__(self, run: Callable[[nn.Module, Tensor], Tensor] = lambda head, x: head(x)) -> None:
        super().__init__()
        self.body, self.head, self.run = linear(Q, Q, seed=1), linear(Q, L, seed=2, bias=True), run

    def forward(self, x: Tensor) -> Tensor:
        return self.run(self.head, torch.tanh(self.body(x)))


class Plugin:
    """LIP on the head, attached to a plain optimizer."""

    def __init__(self, net: Net) -> None:
        self.net = net
        self.optimizer = torch.optim.SGD(net.parameters(), lr=0.1, momentum=0.9)
        self.lip = lip_fast.LIP(net.head, **OPTIONS)
        self.lip.attach(self.optimizer)

    def observe(self, *observed: Tensor) -> None:
        self.lip.observe(*observed)

    def applied(self) -> int:
        return self.lip.stats()["applied"]


class Inside:
    """An optimizer with LIP inside of its step."""

    def __init__(self, net: Net) -> None:
        self.net = net
        rest = [p for p in net.parameters() if p is not net.head.weight]
        groups = [
            {"params": rest},
            {"params": [net.head.weight], **{f"lip_{name}": value for name, value in OPTIONS.items()}},
        ]
        self.optimizer = lip_fast.optim.LIPSGD(groups, lr=0.1, momentum=0.9)
        self.optimizer.watch(net.head)

    def observe(self, *observed: Tensor) -> None:
        self.optimizer.observe(self.net.head, *observed)

    def applied(self) -> int:
        return next(iter(self.optimizer.lip.stats().values()))["applied"]


KINDS = {"plug-in": Plugin, "optimizer": Inside}


def _batch(i: int) -> tuple[Tensor, Tensor]:
    g = torch.Generator().manual_seed(i)
    return torch.randn(N, Q, generator=g), torch.randint(0, L, (N,), generator=g)


def _train(kind: type, net: Net, *, alone: bool, steps: int = 4, parts: int = 1, early: bool = False) -> Any:
    """Training in README's order; ``alone``: labels without features; ``early``: before the backward pass."""
    run = kind(net)
    for i in range(steps):
        for x, y in zip(*(t.chunk(parts) for t in _batch(i)), strict=True):
            loss = cross_entropy(net(x), y)
            observed = (y,) if alone else (torch.tanh(net.body(x)), y)
            if early:
                run.observe(*observed)
            loss.backward()
            if not early:
                run.observe(*observed)
        run.optimizer.step()
        run.optimizer.zero_grad()
    assert run.applied() == steps
    return run


def _same(a: nn.Module, b: nn.Module) -> bool:
    return all(torch.equal(p, q) for p, q in zip(a.parameters(), b.parameters(), strict=True))


RUNS: dict[str, Callable[[nn.Module, Tensor], Tensor]] = {
    "called": lambda head, x: head(x),
    "by keyword": lambda head, x: head(input=x),
    "recomputed": lambda head, x: checkpoint(head, x, use_reentrant=False),
    "recomputed with the body": lambda head, x: checkpoint(lambda z: head(z * 1.0), x, use_reentrant=False),
}


@pytest.mark.parametrize("early", [True, False], ids=["before backward", "after backward"])
@pytest.mark.parametrize("parts", [1, 2])
@pytest.mark.parametrize("run", RUNS.values(), ids=RUNS)
@pytest.mark.parametrize("kind", KINDS.values(), ids=KINDS)
def test_it_is_what_the_head_saw(kind: type, run: Any, parts: int, early: bool) -> None:
    seen, told = Net(run), Net()
    _train(kind, seen, alone=True, parts=parts, early=early)
    _train(kind, told, alone=False, parts=parts, early=early)
    assert _same(seen, told)


@pytest.mark.parametrize("kind", KINDS.values(), ids=KINDS)
def test_evaluation_is_passed_over(kind: type) -> None:
    seen, told = Net(), Net()
    run = kind(seen)
    for i in range(3):
        x, y = _batch(i)
        cross_entropy(seen(x), y).backward()
        seen.eval()
        seen(_batch(9)[0])
        seen.train()
        with torch.no_grad():
            seen(_batch(9)[0])
        run.observe(y)
        run.optimizer.step()
        run.optimizer.zero_grad()
    _train(kind, told, alone=False, steps=3)
    assert _same(seen, told)


def test_a_compiled_model_is_seen() -> None:
    torch.compiler.reset()
    seen, told = Net(), Net()
    compiled = torch.compile(seen, backend="eager", fullgraph=True)
    run = Plugin(seen)
    for i in range(4):
        x, y = _batch(i)
        cross_entropy(compiled(x), y).backward()
        run.observe(y)
        run.optimizer.step()
        run.optimizer.zero_grad()
    _train(Plugin, told, alone=False)
    assert _same(seen, told)


# What is not one clear batch ----------------------------------------------------------------------------


@pytest.mark.parametrize("kind", KINDS.values(), ids=KINDS)
def test_two_passes_are_refused(kind: type) -> None:
    run = kind(Net())
    for i in range(2):
        run.net(_batch(i)[0]).sum().backward()
    with pytest.raises(ValueError, match=r"one forward pass.*got several.*observe\(features, targets\)"):
        run.observe(_batch(1)[1])
    # The next batch is seen by itself.
    run.net(_batch(2)[0]).sum().backward()
    run.observe(_batch(2)[1])
    run.optimizer.step()
    assert run.applied() == 1


@pytest.mark.parametrize("kind", KINDS.values(), ids=KINDS)
@pytest.mark.parametrize(
    "pass_", ["none", "evaluation", "no gradients", "reentrant checkpoint", "other head"]
)
def test_no_pass_is_refused(pass_: str, kind: type) -> None:
    net = Net()
    run = kind(net)
    x, y = _batch(0)
    if pass_ == "evaluation":
        net.eval()(x)
    elif pass_ == "no gradients":
        with torch.no_grad():
            net(x)
    elif pass_ == "reentrant":
        checkpoint(net, x.requires_grad_(), use_reentrant=True).sum().backward()
    elif pass_ == "other head":
        copy.deepcopy(net)(x)
    with pytest.raises(ValueError, match=r"expected a forward pass.*got none.*observe\(features, targets\)"):
        run.observe(y)


def test_what_was_seen_before_a_step_is_not_of_the_next_batch() -> None:
    """A batch that was not observed, such as one without labels."""
    seen, told = Net(), Net()
    for net, observed in ((seen, lambda x, y: (y,)), (told, lambda x, y: (torch.tanh(told.body(x)), y))):
        run = Plugin(net)
        for i in range(4):
            x, y = _batch(i)
            cross_entropy(net(x), y).backward()
            if i % 2:
                run.observe(*observed(x, y))
            run.optimizer.step()
            run.optimizer.zero_grad()
        assert run.applied() == 2
    assert _same(seen, told)


def test_labels_of_other_rows_are_refused() -> None:
    run = Plugin(Net())
    run.net(_batch(0)[0]).sum().backward()
    with pytest.raises(ValueError, match=rf"expected {N} class indices.*got {N - 1}"):
        run.observe(_batch(0)[1][1:])


def test_an_optimizer_that_was_not_told_to_watch_says_so() -> None:
    net = Net()
    optimizer = lip_fast.optim.LIPSGD(
        [{"params": net.body.parameters()}, {"params": [net.head.weight], "lip_rank": 4}], lr=0.1
    )
    net(_batch(0)[0]).sum().backward()
    with pytest.raises(ValueError, match=r"expected targets of a head that is watched.*call watch\(head\)"):
        optimizer.observe(net.head, _batch(0)[1])
    with pytest.raises(ValueError, match="expected a head whose weight is in a group with a lip_rank"):
        optimizer.watch(net.body)


def test_a_lip_that_was_detached_sees_nothing() -> None:
    run = Plugin(Net())
    run.lip.detach()
    run.net(_batch(0)[0]).sum().backward()
    with pytest.raises(ValueError, match=r"detached attach\(optimizer\)"):
        run.observe(_batch(0)[1])
    run.lip.attach(run.optimizer)
    run.net(_batch(0)[0]).sum().backward()
    run.observe(_batch(0)[1])


# The hook -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", KINDS.values(), ids=KINDS)
def test_copies_see_the_copied_head(kind: type) -> None:
    run = _train(kind, Net(), alone=True)
    copied = copy.deepcopy(run)
    if kind is Plugin:
        copied.lip.attach(copied.optimizer)
    for each in (run, copied):
        x, y = _batch(5)
        cross_entropy(each.net(x), y).backward()
        each.observe(y)
        each.optimizer.step()
        assert each.applied() == 5
    assert _same(run.net, copied.net)


def test_a_copy_of_the_model_alone_keeps_nothing_of_its_batches() -> None:
    run = Plugin(Net())
    average = copy.deepcopy(run.net)
    x = _batch(0)[0]
    seen = weakref.ref(x.untyped_storage())
    average.run(average.head, x)
    del x
    assert seen() is None


def test_the_hook_goes_with_its_lip() -> None:
    net = Net()
    run = Plugin(net)
    assert len(net.head._forward_hooks) == 1
    del run
    gc.collect()
    assert not net.head._forward_hooks


def test_another_rank_in_a_group_goes_on_watching() -> None:
    run = _train(Inside, Net(), alone=True)
    run.optimizer.param_groups[1]["lip_rank"] = 3
    x, y = _batch(5)
    cross_entropy(run.net(x), y).backward()
    run.observe(y)
    run.optimizer.step()
    assert run.applied() == 1


def test_hooks_of_copies_do_not_pile_up() -> None:
    """A model that is copied and given a LIP again and again, as in population based training."""
    net = Net()
    for _ in range(5):
        run = Plugin(net)
        net = copy.deepcopy(net)
    assert len(net.head._forward_hooks) == 1
    # The copy's hook serves nobody: it goes with the first pass.
    net(_batch(0)[0])
    assert not net.head._forward_hooks
    assert not net.head._forward_hooks_with_kwargs
    assert len(run.net.head._forward_hooks) == 1


def test_what_hooks_before_it_make_of_the_input_is_seen() -> None:
    seen, told = Net(), Net()
    run = Plugin(seen)
    seen.head.register_forward_pre_hook(lambda module, args: (2 * args[0],))
    told.run = lambda head, x: head(2 * x)
    other = Plugin(told)
    for i in range(3):
        x, y = _batch(i)
        for each in (run, other):
            cross_entropy(each.net(x), y).backward()
        run.observe(y)
        other.observe(2 * torch.tanh(told.body(x)), y)
        for each in (run, other):
            each.optimizer.step()
            each.optimizer.zero_grad()
    assert _same(seen, told)


@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::UserWarning")
def test_tools_that_trace_or_convert_the_model() -> None:
    """They run the head otherwise, or hand its hooks to another module."""
    seen, told = Net(), Net()
    run = Plugin(seen)
    for i in range(4):
        x, y = _batch(i)
        cross_entropy(seen(x), y).backward()
        torch.export.export(seen, (x,))
        torch.func.vmap(lambda row: torch.func.functional_call(seen, dict(seen.named_parameters()), (row,)))(
            x
        )
        torch.jit.trace(seen, x, check_trace=False)
        run.observe(y)
        run.optimizer.step()
        run.optimizer.zero_grad()
    _train(Plugin, told, alone=False)
    assert _same(seen, told)
    quantized = torch.ao.quantization.quantize_dynamic(seen.eval(), {nn.Linear})
    assert quantized(_batch(0)[0]).shape == (N, L)


# What else may be wrong with a head -------------------------------------------------------------------


class Cosine(nn.Linear):
    """Logits of normalised features and weights."""

    def forward(self, x: Tensor) -> Tensor:
        normalised = nn.functional.normalize
        return nn.functional.linear(normalised(x), normalised(self.weight))


@pytest.mark.parametrize("kind", KINDS.values(), ids=KINDS)
def test_a_head_that_is_not_linear_is_told_once(kind: type) -> None:
    net = Net()
    with torch.random.fork_rng(devices=[]):
        net.head = Cosine(Q, L)
    run = kind(net)
    for i in range(2):
        net(_batch(i)[0]).sum().backward()
        if i:
            run.observe(_batch(i)[1])
        else:
            with pytest.warns(UserWarning, match=r"computes features @ weight.T \+ bias"):
                run.observe(_batch(i)[1])
        run.optimizer.step()


@pytest.mark.parametrize("kind", KINDS.values(), ids=KINDS)
def test_a_frozen_head_is_left_alone_whatever_its_gradient_holds(kind: type) -> None:
    """zero_grad(set_to_none=False) leaves gradients of 0."""
    run = kind(Net())
    before = run.net.head.weight.detach().clone()
    run.net.head.weight.grad = torch.zeros(L, Q)
    run.net.head.requires_grad_(False)
    for i in range(3):
        x, y = _batch(i)
        cross_entropy(run.net(x), y).backward()
        run.observe(torch.tanh(run.net.body(x)), y)
        run.optimizer.step()
        run.optimizer.zero_grad(set_to_none=False)
    assert run.applied() == 0
    assert torch.equal(run.net.head.weight, before)


def test_an_optimizer_that_is_gone_is_said_at_once() -> None:
    run = Plugin(Net())
    run.optimizer = torch.optim.SGD(run.net.parameters(), lr=0.1)
    gc.collect()
    run.net(_batch(0)[0]).sum().backward()
    with pytest.raises(RuntimeError, match=r"the one it was attached to is gone: call attach\(\)"):
        run.observe(_batch(0)[1])
    run.lip.attach(run.optimizer)
    run.net(_batch(1)[0]).sum().backward()
    run.observe(_batch(1)[1])
    run.optimizer.step()
    assert run.applied() == 1


@pytest.mark.parametrize("kind", KINDS.values(), ids=KINDS)
def test_parameters_may_be_swapped(kind: type) -> None:
    """As torch.__future__.set_swap_module_params_on_conversion has it, and FSDP2."""
    run = _train(kind, Net(), alone=True)
    before = torch.__future__.get_swap_module_params_on_conversion()
    torch.__future__.set_swap_module_params_on_conversion(True)
    try:
        run.net.double()
    finally:
        torch.__future__.set_swap_module_params_on_conversion(before)
    assert run.net.head.weight.dtype == torch.float64


def test_an_optimizer_forgets_a_batch_that_was_left_out() -> None:
    run = Inside(Net())
    run.net(torch.full((N, Q), float("inf")))
    run.observe(_batch(0)[1])
    run.optimizer.discard()
    for x, y in (_batch(i) for i in range(2)):
        cross_entropy(run.net(x), y).backward()
        run.observe(y)
        run.optimizer.step()
    assert run.applied() == 2
    run.optimizer.unwatch(run.net.head)
    assert not run.net.head._forward_hooks


def test_of_the_logits_no_more_than_a_few_rows_are_kept() -> None:
    """Those of a language model are gigabytes."""
    run = Plugin(Net())
    output = run.net(_batch(0)[0])
    logits = weakref.ref(output.untyped_storage())
    output.sum().backward()
    del output
    assert logits() is None


@pytest.mark.parametrize("passes", [1, 2])
def test_another_rank_between_two_passes_forgets_neither(passes: int) -> None:
    run = _train(Inside, Net(), alone=True)
    run.net(_batch(0)[0])
    run.optimizer.param_groups[1]["lip_rank"] = 3
    run.optimizer.lip.stats()
    if passes == 2:
        run.net(_batch(1)[0])
        with pytest.raises(ValueError, match="got several"):
            run.observe(_batch(1)[1])
    else:
        run.observe(_batch(0)[1])


def test_what_is_watched_no_more_stays_so() -> None:
    run = _train(Inside, Net(), alone=True)
    run.optimizer.unwatch(run.net.head)
    run.optimizer.param_groups[1]["lip_rank"] = 3
    run.optimizer.lip.stats()
    assert not run.net.head._forward_hooks
