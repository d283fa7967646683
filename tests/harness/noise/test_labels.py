from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from harness.damage import survives
from harness.sample_files import embeddings, write_human, write_mat, write_npz

from lip_fast.cli.errors import UserError
from lip_fast.harness.data import Dataset, load
from lip_fast.harness.files.labels import load_labels, save_labels
from lip_fast.harness.noise.labels import (
    check_source,
    describe_classes,
    describe_labels,
    label_warnings,
    training_labels,
)


def saved(path: Path, dataset: Dataset, kind: str, seeds: tuple[int, ...] = (0, 1)) -> Path:
    parts = [dataset.for_seed(seed) for seed in seeds]
    noisy = [training_labels(kind, 0.4, part, seed) for part, seed in zip(parts, seeds, strict=True)]
    indices, clean = ([getattr(part, f"train_{key}") for part in parts] for key in ("indices", "labels"))
    if dataset.split is None:
        save_labels(path, seeds, indices[0], clean[0], np.stack(noisy))
    else:
        save_labels(path, seeds, np.stack(indices), np.stack(clean), np.stack(noisy))
    return path


@pytest.mark.parametrize("kind", ["symmetric", "asymmetric", "instance", "partial", "competitor"])
def test_saved_labels_are_used_again(tmp_path: Path, digits: Dataset, kind: str) -> None:
    path = saved(tmp_path / "labels.npz", digits, kind)
    for seed in (0, 1):
        again = training_labels(f"file:{path}", 0.1, digits, seed)
        np.testing.assert_array_equal(again, training_labels(kind, 0.4, digits, seed))
        assert again.dtype == (np.uint8 if kind in ("partial", "competitor") else np.int64)


@pytest.mark.parametrize("kind", ["own", "symmetric"])
def test_saved_labels_of_data_that_each_seed_splits(tmp_path: Path, kind: str) -> None:
    dataset = load(str(write_mat(tmp_path / "a.mat")))
    path = saved(tmp_path / "labels.npz", dataset, kind)
    for seed in (0, 1):
        part = dataset.for_seed(seed)
        again = training_labels(f"file:{path}", 0.1, part, seed)
        np.testing.assert_array_equal(again, training_labels(kind, 0.4, part, seed))
    with pytest.raises(UserError, match=r"expected .* to have the data's clean labels"):
        training_labels(f"file:{path}", 0.1, dataset.for_seed(1), 0)


def test_saved_labels_of_other_data_or_seeds(tmp_path: Path, digits: Dataset) -> None:
    path = saved(tmp_path / "labels.npz", digits, "symmetric")
    other = Dataset(**{**vars(digits), "train_labels": (digits.train_labels + 1) % 10})
    with pytest.raises(UserError, match=r"the data's clean labels, hash [0-9a-f]{12}, found hash"):
        training_labels(f"file:{path}", 0.1, other, 0)
    turned = Dataset(**{**vars(digits), "train_indices": digits.train_indices[::-1]})
    with pytest.raises(UserError, match="found them in other rows"):
        training_labels(f"file:{path}", 0.1, turned, 0)
    fewer = Dataset(**{**vars(digits), "train_labels": digits.train_labels[1:]})
    with pytest.raises(UserError, match=r"expected labels of 1436 rows in .*, found 1437"):
        training_labels(f"file:{path}", 0.1, fewer, 0)
    with pytest.raises(UserError, match=r"expected labels of seed 2 in .*, found seeds 0, 1"):
        training_labels(f"file:{path}", 0.1, digits, 2)


def set_class(labels: dict[str, np.ndarray]) -> None:
    labels["clean"] = labels["clean"][:-1]


def drop_hash(labels: dict[str, np.ndarray]) -> None:
    del labels["sha256"]


def make_float(labels: dict[str, np.ndarray]) -> None:
    labels["noisy"] = labels["noisy"] / 2


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (set_class, "as many seeds and rows in .*clean"),
        (drop_hash, "expected seeds, indices, clean, noisy, sha256 in"),
        (make_float, "expected noisy of .* to be integers, found float64"),
    ],
)
def test_files_that_are_no_labels(
    tmp_path: Path, digits: Dataset, change: Callable[[dict[str, np.ndarray]], None], message: str
) -> None:
    path = saved(tmp_path / "labels.npz", digits, "symmetric")
    labels = load_labels(path)
    change(labels)
    np.savez(path, **labels)
    with pytest.raises(UserError, match=message):
        training_labels(f"file:{path}", 0.1, digits, 0)


@pytest.mark.parametrize("kind", ["symmetric", "partial"])
def test_damaged_labels(tmp_path: Path, digits: Dataset, kind: str) -> None:
    path = saved(tmp_path / "labels.npz", digits, kind, seeds=(0,))
    assert survives(path, lambda: training_labels(f"file:{path}", 0.1, digits, 0)) > 20


def test_auto_takes_the_datas_own_labels_where_there_are_some(tmp_path: Path, digits: Dataset) -> None:
    clean = np.arange(60) % 3
    noisy = (clean + (np.arange(60) % 4 == 0)) % 3
    both = load(str(write_npz(tmp_path / "a.npz", train_labels=noisy, train_clean_labels=clean)))
    for kind in ("auto", "own"):
        np.testing.assert_array_equal(training_labels(kind, 0.4, both, 0), noisy)
    assert (training_labels("symmetric", 0.4, both, 0) != clean).sum() == 24
    np.testing.assert_array_equal(
        training_labels("auto", 0.4, digits, 0), training_labels("symmetric", 0.4, digits, 0)
    )
    with pytest.raises(UserError, match="that come with wrong labels for --noise own, got digits"):
        training_labels("own", 0.4, digits, 0)


def test_labels_of_which_nobody_says_that_they_are_clean_stay_as_they_are(tmp_path: Path) -> None:
    data = load(str(write_npz(tmp_path / "mine.npz")))
    for kind in ("auto", "own"):
        np.testing.assert_array_equal(training_labels(kind, 0.4, data, 0), data.train_labels)
        assert describe_labels(kind, 0.4, data) == "its own labels"
        assert label_warnings(kind, data) == []
    (warning,) = label_warnings("pair", data)
    assert warning.startswith("mine does not say which of its labels are clean: --noise pair makes wrong")


def test_classes_are_counted_and_those_without_samples_named(tmp_path: Path, digits: Dataset) -> None:
    assert describe_classes(digits) == "10 classes of 139 to 146 training samples"
    assert label_warnings("symmetric", digits) == []
    source = embeddings()["train_labels"]
    clean = {"train_clean_labels": source + 1, "train_labels": source + 1}
    shifted = load(str(write_npz(tmp_path / "a.npz", **clean, test_labels=np.full(30, 3))))
    assert describe_classes(shifted) == "4 classes of 0 to 20 training samples"
    expected = "a has no training sample of class 0; classes are numbered from 0"
    assert label_warnings("none", shifted) == [expected]
    noisy = f"{expected}, and wrong labels of --noise symmetric may be of classes without samples"
    assert label_warnings("symmetric", shifted)[0] == noisy


def test_noise_sees_the_datas_features_and_similar_classes(digits: Dataset) -> None:
    clean = digits.train_labels
    pairs = training_labels("competitor", 0.999, digits, 0)
    assert pairs[clean == 2, 7].mean() > 0.9
    assert pairs[clean == 4, 5].mean() > 0.9  # 4 is mistaken for none
    # Images of a class that look alike go to one class: a few hold most of its wrong labels.
    noisy = training_labels("instance", 0.4, digits, 0)
    seen = Dataset(**{**vars(digits), "train_features": digits.train_features[::-1]})
    assert (training_labels("instance", 0.4, seen, 0) != noisy).any()


def test_human_labels_of_the_training_rows(tmp_path: Path, digits: Dataset) -> None:
    clean = digits.train_labels
    path = write_human(tmp_path / "h.pt", {"clean_label": clean, "worse_label": (clean + 3) % 10})
    labels = training_labels(f"human:{path}#worse_label", 0.4, digits, 0)
    np.testing.assert_array_equal(labels, (clean + 3) % 10)


def test_titles(tmp_path: Path, digits: Dataset) -> None:
    sets = load(str(write_mat(tmp_path / "a.mat")))
    assert describe_labels("auto", 0.4, digits) == "40% symmetric label noise"
    assert describe_labels("auto", 0.4, sets) == "its own candidate sets"
    assert describe_labels("none", 0.4, sets) == "clean labels"
    assert describe_labels("instance", 0.2, digits) == "20% instance-dependent label noise"
    assert describe_labels("partial", 0.3, digits) == "candidate sets with 30% of the wrong classes"
    assert describe_labels("competitor", 0.7, digits) == "candidate sets with a similar class in 70%"
    assert describe_labels("human:a/b.pt#worse_label", 0.4, digits) == "human labels of b.pt#worse_label"


@pytest.mark.parametrize(
    ("noise", "message"),
    [
        ("own:x", "label noise own takes no argument, got 'x'"),
        ("pair:", "label noise pair takes no argument, got ''"),
        ("file", r"expected --noise file:LABELS.npz, got 'file'"),
        ("human:", r"expected --noise human:FILE.*, got 'human:'"),
        ("pairs", "unknown label noise 'pairs': .*nearest is 'pair'"),
    ],
)
def test_sources_that_cannot_be(noise: str, message: str) -> None:
    with pytest.raises(UserError, match=message):
        check_source(noise)
