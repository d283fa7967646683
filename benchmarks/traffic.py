"""What a step sends: every collective with its payload, and worlds of any size simulated in one process.

``python -m benchmarks.traffic`` reads cases as JSON from standard input and prints what their steps sent; the
groups of processes are global state, so that who simulates them starts this module as a process of its own
(:func:`simulated`).
"""

import dataclasses
import itertools
import json
import subprocess
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple
from unittest import mock

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

import lip_fast
from lip_fast import host

__all__ = [
    "Case",
    "Collective",
    "Report",
    "Traffic",
    "ring_bytes",
    "simulate",
    "simulated",
]

ROOT = Path(__file__).resolve().parents[1]
# Where torch keeps its collectives. Kernels that read each other's memory (symm_mem) are none of them, and
# LIP uses none.
_NAMESPACES = (
    "c10d",
    "_c10d_functional",
    "_c10d_functional_autograd",
    "c10d_functional",
    "_dtensor",
)
# What is there and sends no payload.
_SILENT = frozenset(
    {
        "wait_tensor",
        "_wrap_tensor_autograd",
        "check_for_nan",
        "mesh_get_process_group",
    }
)
_DTYPES = {"float32": torch.float32, "float64": torch.float64}


class Collective(NamedTuple):
    """One collective as one process calls it.

    Attributes:
        name: of the operator, such as "allreduce_", "_allgather_base_" or "all_gather_into_tensor".
        dtype: of the payload, without "torch."; "" without one.
        payload: bytes of the tensors that this process puts in. Of an all-reduce that is the whole tensor, of
            an all-gather this process's part and not the result, of a broadcast the tensor on every process,
            of a receive what comes in. What the wire carries is another number (:func:`ring_bytes`).
    """

    name: str
    dtype: str
    payload: int


def ring_bytes(collective: Collective, world: int) -> int:
    """Bytes that each process sends where the collective runs in a ring of ``world`` processes.

    An all-reduce is a reduce-scatter and an all-gather: 2 (W - 1) / W of its payload. An all-gather passes
    each part on W - 1 times. Of anything else: (W - 1) / W of its payload.
    """
    if "reduce" in collective.name and "scatter" not in collective.name:
        return 2 * (world - 1) * collective.payload // world
    if "gather" in collective.name:
        return (world - 1) * collective.payload
    return (world - 1) * collective.payload // world


class Traffic(TorchDispatchMode):
    """Records every collective that runs inside of it, in processes, simulated ones and LocalTensorMode.

    It looks at whatever torch dispatches in the namespaces of its collectives, functional or not: an operator
    that it does not know is recorded too. What DTensors make of an operation is seen as what they call.

    Attributes:
        collectives: in the order of the calls.
    """

    supports_higher_order_operators = True

    def __init__(self) -> None:
        super().__init__()
        self.collectives: list[Collective] = []

    @property
    def payload(self) -> int:
        """Bytes of all collectives together, as :class:`Collective` counts them."""
        return sum(collective.payload for collective in self.collectives)

    def clear(self) -> None:
        """Forget what was recorded."""
        self.collectives.clear()

    def __torch_dispatch__(self, func: Any, types: Sequence[type], args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if isinstance(func, torch._ops.HigherOrderOperator):
            return func(*args, **kwargs)
        from torch.distributed.tensor import DTensor

        if any(issubclass(kind, DTensor) for kind in types):
            # They come first, and call the collectives.
            return NotImplemented
        name = func.overloadpacket.__name__
        if func.namespace in _NAMESPACES and name not in _SILENT:
            tensors = _inputs(func, args, kwargs)
            dtypes = sorted({str(t.dtype).removeprefix("torch.") for t in tensors})
            payload = 0 if "barrier" in name else sum(map(_nbytes, tensors))
            self.collectives.append(Collective(name, ",".join(dtypes) if payload else "", payload))
        return func(*args, **kwargs)


def _inputs(func: Any, args: Sequence[Any], kwargs: dict[str, Any]) -> list[Tensor]:
    """The tensors that go in: those of every argument that is not called an output."""
    named = zip((argument.name for argument in func._schema.arguments), args, strict=False)
    values = [value for name, value in itertools.chain(named, kwargs.items()) if not name.startswith("out")]
    return [leaf for leaf in tree_leaves(values) if isinstance(leaf, Tensor)]


def _nbytes(tensor: Tensor) -> int:
    """Of the largest part, where one tensor stands for those of several simulated processes."""
    parts = getattr(tensor, "_local_tensors", None)
    tensors = [tensor] if parts is None else list(parts.values())
    return max(int(t.numel()) * t.element_size() for t in tensors)


# Simulated worlds -----------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Case:
    """Steps of LIP on one process of a world.

    Attributes:
        layout: "class" (``Shard(0)``), "feature" (``Shard(1)``) or "whole" (a plain tensor).
        world: number of processes.
        l: classes.
        q: features.
        rank: directions kept.
        tail_rank: directions refitted; None or "all" as of :class:`lip_fast.LIP`.
        data: whether the processes see different batches (``data_group``).
        decay: as of :class:`lip_fast.LIP`.
        dtype: "float32" or "float64", of the weight.
        rows: of each process's batch.
        bias: whether the head has one, on every process whole.
        steps: to take.
        device: with the arithmetic of other devices than the host.
        process: which of the processes is this one.
        profile: whether to take one more step whose memory is watched.
    """

    layout: str
    world: int
    l: int
    q: int
    rank: int
    tail_rank: int | str | None = None
    data: bool = False
    decay: float | None = None
    dtype: str = "float32"
    rows: int = 32
    bias: bool = False
    steps: int = 2
    device: bool = False
    process: int = 0
    profile: bool = False


@dataclass(frozen=True)
class Report:
    """What the steps of a :class:`Case` did.

    Attributes:
        steps: the collectives of each step, those of the base optimizer among them.
        counted: for each step how many collectives torch's own ``CommDebugMode`` has seen.
        applied: steps that LIP acted on.
        shard: bytes of this process's part of the weight.
        peak: bytes by which the memory of a last, warm step exceeded what was held before it, at most; 0
            where none was watched.
    """

    steps: tuple[tuple[Collective, ...], ...]
    counted: tuple[int, ...]
    applied: int
    shard: int
    peak: int


class _Mirrors(TorchDispatchMode):
    """Gives sums over simulated processes the value they had if all of them were mirrors of this one.

    A fake process group leaves a sum as it is, and what is decided by it then goes wrong. Mirrors have equal
    parts of the weight and equal rows; what a process writes at its own place among 2 x ``world`` numbers
    (how many rows it has) each of them writes at another. Gathers of a fake group are copies of this
    process's part already.
    """

    supports_higher_order_operators = True

    def __init__(self, world: int, *, places: bool) -> None:
        super().__init__()
        self._world, self._places = world, places

    def __torch_dispatch__(self, func: Any, types: Sequence[type], args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if isinstance(func, torch._ops.HigherOrderOperator):
            return func(*args, **kwargs)
        from torch.distributed.tensor import DTensor

        if any(issubclass(kind, DTensor) for kind in types):
            return NotImplemented
        result = func(*args, **kwargs)
        name = func.overloadpacket.__name__
        if func.namespace in _NAMESPACES and "reduce" in name:
            if name != "allreduce_":
                raise NotImplementedError(f"{name} of mirrors")
            for flat in args[0]:
                self._sum_(flat)
        return result

    def _sum_(self, flat: Tensor) -> None:
        places = flat[-2 * self._world :] if self._places else flat[:0]
        own = places.view(2, -1).sum(1, keepdim=True) if self._places else None
        flat *= self._world
        if own is not None:
            places.view(2, -1).copy_(own.expand(2, self._world))


def simulate(case: Case) -> Report:
    """Take the steps of one process of a world whose others are its mirrors; needs no process group yet.

    Sizes are those of a real world. Values are those of one whose processes all have this one's part of the
    weight, so that sums, checks and decompositions are sound and steps act.
    """
    from torch.testing._internal.distributed.fake_pg import FakeStore

    dist.init_process_group("fake", store=FakeStore(), rank=case.process, world_size=case.world)
    try:
        with mock.patch.object(host, "READABLE", frozenset() if case.device else host.READABLE):
            return _simulate(case)
    finally:
        dist.destroy_process_group()


def _simulate(case: Case) -> Report:
    from torch.distributed.tensor.debug import CommDebugMode

    head, own = _head(case)
    data_group = dist.group.WORLD if case.data else None
    lip = lip_fast.LIP(
        head,
        case.rank,
        tail_rank=case.tail_rank,
        decay=case.decay,
        data_group=data_group,
    )
    # The base optimizer sends nothing: what is recorded is LIP's.
    optimizer = torch.optim.SGD(head.parameters(), lr=1e-3)
    lip.attach(optimizer)
    generator = torch.Generator().manual_seed(1)
    steps, counted, peak = [], [], 0
    exchanges = case.data and (case.layout != "whole" or case.decay is not None)
    for i in range(case.steps + case.profile):
        X = torch.randn(case.rows, case.q, generator=generator, dtype=_DTYPES[case.dtype])
        Y = torch.randint(own.start, own.stop, (case.rows,), generator=generator)
        lip.observe(X, Y)
        # Enough of a gradient that LIP acts.
        for parameter in head.parameters():
            parameter.grad = parameter.detach().clone()
        with _Mirrors(case.world, places=exchanges), Traffic() as traffic:
            if i == case.steps:
                peak = _peak(optimizer)
                break
            with CommDebugMode() as theirs:
                optimizer.step()
        steps.append(tuple(traffic.collectives))
        counted.append(theirs.get_total_counts() or 0)
    weight: Any = head.weight
    local = weight.detach() if case.layout == "whole" else weight.to_local()
    applied = lip.stats()["applied"] or 0
    return Report(tuple(steps), tuple(counted), applied, local.numel() * local.element_size(), peak)


def _head(case: Case) -> tuple[nn.Linear, range]:
    """The head with this process's part of the weight, and the classes that its labels are of."""
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.tensor import DTensor, Shard
    from torch.distributed.tensor._utils import compute_local_shape_and_global_offset

    generator = torch.Generator().manual_seed(0)
    dtype = _DTYPES[case.dtype]
    head = nn.Linear(case.q, case.l, bias=case.bias, device="meta")
    if case.bias:
        bias = 0.1 * torch.randn(case.l, generator=generator, dtype=dtype)
        head.bias = nn.Parameter(bias)
    if case.layout == "whole":
        whole = torch.randn(case.l, case.q, generator=generator, dtype=dtype)
        head.weight = nn.Parameter(whole)
        return head, range(case.l)
    mesh = init_device_mesh("cpu", (case.world,))
    placements = [Shard(0 if case.layout == "class" else 1)]
    shape, offset = compute_local_shape_and_global_offset((case.l, case.q), mesh, placements)
    local = torch.randn(*shape, generator=generator, dtype=dtype)
    weight = DTensor.from_local(
        local,
        mesh,
        placements,
        run_check=False,
        shape=torch.Size((case.l, case.q)),
        stride=(case.q, 1),
    )
    head.weight = nn.Parameter(weight)
    return head, range(offset[0], offset[0] + shape[0])


def _peak(optimizer: torch.optim.Optimizer) -> int:
    """Bytes that a step holds at once, at most, beside what was held before it."""
    from torch.profiler import ProfilerActivity, profile

    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiler:
        optimizer.step()
    results: Any = profiler.profiler
    events = [e for e in results.kineto_results.events() if e.name() == "[memory]"]
    events.sort(key=lambda event: event.start_ns())
    return max(itertools.accumulate((e.nbytes() for e in events), initial=0))


def simulated(cases: Sequence[Case], *, timeout: float = 300) -> list[Report]:
    """:func:`simulate` of each case, in one process apart.

    Raises:
        RuntimeError: a simulation failed; what it printed.
    """
    text = json.dumps([dataclasses.asdict(case) for case in cases])
    command = [sys.executable, "-m", "benchmarks.traffic"]
    done = subprocess.run(command, cwd=ROOT, input=text, capture_output=True, text=True, timeout=timeout)
    if done.returncode:
        raise RuntimeError(f"simulation failed: {done.stderr}")
    return [_report(found) for found in json.loads(done.stdout.splitlines()[-1])]


def _report(found: dict[str, Any]) -> Report:
    steps = tuple(tuple(Collective(*collective) for collective in step) for step in found["steps"])
    return Report(steps, tuple(found["counted"]), found["applied"], found["shard"], found["peak"])


def _cases(text: str) -> Iterator[Case]:
    for fields in json.loads(text):
        yield Case(**fields)


if __name__ == "__main__":
    print(json.dumps([dataclasses.asdict(simulate(case)) for case in _cases(sys.stdin.read())]))
