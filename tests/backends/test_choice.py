"""Which backend serves which op, in processes of their own: the choice is made at import."""

import os
import subprocess
from pathlib import Path

import pytest
import torch
from warm import python

from lip_fast import backends
from lip_fast.backends import triton
from lip_fast.backends.kernel import always
from lip_fast.backends.native import library
from lip_fast.backends.native.library import MAX_COLUMNS

ROOT = Path(__file__).parents[2]
needs_triton = pytest.mark.skipif(triton.problem() is not None, reason=str(triton.problem()))
needs_extension = pytest.mark.skipif(library.cpu() is None, reason=f"no CPU extension: {library.problems()}")


def _run(code: str, **environment: str) -> subprocess.CompletedProcess[str]:
    return python("torch").run("-c", code, env=os.environ | environment, cwd=ROOT)


def _having(backend: str, device: str) -> list[str]:
    """The ops that a backend has a kernel of."""
    return [op for op in backends.declared() if backends.kernel(op, backend, device) is not None]


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


@pytest.mark.process
def test_default_serves_everything_when_forced() -> None:
    rows = _served(LIP_FAST_BACKEND="default")
    assert {backend for backend, _ in rows.values()} == {"default"}
    assert {op for op, _ in rows} >= {"warm_svd", "tail_svd", "refit", "rebuild_", "label_sums", "sketch"}


@pytest.mark.process
@needs_extension
def test_auto_takes_what_was_faster_and_says_why() -> None:
    rows = _served(LIP_FAST_BACKEND="auto")
    assert rows["refit", "cpu"] == ["native", "one call for a loop in Python"]
    assert rows["finish_svd", "cpu"] == ["default", "BLAS and LAPACK are faster"]
    assert rows["warm_svd", "cpu"] == ["native", "faster than BLAS and LAPACK up to 128 columns"]
    assert rows["orthonormalize", "cpu"] == ["default", "no native kernel"]


@pytest.mark.process
@needs_extension
def test_native_serves_all_it_can_when_forced() -> None:
    rows = _served(LIP_FAST_BACKEND="native")
    for op in _having("native", "cpu"):
        assert rows[op, "cpu"][0] == "native"
    assert rows["orthonormalize", "cpu"][0] == "default"


@pytest.mark.process
def test_what_is_forced_and_missing_is_an_error_that_lists_what_is_known() -> None:
    result = _run(_WITHOUT + "import lip_fast", LIP_FAST_BACKEND="native")
    assert result.returncode != 0
    assert "the native kernels are not all there" in result.stderr
    assert "auto, default, native" in result.stderr
    assert "_native_cpu" in result.stderr


@pytest.mark.process
def test_without_extensions_everything_runs() -> None:
    code = (
        _WITHOUT + "sys.modules['triton'] = None; import torch, lip_fast; from lip_fast import backends; "
        "assert {row.backend for row in backends.served()} == {'default'}; "
        "print(lip_fast.lip(torch.eye(5, 3), torch.eye(5), torch.tensor([0, 1, 2, 0, 1]), 1).shape)"
    )
    result = _run(code, LIP_FAST_BACKEND="auto")
    assert result.returncode == 0, result.stderr
    assert "torch.Size([5, 3])" in result.stdout


# Triton's interpreter stands in for a device.
_INTERPRETED = {"LIP_FAST_BACKEND": "triton", "TRITON_INTERPRET": "1"}


@pytest.mark.process
@needs_triton
def test_triton_serves_all_it_can_when_forced() -> None:
    rows = _served(**_INTERPRETED)
    for op in _having("triton", "cpu"):
        assert rows[op, "cpu"] == ["triton", "LIP_FAST_BACKEND=triton"]
    assert rows["warm_svd", "cpu"] == ["default", "no kernel of its own"]
    assert "native" not in {backend for backend, _ in rows.values()}


@pytest.mark.process
@needs_triton
def test_triton_is_imported_by_its_first_kernel() -> None:
    code = (
        "import sys, torch, lip_fast; from lip_fast import ops; assert 'triton' not in sys.modules; "
        "signs = ops.fresh_columns(torch.tensor(3), 5, 2, seed=1); assert 'triton' in sys.modules; "
        "from lip_fast.backends.default.fresh_columns import fresh_columns; "
        "assert torch.equal(signs, fresh_columns(torch.tensor(3), 5, 2, 1))"
    )
    result = _run(code, **_INTERPRETED)
    assert result.returncode == 0, result.stderr


@pytest.mark.process
@pytest.mark.parametrize("interpret", ["0", "1"])
def test_the_choice_on_cpu_is_the_same_with_triton(interpret: str) -> None:
    without = _run("import sys; sys.modules['triton'] = None; " + _SERVED, LIP_FAST_BACKEND="auto")
    there = _run(_SERVED, LIP_FAST_BACKEND="auto", TRITON_INTERPRET=interpret)
    cpu = [[row for row in run.stdout.splitlines() if "|cpu|" in row] for run in (without, there)]
    assert len(cpu[0]) >= len(_having("native", "cpu"))
    assert cpu[0] == cpu[1]


@pytest.mark.process
@pytest.mark.skipif(torch.cuda.is_available(), reason="a GPU is there")
@pytest.mark.parametrize(
    ("before", "reason"),
    [
        ("import sys; sys.modules['triton'] = None; ", "Triton is not installed"),
        ("", "in its interpreter alone" if triton.problem() is None else "Triton is"),
    ],
    ids=["without", "no device"],
)
def test_triton_forced_and_missing(before: str, reason: str) -> None:
    result = _run(before + "import lip_fast", LIP_FAST_BACKEND="triton", TRITON_INTERPRET="0")
    assert result.returncode != 0
    assert "LIP_FAST_BACKEND is 'triton'" in result.stderr
    assert reason in result.stderr
    assert "auto, default, native, triton" in result.stderr


@pytest.mark.parametrize(
    ("version", "reason"),
    [(None, "not installed"), ("3.4.1", "3.5 or newer"), ("2.9.0", "3.5 or newer"), ("odd", "3.5 or newer")],
)
def test_a_triton_that_is_missing_or_too_old(
    version: str | None, reason: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(triton, "version", lambda: version)
    assert reason in str(triton.problem())
    assert reason in str(backends.triton_problem("cuda"))


@pytest.mark.parametrize("version", ["3.5.0", "3.6.0+git1", "3.10.0", "4.0"])
def test_a_triton_that_will_do(version: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(triton, "version", lambda: version)
    assert triton.problem() is None


@pytest.fixture
def cuda_with_triton(monkeypatch: pytest.MonkeyPatch) -> None:
    """As if torch saw a device, with Triton and a compiler beside it."""
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(triton, "version", lambda: "3.6.0")
    monkeypatch.setenv("CC", "cc")
    monkeypatch.delenv("TRITON_INTERPRET", raising=False)
    monkeypatch.setenv("LIP_FAST_BACKEND", "auto")


def _backends_on_cuda(op: str) -> list[str]:
    return [candidate.kernel.backend for candidate in backends.candidates(op, "cuda")]


@pytest.mark.usefixtures("cuda_with_triton")
@pytest.mark.parametrize("module", [None, object()], ids=["without extension", "with extension"])
def test_the_order_on_cuda(module: object, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(backends.LIBRARIES, "cuda", lambda: module)
    native = [] if module is None else ["native"]
    assert _backends_on_cuda("rebuild_") == [*native, "triton"]
    assert _backends_on_cuda("label_sums") == ["triton"]
    assert _backends_on_cuda("warm_svd") == native
    assert _backends_on_cuda("orthonormalize") == []
    rows = {row.op: row.backend for row in backends.served() if row.device == "cuda"}
    assert rows["label_sums"] == "triton"
    assert rows["refit"] == ("default" if module is None else "native")
    monkeypatch.setenv("LIP_FAST_BACKEND", "native")
    assert _backends_on_cuda("label_sums") == []
    monkeypatch.setenv("LIP_FAST_BACKEND", "triton")
    assert _backends_on_cuda("rebuild_") == ["triton"]
    assert _backends_on_cuda("warm_svd") == []


@pytest.mark.usefixtures("cuda_with_triton")
def test_what_triton_needs_beside_a_device(monkeypatch: pytest.MonkeyPatch) -> None:
    assert backends.triton_problem("cuda") is None
    assert backends.triton_problem("cpu") is not None
    monkeypatch.delenv("CC")
    monkeypatch.setenv("PATH", "")
    assert "C compiler" in str(backends.triton_problem("cuda"))
    monkeypatch.setenv("CC", "cc")
    monkeypatch.setenv("TRITON_INTERPRET", "1")
    # For those who ask for it, as it is thousands of times slower.
    assert "TRITON_INTERPRET" in str(backends.triton_problem("cuda"))
    monkeypatch.setenv("LIP_FAST_BACKEND", "triton")
    assert backends.triton_problem("cuda") is None


@pytest.mark.usefixtures("cuda_with_triton")
@pytest.mark.parametrize(("capability", "runs"), [((7, 5), False), ((8, 0), True), ((9, 0), True)])
def test_devices_too_old_for_triton_fall_back(
    capability: tuple[int, int], runs: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda index: capability)
    monkeypatch.setattr(triton, "serves", triton.serves.__wrapped__)  # asked anew
    monkeypatch.setitem(backends.LIBRARIES, "cuda", lambda: None)
    (candidate,) = backends.candidates("fresh_columns", "cuda")
    step = torch.empty((), dtype=torch.int64, device="meta")
    assert candidate.takes(step, 4, 2, 0) is runs


def test_every_op_has_a_default_to_fall_back_on() -> None:
    for op, kernels in backends.declared().items():
        first, *others = kernels
        assert first.backend == "default"
        assert first.can is always
        assert {each.backend for each in others} <= {"native", "triton"}
        assert callable(first.load()), op


def test_kernels_are_named_like_their_ops() -> None:
    for op, kernels in backends.declared().items():
        assert {each.name for each in kernels} == {op}


def test_what_triton_kernels_take() -> None:
    def can(op: str, *arguments: object) -> bool:
        kernel = backends.kernel(op, "triton", "cuda")
        assert kernel is not None
        return kernel.can(*arguments)

    M, A = torch.empty(5, 4), torch.empty(5, 2)
    for dtype in (torch.float32, torch.bfloat16, torch.float16):
        assert can("rebuild_", M.to(dtype), A)
        assert can("label_sums", M.to(dtype), None, A, A, None)
        assert can("label_sums_csr", M.to(dtype), None, None, None, A, A, None)
        assert can("class_sums", M.to(dtype), None, 2**31 - 2)
        assert can("gram", M.to(dtype), None)
    assert not can("class_sums", M.double(), None, 3)
    assert not can("class_sums", M, None, 2**31 - 1)
    assert not can("gram", M.double(), None)
    assert not can("rebuild_", M.double(), A)
    assert not can("rebuild_", M, A.double())
    assert not can("label_sums", M.double(), None, A, A, None)
    assert not can("label_sums", M, None, A.double(), A.double(), None)


def test_sizes_beyond_the_solver_fall_back() -> None:
    kernel = backends.kernel("warm_svd", "native", "cuda")
    assert kernel is not None
    can = kernel.can
    M, step = torch.empty(500, 400, device="meta"), torch.tensor(0)
    for t, expected in ((1, True), (MAX_COLUMNS - 8, True), (MAX_COLUMNS - 7, False), (0, False)):
        assert can(M, torch.empty(400, t, device="meta"), step, 8, 0) is expected
    assert not can(M.double(), torch.empty(400, 4, device="meta").double(), step, 8, 0)


@needs_extension
def test_the_widest_problem_is_that_of_the_sources() -> None:
    assert library.cpu().MAX_COLUMNS == MAX_COLUMNS


@pytest.mark.process
def test_nothing_but_tables_is_imported_before_a_kernel_is_needed() -> None:
    code = (
        "import sys, torch, lip_fast; from lip_fast import ops; "
        "names = [n for n in sys.modules if n.startswith('lip_fast.backends.')]; "
        "print(*sorted(n.removeprefix('lip_fast.backends.') for n in names)); "
        "ops.orthonormalize(torch.eye(3)); assert 'lip_fast.backends.default.svd' in sys.modules"
    )
    result = _run(code, LIP_FAST_BACKEND="auto")
    assert result.returncode == 0, result.stderr
    assert result.stdout.split() == ["kernel", "native", "native.library", "native.one_read", "triton"]
