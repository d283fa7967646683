"""The table a run ends with."""

from collections.abc import Mapping, Sequence

from lip_fast.harness.config import METHODS, REPAIRS
from lip_fast.harness.summary import Spread, Summary

__all__ = ["summary_table"]


def summary_table(summaries: Mapping[str, Summary]) -> str:
    """Accuracy, wrong labels learned and step time as aligned plain text, one row for each method.

    Args:
        summaries: by method; fractions are shown in percent, mean ± standard deviation.
    """
    # Repairs share the plain training.
    plain = next((summaries[m] for m in ("plain", *REPAIRS) if m in summaries), None)
    header = ("", "last accuracy", "best accuracy", "wrong labels fitted", "optimizer step")
    rows = [
        (
            METHODS[method],
            _percent(summary.last),
            _percent(summary.best),
            _percent(summary.memorised),
            _step_time(summary, plain),
        )
        for method, summary in summaries.items()
    ]
    return _aligned([header, *rows])


def _percent(spread: Spread | None) -> str:
    if spread is None:
        return "-"
    mean = f"{100 * spread.mean:.1f}"
    return mean if spread.sd is None else f"{mean} ± {100 * spread.sd:.1f}"


def _step_time(summary: Summary, plain: Summary | None) -> str:
    text = f"{1e6 * summary.step_seconds:.0f} us"
    if summary.repair_seconds is not None:
        return f"{text}, then {1e3 * summary.repair_seconds:.1f} ms once"
    if plain is not None and summary is not plain:
        return f"{text} ({summary.step_seconds / plain.step_seconds:.2f} x plain)"
    return text


def _aligned(rows: Sequence[Sequence[str]]) -> str:
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return "\n".join(
        "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows
    )
