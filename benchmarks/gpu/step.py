"""The whole step of the plug-in, captured in a graph, beside the step as it is called."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from benchmarks.gpu.weights import DRY_HEADS, HEADS, Weight, device_generator, make_weight
from lip_fast import LIP, backends, ops
from lip_fast.bench.cases import Bound, Case, Floors, Maker, at_most, require_memory, require_native
from lip_fast.bench.gates import Gate, distance
from lip_fast.bench.timing import Variant, captured, synchronize
from lip_fast.directions import Directions, StepReport
from lip_fast.ops.op import OPS
from lip_fast.projected import FRESH
from lip_fast.settings import Settings
from lip_fast.world import Alone

__all__ = [
    "Trainer",
    "batch",
    "cases",
    "composed_ops",
    "every_step_repaired",
    "make_directions",
    "sgd",
    "step_targets",
    "unequal",
]

# Distance of the weight after a step from the same step in float64: TF32 gives 1e-4, no repair 1e-2.
_STEP = 1e-3
_SAMPLES = 128


@contextmanager
def composed_ops() -> Iterator[None]:
    """The ops by their default kernels, plain torch, though others are there; updates by torch's step."""
    served = {op: op.run for op in OPS.values()}
    fuses_updates = ops.fuses_updates
    try:
        for op in served:
            op.run = backends.declared()[op.name][0].run
        ops.fuses_updates = lambda device: False
        yield
    finally:
        for op, run in served.items():
            op.run = run
        ops.fuses_updates = fuses_updates


class Trainer:
    """A head with an optimizer, a gradient that stays, and LIP or not.

    Args:
        M: the weight it starts from.
        gradient: shared by all trainers.
        optimizer: makes the optimizer.
        options: of LIP; None for none.
    """

    def __init__(
        self,
        M: Tensor,
        gradient: Tensor,
        optimizer: Callable[[list[nn.Parameter]], torch.optim.Optimizer],
        options: Mapping[str, Any] | None = None,
    ) -> None:
        l, q = M.shape
        self.head: nn.Linear = nn.utils.skip_init(nn.Linear, q, l, bias=False, device=M.device, dtype=M.dtype)
        with torch.no_grad():
            self.head.weight.copy_(M)
        self.head.weight.grad = gradient
        self.optimizer = optimizer([self.head.weight])
        self.lip = None if options is None else LIP(self.head, **options)
        if self.lip is not None:
            self.lip.attach(self.optimizer)

    @property
    def weight(self) -> Tensor:
        """The weight (l, q)."""
        return self.head.weight.detach()

    def observe(self, X: Tensor, y: Tensor) -> None:
        """Show LIP the batch."""
        if self.lip is not None:
            self.lip.observe(X, y)

    def stats(self) -> Mapping[str, int | None]:
        """The counts of LIP."""
        assert self.lip is not None
        return self.lip.stats()

    def step(self, X: Tensor, y: Tensor) -> None:
        """Observe the batch and step."""
        self.observe(X, y)
        self.optimizer.step()

    def captured(self, name: str, X: Tensor, y: Tensor, flip: Callable[[], object]) -> Variant:
        """The replay of a step, after a few that are not captured."""
        self.step(X, y)
        if not self.weight.is_cuda:
            return Variant(name, lambda: self.step(X, y), between=flip)
        self.observe(X, y)

        def warm() -> None:
            self.optimizer.step()
            self.observe(X, y)

        return captured(name, self.optimizer.step, self.weight.device, warm=warm, between=flip)

    def follow(self, other: "Trainer") -> None:
        """Go on from where another one is; with SGD, which has no state."""
        assert self.lip is not None
        assert other.lip is not None
        with torch.no_grad():
            self.head.weight.copy_(other.weight)
        self.lip.load_state_dict(other.lip.state_dict())


def sgd(parameters: list[nn.Parameter]) -> torch.optim.Optimizer:
    return torch.optim.SGD(parameters, lr=1.0)


def batch(weight: Weight, l: int, q: int, device: torch.device) -> tuple[Tensor, Tensor]:
    """Features and class indices that ask for about the singular values there are: see ``problems``."""
    g = device_generator(device)
    t = len(weight.s)
    y = torch.randint(l, (_SAMPLES,), generator=g, device=device)
    X = torch.randn(_SAMPLES, q, generator=g, device=device)
    u = torch.full((t,), 0.5, device=device)
    X += l**0.5 * (weight.A[:, :t] * u)[y] @ weight.basis.mT
    return X.mul_(0.5 / l**0.5), y


def unequal(a: Tensor, b: Tensor) -> float:
    return float((a != b).sum())


def step(l: int, q: int, k: int, r: int, rest: str, device: torch.device, floors: Floors) -> Case:
    """The whole step of the plug-in on SGD, captured, beside the step as it is called."""
    require_native(device)
    require_memory(device, 4.0 * l * q * 18)
    weight = make_weight(l, q, k, r, device)
    M = weight.M
    X, y = batch(weight, l, q, device)
    # A small step each time, forth and back from sample to sample: the weight stays near where it began.
    size = 1e-4 * float(torch.linalg.vector_norm(M)) / (l * q) ** 0.5
    gradient = torch.randn(l, q, generator=device_generator(device), device=device).mul_(size)
    options = {"rank": k, "tail_rank": r, "rest": rest, "seed": 0}
    ours, eager, composed = (Trainer(M, gradient, sgd, options) for _ in range(3))
    base = Trainer(M, gradient, sgd)
    replay = ours.captured("LIP", X, y, gradient.neg_)
    replay.run()
    synchronize(device)
    eager.follow(ours)
    replay.run()
    eager.step(X, y)
    gates = [Gate("replay", unequal(ours.weight, eager.weight), 0, unequal(ours.weight, M))]
    gates += _step_gates(eager, composed, X * 0.8, y, gradient, (k, r, rest))
    composed.follow(eager)

    directions = make_directions(l, q, (k, r, rest), device)
    assert eager.lip is not None
    directions.load_state_dict(eager.lip.state_dict()["subspace"])
    alone, ok = eager.weight.clone(), torch.ones((), dtype=torch.bool, device=device)

    def composed_step() -> None:
        with composed_ops():
            composed.step(X, y)

    variants = [
        replay,
        captured("LIP alone", lambda: directions.step_(alone, Alone([(X, y)], ok)), device),
        base.captured("SGD", X, y, gradient.neg_),
        Variant("LIP eager", lambda: eager.step(X, y), between=gradient.neg_),
        Variant("composed eager", composed_step, between=gradient.neg_),
    ]
    # The weight is read once to be decomposed; written where the rest is dropped, else read and written; SGD
    # reads weight and gradient and writes.
    passes = 2 if rest == "drop" else 3
    alone_floor = {f"alone {name}": value for name, value in floors.of(4 * l * q * passes).items()}
    facts = {"l": l, "q": q, "k": k, "r": r, "rest": rest, "m": k + r + FRESH}
    lowest = floors.of(4 * l * q * (passes + 3)) | alone_floor
    after = partial(every_step_repaired, (ours, eager, composed))
    return Case(gates, variants, step_targets(l, q) + _alone_targets(l, q), facts, lowest, after=after)


def every_step_repaired(trainers: Sequence[Trainer]) -> str | None:
    """Why the times are void: a skipped repair costs little and proves nothing."""
    for trainer in trainers:
        stats = trainer.stats()
        if stats["skipped"] or not stats["applied"]:
            return f"not every step was repaired: {stats}"
    return None


def adamw(l: int, q: int, k: int, r: int, rest: str, device: torch.device) -> Case:
    """A step of AdamW with the plug-in beside one without, both captured."""
    require_native(device)
    require_memory(device, 4.0 * l * q * 18)
    weight = make_weight(l, q, k, r, device)
    M = weight.M
    X, y = batch(weight, l, q, device)
    rate = 1e-4 * float(torch.linalg.vector_norm(M)) / (l * q) ** 0.5
    gradient = torch.randn(l, q, generator=device_generator(device), device=device)

    def make(parameters: list[nn.Parameter]) -> torch.optim.Optimizer:
        return torch.optim.AdamW(parameters, lr=rate, fused=True, capturable=device.type == "cuda")

    base = Trainer(M, gradient, make)
    ours = Trainer(M, gradient, make, {"rank": k, "tail_rank": r, "rest": rest, "seed": 0})
    base.step(X, y)
    ours.step(X * 0.8, y)
    expected = base.weight.double()
    X64, ok = 0.8 * X.double(), torch.ones((), dtype=torch.bool, device=device)
    make_directions(l, q, (k, r, rest), device).step_(expected, Alone([(X64, y)], ok))
    without = distance(base.weight, expected)
    gates = [Gate("distance", distance(ours.weight, expected), _STEP, without)]
    del expected
    targets = [
        Bound(f"<= {ratio} AdamW{more}", partial(_within, ratio))
        for ratio, more in ((1.35, ""), (1.05, " (stretch)"))
    ]
    variants = [
        trainer.captured(name, X, y, gradient.neg_)
        for name, trainer in (("AdamW + LIP", ours), ("AdamW", base))
    ]
    facts = {"l": l, "q": q, "k": k, "r": r, "rest": rest, "m": k + r + FRESH}
    return Case(gates, variants, targets, facts, after=partial(every_step_repaired, [ours]))


def _within(ratio: float, times: Mapping[str, float]) -> bool:
    return times["AdamW + LIP"] <= ratio * times["AdamW"]


def make_directions(l: int, q: int, ranks: tuple[int, int, str], device: torch.device) -> Directions:
    k, r, rest = ranks
    return Directions(l, q, rank=k, settings=Settings(tail_rank=r, rest=rest), device=device)


def _step_gates(
    ours: Trainer,
    composed: Trainer,
    X: Tensor,
    y: Tensor,
    gradient: Tensor,
    ranks: tuple[int, int, str],
) -> list[Gate]:
    """One step on another batch, beside the same one in float64 by composed operations."""
    assert ours.lip is not None
    composed.follow(ours)
    l, q = ours.weight.shape
    exact = make_directions(l, q, ranks, gradient.device)
    state = ours.lip.state_dict()["subspace"]
    exact.load_state_dict(state | {"basis": tuple(basis.double() for basis in state["basis"])})
    expected = ours.weight.double().sub_(gradient)
    ok = torch.ones((), dtype=torch.bool, device=gradient.device)
    X64 = X.double()
    report = exact.step_(expected, Alone([(X64, y)], ok))
    assert isinstance(report, StepReport)  # no step in float64 is one call
    if not bool(report.ok):
        raise RuntimeError(f"the step in float64 was skipped with the status {int(report.status)}")
    without = distance(ours.weight - gradient, expected)
    ours.step(X, y)
    with composed_ops():
        composed.step(X, y)
    return [
        Gate("distance", distance(ours.weight, expected), _STEP, without),
        Gate("composed distance", distance(composed.weight, expected), _STEP, without),
    ]


def step_targets(l: int, q: int, name: str = "LIP") -> list[Bound]:
    """What is promised of a step that is replayed, by the name of its variant."""
    return {
        (100, 512): [at_most(name, 30)],
        (1000, 2048): [at_most(name, 50), at_most(name, 30, " (stretch)")],
        (1000, 4096): [at_most(name, 60)],
    }.get((l, q), [])


def _alone_targets(l: int, q: int) -> list[Bound]:
    return {
        (128256, 4096): [at_most("LIP alone", 1300, " alone")],
        (1000000, 512): [at_most("LIP alone", 1700, " alone")],
    }.get((l, q), [])


def cases(device: torch.device, dry: bool) -> Iterator[tuple[str, Maker]]:
    """The rows of the step."""
    floors = Floors(device, 1 << 16 if dry else 1 << 29)
    heads = DRY_HEADS if dry else [head for head in HEADS if head[0] != 32000]
    for l, q, k, r in heads:
        for rest in ("keep", "drop"):
            key = f"step {l}x{q} m={k + r + FRESH} {rest}"
            yield key, partial(step, l, q, k, r, rest, device, floors)
    for l, q, k, r in DRY_HEADS if dry else [head for head in HEADS if head[0] == 128256]:
        for rest in ("keep", "drop"):
            yield f"adamw {l}x{q} m={k + r + FRESH} {rest}", partial(adamw, l, q, k, r, rest, device)
