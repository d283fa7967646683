"""What a head is called with in training, seen by a hook."""

import weakref
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

__all__ = ["HeadInput"]


class HeadInput:
    """The input of the head's forward pass in training, for observations that come without features.

    A forward pre-hook of the head. Copies and files of the model have a copy of it, which sees nothing where
    no LIP was copied with it. Passes in evaluation mode, without gradients, or inside of a backward pass
    (``torch.utils.checkpoint`` recomputes there what was seen before) are passed over.

    Attributes:
        seen: the input since the last observation or step, detached; None where there was no pass.
        several: whether there were several.
        used: whether there was one since the last step.
    """

    def __init__(self) -> None:
        self.seen: Tensor | None = None
        self.several = self.used = False
        # Whether a LIP asks for what is seen, and whether the hook was ever put on a head.
        self._serves = self._watched = False
        self._handle: RemovableHandle | None = None

    def __getstate__(self) -> dict[str, Any]:
        # A copy serves nobody until the copy of a LIP, if there is one, asks for it.
        return HeadInput().__dict__ | {"_watched": self._watched}

    def serve(self, lip: object) -> None:
        """See what the head is called with, as long as ``lip`` lives."""
        self._serves = True
        weakref.finalize(lip, self.unwatch).atexit = False

    def watch(self, module: nn.Module) -> None:
        """Be a hook of this module, and no longer one of another."""
        # A copy may be a hook of the copied module, without a handle.
        if all(hook is not self for hook in getattr(module, "_forward_pre_hooks", {}).values()):
            self.unwatch()
            self._handle = module.register_forward_pre_hook(self, with_kwargs=True)
        self._serves = self._watched = True

    def unwatch(self) -> None:
        """Be a hook of no module; of a copy, one that sees nothing."""
        if self._handle is not None:
            self._handle.remove()
        self._handle, self._serves, self._watched = None, False, False
        self.forget()

    def take_over(self, other: "HeadInput", module: nn.Module) -> None:
        """Watch ``module`` in place of another, with what that one has seen."""
        self.watch(module)
        self.seen, self.several, self.used = other.seen, other.several, other.used
        other.unwatch()

    def forget(self) -> None:
        """Forget what was seen."""
        self.seen, self.several = None, False

    # torch.compile traces this together with the module; a number that it counts up would compile it anew.
    def __call__(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        """Before each forward pass of the module."""
        if not (self._serves and module.training and torch.is_grad_enabled()):
            return
        if not torch.compiler.is_compiling() and torch._C._current_graph_task_id() != -1:
            return
        given = args[0] if args else next(iter(kwargs.values()), None)
        self.several, self.used = self.seen is not None, True
        self.seen = given.detach() if isinstance(given, Tensor) else None

    def take(self) -> Tensor:
        """The features of the one forward pass since the last observation or step.

        Raises:
            ValueError: there was none, or several.
        """
        seen, several = self.seen, self.several
        self.forget()
        if several:
            raise ValueError(
                "expected one forward pass of the head in training since the last observation or step, got "
                "several: observe after each of them, or pass the features of the one that counts, "
                "observe(features, targets)"
            )
        if seen is not None:
            return seen
        if not self._watched:
            raise ValueError(
                "expected targets of a head that is watched, got one that is not: of an optimizer with LIP "
                "call watch(head) before the forward pass, of a LIP that was detached attach(optimizer), or "
                "pass the features, observe(features, targets)"
            )
        raise ValueError(
            "expected a forward pass of the head, in training mode and with gradients, since the last "
            "observation or step, got none. Where the model runs another way (a copy of the head, its weight "
            "alone, a graph that is replayed, a model compiled and called before the LIP was made, reentrant "
            "activation checkpointing), pass the features, observe(features, targets)"
        )
