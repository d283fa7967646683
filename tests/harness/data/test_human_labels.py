from pathlib import Path

import numpy as np
import pytest
import torch
from harness.damage import survives
from harness.sample_files import SHARED, write_human

from lip_fast.cli.errors import UserError
from lip_fast.harness.data.human_labels import read_human_labels

CLEAN = np.arange(40) % 10
SETS = {"clean_label": CLEAN, "worse_label": (CLEAN + 1) % 10, "aggre_label": CLEAN[::-1].copy()}
REAL = SHARED / "CIFAR-10_human.pt"


@pytest.mark.parametrize("protocol", [2, 4])
def test_a_set_is_chosen_by_name(tmp_path: Path, protocol: int) -> None:
    path = write_human(tmp_path / "h.pt", SETS, protocol)
    np.testing.assert_array_equal(read_human_labels(str(path), CLEAN, 10), SETS["worse_label"])
    for name, labels in SETS.items():
        np.testing.assert_array_equal(read_human_labels(f"{path}#{name}", CLEAN, 10), labels)


@pytest.mark.parametrize("dtype", [torch.int64, torch.int32, torch.uint8])
def test_sets_of_tensors(tmp_path: Path, dtype: torch.dtype) -> None:
    sets = {name: torch.from_numpy(labels).to(dtype) for name, labels in SETS.items()}
    torch.save(sets, tmp_path / "h.pt")
    for name, labels in SETS.items():
        read = read_human_labels(f"{tmp_path / 'h.pt'}#{name}", CLEAN, 10)
        np.testing.assert_array_equal(read, labels)
        assert read.dtype == np.int64


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (torch.zeros(40), "sets of labels by name in .*, found Tensor"),
        ({"clean_label": torch.zeros(40)}, "vector of integers, found float32"),
        ({"clean_label": torch.zeros(39, dtype=torch.int64)}, "to hold 40 labels, found 39"),
        ({"clean_label": torch.zeros(40).bfloat16()}, "vector of integers, found Tensor"),
        ({"clean_label": torch.zeros(40), "x": Path}, "holds pathlib"),
        ({"a": torch.zeros(40)}, "expected clean_label in .*, found worse_label, a"),
    ],
)
def test_tensors_that_do_not_fit(tmp_path: Path, content: object, message: str) -> None:
    if isinstance(content, dict):
        content = {"worse_label": torch.zeros(40)} | content
    torch.save(content, tmp_path / "h.pt")
    with pytest.raises(UserError, match=message):
        read_human_labels(str(tmp_path / "h.pt"), CLEAN, 10)


def test_the_first_row_that_differs_is_named(tmp_path: Path) -> None:
    path = write_human(tmp_path / "h.pt", SETS)
    other = CLEAN.copy()
    other[[17, 30]] = 0
    with pytest.raises(UserError, match="found 7 where they have 0 in row 17"):
        read_human_labels(str(path), other, 10)


@pytest.mark.parametrize(
    ("sets", "chosen", "message"),
    [
        (SETS, "worst_label", "unknown set of human labels 'worst_label': .*nearest is 'worse_label'"),
        ({"worse_label": CLEAN}, "worse_label", "expected clean_label in .*, found worse_label"),
        (SETS | {"worse_label": CLEAN[1:]}, "worse_label", "to hold 40 labels, found 39"),
        (SETS | {"worse_label": CLEAN + 5}, "worse_label", "classes 0 to 9, found 10 in row 5"),
        (SETS | {"worse_label": CLEAN / 2}, "worse_label", "vector of integers, found float64"),
        (SETS | {"worse_label": "x"}, "worse_label", "vector of integers, found str"),
    ],
)
def test_files_that_do_not_fit(tmp_path: Path, sets: dict, chosen: str, message: str) -> None:
    path = write_human(tmp_path / "h.pt", sets)
    with pytest.raises(UserError, match=message):
        read_human_labels(f"{path}#{chosen}", CLEAN, 10)


def test_missing_and_damaged_files(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="No such file"):
        read_human_labels(str(tmp_path / "h.pt"), CLEAN, 10)
    path = write_human(tmp_path / "h.pt", SETS)
    assert survives(path, lambda: read_human_labels(str(path), CLEAN, 10)) > 20


@pytest.mark.skipif(not REAL.exists(), reason="needs the labels of CIFAR-10N")
def test_real_human_labels_have_the_published_error_rates() -> None:
    with pytest.raises(UserError, match="in row 0"):
        read_human_labels(str(REAL), np.zeros(50_000, np.int64), 10)
    with pytest.raises(UserError, match="to hold 3 labels, found 50000"):
        read_human_labels(str(REAL), np.zeros(3, np.int64), 10)
    import zipfile

    from lip_fast.harness.data.pickled import unpickle_arrays

    with zipfile.ZipFile(REAL) as archive:
        clean = unpickle_arrays(archive.read("archive/data.pkl"))["clean_label"]
    # Wei et al. 2022, table 1.
    for name, rate in (("worse_label", 0.4021), ("aggre_label", 0.0903), ("random_label1", 0.1723)):
        labels = read_human_labels(f"{REAL}#{name}", clean, 10)
        assert (labels != clean).mean() == pytest.approx(rate, abs=5e-4)
