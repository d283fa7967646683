"""Every reader of files on damaged and hostile ones.

A damaged file is refused in one line, or read as what it then says; no other exception, no hang, and nothing
in a file is run.
"""

import pickle
import signal
import time
import zipfile
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest
import torch
import yaml
from harness.damage import check_valid, damaged
from harness.guards import Hanging, guarded
from harness.sample_files import (
    cifar10_arrays,
    embeddings,
    python_2_batch,
    write_cifar10,
    write_fashion_mnist,
    write_human,
    write_mat,
    write_npz,
)
from safetensors.torch import save_file

from lip_fast.cli.errors import UserError
from lip_fast.harness.data import load
from lip_fast.harness.data.human_labels import read_human_labels
from lip_fast.harness.files.labels import save_labels
from lip_fast.harness.noise.labels import training_labels
from lip_fast.harness.repairs.checkpoints import read_checkpoint
from lip_fast.harness.repairs.features import read_features
from lip_fast.harness.runs.folder import CHECKPOINT, CONFIG, RunFolder, new_run
from lip_fast.harness.runs.plan import plan_of
from lip_fast.harness.runs.progress import Progress
from lip_fast.harness.settings.arguments import parse, parse_stored
from lip_fast.harness.settings.train import TrainConfig

pytestmark = [
    pytest.mark.hostile,
    pytest.mark.skipif(not hasattr(signal, "setitimer"), reason="needs timers"),
]

L, Q = 3, 5
CLEAN = np.arange(40) % 10


class Reader(NamedTuple):
    """A file to damage, how to read it, and a check of what was read."""

    path: Path
    read: Callable[[], Any]
    check: Callable[[Any], None]


def _dataset(path: Path, name: str | None = None) -> Reader:
    return Reader(path, lambda: load(str(path) if name is None else name), check_valid)


def _fashion_mnist(folder: Path, file: str, suffix: str = "") -> Reader:
    write_fashion_mnist(folder, suffix)
    return _dataset(folder / f"{file}{suffix}", f"fashion-mnist:{folder}")


def _cifar10(folder: Path, kind: str) -> Reader:
    write_cifar10(folder, binary=kind == "binary", rows=2, protocol=4 if kind == "protocol 4" else 2)
    path = folder / ("test_batch.bin" if kind == "binary" else "test_batch")
    if kind == "Python 2":
        path.write_bytes(python_2_batch(*cifar10_arrays(2)[5]))
    return _dataset(path, f"cifar10:{folder}")


def _human(folder: Path, protocol: int) -> Reader:
    path = write_human(folder / "h.pt", {"clean_label": CLEAN, "worse_label": CLEAN[::-1].copy()}, protocol)

    def check(labels: np.ndarray) -> None:
        assert labels.shape == (40,)
        assert labels.min() >= 0
        assert labels.max() < 10

    return Reader(path, lambda: read_human_labels(str(path), CLEAN, 10), check)


def _labels(folder: Path, *, sets: bool) -> Reader:
    dataset = load(str(write_npz(folder / "data.npz")))
    clean = dataset.train_labels
    noisy = np.stack([np.eye(3, dtype=np.uint8)[clean]]) if sets else np.stack([(clean + 1) % 3])
    path = folder / "labels.npz"
    save_labels(path, [0], dataset.train_indices, clean, noisy)

    def check(labels: np.ndarray) -> None:
        np.testing.assert_array_equal(labels, noisy[0])  # a hash is stored beside them

    return Reader(path, lambda: training_labels(f"file:{path}", 0.4, dataset, 0), check)


def _checkpoint(folder: Path, kind: str) -> Reader:
    tensors = {
        "body.weight": torch.ones(Q, 2).bfloat16(),
        "head.weight": torch.arange(L * Q, dtype=torch.float32).view(L, Q),
        "head.bias": torch.zeros(L),
    }
    path = folder / ("m.safetensors" if kind == "safetensors" else "m.pt")
    if kind == "safetensors":
        save_file(tensors, path)
    else:
        content = {"epoch": 1, "state_dict": tensors} if kind == "nested" else tensors
        torch.save(content, path, _use_new_zipfile_serialization=kind != "legacy")

    def check(layer: Any) -> None:
        assert layer.weight.dim() == 2
        assert torch.isfinite(layer.weight).all()
        assert layer.bias is None or layer.bias.shape == layer.weight.shape[:1]

    return Reader(path, lambda: read_checkpoint(path).layer("head"), check)


def _features(folder: Path, suffix: str) -> Reader:
    source = embeddings()
    arrays = {"features": source["train_features"], "labels": source["train_labels"].astype(np.int64)}
    path = folder / f"f{suffix}"
    if suffix == ".npz":
        np.savez(path, **arrays)
    else:
        save_file({name: torch.from_numpy(array) for name, array in arrays.items()}, path)

    def check(data: Any) -> None:
        assert data.rows.X.shape[1] == Q
        assert torch.isfinite(data.rows.X).all()
        assert len(data.rows.Y) == len(data.rows.X) >= 1

    return Reader(path, lambda: read_features(path, q=Q, l=L), check)


def _config(folder: Path) -> Reader:
    path = folder / "config.yaml"
    path.write_text(yaml.safe_dump(TrainConfig(noise="pair", tail_rank=3, name="a").as_dict()))

    def check(command: Any) -> None:
        assert isinstance(command.config, TrainConfig)

    return Reader(path, lambda: parse(["--config", str(path)], TrainConfig), check)


def _run_folder(folder: Path, file: str) -> Reader:
    data = write_npz(folder / "data.npz")
    config = TrainConfig(data=str(data), out=str(folder), name="run", seeds=1, epochs=1)
    dataset = load(config.data)
    plan = plan_of(config, dataset)
    with suppress(ArithmeticError), new_run(folder, "run", config.as_dict()) as run:
        Progress(run, config, dataset, plan).save()
        raise ArithmeticError

    def read() -> Progress:
        run = RunFolder(folder / "run")
        progress = Progress(run, parse_stored(run.path / CONFIG, TrainConfig, whole=True), dataset, plan)
        progress.load(dataset)
        return progress

    def check(progress: Progress) -> None:
        assert progress.results == []
        assert progress.sessions == 2

    return Reader(folder / "run" / file, read, check)


READERS: dict[str, Callable[[Path], Reader]] = {
    "IDX images": lambda folder: _fashion_mnist(folder, "train-images-idx3-ubyte"),
    "IDX labels": lambda folder: _fashion_mnist(folder, "train-labels-idx1-ubyte"),
    "IDX images, gzip": lambda folder: _fashion_mnist(folder, "t10k-images-idx3-ubyte", ".gz"),
    "CIFAR-10, protocol 2": lambda folder: _cifar10(folder, "protocol 2"),
    "CIFAR-10, protocol 4": lambda folder: _cifar10(folder, "protocol 4"),
    "CIFAR-10, Python 2": lambda folder: _cifar10(folder, "Python 2"),
    "CIFAR-10, binary": lambda folder: _cifar10(folder, "binary"),
    "mat": lambda folder: _dataset(write_mat(folder / "a.mat")),
    "mat, sparse": lambda folder: _dataset(write_mat(folder / "a.mat", sparse=True)),
    "mat, compressed": lambda folder: _dataset(write_mat(folder / "a.mat", compressed=True)),
    "npz": lambda folder: _dataset(write_npz(folder / "a.npz")),
    "npz, compressed": lambda folder: _dataset(write_npz(folder / "a.npz", compressed=True)),
    "CIFAR-10N, protocol 2": lambda folder: _human(folder, 2),
    "CIFAR-10N, protocol 4": lambda folder: _human(folder, 4),
    "labels of a run": lambda folder: _labels(folder, sets=False),
    "candidate sets of a run": lambda folder: _labels(folder, sets=True),
    "checkpoint, safetensors": lambda folder: _checkpoint(folder, "safetensors"),
    "checkpoint, zip": lambda folder: _checkpoint(folder, "zip"),
    "checkpoint, nested": lambda folder: _checkpoint(folder, "nested"),
    "checkpoint, legacy": lambda folder: _checkpoint(folder, "legacy"),
    "features, npz": lambda folder: _features(folder, ".npz"),
    "features, safetensors": lambda folder: _features(folder, ".safetensors"),
    "settings": _config,
    "settings of a run": lambda folder: _run_folder(folder, CONFIG),
    "checkpoint of a run": lambda folder: _run_folder(folder, CHECKPOINT),
}


def _spliced(content: bytes, seed: int, count: int) -> Iterator[bytes]:
    """Copies with a run of bytes set to 0 or 255, removed, repeated, or taken from elsewhere in the file."""
    generator = np.random.default_rng(seed)
    for _ in range(count):
        size = min(len(content), int(generator.choice([64, 600, len(content)])))
        at, length = int(generator.integers(size)), int(generator.choice([1, 2, 4, 8, 40]))
        other = int(generator.integers(len(content)))
        middle = [
            *(bytes(length), b"\xff" * length, b"", content[at : at + length] * 2),
            content[other : other + length],
        ][int(generator.integers(5))]
        yield content[:at] + middle + content[at + length :]


@pytest.mark.parametrize("seed", [101])
@pytest.mark.parametrize("name", list(READERS))
def test_damaged_files(
    tmp_path: Path, name: str, seed: int, record_property: Callable[[str, object], None]
) -> None:
    path, read, check = READERS[name](tmp_path)
    original = path.read_bytes()
    check(read())  # and imports what it needs, before anyone watches
    inputs = [*damaged(original, seed, cuts=20, flips=50), *_spliced(original, seed, 50)]
    messages = []
    for content in inputs:
        path.write_bytes(content)
        try:
            with guarded():
                value = read()
        except UserError as error:
            messages.append(str(error))
        else:
            check(value)
    assert len(messages) > len(inputs) / 10
    assert all(message and len(message.splitlines()) == 1 and len(message) < 1000 for message in messages)
    record_property("hostile_inputs", len(inputs))


# Files that would run code -------------------------------------------------------------------------------


class Harm:
    """Makes a folder when it is unpickled."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[object, ...]:
        return Path.mkdir, (self.path,)


def _harmful_npz(path: Path, arrays: dict[str, np.ndarray], key: str, harm: Harm) -> None:
    array = np.empty(1, dtype=object)
    array[0] = harm
    np.savez(path, **(arrays | {key: array}))


def _harmful(name: str, reader: Reader, harm: Harm) -> None:
    """Put ``harm`` into the file of a reader."""
    path = reader.path
    if name.startswith("CIFAR-10N"):
        write_human(path, {"clean_label": CLEAN, "worse_label": harm})
    elif name.startswith("CIFAR-10"):
        path.write_bytes(pickle.dumps({"data": harm, "labels": [1]}, 2))
    elif name == "settings":
        path.write_text(f"seeds: 1\nout: !!python/object/apply:os.mkdir ['{harm.path}']\n")
    elif name.startswith("checkpoint"):
        content = {"head.weight": torch.ones(L, Q), "other": harm}
        torch.save(content, path, _use_new_zipfile_serialization="legacy" not in name)
    else:
        with np.load(path) as archive:
            arrays = dict(archive)
        for key in ("train_labels", "labels", "noisy"):
            if key in arrays:
                _harmful_npz(path, arrays, key, harm)


@pytest.mark.parametrize(
    "name",
    [
        *("CIFAR-10, protocol 2", "CIFAR-10N, protocol 2", "checkpoint, zip", "checkpoint, legacy"),
        *("npz", "labels of a run", "features, npz", "settings"),
    ],
)
def test_nothing_in_a_file_is_run(tmp_path: Path, name: str) -> None:
    reader = READERS[name](tmp_path)
    harm = Harm(tmp_path / "harm")
    _harmful(name, reader, harm)
    with pytest.raises(UserError), guarded():
        reader.read()
    assert not harm.path.exists()


def test_the_guards_see() -> None:
    with pytest.raises(AssertionError, match=r"os\.mkdir"), guarded():
        Path("/").mkdir(exist_ok=True)
    with pytest.raises(Hanging, match="still reading"), guarded(0.05):
        time.sleep(5)


@pytest.mark.parametrize("suffix", [".npz", ".pt"])
def test_an_archive_with_a_name_that_leads_elsewhere(tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"a{suffix}"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("../../escaped", b"x")
    with pytest.raises(UserError), guarded():
        load(str(path)) if suffix == ".npz" else read_checkpoint(path).layer("head")
    assert list(tmp_path.iterdir()) == [path]


def test_messages_are_one_line_that_no_terminal_obeys() -> None:
    error = UserError("expected a,\n  found \x1b[2Jb\x85 \udc80 ä")
    assert str(error) == "expected a, found \\x1b[2Jb\\x85 \\udc80 ä"
    assert str(pickle.loads(pickle.dumps(error))) == str(error)


def test_settings_without_a_value_or_in_another_encoding(tmp_path: Path) -> None:
    path = tmp_path / "config.yaml"
    for content, message in ((b"seeds: 1\nlr:\n", "--lr to have a value"), (b"out: \xe9\n", "text in UTF-8")):
        path.write_bytes(content)
        with pytest.raises(UserError, match=message):
            parse(["--config", str(path)], TrainConfig)
