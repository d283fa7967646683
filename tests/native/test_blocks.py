"""The kernels' stages on emulated blocks: no barrier is missing, the arithmetic is that of one thread."""

import subprocess
from pathlib import Path

import numpy as np
import pytest
from native.solver import COMPILER, ROOT

pytestmark = [pytest.mark.process, pytest.mark.skipif(COMPILER is None, reason="needs g++")]

# The emulator leaves its threads by longjmp, which the checks of _FORTIFY_SOURCE take for an error.
FLAGS = ["-std=c++17", "-O2", "-fopenmp-simd", "-Wall", "-Wextra", "-Werror", "-U_FORTIFY_SOURCE"]


@pytest.fixture(scope="module")
def program(tmp_path_factory: pytest.TempPathFactory) -> Path:
    here = Path(__file__).parent
    target = tmp_path_factory.mktemp("blocks") / "program"
    command = [
        COMPILER,
        *FLAGS,
        f"-I{ROOT / 'csrc'}",
        f"-I{here}",
        str(here / "block_program.cpp"),
        "-o",
        str(target),
    ]
    built = subprocess.run(command, capture_output=True, text=True)
    assert built.returncode == 0, built.stderr
    return target


@pytest.mark.parametrize(
    ("l", "q", "m", "t", "threads", "omissions"),
    [
        (40, 50, 13, 5, 32, 24),
        (70, 90, 20, 12, 64, 24),
        (9, 9, 9, 1, 256, 0),
        (61, 67, 40, 32, 256, 0),
        # More threads than pairs of columns, tiles of 16 rows.
        (130, 110, 100, 90, 512, 0),
    ],
)
def test_the_order_of_threads_does_not_matter(
    program: Path, l: int, q: int, m: int, t: int, threads: int, omissions: int
) -> None:
    rng = np.random.default_rng(0)
    U = np.linalg.qr(rng.standard_normal((l, t)))[0]
    B = np.linalg.qr(rng.standard_normal((q, t)))[0]
    M = U * np.arange(1, t + 1) ** -0.5 @ B.T + 1e-2 * rng.standard_normal((l, q)) / np.sqrt(l * q)
    V = np.concatenate([B, np.sign(rng.standard_normal((q, m - t)))], axis=1)
    M, V = M.astype(np.float32), V.astype(np.float32)
    Y = M @ V
    data = b"".join(np.ascontiguousarray(X.T).tobytes() for X in (V, Y, M.T @ Y))
    arguments = [str(n) for n in (l, q, m, t, threads, omissions)]
    result = subprocess.run([str(program), *arguments], input=data, capture_output=True, timeout=300)
    assert result.returncode == 0, result.stderr
    same, status, *differences, noticed = map(float, result.stdout.split())
    assert same == 1
    assert status == 0
    # Sums over lanes are taken in another order than those of one thread.
    assert max(differences) < 5e-6
    # A barrier between stages that read nothing of each other's can be spared in one of them; most cannot.
    assert noticed >= 0.8 * omissions
