"""Many processes in one: every rank's tensors side by side, for worlds that no test machine has."""

from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
import torch.distributed as dist
from distributed.heads import distance, make_head, make_problem, shard, train
from torch import Tensor
from torch.distributed._local_tensor import LocalTensor, LocalTensorMode
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.tensor import Replicate, Shard
from torch.testing._internal.distributed.fake_pg import FakeStore

from lip_fast import ops
from lip_fast.sharded import decompose, label_sums

pytestmark = [
    pytest.mark.filterwarnings("ignore::UserWarning:torch.*"),
    pytest.mark.filterwarnings("ignore:Sparse CSR tensor support"),
]


@pytest.fixture
def world(request: pytest.FixtureRequest) -> Iterator[int]:
    dist.init_process_group("fake", store=FakeStore(), rank=0, world_size=request.param)
    yield request.param
    dist.destroy_process_group()


def by_rank(function: Callable[..., Any]) -> Callable[..., Any]:
    """``function`` for each rank on its plain tensors: shapes that differ between ranks are no numbers."""

    def wrapper(*args: Any, **kwargs: Any) -> Any:
        flat, spec = torch.utils._pytree.tree_flatten((args, kwargs))
        ranks = next((a._ranks for a in flat if isinstance(a, LocalTensor)), None)
        if ranks is None:
            return function(*args, **kwargs)
        results = {}
        for rank in sorted(ranks):
            own = [_on_rank(a, rank) for a in flat]
            mine, named = torch.utils._pytree.tree_unflatten(own, spec)
            with torch.distributed._local_tensor.maybe_disable_local_tensor_mode():
                results[rank] = function(*mine, **named)
        return _together(results)

    return wrapper


def _on_rank(value: Any, rank: int) -> Any:
    if isinstance(value, LocalTensor):
        return value._local_tensors[rank]
    if isinstance(value, torch.SymInt):
        return value.node._local_ints[rank]
    return value


def _together(results: dict[int, Any]) -> Any:
    some = next(iter(results.values()))
    if isinstance(some, Tensor):
        # All ranks with the strides of the first, as the mode assumes.
        return LocalTensor({rank: result.contiguous() for rank, result in results.items()})
    parts = [_together({rank: result[i] for rank, result in results.items()}) for i in range(len(some))]
    return type(some)(*parts) if hasattr(some, "_fields") else tuple(parts)


@pytest.fixture(autouse=True)
def local_work(monkeypatch: pytest.MonkeyPatch) -> None:
    for module, name in (
        (ops, "label_sums"),
        (ops, "rebuild_"),
        (decompose, "products_of"),
        (label_sums, "part_sums"),
    ):
        monkeypatch.setattr(module, name, by_rank(getattr(module, name)))


@pytest.fixture(autouse=True)
def same_numbers(monkeypatch: pytest.MonkeyPatch) -> None:
    """Generators are of a process: here all ranks would draw from one, one after the other."""
    draw = torch.randn

    def randn(*args: Any, **kwargs: Any) -> Tensor:
        mode = torch.distributed._local_tensor.enabled_local_tensor_mode()
        with torch.distributed._local_tensor.maybe_disable_local_tensor_mode():
            numbers = draw(*args, **kwargs)
        return numbers if mode is None else LocalTensor({rank: numbers.clone() for rank in mode.ranks})

    monkeypatch.setattr(torch, "randn", randn)


EXACT: dict[str, Any] = {"rank": 0.5}
TRUNCATED: dict[str, Any] = {"rank": 1, "tail_rank": 2}
PLACEMENTS = {"by class": [Shard(0)], "by feature": [Shard(1)], "replicated": [Replicate()]}


CASES = [
    (3, placement, settings, shape)
    for placement in PLACEMENTS
    for settings in (EXACT, TRUNCATED, TRUNCATED | {"tail": "zero"})
    for shape in ((30, 12), (9, 20))
]
# More processes than classes, or than features.
CASES += [(40, placement, settings, (30, 12)) for placement in PLACEMENTS for settings in (EXACT, TRUNCATED)]


@pytest.mark.parametrize(("world", "placement", "settings", "shape"), CASES, indirect=["world"])
def test_the_size_of_the_world_does_not_matter(
    world: int, placement: str, settings: dict[str, Any], shape: tuple[int, int]
) -> None:
    problem, steps = make_problem(*shape), range(2)
    rest = {name: value for name, value in settings.items() if name != "rank"}
    # The mode itself sets the global random state.
    with torch.random.fork_rng(), LocalTensorMode(world):
        mesh = init_device_mesh("cpu", (world,))
        head = shard(make_head(problem), mesh, PLACEMENTS[placement])
        got, lip = train(problem, head, settings["rank"], steps=steps, **rest)
        got = got.reconcile() if isinstance(got, LocalTensor) else got
        stats = lip.stats()
    with pytest.warns(UserWarning, match="LIP acts on a weight that this process has to itself"):
        alone, _ = train(problem, make_head(problem), settings["rank"], steps=steps, **rest)
    assert distance(got, alone) < 1e-12
    assert distance(got, problem.weight) > 0.1
    assert stats["skipped"] == 0
    assert stats["applied"] > 0
