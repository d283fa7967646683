"""``lip-fast study``: what wrong labels do to the singular subspaces of a classifier's weight."""

import sys
from collections.abc import Sequence
from functools import partial
from pathlib import Path

import numpy as np
import torch
from tqdm import tqdm

from lip_fast.cli.errors import UserError
from lip_fast.harness.data import Dataset, load
from lip_fast.harness.files.labels import labels_sha256
from lip_fast.harness.models import Network, make_model
from lip_fast.harness.noise.labels import training_labels
from lip_fast.harness.runs.experiment import check_labels, restoring, train_network
from lip_fast.harness.runs.folder import (
    CONFIG,
    METRICS,
    RunFolder,
    environment,
    new_run,
    opened_run,
    write_json,
)
from lip_fast.harness.runs.origin import Origin
from lip_fast.harness.runs.plan import plan_of
from lip_fast.harness.settings.arguments import check_resumed, parse, parse_stored
from lip_fast.harness.settings.study import StudyConfig
from lip_fast.harness.studies.figures import save_angles, save_similarity, save_spectra
from lip_fast.harness.studies.results import (
    CleanNetwork,
    Measured,
    Study,
    check_directions,
)
from lip_fast.harness.studies.tables import rank_table, similarity_table, turn_table
from lip_fast.harness.training.evaluation import Seen
from lip_fast.harness.training.problem import split
from lip_fast.harness.training.processes import refuse_several

__all__ = ["main"]

_READING = """\
The **ridge heads** are fitted to the same features, those of the network that learned from clean labels, once
with clean and once with wrong labels: the labels differ and nothing else, as in the paper's theorem. Features
are centred, which is what an intercept does. Look at their directions among features first.

The **heads as trained** belong to networks with features of their own. Their directions among features can be
compared only as far as the common initialisation still ties the features together. Those among classes can;
but where there are no more classes than features, the first k directions and the rest fill the space of
classes between them and turn by the same angle, so that phi of the rest follows from phi of the first k."""
_ANGLES = """\
Sines of the largest principal angles between the top-k subspaces of both ridge heads, W of clean and W' of
wrong labels, and what bounds them. From the labels: ||W' - W|| / gap. Of the theorem:
sigma_max(X) sqrt(n l p) / (gap (lambda_min(X^T X) + lambda)). The gap is s_k(W) - s_(k+1)(W'); a dash:
there is none, and no bound. Vacuous: 1 or more, and no sine is above 1."""


def main(arguments: Sequence[str]) -> int:
    """Train on labels of every rate, compare the weights, write the run folder; returns the exit code 0.

    With ``--resume`` an interrupted study is ended, with the numbers that it would have had.

    Raises:
        UserError: arguments, data or the run folder are not what they must be.
        KeyboardInterrupt: with a text that says how to continue, once a network is trained.
    """
    refuse_several()
    config, resume = parse(arguments, StudyConfig)
    if resume is not None:
        return _resume(arguments, resume)
    dataset = _prepare(config)
    with new_run(Path(config.out), config.name, config.as_dict(), "study") as folder:
        _study(config, dataset, _Progress(folder, config, dataset))
    return 0


def _resume(arguments: Sequence[str], path: Path) -> int:
    with opened_run(path, "study") as folder:
        config = parse_stored(path / CONFIG, StudyConfig, whole=not folder.complete)
        check_resumed(arguments, config, path)
        if folder.complete:
            print(f"nothing to resume: the study in {path} is complete")
            return 0
        dataset = _prepare(config)
        progress = _Progress(folder, config, dataset)
        progress.load()
        for note in progress.notes:
            print(f"lip-fast study: {note}; the bits may change with it", file=sys.stderr)
        _study(config, dataset, progress)
    return 0


def _prepare(config: StudyConfig) -> Dataset:
    """The data, where they fit the settings."""
    dataset = load(config.data)
    for rate in config.rates:
        plan_of(config.training(rate), dataset)
    l = len(dataset.class_names)
    with torch.device("meta"):  # takes no time, and no random numbers
        head = make_model(
            config.model,
            inputs=dataset.train_features.shape[1],
            image_shape=dataset.image_shape,
            hidden=config.hidden,
            classes=l,
        ).head
    # Rows of clean labels sum to 1, so that centring takes one of the directions among classes.
    check_directions(min(head.in_features, l - 1), (head.in_features, l), config.rank)
    if config.threads is not None:
        torch.set_num_threads(config.threads)
    return dataset


class _Progress:
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
        """Take the study up after the last network that was saved; from its beginning where there is none.

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
            if came != _trainings(self._config)[: len(came)] or not came:
                raise UserError(
                    f"expected the networks of these settings in {self.folder.path}, found others"
                )
            check_labels(came[-1][0], self._labels(*came[-1]), state["labels_sha256"])

    def add(self, network: Network, seen: Seen, seed: int, rate: float) -> None:
        """Compare a network with the clean one of its seed, and save what came of it.

        Raises:
            UserError: training diverged, or there is too little to compare.
        """
        if rate == 0:
            kept = split(self._config.training(rate), len(self._labels(seed, rate)), seed)[0]
            labels = {rate: self._labels(seed, rate)[kept] for rate in self._config.rates}
            assert seen.train is not None  # train_network looks at everything
            self.clean = CleanNetwork.of(network, seen.train, seed, self._config.ridge, labels)
            check_directions(self.clean.directions, self.clean.W.shape, self._config.rank)
            self.penalties.append(self.clean.penalty)
        assert self.clean is not None  # 0 comes first
        self.measured.append(self.clean.measure(network, seen.test, rate))
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


def _trainings(config: StudyConfig) -> list[tuple[int, float]]:
    """Seed and rate of every network, in the order in which they are trained."""
    seeds = range(config.first_seed, config.first_seed + config.seeds)
    return [(seed, rate) for seed in seeds for rate in config.rates]


def _study(config: StudyConfig, dataset: Dataset, progress: _Progress) -> None:
    subject = f"{dataset.name}, {config.noise} label noise, {config.model}"
    print(
        f"{subject}: rates {', '.join(f'{rate:g}' for rate in config.rates)}; seeds: {config.seeds}; "
        f"{config.epochs} epochs of {config.optimizer}",
        flush=True,
    )
    done, every = len(progress.measured), _trainings(config)
    if done:
        print(f"continued after {done} of {len(every)} networks", flush=True)
    # disable=None: a bar where stderr is a terminal, silence in files and pipes.
    with tqdm(
        total=len(every) * config.epochs,
        initial=done * config.epochs,
        unit="epoch",
        disable=None,
        leave=False,
    ) as bar:
        for seed, rate in every[done:]:
            bar.set_description(f"seed {seed}, rate {rate:g}", refresh=False)
            network, seen = train_network(config.training(rate), dataset, seed, lambda loss: bar.update())
            progress.add(network, seen, seed, rate)
    assert progress.clean is not None
    q, l = progress.clean.W.shape
    study = Study(progress.measured, (q, l), config.rank)
    progress.folder.finish(partial(_write, study=study, penalties=progress.penalties, subject=subject))
    print(f"\n{_explained(study)}\n\n{similarity_table(study)}\n")
    print(f"Largest angles of the ridge heads, and what bounds them:\n\n{turn_table(study, [study.rank])}")
    print(f"\nrun folder: {progress.folder.path}")


def _write(folder: Path, *, study: Study, penalties: Sequence[float], subject: str) -> None:
    q, l = study.shape
    write_json(
        folder / METRICS,
        {
            "environment": environment(),
            "features": q,
            "classes": l,
            "rank": study.rank,
            "penalties": list(penalties),
            "summary": study.summary(),
            "trainings": [one.as_plain() for one in study.measured],
        },
    )
    (folder / "study.md").write_text(_report(study, subject), encoding="utf-8")
    save_spectra(folder / "spectra.png", study, f"Singular values: {subject}")
    save_similarity(folder / "similarity.png", study, f"Similarity with clean labels: {subject}")
    # Beside the chosen k the strongest direction alone, and all but the weakest.
    ks = sorted({1, study.rank, study.directions - 1})
    save_angles(folder / "angles.png", study, ks, f"Angles of the ridge heads: {subject}")


def _report(study: Study, subject: str) -> str:
    """What the run folder says in words; its figures are beside it."""
    parts = [
        f"# Study: {subject}",
        _explained(study),
        similarity_table(study),
        "![singular values](spectra.png)",
        "![similarity](similarity.png)",
        "## How to read it",
        _READING,
        "## Other k",
        "phi of ridge heads among features, of the first k directions / of the rest.",
        rank_table(study, "ridge_features"),
        "## Angles",
        _ANGLES,
        turn_table(study, range(1, study.directions)),
        "![angles](angles.png)",
    ]
    return "\n\n".join(parts) + "\n"


def _explained(study: Study) -> str:
    q, l = study.shape
    return (
        f"Heads have {q} features and {l} classes; k = {study.rank} of {study.directions} directions are the "
        f"principal subspace. Means over the seeds: {len(study.of(0.0))}.\n"
        "phi with the weight of clean labels, of the first k directions / of the rest; 1: the same subspace."
    )
