"""The steps of a host under sanitizers: no byte too many, no race, the same bits for any crew."""

import subprocess
from pathlib import Path

import pytest
from native.solver import COMPILER, ROOT

pytestmark = [
    pytest.mark.process,
    pytest.mark.skipif(COMPILER is None, reason="needs g++"),
]

FLAGS = ["-std=c++17", "-O1", "-g", "-fopenmp-simd", "-Wall", "-Wextra", "-Werror", "-Wno-psabi", "-pthread"]


@pytest.mark.parametrize("sanitizer", ["address,undefined", "thread"])
def test_a_crew_takes_the_step_of_one_thread(sanitizer: str, tmp_path: Path) -> None:
    program, source = tmp_path / "step", Path(__file__).with_name("step_program.cpp")
    flags = [*FLAGS, f"-fsanitize={sanitizer}", "-fno-sanitize-recover=all"]
    command = [str(COMPILER), *flags, f"-I{ROOT / 'csrc'}", str(source), "-o", str(program)]
    built = subprocess.run(command, capture_output=True, text=True)
    assert built.returncode == 0, built.stderr[-3000:]
    ran = subprocess.run([str(program)], capture_output=True, text=True)
    assert ran.returncode == 0, ran.stderr[-3000:]
    # Status, whether the weight was written, whether the bits are the same; each third one decomposes alone.
    assert ran.stdout.splitlines() == ["0 1 1", "0 1 1", "0 0 1"] * 8 + ["0 1 1"] * 4
