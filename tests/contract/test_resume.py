"""A run that is saved and goes on elsewhere ends with the bits of one that was never interrupted."""

import copy
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed.checkpoint as dcp
from capture_runs import same
from contract.changed_bytes import ChangedBytes
from contract.checkpoints import (
    FORMATS,
    MICRO_BATCHES,
    SCHEDULERS,
    TrainingRun,
    load_distributed,
    start_saving,
)
from contract.runs import EXACT, OPTIMIZERS, TRACKED, L, N, Q

from lip_fast import LIP

pytestmark = [
    pytest.mark.contract,
    # Without a process group, which it does not need, torch says that it takes this for a single process.
    pytest.mark.filterwarnings("ignore:torch.distributed is disabled"),
    pytest.mark.filterwarnings("ignore:rest=.drop. removes"),
]

OPTIONS: dict[str, dict[str, Any]] = {
    "exact": {"rank": 5},
    "exact, decay": EXACT,
    "tracked": {"rank": 5, "tail_rank": 4},
    "tracked, decay": TRACKED,
    "tracked, drop": {"rank": 5, "tail_rank": 4, "rest": "drop"},
    "zero": {"rank": 5, "tail": "zero"},
    "every second": TRACKED | {"every": 2},
    "fraction": {"rank": 0.2, "tail_rank": 4, "clip": False},
    "auto, decided": {"rank": "auto", "tail_rank": 3},
    "auto, not yet decided": {"rank": "auto", "tail_rank": 3, "start": 3, "decay": 0.9},
    "not yet started": TRACKED | {"start": 3},
}
# Between two steps, and after one and two of the three micro-batches of a step.
POSITIONS = [2 * MICRO_BATCHES, 2 * MICRO_BATCHES + 1, 2 * MICRO_BATCHES + 2]
END = 6 * MICRO_BATCHES


def _check(
    form: str,
    position: int,
    folder: Path,
    weights: ChangedBytes,
    *,
    name: str = "adamw fused",
    **options: Any,
) -> None:
    save, load = FORMATS[form]
    expected = TrainingRun(name, **options).go(END)
    run = TrainingRun(name, **options).go(position)
    save(run, folder)
    assert len(run.plugin.state_dict()["pending"]) == position % MICRO_BATCHES
    resumed = TrainingRun(name, seed=7, **options)
    load(resumed, folder)
    assert same(resumed.state, run.state)
    resumed.go(END)
    weights.check(resumed.weights, expected.weights, "the resumed run is another")
    assert same(resumed.state, expected.state)
    weights.check(run.go(END).weights, expected.weights, "the run that was saved is another")


@pytest.mark.parametrize("form", FORMATS)
@pytest.mark.parametrize("name", OPTIMIZERS)
@pytest.mark.parametrize("position", POSITIONS)
def test_optimizers(form: str, position: int, name: str, tmp_path: Path, weights: ChangedBytes) -> None:
    _check(form, position, tmp_path, weights, name=name, lip=TRACKED)


@pytest.mark.parametrize("form", FORMATS)
@pytest.mark.parametrize("options", OPTIONS.values(), ids=OPTIONS)
@pytest.mark.parametrize("position", POSITIONS)
def test_options(form: str, position: int, options: dict, tmp_path: Path, weights: ChangedBytes) -> None:
    _check(form, position, tmp_path, weights, lip=options)


@pytest.mark.parametrize("form", FORMATS)
@pytest.mark.parametrize("scheduler", SCHEDULERS)
@pytest.mark.parametrize("position", POSITIONS[1:])
def test_schedules(form: str, position: int, scheduler: str, tmp_path: Path, weights: ChangedBytes) -> None:
    _check(form, position, tmp_path, weights, name="momentum foreach", scheduler=scheduler, lip=TRACKED)


@pytest.mark.parametrize("form", FORMATS)
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float64], ids=str)
@pytest.mark.parametrize("options", [EXACT, TRACKED, {"rank": "auto"}], ids=["exact", "tracked", "auto"])
@pytest.mark.parametrize("name", ["sgd foreach", "adamw fused"])
def test_dtypes(
    form: str, name: str, options: dict, dtype: torch.dtype, tmp_path: Path, weights: ChangedBytes
) -> None:
    for position in POSITIONS[:2]:
        folder = tmp_path / str(position)
        folder.mkdir()
        _check(form, position, folder, weights, name=name, dtype=dtype, lip=options)


@pytest.fixture
def process_group(tmp_path: Path) -> Iterator[None]:
    """A world of one process."""
    store = torch.distributed.FileStore(str(tmp_path / "store"), 1)
    torch.distributed.init_process_group("gloo", store=store, rank=0, world_size=1)
    yield
    torch.distributed.destroy_process_group()


@pytest.mark.usefixtures("process_group")
@pytest.mark.parametrize("position", POSITIONS)
def test_in_a_process_group(position: int, tmp_path: Path, weights: ChangedBytes) -> None:
    _check("distributed", position, tmp_path / "checkpoint", weights, lip=TRACKED)


@pytest.mark.usefixtures("process_group")
def test_saved_while_the_run_goes_on(tmp_path: Path, weights: ChangedBytes) -> None:
    run = TrainingRun("adamw fused", lip=TRACKED).go(POSITIONS[2])
    saved = start_saving(run, tmp_path / "checkpoint")
    run.go(END)
    saved.result()
    resumed = TrainingRun("adamw fused", lip=TRACKED, seed=7)
    load_distributed(resumed, tmp_path / "checkpoint")
    assert resumed.position == POSITIONS[2]
    weights.check(resumed.go(END).weights, run.weights)
    assert same(resumed.state, run.state)


@pytest.mark.parametrize("form", FORMATS)
@pytest.mark.parametrize("options", OPTIONS.values(), ids=OPTIONS)
def test_a_run_that_went_on_goes_back(
    form: str, options: dict, tmp_path: Path, weights: ChangedBytes
) -> None:
    save, load = FORMATS[form]
    run = TrainingRun("adamw fused", lip=options).go(POSITIONS[1])
    save(run, tmp_path)
    expected = run.go(END).weights
    run.go(END + 2)  # pending observations and gradients of a later step
    load(run, tmp_path)
    weights.check(run.go(END).weights, expected)


@pytest.mark.parametrize("used", [False, True], ids=["never attached", "attached before"])
@pytest.mark.parametrize("form", FORMATS)
def test_lip_is_loaded_before_it_is_attached(
    form: str, used: bool, tmp_path: Path, weights: ChangedBytes
) -> None:
    save, load = FORMATS[form]
    run = TrainingRun("adamw fused", lip=TRACKED).go(POSITIONS[2])
    save(run, tmp_path)
    resumed = TrainingRun("adamw fused", lip=TRACKED, seed=7)
    resumed.handle.remove()
    if not used:
        resumed.plugin = LIP(resumed.model.head, **TRACKED)
    load(resumed, tmp_path)
    resumed.plugin.attach(resumed.optimizer)
    assert same(resumed.state, run.state)
    weights.check(resumed.go(END).weights, run.go(END).weights)


def test_a_loaded_state_is_a_copy(weights: ChangedBytes) -> None:
    run = TrainingRun("adamw fused", lip=TRACKED).go(POSITIONS[2])
    resumed = TrainingRun("adamw fused", lip=TRACKED, seed=7)
    state = copy.deepcopy(run.plugin.state_dict())
    resumed.plugin.load_state_dict(state)
    assert state["pending"]
    state["pending"][0]["features"].zero_()
    state["subspace"]["basis"][0].zero_()
    state["statistics"]["C"].zero_()
    assert same(resumed.plugin.state_dict(), run.plugin.state_dict())


def test_a_basis_of_another_precision_keeps_its_digits() -> None:
    lips = []
    for dtype in (torch.float32, torch.float64):
        run = TrainingRun("adamw fused", lip=TRACKED).go(POSITIONS[1])
        if dtype == torch.float64:
            run.model.double()
            basis = run.plugin._step.directions.basis
            run.plugin._step.directions.basis = basis.double() + 1e-12
        lips.append(run.plugin)
    single, double = lips
    expected = double.state_dict()["subspace"]["basis"][0]
    state = single.state_dict()
    state["subspace"]["basis"] = (expected,)
    single.load_state_dict(state)
    assert torch.equal(single.state_dict()["subspace"]["basis"][0], expected)


@pytest.mark.parametrize("form", FORMATS)
def test_rows_of_a_larger_tensor_are_pending(form: str, tmp_path: Path, weights: ChangedBytes) -> None:
    save, load = FORMATS[form]
    run, resumed = (TrainingRun("adamw fused", lip=EXACT, seed=seed).go(3 * seed) for seed in (1, 0))
    g = torch.Generator().manual_seed(0)
    features = torch.randn(2 * N, 2 * Q, generator=g)
    y = torch.randint(0, L, (2, N), generator=g)
    run.plugin.observe(features[::2, :Q], y[0])
    run.plugin.observe(features[N:, ::2], y[1])
    run.plugin.observe(features[:N, :Q].mT.contiguous().mT, y[0])
    save(run, tmp_path)
    load(resumed, tmp_path)
    assert same(resumed.state, run.state)
    for r in (run, resumed):
        r.go(12)
    weights.check(resumed.weights, run.weights)


def test_the_state_has_the_same_keys_whatever_has_happened() -> None:
    def keys(state: Any) -> Any:
        return {key: keys(value) for key, value in state.items()} if isinstance(state, dict) else None

    for options in OPTIONS.values():
        run = TrainingRun("adamw fused", lip=options)
        fresh = keys(run.plugin.state_dict())
        for position in POSITIONS:
            assert keys(run.go(position).plugin.state_dict()) == fresh


def test_a_checkpoint_of_another_decay_is_refused_by_the_loader(tmp_path: Path) -> None:
    run = TrainingRun("adamw fused", lip=EXACT).go(MICRO_BATCHES)
    dcp.save({"lip": run.plugin}, checkpoint_id=tmp_path)
    other = TrainingRun("adamw fused", lip={"rank": 5}).go(MICRO_BATCHES)
    before = other.state
    with pytest.raises(dcp.api.CheckpointException, match=r"Missing key.*lip\.statistics"):
        dcp.load({"lip": other.plugin}, checkpoint_id=tmp_path)
    assert same(other.state, before)


def test_the_state_is_loaded_by_keyword(weights: ChangedBytes) -> None:
    run = TrainingRun("adamw fused", lip=TRACKED).go(MICRO_BATCHES)
    other = TrainingRun("adamw fused", lip=TRACKED)
    before = other.weights
    other.plugin.load_state_dict(state_dict=run.plugin.state_dict())
    assert same(other.plugin.state_dict(), run.plugin.state_dict())
    weights.check(other.weights, before)
