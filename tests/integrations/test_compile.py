"""LIP under ``torch.compile``: of the model, of the optimizer's step, of the whole training step."""

import shutil
from collections.abc import Callable, Iterator

import pytest
import torch
from integrations.plain import OPTIMIZERS, OPTIONS, Net, batches, same, train, trained
from problems import relative_error
from torch import Tensor
from torch.nn.functional import cross_entropy

from lip_fast import LIP

BACKENDS = [
    "eager",
    "aot_eager",
    pytest.param(
        "inductor",
        marks=[
            pytest.mark.process,
            pytest.mark.skipif(shutil.which("g++") is None, reason="inductor needs g++ on CPU"),
        ],
    ),
]
OF_A_STEP = [
    OPTIONS,
    {"rank": 3},
    {"rank": "auto", "strict": True},
    {"rank": 3, "every": 3, "start": 1},
    {"rank": 3, "tail_rank": 2, "tail": "zero", "rest": "drop"},
]
pytestmark = [
    pytest.mark.contract,
    # On first use they import modules of torch that are deprecated, and call each other in deprecated ways.
    pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning"),
    # Of its own looks at the features, where a compiled function pauses for observe().
    pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor that is not a leaf"),
    pytest.mark.filterwarnings("ignore:rest=.drop. removes"),
]


@pytest.fixture(autouse=True)
def _compiled_anew() -> Iterator[None]:
    torch.compiler.reset()
    yield
    torch.compiler.reset()


def _run(
    name: str,
    *,
    model: Callable = lambda net: net,
    step: Callable = lambda step: step,
    options: dict = OPTIONS,
    dtype: torch.dtype = torch.float32,
) -> tuple[Net, LIP]:
    """Six steps, of a model and an optimizer's step that may be compiled."""
    net = Net().to(dtype)
    optimizer = OPTIMIZERS[name](net.parameters())
    lip = LIP(net.head, **options)
    lip.attach(optimizer)
    optimizer_step = step(optimizer.step)
    called = model(net)
    for x, y in batches(6):
        logits, features = called(x.to(dtype))
        cross_entropy(logits, y).backward()
        lip.observe(features, y)
        optimizer_step()
        optimizer.zero_grad()
    return net, lip


@pytest.mark.parametrize("backend", BACKENDS)
def test_a_compiled_model(backend: str) -> None:
    net, lip = _run("adamw fused", model=lambda net: torch.compile(net, backend=backend))
    plain, other = trained("adamw fused", batches(6))
    assert lip.stats() == other.stats()
    if backend == "inductor":
        # Its forward pass rounds otherwise.
        assert relative_error(net.head.weight, plain.head.weight) < 1e-3
    else:
        assert same(net, plain)


def test_a_lip_of_the_head_of_a_compiled_model() -> None:
    """The head that a compiled model shows is the model's own."""
    net = Net()
    compiled = torch.compile(net, backend="eager")
    optimizer = OPTIMIZERS["sgd"](compiled.parameters())
    lip = LIP(compiled.head, **OPTIONS)
    lip.attach(optimizer)
    train(compiled, optimizer, lip.observe, batches(6))
    assert same(net, trained("sgd", batches(6))[0])


@pytest.mark.parametrize("options", OF_A_STEP, ids=str)
@pytest.mark.parametrize("name", ["sgd", "adamw fused"])
@pytest.mark.usefixtures("arithmetic")
def test_a_compiled_step(name: str, options: dict) -> None:
    eager, other = _run(name, options=options)
    net, lip = _run(name, options=options, step=lambda step: torch.compile(step, backend="eager"))
    assert same(net, eager)
    assert lip.stats() == other.stats()


@pytest.mark.parametrize("backend", BACKENDS[1:])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_a_step_compiled_by_other_backends(dtype: torch.dtype, backend: str) -> None:
    eager, other = _run("adamw fused", dtype=dtype)
    net, lip = _run("adamw fused", dtype=dtype, step=lambda step: torch.compile(step, backend=backend))
    assert same(net, eager)
    assert lip.stats() == other.stats()


def test_a_step_whose_optimizer_rounds_otherwise_when_compiled() -> None:
    """AdamW's bias correction is taken in other operations: LIP is the same, of another weight."""
    net, lip = _run("adamw", step=lambda step: torch.compile(step, backend="eager"))
    eager, other = _run("adamw")
    assert relative_error(net.head.weight, eager.head.weight) < 1e-2
    assert lip.stats()["applied"] == other.stats()["applied"] == 6


@pytest.mark.parametrize("backend", BACKENDS)
def test_a_compiled_training_step(backend: str) -> None:
    """Forward and backward pass, ``observe`` and step in one compiled function."""
    net = Net()
    optimizer = OPTIMIZERS["adamw fused"](net.parameters())
    lip = LIP(net.head, **OPTIONS)
    lip.attach(optimizer)

    @torch.compile(backend=backend)
    def step(x: Tensor, y: Tensor) -> Tensor:
        logits, features = net(x)
        loss = cross_entropy(logits, y)
        loss.backward()
        lip.observe(features, y)
        optimizer.step()
        optimizer.zero_grad()
        return loss

    for x, y in batches(6):
        step(x, y)
    plain, other = trained("adamw fused", batches(6))
    assert lip.stats() == other.stats()
    if backend == "inductor":
        assert relative_error(net.head.weight, plain.head.weight) < 1e-3
    else:
        assert same(net, plain)


def test_steps_of_a_compiled_step_go_on_after_many() -> None:
    """Counters that change from step to step do not ask for another compilation each time."""
    net = Net()
    optimizer = OPTIMIZERS["sgd"](net.parameters())
    lip = LIP(net.head, **OPTIONS)
    lip.attach(optimizer)
    torch._dynamo.utils.counters.clear()
    step = torch.compile(optimizer.step, backend="eager")
    compiled = []
    for x, y in batches(30):
        logits, features = net(x)
        cross_entropy(logits, y).backward()
        lip.observe(features, y)
        step()
        optimizer.zero_grad()
        compiled.append(torch._dynamo.utils.counters["stats"]["unique_graphs"])
    assert compiled[-1] == compiled[5]
    assert same(net, trained("sgd", batches(30))[0])
