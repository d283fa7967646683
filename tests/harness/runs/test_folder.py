from pathlib import Path

import pytest

from lip_fast.cli.errors import UserError
from lip_fast.harness.runs.folder import RunFolder, new_run, opened_run


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def stop_with_a_checkpoint(out: Path, error: BaseException) -> None:
    with new_run(out, "a", {}) as folder:
        folder.save({"x": 1})
        raise error


def write_results(folder: Path) -> None:
    (folder / "metrics.json").write_text("{}")
    (folder / "a.npz").write_text("x")


def test_settings_come_first_then_the_checkpoint_then_the_results(tmp_path: Path) -> None:
    with new_run(tmp_path / "runs", "a", {"epochs": 2}) as folder:
        assert folder.path == tmp_path / "runs" / "a"
        assert names(folder.path) == ["config.yaml"]
        assert (folder.path / "config.yaml").read_text() == "epochs: 2\n"
        folder.save({"x": 1})
        assert names(folder.path) == ["checkpoint.pt", "config.yaml"]
        assert folder.load() == {"x": 1}
        assert not folder.complete
        folder.finish(write_results)
        assert folder.complete
    assert names(tmp_path / "runs") == ["a"]
    assert names(folder.path) == ["a.npz", "config.yaml", "metrics.json"]


@pytest.mark.parametrize("error", [KeyboardInterrupt, RuntimeError, UserError])
def test_nothing_is_left_of_a_run_that_stops_without_a_checkpoint(
    tmp_path: Path, error: type[BaseException]
) -> None:
    with pytest.raises(error), new_run(tmp_path / "deep" / "runs", "a", {}):
        raise error
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("error", [KeyboardInterrupt, RuntimeError, OSError])
def test_a_run_that_stops_with_a_checkpoint_stays(tmp_path: Path, error: type[BaseException]) -> None:
    with pytest.raises(UserError if error is OSError else error) as caught:
        stop_with_a_checkpoint(tmp_path / "runs", error())
    folder = RunFolder(tmp_path / "runs" / "a")
    assert names(folder.path) == ["checkpoint.pt", "config.yaml"]
    if error is not RuntimeError:
        assert f"to continue: lip-fast train --resume {folder.path}" in str(caught.value)


def test_a_run_that_fails_by_its_own_settings_disappears_with_its_checkpoint(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="training diverged"):
        stop_with_a_checkpoint(tmp_path / "runs", UserError("training diverged"))
    assert list(tmp_path.iterdir()) == []


def test_a_run_that_stops_leaves_other_runs_alone(tmp_path: Path) -> None:
    (tmp_path / "other").mkdir()
    with pytest.raises(RuntimeError), new_run(tmp_path, "a", {}):
        raise RuntimeError
    assert names(tmp_path) == ["other"]


@pytest.mark.parametrize("content", [["file"], []])
def test_existing_folder_is_never_overwritten(tmp_path: Path, content: list[str]) -> None:
    (tmp_path / "a").mkdir()
    for name in content:
        (tmp_path / "a" / name).write_text("mine")
    with pytest.raises(UserError, match=r"expected --name to be new, got 'a'"), new_run(tmp_path, "a", {}):
        pytest.fail("the block must not run")
    assert names(tmp_path / "a") == content
    assert names(tmp_path) == ["a"]


def test_runs_of_the_same_second_get_different_names(tmp_path: Path) -> None:
    finals = []
    for _ in range(3):
        with new_run(tmp_path, None, {}) as folder:
            finals.append(folder.path)
    assert len(set(finals)) == 3
    assert all(names(final) == ["config.yaml"] for final in finals)


def test_remains_of_a_process_killed_before_it_had_its_folder_go(tmp_path: Path) -> None:
    for name in ("a", "b"):
        (tmp_path / f".partial.1.{name}").mkdir()
        (tmp_path / f".partial.1.{name}" / "config.yaml").write_text("x")
    with new_run(tmp_path, "a", {}) as folder:
        pass
    assert names(folder.path) == ["config.yaml"]
    assert names(tmp_path) == [".partial.1.b", "a"]  # b may be about to begin


def test_remains_of_a_killed_process_go_when_the_run_is_opened(tmp_path: Path) -> None:
    with new_run(tmp_path, "a", {}) as folder:
        folder.save({"x": 1})
    (folder.path / ".partial.1.checkpoint.pt").write_bytes(b"PK")
    (folder.path / ".partial.1.results").mkdir()
    (folder.path / ".partial.1.results" / "metrics.json").write_text("{")
    assert not folder.complete
    with opened_run(folder.path) as opened:
        assert names(opened.path) == ["checkpoint.pt", "config.yaml"]
        assert opened.load() == {"x": 1}


def test_the_checkpoint_of_a_complete_run_goes(tmp_path: Path) -> None:
    with new_run(tmp_path, "a", {}) as folder:
        folder.save({"x": 1})
        write_results(folder.path)  # and killed before the checkpoint was removed
    with opened_run(folder.path):
        assert names(folder.path) == ["a.npz", "config.yaml", "metrics.json"]


def test_two_processes_do_not_work_on_one_run(tmp_path: Path) -> None:
    with (
        new_run(tmp_path, "a", {}) as folder,
        pytest.raises(UserError, match="found a process at work in"),
        opened_run(folder.path),
    ):
        pytest.fail("the block must not run")
    with opened_run(folder.path):
        pass


@pytest.mark.parametrize("name", ["", ".", "..", "a/b", "/a", ".hidden"])
def test_name_must_be_a_folder_name(tmp_path: Path, name: str) -> None:
    with pytest.raises(UserError, match="the name of a folder"), new_run(tmp_path, name, {}):
        pytest.fail("the block must not run")
    assert list(tmp_path.iterdir()) == []


def test_folder_that_cannot_be_written(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("x")
    with pytest.raises(UserError, match="can be written"), new_run(tmp_path / "file" / "runs", None, {}):
        pytest.fail("the block must not run")
