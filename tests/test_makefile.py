"""What the Makefile lists is what there is."""

import re
from pathlib import Path

import pytest

from lip_fast import backends, ops

ROOT = Path(__file__).parents[1]


def _listed(name: str) -> set[str]:
    (line,) = re.findall(rf"^{name} := (.*)$", (ROOT / "Makefile").read_text(), re.MULTILINE)
    return set(line.split())


def _served_by(backend: str) -> set[str]:
    """Ops with a kernel of a backend that serves a CPU, and a file of tests of their own."""
    assert ops.op.OPS  # declared by their import
    served = {op for op in backends.declared() if backends.kernel(op, backend, "cpu") is not None}
    return {op for op in served if (ROOT / f"tests/ops/test_{op}.py").exists()}


def test_ops_with_a_native_kernel_are_tested_with_each_backend() -> None:
    assert _listed("NATIVE_OPS") == _served_by("native")


def test_ops_with_a_triton_kernel_are_tested_in_its_interpreter() -> None:
    # What fresh columns are is known to the bit: tests/triton_kernels/test_fresh_columns.py has all of it.
    assert _listed("TRITON_OPS") == _served_by("triton") - {"fresh_columns"}


@pytest.mark.parametrize("name", ["NATIVE_TESTS", "TRITON_TESTS"])
def test_files_that_run_again_are_there(name: str) -> None:
    files = [file for file in _listed(name) if file.startswith("tests/")]
    assert files
    assert all((ROOT / file).exists() for file in files)
