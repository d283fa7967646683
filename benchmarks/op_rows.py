"""Which ops are measured at which shapes in which formats: the rows of the ops, made from a table."""

from collections.abc import Sequence

from lip_fast.bench.rows import BATCH, Row

__all__ = ["DTYPES", "OP_ROWS", "SHAPES", "op_rows"]

# Heads of a CPU, and those that want a GPU.
SHAPES = ((10, 512), (100, 512), (100, 2048), (1000, 2048), (1000, 4096), (32000, 1024))
LARGE_SHAPES = ((128256, 4096), (1000000, 512))
# Ranks (k, r) of every head but these: of ten classes, where 40 would exceed them, and of the largest.
_RANKS = (32, 8)
_OTHER_RANKS = {(10, 512): (4, 3), (60, 40): (6, 4), **dict.fromkeys(LARGE_SHAPES, (64, 8))}
# Rows of features whose statistics are taken on a CPU: with 8192 one product of 4096 features takes seconds.
_ROWS = 2048

# Weights and features may come in any of these. What is computed of them is float32, of float64 ones float64:
# an op that sees no weight has these two formats.
DTYPES = ("float32", "bfloat16", "float16", "float64")
_COMPUTE_DTYPES = ("float32", "float64")
# The formats that weights of more values are kept in: float64 serves to check small problems, and float16
# needs a GradScaler, for which a CPU has no use at that size.
_LARGE = 1 << 21
_LARGE_DTYPES = ("float32", "bfloat16")
# Exact decompositions come to their limits earlier: of 1000 x 2048 a call takes half a second in float64, and
# three seconds of 32000 x 1024 in any format.
_LARGE_EXACT, _MOST_EXACT = 1 << 20, 1 << 22
# More values are measured in float32 alone on a CPU: it computes in it whatever they are kept in, and one
# update of 32000 x 1024 takes half a second.
_MOST_NARROW = 1 << 22

_ALL = ("l", "q", "dtype")
# What of a row an op sees, and the formats it takes: rows that differ in nothing else are one.
_SEEN: dict[str, tuple[tuple[str, ...], tuple[str, ...]]] = {
    # It returns float32 whatever the weight.
    "fresh_columns": (("q", "fresh"), ("float32",)),
    "orthonormalize": (("l", "columns", "dtype"), _COMPUTE_DTYPES),
    "sketch": (_ALL, DTYPES),
    "warm_svd": (_ALL, DTYPES),
    "start_basis": (("q", "columns", "fresh", "dtype"), _COMPUTE_DTYPES),
    "project": (_ALL, DTYPES),
    "finish_svd": (_ALL, _COMPUTE_DTYPES),
    "tail_svd": (_ALL, DTYPES),
    "label_sums": (_ALL, DTYPES),
    "label_sums_csr": (_ALL, DTYPES),
    "class_sums": (_ALL, DTYPES),
    "gram": (("q", "dtype"), DTYPES),
    "refit": (("k", "tail_rank", "dtype"), _COMPUTE_DTYPES),
    "rebuild_": (_ALL, DTYPES),
    "adamw_sketch_": (_ALL, DTYPES),
    "adamw_project": (_ALL, DTYPES),
    "adamw_rebuild_": (_ALL, DTYPES),
    "adamw_one_read_": (_ALL, DTYPES),
    "sgd_sketch_": (_ALL, DTYPES),
    "sgd_project": (_ALL, DTYPES),
    "sgd_rebuild_": (_ALL, DTYPES),
    "sgd_one_read_": (_ALL, DTYPES),
}
_PEERS = ("default", "native", "triton")
# What torch.linalg can do, too.
_LIBRARY = ("orthonormalize", "warm_svd", "finish_svd", "tail_svd")
_SAMPLES = {"label_sums": BATCH, "label_sums_csr": BATCH}
_STATISTICS = ("class_sums", "gram")


def op_rows(
    shapes: Sequence[tuple[int, int]],
    dtypes: Sequence[str] = DTYPES,
    *,
    rows: int = _ROWS,
    most_exact: int = _MOST_EXACT,
    most_narrow: int = _MOST_NARROW,
) -> tuple[Row, ...]:
    """The rows of every op, those of one weight one after the other.

    Args:
        shapes: (l, q) of each head.
        dtypes: of its weight.
        rows: of features, where statistics of them are taken.
        most_exact: values of the largest weight that is decomposed exactly.
        most_narrow: values of the largest weight that is measured in bfloat16 too.
    """
    found: dict[tuple[object, ...], Row] = {}
    for l, q in shapes:
        k, r = _OTHER_RANKS.get((l, q), _RANKS)
        for dtype in dtypes:
            for op, (seen, taken) in _SEEN.items():
                exact = op == "tail_svd"
                large = l * q > (_LARGE_EXACT if exact else _LARGE) and taken == DTYPES
                formats = _LARGE_DTYPES if large else taken
                if l * q > most_narrow:
                    formats = ("float32",)
                if dtype not in formats or (exact and l * q > most_exact):
                    continue
                row = Row(
                    f"op-{op}-{l}x{q}-{dtype}",
                    "op",
                    l,
                    q,
                    k,
                    r,
                    rows if op in _STATISTICS else _SAMPLES.get(op, 0),
                    peers=(*_PEERS, "torch.linalg") if op in _LIBRARY else _PEERS,
                    gates=("distance",),
                    op=op,
                    dtype=dtype,
                )
                sizes = {"fresh": row.columns - k - r}
                problem = (op, *(sizes.get(name, getattr(row, name, None)) for name in seen))
                found.setdefault(problem, row)
    return tuple(found.values())


OP_ROWS = op_rows(SHAPES)
