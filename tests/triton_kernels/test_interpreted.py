"""One file of this folder, in Triton's interpreter: ``make test-all`` runs all of them there."""

import os
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from lip_fast.backends import triton

pytestmark = [pytest.mark.process, pytest.mark.smoke]

ROOT = Path(__file__).parents[2]


def _numbers(version: str | None) -> tuple[int, ...]:
    return tuple(map(int, re.findall(r"\d+", version or "")[:2]))


# Triton 3.6 makes numbers of arrays with one element, which numpy 2.4 refuses; 3.9 does not.
@pytest.mark.skipif(
    triton.problem() is None and _numbers(triton.version()) < (3, 9) and _numbers(np.__version__) >= (2, 4),
    reason=f"the interpreter of Triton {triton.version()} does not fit numpy {np.__version__}",
)
def test_in_the_interpreter() -> None:
    file = "tests/triton_kernels/test_fresh_columns.py"
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", file]
    environment = os.environ | {"TRITON_INTERPRET": "1", "LIP_FAST_BACKEND": "triton"}
    result = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=1200)
    report = result.stdout + result.stderr
    assert result.returncode == 0, report
    # A file whose every test was skipped ends with 0 too.
    assert " passed" in result.stdout.splitlines()[-1], report
