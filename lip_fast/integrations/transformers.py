"""LIP in the Trainer of ``transformers``: as a callback, or in an optimizer factory."""

import warnings
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.utils.hooks import RemovableHandle
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from lip_fast.integrations.accelerate import inner_optimizer
from lip_fast.plugin import LIP, Attachment
from lip_fast.targets import IGNORE_INDEX

__all__ = ["LIPCallback"]


class LIPCallback(TrainerCallback):
    """Makes a :class:`lip_fast.LIP` when training begins, attaches it, and saves it in the checkpoints.

    ::

        Trainer(model, args, callbacks=[LIPCallback("classifier", rank="auto", start=500)])

    It observes the ``labels`` that the model is called with, and as features what its head is called with:
    whatever the model makes of its hidden states. Labels of sequences are shifted by one where the loss of
    the model does so, as that of the first batch tells. A loss of one's own, to which the Trainer hands the
    labels in place of the model, observes them itself::

        lip = LIPCallback("classifier", rank="auto", start=500)

        def loss(outputs, labels, num_items_in_batch=None):
            lip.observe(labels)
            count = labels.numel() if num_items_in_batch is None else num_items_in_batch
            return cross_entropy(outputs.logits, labels, reduction="sum") / count

        Trainer(model, args, callbacks=[lip], compute_loss_func=loss)

    It attaches to the optimizer that the Trainer makes or is given. Or it makes one, as a factory::

        Trainer(model, args, callbacks=[lip],
                optimizer_cls_and_kwargs=(lip.factory, {"optimizer": torch.optim.SGD, "lr": 0.1}))

    LIP's state is saved inside of the optimizer's (``optimizer.pt``, read with ``weights_only=True``), and
    training goes on from it to the bit. A schedule with warm-up starts at a learning rate of 0: what is
    observed then counts in the batch of the second step.

    Args:
        head: name of the linear layer inside of the model that makes the logits: "classifier" (BERT, ViT),
            "classifier.out_proj" (RoBERTa), "score" or "lm_head".
        rank: as of :class:`lip_fast.LIP`.
        **options: its other arguments.

    Attributes:
        lip: the LIP, None before training begins.
    """

    def __init__(self, head: str, rank: int | float | str, **options: Any) -> None:
        self.lip: LIP | None = None
        self._name, self._rank, self._options = head, rank, options
        self._head: nn.Module | None = None
        self._hooks: list[RemovableHandle | Attachment] = []
        self._optimizer: Optimizer | None = None
        self._known = self._observed = False
        # Whether the model's loss is of shifted labels; None until a batch has told.
        self._shifts: bool | None = None

    def observe(self, targets: Tensor) -> None:
        """Observe the labels of a batch that the model was called with; ignored in evaluation.

        Args:
            targets: labels of the rows that the head saw, as of :meth:`lip_fast.LIP.observe`; of a causal
                language model those that belong to each position, shifted by the caller.

        Raises:
            RuntimeError: the callback is not one of the Trainer's.
        """
        if not (self._known or self._hooks):
            raise RuntimeError("expected this callback among the Trainer's: Trainer(callbacks=[...])")
        # The Trainer takes the loss in evaluation too, which may come before training.
        if self.lip is not None and self._head is not None and self._hooks and self._head.training:
            self._observed = True
            self.lip.observe(targets)

    def _observe_labels(
        self, model: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any
    ) -> None:
        """After a forward pass of the model that was given labels."""
        labels = kwargs.get("labels")
        if labels is None or not torch.is_grad_enabled() or self._head is None or not self._head.training:
            return
        if labels.dim() > 1 and not labels.is_floating_point():
            if self._shifts is None:
                self._shifts = _shifts(output, labels, kwargs.get("num_items_in_batch"))
            if self._shifts:
                labels = _shifted(labels)
        weight: Any = self._head.weight
        self.observe(labels.to(weight.device))

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
        """Know that the Trainer has this callback."""
        self._known = True

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Attach to the model that is trained, with the state that the optimizer was loaded with."""
        optimizer, model = inner_optimizer(kwargs["optimizer"]), kwargs["model"]
        if optimizer is not self._optimizer:
            self._attach(model, optimizer)
            if state.global_step:
                self._restore(optimizer)
        self._observed, self._shifts = False, None

    def on_step_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Say so where nothing was observed in a step."""
        if not self._observed:
            raise RuntimeError(
                "expected labels in the first step, got none: the model is called with labels=..., or the "
                "loss calls observe(labels) of this callback (compute_loss_func and label smoothing take the "
                "labels from the model)"
            )

    def on_train_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Detach."""
        self._detach()

    def _detach(self) -> None:
        for hook in self._hooks:
            hook.remove()
        self._hooks, self._optimizer = [], None

    def _attach(self, model: nn.Module, optimizer: Optimizer) -> None:
        # From the optimizer of a training that failed, whose end the Trainer did not tell.
        self._detach()
        head = model.get_submodule(self._name)
        if self.lip is None or head is not self._head:
            self.lip, self._head = LIP(head, self._rank, **self._options), head
        self._hooks = [
            self.lip.attach(optimizer),
            optimizer.register_state_dict_post_hook(self._save),
            optimizer.register_load_state_dict_post_hook(self._restore),
            model.register_forward_hook(self._observe_labels, with_kwargs=True),
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


def _shifted(labels: Tensor) -> Tensor:
    """The label of each position as causal language models have it: the next one."""
    return nn.functional.pad(labels[..., 1:], (0, 1), value=IGNORE_INDEX)


def _shifts(output: Any, labels: Tensor, items: Tensor | int | None) -> bool:
    """Whether the loss of a model is that of shifted labels.

    Neither the class of a model nor its ``loss_type`` tells: decoders of encoder-decoder models are called
    causal and shift nothing, models of images and text are not and do. The loss itself does.

    Args:
        output: of a model of sequences, with its loss and its logits (..., classes).
        labels: (...) class indices that it was given.
        items: labels in all micro-batches of the step, by which some losses are divided.

    Raises:
        ValueError: the loss is neither that of the labels nor that of the shifted ones.
    """
    logits, loss = getattr(output, "logits", None), getattr(output, "loss", None)
    told = "pass the labels by compute_loss_func, and observe there those of the rows that the head sees"
    if not isinstance(logits, Tensor) or not isinstance(loss, Tensor) or logits.shape[:-1] != labels.shape:
        raise ValueError(
            f"expected an output with a loss, and logits for each of the labels, got others: {told}"
        )
    found, off = float(loss.detach()), []
    for given in (labels, _shifted(labels)):
        rows = logits.detach().float().flatten(0, -2)
        total = nn.functional.cross_entropy(rows, given.flatten().to(rows.device), reduction="sum")
        counts = [(given != IGNORE_INDEX).sum().item()] + ([] if items is None else [float(items)])
        off.append(min(abs(float(total) / max(count, 1) - found) for count in counts))
    # Losses that add something of their own are nearer to one of them all the same.
    if min(off) > 0.5 * max(off) or min(off) > 0.2 * abs(found):
        raise ValueError(f"expected the loss of the labels, shifted by one or not, got another: {told}")
    return off[1] < off[0]
