"""The case of a row: the dispatched call, the kernels that take its arguments, and torch.linalg."""

import functools
from collections.abc import Callable
from typing import Any

import torch

from benchmarks.gpu.weights import BLOCK_VALUES
from benchmarks.op_cases import decompositions, labels, products
from benchmarks.op_cases.head import Head, head_of
from benchmarks.op_cases.problem import Problem
from benchmarks.op_cases.updates import UPDATES, op_of
from benchmarks.signed_steps import signed_steps
from lip_fast import backends
from lip_fast.backends import triton
from lip_fast.backends.native import library
from lip_fast.bench.cases import Case, require_memory, shared_floors
from lip_fast.bench.gates import Gate
from lip_fast.bench.rows import Row
from lip_fast.bench.timing import Variant, captured
from lip_fast.ops.op import OPS

__all__ = ["op_case"]

# torch.linalg takes seconds for more values: a quarter of one for a weight of 1000 x 2048 on two cores, and
# about as long on a GPU for one of 32000 x 1024.
_MOST_VALUES = {"cpu": 1 << 21, "cuda": 1 << 25}
# Weights below this are over so soon that one graph holds several calls.
_SMALL = 1 << 22

# Calls with more values take so long that the way through the dispatcher, some microseconds, does not show:
# where it ends at the default kernel, that one is not timed twice.
_LONG = 1 << 20

_PROBLEMS: dict[str, Callable[[Head], Problem]] = {
    op: getattr(module, op) for module in (products, decompositions) for op in module.__all__ if op in OPS
} | {"refit": labels.refit, **UPDATES}
_SAMPLED: dict[str, Callable[[Head, int], Problem]] = {
    op: getattr(labels, op) for op in ("label_sums", "label_sums_csr", "class_sums", "gram")
}
# The kernels in plain torch.
DEFAULT = {name: backends.declared()[op_of(name)][0].load() for name in (*_PROBLEMS, *_SAMPLED)}
# Their default kernels hand their work to a solver of the library, which waits for the device.
_SOLVED = ("orthonormalize", "warm_svd", "finish_svd", "tail_svd")


def op_case(row: Row, device: torch.device, *, copied: int | None = None) -> Case:
    """The case of one op.

    Args:
        row: which op, at which shape, in which format.
        device: where it runs.
        copied: values of the copy that the floors are measured with, as of ``Floors``.
    """
    require_memory(device, _memory(row))
    head = head_of(row, device)
    problem = _SAMPLED[row.op](head, row.n) if row.op in _SAMPLED else _PROBLEMS[row.op](head)
    calls, skipped = _implementations(row, device, problem)
    gates = []
    for name, call in calls.items():
        for changed, before in problem.written:
            changed.copy_(before)
        label = "distance" if name == "ours" else f"{name} distance"
        gates.append(Gate(label, problem.measure(call()), problem.bound, problem.control))
    problem.settle()
    variants = [_variant(row, name, call, device, problem) for name, call in calls.items()]
    facts = {
        **{"l": row.l, "q": row.q, "k": head.k, "r": head.r, "m": head.m, "n": row.n, "dtype": row.dtype},
        "served by": _served(row.op, device, problem),
        "bytes": problem.size,
        "flops": problem.flops,
    }
    # The tensor cores of a GPU multiply float32 as TF32, at half the rate of bfloat16 at best.
    halved = device.type == "cuda" and head.skinny == torch.float32
    rate = (2 * problem.flops, torch.bfloat16) if halved else (problem.flops, head.skinny)
    lowest = shared_floors(device, copied).of(problem.size, *rate)
    return Case(gates, variants, facts=facts, floors=lowest, skipped=skipped)


def _memory(row: Row) -> float:
    """Bytes that the weight, what lies beside it, its copies and the checks take, generously."""
    # Weight, gradient, state, and a copy of each.
    values = 8 * torch.empty(0, dtype=getattr(torch, row.dtype)).itemsize
    # Decompositions are checked, and those of the tail computed, in float64.
    values += {"warm_svd": 24, "tail_svd": 64}.get(row.op, 0)
    blocks = 8 * 8 * min(row.l * row.q, BLOCK_VALUES)
    return values * row.l * row.q + blocks + 8 * row.n * row.q * 3 + 8 * row.q**2


def _implementations(
    row: Row, device: torch.device, problem: Problem
) -> tuple[dict[str, Callable[[], Any]], dict[str, str]]:
    """What is timed, ours first, and why the others are not."""
    calls: dict[str, Callable[[], Any]] = {"ours": problem.call}
    skipped: dict[str, str] = {}
    arguments, served = problem.arguments, _served(row.op, device, problem)
    for name in ("default", "native", "triton"):
        kernel, reason = _kernel(row, name, device, arguments)
        if name == served == "default" and row.l * row.q > _LONG:
            skipped[name] = "it is what ours calls, and at this size the way there does not show"
        elif kernel is None:
            skipped[name] = reason
        else:
            calls[name] = functools.partial(kernel, *arguments)
    if problem.library is not None:
        if row.op not in ("warm_svd", "tail_svd") or row.l * row.q <= _MOST_VALUES[device.type]:
            calls["torch.linalg"] = problem.library
        else:
            skipped["torch.linalg"] = f"a decomposition of {row.l}x{row.q} takes seconds"
    return calls, skipped


def _kernel(
    row: Row, name: str, device: torch.device, arguments: tuple[Any, ...]
) -> tuple[Callable[..., Any] | None, str]:
    """A backend's kernel of an op, or why it cannot be called."""
    if name == "default":
        return DEFAULT[row.op], ""
    module = library.cuda if device.type == "cuda" else library.cpu
    kernel = backends.kernel(op_of(row.op), name, device.type)
    if kernel is None:
        where = f" for {device.type}" if name == "native" else ""
        return None, f"no {name} kernel{where}"
    if name == "native" and module() is None:
        return None, f"the native kernels are not there: {library.problems() or 'not built'}"
    if name == "triton" and (problem := backends.triton_problem(device.type)):
        return None, problem
    serves = library.serves if name == "native" else triton.serves
    if device.type == "cuda" and not serves(torch.cuda.current_device()):
        return None, "no code for this device"
    if not kernel.can(*arguments):
        return None, f"does not take {row.dtype} at {row.l}x{row.q}"
    return kernel.run, ""


def _served(op: str, device: torch.device, problem: Problem) -> str:
    """The backend that the dispatcher chooses for these arguments."""
    candidates = backends.candidates(op_of(op), device.type)
    takes = (each.kernel.backend for each in candidates if each.takes(*problem.arguments))
    return next(takes, "default")


def _variant(row: Row, name: str, call: Callable[[], Any], device: torch.device, problem: Problem) -> Variant:
    if problem.step is not None and device.type != "cuda" and name != "torch.linalg":
        return signed_steps(name, call, problem.step)
    kind = _served(row.op, device, problem) if name == "ours" else name
    solved = kind == "torch.linalg" or (kind == "default" and row.op in _SOLVED)
    if device.type != "cuda" or solved or _waits(call):
        return Variant(name, call)
    return captured(name, call, device, calls=10 if row.l * row.q < _SMALL else 1)


def _waits(call: Callable[[], Any]) -> bool:
    """Whether a call waits for the device, and so cannot be captured."""
    mode = torch.cuda.get_sync_debug_mode()
    torch.cuda.set_sync_debug_mode("error")
    try:
        call()
    except RuntimeError as error:
        if "synchroniz" not in str(error):
            raise
        return True
    finally:
        torch.cuda.set_sync_debug_mode(mode)
    return False
