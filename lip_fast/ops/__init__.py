"""The operations of the step: declarations, kernels and public functions.

Layout: M (l, q) is the weight as ``nn.Linear`` holds it, A (l, t) holds class-side and B (q, t) feature-side
singular vectors in columns, so that M ~ A diag(S) B^T. Flags, counts and the status word
(:mod:`lip_fast.status`) are 0-d tensors on the device of their operands, so that a kernel need not stop for
the host.

A public function checks its arguments and runs the kernel that serves them here; kernels live in
:mod:`lip_fast.backends` and trust the checks. None of the ops is differentiable: they run inside an optimizer
step. Ops that decompose or make columns orthonormal never round an operand. Other products of kernels in
plain torch are taken as ``torch.set_float32_matmul_precision`` and autocast say where an op is called by
itself; a step sets both once for all of its ops (:func:`lip_fast.validation.full_precision`).
"""

from lip_fast.ops.at_once import Found, Step, exact_step_, projected_step_, split, truncated_step_
from lip_fast.ops.class_sums import ClassSums, class_sums
from lip_fast.ops.fresh_columns import fresh_columns
from lip_fast.ops.gram import gram
from lip_fast.ops.label_sums import Sums, label_sums
from lip_fast.ops.products import project, sketch
from lip_fast.ops.rebuild_ import rebuild_
from lip_fast.ops.refit import Refit, refit
from lip_fast.ops.svd import SVD, finish_svd, orthonormalize, start_basis, warm_svd
from lip_fast.ops.tail_svd import tail_svd
from lip_fast.ops.updates import (
    fuses_updates,
    update_one_read_,
    update_project,
    update_rebuild_,
    update_sketch_,
)
from lip_fast.rules import Scaling, Updated

__all__ = [
    "SVD",
    "ClassSums",
    "Found",
    "Refit",
    "Scaling",
    "Step",
    "Sums",
    "Updated",
    "class_sums",
    "exact_step_",
    "finish_svd",
    "fresh_columns",
    "fuses_updates",
    "gram",
    "label_sums",
    "orthonormalize",
    "project",
    "projected_step_",
    "rebuild_",
    "refit",
    "sketch",
    "split",
    "start_basis",
    "tail_svd",
    "truncated_step_",
    "update_one_read_",
    "update_project",
    "update_rebuild_",
    "update_sketch_",
    "warm_svd",
]
