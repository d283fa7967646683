"""How far a study is: saved in its folder after each network, and taken up again from there."""

import numpy as np

from lip_fast.cli.errors import UserError
from lip_fast.harness.data import Dataset
from lip_fast.harness.data.rows import Rows
from lip_fast.harness.files.labels import labels_sha256
from lip_fast.harness.models import Network
from lip_fast.harness.noise.labels import training_labels
from lip_fast.harness.runs.experiment import check_labels, restoring
from lip_fast.harness.runs.folder import RunFolder
from lip_fast.harness.runs.origin import Origin
from lip_fast.harness.settings.study import StudyConfig
from lip_fast.harness.studies.results import CleanNetwork, Measured, check_directions
from lip_fast.harness.training.problem import split

__all__ = ["Progress", "trainings"]


class Progress:
    """The networks that were trained and compared, saved in the run folder after each of them.

    Args:
        folder: of the run.
        config: its settings.
        dataset: its data.

    Attributes:
        folder: as given.
        measured: of all networks so far, in their order.
        penalties: the ridge heads' lambda, of each seed that was begun.
        clean: of the seed under way; None before its first network.
        notes: what else than the settings has changed since the study began, and may change the bits.
    """

    def __init__(self, folder: RunFolder, config: StudyConfig, dataset: Dataset) -> None:
        self.folder = folder
        self.measured: list[Measured] = []
        self.penalties: list[float] = []
        self.clean: CleanNetwork | None = None
        self.notes: list[str] = []
        self._config, self._dataset = config, dataset
        self._origin = Origin(config.as_dict(), dataset)

    def load(self) -> None:
        """Go on after the last network that was saved, or from the beginning where none was.

        Raises:
            UserError: the checkpoint is damaged, or of other settings, data or labels.
        """
        state = self.folder.load()
        if state is None:
            return
        with restoring(f"the checkpoint in {self.folder.path}"):
            self.notes = self._origin.check(state, self.folder.path)
            self.measured = [Measured.from_plain(values) for values in state["measured"]]
            self.penalties = state["penalties"]
            self.clean = CleanNetwork.from_state(state["clean"])
            came = [(one.seed, one.rate) for one in self.measured]
            if came != trainings(self._config)[: len(came)] or not came:
                raise UserError(
                    f"expected the networks of these settings in {self.folder.path}, found others"
                )
            check_labels(came[-1][0], self._labels(*came[-1]), state["labels_sha256"])

    def add(self, network: Network, trained: Rows, test: Rows, seed: int, rate: float) -> None:
        """Compare a network with the clean one of its seed, and save what came of it.

        Args:
            network: it was trained on labels of this ``seed`` and ``rate``.
            trained: what its head sees of the samples it was trained on.
            test: likewise of the test part.
            seed: of the labels.
            rate: how many of them are wrong.

        Raises:
            UserError: training diverged, or there is too little to compare.
        """
        if rate == 0:
            kept = split(self._config.training(rate), len(self._labels(seed, rate)), seed)[0]
            labels = {rate: self._labels(seed, rate)[kept] for rate in self._config.rates}
            self.clean = CleanNetwork.of(network, trained, seed, self._config.ridge, labels)
            check_directions(self.clean.directions, self.clean.W.shape, self._config.rank)
            self.penalties.append(self.clean.penalty)
        assert self.clean is not None  # rate 0 comes first
        self.measured.append(self.clean.measure(network, test, rate))
        self.folder.save(
            {
                **self._origin.state_dict(),
                "measured": [one.as_plain() for one in self.measured],
                "penalties": self.penalties,
                "clean": self.clean.state_dict(),
                "labels_sha256": labels_sha256(self._labels(seed, rate)),
            }
        )

    def _labels(self, seed: int, rate: float) -> np.ndarray:
        return training_labels(self._config.noise, rate, self._dataset.for_seed(seed), seed)


def trainings(config: StudyConfig) -> list[tuple[int, float]]:
    """Seed and rate of every network, in the order in which they are trained."""
    seeds = range(config.first_seed, config.first_seed + config.seeds)
    return [(seed, rate) for seed in seeds for rate in config.rates]
