"""What the report says of each kind of row, in order; see :class:`Section`."""

from collections.abc import Callable
from dataclasses import dataclass
from types import ModuleType
from typing import TYPE_CHECKING

from benchmarks.results import Result
from benchmarks.sections import (
    decompositions,
    epoch,
    exact_step,
    one_shot,
    ops,
    optimizer,
    scaling,
    solvers,
    statistics,
    truncated_step,
)

if TYPE_CHECKING:
    from matplotlib.figure import Figure

__all__ = ["SECTIONS", "Section"]


@dataclass(frozen=True)
class Section:
    """A module of this folder.

    Attributes:
        name: of its figure.
        title: its heading.
        kinds: the kinds of row that it shows.
        summary: what README says.
        details: what the page of all numbers says; the summary where there is none.
        figure: draws it, if there is something to draw.
        in_readme: whether README has it.
        own_gaps: whether its details say themselves what was not measured of its rows.
    """

    name: str
    title: str
    kinds: tuple[str, ...]
    summary: Callable[[Result], str]
    details: Callable[[Result], str]
    figure: "Callable[[Result], Figure | None] | None"
    in_readme: bool
    own_gaps: bool


def _section(module: ModuleType, *, in_readme: bool = True, own_gaps: bool = False) -> Section:
    return Section(
        module.__name__.rpartition(".")[2].replace("_", "-"),
        module.TITLE,
        module.KINDS,
        module.summary,
        getattr(module, "details", module.summary),
        getattr(module, "figure", None),
        in_readme,
        own_gaps,
    )


SECTIONS: tuple[Section, ...] = (
    _section(truncated_step),
    _section(optimizer),
    _section(exact_step),
    _section(epoch),
    _section(one_shot),
    _section(scaling),
    _section(decompositions),
    _section(ops, own_gaps=True),
    _section(statistics, in_readme=False),
    _section(solvers, in_readme=False),
)
