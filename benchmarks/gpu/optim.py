"""Steps of LIPAdamW and LIPSGD, captured in a graph, beside the optimizers of torch without LIP."""

import copy
from collections.abc import Callable, Iterator, Mapping
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from benchmarks.gpu.step import (
    Trainer,
    batch,
    composed_ops,
    every_step_repaired,
    make_directions,
    step_targets,
    unequal,
)
from benchmarks.gpu.weights import DRY_HEADS, HEADS, device_generator, make_weight
from lip_fast import backends, ops, reference
from lip_fast.backends.native.one_read import is_cached
from lip_fast.bench.cases import Bound, Case, Floors, Maker, require_memory, require_native
from lip_fast.bench.gates import Gate, distance
from lip_fast.bench.timing import Variant, synchronize
from lip_fast.directions import StepReport
from lip_fast.optim import LIPSGD, LIPAdamW
from lip_fast.projected import FRESH
from lip_fast.world import Alone

__all__ = ["InsideTrainer", "cases"]

Make = Callable[[list[nn.Parameter]], torch.optim.Optimizer]

# Distance of the weight after a step from the same step in float64: TF32 gives 1e-4, the rounding of bfloat16
# to one of two neighbours 2e-3, no repair 4e-2 to 9e-2.
_STEP = {torch.float32: 1e-3, torch.bfloat16: 5e-3}
# Features of half the size ask for twice the values: further off, so that no repair is seen in bfloat16 too.
_QUIETER = 0.5
_MOMENTUM = 0.9
# Directions kept on the exact path, of the small side: a classifier of l classes needs about all of them.
_EXACT_SHARE = 0.9
_EXACT_HEADS = ((100, 512), (1000, 2048))
# A full decomposition of more values than this takes seconds to minutes.
_FULL_SVD_VALUES = 1 << 25
# How often all of a matrix of that size is read or written: by the update, weight, gradient and state, and
# weight and state again; by LIP after it the weight, which where the rest is dropped is only written.
_UPDATE_PASSES = {"LIPAdamW": 7, "LIPSGD": 5}
_REBUILD_PASSES = {"keep": 2, "drop": 1}


class InsideTrainer(Trainer):
    """A head in the LIP group of an optimizer of ours."""

    @property
    def _inside(self) -> LIPAdamW | LIPSGD:
        assert isinstance(self.optimizer, LIPAdamW | LIPSGD)
        return self.optimizer

    def observe(self, X: Tensor, y: Tensor) -> None:
        """Show LIP the batch."""
        self._inside.observe(self.head, X, y)

    def stats(self) -> Mapping[str, int | None]:
        """The counts of LIP."""
        (stats,) = self._inside.lip.stats().values()
        return stats

    def state(self) -> dict[str, Any]:
        """The state of LIP."""
        (state,) = self._inside.lip.state_dict().values()
        return dict(state)

    def follow(self, other: Trainer) -> None:
        """Go on from where another one is; not of a trainer that was captured, whose state is replaced."""
        assert isinstance(other, InsideTrainer)
        with torch.no_grad():
            self.head.weight.copy_(other.weight)
        self.optimizer.load_state_dict(copy.deepcopy(other.optimizer.state_dict()))
        self._inside.lip.load_state_dict(other._inside.lip.state_dict())


def _makers(kind: str, M: Tensor, settings: Mapping[str, Any]) -> tuple[Make, Make]:
    """What makes the optimizer with LIP, and torch's without; a step moves the weight by about 1e-4 of it."""
    scale = 1e-4 * float(torch.linalg.vector_norm(M, dtype=torch.float32)) / M.numel() ** 0.5
    if kind == "LIPAdamW":
        options = {"lr": scale, "fused": True, "capturable": M.is_cuda}
        return partial(LIPAdamW, **options, **settings), partial(torch.optim.AdamW, **options)
    options = {"lr": scale, "momentum": _MOMENTUM, "fused": True}
    return partial(LIPSGD, **options, **settings), partial(torch.optim.SGD, **options)


def _in_float64(
    ours: InsideTrainer, base: Make, X: Tensor, y: Tensor, ranks: tuple[int, int, str]
) -> tuple[Tensor, float]:
    """The next step of ``ours`` with the update in float32 and LIP in float64, and how far off none is."""
    assert ours.head.weight.grad is not None
    plain = Trainer(ours.weight.float(), ours.head.weight.grad.float(), base)
    plain.optimizer.load_state_dict(copy.deepcopy(ours.optimizer.state_dict()))
    plain.optimizer.step()
    expected = plain.weight.double()
    l, q = expected.shape
    exact = make_directions(l, q, ranks, expected.device)
    state = ours.state()["subspace"]
    exact.load_state_dict(state | {"basis": tuple(basis.double() for basis in state["basis"])})
    ok = torch.ones((), dtype=torch.bool, device=expected.device)
    X64 = X.double()
    report = exact.step_(expected, Alone([(X64, y)], ok))
    assert isinstance(report, StepReport)  # no step in float64 is one call
    if not bool(report.ok):
        raise RuntimeError(f"the step in float64 was skipped with the status {int(report.status)}")
    return expected, distance(plain.weight, expected)


def _gates(
    ours: InsideTrainer, other: InsideTrainer, base: Make, X: Tensor, y: Tensor, ranks: tuple[int, int, str]
) -> list[Gate]:
    """One step on another batch, beside the same one in float64, and by composed operations."""
    other.follow(ours)
    X = X * _QUIETER
    expected, without = _in_float64(ours, base, X, y, ranks)
    ours.step(X, y)
    with composed_ops():
        other.step(X, y)
    bound = _STEP[ours.weight.dtype]
    return [
        Gate("distance", distance(ours.weight, expected), bound, without),
        Gate("composed distance", distance(other.weight, expected), bound, without),
    ]


def optimizer_step(
    kind: str,
    head: tuple[int, int, int, int],
    rest: str,
    dtype: torch.dtype,
    device: torch.device,
    floors: Floors,
    *,
    decompositions: bool = False,
) -> Case:
    """A step of an optimizer with LIP, captured, beside torch's without, and beside composed operations.

    Args:
        kind: "LIPAdamW" or "LIPSGD".
        head: rows, columns, kept and refitted directions.
        rest: as of LIP.
        dtype: of weight, gradient and features.
        device: where it runs.
        floors: of the device.
        decompositions: also time those of torch, of the weight alone.
    """
    require_native(device)
    l, q, k, r = head
    # Weight, gradient, and weights and state of four trainers; for the checks, copies in float64.
    require_memory(device, l * q * (14.0 * dtype.itemsize + 32))
    made = make_weight(l, q, k, r, device)
    X, y = batch(made, l, q, device)
    M, X = made.M.to(dtype), X.to(dtype)
    # Forth and back from sample to sample: the weight stays near where it began.
    gradient = torch.randn(l, q, generator=device_generator(device), device=device).to(dtype)
    inside, plain = _makers(kind, M, {"lip_rank": k, "lip_tail_rank": r, "lip_rest": rest})
    ours, eager = (InsideTrainer(M, gradient, inside) for _ in range(2))
    replay = ours.captured(kind, X, y, gradient.neg_)
    replay.run()
    synchronize(device)
    eager.follow(ours)
    before = ours.weight.clone()
    gradient.neg_()
    replay.run()
    eager.step(X, y)
    gates = [Gate("replay", unequal(ours.weight, eager.weight), 0, unequal(ours.weight, before))]
    del before
    composed = InsideTrainer(M, gradient, inside)
    gates += _gates(eager, composed, plain, X, y, (k, r, rest))
    base = Trainer(M, gradient, plain)

    def composed_step() -> None:
        with composed_ops():
            composed.step(X, y)

    name = kind.removeprefix("LIP")
    variants = [
        replay,
        base.captured(name, X, y, gradient.neg_),
        Variant(f"{kind} eager", lambda: eager.step(X, y), between=gradient.neg_),
        Variant("composed eager", composed_step, between=gradient.neg_),
    ]
    skipped = {}
    if decompositions:
        W = made.M
        variants.append(Variant("svd_lowrank", lambda: torch.svd_lowrank(W, q=k + r + FRESH, niter=2)))
        if l * q <= _FULL_SVD_VALUES:
            variants.append(Variant("linalg.svd", lambda: torch.linalg.svd(W, full_matrices=False)))
        else:
            skipped["linalg.svd"] = f"more than {_FULL_SVD_VALUES} values: it would take the time of the rest"
    targets = step_targets(l, q, kind)
    if kind == "LIPAdamW" and l * q > _FULL_SVD_VALUES:
        targets += [
            Bound(f"<= {ratio} {name}{more}", partial(_within, kind, name, ratio))
            for ratio, more in ((1.35, ""), (1.05, " (stretch)"))
        ]
    facts: dict[str, Any] = {"l": l, "q": q, "k": k, "r": r, "rest": rest, "m": k + r + FRESH}
    facts["update"] = _served(M, rest)
    facts["dtype"] = str(dtype).removeprefix("torch.")
    passes = _UPDATE_PASSES[kind] + _REBUILD_PASSES[rest]
    lowest = floors.of(dtype.itemsize * l * q * passes)
    after = partial(every_step_repaired, (ours, eager, composed))
    return Case(gates, variants, targets, facts, lowest, skipped, after)


def _served(M: Tensor, rest: str) -> str:
    """What takes the update of a weight that LIP acts on."""
    if not ops.fuses_updates(M.device):
        return "torch"
    # What the weight is written from is not rounded to TF32, as the kernel that reads it once does.
    once = rest == "keep" and not is_cached(M)
    served = backends.backend_of("update_one_read_", M.device.type)
    return "one read" if once and served == "native" else "two passes"


def exact_step(l: int, q: int, device: torch.device) -> Case:
    """A step of LIPAdamW on the exact path, which waits, beside one with the decomposition of the paper."""
    require_native(device)
    require_memory(device, l * q * 120.0)
    d = min(l, q)
    k = round(_EXACT_SHARE * d)
    made = make_weight(l, q, k, d - k, device)
    X, y = batch(made, l, q, device)
    X = X * _QUIETER
    gradient = torch.randn(l, q, generator=device_generator(device), device=device)
    inside, plain = _makers("LIPAdamW", made.M, {"lip_rank": k, "lip_tail_rank": "all"})
    ours = InsideTrainer(made.M, gradient, inside)
    base, peer = (Trainer(made.M, gradient, plain) for _ in range(2))
    Y = reference.one_hot(y, l, torch.float32)

    @torch.no_grad()
    def reference_step() -> None:
        peer.optimizer.step()
        peer.weight.copy_(reference.lip_step(peer.weight, X, Y, k))

    ours.step(X, y)
    base.step(X, y)
    reference_step()
    M = base.weight.double()
    expected = reference.lip_step(M, X.double(), Y.double(), k)
    without, bound = distance(M, expected), _STEP[torch.float32]
    gates = [
        Gate("distance", distance(ours.weight, expected), bound, without),
        Gate("reference distance", distance(peer.weight, expected), bound, without),
    ]
    variants = [
        Variant("LIPAdamW", lambda: ours.step(X, y), between=gradient.neg_),
        base.captured("AdamW", X, y, gradient.neg_),
        Variant("reference", reference_step, between=gradient.neg_),
    ]
    return Case(gates, variants, facts={"l": l, "q": q, "k": k}, after=partial(every_step_repaired, [ours]))


def _within(ours: str, base: str, ratio: float, times: Mapping[str, float]) -> bool:
    return times[ours] <= ratio * times[base]


def cases(device: torch.device, dry: bool) -> Iterator[tuple[str, Maker]]:
    """The rows of the optimizers."""
    floors = Floors(device, 1 << 16 if dry else 1 << 29)
    heads = DRY_HEADS if dry else [head for head in HEADS if head[0] != 32000]
    large = heads if dry else [head for head in heads if head[0] * head[1] > _FULL_SVD_VALUES]
    forms = [("LIPAdamW", head, "keep", torch.float32) for head in heads]
    forms += [("LIPAdamW", head, "drop", torch.float32) for head in large]
    forms += [("LIPAdamW", head, rest, torch.bfloat16) for head in large for rest in ("keep", "drop")]
    forms += [("LIPSGD", head, "keep", torch.float32) for head in heads if dry or head[0] in (1000, 128256)]
    for kind, head, rest, dtype in forms:
        l, q, k, r = head
        key = f"{kind} {l}x{q} m={k + r + FRESH} {rest} {'bf16' if dtype == torch.bfloat16 else 'fp32'}"
        first = kind == "LIPAdamW" and rest == "keep" and dtype == torch.float32
        yield key, partial(optimizer_step, kind, head, rest, dtype, device, floors, decompositions=first)
    for l, q in ((20, 30),) if dry else _EXACT_HEADS:
        yield f"LIPAdamW exact {l}x{q}", partial(exact_step, l, q, device)
