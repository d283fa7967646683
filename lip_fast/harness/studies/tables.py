"""The tables of a study, as Markdown that also reads well in a terminal."""

from collections.abc import Sequence

import numpy as np

from lip_fast.cli.table import markdown
from lip_fast.harness.studies.results import COMPARISONS, TURN_COLUMNS, Study

__all__ = ["rank_table", "similarity_table", "turn_table"]


def similarity_table(study: Study) -> str:
    """Accuracy and phi of principal subspace and residual at ``study.rank``, one row for each rate."""
    rows = [
        [
            "rate",
            "wrong labels",
            "test accuracy",
            *(f"{weight}, {space}" for weight in ("ridge", "head") for space in ("features", "classes")),
        ]
    ]
    for rate in study.rates:
        accuracy = [100 * one.test_accuracy for one in study.of(rate)]
        deviation = f" ± {np.std(accuracy, ddof=1):.1f}" if len(accuracy) > 1 else ""
        rows.append(
            [
                f"{rate:g}",
                f"{100 * study.mean(rate, 'wrong_rows'):.1f}%",
                f"{np.mean(accuracy):.1f}{deviation}",
                *(_pair(study.principal_and_residual(rate, name, study.rank)) for name in COMPARISONS),
            ]
        )
    rows.append(["by chance", "", "", *(_pair(study.chance(name, study.rank)) for name in COMPARISONS)])
    return markdown(rows, padded=True)


def rank_table(study: Study, comparison: str) -> str:
    """phi of principal subspace and residual of one comparison: a row for each k, a column for each rate."""
    rates = study.rates[1:]
    rows = [["k", *(f"rate {rate:g}" for rate in rates), "by chance"]]
    for k in range(1, study.directions):
        values = [study.principal_and_residual(rate, comparison, k) for rate in rates]
        rows.append([str(k), *map(_pair, [*values, study.chance(comparison, k)])])
    return markdown(rows, padded=True)


def turn_table(study: Study, ks: Sequence[int]) -> str:
    """Measured angles of the ridge heads beside what bounds them, one row for each rate above 0 and k."""
    rows = [["rate", "k", *TURN_COLUMNS.values()]]
    for k in ks:
        for rate in study.rates[1:]:
            values = (_number(study.turn(rate, k, name), name) for name in TURN_COLUMNS)
            rows.append([f"{rate:g}", str(k), *values])
    return markdown(rows, padded=True)


def _pair(values: tuple[float, float]) -> str:
    return f"{values[0]:.3f} / {values[1]:.3f}"


def _number(value: float | None, name: str) -> str:
    if value is None:
        return "-"
    if name in ("bound", "theorem") and value >= 1:
        return f"{value:.0f} (vacuous)" if value >= 100 else f"{value:.2g} (vacuous)"
    return f"{value:.3f}"
