"""Processes that fail in a step of a sharded head, and what the others make of it.

    python -m distributed.faults scenario folder

starts pairs of gloo processes as forks of itself, which share its imports, and prints what was wrong in them.
"""

import gc
import json
import os
import signal
import sys
import time
import traceback
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import timedelta
from pathlib import Path
from typing import Any, NamedTuple

import torch
import torch.distributed as dist
from distributed.heads import STEPS, Problem, gradient, make_head, make_problem, set_gradient, shard
from distributed.layouts import all_rows, rows_of
from torch import Tensor, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.tensor import DTensor, Replicate, Shard
from torch.overrides import TorchFunctionMode

import lip_fast
from lip_fast import host, ops, world
from lip_fast.optim import LIPSGD
from lip_fast.sharded import Sharding, decompose, label_sums, local_part, rows
from lip_fast.sharded.group import Group
from lip_fast.statistics import LabelStatistics

# Seconds that a group waits for a process: long enough for a loaded machine, short enough for a test.
PATIENCE = 20
# The process that something happens to.
VICTIM = 1

EXACT: dict[str, Any] = {"rank": 0.5}
TRUNCATED: dict[str, Any] = {"rank": 1, "tail_rank": 2}
DECAY: dict[str, Any] = TRUNCATED | {"decay": 0.9}
# More directions than a truncated step tracks, in float32.
PROJECTED: dict[str, Any] = {"rank": 0.5, "shape": (150, 140)}
AUTO: dict[str, Any] = {"rank": "auto", "tail": "zero"}
AUTO_DECAY: dict[str, Any] = EXACT | {"rank": "auto", "decay": 0.9}

LAYOUTS = (
    "tensor parallel",
    "fully sharded",
    "by feature",
    "by feature, other batches",
    "replicas",
    "replicated DTensor",
)


class FaultError(Exception):
    """What the victim raises."""


_control: list[Any] = []


# Processes ----------------------------------------------------------------------------------------------


def fork(world: int, folder: Path, work: Callable[[], Any], *, patience: float = PATIENCE) -> list[int]:
    """The ids of ``world`` new processes of one group, each of which writes what ``work`` returns."""
    folder.mkdir(parents=True)
    children = []
    for rank in range(world):
        child = os.fork()
        if child == 0:
            _run(rank, world, folder, work, patience)
        children.append(child)
    return children


def _run(rank: int, world: int, folder: Path, work: Callable[[], Any], patience: float) -> None:
    try:
        store = dist.FileStore(str(folder / "store"), world)
        wait = timedelta(seconds=patience)
        dist.init_process_group("gloo", store=store, rank=rank, world_size=world, timeout=wait)
        # Of the test itself: faults leave it alone, and may break the others.
        _control.append(dist.new_group(timeout=timedelta(seconds=4 * PATIENCE)))
        result: Any = work()
    except BaseException:
        result = {"raised": traceback.format_exc()[-3000:]}
    (folder / f"{rank}.json").write_text(json.dumps(result))
    # Neither what the parent registered at exit, nor to wait for a group that is broken.
    os._exit(0)


def results(children: list[int], folder: Path, *, limit: float = 120) -> list[Any]:
    """What each process wrote; None of one that was killed."""
    end = time.monotonic() + limit
    for child in children:
        while os.waitpid(child, os.WNOHANG) == (0, 0):
            if time.monotonic() > end:
                for each in children:
                    _kill(each)
                return [{"raised": f"still there after {limit} s"}]
            time.sleep(0.002)
    files = [folder / f"{rank}.json" for rank in range(len(children))]
    return [json.loads(file.read_text()) if file.exists() else None for file in files]


def _kill(child: int) -> None:
    try:
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)
    except (ProcessLookupError, ChildProcessError):
        pass


# Runs ---------------------------------------------------------------------------------------------------


class Run(NamedTuple):
    """A head in training on this process, and its weight as the base optimizer left it last."""

    problem: Problem
    head: nn.Linear
    optimizer: torch.optim.Optimizer
    lip: lip_fast.LIP
    mine: Callable[[Tensor], Tensor]
    base: list[Tensor]
    after: list[Callable[[], None]]
    """Called right after the base optimizer's step."""

    @property
    def local(self) -> Tensor:
        return local_part(self.head.weight).clone()

    def observe(self, step: int) -> None:
        features, targets = self.problem.features[step % STEPS], self.problem.targets[step % STEPS]
        self.lip.observe(self.mine(features), self.mine(targets))

    def step(self, step: int, *, observes: bool = True) -> None:
        set_gradient(self.head.weight, gradient(self.problem, step))
        if observes:
            self.observe(step)
        self.optimizer.step()

    def state(self) -> dict[str, Any]:
        state = self.lip.state_dict()
        subspace = state["subspace"]
        return {
            "basis": subspace["basis"],
            "step": int(subspace["step"]),
            "statistics": state["statistics"],
        }


def make_run(layout: str, settings: dict[str, Any], *, labels: str = "indices", **more: Any) -> Run:
    settings = settings | more
    if "shape" in settings:
        problem = make_problem(*settings.pop("shape"), labels=labels, dtype=torch.float32)
    else:
        problem = make_problem(30, 12, labels=labels)
    head = make_head(problem)
    mesh, data_group, mine = init_device_mesh("cpu", (dist.get_world_size(),)), None, all_rows
    placement: Any = Shard(1) if layout.startswith("by feature") else Shard(0)
    if layout in ("fully sharded", "by feature, other batches", "replicas", "replicated DTensor"):
        data_group = dist.group.WORLD if layout == "replicas" else mesh
        mine = rows_of(dist.get_world_size(), dist.get_rank(), even=False)
    if layout == "hybrid":
        mesh = init_device_mesh("cpu", (2, 2), mesh_dim_names=("a", "b"))
        data_group, mine = mesh, rows_of(4, dist.get_rank(), even=True)
        shard(head, mesh, [Replicate(), Shard(0)], [Replicate(), Shard(0)])
    elif layout == "replicated DTensor":
        shard(head, mesh, [Replicate()])
    elif layout != "replicas":
        shard(head, mesh, [placement], [Shard(0)])
    rank = settings.pop("rank")
    optimizer = torch.optim.SGD(head.parameters(), lr=0.1, momentum=0.9)
    base: list[Tensor] = []
    after: list[Callable[[], None]] = [lambda: base.append(local_part(head.weight).clone())]
    optimizer.register_step_post_hook(lambda *_: [work() for work in after] and None)
    lip = lip_fast.LIP(head, rank, data_group=data_group, **settings)
    lip.attach(optimizer)
    return Run(problem, head, optimizer, lip, mine, base, after)


def same(a: Any, b: Any) -> bool:
    """Whether states are equal, bit for bit."""
    if isinstance(a, Tensor):
        return torch.equal(local_part(a), local_part(b))
    if isinstance(a, dict):
        return a.keys() == b.keys() and all(same(a[name], b[name]) for name in a)
    if isinstance(a, list | tuple):
        return len(a) == len(b) and all(map(same, a, b))
    return bool(a == b)


def everywhere(value: Any) -> list[Any]:
    """``value`` of every process, in the order of ranks."""
    values: list[Any] = [None] * dist.get_world_size()
    dist.all_gather_object(values, value, group=_control[0])
    return values


def raised_by(work: Callable[[], Any]) -> BaseException | None:
    try:
        work()
    except Exception as error:
        return error
    return None


# One process raises -------------------------------------------------------------------------------------


class Bomb(TorchFunctionMode):
    """Raises in the call number ``at`` of a function of torch."""

    def __init__(self, at: int, collectives: "Collectives") -> None:
        super().__init__()
        self.collectives = collectives
        self.left, self.calls, self.paused = at, 0, False

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if not self.paused:
            self.calls += 1
            if self.calls == self.left:
                self.collectives.fails()
                raise FaultError(f"call {self.left}, {getattr(func, '__name__', func)}")
        return func(*args, **(kwargs or {}))


class Collectives:
    """Counts those that this process takes part in, of one step."""

    def __init__(self) -> None:
        self.taken = self.taken_at_fault = 0
        self.fault = ""
        self.bomb: Bomb | None = None
        self.kill_before: int | None = None

    @contextmanager
    def counted(self) -> Iterator[None]:
        joins, self.taken, self.taken_at_fault = Group.joins, 0, -1

        def counting(group: Group) -> bool:
            takes = joins(group)
            if takes and self.taken == self.kill_before:
                os.kill(os.getpid(), signal.SIGKILL)
            self.taken += takes
            return takes

        with patched(Group, "joins", counting):
            yield

    def fails(self) -> None:
        """Note where, and how many there had been."""
        if self.taken_at_fault < 0:
            self.taken_at_fault = self.taken
            frames = [f for f in traceback.extract_stack() if "lip_fast" in f.filename]
            self.fault = " < ".join(f"{f.name}:{f.lineno}" for f in frames[::-1][:5])

    def pausing(self, function: Callable[..., Any]) -> Callable[..., Any]:
        """A function that does not work alone: nothing is to go off in it."""

        def paused(*args: Any, **kwargs: Any) -> Any:
            before = self.bomb.paused if self.bomb is not None else False
            try:
                if self.bomb is not None:
                    self.bomb.paused = True
                return function(*args, **kwargs)
            finally:
                if self.bomb is not None:
                    self.bomb.paused = before

        return paused


@contextmanager
def patched(owner: Any, name: str, value: Any) -> Iterator[None]:
    before = owner.__dict__[name]
    setattr(owner, name, value)
    try:
        yield
    finally:
        setattr(owner, name, before)


@contextmanager
def bombed(collectives: Collectives, at: int) -> Iterator[Bomb]:
    bomb = collectives.bomb = Bomb(at, collectives)
    quiet = [(Sharding, "gather"), (Group, "_tell"), (Group, "_hear"), (label_sums, "full_tensor")]
    # What the rank is decided by has a last sum of its own; the named places are reached in it too.
    quiet += [(dist, "all_reduce"), (rows, "all_gather"), (world.Peers, "choose_rank")]
    step = Group.run_with_peers

    def stepping(*args: Any, **kwargs: Any) -> Any:
        with bomb:
            return step(*args, **kwargs)

    before = [(owner, name, owner.__dict__[name]) for owner, name in quiet]
    try:
        for owner, name, function in before:
            setattr(owner, name, collectives.pausing(function))
        with patched(Group, "run_with_peers", stepping):
            yield bomb
    finally:
        collectives.bomb = None
        for owner, name, function in before:
            setattr(owner, name, function)


# Functions of one process that a step calls in some layout.
PLACES: dict[str, tuple[Any, str]] = {
    "ops.sketch": (ops, "sketch"),
    "ops.label_sums": (ops, "label_sums"),
    "ops.tail_svd": (ops, "tail_svd"),
    "ops.warm_svd": (ops, "warm_svd"),
    "ops.finish_svd": (ops, "finish_svd"),
    "ops.orthonormalize": (ops, "orthonormalize"),
    "solve_triangular": (torch.linalg, "solve_triangular"),
    "cholesky": (decompose, "cholesky"),
    "gram": (decompose, "gram"),
    "of_columns": (decompose, "of_columns"),
    "part_sums": (label_sums, "part_sums"),
    "unpack": (rows, "unpack"),
    "filled": (rows, "filled"),
    "all_finite": (world, "all_finite"),
    "bias_part": (Sharding, "bias_part"),
    "with_rows": (LabelStatistics, "with_rows"),
    "statistics.sums": (LabelStatistics, "sums"),
}


def raising(layout: str, settings: dict[str, Any]) -> list[str]:
    """One process raises: at many places, once, and at named ones as often as they are called."""
    wrong: list[str] = []
    victim = dist.get_rank() == VICTIM
    for cold in (True, False):
        run = make_run(layout, settings)
        collectives = Collectives()
        if not cold:
            run.step(0)
        reached: list[str] = []
        with bombed(collectives, -1) as bomb, collectives.counted(), watched(reached):
            run.step(1)
        calls, total = everywhere(bomb.calls)[VICTIM], collectives.taken
        named = everywhere(sorted(set(reached)))[VICTIM]
        stride = max(calls // 10, 1)
        cases: list[int | str] = [*range(1 + int(cold), calls + 1, stride), *named]
        for case in cases:
            if cold:
                run = make_run(layout, settings)
            before, error = run.state(), None
            with collectives.counted():
                if victim and isinstance(case, int):
                    with bombed(collectives, case):
                        error = raised_by(lambda: run.step(2))  # noqa: B023
                elif victim:
                    owner, name = PLACES[str(case)]
                    with patched(owner, name, failing(str(case), collectives)):
                        error = raised_by(lambda: run.step(2))  # noqa: B023
                else:
                    error = raised_by(lambda: run.step(2))  # noqa: B023
            # After the last collective there is no one to tell.
            late = everywhere(victim and collectives.taken_at_fault == total)
            where = f"{layout} {settings} cold={cold} case={case}: "
            expected: Any = FaultError if victim else type(None) if late[VICTIM] else lip_fast.PeerError
            if not isinstance(error, expected):
                wrong.append(f"{where}expected {expected.__name__}, got {error!r} ({collectives.fault})")
            if isinstance(error, lip_fast.PeerError) and "failed in LIP" not in str(error):
                wrong.append(f"{where}{error}")
            if late[VICTIM]:
                # The victim's part may lack what the others wrote: train a new one.
                run = make_run(layout, settings)
                run.step(0)
                continue
            if not torch.equal(run.local, run.base[-1]):
                wrong.append(f"{where}weight differs from the base optimizer's")
            if not same(run.state(), before):
                wrong.append(f"{where}basis or statistics changed")
            if any(everywhere(wrong)):
                return wrong
            if error := raised_by(lambda: run.step(3)):  # noqa: B023
                wrong.append(f"{where}the next step: {error!r}")
            if torch.equal(run.local, run.base[-1]):
                wrong.append(f"{where}LIP did not act in the next step")
            if len(set(map(str, everywhere(run.lip.stats())))) > 1:
                wrong.append(f"{where}processes count differently")
            if any(everywhere(wrong)):
                return wrong
        if not alike(run):
            wrong.append(f"{layout} {settings} cold={cold}: weights differ")
    return wrong


def failing(place: str, collectives: Collectives | None = None) -> Callable[..., Any]:
    def fail(*args: Any, **kwargs: Any) -> Any:
        if collectives is not None:
            collectives.fails()
        raise FaultError(place)

    return fail


@contextmanager
def watched(reached: list[str]) -> Iterator[None]:
    """Notes which of the places a step reaches."""

    def noting(place: str, function: Any) -> Any:
        def noted(*args: Any, **kwargs: Any) -> Any:
            reached.append(place)
            return function(*args, **kwargs)

        return noted

    before = {place: owner.__dict__[name] for place, (owner, name) in PLACES.items()}
    for place, (owner, name) in PLACES.items():
        setattr(owner, name, noting(place, before[place]))
    try:
        yield
    finally:
        for place, (owner, name) in PLACES.items():
            setattr(owner, name, before[place])


def alike(run: Run) -> bool:
    """Whether the whole weight is the same on all processes."""
    if raised_by(lambda: run.head.weight.full_tensor() if isinstance(run.head.weight, DTensor) else None):
        return False
    weight = run.head.weight.detach()
    whole = weight.full_tensor() if isinstance(weight, DTensor) else weight
    return len(set(everywhere(whole.numpy().tobytes().hex()))) == 1


# One process sees what is not finite ----------------------------------------------------------------------


def unsound(layout: str, settings: dict[str, Any]) -> list[str]:
    """NaN or infinity in one process: no process takes LIP's step, and all count the same."""
    wrong: list[str] = []
    victim = dist.get_rank() == VICTIM
    for where in ("features", "labels", "found_inf", "weight"):
        for value in (float("nan"), float("inf")):
            for strict in (False, True):
                dense = where == "labels"
                run = make_run(layout, settings, labels="dense" if dense else "indices", strict=strict)
                run.step(0)
                before = run.state()["basis"]
                features, targets = run.problem.features[1], run.problem.targets[1]
                if victim and where == "features":
                    features[:, 3] = value
                elif victim and dense:
                    targets[:, 17] = value
                elif where == "found_inf":
                    found = torch.tensor(float(victim))
                    # A fused optimizer has it during its step.
                    run.after.append(lambda: setattr(run.optimizer, "found_inf", found))  # noqa: B023
                elif victim:
                    with torch.no_grad():
                        local_part(run.head.weight)[1, 1] = value
                error = raised_by(lambda: run.step(1))  # noqa: B023
                case = f"{layout} {settings} {value} in {where}, strict={strict}: "
                expected = lip_fast.LIPError if strict and where != "found_inf" else type(None)
                if not isinstance(error, expected):
                    wrong.append(f"{case}expected {expected.__name__}, got {error!r}")
                if not torch.equal(run.local.nan_to_num(7.0), run.base[-1].nan_to_num(7.0)):
                    wrong.append(f"{case}weight differs from the base optimizer's")
                stats = run.lip.stats()
                if (stats["applied"], stats["skipped"]) != (1, 1):
                    wrong.append(f"{case}{stats}")
                if stats["not_finite"] != (where != "found_inf"):
                    wrong.append(f"{case}{stats}")
                if len(set(map(str, everywhere(stats)))) > 1:
                    wrong.append(f"{case}processes count differently")
                if not same(run.state()["basis"], before):
                    wrong.append(f"{case}basis changed")
                if where == "weight":
                    continue
                if where == "found_inf":
                    run.after.pop()
                    del run.optimizer.found_inf  # type: ignore[attr-defined]
                run.step(2)
                if run.lip.stats()["applied"] != 2 or not alike(run):
                    wrong.append(f"{case}no step afterwards, {run.lip.stats()}")
    return wrong


# One process is gone ------------------------------------------------------------------------------------


def checkpoint(run: Run) -> dict[str, Any]:
    return {
        "weight": run.local,
        "momentum": local_part(run.optimizer.state[run.head.weight]["momentum_buffer"]).clone(),
        "lip": run.lip.state_dict(),
    }


def undisturbed(layout: str, settings: dict[str, Any], folder: Path) -> list[int]:
    """Train, with a checkpoint before the third step; returns how many collectives that step has."""
    run = make_run(layout, settings)
    run.step(0)
    run.step(1)
    rank = dist.get_rank()
    torch.save(checkpoint(run), folder / f"saved-{rank}.pt")
    collectives = Collectives()
    with collectives.counted():
        run.step(2)
    run.step(3)
    torch.save(run.local, folder / f"final-{rank}.pt")
    return [collectives.taken]


def restored(layout: str, settings: dict[str, Any], folder: Path) -> Run:
    """A run that goes on from the checkpoint."""
    run = make_run(layout, settings)
    saved = torch.load(folder / f"saved-{dist.get_rank()}.pt", weights_only=False)
    with torch.no_grad():
        local_part(run.head.weight).copy_(saved["weight"])
    # An update of nothing makes the state that the momentum goes into.
    set_gradient(run.head.weight, torch.zeros_like(gradient(run.problem, 0)))
    plain = run.optimizer.param_groups[0]
    plain["lr"] = 0.0
    run.optimizer.step()
    plain["lr"] = 0.1
    local_part(run.optimizer.state[run.head.weight]["momentum_buffer"]).copy_(saved["momentum"])
    run.lip.load_state_dict(saved["lip"])
    return run


def killed(layout: str, settings: dict[str, Any], folder: Path, before: int) -> list[str]:
    """The victim is killed right before a collective of the third step."""
    run = restored(layout, settings, folder)
    collectives = Collectives()
    if dist.get_rank() == VICTIM:
        collectives.kill_before = before
    start = time.monotonic()
    with collectives.counted():
        error = raised_by(lambda: run.step(2))
    where = f"{layout} {settings} killed before collective {before}: "
    return left_alone(where, run, error, time.monotonic() - start, PATIENCE)


def absent(layout: str, settings: dict[str, Any], patience: float, folder: Path) -> list[str]:
    """The victim does not take the step, and is there until the other has given up."""
    run = make_run(layout, settings)
    run.step(0)
    if dist.get_rank() == VICTIM:
        end = time.monotonic() + 4 * patience
        while not (folder / f"{1 - VICTIM}.json").exists() and time.monotonic() < end:
            time.sleep(0.01)
        return []
    start = time.monotonic()
    error = raised_by(lambda: run.step(1))
    return left_alone(f"{layout} {settings} absent: ", run, error, time.monotonic() - start, 2 * patience)


def left_alone(where: str, run: Run, error: BaseException | None, seconds: float, most: float) -> list[str]:
    wrong = []
    text = str(error)
    explains = "another process is gone" in text and "last checkpoint" in text
    if not isinstance(error, lip_fast.PeerError) or not explains:
        wrong.append(f"{where}expected a PeerError that explains, got {error!r}")
    if not torch.equal(run.local, run.base[-1]):
        wrong.append(f"{where}weight differs from the base optimizer's")
    if seconds > most + 5:
        wrong.append(f"{where}waited {seconds:.0f} s")
    return wrong


def resumed(layout: str, settings: dict[str, Any], folder: Path) -> list[str]:
    run = restored(layout, settings, folder)
    run.step(2)
    run.step(3)
    final = torch.load(folder / f"final-{dist.get_rank()}.pt")
    return [] if torch.equal(run.local, final) else [f"{layout} {settings}: another end"]


# What processes observe ---------------------------------------------------------------------------------


def unlike(layout: str, settings: dict[str, Any]) -> list[str]:
    """Processes that observe nothing, other batches, or batches that do not fit."""
    wrong: list[str] = []
    victim, differ = dist.get_rank() == VICTIM, layout not in ("tensor parallel", "by feature")

    def check(name: str, change: Callable[[Run], None], expected: type | None, told: str = "") -> None:
        run = make_run(layout, settings)
        run.step(0)
        error = raised_by(lambda: change(run))
        where = f"{layout} {settings} {name}: "
        if not isinstance(error, expected or type(None)) or told not in str(error):
            wrong.append(f"{where}expected {expected} with {told!r}, got {error!r}")
        if error is not None and len(run.base) == 2 and not torch.equal(run.local, run.base[-1]):
            wrong.append(f"{where}weight differs from the base optimizer's")
        run.lip.discard()
        run.step(2)
        applied = run.lip.stats()["applied"]
        if applied != 2 + (expected is None and name != "none observe") or not alike(run):
            wrong.append(f"{where}no step afterwards, {run.lip.stats()}")
        if run.lip.stats()["skipped"]:
            wrong.append(f"{where}counted as skipped")

    def observes_nothing(run: Run) -> None:
        run.step(1, observes=not victim)

    def none_observe(run: Run) -> None:
        before = run.state()
        run.step(1, observes=False)
        if not same(run.state(), before):
            wrong.append(f"{layout} {settings}: a step that none observed changes the basis")

    def bad_target(run: Run) -> None:
        # Of all processes that see this batch.
        if victim or not differ:
            run.problem.targets[1].fill_(30)
        run.step(1)

    def bad_width(run: Run) -> None:
        if victim or not differ:
            run.problem.features[1] = run.problem.features[1][:, :5]
        run.step(1)

    def another_batch(run: Run) -> None:
        run.step(1 if not victim else 3)

    def another_size(run: Run) -> None:
        if victim:
            run.problem.features[1] = run.problem.features[1][:-2]
            run.problem.targets[1] = run.problem.targets[1][:-2]
        run.step(1)

    peer = lip_fast.PeerError
    if differ:
        check("one observes nothing", observes_nothing, None)
        told = "0..29" if victim else f"rank {VICTIM} failed"
        check("targets out of range", bad_target, ValueError if victim else peer, told)
        told = "(..., 12)" if victim else f"rank {VICTIM} failed"
        check("features of another width", bad_width, ValueError if victim else peer, told)
    else:
        check("one observes nothing", observes_nothing, peer, "expected one batch on all processes")
        check("another batch", another_batch, peer, "expected one batch on all processes")
        check("a part of the batch", another_size, peer, "expected one batch on all processes")
        check("targets out of range", bad_target, ValueError, "0..29")
        check("features of another width", bad_width, ValueError, "(..., 12)")
    check("none observe", none_observe, None)
    run = make_run(layout, AUTO)
    run.step(0, observes=False)
    if run.lip.stats()["rank"] is not None:
        wrong.append(f"{layout}: the rank is decided by a step that none observed")
    run.step(1)
    if run.lip.stats()["applied"] != 1:
        wrong.append(f"{layout}: no step after one that none observed, {run.lip.stats()}")
    return wrong


# Off the host -------------------------------------------------------------------------------------------


def off_host(layout: str, settings: dict[str, Any]) -> list[str]:
    """As where nothing is read: the step is lost and counted; only the victim raises."""
    wrong: list[str] = []
    victim = dist.get_rank() == VICTIM
    for place in ("ops.label_sums", "part_sums", "ops.sketch", "ops.warm_svd", "of_columns"):
        run = make_run(layout, settings)
        run.step(0)
        host.READABLE = frozenset()
        try:
            before, reached = run.state(), []
            if victim:
                owner, name = PLACES[place]
                with patched(owner, name, failing(place)):
                    error = raised_by(lambda: run.step(1))  # noqa: B023
            else:
                error = raised_by(lambda: run.step(1))  # noqa: B023
            reached = everywhere(error is not None)
            where = f"{layout} {settings} {place} off the host: "
            if not reached[VICTIM]:
                continue
            if not isinstance(error, FaultError if victim else type(None)):
                wrong.append(f"{where}got {error!r}")
            stats = run.lip.stats()
            counted = (stats["applied"], stats["skipped"], stats["out_of_step"])
            if counted != ((1, 0, 0) if victim else (1, 1, 1)):
                wrong.append(f"{where}{stats}")
            if not torch.equal(run.local, run.base[-1]):
                wrong.append(f"{where}weight differs from the base optimizer's")
            after = run.state()
            if not same(after["statistics"], before["statistics"]):
                wrong.append(f"{where}statistics changed")
            if not same(after["basis"], before["basis"]):
                wrong.append(f"{where}basis changed")
        finally:
            host.READABLE = _READABLE
    return wrong


_READABLE = host.READABLE


# Several heads ------------------------------------------------------------------------------------------


def two_heads(fails_in: int) -> list[str]:
    """One of two sharded heads of one optimizer fails on one process: the other head is repaired."""
    mesh = init_device_mesh("cpu", (dist.get_world_size(),))
    problems = [make_problem(30, 12), make_problem(20, 12)]
    heads = [shard(make_head(problem), mesh, [Shard(0)]) for problem in problems]
    optimizer = LIPSGD([{"params": [head.weight for head in heads], "lip_rank": 0.5}], lr=0.1)
    wrong = []
    for head, problem in zip(heads, problems, strict=True):
        set_gradient(head.weight, gradient(problem, 0))
        optimizer.observe(head, problem.features[0], problem.targets[0])
    base: list[Tensor] = []
    base_step = optimizer._base_step

    def stepping() -> None:
        base_step()
        base.extend(local_part(head.weight).clone() for head in heads)

    optimizer._base_step = stepping  # type: ignore[method-assign]
    part_sums, calls = label_sums.part_sums, [0]

    def fail_once(*args: Any, **kwargs: Any) -> Any:
        calls[0] += 1
        if calls[0] == fails_in + 1:
            raise FaultError("once")
        return part_sums(*args, **kwargs)

    victim = dist.get_rank() == VICTIM
    with patched(label_sums, "part_sums", fail_once if victim else part_sums):
        error = raised_by(optimizer.step)
    if not isinstance(error, FaultError if victim else lip_fast.PeerError):
        wrong.append(f"head {fails_in}: got {error!r}")
    for i, head in enumerate(heads):
        if torch.equal(local_part(head.weight), base[i]) != (i == fails_in):
            wrong.append(f"head {fails_in}: head {i} has another weight than expected")
    return wrong


# The driver ---------------------------------------------------------------------------------------------


def quietly() -> None:
    gc.freeze()  # forks share what there is by now
    torch.set_num_threads(1)
    warnings.simplefilter("ignore")


def each(scenario: Callable[[str, dict[str, Any]], Any], cases: list[Any], folder: Path) -> list[Any]:
    """What the processes of each case return."""
    found = []
    for i, (layout, settings) in enumerate(cases):
        world = 4 if layout == "hybrid" else 2
        children = fork(world, folder / f"{i}", lambda: scenario(layout, settings))  # noqa: B023
        found += results(children, folder / f"{i}")
    return found


def scenario_raising(folder: Path) -> list[Any]:
    cases: list[Any] = [
        ("fully sharded", EXACT),
        ("fully sharded", DECAY),
        ("by feature, other batches", TRUNCATED),
        ("fully sharded", AUTO_DECAY),
        ("hybrid", DECAY),
        ("fully sharded", PROJECTED),
        ("by feature", PROJECTED),
        ("hybrid", PROJECTED),
    ]
    return each(raising, cases, folder)


def scenario_unsound(folder: Path) -> list[Any]:
    cases: list[Any] = [
        ("tensor parallel", TRUNCATED),
        ("fully sharded", DECAY),
        ("by feature", EXACT),
        ("replicas", TRUNCATED),
        ("fully sharded", AUTO),
        ("hybrid", TRUNCATED),
        ("fully sharded", PROJECTED),
    ]
    return each(unsound, cases, folder)


def scenario_unlike(folder: Path) -> list[Any]:
    cases: list[Any] = [("tensor parallel", TRUNCATED), ("fully sharded", TRUNCATED), ("replicas", DECAY)]
    found = each(unlike, cases, folder / "unlike")
    found += each(off_host, [*cases, ("tensor parallel", PROJECTED)], folder / "off")
    for i in range(2):
        found += results(fork(2, folder / f"heads-{i}", lambda: two_heads(i)), folder / f"heads-{i}")  # noqa: B023
    return found


def scenario_killed(folder: Path) -> list[Any]:
    found: list[Any] = []
    cases = [
        ("fully sharded", TRUNCATED),
    ]
    # All of these wait at once.
    waiting = []
    for layout in ("tensor parallel", "fully sharded", "replicas"):
        at = folder / f"absent-{layout}"
        waiting.append((at, fork(2, at, lambda: absent(layout, TRUNCATED, 6, at), patience=6)))  # noqa: B023
    for i, (layout, settings) in enumerate(cases):
        at = folder / f"{i}"
        train = lambda: undisturbed(layout, settings, at)  # noqa: B023, E731
        count = results(fork(2, at, train), at)
        if not isinstance(count[0], list):
            found.append(count)
            continue
        for before in range(count[0][0]):
            here = at / f"killed-{before}"
            die = lambda: killed(layout, settings, at, before)  # noqa: B023, E731
            survivor, gone = results(fork(2, here, die), here)
            found.append(survivor if gone is None else {"raised": f"not killed: {gone}"})
        here = at / "resumed"
        found += results(fork(2, here, lambda: resumed(layout, settings, at)), here)  # noqa: B023
    for at, children in waiting:
        found += results(children, at)
    return found


def main(scenario: str, folder: str) -> None:
    quietly()
    found = globals()[f"scenario_{scenario}"](Path(folder))
    Path(folder, "found.json").write_text(json.dumps(found))


if __name__ == "__main__":
    main(*sys.argv[1:])
