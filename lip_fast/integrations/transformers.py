"""LIP in the Trainer of ``transformers``: as a callback, or in an optimizer factory."""

import warnings
from collections.abc import Callable
from typing import Any

from torch import Tensor, nn
from torch.optim import Optimizer
from torch.utils.hooks import RemovableHandle
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from lip_fast.integrations.accelerate import inner_optimizer
from lip_fast.plugin import LIP

__all__ = ["LIPCallback"]


class LIPCallback(TrainerCallback):
    """Makes a :class:`lip_fast.LIP` when training begins, attaches it, and saves it in the checkpoints.

    ::

        lip = LIPCallback("classifier", rank="auto", start=500)

        def loss(outputs, labels, num_items_in_batch=None):
            lip.observe(outputs.hidden_states[-1][:, 0], labels)
            return cross_entropy(outputs.logits, labels)

        Trainer(model, args, callbacks=[lip], compute_loss_func=loss)

    So it attaches to the optimizer that the Trainer makes or is given. Or it makes one, as a factory::

        Trainer(model, args, callbacks=[lip], compute_loss_func=loss,
                optimizer_cls_and_kwargs=(lip.factory, {"optimizer": torch.optim.SGD, "lr": 0.1}))

    LIP's state is saved inside of the optimizer's (``optimizer.pt``, read with ``weights_only=True``), and
    training goes on from it to the bit. A schedule with warm-up starts at a learning rate of 0: what is
    observed then counts in the batch of the second step.

    Args:
        head: name of the head inside of the model, such as "classifier".
        rank: as of :class:`lip_fast.LIP`.
        **options: its other arguments.

    Attributes:
        lip: the LIP, None before training begins.
    """

    def __init__(self, head: str, rank: int | float | str, **options: Any) -> None:
        self.lip: LIP | None = None
        self._name, self._rank, self._options = head, rank, options
        self._head: nn.Module | None = None
        self._handles: list[RemovableHandle] = []
        self._optimizer: Optimizer | None = None
        self._model: nn.Module | None = None

    def observe(self, features: Tensor, targets: Tensor) -> None:
        """As :meth:`lip_fast.LIP.observe`; ignored in evaluation, where the Trainer takes the loss too.

        Args:
            features: input of the head.
            targets: labels of its rows.

        Raises:
            RuntimeError: not attached: the callback is not one of the Trainer's.
        """
        if self._model is not None and not self._model.get_submodule(self._name).training:
            return
        if self.lip is None or not self._handles:
            raise RuntimeError("expected this callback among the Trainer's: Trainer(callbacks=[...])")
        self.lip.observe(features, targets)

    def factory(self) -> Callable[..., Optimizer]:
        """For the Trainer's ``optimizer_cls_and_kwargs``; ``optimizer``, a class, is one of the kwargs.

        All parameters of the model that take gradients are one group.
        """

        def make(model: nn.Module, *, optimizer: type[Optimizer], **kwargs: Any) -> Optimizer:
            made = optimizer([p for p in model.parameters() if p.requires_grad], **kwargs)
            self._attach(model, made)
            return made

        return make

    def on_init_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Know the model that the Trainer has, which may evaluate it before it trains."""
        self._model = kwargs["model"]

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Attach, with the state that the optimizer was loaded with."""
        optimizer = inner_optimizer(kwargs["optimizer"])
        if optimizer is not self._optimizer:
            self._attach(kwargs["model"], optimizer)
            if state.global_step:
                self._restore(optimizer)

    def on_train_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Detach."""
        self._detach()

    def _detach(self) -> None:
        for handle in self._handles:
            handle.remove()
        self._handles, self._optimizer = [], None

    def _attach(self, model: nn.Module, optimizer: Optimizer) -> None:
        # From the optimizer of a training that failed, whose end the Trainer did not tell.
        self._detach()
        head = model.get_submodule(self._name)
        if self.lip is None or head is not self._head:
            self.lip, self._head = LIP(head, self._rank, **self._options), head
        self._handles = [
            self.lip.attach(optimizer),
            optimizer.register_state_dict_post_hook(self._save),
            optimizer.register_load_state_dict_post_hook(self._restore),
        ]
        self._optimizer = optimizer

    # Optimizers load only what belongs to a parameter or to a group; a group's entries are neither cast nor
    # dropped. There it is found too where LIP is attached only after loading.
    @property
    def _key(self) -> str:
        return f"lip {self._name}"

    def _save(self, optimizer: Optimizer, state_dict: dict[str, Any]) -> None:
        assert self.lip is not None
        state_dict["param_groups"][0][self._key] = self.lip.state_dict()

    def _restore(self, optimizer: Optimizer) -> None:
        assert self.lip is not None
        saved = optimizer.param_groups[0].pop(self._key, None)
        if saved is not None:
            self.lip.load_state_dict(saved)
        else:
            warnings.warn(f"no state of LIP on {self._name!r} was saved: it starts anew", stacklevel=2)
