"""``lip-fast study``: what wrong labels do to the singular subspaces of a classifier's weight."""

from collections.abc import Sequence
from functools import partial
from pathlib import Path

import torch
from tqdm import tqdm

from lip_fast.harness.arguments import parse_study
from lip_fast.harness.data import Dataset, load
from lip_fast.harness.errors import UserError
from lip_fast.harness.experiment import train_network
from lip_fast.harness.plan import plan_of
from lip_fast.harness.runs import METRICS, environment, new_run, write_json
from lip_fast.harness.study_config import StudyConfig
from lip_fast.harness.study_figures import save_angles, save_similarity, save_spectra
from lip_fast.harness.study_results import (
    CleanNetwork,
    Measured,
    Study,
    rank_table,
    similarity_table,
    turn_table,
)

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

    Raises:
        UserError: arguments, data or the run folder are not what they must be.
        KeyboardInterrupt: nothing is left of the run.
    """
    config = parse_study(arguments)
    dataset = load(config.data)
    for rate in config.rates:
        plan_of(config.training(rate), dataset)
    if config.threads is not None:
        torch.set_num_threads(config.threads)
    with new_run(Path(config.out), config.name, config.as_dict()) as folder:
        subject = f"{dataset.name}, {config.noise} label noise, {config.model}"
        print(
            f"{subject}: rates {', '.join(f'{rate:g}' for rate in config.rates)}; seeds: {config.seeds}; "
            f"{config.epochs} epochs of {config.optimizer}",
            flush=True,
        )
        study, penalties = _measure(config, dataset)
        folder.finish(partial(_write, study=study, penalties=penalties, subject=subject))
    print(f"\n{_explained(study)}\n\n{similarity_table(study)}\n")
    print(f"Largest angles of the ridge heads, and what bounds them:\n\n{turn_table(study, [study.rank])}")
    print(f"\nrun folder: {folder.path}")
    return 0


def _measure(config: StudyConfig, dataset: Dataset) -> tuple[Study, list[float]]:
    """All trainings and comparisons, and the ridge heads' lambda by seed."""
    measured: list[Measured] = []
    penalties = []
    # disable=None: a bar where stderr is a terminal, silence in files and pipes.
    with tqdm(
        total=config.seeds * len(config.rates) * config.epochs, unit="epoch", disable=None, leave=False
    ) as bar:

        def on_epoch(loss: float) -> None:
            bar.update()

        for seed in range(config.first_seed, config.first_seed + config.seeds):
            clean = None
            for rate in config.rates:  # 0 comes first
                bar.set_description(f"seed {seed}, rate {rate:g}", refresh=False)
                network, seen = train_network(config.training(rate), dataset, seed, on_epoch)
                if clean is None:
                    clean = CleanNetwork(network, seen, seed, config.ridge)
                    if config.rank is not None and config.rank >= clean.directions:
                        raise UserError(
                            f"expected --rank below the {clean.directions} directions of the ridge head, "
                            f"got {config.rank}"
                        )
                    penalties.append(clean.penalty)
                measured.append(clean.measure(network, seen, rate))
    assert clean is not None
    return Study(measured, clean.shape, config.rank), penalties


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
