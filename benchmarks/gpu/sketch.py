"""Both products of a power step: the one-read kernel beside two products of the library."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial

import torch
from torch import Tensor

import lip_fast.backends.native.one_read as one_read
from benchmarks.gpu.weights import BLOCK_VALUES, device_generator, exact_products
from lip_fast import ops
from lip_fast.backends.native import library
from lip_fast.backends.native.sketch import sketch as native_sketch
from lip_fast.bench.cases import (
    Bound,
    Case,
    Floors,
    Maker,
    best_floor,
    require_memory,
    require_native,
)
from lip_fast.bench.gates import Gate, distance
from lip_fast.bench.timing import captured

__all__ = ["cases"]

# Distance of Y and of Z = M^T Y for that Y: TF32 gives 3.6e-4 and 1.7e-4, bfloat16 2.3e-3 and 1.3e-3.
_SKETCH_Y, _SKETCH_Z = 1e-3, 6e-4
_SKETCHES = ((100, 512), (1000, 2048), (1000, 4096), (32000, 1024), (128256, 4096))
_SHARE_OF_FLOOR = 0.7


def _sketch_gates(name: str, M: Tensor, V: Tensor, products: tuple[Tensor, Tensor]) -> list[Gate]:
    Y, Z = products
    exact_Y, exact_Z = exact_products(M, V, Y)
    narrow = M.bfloat16().float()
    narrow_Y, narrow_Z = exact_products(narrow, V.bfloat16().float(), Y)
    return [
        Gate(f"{name} Y", distance(Y, exact_Y), _SKETCH_Y, distance(narrow_Y, exact_Y)),
        Gate(f"{name} Z", distance(Z, exact_Z), _SKETCH_Z, distance(narrow_Z, exact_Z)),
    ]


@contextmanager
def _one_read_always() -> Iterator[None]:
    """The one-read kernel for weights that the cache holds, too."""
    threshold = one_read.CACHED_BYTES
    one_read.CACHED_BYTES = -1
    try:
        yield
    finally:
        one_read.CACHED_BYTES = threshold


def _products(M: Tensor, V: Tensor, tf32: bool) -> Callable[[], object]:
    """M V and M^T Y by two calls of the library, into buffers that are there."""
    Vt = V.mT
    Yt, Z = M.new_empty(V.shape[1], M.shape[0]), M.new_empty(V.shape[1], M.shape[1])

    def call() -> None:
        allowed = torch.backends.cuda.matmul.allow_tf32
        torch.backends.cuda.matmul.allow_tf32 = tf32
        try:
            torch.mm(Vt, M.mT, out=Yt)
            torch.mm(Yt, M, out=Z)
        finally:
            torch.backends.cuda.matmul.allow_tf32 = allowed

    return call


def sketch(l: int, q: int, m: int, device: torch.device, floors: Floors) -> Case:
    """``ops.sketch`` beside two products of the library."""
    require_native(device)
    # The weight, its copy in bfloat16 and back, and the blocks in float64.
    require_memory(device, 4.0 * l * q * 2.5 + 16.0 * BLOCK_VALUES)
    g = device_generator(device)
    M = torch.randn(l, q, generator=g, device=device)
    V = torch.randn(m, q, generator=g, device=device).mT
    calls = 10 if l * q < 1 << 22 else 1
    size = 4 * l * q
    cached = size <= one_read.CACHED_BYTES
    gates = _sketch_gates("sketch", M, V, ops.sketch(M, V))
    variants = [captured("sketch", lambda: ops.sketch(M, V), device, calls=calls)]
    skipped = {}
    module = library.cuda() if device.type == "cuda" else None
    serves = module is not None and module.one_read_workspace(l, q, m) >= 0
    if module is not None and not serves:
        skipped["one read"] = "the device cannot run it for this shape"
    if serves and cached:

        def forced() -> tuple[Tensor, Tensor]:
            with _one_read_always():
                return native_sketch(M, V)

        gates += _sketch_gates("one read", M, V, forced())
        variants.append(captured("one read", forced, device, calls=calls))
    for name, tf32 in (("two mm fp32", False), ("two mm tf32", True)):
        variants.append(captured(name, _products(M, V, tf32), device, calls=calls))
    lowest = floors.of(4 * (l * q + 2 * q * m + l * m))
    targets = []
    if l * q >= 1 << 28:
        floor = best_floor(lowest)
        text = f">= {_SHARE_OF_FLOOR:.0%} of the floor"
        targets.append(Bound(text, lambda times: floor >= _SHARE_OF_FLOOR * times["sketch"]))
    served = "one read" if serves and not cached else "library"
    return Case(gates, variants, targets, {"l": l, "q": q, "m": m, "served by": served}, lowest, skipped)


def cases(device: torch.device, dry: bool) -> Iterator[tuple[str, Maker]]:
    """The rows of the sketch."""
    floors = Floors(device, 1 << 16 if dry else 1 << 29)
    for l, q in ((60, 40),) if dry else _SKETCHES:
        for m in (8, 12) if dry else (48, 80):
            yield f"sketch {l}x{q} m={m}", partial(sketch, l, q, m, device, floors)
