"""Heads in training, alike in one process and in several: the same weight, batches and base optimizer."""

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.distributed.tensor import DTensor, distribute_tensor

import lip_fast
from lip_fast.optim import LIPSGD, LIPAdamW

Q, ROWS, STEPS = 12, 24, 4


class Problem(NamedTuple):
    """A head of ``classes`` x ``features``, and what it sees in each step."""

    weight: Tensor
    bias: Tensor
    features: list[Tensor]
    targets: list[Tensor]


def make_problem(
    classes: int,
    features: int = Q,
    *,
    rows: int = ROWS,
    dtype: torch.dtype = torch.float64,
    labels: str = "indices",
) -> Problem:
    generator = torch.Generator().manual_seed(classes * 1000 + features)

    def randn(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator, dtype=torch.float64)

    # A gapped spectrum: rounding must not decide which directions are kept.
    U, _ = torch.linalg.qr(randn(classes, min(classes, features)))
    V, _ = torch.linalg.qr(randn(features, min(classes, features)))
    d = min(classes, features)
    S = 3.0 * 0.8 ** (torch.arange(d, dtype=torch.float64) * min(20 / d, 1))
    weight, bias = (U * S) @ V.T, 0.1 * randn(classes)
    X = [randn(rows, features) for _ in range(STEPS)]
    Y = [torch.randint(classes, (rows,), generator=generator) for _ in range(STEPS)]
    for y in Y:
        y[::7] = -100
    targets: list[Tensor] = Y
    if labels != "indices":
        dense = [torch.rand(rows, classes, generator=generator, dtype=torch.float64) for _ in Y]
        dense = [d * (torch.rand(rows, classes, generator=generator) < 0.3) for d in dense]
        targets = [d.to_sparse_csr() if labels == "csr" else d for d in dense]
    return Problem(weight.to(dtype), bias.to(dtype), [x.to(dtype) for x in X], targets)


def make_head(problem: Problem) -> nn.Linear:
    classes, features = problem.weight.shape
    with torch.random.fork_rng():
        head = nn.Linear(features, classes, dtype=problem.weight.dtype)
    with torch.no_grad():
        head.weight.copy_(problem.weight)
        head.bias.copy_(problem.bias)
    return head


def gradient(problem: Problem, step: int) -> Tensor:
    """Some gradient (l, q) that no loss is needed for, the same however many processes there are."""
    generator = torch.Generator().manual_seed(step)
    shape = problem.weight.shape
    return 0.1 * torch.randn(shape, generator=generator, dtype=torch.float64).to(problem.weight.dtype)


def set_gradient(weight: Tensor, whole: Tensor) -> None:
    if isinstance(weight, DTensor):
        grad = distribute_tensor(whole, weight.device_mesh, weight.placements, src_data_rank=None)
        weight.grad = grad
    else:
        weight.grad = whole.clone()


def plugin(head: nn.Linear, rank: Any, **settings: Any) -> tuple[Any, Callable[[Tensor, Tensor], None], Any]:
    """A plain optimizer with LIP attached: (optimizer, observe, LIP)."""
    optimizer = torch.optim.SGD(head.parameters(), lr=0.1, momentum=0.9)
    lip = lip_fast.LIP(head, rank, **settings)
    lip.attach(optimizer)
    return optimizer, lip.observe, lip


def fused(
    kind: type, head: nn.Linear, rank: Any, **settings: Any
) -> tuple[Any, Callable[[Tensor, Tensor], None], Any]:
    """An optimizer with LIP inside."""
    data_group = settings.pop("data_group", None)
    names = {f"lip_{name}": value for name, value in settings.items()}
    groups = [{"params": [head.bias]}, {"params": [head.weight], "lip_rank": rank} | names]
    optimizer = kind(groups, lr=0.05, data_group=data_group)
    return optimizer, lambda x, y: optimizer.observe(head, x, y), optimizer.lip


MAKERS: dict[str, Callable[..., Any]] = {
    "plugin": plugin,
    "sgd": lambda *args, **settings: fused(LIPSGD, *args, **settings),
    "adamw": lambda *args, **settings: fused(LIPAdamW, *args, **settings),
}


def train(
    problem: Problem,
    head: nn.Linear,
    rank: Any,
    *,
    maker: str = "plugin",
    mine: Callable[[Tensor], Tensor] = lambda rows: rows,
    steps: range = range(STEPS),
    **settings: Any,
) -> tuple[Tensor, Any]:
    """The whole weight after these steps, and what counts them; ``mine`` are the rows this process sees."""
    optimizer, observe, lip = MAKERS[maker](head, rank, **settings)
    for step in steps:
        take_step(problem, head, optimizer, observe, step, mine)
    return whole(head.weight), lip


def take_step(
    problem: Problem,
    head: nn.Linear,
    optimizer: torch.optim.Optimizer,
    observe: Callable[[Tensor, Tensor], None],
    step: int,
    mine: Callable[[Tensor], Tensor] = lambda rows: rows,
) -> None:
    set_gradient(head.weight, gradient(problem, step))
    observe(mine(problem.features[step]), mine(problem.targets[step]))
    optimizer.step()


def whole(tensor: Tensor) -> Tensor:
    tensor = tensor.detach()
    return tensor.full_tensor() if isinstance(tensor, DTensor) else tensor.clone()


def shard(head: nn.Linear, mesh: Any, placements: Any, bias_placements: Any = None) -> nn.Linear:
    """The head with a weight on a mesh, and its bias likewise where it is given placements."""
    weight = distribute_tensor(head.weight.detach(), mesh, placements, src_data_rank=None)
    head.weight = nn.Parameter(weight)
    if bias_placements is not None:
        bias = distribute_tensor(head.bias.detach(), mesh, bias_placements, src_data_rank=None)
        head.bias = nn.Parameter(bias)
    return head


def distance(got: Tensor, expected: Tensor) -> float:
    return float((got.double() - expected.double()).norm() / expected.double().norm())
