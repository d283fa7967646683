import os
from pathlib import Path

import pytest

from lip_fast.cli.errors import UserError
from lip_fast.harness.files.outputs import check_outputs, new_files


def test_new_files_are_all_or_none(tmp_path: Path) -> None:
    targets = [tmp_path / "a", tmp_path / "b"]

    def write(replaced: list[Path]) -> None:
        with new_files(targets, replaced) as paths:
            for path in paths:
                path.write_text("new")

    targets[1].write_text("old")
    with pytest.raises(UserError, match="appeared meanwhile"):
        write([])
    assert [p.name for p in tmp_path.iterdir()] == ["b"]
    assert targets[1].read_text() == "old"
    targets[1].chmod(0o640)
    write([targets[1]])
    assert {p.name: p.read_text() for p in tmp_path.iterdir()} == {"a": "new", "b": "new"}
    assert targets[1].stat().st_mode & 0o777 == 0o640


@pytest.mark.parametrize("error", [OSError("full"), KeyboardInterrupt(), ValueError("x")])
def test_nothing_is_left_of_a_failure(tmp_path: Path, error: BaseException) -> None:
    expected = UserError if isinstance(error, OSError) else type(error)

    def fail() -> None:
        with new_files([tmp_path / "a", tmp_path / "b"], []) as paths:
            paths[0].write_text("new")
            raise error

    with pytest.raises(expected):
        fail()
    assert list(tmp_path.iterdir()) == []


def test_no_links_are_needed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> None:
        raise PermissionError("no links here")

    monkeypatch.setattr(os, "link", refuse)
    with new_files([tmp_path / "a"], []) as (path,):
        path.write_text("new")
    with pytest.raises(UserError, match="appeared"), new_files([tmp_path / "a"], []) as (path,):
        path.write_text("newer")
    assert [(p.name, p.read_text()) for p in tmp_path.iterdir()] == [("a", "new")]


def test_a_link_stays_a_link(tmp_path: Path) -> None:
    file, link = tmp_path / "file", tmp_path / "link"
    file.write_text("old")
    link.symlink_to(file)
    with new_files([link], [link]) as (path,):
        path.write_text("new")
    assert link.is_symlink()
    assert file.read_text() == "new"


def test_outputs_are_checked_before(tmp_path: Path) -> None:
    model, there = tmp_path / "m.pt", tmp_path / "there"
    model.touch()
    there.touch()
    (tmp_path / "link").symlink_to(model)
    (tmp_path / "folder").mkdir()
    for outputs, replaced, message in (
        ({"--out": model}, [model], "which is the checkpoint"),
        ({"--out": tmp_path / "link"}, [tmp_path / "link"], "which is the checkpoint"),
        ({"--out": there}, [], "--out to be new.*--overwrite"),
        ({"--out": tmp_path / "a", "--report": tmp_path / "folder" / ".." / "a"}, [], "which is --out"),
        ({"--out": tmp_path / "folder"}, [tmp_path / "folder"], "found the folder"),
        ({"--out": tmp_path / "none" / "a"}, [], "found none at"),
        ({"--out": there / "a"}, [], "found none at"),
        ({"--out": Path("a\0b")}, [], "leads somewhere"),
    ):
        with pytest.raises(UserError, match=message):
            check_outputs(outputs, {"the checkpoint": model}, replaced)
    check_outputs({"--out": there, "--report": tmp_path / "a"}, {"the checkpoint": model}, [there])
