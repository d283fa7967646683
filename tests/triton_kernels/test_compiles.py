"""Every listed form of every Triton kernel compiles for the devices there are, without spills."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from lip_fast import backends

pytestmark = pytest.mark.process

FILES = sorted(
    {each.file for kernels in backends.declared().values() for each in kernels if each.backend == "triton"}
)
ROOT = Path(__file__).parents[2]
FOLDER = ROOT / "lip_fast/backends/triton"
# What a block may have, in bytes (CUDA Programming Guide, technical specifications).
SHARED = {80: 163 * 1024, 90: 227 * 1024}
# Addresses and strides that are multiples of 16, and such of which nothing is known: once, for time.
CASES = [(80, "aligned"), (90, "aligned"), (90, "plain")]
# Bytes of stack. Where addresses take twice the registers, ptxas may put a few aside for one more program on
# a multiprocessor: up to 8 were seen.
STACK = {"aligned": 0, "plain": 32}


def _named(arch: int, known: str) -> str:
    return f"{arch}-plain" if known == "plain" else str(arch)


@pytest.fixture(scope="module")
def compiled(tmp_path_factory: pytest.TempPathFactory) -> list[dict]:
    """All of it, by two processes."""
    variables = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    # Forced backends are for the process that runs kernels.
    cache = tmp_path_factory.mktemp("triton")
    variables |= {"TRITON_CACHE_DIR": str(cache), "LIP_FAST_BACKEND": "default", "OMP_NUM_THREADS": "1"}
    variables["PYTHONPATH"] = os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")])
    program = str(Path(__file__).with_name("compile_all.py"))
    result = subprocess.run(
        [sys.executable, program, *(_named(*case) for case in CASES), "--jobs", "2"],
        capture_output=True,
        text=True,
        env=variables,
        timeout=1800,
    )
    assert result.returncode == 0, result.stderr
    found: list[dict] = json.loads(result.stdout)
    return found


@pytest.mark.parametrize(("arch", "known"), CASES)
@pytest.mark.parametrize("file", FILES)
def test_compiles_without_spills(file: str, arch: int, known: str, compiled: list[dict]) -> None:
    forms = [form for form in compiled if (form["file"], form["case"]) == (file, _named(arch, known))]
    assert forms, "no form is listed"
    wrong = [
        form
        for form in forms
        if form["STACK"] > STACK[known] or form["LOCAL"] or form["shared"] > SHARED[arch]
    ]
    assert not wrong


def test_every_file_of_kernels_is_listed() -> None:
    with_kernels = {path.stem for path in FOLDER.glob("*.py") if "CONFIGURATIONS = [" in path.read_text()}
    assert with_kernels == set(FILES)
