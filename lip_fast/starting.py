"""Ctrl-C while ``lip-fast`` starts: it imports for seconds before any command could answer.

Only what Python itself has loaded is imported here, so that Ctrl-C is heard from the beginning.
"""

import os
import signal
import sys
from types import FrameType

__all__ = ["INTERRUPTED", "is_program", "listen", "listen_no_more", "stopped"]

INTERRUPTED = 130  # 128 + SIGINT, as shells report it


def is_program() -> bool:
    """Whether this process is ``lip-fast``, and not a program that imports lip_fast."""
    name = os.path.splitext(os.path.basename(sys.argv[0]))[0] if sys.argv else ""
    if name != "-m":
        return name in ("lip-fast", "lip-fast-script")
    after = sys.orig_argv[sys.orig_argv.index("-m") + 1 :] if "-m" in sys.orig_argv else []
    return bool(after) and after[0].partition(".")[0] == "lip_fast"


def listen() -> None:
    """Let Ctrl-C end this process in one line, where it is ``lip-fast``.

    An exception would not do: one that is raised while a module is imported may be taken for a missing
    module, or be printed and forgotten.
    """
    if is_program() and signal.getsignal(signal.SIGINT) is signal.default_int_handler:
        signal.signal(signal.SIGINT, _end)


def listen_no_more() -> None:
    """Let Ctrl-C raise ``KeyboardInterrupt`` again: what starts now cleans up after itself."""
    if signal.getsignal(signal.SIGINT) is _end:
        signal.signal(signal.SIGINT, signal.default_int_handler)


def stopped(speaker: str = "lip-fast", text: str = "stopped") -> int:
    """Say that Ctrl-C has ended a command; returns the exit code."""
    print(f"\n{speaker}: {text}", file=sys.stderr, flush=True)
    return INTERRUPTED


def _end(number: int, frame: FrameType | None) -> None:
    # Not by print, which must not be entered twice.
    os.write(2, b"\nlip-fast: stopped\n")
    os._exit(INTERRUPTED)
