"""Curves for TensorBoard, where they are asked for."""

import importlib.util
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from lip_fast.cli.errors import UserError
from lip_fast.harness.runs.records import SeedResult

__all__ = ["check_installed", "curves_in"]

# The lists of a record with one number for each epoch.
_CURVES = ("test_accuracy", "validation", "memorised", "train_loss", "step_seconds", "lip_seconds")


def check_installed() -> None:
    """UserError where TensorBoard's package is missing."""
    if importlib.util.find_spec("tensorboard") is None:
        raise UserError("expected the package tensorboard for --tensorboard true: pip install tensorboard")


@contextmanager
def curves_in(folder: Path | None) -> Iterator[Callable[[SeedResult], None]]:
    """Write the curves of finished seeds.

    Args:
        folder: of the run; events go to ``tensorboard`` in it. None writes nothing.

    Yields:
        what takes the result of a seed.
    """
    if folder is None:
        yield lambda result: None
        return
    from torch.utils.tensorboard import SummaryWriter

    def write(result: SeedResult) -> None:
        for method, record in result.records.items():
            # A folder for each: TensorBoard draws the same curve of all of them in one chart. A seed that is
            # written again after an interruption has the same values.
            with SummaryWriter(str(folder / "tensorboard" / f"{method}-seed{result.seed}")) as writer:
                for name in _CURVES:
                    for epoch, value in enumerate(getattr(record, name), 1):
                        if value is not None:
                            writer.add_scalar(name, value, epoch)

    yield write
