"""AdamW's update with the products of the power step: read once, as a pair of passes, and AdamW alone."""

from collections.abc import Iterator
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from benchmarks.gpu.weights import DRY_HEADS, HEADS, device_generator, exact_products, make_weight
from lip_fast import backends, ops
from lip_fast.bench.cases import Bound, Case, Floors, Maker, require_memory, require_native
from lip_fast.bench.gates import Gate, distance
from lip_fast.bench.timing import captured
from lip_fast.directions import Directions
from lip_fast.projected import FRESH
from lip_fast.rules import AdamW
from lip_fast.settings import Settings
from lip_fast.world import Alone

__all__ = ["cases"]

# Heads that no cache holds: elsewhere a second read costs nothing.
_LEAST_VALUES = 1 << 28
# Distance of the weight from that of torch.
_WEIGHT = 1e-6
# Of the products from float64, in those of bfloat16: TF32 keeps three bits more, an eighth.
_PRODUCTS = 1 / 3
# What the whole step may cost, in steps of AdamW.
_RATIO = 1.05
# Bytes of an entry: weight, gradient and two states are read, the states are written, and the weight.
_READ_AND_STATE, _WRITTEN = 24, 4


class _Update:
    """:class:`lip_fast.world.Update` of AdamW, by one read or by a pair of passes."""

    def __init__(self, M: Tensor, grad: Tensor, state: list[Tensor], rule: AdamW) -> None:
        self.M, self.rule, self.updated = M, rule, ops.Updated(M, grad, state, rule)

    def one_read(self, V: Tensor, write: bool = True) -> tuple[Tensor, Tensor]:
        self.rule.update_count.add_(1)
        return ops.update_one_read_(self.updated, V, write=write)

    def pair(self, V: Tensor) -> tuple[Tensor, Tensor]:
        self.rule.update_count.add_(1)
        Y = ops.update_sketch_(self.updated, V, write=True)
        return Y, ops.project(self.M, Y)

    def rebuild_(self, A: Tensor, s: Tensor, B: Tensor, **how: Any) -> Tensor:
        return ops.rebuild_(self.M, A, s, B, **how)


class _OneRead(_Update):
    def products(self, V: Tensor) -> tuple[Tensor, Tensor]:
        return self.one_read(V)


class _Pair(_Update):
    def products(self, V: Tensor) -> tuple[Tensor, Tensor]:
        return self.pair(V)


def update(l: int, q: int, k: int, r: int, device: torch.device, floors: Floors) -> Case:
    """The update with both products beside AdamW alone, and the step of LIP that goes on from each."""
    require_native(device)
    # Weight, gradient and state of ours and of torch's, and what the checks take.
    require_memory(device, 4.0 * l * q * 14)
    weight = make_weight(l, q, k, r, device)
    M, m = weight.M, k + r + FRESH
    g = device_generator(device)
    grad = torch.randn(l, q, generator=g, device=device)
    V = torch.randn(m, q, generator=g, device=device).mT
    rate = 1e-4 * float(torch.linalg.vector_norm(M)) / (l * q) ** 0.5
    parameter = nn.Parameter(M.clone())
    parameter.grad = grad
    adamw = torch.optim.AdamW([parameter], lr=rate, fused=True, capturable=device.type == "cuda")
    adamw.step()

    state = [torch.zeros_like(M), torch.zeros_like(M)]
    rule = AdamW(torch.tensor(rate, device=device), torch.zeros((), device=device))
    ours, pair = (kind(M, grad, state, rule) for kind in (_OneRead, _Pair))
    expected = parameter.detach().double()
    without = distance(M, expected)
    Y, Z = ours.one_read(V)
    exact_Y, exact_Z = exact_products(M, V, Y)
    narrow_Y, narrow_Z = exact_products(M.bfloat16().float(), V.bfloat16().float(), Y)
    wrong_Y, wrong_Z = distance(narrow_Y, exact_Y), distance(narrow_Z, exact_Z)
    gates = [
        Gate("weight", distance(M, expected), _WEIGHT, without),
        Gate("Y", distance(Y, exact_Y), _PRODUCTS * wrong_Y, wrong_Y),
        Gate("Z", distance(Z, exact_Z), _PRODUCTS * wrong_Z, wrong_Z),
    ]
    del expected, exact_Y, exact_Z, narrow_Y, narrow_Z

    ok, zero = (
        torch.ones((), dtype=torch.bool, device=device),
        torch.zeros(r, dtype=torch.float64, device=device),
    )
    # No labels: the products, their decomposition and the write are what is compared.
    sums = ops.Sums(zero, zero, zero.sum(), torch.zeros((), dtype=torch.int64, device=device))

    class NoLabels(Alone):
        def label_sums(self, A: Tensor, B: Tensor, bias: Tensor | None) -> ops.Sums:
            return sums

    directions = Directions(l, q, rank=k, settings=Settings(tail_rank=r), device=device)
    directions.basis = weight.basis.clone()
    by = {"one read": ours, "pair": pair}
    variants = [
        captured("one read", lambda: ours.one_read(V), device, between=grad.neg_),
        captured("one read unwritten", lambda: ours.one_read(V, False), device, between=grad.neg_),
        captured("pair", lambda: pair.pair(V), device, between=grad.neg_),
        captured("AdamW", adamw.step, device, between=grad.neg_),
    ]
    for name, each in by.items():

        def whole(each: Any = each) -> None:
            directions.step_(M, NoLabels((), ok), update=each)

        variants.append(captured(f"AdamW + LIP, {name}", whole, device, between=grad.neg_))
    small = 4 * (l * m + 2 * q * m)
    lowest = floors.of((_READ_AND_STATE + _WRITTEN) * l * q + small)
    lowest |= {f"unwritten {name}": us for name, us in floors.of(_READ_AND_STATE * l * q + small).items()}
    targets = [
        Bound(
            f"products <= {_RATIO} AdamW (stretch)",
            lambda times: times["one read"] <= _RATIO * times["AdamW"],
        ),
        Bound(
            f"AdamW + LIP <= {_RATIO} AdamW (stretch)",
            lambda times: times["AdamW + LIP, one read"] <= _RATIO * times["AdamW"],
        ),
    ]
    served = backends.backend_of("update_one_read_", device.type)
    facts = {"l": l, "q": q, "k": k, "r": r, "m": m, "served by": served}
    return Case(gates, variants, targets, facts, lowest)


def cases(device: torch.device, dry: bool) -> Iterator[tuple[str, Maker]]:
    """The rows of the update."""
    floors = Floors(device, 1 << 16 if dry else 1 << 29)
    for l, q, k, r in DRY_HEADS if dry else HEADS:
        if dry or l * q >= _LEAST_VALUES:
            yield f"update {l}x{q} m={k + r + FRESH}", partial(update, l, q, k, r, device, floors)
