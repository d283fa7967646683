"""How far the step by products leads from exact LIP over a training, beside how far rounding alone does.

``python -m benchmarks.trajectory``: a linear classifier learns from wrong labels with exact LIP
(tail_rank="all"), with the default, and again with exact LIP from a start perturbed by 1e-6; and with a tail
that is set to 0. Told is the distance of the weights at the end, relative to the weight of exact LIP.
"""

import sys
import warnings
from collections.abc import Sequence
from typing import Any
from unittest.mock import patch

import torch
from torch import Tensor, nn
from tqdm import tqdm

from benchmarks.command import Parser, answer
from benchmarks.markdown import table
from lip_fast import LIP, flops

__all__ = ["distance", "main", "run"]

SHAPES = ((200, 320), (320, 200))
OPTIMIZERS: dict[str, tuple[type[torch.optim.Optimizer], dict[str, Any]]] = {
    "AdamW, 1e-3": (torch.optim.AdamW, {"lr": 1e-3}),
    "AdamW, 1e-5": (torch.optim.AdamW, {"lr": 1e-5}),
    "SGD with momentum, 0.1": (torch.optim.SGD, {"lr": 0.1, "momentum": 0.9}),
}
STEPS = 300
ROWS = 8000
BATCH = 256
# Steps without LIP before: a fresh head has nothing to keep.
WARM = 100


def _problem(l: int, q: int) -> tuple[Tensor, Tensor]:
    """Features around a centre for each class, and labels of which 40% are wrong."""
    g = torch.Generator().manual_seed(0)
    labels = torch.randint(0, l, (ROWS,), generator=g)
    features = torch.relu(torch.randn(l, q, generator=g)[labels] + 2 * torch.randn(ROWS, q, generator=g))
    wrong = torch.rand(ROWS, generator=g) < 0.4
    labels[wrong] = torch.randint(0, l, (int(wrong.sum()),), generator=g)
    return features, labels


def run(
    shape: tuple[int, int],
    optimizer: str,
    rank: int | None,
    *,
    perturbed: float = 0.0,
    steps: int = STEPS,
    **settings: Any,
) -> tuple[Tensor, dict[str, Any]]:
    """The weight after a training, and what LIP counted; a rank of None is no LIP."""
    features, labels = _problem(*shape)
    g = torch.Generator().manual_seed(1)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        head = nn.Linear(shape[1], shape[0], bias=False)
    make, options = OPTIMIZERS[optimizer]
    # Fast first, so that a slow optimizer finds something learned.
    first = torch.optim.AdamW(head.parameters(), 1e-3)
    base = make(head.parameters(), **options)
    lip = None if rank is None else LIP(head, rank, **settings)
    if lip is not None:
        lip.attach(base)
    for step in range(WARM + steps):
        rows = torch.randint(0, ROWS, (BATCH,), generator=g)
        if step == WARM and perturbed:
            with torch.no_grad():
                head.weight.mul_(1 + perturbed * torch.randn(head.weight.shape, generator=g))
                g.manual_seed(2)
        elif step == WARM:
            g.manual_seed(2)
        head.zero_grad()
        nn.functional.cross_entropy(head(features[rows]), labels[rows]).backward()
        if step < WARM:
            first.step()
            continue
        if lip is not None:
            lip.observe(features[rows], labels[rows])
        base.step()
    return head.weight.detach().clone(), {} if lip is None else lip.stats()


def distance(X: Tensor, Y: Tensor) -> float:
    """||X - Y||_F / ||Y||_F."""
    return float(torch.linalg.vector_norm(X - Y) / torch.linalg.vector_norm(Y))


def main(arguments: Sequence[str] | None = None) -> int:
    """Print the table."""
    parser = Parser(prog="python -m benchmarks.trajectory", description=__doc__.partition("\n")[0])
    parser.parse_args(arguments)

    def work() -> None:
        cases = [
            (shape, name, k)
            for shape in SHAPES
            for name in OPTIMIZERS
            for k in (min(shape) // 2, int(0.9 * min(shape)), min(shape) - 1)
        ]
        lines = []
        # Heads of this size, on which exact LIP takes seconds and not minutes, would be decomposed exactly.
        with warnings.catch_warnings(), patch.object(flops, "products_pay", lambda *_: True):
            warnings.simplefilter("ignore")
            for shape, name, k in tqdm(cases, disable=None):
                exact, _ = run(shape, name, k, tail_rank="all")
                rounding = distance(run(shape, name, k, tail_rank="all", perturbed=1e-6)[0], exact)
                weight, stats = run(shape, name, k)
                assert stats["applied"] == STEPS, stats
                plain = distance(run(shape, name, None)[0], exact)
                far = distance(weight, exact)
                squashed = [run(shape, name, k, tail="zero", tail_rank=r)[0] for r in (None, "all")]
                lines.append(
                    (
                        f"{shape[0]} x {shape[1]}, {name}",
                        str(k),
                        f"{far:.1e}",
                        f"{rounding:.1e}",
                        f"{far / rounding:.1f}x",
                        f"{plain:.1e}",
                        f"{stats['gamma']:.0e}",
                        f"{distance(*squashed):.0e}",
                    )
                )
        header = (
            "head and optimizer",
            "k",
            "from exact LIP",
            "a perturbed start",
            "ratio",
            "without LIP",
            "gamma",
            'tail="zero", from exact',
        )
        print(table(header, lines))

    return answer(parser, work)


if __name__ == "__main__":
    sys.exit(main())
