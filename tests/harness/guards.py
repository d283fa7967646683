"""What a reader of files must not do: run code, write, start processes, or take long."""

import os
import signal
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Any

# Events of Python's audit hooks that a reader has no need of.
_FORBIDDEN = (
    *("os.system", "os.exec", "os.fork", "os.forkpty", "os.posix_spawn", "os.spawn", "subprocess.Popen"),
    *("os.mkdir", "os.rmdir", "os.remove", "os.rename", "os.link", "os.symlink", "os.chmod", "os.putenv"),
    *("pickle.find_class", "ctypes.dlopen", "marshal.loads", "code.__new__", "webbrowser.open"),
    *("socket.connect", "socket.bind", "urllib.Request"),
)
_WRITING = os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_APPEND
_seen: list[str] | None = None


class Hanging(BaseException):
    """A reader took too long; no Exception, so that none of its handlers takes it for damage."""


def _audit(event: str, arguments: tuple[Any, ...]) -> None:
    if _seen is None:
        return
    if event == "open":
        path, mode, flags = arguments
        writes = bool(flags & _WRITING) if isinstance(flags, int) else bool(set(mode or "") & set("wax+"))
        if writes:
            _seen.append(f"open {path!r} for writing")
    elif event in _FORBIDDEN:
        _seen.append(f"{event} {arguments!r:.100}")


# Hooks cannot be removed: one for good, which looks only while something is read.
sys.addaudithook(_audit)


@contextmanager
def guarded(seconds: float = 20.0) -> Iterator[None]:
    """Fail where the block does what a reader must not, or is still at it after ``seconds``."""

    def late(number: int, frame: FrameType | None) -> None:
        raise Hanging(f"still reading after {seconds} s")

    global _seen
    previous = signal.signal(signal.SIGALRM, late)
    signal.setitimer(signal.ITIMER_REAL, seconds)
    _seen = events = []
    try:
        yield
    finally:
        _seen = None
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, previous)
    assert not events, events
