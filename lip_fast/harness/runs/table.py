"""The table that ``lip-fast train`` and ``lip-fast sweep`` print at the end of a run."""

from collections.abc import Mapping

from lip_fast.cli.table import aligned
from lip_fast.harness.runs.paired import Difference
from lip_fast.harness.runs.summary import Spread, Summary
from lip_fast.harness.settings.train import METHODS

__all__ = ["percent", "points", "summary_table"]


def summary_table(summaries: Mapping[str, Summary]) -> str:
    """Accuracies, wrong labels learned and step time as aligned plain text, one row for each method.

    Args:
        summaries: by method; fractions are shown in percent, mean ± standard deviation.
    """
    header = (
        "",
        "last epoch",
        "to plain",
        "last five",
        "chosen epoch",
        "best epoch",
        "wrong labels fitted",
        "optimizer step",
    )
    rows = [
        (
            METHODS[method],
            percent(summary.last),
            points(summary.gain),
            percent(summary.last_five),
            percent(summary.chosen),
            percent(summary.best),
            percent(summary.memorised),
            _step_time(summary),
        )
        for method, summary in summaries.items()
    ]
    return aligned([header, *rows])


def percent(spread: Spread | None) -> str:
    """A fraction in percent, e.g. ``70.1 ± 4.5``; ``-`` where there is none."""
    if spread is None:
        return "-"
    mean = f"{100 * spread.mean:.1f}"
    return mean if spread.sd is None else f"{mean} ± {100 * spread.sd:.1f}"


def points(difference: Difference | None) -> str:
    """A difference of fractions in points with its p-value, e.g. ``+0.5 (p 0.40)``."""
    if difference is None:
        return "-"
    mean = f"{100 * difference.mean:+.1f}"
    return mean if difference.p is None else f"{mean} ({_p_value(difference.p)})"


def _p_value(p: float) -> str:
    return "p < 0.001" if p < 0.001 else f"p {p:.2g}" if p < 0.01 else f"p {p:.2f}"


def _step_time(summary: Summary) -> str:
    text = f"{1e6 * summary.step_seconds:.0f} us"
    if summary.repair_seconds is not None:
        return f"{text}, then {1e3 * summary.repair_seconds:.1f} ms once"
    if summary.lip_seconds > 0:
        base = summary.step_seconds - summary.lip_seconds
        return f"{text}: LIP adds {1e6 * summary.lip_seconds:.0f} to {1e6 * base:.0f} us"
    return text
