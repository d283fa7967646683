"""A small model in training under torch's own wrappers, against the same model in one process."""

import copy
import re
import shutil
import tempfile
import warnings
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import torch
import torch.distributed as dist
import torch.distributed.checkpoint as dcp
from distributed.faults import raised_by
from distributed.heads import MAKERS, Problem, distance, make_head, make_problem, shard, take_step, whole
from distributed.layouts import equal_everywhere, quietly, rows_of
from torch import Tensor, nn
from torch.distributed.checkpoint.state_dict import get_state_dict, set_state_dict
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh
from torch.distributed.fsdp import MixedPrecisionPolicy, fully_shard
from torch.distributed.tensor import DTensor, Replicate, Shard, distribute_tensor
from torch.distributed.tensor.parallel import ColwiseParallel, RowwiseParallel, parallelize_module
from torch.nn.parallel import DistributedDataParallel

import lip_fast
from lip_fast import ops
from lip_fast.optim import LIPSGD, LIPAdamW

INPUTS, HIDDEN, FEATURES, ROWS, STEPS = 6, 8, 12, 24, 4
EXACT: dict[str, Any] = {"rank": 0.5}
TRUNCATED: dict[str, Any] = {"rank": 1, "tail_rank": 2}


class Model(nn.Module):
    """Returns features and logits: what LIP is to see, and what the loss is of."""

    def __init__(self, classes: int, dtype: torch.dtype = torch.float64) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(classes)
        self.backbone = nn.Sequential(
            nn.Linear(INPUTS, HIDDEN), nn.Tanh(), nn.Linear(HIDDEN, FEATURES), nn.Tanh()
        )
        self.head = nn.Linear(FEATURES, classes)
        self.double()
        with torch.no_grad():
            for p in self.parameters():
                p.copy_(0.5 * torch.randn(p.shape, generator=generator, dtype=torch.float64))
            # A gapped spectrum: rounding must not decide which directions are kept.
            U, S, Vh = torch.linalg.svd(self.head.weight, full_matrices=False)
            self.head.weight.copy_((U * 3.0 * 0.75 ** torch.arange(len(S))) @ Vh)
        self.to(dtype)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        features = self.backbone(x)
        return features, self.head(features)


class Run(NamedTuple):
    """A model under a wrapper, and how it is trained."""

    model: nn.Module
    """What is called."""
    head: nn.Linear
    data_group: Any = None
    mine: Callable[[Tensor], Tensor] = lambda rows: rows
    """The rows of a batch that this process sees."""
    averages: int = 1
    """By how many the wrapper divides the sum of the gradients."""


def batch(step: int, classes: int, dtype: torch.dtype = torch.float64) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(1000 + step)
    x = torch.randn(ROWS, INPUTS, generator=generator, dtype=torch.float64).to(dtype)
    y = torch.randint(classes, (ROWS,), generator=generator)
    y[::7] = -100
    return x, y


def make_optimizer(maker: str, run: Run, rank: Any, **settings: Any) -> tuple[Any, Any, Any]:
    """(optimizer, observe, LIP) as of :func:`distributed.heads.plugin`, of a whole model."""
    own = {"skip_nonfinite", "fused"} & settings.keys()
    options = {name: settings.pop(name) for name in own}
    weight = run.head.weight
    others = [p for p in run.model.parameters() if p is not weight]
    if maker == "plugin":
        optimizer: Any = torch.optim.SGD([*others, weight], lr=0.2, momentum=0.9, **options)
        lip = lip_fast.LIP(run.head, rank, data_group=run.data_group, **settings)
        lip.attach(optimizer)
        return optimizer, lambda x, y: lip.observe(y), lip
    kind, rate = {"sgd": (LIPSGD, 0.2), "adamw": (LIPAdamW, 0.05)}[maker]
    names = {f"lip_{name}": value for name, value in settings.items()}
    groups = [{"params": others}, {"params": [weight], "lip_rank": rank} | names]
    optimizer = kind(groups, lr=rate, data_group=run.data_group, **options)
    optimizer.watch(run.head)
    return optimizer, lambda x, y: optimizer.observe(run.head, y), optimizer.lip


def backward(run: Run, observe: Any, x: Tensor, y: Tensor, *, rows: int, early: bool = False) -> None:
    """A micro-batch of the ``rows`` labelled rows that a step has in all processes."""
    features, logits = run.model(run.mine(x))
    y = run.mine(y)
    loss = nn.functional.cross_entropy(logits, y, ignore_index=-100, reduction="sum") / rows
    if early:
        observe(features, y)
    (loss * run.averages).backward()
    if not early:
        observe(features, y)


def train(
    run: Run,
    classes: int,
    rank: Any,
    *,
    maker: str = "plugin",
    early: bool = False,
    micro: int = 1,
    before_step: Callable[[int, Any], None] = lambda step, optimizer: None,
    steps: range = range(STEPS),
    made: tuple[Any, Any, Any] | None = None,
    **settings: Any,
) -> tuple[list[Tensor], dict[str, Any]]:
    """All parameters after these steps, whole, and the counts of LIP."""
    optimizer, observe, lip = made or make_optimizer(maker, run, rank, **settings)
    dtype = next(run.model.parameters()).dtype
    for step in steps:
        x, y = batch(step, classes, dtype)
        rows = int((y >= 0).sum())
        for part in range(micro):
            backward(run, observe, x[part::micro], y[part::micro], rows=rows, early=early)
        before_step(step, optimizer)
        optimizer.step()
        optimizer.zero_grad()
    return parameters(run.model), counts(lip)


def counts(lip: Any) -> dict[str, Any]:
    stats = lip.stats()
    return stats if "steps" in stats else next(iter(stats.values()))


def parameters(model: nn.Module) -> list[Tensor]:
    return [whole(p) for p in model.parameters()]


def flat(tensors: list[Tensor]) -> Tensor:
    return torch.cat([t.flatten() for t in tensors])


# The wrappers --------------------------------------------------------------------------------------------


def alone(classes: int, dtype: torch.dtype = torch.float64) -> Run:
    model = Model(classes, dtype)
    return Run(model, model.head)


def replicas(classes: int, dtype: torch.dtype = torch.float64) -> Run:
    """DistributedDataParallel."""
    model = Model(classes, dtype)
    world = dist.get_world_size()
    wrapped = DistributedDataParallel(model)
    return Run(wrapped, model.head, dist.group.WORLD, rows_of(world, dist.get_rank(), even=True), world)


def fully_sharded(classes: int, mesh: DeviceMesh, dtype: torch.dtype = torch.float64, **how: Any) -> Run:
    """FSDP2, the head apart from the root, on a mesh of one dimension or (HSDP) two."""
    model = Model(classes, dtype)
    fully_shard(model.head, mesh=mesh, **how)
    fully_shard(model, mesh=mesh, **how)
    mine = rows_of(mesh.size(), dist.get_rank(), even=True)
    return Run(model, model.head, mesh, mine, mesh.size())


def tensor_parallel(
    classes: int, mesh: DeviceMesh, dtype: torch.dtype = torch.float64, *, by_class: bool
) -> Run:
    model = Model(classes, dtype)
    _parallelize(model, mesh, by_class=by_class)
    return Run(model, model.head)


def _parallelize(model: Model, mesh: DeviceMesh, *, by_class: bool) -> None:
    head = (
        ColwiseParallel(output_layouts=Replicate())
        if by_class
        else RowwiseParallel(input_layouts=Replicate())
    )
    plan = {"backbone.0": ColwiseParallel(), "backbone.2": RowwiseParallel(), "head": head}
    parallelize_module(model, mesh, plan)


def sharded_tensor_parallel(classes: int, mesh: DeviceMesh, *, by_class: bool, **how: Any) -> Run:
    """FSDP2 along "data" over tensor parallelism along "model", both along the same side of the head."""
    model = Model(classes)
    _parallelize(model, mesh["model"], by_class=by_class)
    side = {} if by_class else {"shard_placement_fn": lambda p: Shard(1) if p.dim() == 2 else None}
    fully_shard(model.head, mesh=mesh["data"], **side, **how)
    fully_shard(model, mesh=mesh["data"], **how)
    data = mesh["data"]
    mine = rows_of(data.size(), data.get_local_rank(), even=True)
    return Run(model, model.head, data, mine, data.size())


class Case(NamedTuple):
    name: str
    make: Callable[[int], Run]
    early: bool = False
    """Whether features are observed between forward and backward pass."""


def wrappers() -> Iterator[Case]:
    world = dist.get_world_size()
    mesh = init_device_mesh("cpu", (world,))
    yield Case("DDP", replicas)
    for reshard, early in ((True, True), (True, False), (False, True), (False, False)):
        if world == 2 or early != reshard:
            name = f"FSDP2, reshard_after_forward={reshard}, observed {'before' if early else 'after'}"
            yield Case(name, partial(fully_sharded, mesh=mesh, reshard_after_forward=reshard), early)
    # The mesh of the shards by other groups of the same processes.
    again = init_device_mesh("cpu", (world,))
    yield Case("FSDP2, another mesh", lambda c: fully_sharded(c, mesh)._replace(data_group=again))
    yield Case("FSDP2, a group", lambda c: fully_sharded(c, mesh)._replace(data_group=dist.group.WORLD))
    yield Case("FSDP2 by feature", partial(fully_sharded, mesh=mesh, shard_placement_fn=_by_feature), True)
    yield Case("TP by class", partial(tensor_parallel, mesh=mesh, by_class=True))
    yield Case("TP by feature", partial(tensor_parallel, mesh=mesh, by_class=False), True)
    if world == 4:
        names = ("data", "model")
        square = init_device_mesh("cpu", (2, 2), mesh_dim_names=names)
        yield Case("HSDP", partial(fully_sharded, mesh=square), True)
        for early in (True, False):
            for by_class in (True, False):
                make = partial(
                    sharded_tensor_parallel, mesh=square, by_class=by_class, reshard_after_forward=not early
                )
                yield Case(f"FSDP2 and TP by {'class' if by_class else 'feature'}, {early=}", make, early)
        other = init_device_mesh("cpu", (2, 2), mesh_dim_names=names)["data"]
        yield Case(
            "FSDP2 and TP by feature, another mesh",
            lambda c: sharded_tensor_parallel(c, square, by_class=False)._replace(data_group=other),
        )


def _by_feature(p: nn.Parameter) -> Shard:
    return Shard(1) if p.dim() == 2 and p.shape[1] == FEATURES else Shard(0)


# What is compared ----------------------------------------------------------------------------------------

# Classes that no number of processes divides, and fewer than processes.
COMPARED: list[tuple[int, str, dict[str, Any]]] = [
    (30, "adamw", TRUNCATED),
    (9, "plugin", EXACT | {"decay": 0.9}),
    (3, "sgd", EXACT),
]


def compare() -> dict[str, Any]:
    """For each wrapper: the distance to one process, and whether all processes end alike."""
    results = {}
    cases = list(wrappers())
    for classes, maker, settings in COMPARED:
        expected, _ = quietly(lambda: train(alone(classes), classes, maker=maker, **settings))  # noqa: B023
        start = parameters(Model(classes))
        for case in cases:
            if classes < dist.get_world_size() and case.name == "TP by class":
                continue  # torch's own optimizers refuse the bias
            run = case.make(classes)
            got, stats = train(run, classes, maker=maker, early=case.early, **settings)
            results[f"{case.name}: {classes}, {maker}"] = outcome(got, expected, stats, start)
    return results


def outcome(
    got: list[Tensor], expected: list[Tensor], stats: dict[str, Any], start: list[Tensor]
) -> dict[str, Any]:
    return {
        "distance": distance(flat(got), flat(expected)),
        "moved": distance(flat(expected), flat(start)),
        "equal": equal_everywhere(flat(got)),
        "stats": stats,
    }


def _few(classes: int = 9) -> dict[str, Run]:
    """One wrapper of each kind."""
    mesh = init_device_mesh("cpu", (dist.get_world_size(),))
    return {
        "DDP": replicas(classes),
        "FSDP2": fully_sharded(classes, mesh),
        "TP": tensor_parallel(classes, mesh, by_class=True),
    }


def micro_batches() -> dict[str, Any]:
    """Gradients accumulated over three micro-batches against the whole batch."""
    start, results = parameters(Model(9)), {}
    for maker in ("plugin", "adamw"):
        expected, _ = quietly(lambda: train(alone(9), 9, maker=maker, **EXACT))  # noqa: B023
        for name, run in _few().items():
            got, stats = train(run, 9, maker=maker, micro=3, early=True, **EXACT)
            results[f"{name}, {maker}"] = outcome(got, expected, stats, start)
    return results


def _spoil(p: Tensor, value: float) -> None:
    """Write into this process's part of a gradient."""
    assert p.grad is not None
    part = p.grad.to_local() if isinstance(p.grad, DTensor) else p.grad
    part.detach().view(-1)[0] = value


def not_finite() -> dict[str, Any]:
    """A NaN in one process's part of a gradient: a step that no process takes."""
    start, results = parameters(Model(9)), {}

    def spoil(run: Run, which: str, everywhere: bool) -> Callable[[int, Any], None]:
        def work(step: int, optimizer: Any) -> None:
            if step == 1 and (everywhere or dist.get_rank() == 1):
                _spoil(run.head.weight if which == "head" else next(run.model.parameters()), torch.nan)

        return work

    for maker, which in (("sgd", "head"), ("adamw", "backbone")):
        run = alone(9)
        expected, _ = quietly(
            lambda: train(
                run,  # noqa: B023
                9,
                maker=maker,  # noqa: B023
                before_step=spoil(run, which, True),  # noqa: B023
                skip_nonfinite=True,
                **EXACT,
            )
        )
        for name, run in _few().items():
            got, stats = train(
                run, 9, maker=maker, before_step=spoil(run, which, False), skip_nonfinite=True, **EXACT
            )
            results[f"{name}, {maker}, {which}"] = outcome(got, expected, stats, start)
    return results


def overflow() -> dict[str, Any]:
    """A step that a gradient scaler makes a fused optimizer skip, told to all processes or to one."""
    start, results = parameters(Model(9)), {}

    def found(where: Callable[[], bool]) -> Callable[[int, Any], None]:
        def work(step: int, optimizer: Any) -> None:
            optimizer.found_inf = torch.tensor(float(step == 1 and where()))
            optimizer.grad_scale = None

        return work

    for maker in ("plugin", "adamw"):
        how = {"maker": maker, "fused": True} | EXACT
        expected, _ = quietly(lambda: train(alone(9), 9, before_step=found(lambda: True), **how))  # noqa: B023
        got, stats = train(replicas(9), 9, before_step=found(lambda: True), **how)
        results[f"DDP, {maker}"] = outcome(got, expected, stats, start)
        _, stats = train(replicas(9), 9, before_step=found(lambda: dist.get_rank() == 1), **how)
        results[f"one alone, {maker}"] = {"stats": stats}
    return results


def scaler() -> dict[str, Any]:
    """A gradient scaler that finds an overflow in one process's part, with an optimizer that is not fused."""
    start, results = parameters(Model(9)), {}
    expected: list[Tensor] = []
    for name, run in {"alone": alone(9), **_few()}.items():
        optimizer, observe, lip = quietly(lambda: make_optimizer("plugin", run, **EXACT))  # noqa: B023
        scaling = torch.amp.GradScaler("cpu", init_scale=8.0)
        for step in range(STEPS):
            x, y = batch(step, 9)
            features, logits = run.model(run.mine(x))
            loss = nn.functional.cross_entropy(logits, run.mine(y), ignore_index=-100, reduction="sum")
            scaling.scale(loss * run.averages / len(y)).backward()
            observe(features, run.mine(y))
            if step == 1 and (name in ("alone", "DDP") or dist.get_rank() == 1):
                # Replicas have the same gradients, after an overflow too.
                _spoil(run.head.weight, torch.inf)
            before = scaling.get_scale()
            scaling.step(optimizer)
            scaling.update()
            if scaling.get_scale() < before:
                lip.discard()
            optimizer.zero_grad()
        got = parameters(run.model)
        expected = got if name == "alone" else expected
        results[name] = outcome(got, expected, counts(lip), start)
    return results


def mixed_precision() -> dict[str, Any]:
    """bfloat16 compute over float32 parts: the step of one process on the gradients and rows of all."""
    mesh = init_device_mesh("cpu", (dist.get_world_size(),))
    policy = MixedPrecisionPolicy(param_dtype=torch.bfloat16, reduce_dtype=torch.float32)
    results = {}
    for maker in ("plugin", "adamw"):
        for reshard in (True, False):
            run = fully_sharded(9, mesh, torch.float32, mp_policy=policy, reshard_after_forward=reshard)
            optimizer, observe, lip = make_optimizer(maker, run, 0.5)
            single = alone(9, torch.float32)
            other, _, its = quietly(lambda: make_optimizer(maker, single, 0.5))  # noqa: B023
            # What all heads saw was seen by no hook of this one.
            show = its.observe if maker == "plugin" else partial(other.observe, single.head)
            start = parameters(single.model)
            seen: list[tuple[Tensor, Tensor]] = []

            def watch(features: Tensor, targets: Tensor) -> None:
                seen.append((features.detach(), targets))  # noqa: B023
                observe(features, targets)  # noqa: B023

            for step in range(STEPS):
                x, y = batch(step, 9, torch.float32)
                backward(run, watch, x, y, rows=len(y), early=True)
                for p, q in zip(single.model.parameters(), run.model.parameters(), strict=True):
                    assert q.grad is not None
                    p.grad = whole(q.grad)
                features, targets = seen.pop()
                everyone: list[Any] = [None] * mesh.size()
                dist.all_gather_object(everyone, (features, targets))
                show(torch.cat([f for f, _ in everyone]), torch.cat([t for _, t in everyone]))
                for o in (optimizer, other):
                    o.step()
                    o.zero_grad()
            got = parameters(run.model)
            name = f"{maker}, reshard_after_forward={reshard}, {features.dtype}"
            results[name] = outcome(got, parameters(single.model), counts(lip), start)
    return results


def made_before() -> dict[str, Any]:
    """A LIP that was made of a head before ``fully_shard``, with statistics too."""
    start, results = parameters(Model(9)), {}
    mesh = init_device_mesh("cpu", (dist.get_world_size(),))
    for settings in (EXACT, EXACT | {"decay": 0.9}):
        expected, _ = quietly(lambda: train(alone(9), 9, **settings))  # noqa: B023
        model = Model(9)
        lip = lip_fast.LIP(model.head, data_group=mesh, **settings)
        fully_shard(model.head, mesh=mesh)
        fully_shard(model, mesh=mesh)
        rest = [p for p in model.parameters() if p is not model.head.weight]
        optimizer = torch.optim.SGD([*rest, model.head.weight], lr=0.2, momentum=0.9)
        lip.attach(optimizer)
        mine = rows_of(mesh.size(), dist.get_rank(), even=True)
        run = Run(model, model.head, mesh, mine, mesh.size())
        got, stats = train(run, 9, None, made=(optimizer, lip.observe, lip))
        results[str(settings)] = outcome(got, expected, stats, start)
    return results


def copies() -> dict[str, Any]:
    """Copies of optimizers with a data group go on as the originals do."""
    results = {}
    mesh = init_device_mesh("cpu", (dist.get_world_size(),))
    problem = make_problem(30)
    mine = rows_of(mesh.size(), dist.get_rank(), even=True)
    for maker in ("sgd", "adamw"):
        for name, group in (("replicas", dist.group.WORLD), ("by class", mesh)):
            head = make_head(problem)
            if name == "by class":
                shard(head, mesh, [Shard(0)], [Shard(0)])
            optimizer, observe, _ = MAKERS[maker](head, 1, tail_rank=2, data_group=group)
            take_step(problem, head, optimizer, observe, 0, mine)
            twin, other = copy.deepcopy((head, optimizer))
            for step in (1, 2):
                take_step(problem, head, optimizer, observe, step, mine)
                take_step(problem, twin, other, lambda x, y: other.observe(twin, x, y), step, mine)  # noqa: B023
            stats = counts(other.lip)
            got, expected = whole(twin.weight), whole(head.weight)
            results[f"{maker}, {name}"] = outcome([got], [expected], stats, [problem.weight])
    return results


def columns() -> dict[str, Any]:
    """The fresh columns and the basis of each process, whatever its global random state."""
    torch.manual_seed(dist.get_rank())
    drawn: list[Tensor] = []
    draw = ops.fresh_columns

    def watch(*args: Any, **settings: Any) -> Tensor:
        drawn.append(draw(*args, **settings))
        return drawn[-1]

    mesh = init_device_mesh("cpu", (dist.get_world_size(),))
    run = fully_sharded(30, mesh)
    before = torch.get_rng_state()
    made = make_optimizer("plugin", run, **TRUNCATED)
    ops.fresh_columns = watch  # type: ignore[assignment]
    try:
        train(run, 30, None, made=made)
    finally:
        ops.fresh_columns = draw
    step = torch.tensor(STEPS - 1)
    return {
        "drawn": len(drawn),
        "equal": equal_everywhere(torch.cat(drawn)) and equal_everywhere(made[2]._step.directions.basis),
        "as alone": torch.equal(drawn[-1], draw(step, FEATURES, drawn[-1].shape[1], seed=0)),
        "random state": torch.equal(before, torch.get_rng_state()),
    }


def refusals() -> dict[str, str]:
    """What is said where a data group is missing, or was not thought of."""
    mesh = init_device_mesh("cpu", (dist.get_world_size(),))
    model = fully_sharded(9, mesh).model
    said = {}
    for name, work in {
        "plugin": lambda: lip_fast.LIP(model.head, 2),
        "adamw": lambda: LIPAdamW([{"params": [model.head.weight], "lip_rank": 2}]),
    }.items():
        try:
            work()
        except ValueError as error:
            said[name] = str(error)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        lip_fast.LIP(nn.Linear(3, 4), 2)
        said["whole"] = " ".join(str(w.message) for w in caught)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        lip_fast.LIP(nn.Linear(3, 4), 2, data_group=dist.group.WORLD)
        tensor_parallel(9, mesh, by_class=True)
        said["none"] = " ".join(str(w.message) for w in caught)
    return said


# Statistics and decompositions of sharded heads -----------------------------------------------------------


def statistics() -> dict[str, float]:
    """The largest error of each method of sharded statistics, beside plain ones of every row."""
    mesh = init_device_mesh("cpu", (dist.get_world_size(),))
    mine = rows_of(mesh.size(), dist.get_rank(), even=False)
    layouts: dict[str, tuple[Any, Any, Callable[[Tensor], Tensor]]] = {
        "by class": ([Shard(0)], None, lambda rows: rows),
        "by feature": ([Shard(1)], None, lambda rows: rows),
        "by class, other rows": ([Shard(0)], mesh, mine),
        "by feature, other rows": ([Shard(1)], mesh, mine),
        "replicas, other rows": (None, dist.group.WORLD, mine),
    }
    results = {}
    for labels, classes, decay in (("indices", 9, None), ("csr", 9, 0.8), ("dense", 3, None)):
        problem = make_problem(classes, labels=labels)
        # Far from 0, and each batch a little elsewhere.
        moved = [x + 1e4 + i for i, x in enumerate(problem.features)]
        problem = problem._replace(features=moved)
        plain = lip_fast.LabelStatistics(FEATURES, classes, decay=decay)
        for x, y in zip(problem.features, problem.targets, strict=True):
            plain.update(x, y)
        for name, (placements, group, chosen) in layouts.items():
            weight = problem.weight
            if placements is not None:
                weight = distribute_tensor(weight, mesh, placements, src_data_rank=None)
            batches = [(chosen(x), chosen(y)) for x, y in zip(problem.features, problem.targets, strict=True)]
            made = lip_fast.LabelStatistics.for_head(weight, decay=decay, data_group=group)
            made.update(batches)
            errors = _errors(made, plain, problem, weight)
            results |= {f"{name}, {labels}: {what}": error for what, error in errors.items()}
    return results


def _errors(
    made: lip_fast.LabelStatistics, plain: lip_fast.LabelStatistics, problem: Problem, weight: Tensor
) -> dict[str, float]:
    U, _, Vh = torch.linalg.svd(problem.weight, full_matrices=False)
    A, bias = U.contiguous(), problem.bias
    sharded = isinstance(weight, DTensor) and weight.placements[0] == Shard(0)
    if sharded:
        A = distribute_tensor(A, weight.device_mesh, [Shard(0)], src_data_rank=None)
        bias = distribute_tensor(bias, weight.device_mesh, [Shard(0)], src_data_rank=None)
    state, expected = made.state_dict(), plain.state_dict()
    errors = {
        "C": distance(whole(state["C"]), expected["C"]),
        "G": distance(state["G"], expected["G"]),
        "shift": distance(state["shift"], expected["shift"]),
        "refit": distance(made.refit(A, Vh.mT, bias), plain.refit(U, Vh.mT, problem.bias)),
    }
    alphas = [0.1, 10.0]
    paths = made.ridge_path(alphas), plain.ridge_path(alphas)
    errors["ridge"] = max(
        max(distance(whole(a.M), b.M), distance(whole(a.bias), b.bias)) for a, b in zip(*paths, strict=True)
    )
    x = problem.features[0]
    if problem.targets[0].dim() == 1:
        heads = made.gaussian(0.5, 0.05), plain.gaussian(0.5, 0.05)
        errors["gaussian"] = max(distance(whole(a), b) for a, b in zip(*heads, strict=True))
        families = made.gaussian_path(alphas, [0.0, 0.4]), plain.gaussian_path(alphas, [0.0, 0.4])
        paths = families
        errors["gaussian path"] = max(
            max(distance(whole(a.M), b.M), distance(whole(a.bias), b.bias))
            for a, b in zip(*families, strict=True)
        )
    else:
        # Their weights do not sum to 1: each process says so.
        told = [raised_by(lambda: s.gaussian()) for s in (made, plain)]  # noqa: B023
        errors["gaussian refused"] = (
            0.0 if str(told[0]) == str(told[1]) and "sum to 1" in str(told[0]) else 1.0
        )
    both = zip(paths[0].logits(x), paths[1].logits(x), strict=True)
    errors["logits"] = max(distance(whole(a), b) for a, b in both)
    other = lip_fast.LabelStatistics.for_head(weight, decay=plain.decay)
    other.load_state_dict(state)
    same = torch.equal(other.C, made.C) and torch.equal(other.G, made.G)
    # Also of a state that was whole.
    other.load_state_dict(plain.state_dict())
    errors["state"] = 0.0 if same else 1.0
    other.merge(made)
    errors["merge"] = distance(whole(other.state_dict()["C"]), 2 * expected["C"])
    return errors


def decompositions() -> dict[str, Any]:
    """``randomized_svd`` of DTensors, with generators in another state on each process."""
    world = dist.get_world_size()
    # Of four processes each part lies on two of them.
    mesh = init_device_mesh("cpu", (2, world // 2))
    results = {}
    for shape in ((50, 21), (21, 50), (3, 21)):
        M = make_problem(*shape).weight
        k = min(4, *shape)
        U0, S0, Vh0 = torch.linalg.svd(M, full_matrices=False)
        best = (U0[:, :k] * S0[:k]) @ Vh0[:k]
        for placement in (Shard(0), Shard(1), Replicate()):
            D = distribute_tensor(M, mesh, [placement, Replicate()], src_data_rank=None)
            for name, settings in {
                "exact": {"oversample": 50},
                "truncated": {"n_iter": 6},
                "warm": {"basis": Vh0[:k].mT.contiguous(), "n_iter": 0},
                "own columns": {"n_iter": 6, "generator": torch.Generator().manual_seed(dist.get_rank())},
            }.items():
                U, S, Vh = lip_fast.randomized_svd(D, k, **settings)  # type: ignore[arg-type]
                rows = placement if placement == Shard(0) else Replicate()
                cols = placement if placement == Shard(1) else Replicate()
                placed = [t.placements[0] for t in (U, S, Vh)] == [rows, Replicate(), cols]  # type: ignore[attr-defined]
                U, S, Vh = whole(U), whole(S), whole(Vh)
                eye = torch.eye(k, dtype=M.dtype)
                results[f"{shape}, {placement}, {name}"] = {
                    "distance": distance((U * S) @ Vh, best),
                    "values": distance(S, S0[:k]),
                    "orthonormal": float(max((U.mT @ U - eye).abs().max(), (Vh @ Vh.mT - eye).abs().max())),
                    "placed": placed,
                    "equal": equal_everywhere(torch.cat([U.flatten(), S, Vh.flatten()])),
                }
    return results


# The guide -----------------------------------------------------------------------------------------------


class Classifier(Model):
    """Returns the logits alone, as models do."""

    def forward(self, x: Tensor) -> Tensor:  # type: ignore[override]
        return super().forward(x)[1]


GUIDE = Path(__file__).parents[2] / "docs" / "sharding.md"


def recipes() -> dict[str, Any]:
    """The programs of docs/sharding.md, each with its loop, then saved and loaded."""
    loop, *made, save, load = re.findall(
        r"^```python\n(.*?)^```", GUIDE.read_text(), re.DOTALL | re.MULTILINE
    )
    folder: list[Any] = [tempfile.mkdtemp() if dist.get_rank() == 0 else None]
    dist.broadcast_object_list(folder)
    results = {}
    # From the first step on: there are three.
    made = [
        recipe.replace("start=500", "start=0").replace('"lip_start": 500', '"lip_start": 0')
        for recipe in made
    ]
    for i, recipe in enumerate(made):
        names: dict[str, Any] = globals() | {"device": "cpu", "model": Classifier(8), "dcp": dcp}
        names |= {"get_state_dict": get_state_dict, "set_state_dict": set_state_dict}
        exec(recipe, names)
        place = 0
        if "data_group" in recipe:
            place = names["mesh"]["data"].get_local_rank() if '["data"]' in recipe else dist.get_rank()
        seen = [batch(10 * step + place, 8) for step in range(3)]
        exec(loop, names | {"loader": seen[:2]})
        lip = names.get("lip", getattr(names["optimizer"], "lip", None))
        names |= {"lip": lip, "path": Path(folder[0], str(i))}
        exec(save, names)
        exec(loop, names | {"loader": seen[2:]})
        end = flat(parameters(names["model"]))
        exec(load, names)
        exec(loop, names | {"loader": seen[2:]})
        got = flat(parameters(names["model"]))
        stats = counts(lip)
        results[recipe] = {
            "equal": equal_everywhere(got),
            "same": torch.equal(got, end),
            "stats": stats,
        }
    dist.barrier()
    if dist.get_rank() == 0:
        shutil.rmtree(folder[0])
    return results


# What depends on the number of processes, and what is as well seen of two or of four.
MANY = (compare, not_finite, made_before, columns, statistics, decompositions)
TWO = (micro_batches, overflow, scaler, mixed_precision, copies, refusals)
FOUR = (recipes,)


def everything() -> dict[str, Any]:
    parts = (*MANY, *(TWO if dist.get_world_size() == 2 else FOUR))
    return {part.__name__: part() for part in parts}
