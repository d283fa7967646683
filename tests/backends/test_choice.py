"""Which backend serves which op, in processes of their own: the choice is made at import."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from lip_fast import backends
from lip_fast.backends.native import library
from lip_fast.backends.native.kernels import KERNELS, MAX_COLUMNS

ROOT = Path(__file__).parents[2]
needs_extension = pytest.mark.skipif(library.cpu() is None, reason=f"no CPU extension: {library.problems()}")


def _run(code: str, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-c", code],
        capture_output=True,
        text=True,
        env=os.environ | environment,
        cwd=ROOT,
        timeout=300,
    )


_SERVED = (
    "import lip_fast; from lip_fast import backends; [print(*row, sep='|') for row in backends.served()]"
)
# An extension that cannot be imported, as on a machine where none was built.
_WITHOUT = "import sys; sys.modules['lip_fast._native_cpu'] = sys.modules['lip_fast._native_cuda'] = None; "


def _served(**environment: str) -> dict[tuple[str, str], list[str]]:
    result = _run(_SERVED, **environment)
    assert result.returncode == 0, result.stderr
    rows = [line.split("|") for line in result.stdout.splitlines()]
    return {(op, device): rest for op, device, *rest in rows}


def test_default_serves_everything_when_forced() -> None:
    rows = _served(LIP_FAST_BACKEND="default")
    assert {backend for backend, _ in rows.values()} == {"default"}
    assert {op for op, _ in rows} >= {"warm_svd", "tail_svd", "refit", "rebuild_", "small_svd", "sketch"}


@needs_extension
def test_auto_takes_what_was_faster_and_says_why() -> None:
    rows = _served(LIP_FAST_BACKEND="auto")
    assert rows["refit", "cpu"] == ["native", "one call for a loop in Python"]
    assert rows["warm_svd", "cpu"] == ["default", "BLAS and LAPACK are faster"]
    assert rows["orthonormalize", "cpu"] == ["default", "no native kernel"]


@needs_extension
def test_native_serves_all_it_can_when_forced() -> None:
    rows = _served(LIP_FAST_BACKEND="native")
    for op in KERNELS["cpu"]:
        assert rows[op, "cpu"][0] == "native"
    assert rows["orthonormalize", "cpu"][0] == "default"


def test_what_is_forced_and_missing_is_an_error_that_lists_what_is_known() -> None:
    result = _run(_WITHOUT + "import lip_fast", LIP_FAST_BACKEND="native")
    assert result.returncode != 0
    assert "the native kernels are not all there" in result.stderr
    assert "auto, default, native" in result.stderr
    assert "_native_cpu" in result.stderr


def test_without_extensions_everything_runs() -> None:
    code = (
        _WITHOUT + "import torch, lip_fast; from lip_fast import backends; "
        "assert {row.backend for row in backends.served()} == {'default'}; "
        "print(lip_fast.lip(torch.eye(5, 3), torch.eye(5), torch.tensor([0, 1, 2, 0, 1]), 1).shape)"
    )
    result = _run(code, LIP_FAST_BACKEND="auto")
    assert result.returncode == 0, result.stderr
    assert "torch.Size([5, 3])" in result.stdout


@pytest.mark.parametrize("device", ["cpu", "cuda"])
def test_every_native_kernel_has_a_default_to_fall_back_on(device: str) -> None:
    assert KERNELS[device].keys() <= backends._DEFAULT.keys()


def test_sizes_beyond_the_solver_fall_back() -> None:
    can = KERNELS["cuda"]["warm_svd"].can
    M, step = torch.empty(500, 400, device="meta"), torch.tensor(0)
    for t, expected in ((1, True), (MAX_COLUMNS - 8, True), (MAX_COLUMNS - 7, False), (0, False)):
        assert can(M, torch.empty(400, t, device="meta"), step, 8, 0) is expected
    assert not can(M.double(), torch.empty(400, 4, device="meta").double(), step, 8, 0)
    small = KERNELS["cuda"]["small_svd"].can
    assert small(torch.empty(128, 128, device="meta"), None)
    assert not small(torch.empty(129, 129, device="meta"), None)
    assert not small(torch.empty(8, 8, device="meta").double(), None)
    assert KERNELS["cpu"]["small_svd"].can(torch.empty(8, 8).double(), None)


@needs_extension
def test_the_widest_problem_is_that_of_the_sources() -> None:
    assert library.cpu().MAX_COLUMNS == MAX_COLUMNS
