import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from distributed.launch import environment, interpreter, launch

from benchmarks.scale import collectives, memory
from benchmarks.traffic import Case, Collective, Report, ring_bytes, simulated

# q = 40 features, k + r + 8 = 20 columns; l / world is at least that, so that mirrors have full rank.
TRUNCATED = Case("class", 4, 400, 40, 8, 4)
EXACT = Case("class", 4, 400, 40, 36)
PRODUCTS = Case("class", 4, 600, 140, 100)
FEW_CLASSES = Case("class", 4, 32, 40, 28)
FEATURES = Case("feature", 4, 96, 120, 8, 4)
WHOLE = Case("whole", 4, 96, 40, 8, 4)

# By name: a case, and the names of what a warm step calls.
SUM, ROWS, PARTS = "allreduce_", "_allgather_base_", "all_gather_into_tensor"
CASES: dict[str, tuple[Case, list[str]]] = {
    "truncated": (TRUNCATED, [SUM, SUM]),
    "truncated, a bias": (replace(TRUNCATED, bias=True), [SUM, SUM]),
    "truncated, last of uneven parts": (replace(TRUNCATED, l=397, process=3), [SUM, SUM]),
    "truncated, 512 processes": (replace(TRUNCATED, world=512, l=20480), [SUM, SUM]),
    "truncated, as on a device": (replace(TRUNCATED, device=True), [SUM, SUM]),
    "truncated, float64": (replace(TRUNCATED, dtype="float64"), [SUM, SUM, SUM, SUM]),
    "truncated, decay": (replace(TRUNCATED, decay=0.9), [SUM, SUM]),
    "truncated, other batches": (replace(TRUNCATED, data=True), [SUM, ROWS, SUM]),
    "truncated, other batches, 512": (
        replace(TRUNCATED, data=True, world=512, l=20480, rows=3),
        [SUM, ROWS, SUM],
    ),
    "truncated, other batches, float64": (
        replace(TRUNCATED, data=True, dtype="float64"),
        [SUM, SUM, SUM, ROWS, SUM],
    ),
    "truncated, other batches, decay": (replace(TRUNCATED, data=True, decay=0.9), [SUM, ROWS, SUM, SUM]),
    "exact": (EXACT, [SUM, SUM]),
    "exact, 512 processes": (replace(EXACT, world=512, l=20480), [SUM, SUM]),
    "exact, float64": (replace(EXACT, dtype="float64"), [SUM, SUM, SUM, SUM]),
    "exact, other batches": (replace(EXACT, data=True), [SUM, ROWS, SUM]),
    "by products": (PRODUCTS, [SUM, SUM, SUM, SUM]),
    "by products, 512 processes": (replace(PRODUCTS, world=512, l=76_800), [SUM, SUM, SUM, SUM]),
    "by products, as on a device": (replace(PRODUCTS, device=True), [SUM, SUM, SUM]),
    "by products, other batches": (replace(PRODUCTS, data=True), [SUM, SUM, SUM, ROWS, SUM]),
    "by products, some refitted": (replace(PRODUCTS, rank=90, tail_rank=40), [SUM, SUM, SUM, SUM]),
    "by products, more features": (replace(PRODUCTS, l=1000, q=1010), [SUM, SUM, SUM, SUM]),
    "features, by products": (Case("feature", 4, 160, 640, 100), [SUM, PARTS, SUM, SUM]),
    "features, by products, as on a device": (
        Case("feature", 4, 160, 640, 100, device=True),
        [SUM, PARTS, SUM],
    ),
    "few classes": (FEW_CLASSES, [PARTS, SUM]),
    "few classes, uneven": (replace(FEW_CLASSES, l=30), [PARTS, SUM]),
    "few classes, other batches": (replace(FEW_CLASSES, data=True), [PARTS, SUM, ROWS, SUM]),
    "features": (FEATURES, [SUM, PARTS, SUM]),
    "features, uneven": (replace(FEATURES, q=118, process=3), [SUM, PARTS, SUM]),
    "features, float64": (replace(FEATURES, dtype="float64"), [SUM, PARTS, SUM]),
    "features, other batches": (replace(FEATURES, data=True), [SUM, PARTS, SUM]),
    "features, exact, wide": (replace(FEATURES, rank=90, tail_rank=None), [SUM, PARTS, SUM]),
    "features, exact, tall": (replace(FEATURES, l=130, rank=100, tail_rank=None), [PARTS, SUM]),
    "whole, other batches": (replace(WHOLE, data=True), [SUM]),
    "whole, other batches, 512": (replace(WHOLE, data=True, world=512), [SUM]),
    "whole, other batches, decay": (replace(WHOLE, data=True, decay=0.9), [SUM, ROWS, SUM]),
    "whole": (WHOLE, []),
}
# The same but for the number of classes.
GROWING = [Case("class", 4, l, 24, 4, 2, data=data) for data in (False, True) for l in (64, 4096, 65_536)]
GROWING_PRODUCTS = [Case("class", 4, l, 140, 100, data=data) for data in (False, True) for l in (600, 60_000)]
# Parts with many more rows than the path has columns, on which memory is compared.
LARGE = [
    Case("class", 4, 40_000, 64, 24, 8, device=True, profile=True),
    Case("class", 4, 40_000, 64, 60, profile=True),
    Case("class", 4, 40_000, 140, 100, device=True, profile=True),
]


@pytest.fixture(scope="module")
def reports() -> dict[Case, Report]:
    cases = [*(case for case, _ in CASES.values()), *GROWING, *GROWING_PRODUCTS, *LARGE]
    return dict(zip(cases, simulated(cases), strict=True))


@pytest.mark.process
@pytest.mark.parametrize("name", list(CASES))
def test_a_step_sends_this_and_nothing_else(name: str, reports: dict[Case, Report]) -> None:
    case, names = CASES[name]
    report = reports[case]
    first, *warm = report.steps
    assert len(warm) == 1
    for step in warm:
        assert [collective.name for collective in step] == names
        assert list(step) == collectives(case)
    # The first one has five sketches more, where there are sketches at all.
    assert list(first) == collectives(case, cold=True)
    assert len(first) <= 6 * max(len(names), 1)
    assert report.applied == case.steps


@pytest.mark.process
def test_torch_counts_as_many(reports: dict[Case, Report]) -> None:
    for case, report in reports.items():
        assert report.counted == tuple(map(len, report.steps)), case


def test_the_formulas_are_those_counted_by_hand() -> None:
    # 64 kept, 8 refitted and 8 fresh columns of 512 features, in numbers that were counted by hand.
    case = Case("class", 8, 1_000_000, 512, 64, 8)
    sketch, refit = collectives(case)
    assert sketch == Collective("allreduce_", "float64", 8 * (512 * 80 + 80 * 80 + 15))
    assert refit == Collective("allreduce_", "float64", 8 * (4 * 8 + 2 + 15))
    _, rows, _ = collectives(replace(case, data=True, rows=100))
    assert rows == Collective("_allgather_base_", "uint8", 100 * (9 * 4 + 8))
    (gram, _) = collectives(replace(case, rank=460, tail_rank="all"))
    assert gram.payload == 8 * (512**2 + 15)
    # 200 kept, 104 refitted and 8 fresh columns.
    gram, products, vote, _ = collectives(replace(case, rank=200, tail_rank=None))
    assert gram.payload == 8 * (312**2 + 15)
    assert products.payload == 8 * (512 * 312 + 312**2 + 1 + 15)
    assert vote.payload == 8 * (1 + 15)


@pytest.mark.process
@pytest.mark.parametrize("data", [False, True])
def test_bytes_do_not_depend_on_the_number_of_classes(data: bool, reports: dict[Case, Report]) -> None:
    for cases in (GROWING, GROWING_PRODUCTS):
        # The first step of a split by products is exact, and gathers where there are few classes.
        steps = {reports[case].steps[1:] for case in cases if case.data == data}
        assert len(steps) == 1


@pytest.mark.process
def test_nothing_is_as_large_as_the_part_of_a_process(reports: dict[Case, Report]) -> None:
    for case in [*GROWING[1:3], *GROWING[4:], *LARGE]:
        report = reports[case]
        assert report.shard == case.l // case.world * case.q * 4
        for collective in (c for step in report.steps for c in step):
            assert collective.payload < report.shard, case
            # In all of a ring too.
            assert ring_bytes(collective, case.world) < report.shard * case.world, case


@pytest.mark.process
@pytest.mark.parametrize("case", LARGE)
def test_memory_is_what_is_counted(case: Case, reports: dict[Case, Report]) -> None:
    # Beside what grows with the rows, there are small matrices and the batch.
    assert 1 <= reports[case].peak / memory(case).step < 1.05


def test_what_a_ring_carries() -> None:
    assert ring_bytes(Collective("allreduce_", "float64", 800), 4) == 1200
    assert ring_bytes(Collective("all_gather_into_tensor", "float32", 100), 4) == 300
    assert ring_bytes(Collective("_reduce_scatter_base_", "float32", 800), 4) == 600


@pytest.mark.process
def test_no_collective_is_missed(tmp_path: Path) -> None:
    found: dict[str, Any] = launch(2, "distributed.collectives:calls", tmp_path)
    payloads = {name: [tuple(c) for c in call["ours"]] for name, call in found.items()}
    assert payloads == {
        "all_reduce": [("allreduce_", "float32", 24)],
        "all_reduce of integers": [("allreduce_", "int64", 40)],
        "reduce": [("reduce_", "float32", 24)],
        "broadcast": [("broadcast_", "float32", 24)],
        "all_gather": [("allgather_", "float64", 24)],
        "all_gather, one tensor": [("_allgather_base_", "float64", 24)],
        "gather": [("gather_", "float64", 24)],
        "scatter": [("scatter_", "float32", 16)],
        "reduce_scatter": [("reduce_scatter_", "float32", 16)],
        "all_to_all": [("alltoall_base_", "float32", 16)],
        "barrier": [("barrier", "", 0)],
        "point to point": [("send", "float32", 24)],
        "functional all_reduce": [("all_reduce", "float32", 24)],
        "functional all_gather": [("all_gather_into_tensor", "float64", 24)],
        "functional reduce_scatter": [("reduce_scatter_tensor", "float32", 16)],
        "functional broadcast": [("broadcast", "float32", 24)],
        "full_tensor": [("all_gather_into_tensor", "float32", 32)],
        "to another dimension": [("all_gather_into_tensor", "float32", 32)],
        "sum of a DTensor": [("all_reduce", "float32", 4)],
        "nothing": [],
    }
    for name, call in found.items():
        # torch counts neither barriers nor what goes from one process to another.
        extra = name in ("barrier", "point to point")
        assert len(call["ours"]) - extra == call["theirs"], name


@pytest.mark.process
@pytest.mark.parametrize("world", [2, 4])
def test_processes_send_what_is_simulated(world: int, tmp_path: Path) -> None:
    found = launch(world, "distributed.collectives:steps", tmp_path)
    assert _collectives(found) == _expected(world, "float32")


@pytest.mark.process
@pytest.mark.parametrize("world", [2, 4])
def test_local_tensors_send_the_same(world: int) -> None:
    code = (
        f"import json; from distributed import collectives as c; print(json.dumps(c.local_tensors({world})))"
    )
    done = interpreter().run("-c", code, env=environment(), timeout=120)
    assert done.returncode == 0, done.stderr[-6000:]
    found = json.loads(done.stdout.splitlines()[-1])
    assert _collectives(found["steps"]) == _expected(world, "float64")
    # There the first basis is drawn once for each of them: the result is that of one process as far as five
    # power iterations make it so.
    assert found["distance"] < 1e-3 < 0.1 < found["moved"]


def _collectives(steps: Any) -> list[list[Collective]]:
    return [[Collective(*collective) for collective in step] for step in steps]


def _expected(world: int, dtype: str) -> list[list[Collective]]:
    case = Case("class", world, 40, 24, 6, 4, dtype=dtype)
    return [collectives(case, cold=True), collectives(case)]
