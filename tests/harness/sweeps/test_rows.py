from pathlib import Path
from typing import Any

import pytest
import yaml

from lip_fast.cli.errors import UserError
from lip_fast.harness.settings.train import TrainConfig
from lip_fast.harness.sweeps.rows import read_rows, units_of


def write(path: Path, **settings: Any) -> Path:
    path.parent.mkdir(exist_ok=True)
    path.write_text(yaml.safe_dump(settings, sort_keys=False))
    return path


def refusal(*paths: Path, overrides: tuple[str, ...] = ()) -> str:
    with pytest.raises(UserError) as caught:
        read_rows(paths, overrides)
    assert len(str(caught.value).splitlines()) == 1
    return str(caught.value)


def test_a_file_without_lists_is_one_row(tmp_path: Path) -> None:
    (row,) = read_rows([write(tmp_path / "a.yaml", epochs=3, hidden=[8, 4], methods=["plain"])], [])
    assert row.name == "a"
    assert row.config == TrainConfig(epochs=3, hidden=(8, 4), methods=("plain",))


def test_lists_take_their_values_in_turn_and_all_combinations(tmp_path: Path) -> None:
    path = write(tmp_path / "a.yaml", lr=[0.1, 0.01], epochs=2, noise=["pair", "none"])
    rows = read_rows([path], [])
    assert [(row.name, row.config.lr, row.config.noise) for row in rows] == [
        ("a,lr=0.1,noise=pair", 0.1, "pair"),
        ("a,lr=0.1,noise=none", 0.1, "none"),
        ("a,lr=0.01,noise=pair", 0.01, "pair"),
        ("a,lr=0.01,noise=none", 0.01, "none"),
    ]
    assert {row.config.epochs for row in rows} == {2}


def test_lists_of_lists_vary_what_is_a_list(tmp_path: Path) -> None:
    path = write(tmp_path / "a.yaml", hidden=[[8], [8, 4]], methods=[["plain"], ["plain", "ridge"]])
    assert {row.name: (row.config.hidden, row.config.methods) for row in read_rows([path], [])} == {
        "a,hidden=8,methods=plain": ((8,), ("plain",)),
        "a,hidden=8,methods=plain-ridge": ((8,), ("plain", "ridge")),
        "a,hidden=8-4,methods=plain": ((8, 4), ("plain",)),
        "a,hidden=8-4,methods=plain-ridge": ((8, 4), ("plain", "ridge")),
    }


@pytest.mark.parametrize(
    ("settings", "names"),
    [
        ({"samples": [None, 100]}, ["samples=null", "samples=100"]),
        ({"clip": [True, False]}, ["clip=true", "clip=false"]),
        ({"rank": [3, 0.5, "auto"]}, ["rank=3", "rank=0.5", "rank=auto"]),
        ({"data": ["a b/c.npz", "digits"]}, ["data=a_b_c.npz", "data=digits"]),
        (
            {"algorithm": "gce", "options": [{"q": 0.3}, {"q": 0.7}]},
            ["options=q=0.3", "options=q=0.7"],
        ),
    ],
)
def test_names_tell_the_values(tmp_path: Path, settings: dict[str, Any], names: list[str]) -> None:
    rows = read_rows([write(tmp_path / "a.yaml", **settings)], [])
    assert [row.name for row in rows] == [f"a,{name}" for name in names]
    assert all(Path(row.name).name == row.name for row in rows)
    varied = list(settings)[-1]
    assert [getattr(row.config, varied) for row in rows] == settings[varied]


def test_settings_change_together(tmp_path: Path) -> None:
    groups = [
        {"few": {"noise_rate": 0.2, "epochs": 5}, "many": {"noise_rate": 0.6}},
        {"both": {"methods": ["plain", "ridge"]}, "step": {"methods": ["in-step"], "rank": 0.5}},
    ]
    path = write(tmp_path / "a.yaml", epochs=9, lr=[0.1, 0.2], together=groups)
    rows = {
        row.name: (row.config.lr, row.config.epochs, row.config.noise_rate, row.config.methods)
        for row in read_rows([path], [])
    }
    assert len(rows) == 8
    assert rows["a,lr=0.1,few,both"] == (0.1, 5, 0.2, ("plain", "ridge"))
    assert rows["a,lr=0.2,many,step"] == (0.2, 9, 0.6, ("in-step",))


def test_a_folder_gives_its_files_in_the_order_of_their_names(tmp_path: Path) -> None:
    for name in ("b.yml", "a.yaml", "c.txt"):
        write(tmp_path / "set" / name, epochs=1)
    other = write(tmp_path / "z.yaml", epochs=2)
    assert [row.name for row in read_rows([other, tmp_path / "set"], [])] == ["z", "set/a", "set/b"]


def test_options_after_the_files_hold_in_every_row(tmp_path: Path) -> None:
    paths = [write(tmp_path / f"{name}.yaml", epochs=5, lr=0.1) for name in "ab"]
    rows = read_rows(paths, ["--epochs", "7", "--methods", "plain", "ridge"])
    assert [(r.config.epochs, r.config.lr, r.config.methods) for r in rows] == [
        (7, 0.1, ("plain", "ridge"))
    ] * 2


def test_two_rows_of_one_name(tmp_path: Path) -> None:
    first, second = write(tmp_path / "x" / "a.yaml"), write(tmp_path / "y" / "a.yaml")
    first.write_text("epochs: 1")
    second.write_text("epochs: 2")
    assert refusal(first, second) == "expected rows of different names, got two named a"
    twice = write(tmp_path / "b.yaml", lr=[0.1, 0.1])
    assert "two named b,lr=0.1" in refusal(twice)


@pytest.mark.parametrize("setting", ["out", "name"])
def test_the_sweep_names_folders_itself(tmp_path: Path, setting: str) -> None:
    path = write(tmp_path / "a.yaml", **{setting: "x"})
    assert f"expected no {setting} in {path}: the sweep names" in refusal(path)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("epoch: 2", "a.yaml: unknown setting 'epoch'"),
        ("epochs: many", "a.yaml: "),
        ("epochs: [1, 0]", "a.yaml: expected --epochs at least 1, got 0"),
        ("model: mpl", "a.yaml: unknown model 'mpl'"),
        ("- epochs", "expected settings in"),
        ("resume: runs/a", "expected settings in"),
        ("config: b.yaml", "expected settings in"),
        ("lr: &a [*a]", "expected a file of settings"),
        ("", "expected settings in"),
        ("epochs: [1", "expected a file of settings"),
        ("\x00", "expected a file of settings"),
        ("lr: []", "expected at least one value of lr in"),
        ("together: {a: {lr: 1}}", "as a list of groups, each of entries with a name and settings, got {'a'"),
        ("together: [{}]", "each of entries with a name and settings, got [{}]"),
        ("together: [{a: 3}]", "each of entries with a name and settings, got [{'a': 3}]"),
        ("together: [{a: {name: x}}]", "expected no name in"),
        ("together: [{a: {epoch: 3}}]", "a.yaml: unknown setting 'epoch'"),
    ],
)
def test_a_mistake_names_the_file(tmp_path: Path, text: str, expected: str) -> None:
    path = tmp_path / "a.yaml"
    path.write_text(text)
    assert expected in refusal(path)


def test_what_is_not_there(tmp_path: Path) -> None:
    assert f"expected a file of settings, {tmp_path / 'no.yaml'} cannot" in refusal(tmp_path / "no.yaml")
    assert f"ending in .yaml or .yml, found none in {tmp_path}" in refusal(tmp_path)
    path = write(tmp_path / "a.yaml", epochs=1)
    assert "unknown option '--epoch'" in refusal(path, overrides=("--epoch", "1"))
    assert "expected no --out after --" in refusal(path, overrides=("--out", "x"))
    assert "expected no --name after --" in refusal(path, overrides=("--name=x",))
    assert "expected options of settings, got --resume" in refusal(path, overrides=("--resume", "x"))


def test_a_unit_is_one_seed_in_a_folder_of_its_own(tmp_path: Path) -> None:
    rows = read_rows([write(tmp_path / "set" / "a.yaml", seeds=2, first_seed=3, lr=[0.1, 0.2])], [])
    units = units_of(rows, Path("runs/s"))
    assert [str(unit.path) for unit in units] == [
        f"a,lr={lr}/seed-{seed}" for seed in (3, 4) for lr in (0.1, 0.2)
    ]
    for unit in units:
        assert unit.config.seeds == 1
        assert unit.config.first_seed == int(unit.path.name.removeprefix("seed-"))
        assert Path(unit.config.out) / str(unit.config.name) == Path("runs/s") / unit.path


def test_each_row_has_its_own_number_of_seeds(tmp_path: Path) -> None:
    paths = [write(tmp_path / "a.yaml", seeds=1), write(tmp_path / "b.yaml", seeds=3, first_seed=5)]
    units = units_of(read_rows(paths, []), Path("runs/s"))
    assert [str(unit.path) for unit in units] == ["a/seed-0", "b/seed-5", "b/seed-6", "b/seed-7"]
