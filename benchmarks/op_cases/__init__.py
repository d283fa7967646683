"""Cases of every op: the dispatched call beside each of its kernels, checked against float64."""

from benchmarks.op_cases.case import op_case
from benchmarks.op_cases.head import forget

__all__ = ["forget", "op_case"]
