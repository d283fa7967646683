import json
from pathlib import Path

import pytest

from lip_fast.harness.errors import UserError
from lip_fast.harness.runs import new_run, write_json


def test_folder_has_its_content_only_when_whole(tmp_path: Path) -> None:
    with new_run(tmp_path / "runs", "a") as (folder, final):
        (folder / "file").write_text("x")
        assert final == tmp_path / "runs" / "a"
        assert list(final.iterdir()) == []  # the name is taken, the content not there yet
    assert [p.name for p in (tmp_path / "runs").iterdir()] == ["a"]
    assert (final / "file").read_text() == "x"


@pytest.mark.parametrize("error", [KeyboardInterrupt, RuntimeError])
def test_nothing_is_left_of_a_run_that_stops(tmp_path: Path, error: type[BaseException]) -> None:
    def stop_half_way() -> None:
        with new_run(tmp_path / "deep" / "runs", "a") as (folder, _):
            (folder / "file").write_text("x")
            raise error

    with pytest.raises(error):
        stop_half_way()
    assert list(tmp_path.iterdir()) == []


def test_a_run_that_stops_leaves_other_runs_alone(tmp_path: Path) -> None:
    (tmp_path / "other").mkdir()
    with pytest.raises(RuntimeError), new_run(tmp_path, "a"):
        raise RuntimeError
    assert [p.name for p in tmp_path.iterdir()] == ["other"]


def test_existing_folder_is_never_overwritten(tmp_path: Path) -> None:
    (tmp_path / "a").mkdir()
    (tmp_path / "a" / "file").write_text("mine")
    with pytest.raises(UserError, match=r"expected --name to be new, got 'a'"), new_run(tmp_path, "a"):
        pytest.fail("the block must not run")
    assert (tmp_path / "a" / "file").read_text() == "mine"


def test_runs_of_the_same_second_get_different_names(tmp_path: Path) -> None:
    finals = []
    for _ in range(3):
        with new_run(tmp_path, None) as (_, final):
            finals.append(final)
    assert len(set(finals)) == 3
    assert all(final.is_dir() for final in finals)


def test_remains_of_a_killed_run_do_not_get_in(tmp_path: Path) -> None:
    (tmp_path / ".a.partial").mkdir()
    (tmp_path / ".a.partial" / "old").write_text("x")
    with new_run(tmp_path, "a") as (_, final):
        pass
    assert list(final.iterdir()) == []


@pytest.mark.parametrize("name", ["", ".", "..", "a/b", "/a", ".hidden"])
def test_name_must_be_a_folder_name(tmp_path: Path, name: str) -> None:
    with pytest.raises(UserError, match="the name of a folder"), new_run(tmp_path, name):
        pytest.fail("the block must not run")
    assert list(tmp_path.iterdir()) == []


def test_folder_that_cannot_be_written(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("x")
    with pytest.raises(UserError, match="can be written"), new_run(tmp_path / "file" / "runs", None):
        pytest.fail("the block must not run")


def test_json_refuses_what_json_does_not_have(tmp_path: Path) -> None:
    write_json(tmp_path / "a.json", {"x": [1.5, None]})
    assert json.loads((tmp_path / "a.json").read_text()) == {"x": [1.5, None]}
    with pytest.raises(ValueError, match="JSON"):
        write_json(tmp_path / "b.json", {"x": float("nan")})
