"""What breaks an SVD in a post-step hook does not break LIP in a group, and copies keep it."""

import copy
import gc
import io
import pickle
import weakref
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed.checkpoint as dcp
from capture_runs import same
from contract.changed_bytes import ChangedBytes
from contract.runs import EXACT, KINDS, TRACKED, Run
from contract.traps import TRAPS
from optim.twins import IMPLEMENTATIONS, implementations_of, settings
from torch import Tensor, nn
from torch.distributed.checkpoint.state_dict import get_optimizer_state_dict, get_state_dict, set_state_dict
from torch.distributed.checkpoint.stateful import Stateful

from lip_fast import LIP
from lip_fast.optim import LIPSGD, LIPAdamW, LIPNAdam

pytestmark = [
    pytest.mark.contract,
    # Without a process group, which it does not need, torch says that it takes this for a single process.
    pytest.mark.filterwarnings("ignore:torch.distributed is disabled"),
]

OURS = {
    "LIPSGD": ("sgd", LIPSGD),
    "LIPSGD-momentum": ("momentum", LIPSGD),
    "LIPAdamW": ("adamw", LIPAdamW),
    "LIPNAdam": ("nadam", LIPNAdam),
}
OPTIMIZERS = [
    f"{kind} {implementation}"
    for kind, (_, optimizer) in OURS.items()
    # torch updates plainly, or in one kernel that may skip the update inside.
    for implementation in ("for-loop", "fused")
    if IMPLEMENTATIONS[implementation] in implementations_of(optimizer)
]
OPTIONS = {"exact": EXACT, "tracked": TRACKED}


class InGroup:
    """A LIP of a group, used as one that is attached."""

    def __init__(self, head: nn.Linear, **options: Any) -> None:
        self.head, self.options = head, options

    def attach(self, optimizer: torch.optim.Optimizer) -> None:
        """Move the weight to a group of its own, with a LIP."""
        weight = self.head.weight
        group = optimizer.param_groups[0]
        group["params"] = [p for p in group["params"] if p is not weight]
        optimizer.add_param_group({"params": [weight], **settings(self.options)})
        self.optimizer = optimizer

    def observe(self, features: Tensor, targets: Tensor) -> None:
        self.optimizer.observe(self.head, features, targets)

    def state_dict(self) -> dict[str, Any]:
        (state,) = self.optimizer.lip.state_dict().values()
        return state

    def stats(self) -> dict[str, Any]:
        (stats,) = self.optimizer.lip.stats().values()
        return stats

    def statistics(self) -> dict[str, Tensor]:
        statistics = self.state_dict()["statistics"]
        return {"gram": statistics["G"], "cross": statistics["C"]}


@pytest.fixture(autouse=True)
def _our_optimizers(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(KINDS, "nadam", (torch.optim.NAdam, {"lr": 0.01}))
    for name, (kind, optimizer) in OURS.items():
        monkeypatch.setitem(KINDS, name, (optimizer, KINDS[kind][1]))


def _base(name: str) -> str:
    kind, implementation = name.split()
    return f"{OURS[kind][0]} {implementation}"


def _run(name: str, options: dict[str, Any], steps: int = 0, **more: Any) -> Run:
    return Run(name, lambda head: InGroup(head, **options), **more).steps(0, steps)


# The LIP of a copied optimizer is a copy: a plug-in would have to be attached to it. The optimizer is its own
# inner one: there is nothing to attach to.
SAME_AS_A_PLUG_IN = [trap for trap in TRAPS if trap not in ("deepcopy", "pickle", "attaching to a wrapper")]


@pytest.mark.parametrize("name", OPTIMIZERS)
@pytest.mark.parametrize("trap", SAME_AS_A_PLUG_IN)
@pytest.mark.parametrize("options", OPTIONS.values(), ids=OPTIONS)
def test_lip_in_a_group_passes(trap: str, name: str, options: dict, weights: ChangedBytes) -> None:
    if trap == "cast of the state" and "NAdam" in name:
        pytest.skip("torch casts the mu_product of its NAdam to the dtype of the parameters, too")
    TRAPS[trap].check(lambda head: InGroup(head, **options), name, weights)


@pytest.mark.parametrize("name", OPTIMIZERS)
@pytest.mark.parametrize("options", OPTIONS.values(), ids=OPTIONS)
def test_a_run_is_that_of_a_plug_in(name: str, options: dict, weights: ChangedBytes) -> None:
    run, expected = _run(name, options), Run(_base(name), lambda head: LIP(head, **options))
    for i in range(5):
        run.step(i)
        expected.step(i)
        weights.check(run.weights, expected.weights)
    assert run.plugin.stats() == expected.plugin.stats()
    assert run.plugin.stats()["applied"] == 5


# Copies -------------------------------------------------------------------------------------------------

COPIES = {"deepcopy": copy.deepcopy, "pickle": lambda value: pickle.loads(pickle.dumps(value))}


def _copy_of(run: Run, model: nn.Module, optimizer: torch.optim.Optimizer) -> Run:
    """A run of what was copied, on the batches of ``run``."""
    other = copy.copy(run)
    other.model, other.optimizer = model, optimizer
    other.plugin = InGroup(model.head)
    other.plugin.optimizer = optimizer
    return other


@pytest.mark.parametrize("name", OPTIMIZERS)
@pytest.mark.parametrize("options", OPTIONS.values(), ids=OPTIONS)
@pytest.mark.parametrize("duplicate", COPIES.values(), ids=COPIES)
def test_copies_go_on_with_lip_to_the_same_bits(
    duplicate: Callable[[Any], Any], options: dict, name: str, weights: ChangedBytes
) -> None:
    run = _run(name, options, 2)
    run.observe(2)  # waits for a step, in both
    copied = _copy_of(run, *duplicate((run.model, run.optimizer)))
    alone = duplicate(run.optimizer)
    before = run.weights
    for i in (2, 3, 4):
        if i > 2:
            copied.observe(i)
        copied.backward(i)
        copied.update()
    weights.check(run.weights, before, "steps of a copy changed the weights of the original")
    for i in (2, 3, 4):
        if i > 2:
            run.observe(i)
        run.backward(i)
        run.update()
    weights.check(copied.weights, run.weights, "the copy is another run")
    assert same(copied.optimizer.lip.state_dict(), run.optimizer.lip.state_dict())
    assert copied.plugin.stats()["applied"] == 5
    # Of the optimizer alone: its parameters are copies too, and the observation is still there.
    assert len(next(iter(alone.lip.state_dict().values()))["pending"]) == 1


@pytest.mark.parametrize("duplicate", COPIES.values(), ids=COPIES)
def test_a_copy_of_the_optimizer_alone_acts_on_its_own_parameters(
    duplicate: Callable[[Any], Any], weights: ChangedBytes
) -> None:
    run, expected = _run("LIPAdamW fused", EXACT, 2), _run("LIPAdamW fused", EXACT, 5)
    optimizer = duplicate(run.optimizer)
    (weight,) = optimizer.param_groups[1]["params"]
    head = nn.Linear(*weight.shape[::-1], bias=False, device="meta")
    head.weight = weight
    before, copied = run.weights, weight.detach().clone()
    optimizer.observe(head, torch.ones(3, weight.shape[1]), torch.tensor([0, 1, 2]))
    weight.grad = torch.zeros_like(weight)
    optimizer.step()
    weights.check(run.weights, before, "a step of the copy changed the original")
    assert not torch.equal(weight, copied)
    with pytest.raises(ValueError, match="whose weight is in a group"):
        optimizer.observe(run.model.head, torch.ones(3, weight.shape[1]), torch.tensor([0, 1, 2]))
    weights.check(run.steps(2, 5).weights, expected.weights, "the copy changed the run of the original")


@pytest.mark.parametrize("duplicate", COPIES.values(), ids=COPIES)
def test_copies_outlive_the_original_and_do_not_hold_it(duplicate: Callable[[Any], Any]) -> None:
    run = _run("LIPAdamW fused", TRACKED, 2)
    copied = _copy_of(run, *duplicate((run.model, run.optimizer)))
    gone = [weakref.ref(x) for x in (run.optimizer, run.model, run.model.head.weight)]
    gc.disable()  # without the collector: no cycle keeps a model in memory
    try:
        run.model = run.optimizer = run.plugin = None
        del run
        assert [ref() for ref in gone] == [None] * 3
    finally:
        gc.enable()
    copied.step(2)
    assert copied.plugin.stats()["applied"] == 3
    # The weight of the copy is that of its LIP.
    with pytest.raises(ValueError, match="no other LIP acts on"):
        LIP(copied.model.head, 3).attach(copied.optimizer)


# Checkpoints --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_distributed_states_of_the_optimizer_are_torchs_and_the_settings(name: str) -> None:
    run, plain = _run(name, TRACKED, 2), Run(_base(name)).steps(0, 2)
    run.observe(2)
    before, pending = run.weights, run.plugin.state_dict()["pending"]
    state = get_optimizer_state_dict(run.model, run.optimizer)
    expected = get_optimizer_state_dict(plain.model, plain.optimizer)
    assert {p: s.keys() for p, s in state["state"].items()} == {
        p: s.keys() for p, s in expected["state"].items()
    }
    rest, own = state["param_groups"]
    assert own["params"] == ["head.weight"]
    assert (own["lip_rank"], rest["lip_rank"]) == (TRACKED["rank"], None)
    for group in (rest, own):
        scalars = {k: v for k, v in group.items() if k != "params" and not k.startswith("lip_")}
        assert scalars == {k: v for k, v in expected["param_groups"][0].items() if k != "params"}
    get_state_dict(run.model, run.optimizer)
    assert same(run.weights, before)
    assert same(run.plugin.state_dict()["pending"], pending)
    assert len(pending) == 1


def _by_file(run: Run, fresh: Run, folder: Path) -> None:
    buffer = io.BytesIO()
    lip = run.optimizer.lip.state_dict()
    states = {"model": run.model.state_dict(), "optimizer": run.optimizer.state_dict(), "lip": lip}
    torch.save(states, buffer)
    buffer.seek(0)
    states = torch.load(buffer, weights_only=True)
    fresh.model.load_state_dict(states["model"])
    fresh.optimizer.load_state_dict(states["optimizer"])
    fresh.optimizer.lip.load_state_dict(states["lip"])


class _ModelAndOptimizer:
    """As torch's recipe for distributed checkpoints has it."""

    def __init__(self, run: Run) -> None:
        self.run = run

    def state_dict(self) -> dict[str, Any]:
        model, optimizer = get_state_dict(self.run.model, self.run.optimizer)
        return {"model": model, "optimizer": optimizer}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        set_state_dict(
            self.run.model,
            self.run.optimizer,
            model_state_dict=state["model"],
            optim_state_dict=state["optimizer"],
        )


def _distributed(run: Run, fresh: Run, folder: Path) -> None:
    assert isinstance(run.optimizer.lip, Stateful)
    dcp.save({"app": _ModelAndOptimizer(run), "lip": run.optimizer.lip}, checkpoint_id=folder)
    dcp.load({"app": _ModelAndOptimizer(fresh), "lip": fresh.optimizer.lip}, checkpoint_id=folder)


@pytest.mark.parametrize("name", OPTIMIZERS)
@pytest.mark.parametrize("options", OPTIONS.values(), ids=OPTIONS)
@pytest.mark.parametrize("checkpoint", [_by_file, _distributed], ids=["file", "distributed"])
@pytest.mark.parametrize("shown", ["before", "after", "pending"])
def test_a_fresh_optimizer_goes_on_to_the_same_bits(
    checkpoint: Callable[[Run, Run, Path], None],
    options: dict,
    name: str,
    shown: str,
    tmp_path: Path,
    weights: ChangedBytes,
) -> None:
    run, fresh = _run(name, options, 3), _run(name, options, 1 if shown == "after" else 0, seed=7)
    if shown == "pending":
        run.observe(3)
    checkpoint(run, fresh, tmp_path)
    weights.check(fresh.weights, run.weights)
    assert same(fresh.optimizer.lip.state_dict(), run.optimizer.lip.state_dict())
    for r in (run, fresh):
        if shown != "pending":
            r.observe(3)
        r.backward(3)
        r.update()
        r.steps(4, 6)
    weights.check(fresh.weights, run.weights, "the resumed run is another")
    assert same(fresh.optimizer.lip.state_dict(), run.optimizer.lip.state_dict())
    assert same(fresh.optimizer.state_dict(), run.optimizer.state_dict())
    assert fresh.plugin.stats()["applied"] == 6


# Mixed precision ----------------------------------------------------------------------------------------


def _scaled(run: Run, batches: list[int], *, overflow: set[int], unscale: bool) -> Iterator[float]:
    """Steps through a scaler; the scale after each."""
    scaler = torch.amp.GradScaler("cpu", init_scale=4.0)
    for step, i in enumerate(batches):
        run.observe(i)
        run.backward(i, scaler.scale)
        if step in overflow:
            run.model.body.weight.grad[0, 0] = torch.inf if step % 2 else torch.nan
        if unscale:
            scaler.unscale_(run.optimizer)
        scaler.step(run.optimizer)
        scaler.update()
        run.optimizer.zero_grad()
        yield scaler.get_scale()


@pytest.mark.parametrize("skip", [False, True], ids=["", "skip_nonfinite"])
@pytest.mark.parametrize("unscale", [False, True], ids=["", "unscaled"])
@pytest.mark.parametrize("options", OPTIONS.values(), ids=OPTIONS)
@pytest.mark.parametrize("name", ["LIPSGD-momentum", "LIPAdamW"])
def test_a_scaler_leaves_scale_and_overflow_to_a_fused_optimizer(
    name: str, options: dict, unscale: bool, skip: bool, weights: ChangedBytes
) -> None:
    name = f"{name} fused"
    run = _run(name, options, skip_nonfinite=skip)
    assert run.optimizer._step_supports_amp_scaling
    batches, overflow = [0, 1, 7, 2, 8, 3], {2, 4}
    scales = list(_scaled(run, batches, overflow=overflow, unscale=unscale))
    assert scales == [4.0, 4.0, 2.0, 2.0, 1.0, 1.0]
    assert not hasattr(run.optimizer, "found_inf")
    assert not hasattr(run.optimizer, "grad_scale")
    # The scale is a power of two: the gradients come back to the bits that they have without it.
    if options is EXACT:  # the random columns of the other are those of the step's number
        weights.check(run.weights, _run(name, options, 4).weights)
    stats = run.plugin.stats()
    assert (stats["steps"], stats["applied"], stats["skipped"], stats["not_finite"]) == (6, 4, 2, 0)
    plugged = Run(_base(name), lambda head: LIP(head, **options))
    assert list(_scaled(plugged, batches, overflow=overflow, unscale=unscale)) == scales
    weights.check(run.weights, plugged.weights, "another run than that of a plug-in")


@pytest.mark.parametrize("name", ["LIPSGD foreach", "LIPAdamW for-loop"])
def test_a_scaler_leaves_out_steps_of_other_optimizers(name: str, weights: ChangedBytes) -> None:
    run = _run(name, EXACT)
    assert list(_scaled(run, [0, 1, 2], overflow={1}, unscale=False)) == [4.0, 2.0, 2.0]
    plugged = Run(_base(name), lambda head: LIP(head, **EXACT))
    assert list(_scaled(plugged, [0, 1, 2], overflow={1}, unscale=False)) == [4.0, 2.0, 2.0]
    weights.check(run.weights, plugged.weights)
    # What was observed before the step that is none counts with the batch of the next.
    assert run.plugin.stats() == plugged.plugin.stats()
    assert run.plugin.stats()["applied"] == 2
