"""The command line in a terminal: bars that come and go, and Ctrl-C as it is typed."""

import os
import pty
import select
import sys
import termios
import time
from pathlib import Path

import pytest
import yaml
from harness.command_line import environment, interpreter, members

pytestmark = [
    pytest.mark.process,
    pytest.mark.skipif(sys.platform != "linux", reason="opens pseudo-terminals"),
]

SMALL = ["--epochs", "6", "--seeds", "1", "--hidden", "8", "--samples", "200", "--name", "a"]


class Terminal:
    """A command with a pseudo-terminal for all of its streams."""

    def __init__(self, folder: Path, arguments: list[str]) -> None:
        self.master, slave = pty.openpty()
        termios.tcsetwinsize(slave, (40, 120))  # a new one has no columns, and bars no room
        streams = {"terminal": os.ttyname(slave)}
        self.process = interpreter().start(
            "-m", "lip_fast", *arguments, cwd=folder, env=environment(), **streams
        )
        os.close(slave)
        self.text = ""

    def read(self, until: str | None = None, seconds: float = 40) -> str:
        """All that has been written, ``until`` some text, or to the end."""
        limit = time.monotonic() + seconds
        while until is None or until not in self.text:
            ready, _, _ = select.select([self.master], [], [], 0.1)
            try:
                content = os.read(self.master, 65536) if ready else b""
            except OSError:  # the other side is closed
                break
            self.text += content.decode("utf-8", errors="replace")
            assert time.monotonic() < limit, self.text
        return self.text

    def end(self) -> int:
        self.read()
        code = self.process.wait(60)
        os.close(self.master)
        return code


def screen(text: str) -> list[str]:
    """The lines that are left to be seen; of what is written over a line, the last."""
    lines = [""]
    for part in text.replace("\r\n", "\n").replace("\x1b[A", "").split("\n"):
        line = ""
        for piece in part.split("\r"):
            line = piece + line[len(piece) :]
        lines.append(line.rstrip())
    return lines


def test_train_shows_how_far_it_is_and_leaves_the_table(tmp_path: Path) -> None:
    terminal = Terminal(tmp_path, ["train", *SMALL])
    assert terminal.end() == 0
    assert "seed 0: " in terminal.text
    assert "/18 [" in terminal.text
    left = screen(terminal.text)
    assert not any("%|" in line for line in left)
    assert any(line.startswith("plain ") for line in left)
    assert "run folder: runs/a" in left


def test_a_sweep_shows_how_far_it_is_and_ctrl_c_stops_it(tmp_path: Path) -> None:
    settings = {"epochs": 3000, "hidden": [8], "samples": 200, "seeds": 2, "checkpoint_every": 5}
    (tmp_path / "a.yaml").write_text(yaml.safe_dump(settings))
    terminal = Terminal(tmp_path, ["sweep", "a.yaml", "--name", "s", "--jobs", "2"])
    terminal.read(until="plain: ")  # an epoch of a run is on the bar
    os.write(terminal.master, b"\x03")
    assert terminal.end() == 130
    left = [line for line in screen(terminal.text) if line]
    assert "1 rows, 2 runs, 2 to do, 2 at once" in left
    assert left[-1] == "lip-fast sweep: stopped; to continue: lip-fast sweep --resume runs/s"
    assert "Traceback" not in terminal.text
    assert not any("%|" in line for line in left)
    # A process that was told to stop may still be at it.
    end = time.monotonic() + 10
    while members(terminal.process.pid) and time.monotonic() < end:
        time.sleep(0.05)
    assert not members(terminal.process.pid)


def test_ctrl_c_stops_train(tmp_path: Path) -> None:
    terminal = Terminal(tmp_path, ["train", *SMALL, "--epochs", "100000", "--checkpoint-every", "1"])
    terminal.read(until="plain: ")
    os.write(terminal.master, b"\x03")
    assert terminal.end() == 130
    left = [line for line in screen(terminal.text) if line]
    assert left[-1] == "lip-fast train: stopped; to continue: lip-fast train --resume runs/a"
    assert not any("%|" in line for line in left)
    assert "Traceback" not in terminal.text
