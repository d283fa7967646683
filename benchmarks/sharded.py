"""LIP on sharded heads in processes of this machine: ``python -m benchmarks.sharded [--write README.md]``.

Starts gloo process groups by torchrun, one thread a process, and measures a step on a weight sharded by
class: the bytes it puts into collectives, its time beside two other forms of the same step, and how far it
is from a single process after many steps. The result goes to ``benchmarks/results/sharded.json``, the table
to standard output or between the markers of a Markdown file. What cannot be vouched for is refused with one
line and exit code 2, and nothing is written: a failed check, or a tree that is not a known commit.
"""

import argparse
import gc
import importlib
import json
import os
import platform
import signal
import subprocess
import sys
import tempfile
import time
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any, NamedTuple

import torch
import torch.distributed as dist
from torch import Tensor, nn

import lip_fast
from benchmarks.checkout import ROOT, tree
from benchmarks.command import Parser, Refused, answer
from benchmarks.markdown import table
from benchmarks.results import NOISY, commit_of, machine_of, positive
from benchmarks.traffic import Traffic
from lip_fast.bench.gates import Gate, distance
from lip_fast.bench.timing import summary
from lip_fast.cli.atomic import write_whole
from lip_fast.harness.files.slots import Slot, read_page

__all__ = ["ERRORS", "RESULT", "ROWS", "SLOT", "load", "main", "render", "this_machine"]

SLOT = Slot("sharded")
RERUN = "make bench-sharded"
RESULT = ROOT / "benchmarks" / "results" / "sharded.json"

VARIANTS = ("ours", "gathered", "alone")
BATCH = 128
# Of the steps that are compared with a single process.
ERROR_STEPS = 20
# An idle machine takes a third of it.
_LIMIT = 600
# No collective here is longer; a process that died is noticed after it.
_PATIENCE = timedelta(seconds=60)


class Row(NamedTuple):
    """One timed weight: processes, classes, features, directions kept and refitted, samples."""

    world: int
    l: int
    q: int
    rank: int
    tail_rank: int
    rounds: int


class ErrorRow(NamedTuple):
    """One comparison with a single process; ``bound`` is on the relative distance of the weights."""

    world: int
    dtype: str
    l: int
    q: int
    rank: int
    tail_rank: int
    bound: float


# With the fresh columns m = 64. Altogether three minutes on two idle cores.
_CLASSES = ((4096, 11), (20_480, 9), (102_400, 7))
ROWS = tuple(Row(world, l, 256, 32, 24, rounds) for world in (1, 2, 4) for l, rounds in _CLASSES)
# Of timed rows, which are compared after two steps.
_BOUND = 1e-5
# A number of classes that no number of processes divides. The refit to random labels leaves values that are
# nearly equal, whose directions turn at the least rounding: it grows a hundredfold over the steps.
_ERROR_BOUNDS = {"float32": 1e-3, "float64": 1e-11}
ERRORS = tuple(
    ErrorRow(world, dtype, 4999, 128, 16, 12, bound)
    for world in (1, 2, 4)
    for dtype, bound in _ERROR_BOUNDS.items()
)


# What is measured -----------------------------------------------------------------------------------------


def _spectrum(l: int, q: int, dtype: torch.dtype) -> Tensor:
    """A weight (l, q) whose singular values are apart: rounding must not decide which are kept."""
    generator = torch.Generator().manual_seed(0)
    # Of many more rows than columns they are nearly orthogonal as they are drawn.
    U = torch.randn(l, q, generator=generator, dtype=dtype) / l**0.5
    V, _ = torch.linalg.qr(torch.randn(q, q, generator=generator, dtype=dtype))
    return (U * (3 * 0.9 ** torch.arange(q, dtype=dtype))) @ V.mT


def _noise(l: int, q: int, seed: int, dtype: torch.dtype) -> Tensor:
    """Some gradient, which no loss is needed for: the same in every process."""
    generator = torch.Generator().manual_seed(seed)
    return 1e-3 * torch.randn(l, q, generator=generator, dtype=dtype)


def _batch(l: int, q: int, seed: int, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    X = torch.randn(BATCH, q, generator=generator, dtype=dtype)
    return X, torch.randint(l, (BATCH,), generator=generator)


def _shard(whole: Tensor) -> Any:
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.tensor import Shard, distribute_tensor

    mesh = init_device_mesh("cpu", (dist.get_world_size(),))
    return distribute_tensor(whole, mesh, [Shard(0)], src_data_rank=None)


class _Variant:
    """A step of SGD and LIP on a head: with its weight sharded, or whole in this process."""

    def __init__(self, weight: Tensor, rank: int, tail_rank: int, *, attach: bool = True) -> None:
        l, q = weight.shape
        self.head = nn.Linear(q, l, bias=False, device="meta")
        self.head.weight = nn.Parameter(weight)
        self.optimizer = torch.optim.SGD([self.head.weight], lr=0.1)
        with warnings.catch_warnings():
            # Of a whole weight in one of several processes: all of them see the same batch here.
            warnings.simplefilter("ignore", UserWarning)
            self.lip = lip_fast.LIP(self.head, rank, tail_rank=tail_rank)
        if attach:
            self.lip.attach(self.optimizer)

    def step(self, X: Tensor, Y: Tensor) -> None:
        self.lip.observe(X, Y)
        self.optimizer.step()


class _Gathered(_Variant):
    """The peer: the sharded weight is put together on every process, which does as one process would."""

    def __init__(self, shard: Any, rank: int, tail_rank: int) -> None:
        super().__init__(torch.empty(shard.shape, dtype=shard.dtype), rank, tail_rank, attach=False)
        self.shard = nn.Parameter(shard)
        self.optimizer = torch.optim.SGD([self.shard], lr=0.1)

    @torch.no_grad()
    def step(self, X: Tensor, Y: Tensor) -> None:
        self.optimizer.step()
        shard: Any = self.shard
        self.head.weight.copy_(shard.full_tensor())
        self.lip.observe(X, Y)
        self.lip.apply()
        local = shard.to_local()
        first = sum(len(part) for part in self._parts()[: dist.get_rank()])
        local.copy_(self.head.weight[first : first + len(local)])

    def _parts(self) -> tuple[Tensor, ...]:
        # As torch.distributed.tensor shards: chunks.
        return self.head.weight.chunk(dist.get_world_size())


def _measure(row: Row) -> dict[str, Any]:
    """Times, bytes and checks of one row; called by every process, the same everywhere."""
    first = dist.get_rank() == 0
    weight = _spectrum(row.l, row.q, torch.float32)
    grad = _noise(row.l, row.q, 1, torch.float32)
    X, Y = _batch(row.l, row.q, 2, torch.float32)
    ranks = row.rank, row.tail_rank
    ours = _Variant(_shard(weight).clone(), *ranks)
    gathered = _Gathered(_shard(weight).clone(), *ranks)
    ours.head.weight.grad, gathered.shard.grad = _shard(grad), _shard(grad)
    variants: dict[str, _Variant | None] = {"ours": ours, "gathered": gathered, "alone": None}
    if first:
        alone = _Variant(weight.clone(), *ranks)
        alone.head.weight.grad = grad.clone()
        variants["alone"] = alone
    payloads: dict[str, int] = {}
    for name, variant in variants.items():
        for _ in range(2):  # the first one is cold
            with Traffic() as traffic:
                if variant is not None:
                    variant.step(X, Y)
        payloads[name] = traffic.payload
    gates = _gates(variants, weight - 0.2 * grad)
    seconds: dict[str, list[float]] = {name: [] for name in VARIANTS}
    for i in range(row.rounds):
        turn = i % len(VARIANTS)
        for name in VARIANTS[turn:] + VARIANTS[:turn]:
            variant = variants[name]
            seconds[name].append(_slowest(lambda variant=variant: variant and variant.step(X, Y)))  # type: ignore[misc]
    return {
        "row": row._asdict(),
        "payload_bytes": {name: payloads[name] for name in ("ours", "gathered")},
        "times": {name: summary(times) for name, times in seconds.items()},
        "gates": gates,
    }


def _gates(variants: Mapping[str, Any], plain: Tensor) -> list[dict[str, Any]]:
    """Both sharded forms against one process; the control is the step without LIP."""
    results = {"ours": variants["ours"].head.weight, "gathered": variants["gathered"].shard}
    gates = []
    for name, weight in results.items():
        whole = weight.detach().full_tensor()
        if variants["alone"] is None:
            continue
        expected = variants["alone"].head.weight.detach().double()
        bound = _BOUND
        gates.append(Gate(name, distance(whole, expected), bound, distance(plain, expected)))
    return [{**asdict(gate), "passed": gate.passed} for gate in gates]


def _slowest(call: Callable[[], object]) -> float:
    """Seconds of the process that took longest; processes that have nothing to do wait, and do not spin."""
    dist.barrier()
    start = time.perf_counter()
    call()
    seconds = torch.tensor(time.perf_counter() - start, dtype=torch.float64)
    dist.all_reduce(seconds, op=dist.ReduceOp.MAX)
    return float(seconds)


def _error(row: ErrorRow) -> dict[str, Any]:
    """How far a sharded head is from that of one process after some steps, and that from one without LIP."""
    dtype = getattr(torch, row.dtype)
    weight = _spectrum(row.l, row.q, dtype)
    ours = _Variant(_shard(weight).clone(), row.rank, row.tail_rank)
    alone = _Variant(weight.clone(), row.rank, row.tail_rank)
    plain = weight.clone()
    for i in range(ERROR_STEPS):
        grad = _noise(row.l, row.q, 100 + i, dtype)
        ours.head.weight.grad, alone.head.weight.grad = _shard(grad), grad
        plain -= 0.1 * grad
        X, Y = _batch(row.l, row.q, 200 + i, dtype)
        ours.step(X, Y)
        alone.step(X, Y)
    sharded: Any = ours.head.weight.detach()
    expected = alone.head.weight.detach().double()
    gate = Gate("distance", distance(sharded.full_tensor(), expected), row.bound, distance(plain, expected))
    return {"row": row._asdict(), "gates": [{**asdict(gate), "passed": gate.passed}]}


def _work(path: Path) -> None:
    """What each process that torchrun started does; the first one writes what was measured."""
    torch.set_num_threads(1)
    # Its functions have the group for a default: imported later, as optimizers do, it would keep the group.
    importlib.import_module("torch.distributed.nn")
    dist.init_process_group("gloo", timeout=_PATIENCE)
    try:
        world = dist.get_world_size()
        rows = [_measure(row) for row in ROWS if row.world == world]
        errors = [_error(row) for row in ERRORS if row.world == world]
        if dist.get_rank() == 0:
            path.write_text(json.dumps({"rows": rows, "errors": errors}))
    finally:
        dist.destroy_process_group()
        # Threads of groups that cycles of objects hold may abort the end of the interpreter.
        gc.collect()


# The run --------------------------------------------------------------------------------------------------


def run() -> dict[str, Any]:
    """Start the processes, and return all that was measured, with machine and commit.

    Raises:
        Refused: they failed, or took too long.
    """
    before, date = tree(), datetime.now(UTC)
    rows: list[Any] = []
    errors: list[Any] = []
    for world in sorted({row.world for row in ROWS} | {row.world for row in ERRORS}):
        print(f"benchmarks.sharded: {world} of the processes ...", file=sys.stderr)
        found = _launch(world)
        rows += found["rows"]
        errors += found["errors"]
    after = tree()
    known = after is not None and after == before
    return {
        "machine_info": this_machine(),
        "commit_info": {
            "id": after[0] if after is not None and known else "unknown",
            "dirty": after is None or not known or after[1],
        },
        "datetime": date.isoformat(),
        "seconds": (datetime.now(UTC) - date).total_seconds(),
        "rows": rows,
        "errors": errors,
    }


def _launch(world: int) -> dict[str, Any]:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "found.json"
        command = [
            sys.executable,
            "-m",
            "torch.distributed.run",
            "--standalone",
            "--nproc-per-node",
            str(world),
        ]
        command += ["-m", "benchmarks.sharded", "--work", str(path)]
        environment = {**os.environ, "OMP_NUM_THREADS": "1"}
        process = subprocess.Popen(command, cwd=ROOT, env=environment, start_new_session=True)
        try:
            code = process.wait(_LIMIT)
        except subprocess.TimeoutExpired:
            raise Refused(f"{world} processes took more than {_LIMIT} s") from None
        finally:
            # torchrun ends its processes; where it cannot any more, nothing is to be left.
            if process.poll() is None:
                os.killpg(process.pid, signal.SIGKILL)
                process.wait()
        if code != 0 or not path.exists():
            raise Refused(f"the run of {world} processes failed: exit code {code}")
        found: dict[str, Any] = json.loads(path.read_text())
    return found


def this_machine() -> dict[str, Any]:
    """What describes the machine, and nothing that names it; as benchmarks/results/cpu.json."""
    cpu = platform.machine()
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        cpu = next((line.split(":")[1].strip() for line in lines if line.startswith("model name")), cpu)
    except OSError:
        pass
    return {
        "cpu": cpu,
        "cores": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count(),
        "threads": 1,
        "system": platform.system(),
        "machine": platform.machine(),
        "python": platform.python_version(),
        "torch": torch.__version__,
    }


# Reading --------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Entry:
    """One timed row: medians, and quartiles of ours, in microseconds; bytes of one warm step."""

    row: Row
    times: Mapping[str, float]
    quartiles: tuple[float, float]
    payloads: Mapping[str, int]


@dataclass(frozen=True)
class Result:
    """A result that was found complete."""

    entries: tuple[Entry, ...]
    errors: tuple[tuple[ErrorRow, float, float], ...]
    machine: Mapping[str, Any]
    commit: str
    dirty: bool
    date: str


def load(data: Any, *, checkout: Path, allow_dirty: bool = False) -> Result:
    """Check that a result can be vouched for.

    Args:
        data: what :func:`run` returned, maybe out of a file.
        checkout: a folder of the checkout in which the measured commit must exist.
        allow_dirty: accept a tree with changes, or an unknown commit. The report then says so.

    Raises:
        Refused: it cannot.
    """
    if not isinstance(data, dict) or not isinstance(data.get("rows"), list):
        raise Refused("not a result of benchmarks.sharded")
    machine = machine_of(data.get("machine_info"))
    commit, dirty = commit_of(data.get("commit_info"), checkout, allow_dirty)
    entries = tuple(
        _entry(row, found) for row, found in zip(ROWS, _in_order(data["rows"], ROWS), strict=True)
    )
    errors = []
    for error, found in zip(ERRORS, _in_order(data.get("errors"), ERRORS), strict=True):
        gate = _passed(found, "distance", error.bound, f"{error}")
        errors.append((error, gate["value"], gate["control"]))
    date = data.get("datetime")
    if not isinstance(date, str) or len(date) < 10:
        raise Refused(f"expected the date of the run, got {date!r}")
    return Result(entries, tuple(errors), machine, commit, dirty, date[:10])


def _in_order(found: object, rows: Sequence[Any]) -> list[Mapping[str, Any]]:
    """The entries of these rows, none missing and none beside them."""
    entries: dict[str, Mapping[str, Any]] = {}
    for entry in found if isinstance(found, list) else []:
        key = json.dumps(entry.get("row")) if isinstance(entry, dict) else repr(entry)
        if key in entries:
            raise Refused(f"expected each row once, got twice {key}")
        entries[key] = entry
    keys = [json.dumps(row._asdict()) for row in rows]
    if set(entries) != set(keys):
        odd = sorted(set(entries) ^ set(keys))[0]
        raise Refused(f"expected the rows of these benchmarks; missing, or none of them: {odd}")
    return [entries[key] for key in keys]


def _entry(row: Row, found: Mapping[str, Any]) -> Entry:
    def microseconds(name: str, which: str) -> float:
        value = found.get("times", {}).get(name, {}).get(f"{which}_us")
        return positive(value, f"{which} of {name} in {row}")

    payloads = {}
    for name in ("ours", "gathered"):
        payload = found.get("payload_bytes", {}).get(name)
        # One process alone sends nothing.
        if not isinstance(payload, int) or payload < 0 or (payload == 0) != (row.world == 1):
            raise Refused(f"expected the bytes of {name} in {row}, got {payload!r}")
        payloads[name] = payload
        _passed(found, name, _BOUND, f"{row}")
    times = {name: microseconds(name, "median") for name in VARIANTS}
    return Entry(row, times, (microseconds("ours", "q1"), microseconds("ours", "q3")), payloads)


def _passed(found: Mapping[str, Any], name: str, bound: float, where: str) -> Mapping[str, float]:
    for gate in found.get("gates", []):
        if gate.get("name") == name:
            # Judged by its numbers; comparisons with NaN are false.
            if gate["bound"] != bound or not Gate(name, gate["value"], bound, gate["control"]).passed:
                raise Refused(f"{where} failed the check {name!r}: {gate['value']:.3g}, at most {bound:.3g}")
            found_gate: Mapping[str, float] = gate
            return found_gate
    raise Refused(f"{where} lacks the check {name!r}")


# Writing --------------------------------------------------------------------------------------------------


def render(result: Result) -> str:
    """The report in Markdown, without the markers."""
    machine, first = result.machine, ROWS[0]
    commit = f"commit `{result.commit[:12]}`" if result.commit != "unknown" else "unknown commit"
    if result.dirty:
        commit += " with changes"
    lines = [
        [
            f"{entry.row.l} x {entry.row.q}",
            str(entry.row.world),
            _size(entry.payloads["ours"]),
            _size(entry.payloads["gathered"]),
            _time(entry.times["ours"]),
            _time(entry.times["gathered"]),
            _ratio(entry.times["gathered"], entry.times["ours"]),
            _time(entry.times["alone"]),
            f"{entry.times['ours'] / entry.times['alone']:.2f}x",
        ]
        for entry in sorted(result.entries, key=lambda entry: (entry.row.l, entry.row.world))
    ]
    header = ["head", "processes", "ours sends", "gathering sends", "ours", "gathering", "ours is"]
    times = table([*header, "one process alone", "ours / alone"], lines)
    errors = table(
        ["head", "processes", "dtype", "distance from one process", "distance of no LIP from it"],
        [
            [f"{e.l} x {e.q}", str(e.world), e.dtype, f"{value:.0e} (≤ {e.bound:.0e})", f"{control:.0e}"]
            for e, value, control in result.errors
        ],
    )
    cores, most = machine["cores"], max(row.world for row in ROWS)
    note = ""
    if most > cores:
        note = (
            f"{most} processes share {cores} cores here: their times show that it works, not how it scales."
        )
    title = f"""
        **A step of SGD and LIP on a weight sharded by class**, k = {first.rank}, r = {first.tail_rank},
        warm, a batch of {BATCH} that all processes see, float32. *Sends*: bytes that a process puts into
        its collectives. *Gathering*: every process puts the whole weight together, does with it what one
        process does, and keeps its part. *Alone*: the whole weight in one process, the others idle.
        Medians; the three take turns in one run, and the slowest process counts. Both sharded forms are
        first compared with the single process. {note}
        """
    about = f"""
        {machine["cpu"]}, {cores} cores, one thread a process, gloo, {machine["system"]}; Python
        {machine["python"]}, torch {machine["torch"]}; {commit}, {result.date}. Rerun with `{RERUN}`.
        """
    after = f"""
        **After {ERROR_STEPS} steps**, relative Frobenius distance from the weight of one process. Refitted
        to random labels, values come to be nearly equal, and rounding turns their directions: it grows a
        hundredfold on the way, in either dtype.
        """
    parts = [_prose(about), _prose(title), times, _prose(after), errors]
    noisy = [e.row for e in result.entries if e.quartiles[1] > NOISY * e.quartiles[0]]
    if noisy:
        where = ", ".join(f"{row.l} x {row.q} in {row.world}" for row in noisy)
        parts.append(
            f"The machine was busy: our quartiles are more than {NOISY:g}x apart in {where} processes. Their "
            "times are not to be trusted."
        )
    return "\n\n".join(parts)


def _prose(text: str) -> str:
    """One line of it, however it is broken here."""
    return " ".join(text.split())


def _ratio(peer: float, ours: float) -> str:
    return f"{peer / ours:.1f}x faster" if peer >= ours else f"{ours / peer:.1f}x slower"


def _time(microseconds: float) -> str:
    milliseconds = microseconds / 1000
    return f"{milliseconds:.1f} ms" if milliseconds < 100 else f"{milliseconds:.0f} ms"


def _size(number: int) -> str:
    if not number:
        return "nothing"
    return f"{number / 1e6:.1f} MB" if number >= 1e6 else f"{number / 1e3:.0f} kB"


# Command line ---------------------------------------------------------------------------------------------


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command; returns its exit code."""
    parser = Parser(prog="python -m benchmarks.sharded", description="Measure LIP on sharded heads.")
    parser.add_argument("--write", type=Path, metavar="README.md", help="replace what is between its markers")
    parser.add_argument("--result", type=Path, default=RESULT, help="JSON to write (default: %(default)s)")
    parser.add_argument("--report", action="store_true", help="measure nothing, read --result instead")
    parser.add_argument(
        "--allow-dirty", action="store_true", help="accept uncommitted changes, unknown commits"
    )
    parser.add_argument("--work", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args(arguments)
    if options.work is not None:
        _work(options.work)
        return 0
    return answer(parser, lambda: _report(options))


def _report(options: argparse.Namespace) -> None:
    # What can be refused is refused before the run takes its minutes.
    if options.write is not None:
        SLOT.filled(options.write, "")
    checkout = ROOT if options.write is None else options.write.resolve().parent
    if options.report:
        try:
            data = json.loads(read_page(options.result))
        except ValueError:
            raise Refused(f"{options.result} is not JSON") from None
    else:
        found = tree()
        if not options.allow_dirty and (found is None or found[1]):
            raise Refused("the tree has changes that are in no commit (--allow-dirty accepts it)")
        data = run()
    report = render(load(data, checkout=checkout, allow_dirty=options.allow_dirty))
    if not options.report:
        write_whole(options.result, json.dumps(data, indent=4) + "\n")
    if options.write is None:
        print(report)
    else:
        write_whole(options.write, SLOT.filled(options.write, report))


if __name__ == "__main__":
    sys.exit(main())
