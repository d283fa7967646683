"""Where LIP in the step helps: beside plain training, weight decay and early stopping, on wrong labels.

``python -m benchmarks.lip_in_step --data digit-pairs FILE.npz --json FILE``: a linear head on features in
memory learns from labels of which 40% are wrong. Whatever there is to choose (decay, rank, step) is chosen by
a tenth of the training rows that no step sees, whose labels are as wrong. What FILE has is not run again: a
run that was stopped goes on, and ``--seeds`` or ``--data`` may grow.
"""

import json
import sys
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

import torch
from tqdm import tqdm

from benchmarks.command import Parser, Refused, answer
from benchmarks.lip_in_step_figure import save_figure
from benchmarks.lip_in_step_report import settings, tables
from benchmarks.lip_in_step_runs import (
    BATCH,
    NOISE,
    ON_DECAY,
    SHUFFLED,
    START,
    STEPS,
    Problem,
    Spec,
    data_of,
    problem,
    train,
)
from benchmarks.sharded import this_machine
from lip_fast.cli.atomic import write_whole
from lip_fast.harness.files.slots import Slot

__all__ = ["FADES", "LEARNING_RATES", "RANKS", "SLOT", "Results", "learning_rate", "main", "run_seed"]

LEARNING_RATES = {
    "adamw": (3e-4, 1e-3, 3e-3, 1e-2, 3e-2),
    "sgd": (1e-3, 3e-3, 1e-2, 3e-2, 0.1, 0.3, 1.0, 3.0, 10.0),
}
# Learning rate times weight decay. Momentum makes the steps of SGD ten times as long.
FADES = {"adamw": (3e-4, 1e-3, 3e-3, 1e-2), "sgd": (1e-5, 3e-5, 1e-4, 3e-4)}
RANKS = (0.1, 0.2, 0.35, 0.5, 0.9)
SLOT = Slot("lip-in-step")


class Results:
    """What was measured, by the key of its :class:`Spec`; written to a file after each training.

    Args:
        path: of the file, read where it is there; None keeps everything in memory.
    """

    def __init__(self, path: Path | None = None) -> None:
        self._path = path
        self.runs: dict[str, dict[str, Any]] = {}
        self.about: dict[str, Any] = {}
        if path is not None and path.exists():
            saved = json.loads(path.read_text())
            self.runs, self.about = saved["runs"], saved["about"]

    def __call__(self, given: Callable[[], Problem], spec: Spec) -> dict[str, Any]:
        """The result of a training, which is run where there is none."""
        if spec.key not in self.runs:
            self.runs[spec.key] = train(given(), spec)
            self.write()
        return self.runs[spec.key]

    def write(self) -> None:
        """Write the file: a run a line."""
        if self._path is not None:
            lines = ",\n".join(f"{json.dumps(key)}: {_short(run)}" for key, run in self.runs.items())
            write_whole(self._path, f'{{"about": {_short(self.about)},\n"runs": {{\n{lines}\n}}}}\n')


def _short(value: object) -> str:
    return json.dumps(value, separators=(",", ":"))


def learning_rate(results: Results, given: Callable[[], Problem], data: str, optimizer: str) -> float:
    """That of plain training whose hold-out is the best at the last step, on seed 0; the lower of equals."""
    held = {lr: results(given, Spec(data, optimizer, lr, 0))["held"][-1] for lr in LEARNING_RATES[optimizer]}
    return max(held, key=lambda lr: (held[lr], -lr))


def run_seed(
    results: Results,
    given: Callable[[], Problem],
    base: Spec,
    ranks: Sequence[float | str] = (*RANKS, "auto", SHUFFLED),
) -> None:
    """Every training of one seed: plain, with decay, with LIP, with LIP on the chosen decay."""
    fades = (0.0, *FADES[base.optimizer])
    held = {fade: results(given, replace(base, fade=fade, every=1))["held"][-1] for fade in fades}
    chosen = max(fades, key=lambda fade: held[fade])
    for rank in ranks:
        results(given, replace(base, rank=rank))
    for rank in ON_DECAY:
        results(given, replace(base, rank=rank, fade=chosen))


def run_centred(
    results: Results, given: Callable[[], Problem], base: Spec, ranks: Sequence[float | str]
) -> None:
    """LIP once more, on the weight without its class mean."""
    for rank in ranks:
        results(given, replace(base, rank=rank, centred=True))


def _run_data(results: Results, name: str, asked: Any) -> None:
    dataset = data_of(name)
    given = {seed: cache(lambda seed=seed: problem(dataset, seed)) for seed in range(asked.seeds)}
    first = given[0]()
    results.about.setdefault("data", {})[dataset.name] = {
        "classes": first.classes,
        "features": first.train.X.shape[1],
        "train": first.train.size,
        "held": first.held.size,
        "test": first.test.size,
    }
    ranks = tuple(asked.ranks)
    for optimizer in asked.optimizers:
        lr = learning_rate(results, given[0], dataset.name, optimizer)
        results.about.setdefault("lr", {}).setdefault(dataset.name, {})[optimizer] = lr
        for times in asked.times:
            for seed in tqdm(
                range(asked.seeds), desc=f"{dataset.name}, {optimizer}, {times:g} lr", disable=None
            ):
                base = Spec(dataset.name, optimizer, lr * times, seed, every=asked.every)
                if asked.centred:
                    run_centred(results, given[seed], base, ranks)
                else:
                    run_seed(results, given[seed], base, ranks)
                print(
                    f"{dataset.name}, {optimizer}, {times:g} lr, seed {seed}: {len(results.runs)} runs",
                    flush=True,
                )
    results.write()


def _rank(text: str) -> float | str:
    return text if text in ("auto", SHUFFLED) else float(text)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run what is missing."""
    parser = Parser(prog="python -m benchmarks.lip_in_step", description=__doc__.partition("\n")[0])
    parser.add_argument(
        "--data", nargs="*", default=["digit-pairs", "digits"], help="names or FILE.npz; none: only tell"
    )
    parser.add_argument("--optimizers", nargs="+", default=["adamw", "sgd"], choices=list(FADES))
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--times", type=float, nargs="+", default=[1.0], help="of the chosen learning rate")
    parser.add_argument(
        "--ranks",
        type=_rank,
        nargs="+",
        default=[*RANKS, "auto", SHUFFLED],
        help="fractions of min(l, q), auto or shuffled",
    )
    parser.add_argument("--every", type=int, default=1, help="LIP acts on each so many steps")
    parser.add_argument(
        "--centred", action="store_true", help="only LIP on the weight without its class mean"
    )
    parser.add_argument("--json", type=Path, help="file of the results: what it has is not run again")
    parser.add_argument("--figure", type=Path, help="draw accuracy against rank into this file")
    parser.add_argument("--write", type=Path, metavar="PAGE.md", help="put the tables between its markers")
    asked = parser.parse_args(arguments)

    def work() -> None:
        if asked.seeds < 1:
            raise Refused(f"expected --seeds of at least 1, got {asked.seeds}")
        results = Results(asked.json)
        torch.set_num_threads(1)
        results.about |= {
            "machine": this_machine(),
            "noise": NOISE,
            "batch": BATCH,
            "steps": STEPS,
            "start": START,
        }
        for name in asked.data:
            _run_data(results, name, asked)
        found = settings(results.runs, results.about)
        text = tables(found)
        if asked.figure is not None:
            save_figure(asked.figure, found)
        if asked.write is None:
            print(text)
        else:
            write_whole(asked.write, SLOT.filled(asked.write, text))

    return answer(parser, work)


if __name__ == "__main__":
    sys.exit(main())
