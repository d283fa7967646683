"""What sharded heads cost at scale, on paper: ``python -m benchmarks.scale [--write docs/scaling.md]``.

Bytes on the network are formulas that the tests compare with what simulated worlds of up to 512 processes
send (:mod:`benchmarks.traffic`); memory is counted as the step allocates it. Times are floors: what the
hardware cannot beat by its data sheet, with nothing measured in them.

The tables are printed, or written between the markers of a Markdown file.
"""

import math
import sys
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch

from benchmarks.command import Parser, answer
from benchmarks.markdown import table
from benchmarks.traffic import Case, Collective
from lip_fast.cli.atomic import write_whole
from lip_fast.directions import Directions
from lip_fast.harness.files.slots import Slot
from lip_fast.settings import Settings

__all__ = [
    "SLOT",
    "Floors",
    "Memory",
    "collectives",
    "floors",
    "main",
    "memory",
    "network_floor",
    "path_of",
    "render",
    "whole_weight",
]

SLOT = Slot("scale")

# Of the step ----------------------------------------------------------------------------------------------

# Power iterations of the first, cold truncated step: as the step has them.
_COLD_ITERATIONS = 4
# Numbers that each sum carries beside its own.
_TOLD = 15
_SUM_BYTES = 8  # float64
_INDEX_BYTES = 8
_ITEM_BYTES = {"float32": 4, "float64": 8}
# Factorisations of CholeskyQR: each but the first sums one more Gram matrix.
_PASSES = {"float32": 1, "float64": 3}

# Of the hardware ------------------------------------------------------------------------------------------

# An H200: memory as sold, of which a framework leaves less; bytes per second that streaming kernels reach, of
# the 4.8e12 of the data sheet; dense rates of its tensor cores (data sheet, without sparsity).
MEMORY = 141e9
MEMORY_RATE = 4.3e12
TF32_RATE = 495e12
FP64_RATE = 67e12
# Float32 products are taken in three passes of TF32, which keeps their digits.
TF32_PASSES = 3
# NVLink inside of a node, in one direction; one network card a GPU between nodes.
NODE = 8
NODE_RATE = 450e9
NETWORK_RATE = 50e9
# Of one collective, whatever it carries: assumed.
NODE_LATENCY = 15e-6
NETWORK_LATENCY = 40e-6


# Bytes on the network -------------------------------------------------------------------------------------


def collectives(case: Case, *, cold: bool = False) -> list[Collective]:
    """What a process puts into the collectives of one step, in their order.

    Args:
        case: the weight, the processes and the settings; labels are class indices.
        cold: whether it is the first step, which has no basis yet.
    """
    l, q, world, item = case.l, case.q, case.world, _ITEM_BYTES[case.dtype]
    path, r, m = path_of(case)
    sharded = case.layout != "whole"
    if not (sharded or case.data):
        return []
    # Each process says at its own place how many rows it has, where rows are to be exchanged.
    exchanges = case.data and (sharded or case.decay is not None)
    told = _TOLD + 2 * world * exchanges

    def total(numbers: int) -> Collective:
        return Collective("allreduce_", "float64", _SUM_BYTES * (numbers + told))

    def rows(columns: int) -> Collective:
        size = case.rows * (columns * item + _INDEX_BYTES)
        return Collective("_allgather_base_", "uint8", size)

    def parts(length: int, columns: int) -> Collective:
        # Of the longest part: the others are filled up.
        size = math.ceil(length / world) * columns * item
        return Collective("all_gather_into_tensor", case.dtype, size)

    again = _PASSES[case.dtype] - 1
    step: list[Collective] = []
    known = False
    if case.decay is not None and case.data:
        step += [total(0), rows(q)]
        known = True
    if sharded and path == "by products" and not cold:
        if case.layout == "class":
            step += [total(m * m), total(q * m + m * m + 1)]
        else:
            step += [total(l * m + 1), parts(q, m)]
        if not case.device:
            # Hosts look at the split, and decide together what to do without one.
            step.append(total(1))
        known = True
    elif sharded and path == "truncated":
        if case.layout == "class":
            sketch = [total(q * m + m * m), *[total(m * m)] * again]
        else:
            sketch = [total(l * m), parts(q, m)]
        step += sketch * (2 + _COLD_ITERATIONS if cold else 1)
        known = True
    elif sharded:
        long, short = (l, q) if case.layout == "class" else (q, l)
        if long <= short:
            step.append(parts(long, short))
        else:
            step += [total(short**2)] * (1 + again)
            known = True
            if case.layout == "feature":
                step.append(parts(long, short if path == "by products" else r))
    if case.layout == "class" and case.data and case.decay is None:
        # Class rows of other processes' labels live elsewhere: projections go to them.
        step += [*([] if known else [total(0)]), rows(r + 1)]
    step.append(total(4 * r + 2))
    return step


def path_of(case: Case) -> tuple[str, int, int]:
    """How a step decomposes the weight, its refitted directions, and the columns of its products."""
    d, asked = min(case.l, case.q), case.tail_rank
    settings = Settings(tail_rank=asked, rest="drop" if asked is None else "keep")
    whole = case.layout == "whole"
    of = Directions(
        case.l, case.q, rank=case.rank, settings=settings, device=torch.device("cpu"), whole=whole
    )
    return of.path(getattr(torch, case.dtype)), of.tail_rank, min(of.columns, d)


def whole_weight(case: Case) -> Collective:
    """What each process puts in where the weight is put together on all of them, as the peer of the step."""
    part = math.ceil(case.l / case.world) * case.q * _ITEM_BYTES[case.dtype]
    return Collective("all_gather_into_tensor", case.dtype, part)


# Memory ---------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Memory:
    """Bytes on one GPU, of a float32 weight sharded by class.

    Attributes:
        training: the weight, its gradient and the two averages of AdamW.
        step: what LIP holds beside them at the peak of a step, in proportion to the rows of the weight.
    """

    training: int
    step: int

    @property
    def total(self) -> int:
        """Both."""
        return self.training + self.step


def memory(case: Case) -> Memory:
    """Memory of a case in float32, sharded by class.

    The peak of a truncated step is where A comes from: Y (float32), Q and the product of Q with the small
    matrix (float64), and A (float32), 12 m + 12 t bytes a row. That of a split by products is where the
    columns are made independent (four times as many in float32), or the write without a kernel: the factors
    twice, their product, and the weight. That of an exact step on more classes than features is the part of
    the weight in float64.
    """
    assert case.layout == "class"
    assert case.dtype == "float32"
    path, r, m = path_of(case)
    n, t = math.ceil(case.l / case.world), case.rank + r
    split = max(16 * m, 8 * _written(case) + 8 * case.q)
    per_row = {"truncated": 12 * m + 12 * t, "by products": split, "exact": 8 * case.q}[path]
    return Memory(16 * n * case.q, n * per_row)


# Time -----------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Floors:
    """Seconds that one step cannot beat, on one GPU.

    Attributes:
        local: of its own work: each phase takes as long as its bytes or its arithmetic, whichever is longer.
        written: the same with the passes over float64 temporaries that the code makes on the way.
        network: of the collectives; ``latency`` of it is the assumed latency alone.
        latency: see ``network``.
    """

    local: float
    written: float
    network: float
    latency: float

    @property
    def total(self) -> float:
        """Local work as it is written, and the network, one after the other."""
        return self.written + self.network


def network_floor(step: Iterable[Collective], world: int) -> tuple[float, float]:
    """Seconds of collectives one after the other, and the latency in them.

    Sums go through the node first, then each GPU adds its eighth across the nodes, and back. Gathers take
    the parts of other nodes over the network card of one GPU of the node, then pass them on inside.
    """
    inside, nodes = min(world, NODE), math.ceil(world / NODE)
    seconds = latency = 0.0
    for name, _, payload in step:
        if name == "allreduce_":
            seconds += 2 * (inside - 1) / inside * payload / NODE_RATE
            seconds += 2 * (nodes - 1) / nodes * payload / inside / NETWORK_RATE
        else:
            seconds += (nodes - 1) * payload / NETWORK_RATE
            seconds += (inside - 1) * nodes * payload / NODE_RATE
        latency += NETWORK_LATENCY if nodes > 1 else NODE_LATENCY
    return seconds + latency, latency


def floors(case: Case) -> Floors:
    """Floors of a warm step on a float32 weight sharded by class; small matrices cost nothing here."""
    n, q = math.ceil(case.l / case.world), case.q
    path, r, m = path_of(case)
    if path == "exact":
        # Read, in float64; the Gram matrix; the vectors; their product onto the weight.
        needed = [_phase(4 * n * q, fp64=2 * n * q * q)]
        needed += [
            _phase(4 * n * (q + r), tf32=2 * n * q * r),
            _phase(8 * n * q + 4 * n * r, tf32=2 * n * q * r),
        ]
        extra = [_phase(2 * 8 * n * q)]
    elif path == "by products":
        written = _written(case)
        needed = [
            # The columns and their Gram matrix, twice; the weight is read for the first and for M^T X.
            _phase(4 * n * (q + m), tf32=2 * n * q * m),
            _phase(4 * n * m, fp64=2 * n * m * m),
            _phase(8 * n * m, tf32=2 * n * m * m),
            _phase(4 * n * (q + m), tf32=2 * n * q * m),
            _phase(4 * n * m, fp64=2 * n * m * m),
            _phase(8 * n * m, tf32=2 * n * m * m),
            _phase(4 * n * (q + written), tf32=2 * n * q * written),
        ]
        extra = [_phase(2 * 2 * 8 * n * m)]
    else:
        t = case.rank + r
        needed = [
            _phase(4 * n * (q + m), tf32=4 * n * q * m),
            _phase(4 * n * (m + t), fp64=2 * n * m * m + n * m * m + 2 * n * m * t),
            _phase(8 * n * q + 4 * n * r, tf32=2 * n * q * r),
        ]
        # Y in float64, written and read twice, Q written and read, the product with it written and read.
        extra = [_phase(4 * n * m + 8 * n * (6 * m + 2 * t))]
    network, latency = network_floor(collectives(case), case.world)
    local = sum(needed)
    return Floors(local, local + sum(extra), network, latency)


def arithmetic(case: Case) -> int:
    """Floating-point operations of that step on each GPU, in products and factors along the rows."""
    n, q = math.ceil(case.l / case.world), case.q
    path, r, m = path_of(case)
    if path == "exact":
        return 2 * n * q * q + 4 * n * q * r
    if path == "by products":
        return 4 * n * q * m + 8 * n * m * m + 2 * n * q * _written(case)
    return 4 * n * q * m + 3 * n * m * m + 2 * n * m * (case.rank + r) + 2 * n * q * r


def _written(case: Case) -> int:
    """Columns of the factors that a split by products writes: the tail's, or all where more lies below it."""
    _, r, m = path_of(case)
    return r if case.rank + r == min(case.l, case.q) else case.rank + 2 * (m - case.rank)


def _phase(bytes_: float, *, tf32: float = 0, fp64: float = 0) -> float:
    return max(bytes_ / MEMORY_RATE, TF32_PASSES * tf32 / TF32_RATE, fp64 / FP64_RATE)


# The page -------------------------------------------------------------------------------------------------

WORLDS = (8, 64, 512)
CLASSES = (1_000_000, 10_000_000, 100_000_000)
_FEATURES, _ROWS = 512, 1024
# What is left of the memory beyond it has to hold activations, logits and the framework.
_ROOMY = 0.8


def _truncated(world: int, l: int, q: int = _FEATURES, *, data: bool = False) -> Case:
    return Case("class", world, l, q, 64, 8, data=data, rows=_ROWS)


def _exact(world: int, l: int, q: int = _FEATURES) -> Case:
    return Case("class", world, l, q, 460, "all", rows=_ROWS)


def _by_products(world: int, l: int, q: int = _FEATURES, rank: int = 460) -> Case:
    return Case("class", world, l, q, rank, rows=_ROWS, device=True)


def render() -> str:
    """What stands between the markers."""
    return "\n\n".join([_assumptions(), _bytes(), _memory_and_time(), _overlap()])


def _assumptions() -> str:
    return _prose(
        f"""
        Data sheet and assumptions, for H200s in nodes of {NODE}: {MEMORY / 1e9:.0f} GB of memory a GPU,
        read and written at {MEMORY_RATE / 1e12:.1f} TB/s; {TF32_RATE / 1e12:.0f} TFLOP/s in TF32, of which
        a float32 product takes {TF32_PASSES} passes, and {FP64_RATE / 1e12:.0f} TFLOP/s in float64, on
        tensor cores; NVLink {NODE_RATE / 1e9:.0f} GB/s a GPU and direction inside of a node,
        {NETWORK_RATE / 1e9:.0f} GB/s a GPU between nodes. A collective is assumed to take
        {_time(NODE_LATENCY)} inside of a node and {_time(NETWORK_LATENCY)} across nodes, beside its bytes.
        Not counted are launches of kernels, and the small matrices that every process factors alike: m x m,
        on the exact path q x q.
        """
    )


def _bytes() -> str:
    header = [
        "weight sharded over",
        "truncated, one batch",
        f"truncated, batches of {_ROWS} that differ",
        "by products, one batch",
        "exact, one batch",
        *(f"gathering {_count(l)} classes" for l in CLASSES),
    ]
    l = CLASSES[0]
    lines = []
    for world in WORLDS:
        cases = (
            _truncated(world, l),
            _truncated(world, l, data=True),
            _by_products(world, l),
            _exact(world, l),
        )
        sent = [sum(c.payload for c in collectives(case)) for case in cases]
        gathered = [whole_weight(_truncated(world, classes)).payload for classes in CLASSES]
        lines.append([f"{world} GPUs", *map(_size, sent), *map(_size, gathered)])
    sketch, refit = collectives(_truncated(8, l))
    many = WORLDS[-1]
    rows = [c for c in collectives(_truncated(many, l, data=True)) if c.name == "_allgather_base_"]
    seconds, _ = network_floor(rows, many)
    text = f"""
        Of it the sketch is {_size(sketch.payload)}, the sums of the refit are {refit.payload} bytes. Where
        batches differ, each GPU also sends the projections of its rows, {_size(rows[0].payload)} whatever
        the number of GPUs; what it receives grows with them, to {_size(rows[0].payload * (many - 1))} on
        {many}, which takes {_time(seconds)} at least. The last three columns are what the peer sends, which
        puts the whole weight together and then works on all of it everywhere.
        """
    title = f"""
        **Bytes that a GPU puts into the collectives of a step**, q = {_FEATURES}, float32. *Truncated*: 64
        directions kept, 8 refitted, 8 fresh, so that m = 80; *by products* and *exact*: 460 kept, 52
        refitted. The first four columns do not depend on the number of classes. With more features than
        classes the exact path gathers the weight, and a split by products does not.
        """
    return "\n\n".join([_prose(title), table(header, lines), _prose(text)])


def _memory_and_time() -> str:
    lines = [
        _line(f"{_count(l)} x {_FEATURES}", make(world, l))
        for make in (_truncated, _by_products, _exact)
        for l in CLASSES
        for world in WORLDS
    ]
    lines.append(_line("128256 x 4096", _truncated(8, 128_256, 4096)))
    lines += [_line(f"128256 x 4096, k = {k}", _by_products(8, 128_256, 4096, k)) for k in (2048, 3891)]
    header = ["head", "path", "GPUs", "weight, gradient, AdamW", "LIP", "fits", "flops"]
    header += [
        "local floor",
        "as written",
        "network floor",
        "as written + network",
        "gathering: network floor",
    ]
    largest = _truncated(8, CLASSES[-1])
    used, exact = memory(largest), memory(_exact(8, CLASSES[-1]))
    logits = 4 * _ROWS * math.ceil(largest.l / largest.world)
    classes = _count(largest.l)
    title = """
        **Memory and time of a step of LIP, on each GPU.** *Local floor*: the weight read twice and written
        once, Y written and read once, or the arithmetic where that takes longer. *As written*: the same
        with the float64 temporaries of the code. *Gathering*: putting the weight together, before any work
        on it. Times are floors, computed and not measured.
        """
    text = f"""
        {classes} classes of {_FEATURES} features on 8 GPUs: training alone holds {_size(used.training)} a
        GPU, LIP {_size(used.step)} more at its peak, together {used.total / MEMORY:.0%} of the memory. The
        logits of a batch of {_ROWS} are {_size(logits)} in float32: there is no room to train. The exact
        path wants {_size(exact.step)} for its part of the weight in float64 and does not fit even so. On 64
        GPUs both fit. Gathering does not, on any number of GPUs: the whole weight is
        {_size(4 * largest.l * largest.q)}.
        """
    return "\n\n".join([_prose(title), table(header, lines), _prose(text)])


def _flops(count: int) -> str:
    return f"{count / 1e12:.3g} T" if count >= 1e12 else f"{count / 1e9:.3g} G"


def _line(name: str, case: Case) -> list[str]:
    used, times = memory(case), floors(case)
    peer, _ = network_floor([whole_weight(case)], case.world)
    fits = "yes" if used.total < _ROOMY * MEMORY else "hardly" if used.total < MEMORY else "no"
    return [
        name,
        path_of(case)[0],
        str(case.world),
        _size(used.training),
        _size(used.step),
        fits,
        _flops(arithmetic(case)),
        _time(times.local),
        _time(times.written),
        _time(times.network),
        _time(times.total),
        _time(peer) if 4 * case.l * case.q < MEMORY else "does not fit",
    ]


def _overlap() -> str:
    middle, small = _truncated(8, CLASSES[0]), _truncated(512, CLASSES[0])
    few, many = floors(middle), floors(small)
    n, m = math.ceil(middle.l / middle.world), 80
    # Read, written in float64, read again for the product.
    gram = _phase(4 * n * m + 2 * 8 * n * m, fp64=2 * n * m * m)
    # AdamW reads weight, gradient and averages, and writes weight and averages.
    update = 28 * n * middle.q / MEMORY_RATE
    sketch, _ = network_floor(collectives(middle)[:1], middle.world)
    text = f"""
        **Where overlapping would pay.** All that comes after the sketch needs its sum, and all that comes
        after the refit needs that one: while either is under way nothing local is left to do, with three
        exceptions. The Gram matrix of Y does not enter Mᵀ Y, whose sum could begin before it: with
        {_count(middle.l)} classes on 8 GPUs {_time(gram)} of work could hide a sum of {_time(sketch)}, at
        the price of one more latency, since the Gram matrix is then summed apart. Other weights can be
        updated meanwhile, if the head is stepped first: for as many numbers as the head has,
        {_time(update)}. And where batches differ, labels could be gathered before there are directions: few
        bytes.
        """
    more = f"""
        In that case the network is {few.network / few.total:.0%} of the step, {_time(few.network)} of
        {_time(few.total)}. The float64 temporaries cost more, {_time(few.written - few.local)}: a kernel
        that accumulates Yᵀ Y in float64 from the tiles of Y that it has on chip, and one that applies the
        small factors while it writes A, would gain more than any overlap. On 512 GPUs the latency of two
        collectives is {many.latency / many.total:.0%} of {_time(many.total)}: only the updates of other
        weights could hide it, or `every=`, which leaves steps out.
        """
    return "\n\n".join([_prose(text), _prose(more)])


def _prose(text: str) -> str:
    """One line of it, however it is broken here."""
    return " ".join(text.split())


def _count(number: int) -> str:
    return f"{number // 1_000_000}M" if number >= 1_000_000 else str(number)


def _size(number: float) -> str:
    for unit, name in ((1e9, "GB"), (1e6, "MB")):
        if number >= unit:
            return f"{number / unit:.3g} {name}"
    return f"{number / 1e3:.3g} kB"


def _time(seconds: float) -> str:
    if seconds < 1e-3:
        return f"{seconds * 1e6:.3g} µs"
    return f"{seconds * 1e3:.3g} ms" if seconds < 1 else f"{seconds:.3g} s"


# Command line ---------------------------------------------------------------------------------------------


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command; returns its exit code."""
    parser = Parser(prog="python -m benchmarks.scale", description="What sharded heads cost, on paper.")
    parser.add_argument(
        "--write", type=Path, metavar="docs/scaling.md", help="replace what is between its markers"
    )
    options = parser.parse_args(arguments)
    return answer(parser, lambda: _put(options.write))


def _put(page: Path | None) -> None:
    """Print what is generated, or write it into a page."""
    if page is None:
        print(render())
    else:
        write_whole(page, SLOT.filled(page, render()))


if __name__ == "__main__":
    sys.exit(main())
