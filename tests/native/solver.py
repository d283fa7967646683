"""The program over csrc/core, compiled with sanitizers, as functions of arrays."""

import shutil
import subprocess
from pathlib import Path
from typing import NamedTuple

import numpy as np

ROOT = Path(__file__).resolve().parents[2]
COMPILER = shutil.which("g++")
FLAGS = [
    "-std=c++17",
    "-O1",
    "-g",
    "-fopenmp-simd",
    "-Wall",
    "-Wextra",
    "-Werror",
    "-fsanitize=address,undefined",
    "-fno-sanitize-recover=all",
]


class Small(NamedTuple):
    """U (b, m, m), S (b, m), V (b, m, m), sweeps (b,), status (b,)."""

    U: np.ndarray
    S: np.ndarray
    V: np.ndarray
    sweeps: np.ndarray
    status: np.ndarray


class Warm(NamedTuple):
    """A (l, t), S (t,), B (q, t), status, and the counts of independent columns, sweeps and directions."""

    A: np.ndarray
    S: np.ndarray
    B: np.ndarray
    status: int
    info: list[int]


class Solver:
    """The compiled program."""

    def __init__(self, folder: Path) -> None:
        assert COMPILER is not None
        self._program = folder / "solver"
        source = Path(__file__).with_name("solver_program.cpp")
        command = [COMPILER, *FLAGS, f"-I{ROOT / 'csrc'}", str(source), "-o", str(self._program)]
        built = subprocess.run(command, capture_output=True, text=True)
        assert built.returncode == 0, built.stderr

    def _run(self, arguments: list[object], *inputs: np.ndarray) -> bytes:
        data = b"".join(np.ascontiguousarray(x).tobytes() for x in inputs)
        result = subprocess.run([str(self._program), *map(str, arguments)], input=data, capture_output=True)
        assert result.returncode == 0, result.stderr.decode()[-3000:]
        return result.stdout

    def small_svd(self, T: np.ndarray, start: np.ndarray | None = None, *, spacious: bool = True) -> Small:
        T = T if T.ndim == 3 else T[None]
        b, m, _ = T.shape
        inputs = [T] if start is None else [T, start.astype(T.dtype)]
        arguments = ["small_svd", _name(T), m, b, int(start is not None), int(spacious)]
        out = _Reader(self._run(arguments, *inputs))
        return Small(
            out.take(T.dtype, b, m, m),
            out.take(T.dtype, b, m),
            out.take(T.dtype, b, m, m),
            out.take(np.dtype(np.int64), b),
            out.take(np.dtype(np.int64), b),
        )

    def factor(self, G: np.ndarray) -> tuple[np.ndarray, np.ndarray, int]:
        """R and P of a Gram matrix, and the number of independent columns."""
        m = len(G)
        out = _Reader(self._run(["factor", _name(G), m], G))
        return out.take(G.dtype, m, m), out.take(G.dtype, m, m), int(out.take(np.dtype(np.int64), 1)[0])

    def warm_svd(self, M: np.ndarray, V: np.ndarray, t: int) -> Warm:
        """From V (q, m): Y = M V and Z = M^T Y are taken here."""
        M, V = M.astype(np.float32), V.astype(np.float32)
        (l, q), m = M.shape, V.shape[1]
        Y = M @ V
        Z = M.T @ Y
        out = _Reader(self._run(["warm_svd", l, q, m, t], Y.T, Z.T))
        single = np.dtype(np.float32)
        A, S, Bt = out.take(single, l, t), out.take(single, t), out.take(single, t, q)
        status = int(out.take(np.dtype(np.int64), 1)[0])
        return Warm(A, S, Bt.T, status, out.take(np.dtype(np.int32), 6).tolist())


class _Reader:
    def __init__(self, data: bytes) -> None:
        self._data, self._at = data, 0

    def take(self, dtype: np.dtype, *shape: int) -> np.ndarray:
        count = int(np.prod(shape))
        values = np.frombuffer(self._data, dtype, count, self._at).reshape(shape)
        self._at += count * dtype.itemsize
        return values


def _name(X: np.ndarray) -> str:
    return {"float32": "float", "float64": "double"}[X.dtype.name]
