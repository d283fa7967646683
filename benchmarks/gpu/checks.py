"""Checks of the whole step on a GPU: ``python -m benchmarks.gpu.checks --result FILE``.

The step waits for nothing; replays of a captured step are eager steps, bit for bit; streams other than the
default one give the same bits, one at a time and two at once.
"""

import argparse
import json
import sys
import traceback
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from benchmarks.gpu.optim import InsideTrainer
from benchmarks.gpu.step import Trainer, sgd
from benchmarks.gpu.weights import device_generator, make_weight
from lip_fast.bench.cases import Skip, require_native
from lip_fast.bench.timing import synchronize
from lip_fast.optim import LIPSGD, LIPAdamW

__all__ = ["checks", "main", "run_checks"]

_STEPS = 6
_SAMPLES = 64
# The second is larger than what the native sketch leaves to the library.
_HEADS = ((100, 512, 32, 8), (12000, 1024, 32, 8))
_DRY_HEADS = ((60, 80, 6, 4),)


def _adamw(parameters: list[nn.Parameter]) -> torch.optim.Optimizer:
    return torch.optim.AdamW(parameters, lr=1e-5, fused=True, capturable=parameters[0].is_cuda)


def _lip_adamw(parameters: list[nn.Parameter], **settings: Any) -> torch.optim.Optimizer:
    return LIPAdamW(parameters, lr=1e-5, fused=True, capturable=parameters[0].is_cuda, **settings)


def _lip_sgd(parameters: list[nn.Parameter], **settings: Any) -> torch.optim.Optimizer:
    return LIPSGD(parameters, lr=1.0, momentum=0.5, fused=True, **settings)


_ATTACHED: dict[str, Callable[[list[nn.Parameter]], torch.optim.Optimizer]] = {"SGD": sgd, "AdamW": _adamw}
_INSIDE: dict[str, Callable[..., torch.optim.Optimizer]] = {"LIPSGD": _lip_sgd, "LIPAdamW": _lip_adamw}


class Problem:
    """A weight, with a gradient and a batch for every step.

    Args:
        head: rows, columns, kept and refitted directions.
        device: where it is.
    """

    def __init__(self, head: tuple[int, int, int, int], device: torch.device) -> None:
        l, q, self.k, self.r = head
        self.device = device
        self.M = make_weight(l, q, self.k, self.r, device).M
        g = device_generator(device)
        scale = 1e-3 * float(torch.linalg.vector_norm(self.M)) / (l * q) ** 0.5
        self.gradients = [torch.randn(l, q, generator=g, device=device) * scale for _ in range(_STEPS)]
        self.features = [torch.randn(_SAMPLES, q, generator=g, device=device) for _ in range(_STEPS)]
        self.labels = [torch.randint(l, (_SAMPLES,), generator=g, device=device) for _ in range(_STEPS)]

    def trainer(self, rest: str, kind: str = "SGD") -> Trainer:
        """A head of its own with LIP, and a gradient of its own; LIP is attached or inside the optimizer."""
        options = {"rank": self.k, "tail_rank": self.r, "rest": rest}
        gradient = torch.zeros_like(self.M)
        if kind in _ATTACHED:
            return Trainer(self.M, gradient, _ATTACHED[kind], options | {"seed": 0})
        settings = {f"lip_{name}": value for name, value in options.items()}
        return InsideTrainer(self.M, gradient, partial(_INSIDE[kind], **settings))

    def step(self, trainer: Trainer, i: int) -> None:
        """The i-th."""
        self.load(trainer, i)
        trainer.step(self.features[i], self.labels[i])

    def load(self, trainer: Trainer, i: int) -> None:
        """What the i-th backward pass leaves."""
        assert trainer.head.weight.grad is not None
        trainer.head.weight.grad.copy_(self.gradients[i])


def _applied(trainer: Trainer) -> Mapping[str, int | None]:
    stats = trainer.stats()
    if stats["skipped"] or not stats["applied"]:
        raise AssertionError(f"not every step was repaired: {stats}")
    return stats


def _same(what: str, a: Tensor, b: Tensor) -> None:
    unequal = int((a != b).sum())
    if unequal:
        worst = float((a.double() - b.double()).abs().max())
        raise AssertionError(f"{what}: {unequal} of {a.numel()} values differ, by {worst:.1e} at most")


@contextmanager
def _no_waiting(device: torch.device) -> Iterator[None]:
    """What waits for the device raises."""
    if device.type != "cuda":
        yield
        return
    torch.cuda.set_sync_debug_mode("error")
    try:
        yield
    finally:
        torch.cuda.set_sync_debug_mode("default")


def waits_for_nothing(problem: Problem, rest: str, kind: str) -> None:
    """``observe`` and ``step`` under ``set_sync_debug_mode("error")``, once there is a basis."""
    trainer = problem.trainer(rest, kind)
    problem.step(trainer, 0)
    problem.step(trainer, 1)
    synchronize(problem.device)
    with _no_waiting(problem.device):
        for i in range(2, _STEPS):
            problem.step(trainer, i)
    synchronize(problem.device)
    _applied(trainer)


def replays_are_eager_steps(problem: Problem, rest: str, kind: str) -> None:
    """A captured step replayed on new batches, beside the same steps as they are called."""
    if problem.device.type != "cuda":
        raise Skip("there are no graphs on a CPU")
    ours, eager = problem.trainer(rest, kind), problem.trainer(rest, kind)
    problem.load(ours, 0)
    replay = ours.captured("replay", problem.features[0], problem.labels[0], lambda: None)
    eager.follow(ours)
    before = ours.weight.clone()
    for i in range(1, _STEPS):
        problem.load(ours, i)
        ours.observe(problem.features[i], problem.labels[i])
        replay.run()
        problem.step(eager, i)
        _same(f"replay {i}", ours.weight, eager.weight)
    if torch.equal(before, ours.weight):
        raise AssertionError("the replays changed nothing")
    a, b = _applied(ours), _applied(eager)
    if a != b:
        raise AssertionError(f"the counters differ: {a} and {b}")


def another_stream(problem: Problem, rest: str, kind: str) -> None:
    """Steps on a stream of their own, behind work that keeps it busy."""
    if problem.device.type != "cuda":
        raise Skip("there are no streams on a CPU")
    there, here = problem.trainer(rest, kind), problem.trainer(rest, kind)
    synchronize(problem.device)
    stream = torch.cuda.Stream(problem.device)
    with torch.cuda.stream(stream):
        for i in range(_STEPS):
            # Whatever went to the default stream would overtake the gradient.
            torch.cuda._sleep(1_000_000)
            problem.step(there, i)
    for i in range(_STEPS):
        problem.step(here, i)
    synchronize(problem.device)
    _same("another stream", there.weight, here.weight)
    _applied(there)


def two_streams(problem: Problem, rest: str, kind: str) -> None:
    """Two heads on two streams at once, each as it is alone."""
    if problem.device.type != "cuda":
        raise Skip("there are no streams on a CPU")
    alone = problem.trainer(rest, kind)
    for i in range(_STEPS):
        problem.step(alone, i)
    heads = [problem.trainer(rest, kind) for _ in range(2)]
    streams = [torch.cuda.Stream(problem.device) for _ in heads]
    for trainer in heads:
        problem.step(trainer, 0)  # the first decomposition waits
    synchronize(problem.device)
    for i in range(1, _STEPS):
        for trainer, stream in zip(heads, streams, strict=True):
            with torch.cuda.stream(stream):
                problem.step(trainer, i)
    synchronize(problem.device)
    for trainer in heads:
        _same("two streams", trainer.weight, alone.weight)
        _applied(trainer)


def checks(device: torch.device, dry: bool) -> Iterator[tuple[str, Callable[[], None]]]:
    """Name and function of each check."""
    for head in _DRY_HEADS if dry else _HEADS:
        problem = Problem(head, device)
        for rest in ("keep", "drop"):
            name = f"{head[0]}x{head[1]} {rest}"
            for kind in (*_ATTACHED, *_INSIDE):
                yield (
                    f"waits for nothing, {kind} {name}",
                    partial(waits_for_nothing, problem, rest, kind),
                )
            # What AdamW keeps is not handed on with a LIP that is attached.
            for kind in ("SGD", *_INSIDE):
                yield (
                    f"replays are eager steps, {kind} {name}",
                    partial(replays_are_eager_steps, problem, rest, kind),
                )
            for kind in ("SGD", "LIPAdamW"):
                yield f"another stream, {kind} {name}", partial(another_stream, problem, rest, kind)
                yield f"two streams, {kind} {name}", partial(two_streams, problem, rest, kind)


def run_checks(
    found: Iterator[tuple[str, Callable[[], None]]], write: Callable[[dict[str, Any]], None]
) -> bool:
    """Run the checks and write a record of each; whether none failed."""
    sound = True
    for name, check in found:
        record: dict[str, Any] = {"kind": "check", "check": name, "passed": True, "reason": None}
        try:
            check()
        except Skip as skipped:
            record |= {"passed": None, "reason": str(skipped)}
        except Exception as error:  # the others go on
            traceback.print_exc()
            reason = f"{type(error).__name__}: {' '.join(str(error).split())[:400]}"
            record |= {"passed": False, "reason": reason}
            sound = False
        write(record)
        print(f"{name}: {record['reason'] or 'passed'}", flush=True)
    return sound


def main(arguments: Sequence[str] | None = None) -> int:
    """Check the step; 1 where a check failed."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.gpu.checks", description=main.__doc__)
    parser.add_argument("--result", type=Path, required=True, help="takes a line of JSON a check")
    parser.add_argument("--dry", action="store_true", help="what there is to check on a CPU")
    options = parser.parse_args(arguments)
    device = torch.device("cpu" if options.dry else "cuda")
    require_native(device)
    with options.result.open("a") as file:

        def write(record: dict[str, Any]) -> None:
            file.write(json.dumps(record) + "\n")
            file.flush()

        sound = run_checks(checks(device, options.dry), write)
    return 0 if sound else 1


if __name__ == "__main__":
    sys.exit(main())
