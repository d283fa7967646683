"""Rows and cases of the ops: which there are, and that a wrong kernel is not timed."""

from collections.abc import Callable
from typing import Any

import pytest
import torch

import benchmarks.op_cases.case as case_module
from benchmarks.gpu.ops import cases as gpu_cases
from benchmarks.gpu.weights import HEADS
from benchmarks.op_cases.case import _PROBLEMS, op_case
from benchmarks.op_cases.head import head_of
from benchmarks.op_cases.updates import op_of
from benchmarks.op_rows import LARGE_SHAPES, OP_ROWS, SHAPES, op_rows
from benchmarks.rows import ROWS
from lip_fast import backends, ops
from lip_fast.backends.native import library
from lip_fast.bench.cases import Case, Skip, run_cases
from lip_fast.bench.rows import Row
from lip_fast.bench.timing import Timer
from lip_fast.ops.op import OPS

CPU = torch.device("cpu")
TINY = {(row.op, row.dtype): row for row in op_rows(((60, 40),), rows=60)}
IN_PLACE = [op for op in case_module.DEFAULT if op.endswith("_")]
needs_native = pytest.mark.skipif(library.cpu() is None, reason=f"no CPU extension: {library.problems()}")


def case(op: str, dtype: str = "float32") -> Case:
    return op_case(TINY[op, dtype], CPU, copied=1 << 16)


def red(found: Case) -> list[str]:
    return [gate.name for gate in found.gates if not gate.passed]


# Rows --------------------------------------------------------------------------------------------------


def test_every_op_has_rows() -> None:
    assert {row.op for row in OP_ROWS} == set(case_module.DEFAULT)
    assert {op_of(row.op) for row in OP_ROWS} == set(OPS)
    assert {op for op, _ in TINY} == set(case_module.DEFAULT)
    assert len({row.key for row in ROWS}) == len(ROWS)
    assert {(row.l, row.q) for row in OP_ROWS} == set(SHAPES)


def test_ranks_are_those_of_the_heads_of_a_gpu() -> None:
    rows = op_rows((*SHAPES, *LARGE_SHAPES))
    for l, q, k, r in HEADS:
        assert {(row.k, row.tail_rank) for row in rows if (row.l, row.q) == (l, q)} == {(k, r)}


def test_rows_that_differ_in_nothing_an_op_sees_are_one() -> None:
    found = [(row.op, row.l, row.q, row.dtype) for row in OP_ROWS]
    started = [each for each in found if each[0] == "start_basis" and each[3] == "float32"]
    assert len(started) < len([each for each in found if each[0] == "warm_svd" and each[3] == "float32"])
    widths = [q for op, _, q, dtype in found if op == "gram" and dtype == "float32"]
    assert widths == [512, 2048, 4096, 1024]
    assert ("sketch", 1000, 4096, "float32") in found


def test_large_weights_are_measured_in_the_formats_they_are_kept_in() -> None:
    def formats(shape: tuple[int, int]) -> set[str]:
        return {row.dtype for row in OP_ROWS if row.op == "sketch" and (row.l, row.q) == shape}

    assert formats((1000, 2048)) == {"float32", "bfloat16", "float16", "float64"}
    assert formats((1000, 4096)) == {"float32", "bfloat16"}
    assert formats((32000, 1024)) == {"float32"}
    exact = {(row.l, row.q, row.dtype) for row in OP_ROWS if row.op == "tail_svd" and row.l >= 1000}
    assert exact == {(1000, q, dtype) for q in (2048, 4096) for dtype in ("float32", "bfloat16")}


# Cases -------------------------------------------------------------------------------------------------


def test_every_case_is_right_and_complete() -> None:
    made: dict[str, Case] = {}

    def make(row: Row) -> Case:
        return made.setdefault(row.key, op_case(row, CPU, copied=1 << 16))

    records: list[dict[str, Any]] = []
    makers = [(row.key, lambda row=row: make(row)) for row in TINY.values()]
    timer = Timer(CPU, sample_seconds=1e-5, most_rounds=1)
    assert run_cases(makers, timer, 60, records.append), [each for each in records if each["void"]]
    for row, record in zip(TINY.values(), records, strict=True):
        found = made[row.key]
        assert record["ours"] == "ours"
        assert {*record["times"], *found.skipped} == {"ours", *row.peers}
        assert not {*record["times"]} & {*found.skipped}
        names = ["distance", *(f"{variant.name} distance" for variant in found.variants[1:])]
        assert [gate.name for gate in found.gates] == names
        assert found.facts["bytes"] > 0
        assert all(found.floors.values())


def test_the_rows_of_a_gpu_are_made_by_the_same_cases() -> None:
    keys = [key for key, _ in gpu_cases(torch.device("cuda"), False)]
    assert keys[0].endswith("10x512-float32")
    assert keys[-1].endswith("1000000x512-bfloat16")
    assert "op-sketch-1000000x512-bfloat16" in keys
    (key, make), *rest = gpu_cases(CPU, True)
    assert key == "op-fresh_columns-60x40-float32"
    assert {each.split("-")[1] for each, _ in rest} | {"fresh_columns"} == set(case_module.DEFAULT)
    assert not red(make())


def reversed_rows(op: str) -> Callable[..., Any]:
    """The default kernel with the rows of its first result, or of the weight it writes, in reverse."""
    kernel = case_module.DEFAULT[op]

    def wrong(*arguments: Any) -> Any:
        result = kernel(*arguments)
        if op.endswith("rebuild_"):
            M = arguments[0].M if isinstance(arguments[0], ops.Updated) else arguments[0]
            M.copy_(M.flip(0))
            return result
        if isinstance(result, torch.Tensor):
            return result.flip(0)
        return result[0].flip(0), *result[1:]

    return wrong


@pytest.mark.parametrize("op", case_module.DEFAULT)
def test_a_wrong_kernel_is_noticed(op: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(case_module.DEFAULT, op, reversed_rows(op))
    assert red(case(op)) == ["default distance"]


@pytest.mark.parametrize("op", ["warm_svd", "finish_svd", "tail_svd"])
def test_a_result_that_cannot_be_used_is_noticed(op: str, monkeypatch: pytest.MonkeyPatch) -> None:
    kernel = case_module.DEFAULT[op]
    monkeypatch.setitem(
        case_module.DEFAULT, op, lambda *arguments: (*kernel(*arguments)[:3], torch.tensor(1))
    )
    assert red(case(op)) == ["default distance"]


@pytest.mark.parametrize("op", ["rebuild_", "adamw_rebuild_", "sgd_rebuild_"])
def test_a_weight_that_was_not_written_is_noticed(op: str, monkeypatch: pytest.MonkeyPatch) -> None:
    kernel = case_module.DEFAULT[op]
    monkeypatch.setitem(case_module.DEFAULT, op, lambda *arguments: kernel(*arguments) & False)
    assert red(case(op)) == ["default distance"]


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize(
    ("op", "position"),
    [
        (op, position)
        for op, last in (
            ("adamw_sketch_", 3),
            ("adamw_one_read_", 3),
            ("sgd_sketch_", 2),
            ("sgd_one_read_", 2),
        )
        for position in (0, *range(2, last + 1))
    ],
)
def test_a_weight_or_state_left_wrong_is_noticed(
    op: str, position: int, dtype: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    kernel = case_module.DEFAULT[op]

    def wrong(updated: ops.Updated, *rest: Any) -> Any:
        result = kernel(updated, *rest)
        (updated.M, updated.grad, *updated.state)[position].mul_(1.02)
        return result

    monkeypatch.setitem(case_module.DEFAULT, op, wrong)
    assert red(case(op, dtype)) == ["default distance"]


@pytest.mark.parametrize("op", ["sketch", "adamw_one_read_", "sgd_one_read_"])
def test_a_wrong_second_product_is_noticed(op: str, monkeypatch: pytest.MonkeyPatch) -> None:
    kernel = case_module.DEFAULT[op]

    def wrong(*arguments: Any) -> Any:
        Y, Z = kernel(*arguments)
        return Y, Z * 1.02

    monkeypatch.setitem(case_module.DEFAULT, op, wrong)
    assert red(case(op)) == ["default distance"]


def test_ours_is_the_dispatched_call(monkeypatch: pytest.MonkeyPatch) -> None:
    right = ops.project
    monkeypatch.setattr(ops, "project", lambda M, Y: right(M, Y) * 1.02)
    assert red(case("project")) == ["distance"]


@needs_native
def test_a_kernel_that_is_not_timed_says_why() -> None:
    assert case("project").skipped == {
        "native": "no native kernel for cpu",
        "triton": backends.triton_problem("cpu"),
    }
    found = case("rebuild_", "float64")
    assert found.skipped["native"] == "does not take float64 at 60x40"
    assert found.facts["served by"] == "default"
    assert case("rebuild_", "bfloat16").facts["served by"] == "native"
    assert case("orthonormalize").skipped["triton"] == "no triton kernel"


@needs_native
def test_the_default_kernel_of_a_long_call_is_not_timed_twice(monkeypatch: pytest.MonkeyPatch) -> None:
    assert [variant.name for variant in case("project").variants] == ["ours", "default"]
    monkeypatch.setattr(case_module, "_LONG", 0)
    found = case("project")
    assert [variant.name for variant in found.variants] == ["ours"]
    assert found.skipped["default"].startswith("it is what ours calls")
    assert "default" not in case("rebuild_", "bfloat16").skipped


def test_a_row_that_does_not_fit_is_skipped() -> None:
    row = next(row for row in op_rows(((1 << 25, 1 << 20),)) if row.op == "sketch")
    with pytest.raises(Skip, match=r"needs .* GB of memory"):
        op_case(row, CPU)


@pytest.mark.parametrize("op", IN_PLACE)
def test_calls_without_end_leave_the_weight_where_it_is(op: str, monkeypatch: pytest.MonkeyPatch) -> None:
    problem = _PROBLEMS[op](head_of(TINY[op, "float16"], CPU))
    monkeypatch.setitem(_PROBLEMS, op, lambda head: problem)
    ours = case(op, "float16").variants[0]
    for changed, before in problem.written:
        changed.copy_(before)
    for _ in range(200):
        ours.run()
    M, before = problem.written[0]
    assert float((M.double() - before.double()).norm() / before.double().norm()) < 1e-3
    assert all(bool(torch.isfinite(changed).all()) for changed, _ in problem.written)


def test_bytes_and_operations_by_hand() -> None:
    # 60 x 40, 10 directions and 8 fresh columns.
    facts = case("sketch").facts
    assert facts["bytes"] == 4 * (60 * 40 + 40 * 18 + 60 * 18 + 40 * 18)
    assert facts["flops"] == 2 * (2 * 60 * 40 * 18)
    facts = case("adamw_sketch_", "bfloat16").facts
    # Weight, gradient and two states are read, the states are written; V and Y are float32.
    assert facts["bytes"] == 2 * 6 * 60 * 40 + 4 * (40 * 18 + 60 * 18)
    assert facts["flops"] == 2 * 60 * 40 * 18
