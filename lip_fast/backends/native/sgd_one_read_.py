"""SGD's update with both products: weight and state are read once where the kernel can, else op by op."""

from torch import Tensor

from lip_fast.backends.default.sgd_one_read_ import sgd_one_read_ as by_parts
from lip_fast.backends.native.library import MODULES, stream_of
from lip_fast.backends.native.one_read import lies_alike


def sgd_one_read_(
    M: Tensor,
    grad: Tensor,
    momentum_buffer: Tensor | None,
    V: Tensor,
    lr: Tensor,
    grad_scale: Tensor | None,
    found_inf: Tensor | None,
    momentum: float,
    dampening: float,
    weight_decay: float,
    nesterov: bool,
    maximize: bool,
    first: bool,
    write: bool,
) -> tuple[Tensor, Tensor]:
    """Y (l, m), Z (q, m). See :func:`lip_fast.ops.sgd_one_read_`."""
    (l, q), m, device = M.shape, V.shape[1], M.device
    module, stream = MODULES[device.type], stream_of(device)
    buffered, values = momentum_buffer is not None, -1
    if lies_alike(M, grad, *([] if momentum_buffer is None else [momentum_buffer])):
        values = module.sgd_one_read_workspace(l, q, m, buffered)
    rule = (momentum, dampening, weight_decay, nesterov, maximize, first, write)
    if values < 0:
        return by_parts(M, grad, momentum_buffer, V, lr, grad_scale, found_inf, *rule)
    V = V.mT.contiguous().mT
    Yt, Zt, workspace = V.new_empty(m, l), V.new_empty(m, q), V.new_empty(values)
    module.sgd_one_read(
        M.data_ptr(),
        grad.data_ptr(),
        0 if momentum_buffer is None else momentum_buffer.data_ptr(),
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
        0 if grad_scale is None else grad_scale.data_ptr(),
        0 if found_inf is None else found_inf.data_ptr(),
        *rule,
        stream,
    )
    return Yt.mT, Zt.mT
