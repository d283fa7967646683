"""Truncated decompositions on a GPU: ours, warm and cold, beside torch's, by time and error."""

from collections.abc import Iterator
from functools import partial

import torch

from benchmarks.decomposition_rows import CURVES, KIND, OURS
from benchmarks.decompositions import decomposition
from lip_fast.bench.cases import Case, Maker, require_memory, require_native

__all__ = ["cases"]

# (l, q, k, methods; None for all): of the large weight a full decomposition takes longer than all the rest.
_SIZES = ((1000, 2048, 32, None), (128256, 4096, 32, (OURS, "ours cold", "svd_lowrank")))
_DRY_SIZES = ((60, 80, 8, None), (120, 40, 8, (OURS, "ours cold", "svd_lowrank")))
# One that is easy, one whose directions are hard to tell apart.
_SPECTRA = ("gapped", "power-law")


def _case(name: str, l: int, q: int, k: int, methods: tuple[str, ...] | None, device: torch.device) -> Case:
    require_native(device)
    # The weight, its bases and its last move; the weight again, and a Gram matrix, in float64.
    require_memory(device, 4.0 * (6 * l * q + 4 * q * q))
    chosen = [curve for curve in CURVES if methods is None or curve.name in methods]
    return decomposition(name, l, q, k, device, curves=chosen, left_out="not on a weight of this size")


def cases(device: torch.device, dry: bool) -> Iterator[tuple[str, Maker]]:
    """The rows of the decompositions."""
    for l, q, k, methods in _DRY_SIZES if dry else _SIZES:
        for name in _SPECTRA:
            yield f"{KIND} {name} {l}x{q}", partial(_case, name, l, q, k, methods, device)
