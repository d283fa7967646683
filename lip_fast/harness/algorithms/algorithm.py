"""A learning algorithm as the training loop calls it."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from lip_fast.cli.errors import UserError, unknown_name
from lip_fast.harness.models import Network

__all__ = ["Algorithm", "CrossPredict", "Task"]

# Out-of-fold class probabilities (n, l) float64 of networks trained by cross entropy with these settings on
# all folds but one: argument is the number of folds.
CrossPredict = Callable[[int], Tensor]


@dataclass(frozen=True)
class Task:
    """What an algorithm is to learn.

    Attributes:
        features: (n, d) float32, the training inputs.
        targets: (n,) int64 class indices, or candidate sets (n, l) float32 of zeros and ones with a one in
            each row. Wrong ones are among them.
        classes: number of classes l.
        epochs: passes over the data that there will be.
        seed: of the experiment, for random streams of the algorithm's own.
        clean_rows: (c,) int64, rows whose clean label is known.
        clean_labels: (c,) int64, those labels: for algorithms that say that they take them, and no other.
        options: hyper-parameters that differ from the algorithm's defaults.
    """

    features: Tensor
    targets: Tensor
    classes: int
    epochs: int
    seed: int
    clean_rows: Tensor
    clean_labels: Tensor
    options: Mapping[str, float] = field(default_factory=dict)


class Algorithm:
    """One algorithm for wrong labels; subclasses say in their docstring what it computes and who says so.

    The loop calls, for each batch: :meth:`before_forward`, the network, :meth:`loss`, backward,
    :meth:`before_step`, the optimizer's step; after each epoch :meth:`end_epoch`, then :meth:`classifier`
    for the scores. All that a bit-exact continuation needs goes through :meth:`state_dict`.

    Subclasses set:
        TITLE: as tables call it.
        OPTIONS: hyper-parameters with their defaults, those of the source.
        LABELS: what it learns from: "indices", "candidates", or both.
        WHOLE: it fits the head at once from all data, without steps; one epoch is all there is.
        LINEAR: its classifier is an ``nn.Linear`` on the network's features, which LIP can repair.
        USES_CLEAN: it looks at a few clean labels.

    Args:
        task: what is to be learned.

    Raises:
        UserError: an option is unknown or out of its range.
    """

    TITLE: ClassVar[str]
    OPTIONS: ClassVar[Mapping[str, float]] = {}
    LABELS: ClassVar[tuple[str, ...]] = ("indices",)
    WHOLE: ClassVar[bool] = False
    LINEAR: ClassVar[bool] = True
    USES_CLEAN: ClassVar[bool] = False

    def __init__(self, task: Task) -> None:
        self.task = task
        self.options = self.checked_options(task.options)

    @classmethod
    def checked_options(cls, options: Mapping[str, float]) -> dict[str, float]:
        """The defaults with ``options`` in their place.

        Raises:
            UserError: an option is unknown, or :meth:`check` refuses one.
        """
        for name in options:
            if not cls.OPTIONS:
                raise UserError(f"{cls.TITLE} takes no options, got {name}")
            if name not in cls.OPTIONS:
                raise unknown_name(f"option of {cls.TITLE}", name, cls.OPTIONS)
        merged = {**cls.OPTIONS, **options}
        cls.check(merged)
        return merged

    @classmethod
    def check(cls, options: Mapping[str, float]) -> None:
        """UserError where an option is out of its range; use :meth:`expect`."""

    @classmethod
    def expect(cls, name: str, value: float, expected: str, holds: bool) -> None:
        """UserError that names the option, what is ``expected`` and what came, unless it ``holds``."""
        if not holds:
            raise UserError(f"expected option {name} of {cls.TITLE} {expected}, got {value:g}")

    @classmethod
    def choose_rows(
        cls, targets: Tensor, classes: int, options: Mapping[str, float], cross_predict: CrossPredict
    ) -> Tensor | None:
        """Rows to train on, sorted int64, chosen before the training; None for all of them.

        Args:
            targets: as of :class:`Task`, of all rows.
            classes: number of classes l.
            options: all options, see :meth:`checked_options`.
            cross_predict: trains networks on folds of the rows.
        """
        return None

    def before_forward(self, model: Network) -> None:
        """Before the network sees a batch."""

    def loss(self, logits: Tensor, rows: Tensor) -> Tensor:
        """Mean loss of a batch, a scalar to go backward from.

        Args:
            logits: (b, l).
            rows: (b,) int64, which of the task's rows they are of.
        """
        raise NotImplementedError

    def before_step(self, model: Network) -> None:
        """After backward, before the optimizer's step."""

    def fit(self, model: Network) -> None:
        """Fit the head of ``model`` at once; called in the place of all steps where ``WHOLE``."""
        raise NotImplementedError

    def end_epoch(self, model: Network) -> None:
        """After all steps of an epoch, and after LIP where it acts once an epoch."""

    def classifier(self, model: Network) -> nn.Module:
        """What classifies the network's features (m, q) into scores (m, l) if training stopped here.

        The network's own head, or another one; neither the network nor the algorithm is changed.
        """
        return model.head

    def state_dict(self) -> dict[str, Any]:
        """Tensors and plain values that change from step to step."""
        return {}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Restore what :meth:`state_dict` returned.

        Raises:
            KeyError, RuntimeError, ValueError: it is the state of another task or algorithm.
        """
        if state:
            raise ValueError(f"expected no state of {self.TITLE}, got {', '.join(state)}")

    def table(self) -> Tensor | None:
        """(n, ...) state of which :meth:`loss` sets the rows of its batch, and no other; None without any.

        Where several processes share a batch, what each has set is written to those of the others.
        """
        return None

    def targets_of(self, rows: Tensor) -> Tensor:
        """The targets of a batch."""
        return self.task.targets[rows]


def one_hot(targets: Tensor, classes: int, dtype: torch.dtype = torch.float32) -> Tensor:
    """(n,) class indices as (n, l); candidate sets as they are."""
    if targets.ndim == 2:
        return targets.to(dtype)
    return nn.functional.one_hot(targets, classes).to(dtype)
