"""torch's SGD, AdamW and NAdam with LIP inside of their step, and groups whose weights are repaired."""

from typing import Unpack

import torch
from torch import Tensor
from torch.optim.optimizer import ParamsT

from lip_fast.rules import SGD, AdamW, NAdam
from lip_fast.with_lip import LIPOptions, LIPState, WithLIP

__all__ = ["LIPSGD", "LIPAdamW", "LIPNAdam", "LIPState"]


class LIPSGD(WithLIP, torch.optim.SGD):
    """:class:`torch.optim.SGD` with LIP (arXiv:2505.16159) inside of the step.

    LIP acts on the weights of the groups that have a ``lip_rank``::

        optimizer = lip_fast.optim.LIPSGD(
            [
                {"params": [*model.backbone.parameters(), model.head.bias]},
                {"params": [model.head.weight], "lip_rank": "auto", "lip_start": 500},
            ],
            lr=0.1,
            momentum=0.9,
        )
        optimizer.watch(model.head)  # what it is called with
        for x, y in loader:
            criterion(model(x), y).backward()
            optimizer.observe(model.head, y)
            optimizer.step()
            optimizer.zero_grad()

    Every parameter is updated as torch does it; when and how LIP acts is said in :class:`lip_fast.LIP`.
    Copies (``copy.deepcopy``, pickle) have copies of LIP and its state. Checkpoints need ``optimizer.lip``, a
    ``Stateful``, beside the optimizer. One optimizer at a time acts on a weight: a new one of these takes
    it over, and the old one refuses further steps.

    Args:
        params: parameters or groups, as in torch. A LIP group holds matrices (l, q) alone, and may set each
            of the arguments with ``lip_`` for itself; all of them are scalars.
        lr, momentum, dampening, weight_decay, nesterov, maximize, foreach, differentiable, fused: as in
            torch.
        lip: ``lip_rank``, the ``rank`` of :class:`lip_fast.LIP` for groups that do not say; None for no LIP.
            ``lip_tail_rank``, ``lip_tail``, ``lip_rest``, ``lip_every``, ``lip_start``, ``lip_decay`` and
            ``lip_clip``: likewise. Another rank, tail or decay in the midst of training makes LIP begin anew;
            the others may change at any time. And for all groups, ``data_group``: the processes whose batches
            differ, as of :class:`lip_fast.LIP`; ``seed`` of random columns and stochastic rounding;
            ``strict``: raise :class:`lip_fast.LIPError` where a step's LIP is skipped as unsound;
            ``skip_nonfinite``: where a gradient is not finite, leave weights and state as they are, which
            waits for the device, except with ``fused=True``.

    Raises:
        TypeError, ValueError: as in torch; a parameter of a LIP group that is not a dense real matrix, or a
            setting that does not fit it; the message names the parameter.
    """

    RULE = SGD

    def __init__(
        self,
        params: ParamsT,
        lr: float | Tensor = 1e-3,
        momentum: float = 0,
        dampening: float = 0,
        weight_decay: float | Tensor = 0,
        nesterov: bool = False,
        *,
        maximize: bool = False,
        foreach: bool | None = None,
        differentiable: bool = False,
        fused: bool | None = None,
        **lip: Unpack[LIPOptions],
    ) -> None:
        self.set_lip(lip)
        super().__init__(
            params,
            lr,
            momentum,
            dampening,
            weight_decay,
            nesterov,
            maximize=maximize,
            foreach=foreach,
            differentiable=differentiable,
            fused=fused,
        )


class LIPAdamW(WithLIP, torch.optim.AdamW):
    """:class:`torch.optim.AdamW` with LIP (arXiv:2505.16159) inside of the step; used as :class:`LIPSGD` is.

    Args:
        params: parameters or groups, as in torch.
        lr, betas, eps, weight_decay, amsgrad, maximize, foreach, capturable, differentiable, fused: as in
            torch.
        lip: the arguments of LIP, which :class:`LIPSGD` explains with all else.

    Raises:
        TypeError, ValueError: as :class:`LIPSGD`.
    """

    RULE = AdamW

    def __init__(
        self,
        params: ParamsT,
        lr: float | Tensor = 1e-3,
        betas: tuple[float | Tensor, float | Tensor] = (0.9, 0.999),
        eps: float = 1e-8,
        weight_decay: float = 1e-2,
        amsgrad: bool = False,
        *,
        maximize: bool = False,
        foreach: bool | None = None,
        capturable: bool = False,
        differentiable: bool = False,
        fused: bool | None = None,
        **lip: Unpack[LIPOptions],
    ) -> None:
        self.set_lip(lip)
        super().__init__(
            params,
            lr,
            betas,
            eps,
            weight_decay,
            amsgrad,
            maximize=maximize,
            foreach=foreach,
            capturable=capturable,
            differentiable=differentiable,
            fused=fused,
        )


class LIPNAdam(WithLIP, torch.optim.NAdam):
    """:class:`torch.optim.NAdam` with LIP (arXiv:2505.16159) inside of the step; used as :class:`LIPSGD` is.

    Args:
        params: parameters or groups, as in torch.
        lr, betas, eps, weight_decay, momentum_decay, decoupled_weight_decay: as in torch.
        foreach, maximize, capturable, differentiable: as in torch.
        lip: the arguments of LIP, which :class:`LIPSGD` explains with all else. torch has no fused NAdam, so
            that ``skip_nonfinite`` waits for the device.

    Raises:
        TypeError, ValueError: as :class:`LIPSGD`.
    """

    RULE = NAdam

    def __init__(
        self,
        params: ParamsT,
        lr: float | Tensor = 2e-3,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-8,
        weight_decay: float = 0,
        momentum_decay: float = 4e-3,
        decoupled_weight_decay: bool = False,
        *,
        foreach: bool | None = None,
        maximize: bool = False,
        capturable: bool = False,
        differentiable: bool = False,
        **lip: Unpack[LIPOptions],
    ) -> None:
        self.set_lip(lip)
        super().__init__(
            params,
            lr,
            betas,
            eps,
            weight_decay,
            momentum_decay,
            decoupled_weight_decay,
            foreach=foreach,
            maximize=maximize,
            capturable=capturable,
            differentiable=differentiable,
        )
