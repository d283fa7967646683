"""What a head is called with in training, seen by a hook."""

import weakref
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

__all__ = ["HeadInput", "remove_idle_hooks"]

# Rows of the first output, by which it is told whether the head is linear.
_ROWS = 8


class HeadInput:
    """The input of the head's forward pass in training, for observations that come without features.

    A forward hook of the head, which sees what forward was given, after all hooks before it. Copies and files
    of the model have a copy of it, which goes where no LIP was copied with it. Passes in evaluation mode,
    without gradients, inside of a backward pass (``torch.utils.checkpoint`` recomputes there what was seen
    before), of ``torch.export``, ``torch.jit`` and transforms of ``torch.func`` are passed over.

    Attributes:
        seen: the input since the last observation or step, detached; None where there was no pass.
        logits: the first rows of what the head made of it, until they were looked at once.
        passed, several: whether there was a pass, and whether there were several.
        used: whether there was one since the last step.
    """

    def __init__(self) -> None:
        self.seen: Tensor | None = None
        self.logits: Tensor | None = None
        self.passed = self.several = self.used = False
        self._looked_at = False
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
        remove_idle_hooks(module, but=self)
        # A copy may be a hook of the copied module, without a handle.
        if all(hook is not self for hook in _hooks(module).values()):
            self.unwatch()
            self._handle = module.register_forward_hook(self, with_kwargs=True)
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
        self.seen, self.logits = other.seen, other.logits
        self.passed, self.several, self.used = other.passed, other.several, other.used
        other.unwatch()

    def forget(self) -> None:
        """Forget what was seen."""
        self.seen, self.logits = None, None
        self.several = self.passed = False

    @property
    def is_idle(self) -> bool:
        """Whether no LIP asks for what is seen."""
        return not self._serves

    # torch.compile traces this together with the module; a number that it counts up would compile it anew.
    def __call__(self, module: nn.Module, args: tuple[Any, ...], *rest: Any) -> None:
        """After each forward pass of the module; ``rest`` is its keyword arguments and output, or that alone.

        torch.ao registers the hooks of a module on its own ones, without keyword arguments.
        """
        compiling = torch.compiler.is_compiling()
        if self.is_idle:
            if not compiling:
                remove_idle_hooks(module)
            return
        if torch.compiler.is_exporting() or not (module.training and torch.is_grad_enabled()):
            return
        if not compiling and (torch._C._current_graph_task_id() != -1 or _is_traced(args)):
            return
        kwargs, output = rest if len(rest) == 2 else ({}, rest[0])
        given = args[0] if args else next(iter(kwargs.values()), None)
        self.several, self.passed, self.used = self.several or self.passed, True, True
        self.seen = given.detach() if isinstance(given, Tensor) else None
        # A copy of a few rows, which does not keep the others; of a DTensor it would be a collective.
        if not (self._looked_at or compiling) and type(output) is Tensor and output.dim() > 1:
            first = (slice(1),) * (output.dim() - 2) + (slice(_ROWS),)
            self.logits = output.detach()[first].flatten(0, -2).clone()

    def take_logits(self) -> Tensor | None:
        """The first rows of the output of the pass that was seen, the first time they are asked for."""
        logits, self.logits, self._looked_at = self.logits, None, True
        return logits

    def features(self) -> Tensor:
        """The input of the one forward pass since the last observation or step.

        Raises:
            ValueError: there was none, or several, which are forgotten.
        """
        if self.several:
            self.forget()
            raise ValueError(
                "expected one forward pass of the head in training since the last observation or step, got "
                "several: observe after each of them, call discard() after one that does not count, or pass "
                "the features, observe(features, targets)"
            )
        if self.seen is not None:
            return self.seen
        if not self._watched:
            raise ValueError(
                "expected targets of a head that is watched, got one that is not: of an optimizer with LIP "
                "call watch(head) before the forward pass, of a LIP that was detached attach(optimizer), or "
                "pass the features, observe(features, targets)"
            )
        raise ValueError(
            "expected a forward pass of the head, in training mode and with gradients, since the last "
            "observation or step, got none: observe before the step, and make a LIP of the head that the "
            "model has now. Where the model runs another way (the weight alone, a graph that is replayed, "
            "reentrant activation checkpointing, a model compiled and called before the LIP was made), pass "
            "the features, observe(features, targets)"
        )


def remove_idle_hooks(module: nn.Module, but: HeadInput | None = None) -> None:
    """Remove the hooks from a copied module that no LIP was copied with."""
    hooks = _hooks(module)
    for key in [key for key, hook in hooks.items() if isinstance(hook, HeadInput) and hook.is_idle]:
        if hooks[key] is not but:
            del hooks[key]
            getattr(module, "_forward_hooks_with_kwargs", {}).pop(key, None)


def _hooks(module: nn.Module) -> dict[int, Any]:
    hooks: dict[int, Any] = getattr(module, "_forward_hooks", {})
    return hooks


def _is_traced(args: tuple[Any, ...]) -> bool:
    """Whether a pass is of torch.jit's tracing, or of a transform of torch.func: its tensors end with it."""
    return torch.jit.is_tracing() or any(
        isinstance(x, Tensor) and torch._C._functorch.is_functorch_wrapped_tensor(x) for x in args
    )
