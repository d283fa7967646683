"""LIP as a callback of a Lightning trainer."""

import copy
import warnings
from types import EllipsisType
from typing import Any, overload

from lightning.pytorch import Callback, LightningModule, Trainer
from torch import Tensor, nn

from lip_fast.head import group_of
from lip_fast.plugin import LIP, Attachment

__all__ = ["LIPCallback"]


class LIPCallback(Callback):
    """Makes a :class:`lip_fast.LIP` when fitting starts, attaches it, and saves it in the checkpoints.

    ::

        class Classifier(LightningModule):
            def __init__(self, lip: LIPCallback):
                super().__init__()
                self.save_hyperparameters(ignore=["lip"])
                self.lip = lip
                ...

            def training_step(self, batch, batch_idx):
                x, y = batch
                loss = cross_entropy(self(x), y)
                self.lip.observe(y)
                return loss

        lip = LIPCallback("head", rank="auto", start=500)
        Trainer(callbacks=[lip]).fit(Classifier(lip), loader)

    It attaches to the one of the trainer's optimizers that holds the head's weight. A second fit of the same
    module goes on with the same LIP. What is observed in validation is ignored. Callbacks that average
    weights do so after LIP.

    Args:
        head: name of the head inside of the module, such as "head" or "model.fc".
        rank: as of :class:`lip_fast.LIP`.
        **options: its other arguments.

    Attributes:
        lip: the LIP, None before fitting starts.
    """

    def __init__(self, head: str, rank: int | float | str, **options: Any) -> None:
        self.lip: LIP | None = None
        self._name, self._rank, self._options = head, rank, options
        self._head: nn.Module | None = None
        self._attachment: Attachment | None = None
        # Of a checkpoint that is read before the module is on its device.
        self._waiting: dict[str, Any] = {}
        self._known = self._observed = self._warned = False

    @property
    def state_key(self) -> str:
        """One state for each head in the checkpoint."""
        return self._generate_state_key(head=self._name)

    def __deepcopy__(self, memo: dict[int, Any]) -> "LIPCallback":
        # Callbacks that average weights copy the module, and what it refers to.
        made = memo[id(self)] = type(self).__new__(type(self))
        made.__dict__.update(copy.deepcopy(self.__dict__ | {"_attachment": None}, memo))
        return made

    def __reduce_ex__(self, protocol: Any) -> Any:
        # Before it has a LIP it may be sent to other processes.
        if self.lip is not None:
            raise TypeError(
                "expected a LIPCallback not to be pickled, since it would take the head with it: in a "
                "LightningModule that is given one, call save_hyperparameters(ignore=[...]) with the name of "
                "that argument"
            )
        return super().__reduce_ex__(protocol)

    @overload
    def observe(self, targets: Tensor, /) -> None: ...

    @overload
    def observe(self, features: Tensor, targets: Tensor) -> None: ...

    def observe(self, features: Tensor | EllipsisType = ..., targets: Tensor | EllipsisType = ...) -> None:
        """As :meth:`lip_fast.LIP.observe`; ignored in validation and outside of fitting.

        Args:
            features: input of the head; where only targets are given, what the head was called with.
            targets: labels of its rows.

        Raises:
            RuntimeError: the callback is not one of the trainer's.
        """
        if self.lip is not None and self._head is not None and self._attachment is not None:
            if self._head.training:
                self._observed = True
                observe: Any = self.lip.observe
                observe(features, targets)
        elif not self._known:
            raise RuntimeError("expected this callback among the trainer's: Trainer(callbacks=[...])")

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Know that the trainer has this callback."""
        self._known = True

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Attach, with the state of the checkpoint if there is one."""
        head = pl_module.get_submodule(self._name)
        if self.lip is None or head is not self._head:
            self.lip, self._head = LIP(head, self._rank, **self._options), head
        weight: Any = head.weight
        holders = [o for o in trainer.optimizers if group_of(o, weight) is not None]
        if not holders:
            raise ValueError(f"expected one of the trainer's optimizers to hold the weight of {self._name!r}")
        self._attachment = self.lip.attach(holders[0])
        if self._waiting:
            self.lip.load_state_dict(self._waiting)
            self._waiting = {}

    def on_train_batch_end(self, trainer: Trainer, pl_module: LightningModule, *args: Any) -> None:
        """Say so where nothing was observed in the first batch."""
        if not (self._observed or self._warned):
            self._warned = True
            warnings.warn(
                f"expected LIP on {self._name!r} to be shown labels, got none in the first batch: call "
                "observe(targets) of its callback in training_step",
                UserWarning,
                stacklevel=2,
            )

    def on_fit_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Detach."""
        self._detach()

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        """Detach."""
        self._detach()

    def _detach(self) -> None:
        if self._attachment is not None:
            self._attachment.remove()
        self._attachment, self._known = None, False

    def state_dict(self) -> dict[str, Any]:
        """LIP's state, for the trainer's checkpoint."""
        return self._waiting if self.lip is None or self._waiting else self.lip.state_dict()

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Take ``state_dict`` from the trainer's checkpoint, for when fitting starts."""
        self._waiting = state_dict
