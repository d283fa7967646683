"""How far a run is: saved in its folder as it goes, and taken up again from there."""

import time
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from lip_fast.harness.data import Dataset
from lip_fast.harness.files.labels import labels_sha256
from lip_fast.harness.noise.labels import training_labels
from lip_fast.harness.runs.experiment import check_labels, epochs_done, restoring
from lip_fast.harness.runs.folder import RunFolder
from lip_fast.harness.runs.origin import Origin
from lip_fast.harness.runs.plan import Plan
from lip_fast.harness.runs.records import Record, SeedResult, as_plain
from lip_fast.harness.settings.train import TrainConfig
from lip_fast.harness.training.processes import ALONE, Processes

__all__ = ["Pace", "Progress"]

# Saving may take this share of the time: to flush a file takes as long as an epoch of a tiny network.
_SHARE = 0.02
# Seconds after which the middle of an epoch is saved, for epochs that take hours.
_LONG = 60.0


class Pace:
    """When a checkpoint is due.

    Args:
        every: after so many steps; None for the end of each epoch, but where epochs are so short that saving
            would take more than 2% of the time, and in the middle of an epoch that is longer than a minute.
    """

    def __init__(self, every: int | None) -> None:
        self._every = every
        self._steps = 0
        self._cost = 0.0
        self._last = time.perf_counter()

    def due(self, *, epoch: bool) -> bool:
        """Whether a checkpoint is due now, after a step, or after all that belongs to an ``epoch``."""
        if self._every is not None:
            self._steps += not epoch
            return self._steps >= self._every
        wait = self._cost / _SHARE
        return time.perf_counter() - self._last >= (wait if epoch else max(wait, _LONG))

    def saved(self, seconds: float) -> None:
        """Note that a checkpoint was saved, and how long that took."""
        self._steps, self._cost, self._last = 0, seconds, time.perf_counter()


class Progress:
    """The finished seeds of a run and the one under way.

    Times are those of the work that counts. ``seconds`` is the wall time of all sessions, of one that was
    killed up to its last checkpoint; what was lost and done again is not in it, nor in the times of steps.

    Args:
        folder: of the run; None of a process that is not the first.
        config: its settings.
        dataset: its data.
        plan: what the settings come to with them.
        processes: those that train together. All make this, and load; what they learn from the checkpoint is
            what the first has read.

    Attributes:
        results: of the finished seeds, in their order.
        current: the state of the seed under way, as loaded; None where it begins.
        epochs: of all trainings, that were loaded.
        sessions: how many processes the run has taken.
        notes: what else than the settings has changed since the run began, and may change the bits.
    """

    def __init__(
        self,
        folder: RunFolder | None,
        config: TrainConfig,
        dataset: Dataset,
        plan: Plan,
        processes: Processes = ALONE,
    ) -> None:
        self.results: list[SeedResult] = []
        self.current: Mapping[str, Any] | None = None
        self.epochs = 0
        self.sessions = 1
        self.notes: list[str] = []
        self._folder, self._config, self._plan, self._processes = folder, config, plan, processes
        self._origin = Origin(config.as_dict(), dataset, processes.size)
        origin = self._origin.state_dict()
        processes.check_same("settings and data", [origin["settings"], origin["data"]])
        self._earlier, self._start = 0.0, time.perf_counter()
        self._pace = Pace(config.checkpoint_every)

    @property
    def seconds(self) -> float:
        """Wall time of the run so far, without work that was lost when it was killed."""
        return self._earlier + time.perf_counter() - self._start

    def load(self, dataset: Dataset) -> None:
        """Go on from the last checkpoint of the run, or from its beginning where there is none.

        Raises:
            UserError: the checkpoint is damaged, or of other settings, data or labels.
        """
        if self._folder is not None:
            self._load(self._folder, dataset)
        self.results, self.current, self.epochs = self._processes.from_first(
            lambda: (self.results, self.current, self.epochs)
        )

    def _load(self, folder: RunFolder, dataset: Dataset) -> None:
        state = folder.load()
        if state is None:
            return
        place = f"the checkpoint in {folder.path}"
        with restoring(place):
            settings = self._config.completed(state["settings"])
            self.notes = self._origin.check({**state, "settings": settings}, folder.path)
            self.results = [
                self._result(seed, saved, dataset)
                for seed, saved in enumerate(state["finished"], self._config.first_seed)
            ]
            self.epochs = len(self.results) * self._plan.epochs_of_seed
            if (current := state["current"]) is not None:
                seed = self._config.first_seed + len(self.results)
                check_labels(seed, self._labels(seed, dataset), current["labels_sha256"])
                self.epochs += epochs_done(current, self._plan)
                self.current = current
            self.sessions = state["sessions"] + 1
            self._earlier = state["seconds"]

    def keep(self, state: Callable[[], dict[str, Any]], epoch: bool) -> None:
        """Save the state of the seed under way, where a checkpoint is due."""
        if self._folder is not None and self._pace.due(epoch=epoch):
            self.save(state)

    def finish_seed(self, result: SeedResult) -> None:
        """Note that a seed is done."""
        self.results.append(result)
        self.current = None

    def save(self, current: Callable[[], dict[str, Any] | None] = lambda: None) -> None:
        """Save a checkpoint now, with the state of the seed under way where there is one.

        Nothing happens in a process that is not the first.
        """
        if self._folder is None:
            return
        start = time.perf_counter()
        self._folder.save(
            {
                **self._origin.state_dict(),
                "seconds": self.seconds,
                "sessions": self.sessions,
                "finished": [
                    {"labels_sha256": labels_sha256(result.labels), "records": as_plain(result.records)}
                    for result in self.results
                ],
                "current": current(),
            }
        )
        self._pace.saved(time.perf_counter() - start)

    def _result(self, seed: int, saved: Mapping[str, Any], dataset: Dataset) -> SeedResult:
        labels = self._labels(seed, dataset)
        check_labels(seed, labels, saved["labels_sha256"])
        return SeedResult(seed, labels, {m: Record(**values) for m, values in saved["records"].items()})

    def _labels(self, seed: int, dataset: Dataset) -> np.ndarray:
        config = self._config
        return training_labels(config.noise, config.noise_rate, dataset.for_seed(seed), seed)
