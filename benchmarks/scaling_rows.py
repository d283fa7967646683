"""The rows of one-shot ``lip()`` over samples, features and classes, one of them varied at a time."""

from lip_fast.bench.rows import Row

__all__ = ["KIND", "SCALING_ROWS", "VARIABLES"]

KIND = "scaling"
# What each variable goes through while the two others stay.
VARIABLES: dict[str, tuple[int, ...]] = {
    "n": (1_000, 3_000, 10_000, 30_000, 100_000, 300_000, 1_000_000),
    "q": (64, 128, 256, 512, 1024, 2048),
    "l": (10, 30, 100, 300, 1000),
}
_FIXED = {"n": 50_000, "q": 512, "l": 100}


def _row(variable: str, value: int) -> Row:
    sizes = _FIXED | {variable: value}
    l, q = sizes["l"], sizes["q"]
    return Row(
        f"{KIND}-{variable}-{value}",
        KIND,
        l,
        q,
        k=min(l, q) // 5,
        tail_rank=None,
        n=sizes["n"],
        peers=("reference",),
        gates=("distance",),
    )


SCALING_ROWS = tuple(_row(variable, value) for variable, values in VARIABLES.items() for value in values)
