"""The settings of a study: those of a training that mean something here, and a few of its own."""

import dataclasses
import math
from dataclasses import dataclass
from typing import Any

from lip_fast.cli.errors import UserError, unknown_name
from lip_fast.harness.noise import NOISES
from lip_fast.harness.noise.labels import SOURCES
from lip_fast.harness.settings.config import Config, option, setting
from lip_fast.harness.settings.train import TrainConfig

__all__ = ["StudyConfig"]

# The kinds of noise that have a rate.
KINDS = tuple(name for name in NOISES if name != "none")


def _same(name: str) -> Any:
    """A field with the default and the help text that it has in :class:`TrainConfig`."""
    one = next(one for one in dataclasses.fields(TrainConfig) if one.name == name)
    return setting(one.default, one.metadata["help"])


@dataclass(frozen=True, kw_only=True)
class StudyConfig(Config):
    """Settings of ``lip-fast study``; each field's meaning is its help text.

    Raises:
        UserError: a value that cannot be; the message names what was expected and what came.
    """

    COMMAND = "study"
    DESCRIPTION = (
        "Train a network on labels of rising inaccuracy, and compare the singular subspaces of its weight "
        "with those that clean labels give: why accurate models can be learned from wrong labels."
    )
    RESUME = "continue the interrupted study in this folder after the last network that it trained"

    data: str = _same("data")
    samples: int | None = _same("samples")
    seeds: int = _same("seeds")
    first_seed: int = _same("first_seed")
    noise: str = setting("symmetric", f"kind of wrong labels: {', '.join(KINDS)}")
    rates: tuple[float, ...] = setting(
        (0.0, 0.2, 0.4, 0.6, 0.8), "rates of the noise, each in [0, 1); 0 is always among them"
    )
    rank: int | None = setting(
        None,
        "directions of the principal subspace; null: where the singular values of the ridge head on clean "
        "labels fall most steeply",
    )
    # Small enough to leave the large directions as they are; it keeps those without features from deciding.
    ridge: float = setting(
        1e-2, "penalty of the ridge heads, in units of the mean eigenvalue of X^T X, above 0"
    )
    model: str = _same("model")
    hidden: tuple[int, ...] = _same("hidden")
    augment: str = _same("augment")
    epochs: int = _same("epochs")
    batch_size: int = _same("batch_size")
    optimizer: str = _same("optimizer")
    lr: float = _same("lr")
    schedule: str = _same("schedule")
    weight_decay: float = _same("weight_decay")
    momentum: float = _same("momentum")
    threads: int | None = _same("threads")
    device: str = _same("device")
    out: str = _same("out")
    name: str | None = _same("name")

    def __post_init__(self) -> None:
        super().__post_init__()
        # YAML and the command line give lists; a setting cannot be changed.
        for rate in self.rates:
            if not 0 <= rate < 1:
                raise UserError(f"expected --rates in [0, 1), got {rate:g}")
        object.__setattr__(self, "rates", tuple(sorted({0.0, *self.rates})))
        if len(self.rates) < 2:
            raise UserError("expected --rates to have at least one above 0, got none")
        kind = self.noise.partition(":")[0]
        if kind not in NOISES and kind not in SOURCES:
            raise unknown_name("label noise", kind, KINDS)
        if self.noise not in KINDS:
            raise UserError(
                f"expected --noise to be of a kind that has a rate: {', '.join(KINDS)}, got {self.noise!r}"
            )
        if not 0 < self.ridge < math.inf:
            raise UserError(f"expected {option('ridge')} above 0 and finite, got {self.ridge}")
        if self.rank is not None and self.rank < 1:
            raise UserError(f"expected {option('rank')} at least 1, got {self.rank}")
        # The settings of a training check the values that both have in common.
        object.__setattr__(self, "hidden", self.training(0.0).hidden)

    def training(self, rate: float) -> TrainConfig:
        """The settings of a training on labels of this rate: a plain network, all samples."""
        own = {"rates", "rank", "ridge"}
        shared = {s.name: getattr(self, s.name) for s in dataclasses.fields(self) if s.name not in own}
        return TrainConfig(**shared, noise_rate=rate, methods=("plain",), holdout_fraction=0.0)
