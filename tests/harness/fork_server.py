"""Runs ``lip-fast`` in forks of one warm process, and kills them: what is tested is not the start of Python.

Run as a program it reads requests from stdin and answers on stdout, one JSON object a line. A request names
the ``arguments`` of lip-fast and the ``folder`` to run it in, and when to send SIGKILL: after ``seconds``, or
just before the ``operation``-th call that changes the file system, from 0 (a file is half written by then).
The answer has the exit ``code`` (-9 where it was killed), the number of ``operations`` where all were done,
and the ``output``.
"""

import builtins
import gc
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

REPOSITORY = Path(__file__).parents[2]
# Through these go all files but those that libraries write themselves.
OPERATIONS = ("mkdir", "rename", "replace", "rmdir", "unlink", "fsync")


class ForkServer:
    """The process and its pipes; a context manager."""

    def __enter__(self) -> "ForkServer":
        one = dict.fromkeys(("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"), "1")
        path = os.pathsep.join([str(REPOSITORY), os.environ.get("PYTHONPATH", "")])
        self._process = subprocess.Popen(
            [sys.executable, __file__],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env={**os.environ, **one, "PYTHONPATH": path},
        )
        return self

    def __exit__(self, *error: object) -> None:
        self._process.__exit__(None, None, None)  # closes the pipes, and waits

    def run(
        self,
        folder: Path,
        arguments: list[str],
        *,
        seconds: float | None = None,
        operation: int | None = None,
    ) -> dict[str, Any]:
        """Run ``lip-fast`` in a folder, and kill it where that is asked for."""
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        request = {
            "folder": str(folder),
            "arguments": arguments,
            "seconds": seconds,
            "operation": operation,
        }
        print(json.dumps(request), file=self._process.stdin, flush=True)
        answer: dict[str, Any] = json.loads(self._process.stdout.readline())
        return answer


def serve() -> None:
    # Everything that a run imports.
    import pytest
    from listed_figures import list_figures  # a program finds what lies beside it

    from lip_fast.cli import main

    list_figures(pytest.MonkeyPatch())
    with tempfile.TemporaryDirectory() as folder, open(os.devnull, "w") as silence:
        stdout, sys.stdout = sys.stdout, silence
        arguments = ["--epochs", "1", "--seeds", "1", "--hidden", "8", "--out", folder]
        assert main(["train", *arguments]) == 0
        sys.stdout = stdout
    gc.freeze()  # forks share what there is by now
    for line in sys.stdin:
        print(json.dumps(answered(main, json.loads(line))), flush=True)


def answered(main: Callable[[list[str]], int], request: dict[str, Any]) -> dict[str, Any]:
    with tempfile.TemporaryFile("w+") as output, tempfile.TemporaryFile("w+") as count:
        pid = os.fork()
        if pid == 0:
            code = 70
            try:
                os.dup2(output.fileno(), 1)
                os.dup2(output.fileno(), 2)
                os.chdir(request["folder"])
                done = count_operations(request["operation"])
                code = main(request["arguments"])
                print(done(), file=count, flush=True)
                sys.stdout.flush()
            finally:
                os._exit(code)
        status = waited(pid, request["seconds"])
        output.seek(0)
        count.seek(0)
        return {
            "code": os.waitstatus_to_exitcode(status),
            "operations": int(count.read() or -1),
            "output": output.read(),
        }


def waited(pid: int, seconds: float | None) -> int:
    """The status of the process, killed after so many seconds."""
    if seconds is not None:
        end = time.monotonic() + seconds
        while time.monotonic() < end:
            done, status = os.waitpid(pid, os.WNOHANG)
            if done:
                return status
            time.sleep(0.0005)
        os.kill(pid, signal.SIGKILL)
    return os.waitpid(pid, 0)[1]


def count_operations(fatal: int | None) -> Callable[[], int]:
    """Count operations from now on, die before the fatal one, and say how many there were."""
    count = 0

    def step() -> bool:
        nonlocal count
        count += 1
        return count - 1 == fatal

    def counted(function: Callable[..., Any]) -> Callable[..., Any]:
        def call(*arguments: Any, **options: Any) -> Any:
            if step():
                os.kill(os.getpid(), signal.SIGKILL)
            return function(*arguments, **options)

        return call

    def write_bytes(path: Path, content: Any) -> None:
        content = bytes(content)
        with builtins.open(path, "wb") as file:
            if step():
                file.write(content[: len(content) // 2])
                file.flush()
                os.kill(os.getpid(), signal.SIGKILL)
            file.write(content)

    for name in OPERATIONS:
        setattr(os, name, counted(getattr(os, name)))
    Path.write_bytes = write_bytes  # type: ignore[assignment,method-assign]
    return lambda: count


if __name__ == "__main__":
    serve()
