"""Small files of every format that the readers take."""

import gzip
import io
import pickle
import struct
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import scipy.io
import scipy.sparse

REPOSITORY = Path(__file__).parents[2]
SHARED = REPOSITORY.parent / "shared" / "data"  # real files, where there are any
PIXELS = 3072


def write_idx(path: Path, values: np.ndarray) -> None:
    header = bytes([0, 0, 8, values.ndim]) + struct.pack(f">{values.ndim}I", *values.shape)
    content = header + values.astype(np.uint8).tobytes()
    path.write_bytes(gzip.compress(content, mtime=0) if path.suffix == ".gz" else content)


def write_fashion_mnist(folder: Path, suffix: str = "", rows: int = 30) -> Path:
    generator = np.random.default_rng(0)
    for part, count in (("train", rows), ("t10k", 10)):
        write_idx(folder / f"{part}-images-idx3-ubyte{suffix}", generator.integers(0, 256, (count, 3, 2)))
        write_idx(folder / f"{part}-labels-idx1-ubyte{suffix}", np.arange(count) % 10)
    return folder


def cifar10_arrays(rows: int) -> list[tuple[np.ndarray, list[int]]]:
    generator = np.random.default_rng(0)
    return [
        (generator.integers(0, 256, (rows, PIXELS), dtype=np.uint8), generator.integers(0, 10, rows).tolist())
        for _ in range(6)
    ]


CIFAR10_NAMES = [*(f"data_batch_{number}" for number in range(1, 6)), "test_batch"]


def write_cifar10(folder: Path, *, binary: bool, rows: int = 4, protocol: int = 2) -> Path:
    for name, (images, labels) in zip(CIFAR10_NAMES, cifar10_arrays(rows), strict=True):
        if binary:
            records = np.column_stack([np.array(labels, np.uint8), images])
            (folder / f"{name}.bin").write_bytes(records.tobytes())
        else:
            batch = {"batch_label": name, "labels": labels, "data": images, "filenames": ["x.png"] * rows}
            (folder / name).write_bytes(pickle.dumps(batch, protocol))
    return folder


def python_2_batch(images: np.ndarray, labels: list[int]) -> bytes:
    """A batch as the official archive has it: pickled by Python 2, whose bytes were text."""

    def text(value: bytes) -> bytes:
        return b"U" + bytes([len(value)]) + value

    raw = images.tobytes()
    shape = b"".join(b"M" + struct.pack("<H", size) for size in images.shape) + b"\x86"
    dtype = b"cnumpy\ndtype\n" + text(b"u1") + b"K\x00K\x01\x87R(K\x03" + text(b"|") + b"NNNJ\xff\xff\xff\xff"
    dtype += b"J\xff\xff\xff\xffK\x00tb"
    array = b"cnumpy.core.multiarray\n_reconstruct\ncnumpy\nndarray\nK\x00\x85" + text(b"b") + b"\x87R(K\x01"
    array += shape + dtype + b"\x89T" + struct.pack("<i", len(raw)) + raw + b"tb"
    numbers = b"](" + b"".join(b"K" + bytes([label]) for label in labels) + b"e"
    return b"\x80\x02}q\x01(" + text(b"data") + array + text(b"labels") + numbers + b"u."


def partial_labels(rows: int = 40, classes: int = 4) -> dict[str, np.ndarray]:
    """Data with one cluster for each class, in the published layout (l, n)."""
    generator = np.random.default_rng(0)
    labels = np.arange(rows) % classes
    target = np.eye(classes)[labels]
    candidates = np.maximum(target, generator.random((rows, classes)) < 0.3)
    data = 5 * np.eye(classes)[labels] @ generator.normal(size=(classes, 6)) + generator.normal(
        size=(rows, 6)
    )
    return {"data": data, "partial_target": candidates.T, "target": target.T}


def write_mat(path: Path, *, sparse: bool = False, compressed: bool = False, **changes: Any) -> Path:
    content = {key: value for key, value in (partial_labels() | changes).items() if value is not None}
    if sparse:
        for key in ("partial_target", "target"):
            content[key] = scipy.sparse.csc_matrix(content[key])
    scipy.io.savemat(path, content, do_compression=compressed)
    return path


def embeddings(rows: int = 60, classes: int = 3) -> dict[str, np.ndarray]:
    generator = np.random.default_rng(0)
    centres = generator.normal(size=(classes, 5)) * 4

    def part(count: int) -> tuple[np.ndarray, np.ndarray]:
        labels = np.arange(count) % classes
        return (centres[labels] + generator.normal(size=(count, 5))).astype(np.float32), labels

    (train, train_labels), (test, test_labels) = part(rows), part(rows // 2)
    return {
        "train_features": train,
        "train_labels": train_labels,
        "test_features": test,
        "test_labels": test_labels,
    }


def write_npz(path: Path, *, compressed: bool = False, **changes: Any) -> Path:
    content = {key: value for key, value in (embeddings() | changes).items() if value is not None}
    (np.savez_compressed if compressed else np.savez)(path, **content)
    return path


def write_human(path: Path, sets: Mapping[str, Any], protocol: int = 2) -> Path:
    """The layout of ``torch.save``: a zip archive whose ``data.pkl`` holds NumPy arrays."""
    content = io.BytesIO()
    with zipfile.ZipFile(content, "w") as archive:
        archive.writestr("archive/data.pkl", pickle.dumps(dict(sets), protocol))
        archive.writestr("archive/version", "3\n")
    path.write_bytes(content.getvalue())
    return path
