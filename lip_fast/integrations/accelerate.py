"""LIP in a loop that ``accelerate`` prepares."""

from accelerate import Accelerator
from accelerate.optimizer import AcceleratedOptimizer
from torch.optim import Optimizer

from lip_fast.plugin import LIP, Attachment

__all__ = ["attach", "inner_optimizer"]


def attach(lip: LIP, optimizer: Optimizer, accelerator: Accelerator) -> Attachment:
    """Attach to an optimizer, prepared or not, and save LIP with the accelerator's checkpoints.

    ::

        model, optimizer, loader = accelerator.prepare(model, optimizer, loader)
        lip = lip_fast.LIP(accelerator.unwrap_model(model).head, rank="auto", start=500)
        attach(lip, optimizer, accelerator)
        for x, y in loader:
            with accelerator.accumulate(model):
                ...
                accelerator.backward(loss)
                lip.observe(y)
                optimizer.step()
                optimizer.zero_grad()

    Call it once for each LIP, in the same order wherever checkpoints are read. ``Accelerator.load_state``
    reads what is registered with it by pickle, without ``weights_only``: load checkpoints that you trust.

    Args:
        lip: of a head of the model, made when the model is on its device.
        optimizer: the one that holds the head's weight.
        accelerator: whose ``save_state`` and ``load_state`` save and restore LIP.

    Returns:
        The handle of :meth:`lip_fast.LIP.attach`, which detaches LIP; it stays in the checkpoints.

    Raises:
        TypeError, ValueError, RuntimeError: as :meth:`lip_fast.LIP.attach`.
    """
    handle = lip.attach(inner_optimizer(optimizer))
    accelerator.register_for_checkpointing(lip)
    return handle


def inner_optimizer(optimizer: Optimizer) -> Optimizer:
    """The one inside of the ``optimizer`` that ``prepare`` returned, which alone takes step hooks."""
    while isinstance(optimizer, AcceleratedOptimizer):
        optimizer = optimizer.optimizer
    return optimizer
