"""An optimizer's update with both products: all is read once where the kernel can, else op by op."""

from torch import Tensor

from lip_fast.backends.default.update import update_one_read_ as by_parts
from lip_fast.backends.native.library import MODULES, addresses, stream_of
from lip_fast.backends.native.one_read import lies_alike
from lip_fast.rules import Updated


def update_one_read_(updated: Updated, V: Tensor, write: bool) -> tuple[Tensor, Tensor]:
    """Y (l, m), Z (q, m). See :func:`lip_fast.ops.update_one_read_`."""
    M, grad, state, scalars, grad_scale, found_inf, rule, settings = updated.operands()
    (l, q), m, held = M.shape, V.shape[1], (grad, *state)
    module, values = MODULES[M.device.type], -1
    if lies_alike(M, *held):
        values = module.update_one_read_workspace(rule, len(held), l, q, m)
    if values < 0:
        return by_parts(updated, V, write)
    Vt = V.mT.contiguous()
    Yt, Zt, workspace = Vt.new_empty(m, l), Vt.new_empty(m, q), Vt.new_empty(values)
    module.update_one_read(
        rule,
        M.data_ptr(),
        addresses(*held),
        l,
        q,
        M.stride(0),
        Vt.data_ptr(),
        m,
        *addresses(Yt, Zt, workspace),
        values,
        addresses(*scalars),
        0 if grad_scale is None else grad_scale.data_ptr(),
        0 if found_inf is None else found_inf.data_ptr(),
        settings,
        write,
        stream_of(M.device),
    )
    return Yt.mT, Zt.mT
