"""LIP as a callback of a Lightning trainer."""

from typing import Any

from lightning.pytorch import Callback, LightningModule, Trainer
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from lip_fast.head import group_of
from lip_fast.plugin import LIP

__all__ = ["LIPCallback"]


class LIPCallback(Callback):
    """Makes a :class:`lip_fast.LIP` when fitting starts, attaches it, and saves it in the checkpoints.

    ::

        class Classifier(LightningModule):
            def __init__(self, lip: LIPCallback): ...

            def training_step(self, batch, batch_idx):
                x, y = batch
                features = self.backbone(x)
                self.lip.observe(features, y)
                return cross_entropy(self.head(features), y)

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
        self._handle: RemovableHandle | None = None
        # Of a checkpoint that is read before the module is on its device.
        self._waiting: dict[str, Any] = {}
        self._known = False

    @property
    def state_key(self) -> str:
        """One state for each head in the checkpoint."""
        return self._generate_state_key(head=self._name)

    def observe(self, features: Tensor, targets: Tensor) -> None:
        """As :meth:`lip_fast.LIP.observe`; ignored in validation and outside of fitting.

        Args:
            features: input of the head.
            targets: labels of its rows.

        Raises:
            RuntimeError: the callback is not one of the trainer's.
        """
        if self.lip is not None and self._head is not None and self._handle is not None:
            if self._head.training:
                self.lip.observe(features, targets)
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
        self._handle = self.lip.attach(holders[0])
        if self._waiting:
            self.lip.load_state_dict(self._waiting)
            self._waiting = {}

    def on_fit_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Detach."""
        self._detach()

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        """Detach."""
        self._detach()

    def _detach(self) -> None:
        if self._handle is not None:
            self._handle.remove()
        self._handle, self._known = None, False

    def state_dict(self) -> dict[str, Any]:
        """LIP's state, for the trainer's checkpoint."""
        return self._waiting if self.lip is None or self._waiting else self.lip.state_dict()

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Take ``state_dict`` from the trainer's checkpoint, for when fitting starts."""
        self._waiting = state_dict
