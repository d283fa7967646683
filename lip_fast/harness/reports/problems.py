"""What was learned from the same labels by whatever algorithm, beside plain training that stops early."""

import json
from collections.abc import Hashable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TypeVar

from lip_fast.harness.algorithms import AUTO
from lip_fast.harness.data import GIVEN
from lip_fast.harness.reports.collect import Result, settings_apart
from lip_fast.harness.runs.paired import Difference, holm, paired_difference
from lip_fast.harness.runs.records import Record
from lip_fast.harness.runs.summary import selected
from lip_fast.harness.settings.train import METHODS, REPAIRS

__all__ = [
    "LEVEL",
    "MOMENTS",
    "Column",
    "Comparison",
    "Problem",
    "adjusted",
    "columns_of",
    "compared",
    "joined",
    "minimises_plain_loss",
    "problems_of",
]

K = TypeVar("K", bound=Hashable)

# A difference is marked if its p-value, adjusted for the number of differences in its table, is below this.
LEVEL = 0.05
# When a network is taken: after the epoch that held-out labels choose, or after the last one.
MOMENTS = ("chosen", "last")
# Settings in which results of one problem may differ: they say what is compared, or what of it is scored.
_COMPARED = ("algorithm", "options", "methods", "rank", "repair_epochs")
# What plain training minimises, of labels and of candidate sets.
_PLAIN = (AUTO, "cross-entropy", "cc")
# Losses made for wrong labels, and for candidate sets.
_ROBUST = ("gce", "sce", "elr", "proden")


@dataclass(frozen=True)
class Column:
    """What is compared with early stopping.

    Attributes:
        name: a method, or "robust", the best of the robust losses.
        rank: of LIP in the step, as the settings have it; None of all else.
    """

    name: str
    rank: int | float | str | None = None

    @property
    def title(self) -> str:
        """As tables call it."""
        if self.name == "robust":
            return "best robust loss"
        if self.name == "plain":
            return "plain, last epoch"
        return METHODS[self.name] if self.rank is None else f"{METHODS[self.name]}, rank {self.rank}"


@dataclass(frozen=True)
class Problem:
    """Results of the same data, labels and network, joined by their seeds.

    Attributes:
        names: of the results.
        data: what the data are called.
        labels: what the labels are.
        model: the network, with the settings that tell it from others on the same labels.
        early: test accuracy of plain training that stops early, by seed; at least one.
        scores: by moment (``MOMENTS``) and column: test accuracy by seed, of some of those seeds.
    """

    names: tuple[str, ...]
    data: str
    labels: str
    model: str
    early: Mapping[int, float]
    scores: Mapping[str, Mapping[Column, Mapping[int, float]]]


@dataclass(frozen=True)
class Comparison:
    """A method against another on the same seeds.

    Attributes:
        difference: of the test accuracies.
        adjusted: its p-value, adjusted for the number of comparisons; None of a single seed.
    """

    difference: Difference
    adjusted: float | None

    @property
    def significant(self) -> bool:
        """Whether the adjusted p-value is below :data:`LEVEL`."""
        return self.adjusted is not None and self.adjusted < LEVEL


def adjusted(differences: Mapping[K, Difference]) -> dict[K, Comparison]:
    """Comparisons by the keys of ``differences``, each adjusted for the number of them (Holm)."""
    tested = {key: d.p for key, d in differences.items() if d.p is not None}
    p_values = dict(zip(tested, holm(list(tested.values())), strict=True))
    return {key: Comparison(difference, p_values.get(key)) for key, difference in differences.items()}


def problems_of(results: Sequence[Result]) -> list[Problem]:
    """The problems, in the order of their first results.

    Results without plain training and a hold-out for it are of no problem: there is nothing to compare with.
    """
    problems = [_problem(group, model) for model, group in joined(results)]
    return [problem for problem in problems if problem.early]


def joined(results: Sequence[Result]) -> list[tuple[str, list[Result]]]:
    """Results of the same data, labels and network, with what tells this network from others."""
    groups: dict[str, list[Result]] = {}
    for result in results:
        groups.setdefault(_key(result), []).append(result)
    models = _models([group[0] for group in groups.values()])
    return list(zip(models, groups.values(), strict=True))


def compared(problems: Sequence[Problem], moment: str) -> dict[tuple[int, Column], Comparison]:
    """Every column against early stopping, by the place of the problem and the column.

    Args:
        problems: each a row of one table.
        moment: one of ``MOMENTS``.
    """
    differences: dict[tuple[int, Column], Difference] = {}
    for place, problem in enumerate(problems):
        for column, scores in problem.scores[moment].items():
            early = [problem.early[seed] for seed in scores]
            differences[place, column] = paired_difference(list(scores.values()), early)
    return adjusted(differences)


def minimises_plain_loss(result: Result) -> bool:
    """Whether it is of what plain training minimises: cross entropy, CC for candidate sets."""
    return result.config.algorithm in _PLAIN


def columns_of(problems: Iterable[Problem]) -> list[Column]:
    """The columns that some problem has, in the order of tables."""
    order = ["plain", "robust", *METHODS]
    found = {column for problem in problems for scores in problem.scores.values() for column in scores}
    # Fractions and numbers of directions before rules.
    return sorted(found, key=lambda c: (order.index(c.name), isinstance(c.rank, str), c.rank or 0))


def _key(result: Result) -> str:
    """What results of one problem have in common."""
    settings = {name: value for name, value in result.config.as_dict().items() if name not in _COMPARED}
    return json.dumps([result.data, result.labels, settings], sort_keys=True)


def _models(results: Sequence[Result]) -> list[str]:
    """The network of each result, with the settings that tell it from others on the same labels."""
    apart = settings_apart(results, lambda r: (r.data, r.labels, _network(r)), ("data", *_COMPARED))
    return [", ".join(filter(None, (_network(r), own))) for r, own in zip(results, apart, strict=True)]


def _network(result: Result) -> str:
    config = result.config
    return config.model if config.features == GIVEN else f"{config.model} on {config.features}"


def _problem(results: Sequence[Result], model: str) -> Problem:
    plain: dict[int, Record] = {}
    for result in results:
        for seed, records in result.seeds.items():
            if minimises_plain_loss(result) and "plain" in records:
                plain.setdefault(seed, records["plain"])
    early = {seed: selected(record).chosen for seed, record in plain.items()}
    return Problem(
        names=tuple(result.name for result in results),
        data=results[0].data,
        labels=results[0].labels,
        model=model,
        early={seed: accuracy for seed, accuracy in early.items() if accuracy is not None},
        scores={moment: _scores(results, plain, moment) for moment in MOMENTS},
    )


def _scores(
    results: Sequence[Result], plain: Mapping[int, Record], moment: str
) -> dict[Column, dict[int, float]]:
    """Test accuracies by column and seed, of seeds for which early stopping is known."""
    found: dict[Column, dict[int, float]] = {}
    for seed, record in plain.items():
        if record.chosen_epoch is None:
            continue
        for column, value in (
            (Column("plain"), selected(record).last),
            (Column("robust"), _robust(results, seed, moment)),
            *_of_plain_loss(results, record.chosen_epoch, seed, moment),
        ):
            if value is not None:
                found.setdefault(column, {}).setdefault(seed, value)
    return found


def _robust(results: Sequence[Result], seed: int, moment: str) -> float | None:
    """The robust loss that agrees best with held-out labels then; None where none was run."""
    trained = [
        result.seeds[seed]["plain"]
        for result in results
        if result.config.algorithm in _ROBUST and "plain" in result.seeds.get(seed, {})
    ]
    known = [
        (record, record.chosen_epoch if moment == "chosen" else len(record.validation) - 1)
        for record in trained
        if record.chosen_epoch is not None
    ]
    if not known:
        return None
    record, epoch = max(known, key=lambda each: each[0].validation[each[1]] or 0.0)
    return record.test_accuracy[epoch]


def _of_plain_loss(
    results: Sequence[Result], chosen: int, seed: int, moment: str
) -> Iterator[tuple[Column, float | None]]:
    """What was done beside plain training on its loss: repairs of its network, and LIP while it trains."""
    for result in results:
        if not minimises_plain_loss(result):
            continue
        for method, record in result.seeds.get(seed, {}).items():
            if method in ("plain", "early-stop"):
                continue
            epoch = chosen if method in REPAIRS else record.chosen_epoch
            if epoch is None:
                continue
            column = Column(method, result.config.rank if method == "in-step" else None)
            yield column, record.test_accuracy[epoch if moment == "chosen" else -1]
