"""Trains small networks with all processes that torchrun has started, and says what came out.

Run as a program it takes the path of a file and names of scenarios. The first process writes JSON: for each
scenario the records, and for each epoch of a training the hashes of the weights on all processes. After
``--fail RANK`` one process fails in the end, while the others wait for it.
"""

import hashlib
import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
import torch

from lip_fast.cli.errors import UserError
from lip_fast.harness.data import Dataset
from lip_fast.harness.runs.experiment import run_seed
from lip_fast.harness.runs.records import as_plain
from lip_fast.harness.settings.train import TrainConfig
from lip_fast.harness.training.loop import Training
from lip_fast.harness.training.processes import ALONE, Processes, started

# 203 rows, of which 20 are held out: five batches of 36, and one of 3, of which the last of four has none.
ROWS, BATCH = 203, 36
BASE: dict[str, Any] = {
    "epochs": 3,
    "hidden": (12,),
    "batch_size": BATCH,
    "methods": ("plain",),
    "optimizer": "sgd",
    "lr": 0.1,
    "noise_rate": 0.3,
}
IN_STEP = {"methods": ("in-step",), "rank": 3}
SCENARIOS: dict[str, dict[str, Any]] = {
    "plain": {"weight_decay": 1e-3, "schedule": "cosine"},
    "adamw": {"optimizer": "adamw", "lr": 1e-3},
    "in-step": {**IN_STEP, "start": 2},
    # Not with the batch of three rows: what they see of a direction may be next to nothing, and a divisor.
    "in-step by batches": {**IN_STEP, "decay": None, "start": 2, "every": 2},
    "in-step, some directions": {**IN_STEP, "rank": 2, "tail_rank": 2, "every": 3},
    "in-step, automatic": {**IN_STEP, "rank": "auto", "optimizer": "adamw", "lr": 1e-3},
    "afterwards": {"methods": ("plain", "per-epoch", "post-hoc", "ridge", "auto")},
    "passing": {"methods": ("plain", "per-epoch", "post-hoc", "gaussian"), "statistics": "passing"},
    "augmented": {"augment": "crop-flip"},
    "gce": {"algorithm": "gce"},
    "sce": {"algorithm": "sce"},
    "elr": {"algorithm": "elr"},
    "elr in-step": {"algorithm": "elr", **IN_STEP},
    "nvrm": {"algorithm": "nvrm"},
    "cc": {"algorithm": "cc", "noise": "partial"},
    "proden": {"algorithm": "proden", "noise": "partial"},
    "proden in-step": {"algorithm": "proden", "noise": "partial", **IN_STEP},
    "confident learning": {"algorithm": "confident-learning", "options": {"folds": 2}},
    "clean head": {"algorithm": "clean-head"},
    "linear ridge": {"algorithm": "linear-ridge", "model": "linear"},
    "pl-knn": {"algorithm": "pl-knn", "model": "linear"},
}
# Batch statistics are of each process's own part, so that results are others than those of one.
NORMALISED = {
    "cnn": {"model": "cnn", "augment": "crop-flip", "methods": ("plain", "in-step", "per-epoch"), "rank": 3}
}


def images() -> Dataset:
    """Of six classes, each bright in another place."""
    generator = np.random.default_rng(1)
    labels = np.arange(ROWS + 120) % 6
    pixels = generator.standard_normal((len(labels), 8, 8), dtype=np.float32)
    for c in range(6):
        pixels[labels == c, c : c + 2] += 1.5
    features = pixels.reshape(-1, 64)
    train, test = slice(0, ROWS), slice(ROWS, None)
    return Dataset(
        "images",
        features[train],
        labels[train],
        np.arange(ROWS),
        features[test],
        labels[test],
        tuple("abcdef"),
        image_shape=(1, 8, 8),
    )


def hash_of(training: Training) -> str:
    """Of all that the next step starts from, but for LIP's sums, of which each process may have its part."""
    digest = hashlib.sha256()

    def add(value: Any) -> None:
        if isinstance(value, torch.Tensor):
            digest.update(value.cpu().contiguous().numpy().tobytes())
        elif isinstance(value, dict):
            for key, item in value.items():
                digest.update(str(key).encode())
                add(item)
        elif isinstance(value, list):
            for item in value:
                add(item)
        else:
            digest.update(repr(value).encode())

    state = training.state_dict()
    add({name: state[name] for name in ("model", "optimizer", "algorithm", "epoch", "batch", "loss_sum")})
    return digest.hexdigest()


def trained(settings: dict[str, Any], processes: Processes = ALONE) -> tuple[dict[str, Any], list[str]]:
    """The records of a seed, and this process's hashes, one for each epoch of each training."""
    hashes: list[str] = []
    original = Training.run_epoch

    def run_epoch(self: Training, *arguments: Any) -> Any:
        epoch = original(self, *arguments)
        hashes.append(hash_of(self))
        return epoch

    Training.run_epoch = run_epoch  # type: ignore[method-assign]
    try:
        config = TrainConfig(**BASE | settings)
        result = run_seed(config, images(), 2, lambda method, accuracy: None, processes=processes)
    finally:
        Training.run_epoch = original  # type: ignore[method-assign]
    return as_plain(result.records), hashes


def main(processes: Processes, path: str, names: list[str]) -> None:
    failing = names[names.index("--fail") + 1 :]
    found = {}
    for name in names[: -1 - len(failing)]:
        records, hashes = trained({**SCENARIOS, **NORMALISED}[name], processes)
        everywhere: list[Any] = [None] * processes.size
        torch.distributed.all_gather_object(everywhere, hashes)
        found[name] = {"records": records, "hashes": everywhere}
    if processes.first:
        Path(path).write_text(json.dumps(found))
    if failing == [str(processes.rank)]:
        raise UserError("expected something else")
    processes.check_same("end", "of all")


if __name__ == "__main__":
    torch.set_num_threads(1)
    try:
        with started() as group:
            main(group, sys.argv[1], [*sys.argv[2:], *([] if "--fail" in sys.argv else ["--fail"])])
    except UserError as error:
        sys.exit(f"told: {error}")
    # Threads that outlive the group may abort the process in its end.
    threads = [(task / "comm").read_text().strip() for task in Path("/proc/self/task").iterdir()]
    assert not [name for name in threads if "gloo" in name], threads
