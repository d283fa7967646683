"""Tables of :mod:`benchmarks.lip_in_step`: what hold-out chooses, beside the best by test."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean
from typing import Any, NamedTuple

from benchmarks.lip_in_step_runs import EVERY, ON_DECAY, SHUFFLED, START, Spec
from benchmarks.markdown import count, table
from lip_fast.harness.runs.paired import Difference, holm, paired_difference
from lip_fast.harness.runs.table import points

__all__ = ["TITLES", "Curve", "Method", "Setting", "settings", "tables"]

TITLES = {"adamw": "AdamW", "sgd": "SGD"}
# Steps with LIP after which the hold-out is asked for the rank.
BRIEFLY = (50, 100, 200, 400)
# The share that weights lose in a step, and the rank of LIP.
Name = tuple[float, float | str | None]


class Curve(NamedTuple):
    """Accuracies of a training, one for each look.

    Attributes:
        test: on clean labels.
        held: on the noisy labels that choose.
        rank: kept by LIP; None without it.
    """

    test: tuple[float, ...]
    held: tuple[float, ...]
    rank: int | None = None

    def stopped(self) -> float:
        """Test accuracy at the look with the best hold-out, the later of equals."""
        return self.test[max(range(len(self.held)), key=lambda i: (self.held[i], i))]


class Method(NamedTuple):
    """Test accuracy of one method, seed by seed.

    Attributes:
        last: after the last step.
        stopped: at the step that the hold-out chooses.
        choice: what was chosen, seed by seed.
    """

    last: list[float]
    stopped: list[float]
    choice: list[Any]


@dataclass(frozen=True)
class Setting:
    """The runs of one data set with one optimizer at one learning rate.

    Attributes:
        data: name of the data set.
        optimizer: "adamw" or "sgd".
        times: the learning rate, of the one that was chosen.
        d: directions of the head.
        seeds: the curves of each seed by decay (the share lost in a step) and rank.
        centred: likewise, where LIP saw the weight without its class mean; there may be none.
    """

    data: str
    optimizer: str
    times: float
    d: int
    seeds: Mapping[int, Mapping[Name, Curve]]
    centred: Mapping[int, Mapping[Name, Curve]]

    @property
    def title(self) -> str:
        """The data set, and how many seeds where they are fewer than usual."""
        return self.data if len(self.seeds) >= 5 else f"{self.data} ({count(len(self.seeds), 'seed')})"

    @property
    def _shared(self) -> set[Name]:
        return set.intersection(*(set(curves) for curves in self.seeds.values()))

    @property
    def fades(self) -> list[float]:
        """The decays tried without LIP, and 0."""
        return sorted(fade for fade, rank in self._shared if rank is None)

    @property
    def ranks(self) -> list[float]:
        """The fractions tried without decay."""
        return sorted(rank for fade, rank in self._shared if fade == 0 and isinstance(rank, float))

    def has(self, rank: str) -> bool:
        """Whether it was tried without decay."""
        return (0.0, rank) in self._shared

    def fixed(self, fade: float = 0.0, rank: float | str | None = None) -> Method:
        """A method with nothing to choose but the step."""
        curves = [seed[fade, rank] for seed in self.seeds.values()]
        return Method([c.test[-1] for c in curves], [c.stopped() for c in curves], [c.rank for c in curves])

    def chosen(self, kind: str) -> Method:
        """The best by hold-out at the last step.

        With early stopping decay or rank and step are chosen together.

        Args:
            kind: of the decays ("decay"), the ranks ("rank"), the ranks and no LIP ("rank or none"), all of
                these ("anything"), the rank by shuffled labels and no LIP ("shuffled or none"), or the ranks
                on the best decay ("both").
        """
        last, stopped, choice = [], [], []
        for seed in self.seeds.values():
            names = self._candidates(seed, kind)
            best = max(names, key=lambda name: seed[name].held[-1])
            last.append(seed[best].test[-1])
            stopped.append(seed[max(names, key=lambda name: max(seed[name].held))].stopped())
            choice.append(best)
        return Method(last, stopped, choice)

    def _candidates(self, seed: Mapping[Name, Curve], kind: str) -> list[Name]:
        decays: list[Name] = [(fade, None) for fade in self.fades]
        ranks: list[Name] = [(0.0, rank) for rank in self.ranks]
        if kind == "both":
            fade = max(decays, key=lambda name: seed[name].held[-1])[0]
            return [(fade, rank) for rank in ON_DECAY]
        found: dict[str, list[Name]] = {
            "decay": decays,
            "rank": ranks,
            "rank or none": [(0.0, None), *ranks],
            "shuffled or none": [(0.0, None), (0.0, SHUFFLED)],
            "anything": [*decays, *ranks],
        }
        return found[kind]

    def briefly(self, steps: int, kind: str = "rank or none") -> Method:
        """The best of a kind by hold-out so many steps after LIP began, kept to the end."""
        look = (START + steps) // EVERY - 1
        last, stopped, choice = [], [], []
        for seed in self.seeds.values():
            best = max(self._candidates(seed, kind), key=lambda name: seed[name].held[look])
            last.append(seed[best].test[-1])
            stopped.append(seed[best].stopped())
            choice.append(best)
        return Method(last, stopped, choice)

    def oracle(self, kind: str) -> tuple[Any, float]:
        """The decay or rank that is the best by mean test accuracy after the last step, and that mean."""
        if kind == "decay":
            means = {fade: fmean(self.fixed(fade).last) for fade in self.fades}
        else:
            means = {rank: fmean(self.fixed(0.0, rank).last) for rank in self.ranks}
        best = max(means, key=lambda name: means[name])
        return best, means[best]

    def rival(self) -> tuple[str, list[float]]:
        """The best by mean test accuracy of what is simpler than LIP: its name, and its seeds."""
        plain, decay = self.fixed(), self.chosen("decay")
        found = {
            "plain": plain.last,
            "early stopping": plain.stopped,
            "decay": decay.last,
            "decay and early stopping": decay.stopped,
        }
        name = max(found, key=lambda name: fmean(found[name]))
        return name, found[name]


def settings(runs: dict[str, dict[str, Any]], about: dict[str, Any]) -> list[Setting]:
    """What was measured, by data set, optimizer and learning rate, of the seeds that have all runs."""
    groups: dict[tuple[str, str, float], dict[int, dict[Name, Curve]]] = {}
    centred: dict[tuple[str, str, float], dict[int, dict[Name, Curve]]] = {}
    for key, run in runs.items():
        spec = Spec.of(key)
        size = about["data"][spec.data]
        curve = Curve(
            tuple(n / size["test"] for n in run["test"]),
            tuple(n / size["held"] for n in run["held"]),
            run.get("rank"),
        )
        place = (centred if spec.centred else groups).setdefault((spec.data, spec.optimizer, spec.lr), {})
        place.setdefault(spec.seed, {})[spec.fade, spec.rank] = curve
    found = []
    for (data, optimizer, lr), seeds in groups.items():
        # Of other learning rates there is plain training of one seed, by which one was chosen; of a seed
        # under way, less than of the first.
        most = max(map(_ranks, seeds.values()))
        whole = {
            seed: curves for seed, curves in seeds.items() if _ranks(curves) == most and _on_decay(curves)
        }
        if most and whole:
            times = lr / about["lr"][data][optimizer]
            of_centre = centred.get((data, optimizer, lr), {})
            size = about["data"][data]
            d = min(size["classes"], size["features"])
            found.append(Setting(data, optimizer, times, d, whole, of_centre))
    return found


def _ranks(curves: Mapping[Name, Curve]) -> int:
    return sum(fade == 0 and rank is not None for fade, rank in curves)


def _on_decay(curves: Mapping[Name, Curve]) -> bool:
    """Whether the runs of LIP on the chosen decay, the last ones of a seed, are there."""
    decays = [fade for fade, rank in curves if rank is None]
    chosen = max(decays, key=lambda fade: curves[fade, None].held[-1])
    return sum(fade == chosen and rank in ON_DECAY for fade, rank in curves) == len(ON_DECAY)


# Tables ---------------------------------------------------------------------------------------------------


def tables(found: Sequence[Setting]) -> str:
    """Markdown: for each optimizer and learning rate what was chosen, what that gains, and all ranks."""
    parts = []
    for optimizer, times in sorted({(s.optimizer, s.times) for s in found}, key=lambda x: (x[1], x[0])):
        group = [s for s in found if (s.optimizer, s.times) == (optimizer, times)]
        title = TITLES[optimizer] + ("" if times == 1 else f", {times:g} times the learning rate")
        parts += [f"### {title}", _accuracies(group), _gains(group), _by_rank(group)]
    parts += ["### Rules for the rank", _rules(found)]
    if any(s.centred for s in found):
        parts += ["### Without the class mean", _centred([s for s in found if s.centred])]
    return "\n\n".join(parts)


def _both(method: Method) -> str:
    return f"{100 * fmean(method.last):.1f} / {100 * fmean(method.stopped):.1f}"


def _accuracies(group: Sequence[Setting]) -> str:
    header = ("data", "plain", "tuned decay", "LIP, rank by hold-out", "LIP, rank=\"auto\"",
              "LIP on tuned decay", "best decay by test", "best rank by test")  # fmt: skip
    lines = []
    for s in group:
        _, decayed = s.oracle("decay")
        rank, ranked = s.oracle("rank")
        lines.append(
            (
                s.title,
                _both(s.fixed()),
                _both(s.chosen("decay")),
                _both(s.chosen("rank")),
                _both(s.fixed(0.0, "auto")) if s.has("auto") else "",
                _both(s.chosen("both")),
                f"{100 * decayed:.1f}",
                f"{100 * ranked:.1f} ({rank:g} d)",
            )
        )
    return table(header, lines)


def _gains(group: Sequence[Setting]) -> str:
    header = (
        "data",
        "strongest rival",
        "its accuracy",
        "LIP to plain",
        "LIP to the rival",
        "LIP, stopped, to the rival",
        "LIP on decay to the rival",
        "LIP on decay, stopped, to the rival",
    )
    rows = []
    for s in group:
        name, rival = s.rival()
        lip, both = s.chosen("rank"), s.chosen("both")
        pairs = [
            (lip.last, s.fixed().last),
            (lip.last, rival),
            (lip.stopped, rival),
            (both.last, rival),
            (both.stopped, rival),
        ]
        rows.append((s.title, name, f"{100 * fmean(rival):.1f}", [paired_difference(a, b) for a, b in pairs]))
    levels = iter(holm([1.0 if d.p is None else d.p for *_, differences in rows for d in differences]))
    lines = [
        (title, name, accuracy, *(_marked(d, next(levels)) for d in differences))
        for title, name, accuracy, differences in rows
    ]
    return table(header, lines)


def _marked(difference: Difference, level: float) -> str:
    text = points(difference)
    return f"**{text}**" if level < 0.05 else text


def _by_rank(group: Sequence[Setting]) -> str:
    ranks = sorted({rank for s in group for rank in s.ranks})
    lines = []
    for s in group:
        cells = {rank: fmean(s.fixed(0.0, rank).last) for rank in s.ranks}
        by_rule = [_kept(s, rule) if s.has(rule) else "" for rule in ("auto", SHUFFLED)]
        texts = [f"{100 * cells[rank]:.1f}" if rank in cells else "" for rank in ranks]
        lines.append((s.title, f"{100 * fmean(s.fixed().last):.1f}", *texts, *by_rule))
    return table(
        ("data", "plain", *(f"{rank:g} d" for rank in ranks), "energy (auto)", "shuffled labels"), lines
    )


def _kept(s: Setting, rule: str) -> str:
    method = s.fixed(0.0, rule)
    return f"{100 * fmean(method.last):.1f} ({fmean(method.choice) / s.d:.2f} d)"


def _rules(group: Sequence[Setting]) -> str:
    lines = []
    for s in group:
        rank, best = s.oracle("rank")
        brief = [f"{100 * fmean(s.briefly(steps).last):.1f}" for steps in BRIEFLY]
        lines.append(
            (
                f"{s.title}, {TITLES[s.optimizer]}" + ("" if s.times == 1 else f", {s.times:g} lr"),
                f"{100 * fmean(s.fixed().last):.1f}",
                *(f"{100 * fmean(s.fixed(0.0, r).last):.1f}" if s.has(r) else "" for r in ("auto", SHUFFLED)),
                f"{100 * fmean(s.briefly(100, 'shuffled or none').last):.1f}" if s.has(SHUFFLED) else "",
                *brief,
                *(f"{100 * fmean(s.chosen(kind).last):.1f}" for kind in ("rank or none", "anything", "rank")),
                f"{100 * best:.1f} ({rank:g} d)",
            )
        )
    header = (
        "data",
        "plain",
        "energy (auto)",
        "shuffled labels",
        "or none, 100 steps",
        *(f"{steps} steps" for steps in BRIEFLY),
        "at the end",
        "or a decay",
        "a rank for certain",
        "best by test",
    )
    return table(header, lines)


def _centred(group: Sequence[Setting]) -> str:
    lines = []
    for s in group:
        for rank in sorted(
            {rank for curves in s.centred.values() for _, rank in curves if rank is not None}, key=str
        ):
            seeds = [seed for seed in s.seeds if (0.0, rank) in s.centred.get(seed, {})]
            ours = [s.centred[seed][0.0, rank].test[-1] for seed in seeds]
            theirs = [s.seeds[seed][0.0, rank].test[-1] for seed in seeds]
            name = rank if isinstance(rank, str) else f"{rank:g} d"
            lines.append(
                (
                    f"{s.data} ({count(len(seeds), 'seed')}), {TITLES[s.optimizer]}",
                    name,
                    f"{100 * fmean(theirs):.1f}",
                    f"{100 * fmean(ours):.1f}",
                    points(paired_difference(ours, theirs)),
                )
            )
    return table(("data", "rank", "LIP", "on the centred weight", "difference"), lines)
