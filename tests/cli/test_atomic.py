import os
from pathlib import Path

import pytest

from lip_fast.cli.atomic import replacing, write_whole

pytestmark = pytest.mark.reliability


@pytest.mark.parametrize("broken", ["fsync", "replace"])
def test_a_file_is_the_old_one_until_the_new_one_is_whole(tmp_path: Path, monkeypatch, broken: str) -> None:
    path = tmp_path / "file"
    path.write_text("old")

    def fail(*arguments: object) -> None:
        raise OSError("no space left")

    monkeypatch.setattr(os, broken, fail)

    def replace() -> None:
        with replacing(path) as temporary:
            temporary.write_text("new, and longer")
            assert path.read_text() == "old"

    with pytest.raises(OSError, match="no space left"):
        replace()
    assert path.read_text() == "old"
    assert [p.name for p in tmp_path.iterdir()] == ["file"]
    monkeypatch.undo()
    with replacing(path) as temporary:
        temporary.write_text("new")
    assert path.read_text() == "new"


def test_content_reaches_the_disk_before_the_name_and_the_name_before_the_return(
    tmp_path: Path, monkeypatch
) -> None:
    calls: list[str] = []
    fsync, replace = os.fsync, os.replace

    def kind(descriptor: int) -> str:
        return "folder" if os.path.isdir(f"/proc/self/fd/{descriptor}") else "file"

    monkeypatch.setattr(os, "fsync", lambda fd: (calls.append(f"fsync {kind(fd)}"), fsync(fd)))
    monkeypatch.setattr(os, "replace", lambda *paths: (calls.append("replace"), replace(*paths)))
    with replacing(tmp_path / "file") as temporary:
        temporary.write_text("x")
    assert calls == ["fsync file", "replace", "fsync folder"]


def test_permissions_stay_and_a_link_stays_a_link(tmp_path: Path) -> None:
    file, link = tmp_path / "file", tmp_path / "link"
    file.write_text("old")
    file.chmod(0o640)
    link.symlink_to(file)
    write_whole(link, "new\r\né\n")
    assert link.is_symlink()
    assert file.read_bytes() == "new\r\né\n".encode()
    assert file.stat().st_mode & 0o777 == 0o640
    write_whole(tmp_path / "bytes", b"\x00")
    assert (tmp_path / "bytes").read_bytes() == b"\x00"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["bytes", "file", "link"]
