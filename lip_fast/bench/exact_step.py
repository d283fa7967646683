"""One step on the exact path against the reference's, which decomposes the weight in full."""

import torch

from lip_fast import reference
from lip_fast.bench import steps
from lip_fast.bench.cases import Case, require_memory
from lip_fast.bench.gates import Gate, distance
from lip_fast.bench.problems import step
from lip_fast.bench.rows import Row

__all__ = ["exact_step"]

# Our step was at most 3e-8 away from the reference; a step without LIP is 1e-3 to 1e-2 away.
DISTANCE = 1e-5
# The reference's float32 decomposition of 1000 neighbouring singular values was up to 2e-5 away.
REFERENCE_DISTANCE = 1e-4
# The solvers of a GPU iterate: they are allowed more. No LIP at all is at least 2e-3 away.
DEVICE_DISTANCE = 1e-3


def exact_step(row: Row, device: torch.device) -> Case:
    """The plug-in on AdamW or SGD, the optimizer with LIP inside, and ``reference.lip_step``."""
    require_memory(device, steps.STEP_BYTES * row.l * row.q)
    problem = step(row, device=device)
    ours, inside = steps.LIPStep(problem, row), steps.OptimizerStep(problem, row)
    state = ours.state()
    base, peer = steps.BaseStep(problem, row, state), steps.ReferenceStep(problem, row, state)
    for variant in (base, peer, ours, inside):
        variant.prepare()
        variant()
    M, X = base.weight.double(), base.X.double()
    Y = reference.one_hot(base.y, row.l, torch.float64)
    expected = reference.lip_step(M, X, Y, row.k, rest=row.rest)
    without = distance(M, expected)
    on_device = device.type == "cuda"
    bound, of_reference = (DEVICE_DISTANCE,) * 2 if on_device else (DISTANCE, REFERENCE_DISTANCE)
    gates = [
        Gate("distance", distance(ours.weight, expected), bound, without),
        Gate("inside distance", distance(inside.weight, expected), bound, without),
        Gate("reference distance", distance(peer.weight, expected), of_reference, without),
    ]
    variants = [
        ours.variant("LIP"),
        base.variant("base step"),
        inside.variant("inside the optimizer"),
        peer.variant("reference"),
    ]
    floors = steps.step_floors(row, device)
    return Case(gates, variants, floors=floors, after=lambda: ours.skipped() or inside.skipped())
