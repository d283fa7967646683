"""What README's first example costs: LIP with a rank and nothing else, on heads from 10 to 50257 classes.

Everything is timed side by side, one call of each after the other, and told as medians: the step of LIP, the
same step by an exact decomposition (tail_rank="all"), the optimizer's own step, the head's forward and
backward pass on a batch, and the three products of the step's columns alone. Of a network, the share of its
training step that LIP is.
"""

import json
import statistics
import sys
import time
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from tqdm import tqdm

from benchmarks.command import Parser, answer
from benchmarks.markdown import table
from benchmarks.markdown import time as time_of
from benchmarks.sharded import this_machine
from lip_fast import LIP
from lip_fast.cli.atomic import write_whole
from lip_fast.harness.models.convolutional import resnet18
from lip_fast.settings import Settings

__all__ = ["main", "measure", "share", "tables"]

HEADS = [(10, 512), (100, 512), (1000, 2048), (10000, 768), (50257, 768)]
# Directions with 95% of the energy, of a head that was trained and of a fresh one.
TRAINED = {(1000, 2048): (475, 781)}
BATCHES = (128, 1024)
ROUNDS = 9
# A head whose exact step takes longer is timed in fewer rounds.
SECONDS = 20.0


class _Head:
    """A head in training, and LIP on it."""

    def __init__(self, l: int, q: int, rank: int, tail_rank: int | str | None) -> None:
        with torch.random.fork_rng():
            torch.manual_seed(0)
            self.head = nn.Linear(q, l)
        self.optimizer = torch.optim.AdamW(self.head.parameters(), 1e-3)
        self.lip = LIP(self.head, rank, tail_rank=tail_rank)

    def learn(self, features: Tensor, labels: Tensor) -> None:
        self.optimizer.zero_grad()
        nn.functional.cross_entropy(self.head(features), labels).backward()

    def repair(self, features: Tensor, labels: Tensor) -> None:
        self.lip.observe(features, labels)
        self.lip.apply()


def _seconds(work: Callable[[], Any]) -> float:
    start = time.perf_counter()
    work()
    return time.perf_counter() - start


def _batch(l: int, q: int, rows: int, seed: int) -> tuple[Tensor, Tensor]:
    g = torch.Generator().manual_seed(seed)
    return torch.relu(torch.randn(rows, q, generator=g)), torch.randint(0, l, (rows,), generator=g)


def measure(l: int, q: int, rank: int) -> dict[str, Any]:
    """Medians in seconds of all that is compared on one head."""
    heads = {"lip": _Head(l, q, rank, None), "exact": _Head(l, q, rank, "all")}
    large = _batch(l, q, BATCHES[1], 99)
    columns = min(rank + 104, min(l, q))
    V, Y = torch.randn(columns, q).mT, torch.randn(columns, l).mT
    times: dict[str, list[float]] = {}
    spent = 0.0
    for step in range(ROUNDS + 2):
        if spent > SECONDS and step > 4:
            break
        batch = _batch(l, q, BATCHES[0], step)
        row: dict[str, float] = {}
        for name, each in heads.items():
            row["head 128"] = _seconds(lambda: each.learn(*batch))  # noqa: B023
            row["optimizer"] = _seconds(each.optimizer.step)
            row[name] = _seconds(lambda: each.repair(*batch))  # noqa: B023
        M = heads["lip"].head.weight.detach()
        row["products"] = _seconds(lambda: (M @ V, Y.mT @ M, Y @ V.mT))  # noqa: B023
        row["head 1024"] = _seconds(lambda: heads["lip"].learn(*large))
        spent += sum(row.values())
        if step >= 2:
            for name, value in row.items():
                times.setdefault(name, []).append(value)
    stats = heads["lip"].lip.stats()
    assert stats["applied"] == heads["exact"].lip.stats()["applied"], stats
    said = heads["lip"].lip.cost(BATCHES[0])
    medians = {name: statistics.median(values) for name, values in times.items()}
    return {
        "l": l,
        "q": q,
        "rank": rank,
        "path": said.path,
        "rounds": len(times["lip"]),
        "flops": said.flops,
    } | medians


def share(network: nn.Module, head: nn.Linear, inputs: Tensor, rank: int) -> dict[str, Any]:
    """Medians in seconds of a training step of a network without LIP, and of what LIP adds to it."""
    optimizer = torch.optim.AdamW(network.parameters(), 1e-3)
    lip = LIP(head, rank)
    seen: list[Tensor] = []
    head.register_forward_pre_hook(lambda _, given: seen.append(given[0].detach().flatten(0, -2)))
    times: dict[str, list[float]] = {"step": [], "lip": []}
    for step in range(8):
        seen.clear()
        labels = torch.randint(
            0, head.out_features, inputs.shape[:1], generator=torch.Generator().manual_seed(step)
        )

        def train() -> None:
            optimizer.zero_grad()
            logits = network(inputs)
            targets = labels if logits.dim() == 2 else labels[:, None].expand(logits.shape[:2])  # noqa: B023
            nn.functional.cross_entropy(logits.flatten(0, -2), targets.flatten()).backward()
            optimizer.step()

        taken = _seconds(train)
        rows = len(seen[0])
        lip.observe(seen[0], labels.repeat_interleave(rows // len(labels)))
        added = _seconds(lip.apply)
        if step >= 2:
            times["step"].append(taken)
            times["lip"].append(added)
    return {"rank": rank} | {name: statistics.median(values) for name, values in times.items()}


class _Transformer(nn.Module):
    """Two layers of width 256, and a head of many classes at every token."""

    def __init__(self, classes: int) -> None:
        super().__init__()
        self.embedding = nn.Embedding(classes, 256)
        layer = nn.TransformerEncoderLayer(256, 4, 1024, batch_first=True)
        self.layers = nn.TransformerEncoder(layer, 2, enable_nested_tensor=False)
        self.head = nn.Linear(256, classes)

    def forward(self, tokens: Tensor) -> Tensor:
        """Tokens (n, t) to logits (n, t, classes)."""
        logits: Tensor = self.head(self.layers(self.embedding(tokens)))
        return logits


def _ranks(l: int, q: int) -> list[int]:
    """Half of the directions, nine tenths, the most that "auto" takes, and what it took of some heads."""
    d = min(l, q)
    return sorted({d // 2, int(0.9 * d), Settings.most_kept(d), *TRAINED.get((l, q), ())})


def _networks() -> dict[str, dict[str, Any]]:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        found = {}
        for classes, rank in ((10, 8), (100, 90)):
            network = resnet18((3, 32, 32), classes)
            found[f"ResNet-18, 32 x 32, {classes} classes"] = share(
                network, network.head, torch.randn(128, 3072), rank
            )
        transformer = _Transformer(10000)
        tokens = torch.randint(0, 10000, (128, 16))
        for rank in (128, 230):
            found[f"transformer, 16 tokens, 10000 classes, rank {rank}"] = share(
                transformer, transformer.head, tokens, rank
            )
        return found


def tables(result: dict[str, Any]) -> str:
    """Markdown."""
    lines = [
        (
            f"{row['l']} x {row['q']}, k = {row['rank']}",
            row["path"],
            time_of(1e6 * row["lip"]),
            f"{row['exact'] / row['lip']:.2f}x",
            f"{row['lip'] / row['products']:.2f}x",
            f"{row['lip'] / row['head 128']:.2f}x",
            f"{row['lip'] / row['head 1024']:.2f}x",
            f"{row['lip'] / row['optimizer']:.1f}x",
        )
        for row in result["heads"]
    ]
    header = (
        "head",
        "path",
        "LIP",
        "exact / LIP",
        "of its products",
        "of the head, 128 rows",
        "of the head, 1024 rows",
        "of AdamW",
    )
    shares = [
        (
            name,
            str(row["rank"]),
            time_of(1e6 * row["step"]),
            time_of(1e6 * row["lip"]),
            f"{row['lip'] / row['step']:.2%}",
        )
        for name, row in result["networks"].items()
    ]
    of_networks = table(("network, batch 128", "rank", "training step", "LIP", "share"), shares)
    return table(header, lines) + "\n\n" + of_networks


def main(arguments: Sequence[str] | None = None) -> int:
    """Print the tables, or write what was measured to a file too."""
    parser = Parser(prog="python -m benchmarks.first_use", description=__doc__.partition("\n")[0])
    parser.add_argument("--json", type=Path, help="write what was measured to this file")
    given = parser.parse_args(arguments)

    def work() -> None:
        rows = [(l, q, rank) for l, q in HEADS for rank in _ranks(l, q)]
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            heads = [measure(*row) for row in tqdm(rows, disable=None)]
            result = {"machine": this_machine(), "heads": heads, "networks": _networks()}
        if given.json is not None:
            write_whole(given.json, json.dumps(result, indent=1) + "\n")
        print(tables(result))

    return answer(parser, work)


if __name__ == "__main__":
    sys.exit(main())
