"""The other files of this folder, and the ops' own tests, in Triton's interpreter, each in a process."""

import os
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from lip_fast.backends import triton

FOLDER = Path(__file__).parent
ROOT = FOLDER.parents[1]
FILES = sorted(
    path.relative_to(ROOT).as_posix()
    for path in FOLDER.glob("test_*.py")
    if path.name not in ("test_interpreted.py", "test_compiles.py")
)
# Served by the kernels there, as LIP_FAST_BACKEND says so.
FILES += [f"tests/ops/test_{op}.py" for op in ("class_sums", "gram", "label_sums", "project", "rebuild_")]
FILES += ["tests/optim/test_fused.py", "tests/test_statistics.py"]


def _numbers(version: str | None) -> tuple[int, ...]:
    return tuple(map(int, re.findall(r"\d+", version or "")[:2]))


# Triton 3.6 makes numbers of arrays with one element, which numpy 2.4 refuses; 3.9 does not.
@pytest.mark.skipif(
    triton.problem() is None and _numbers(triton.version()) < (3, 9) and _numbers(np.__version__) >= (2, 4),
    reason=f"the interpreter of Triton {triton.version()} does not fit numpy {np.__version__}",
)
@pytest.mark.parametrize("file", FILES)
def test_in_the_interpreter(file: str) -> None:
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", file]
    environment = os.environ | {"TRITON_INTERPRET": "1", "LIP_FAST_BACKEND": "triton"}
    result = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=1200)
    report = result.stdout + result.stderr
    assert result.returncode == 0, report
    # A file whose every test was skipped ends with 0 too.
    assert " passed" in result.stdout.splitlines()[-1], report
