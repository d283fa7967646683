"""Every native kernel on small odd shapes, for compute-sanitizer: ``python -m benchmarks.gpu.sanitize``.

Operands are made on the host and copied, and the kernels of the library are kept out of the way: each one of
theirs would be instrumented as well. Run it with ``PYTORCH_NO_CUDA_MEMORY_CACHING=1``, so that each tensor is
an allocation of its own and what is read beyond one is seen.
"""

import argparse
import sys
from collections.abc import Sequence

import torch
from torch import Tensor

import lip_fast.backends.native.one_read as one_read
from lip_fast.backends.native.fresh_columns import fresh_columns
from lip_fast.backends.native.library import MODULES, stream_of
from lip_fast.backends.native.refit import refit
from lip_fast.backends.native.sketch import sketch
from lip_fast.backends.native.small_svd import small_svd
from lip_fast.backends.native.svd import warm_svd
from lip_fast.bench.cases import require_native
from lip_fast.bench.timing import synchronize

__all__ = ["main"]

# Rounded to TF32 twice.
_TF32 = 2e-3
_FLOAT32 = 1e-4


class Driver:
    """Runs the kernels and compares what they gave with float64 on the host.

    Args:
        device: where they run.
    """

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self.generator = torch.Generator().manual_seed(0)
        self.step = torch.tensor(3).to(device)

    def randn(self, *shape: int) -> Tensor:
        """On the host."""
        return torch.randn(shape, generator=self.generator)

    def padded(self, M: Tensor) -> Tensor:
        """M on the device, its rows on 16-byte boundaries."""
        l, q = M.shape
        wide = torch.zeros(l, (q + 3) // 4 * 4)
        wide[:, :q] = M
        return wide.to(self.device)[:, :q]

    def check(self, name: str, got: Tensor, expected: Tensor, bound: float) -> None:
        """Raise unless ``got`` is ``expected`` to a relative Frobenius distance of ``bound``."""
        synchronize(self.device)
        expected = expected.double()
        error = float((got.cpu().double() - expected).norm() / expected.norm().clamp(min=1e-30))
        if not error <= bound:
            raise AssertionError(f"{name} is {error:.1e} away from float64, expected {bound:.0e} at most")
        print(f"{name}: {error:.1e}", flush=True)

    def fresh_columns(self, rows: int, columns: int) -> None:
        """Signs."""
        signs = fresh_columns(self.step, rows, columns, 7)
        self.check(f"fresh_columns {rows}x{columns}", signs.cpu().abs(), torch.ones(rows, columns), 0)

    def refit(self, t: int, rank: int, r: int, dtype: torch.dtype) -> None:
        """Values that no guard stops."""
        ratio = torch.linspace(-1, 1, r, dtype=torch.float64)
        S, numerator, denominator, energy, ok = (
            x.to(self.device)
            for x in (
                torch.linspace(10, 5, t, dtype=dtype),
                3 * ratio,
                torch.full_like(ratio, 3.0),
                torch.tensor(9.0, dtype=torch.float64),
                torch.tensor(True),
            )
        )
        s, sound, _ = refit(S, numerator, denominator, energy, ok, rank, 1e-6, True)
        self.check(f"refit {dtype}", s, ratio, 1e-6)
        assert bool(sound)

    def small_svd(self, batch: int, m: int) -> None:
        """Cold, then from its own answer."""
        T = self.randn(batch, m, m)
        start = None
        for name in ("cold", "warm"):
            U, S, V, _, status = small_svd(T.to(self.device), start)
            product = U.cpu().double() * S.cpu().double()[:, None, :] @ V.cpu().double().mT
            self.check(f"small_svd {name} {batch}x{m}", product, T, _FLOAT32)
            assert not any(status.tolist())
            start = V

    def warm_svd(self, l: int, q: int, t: int, fresh: int) -> None:
        """A weight of rank t, from its own basis."""
        A, B = (torch.linalg.qr(self.randn(n, t))[0] for n in (l, q))
        M = A * torch.linspace(2, 1, t) @ B.mT + 1e-3 * self.randn(l, q) / (l * q) ** 0.5
        basis = B.mT.contiguous().to(self.device).mT
        A, S, B, status = (x.cpu() for x in warm_svd(self.padded(M), basis, self.step, fresh, 0))
        assert int(status) == 0
        self.check(f"warm_svd {l}x{q} m={t + fresh}", A.double() * S @ B.double().mT, M, _TF32)

    def sketch(self, l: int, q: int, m: int) -> None:
        """Both products."""
        M, Vt = self.randn(l, q), self.randn(m, q)
        Y, Z = (x.cpu() for x in sketch(self.padded(M), Vt.to(self.device).mT))
        self.check(f"sketch Y {l}x{q} m={m}", Y, M.double() @ Vt.double().mT, _TF32)
        self.check(f"sketch Z {l}x{q} m={m}", Z, M.double().mT @ Y.double(), _TF32)

    def round(self, rows: int, columns: int, dropped: int) -> None:
        """As ``rebuild_`` into bfloat16 and float16."""
        X = self.randn(rows, columns)
        on = X.to(self.device)
        MODULES[on.device.type].round(
            on.data_ptr(), rows, columns, dropped, self.step.data_ptr(), 0, stream_of(on.device)
        )
        self.check(f"round {rows}x{columns}, {dropped} bits", on, X, 2.0 ** (dropped - 23))

    def run(self) -> None:
        """Everything."""
        for rows, columns in ((1, 1), (67, 131), (300, 8)):
            self.fresh_columns(rows, columns)
        for dtype in (torch.float32, torch.float64):
            self.refit(9, 2, 5, dtype)
        for batch, m in ((1, 1), (3, 5), (2, 33), (1, 80), (1, 127), (1, 128)):
            self.small_svd(batch, m)
        # The one-read kernel, for weights of any size.
        threshold, one_read.CACHED_BYTES = one_read.CACHED_BYTES, -1
        try:
            for l, q, m in (
                (5, 3, 1),
                (37, 67, 13),
                (130, 260, 48),
                (65, 1000, 80),
                (33, 500, 128),
                (70, 4093, 80),
            ):
                self.sketch(l, q, m)
            for l, q, t, fresh in ((9, 9, 1, 8), (61, 67, 21, 8), (300, 130, 72, 8), (150, 140, 120, 8)):
                self.warm_svd(l, q, t, fresh)
        finally:
            one_read.CACHED_BYTES = threshold
        for rows, columns, dropped in ((1, 1, 16), (37, 29, 16), (64, 40, 13)):
            self.round(rows, columns, dropped)
        synchronize(self.device)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the kernels; what they get wrong is raised."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.gpu.sanitize", description=main.__doc__)
    parser.add_argument("--dry", action="store_true", help="on the CPU")
    device = torch.device("cpu" if parser.parse_args(arguments).dry else "cuda")
    require_native(device)
    Driver(device).run()
    return 0


if __name__ == "__main__":
    sys.exit(main())
