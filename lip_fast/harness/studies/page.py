"""What a study leaves in its folder: the numbers, a page in Markdown and the figures."""

from collections.abc import Sequence
from pathlib import Path

from lip_fast.harness.files.plain import write_json
from lip_fast.harness.runs.environment import environment
from lip_fast.harness.runs.folder import METRICS
from lip_fast.harness.studies.figures import save_angles, save_similarity, save_spectra
from lip_fast.harness.studies.results import Study
from lip_fast.harness.studies.tables import rank_table, similarity_table, turn_table

__all__ = ["explanation", "write_results"]

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


def write_results(folder: Path, *, study: Study, penalties: Sequence[float], subject: str) -> None:
    """Write ``metrics.json``, ``study.md`` and the figures.

    Args:
        folder: to write to.
        study: what was measured.
        penalties: the ridge heads' lambda, of each seed.
        subject: what was studied, for titles.
    """
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
        explanation(study),
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


def explanation(study: Study) -> str:
    """What the numbers of the first table are of."""
    q, l = study.shape
    return (
        f"Heads have {q} features and {l} classes; k = {study.rank} of {study.directions} directions are the "
        f"principal subspace. Means over the seeds: {len(study.of(0.0))}.\n"
        "phi with the weight of clean labels, of the first k directions / of the rest; 1: the same subspace."
    )
