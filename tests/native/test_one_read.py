"""The one-read kernel on emulated clusters of blocks: its arithmetic, its barriers, its bank conflicts."""

import subprocess
from pathlib import Path

import pytest
from native.solver import COMPILER, ROOT

pytestmark = [pytest.mark.process, pytest.mark.skipif(COMPILER is None, reason="needs g++")]

# Fibers are left by longjmp, which the checks of _FORTIFY_SOURCE take for an error.
FLAGS = ["-std=c++17", "-O2", "-Wall", "-Wextra", "-Werror", "-U_FORTIFY_SOURCE"]


@pytest.fixture(scope="module")
def program(tmp_path_factory: pytest.TempPathFactory) -> Path:
    here = Path(__file__).parent
    target = tmp_path_factory.mktemp("one_read") / "program"
    command = [COMPILER, *FLAGS, f"-I{ROOT / 'csrc'}", f"-I{here}", str(here / "one_read_test.cpp")]
    built = subprocess.run([*command, "-o", str(target)], capture_output=True, text=True)
    assert built.returncode == 0, built.stderr
    return target


@pytest.mark.parametrize("name", ["plans", "rounding", "products", "nonfinite", "races", "teeth", "banks"])
def test_one_read(program: Path, name: str) -> None:
    result = subprocess.run([str(program), name], capture_output=True, text=True, timeout=600)
    assert result.returncode == 0, result.stdout + result.stderr
