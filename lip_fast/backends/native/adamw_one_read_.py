"""AdamW's update with both products: weight and state are read once where the kernel can, else op by op."""

from torch import Tensor

from lip_fast.backends.default.adamw_one_read_ import adamw_one_read_ as by_parts
from lip_fast.backends.native.library import MODULES, stream_of
from lip_fast.backends.native.one_read import lies_alike


def adamw_one_read_(
    M: Tensor,
    grad: Tensor,
    exp_avg: Tensor,
    exp_avg_sq: Tensor,
    max_exp_avg_sq: Tensor | None,
    V: Tensor,
    lr: Tensor,
    update_count: Tensor,
    grad_scale: Tensor | None,
    found_inf: Tensor | None,
    beta1: float,
    beta2: float,
    eps: float,
    weight_decay: float,
    maximize: bool,
    write: bool,
) -> tuple[Tensor, Tensor]:
    """Y (l, m), Z (q, m). See :func:`lip_fast.ops.adamw_one_read_`."""
    (l, q), m, device = M.shape, V.shape[1], M.device
    module, stream = MODULES[device.type], stream_of(device)
    values = -1
    if max_exp_avg_sq is None and lies_alike(M, grad, exp_avg, exp_avg_sq):
        values = module.adamw_one_read_workspace(l, q, m)
    if values < 0:
        rule = (lr, update_count, grad_scale, found_inf, beta1, beta2, eps, weight_decay, maximize, write)
        return by_parts(M, grad, exp_avg, exp_avg_sq, max_exp_avg_sq, V, *rule)
    V = V.mT.contiguous().mT
    Yt, Zt, workspace = V.new_empty(m, l), V.new_empty(m, q), V.new_empty(values)
    module.adamw_one_read(
        M.data_ptr(),
        grad.data_ptr(),
        exp_avg.data_ptr(),
        exp_avg_sq.data_ptr(),
        l,
        q,
        M.stride(0),
        V.data_ptr(),
        m,
        Yt.data_ptr(),
        Zt.data_ptr(),
        workspace.data_ptr(),
        values,
        lr.data_ptr(),
        update_count.data_ptr(),
        0 if grad_scale is None else grad_scale.data_ptr(),
        0 if found_inf is None else found_inf.data_ptr(),
        beta1,
        beta2,
        eps,
        weight_decay,
        maximize,
        write,
        stream,
    )
    return Yt.mT, Zt.mT
