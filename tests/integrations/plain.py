"""A small network, its batches, and the plain loop that other libraries' loops must equal to the bit."""

import itertools
from collections.abc import Callable, Iterable, Iterator
from contextlib import nullcontext
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy
from torch.optim.lr_scheduler import LRScheduler

from lip_fast import LIP

INPUTS, FEATURES, CLASSES, ROWS = 12, 24, 20, 16
# A truncated step with both kinds of state: a basis that is warm-started, and averages over past batches.
OPTIONS = {"rank": 3, "tail_rank": 2, "decay": 0.9}
OPTIMIZERS: dict[str, Callable[[Iterable[Tensor]], torch.optim.Optimizer]] = {
    "sgd": lambda p: torch.optim.SGD(p, lr=0.1, momentum=0.9),
    "adam foreach": lambda p: torch.optim.Adam(p, lr=0.01, foreach=True),
    "adamw": lambda p: torch.optim.AdamW(p, lr=0.01, foreach=False),
    "adamw fused": lambda p: torch.optim.AdamW(p, lr=0.01, fused=True),
}
Batch = tuple[Tensor, Tensor]


class Net(nn.Module):
    """Backbone and head, from the same numbers each time."""

    def __init__(self) -> None:
        super().__init__()
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            self.backbone = nn.Sequential(nn.Linear(INPUTS, FEATURES), nn.Tanh())
            self.head = nn.Linear(FEATURES, CLASSES)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Logits, and the features that the head saw."""
        features = self.backbone(x)
        return self.head(features), features


class Rows(torch.utils.data.Dataset):
    """The rows of :func:`batches`, one by one."""

    def __init__(self, n: int) -> None:
        g = torch.Generator().manual_seed(1)
        self.x = torch.randn(n * ROWS, INPUTS, generator=g)
        self.y = torch.randint(0, CLASSES, (n * ROWS,), generator=g)

    def __len__(self) -> int:
        return len(self.y)

    def __getitem__(self, i: int) -> Batch:
        return self.x[i], self.y[i]


def batches(n: int) -> list[Batch]:
    """The first ``n`` batches."""
    rows = Rows(n)
    return list(zip(rows.x.split(ROWS), rows.y.split(ROWS), strict=True))


def train(
    net: Net,
    optimizer: torch.optim.Optimizer,
    observe: Callable[[Tensor, Tensor], None] | None,
    data: Iterable[Batch],
    *,
    accumulate: int = 1,
    clip: float | None = None,
    autocast: torch.dtype | None = None,
    upcast: bool = False,
    scaler: torch.amp.GradScaler | None = None,
    scheduler: LRScheduler | None = None,
    loss_of: Callable[[Tensor, Tensor], Tensor] | None = None,
    after_step: Callable[[], Any] = lambda: None,
) -> int:
    """The plain loop; returns how many steps there were, those that the scaler skipped too.

    Args:
        net: the network.
        optimizer: of its parameters.
        observe: called with features and labels before each step.
        data: batches.
        accumulate: micro-batches in a step.
        clip: largest norm of the gradient.
        autocast: dtype of the forward pass.
        upcast: whether outputs of the network leave autocast as float32.
        scaler: of the loss.
        scheduler: of the learning rate, stepped with the optimizer.
        loss_of: of logits and labels; the mean over the micro-batches unless given.
        after_step: called after each step.
    """
    steps = 0
    for i, (x, y) in enumerate(data):
        with nullcontext() if autocast is None else torch.autocast("cpu", dtype=autocast):
            logits, features = net(x)
            if upcast:
                logits, features = logits.float(), features.float()
            loss = loss_of(logits, y) if loss_of is not None else cross_entropy(logits, y) / accumulate
        (loss if scaler is None else scaler.scale(loss)).backward()
        if observe is not None:
            observe(features, y)
        if (i + 1) % accumulate:
            continue
        if clip is not None:
            if scaler is not None:
                scaler.unscale_(optimizer)
            nn.utils.clip_grad_norm_(net.parameters(), clip)
        if scaler is None:
            optimizer.step()
        else:
            scaler.step(optimizer)
            scaler.update()
        if scheduler is not None:
            scheduler.step()
        optimizer.zero_grad()
        steps += 1
        after_step()
    return steps


def overflowing(skipped: set[int]) -> Callable[[Tensor, Tensor], Tensor]:
    """A loss whose gradient overflows at the calls of these numbers."""
    numbers = itertools.count()

    def loss(logits: Tensor, y: Tensor) -> Tensor:
        return cross_entropy(logits, y) * (float("inf") if next(numbers) in skipped else 1.0)

    return loss


def trained(
    name: str,
    data: Iterable[Batch],
    *,
    schedule: Callable[[torch.optim.Optimizer], LRScheduler] | None = None,
    options: dict[str, Any] = OPTIONS,
    **loop: Any,
) -> tuple[Net, LIP]:
    """A network trained by the plain loop with LIP attached, and the LIP."""
    net = Net()
    optimizer = OPTIMIZERS[name](net.parameters())
    lip = LIP(net.head, **options)
    with lip.attach(optimizer):
        scheduler = None if schedule is None else schedule(optimizer)
        train(net, optimizer, lip.observe, data, scheduler=scheduler, **loop)
    return net, lip


def weights(net: nn.Module) -> list[Tensor]:
    """Copies of the parameters."""
    return [p.detach().clone() for p in net.parameters()]


def same(a: nn.Module, b: nn.Module) -> bool:
    """Whether two networks have the same bits."""
    return all(torch.equal(p, q) for p, q in zip(weights(a), weights(b), strict=True))


def same_state(a: object, b: object) -> bool:
    """Whether two states have the same bits."""
    ours, theirs = list(_leaves(a)), list(_leaves(b))
    return len(ours) == len(theirs) and all(
        torch.equal(p, q) if isinstance(p, Tensor) and isinstance(q, Tensor) else p == q
        for p, q in zip(ours, theirs, strict=True)
    )


def _leaves(tree: object) -> Iterator[object]:
    if isinstance(tree, dict):
        for key in sorted(tree):
            yield key
            yield from _leaves(tree[key])
    elif isinstance(tree, list | tuple):
        for item in tree:
            yield from _leaves(item)
    else:
        yield tree
