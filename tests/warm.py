"""Python processes that need not import torch: forks of one that has, and nothing of ours.

``python("torch")`` stands for an interpreter with these modules, started when first asked and kept: ``run``
takes what comes after ``python`` on a command line, and answers as ``subprocess.run`` does. A fork reads its
variables, paths and warnings as a new process would, and ends as one. What is to be seen of the very start of
Python, or of importing torch, wants a process of its own.

Run as a program (``python tests/warm.py torch``) it reads requests from stdin and answers on stdout, one JSON
object a line. The programs of a request run side by side; where one fails the others are killed.
"""

import atexit
import builtins
import gc
import importlib
import json
import os
import runpy
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import types
import warnings
from collections.abc import Callable
from contextlib import suppress
from functools import cache
from pathlib import Path
from typing import Any

# Where the processes of a group meet: the number of a port, and of the descriptor that listens there.
STORE = "TESTS_STORE"


class Warm:
    """The process to fork, and its pipes."""

    def __init__(self, modules: tuple[str, ...]) -> None:
        one = dict.fromkeys(("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"), "1")
        unset = ("PYTHONPATH", "PYTHONWARNINGS", "TRITON_INTERPRET")
        kept = {name: value for name, value in os.environ.items() if name not in unset}
        self._process = subprocess.Popen(
            [sys.executable, __file__, *modules],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env={**kept, **one, "PYTHONIOENCODING": "utf-8"},
        )
        atexit.register(self._process.__exit__, None, None, None)  # closes the pipes, and waits

    def run(
        self,
        *command: str,
        cwd: Path | str | None = None,
        env: dict[str, str] | None = None,
        timeout: int = 300,
    ) -> "subprocess.CompletedProcess[str]":
        """A program: ``-c code``, ``-m module`` or the path of a file, and its arguments."""
        program = {"command": command, "env": dict(os.environ if env is None else env)}
        return self._answers([program], cwd, timeout)[0]

    def group(
        self, world: int, *command: str, env: dict[str, str], timeout: int = 300
    ) -> list["subprocess.CompletedProcess[str]"]:
        """The same program ``world`` times, with the variables that torchrun sets."""
        ranks = [
            {"RANK": str(i), "LOCAL_RANK": str(i), "WORLD_SIZE": str(world), "LOCAL_WORLD_SIZE": str(world)}
            for i in range(world)
        ]
        return self._answers([{"command": command, "env": env | rank} for rank in ranks], None, timeout)

    def _answers(
        self, programs: list[dict[str, Any]], cwd: Path | str | None, timeout: int
    ) -> list["subprocess.CompletedProcess[str]"]:
        sys.audit("os.fork")  # one that this process asks for
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        request = {"programs": programs, "cwd": str(cwd or Path.cwd()), "timeout": timeout}
        print(json.dumps(request), file=self._process.stdin, flush=True)
        answers = json.loads(self._process.stdout.readline())
        return [
            subprocess.CompletedProcess(program["command"], *answer)
            for program, answer in zip(programs, answers, strict=True)
        ]


@cache
def python(*modules: str) -> Warm:
    """An interpreter that has imported these modules."""
    return Warm(modules)


def serve() -> dict[str, Any]:
    """Answer requests; in a fork, return what it is to run."""
    answers = sys.stdout
    for line in sys.stdin:
        request = json.loads(line)
        files, children = [], []
        with socket.create_server(("127.0.0.1", 0)) as store:
            for program in request["programs"]:
                files.append([tempfile.TemporaryFile("w+") for _ in range(2)])  # noqa: SIM115
                children.append(os.fork())
                if children[-1] == 0:
                    program["env"][STORE] = f"{store.getsockname()[1]}:{store.detach()}"
                    for stream, file in enumerate(files[-1], 1):
                        os.dup2(file.fileno(), stream)
                    os.chdir(request["cwd"])
                    signal.alarm(request["timeout"])
                    return program
        found = []
        for (output, error), code in zip(files, codes(children), strict=True):
            output.seek(0)
            error.seek(0)
            found.append([code, output.read(), error.read()])
            output.close()
            error.close()
        print(json.dumps(found), file=answers, flush=True)
    sys.exit()


def codes(children: list[int]) -> list[int]:
    """What they end with."""
    found: dict[int, int] = {}
    while len(found) < len(children):
        child, status = os.wait()
        found[child] = os.waitstatus_to_exitcode(status)
        if found[child]:
            for other in set(children) - set(found):
                os.kill(other, signal.SIGKILL)
    return [found[child] for child in children]


def become(base: list[str], env: dict[str, str]) -> None:
    """Take variables and paths as a new process does."""
    os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
    os.environ.clear()
    os.environ.update(env)
    sys.path[:] = [*filter(None, env.get("PYTHONPATH", "").split(os.pathsep)), *base]
    importlib.invalidate_caches()
    sys.modules.pop("sitecustomize", None)
    with suppress(ImportError):
        importlib.import_module("sitecustomize")
    take_warnings(list(filter(None, env.get("PYTHONWARNINGS", "").split(","))))


def take_warnings(options: list[str]) -> None:
    for option in options:
        action, _, category = option.partition("::")
        warnings.simplefilter(action, getattr(builtins, category or "Warning"))  # type: ignore[arg-type]


def execute(command: list[str]) -> None:
    """Run it as ``python command`` does."""
    sys.orig_argv = [sys.executable, *command]
    while command[0] == "-W":
        take_warnings([command[1]])
        command = command[2:]
    if command[0] == "-c":
        sys.argv = ["-c", *command[2:]]
        sys.path.insert(0, "")
        main = sys.modules["__main__"] = types.ModuleType("__main__")
        exec(compile(command[1], "<string>", "exec"), main.__dict__)
    elif command[0] == "-m":
        sys.argv = command[1:]
        sys.path.insert(0, os.getcwd())
        runpy.run_module(command[1], run_name="__main__", alter_sys=True)
    else:
        sys.argv = command
        sys.path.insert(0, os.path.dirname(os.path.abspath(command[0])))
        runpy.run_path(command[0], run_name="__main__")


def end(function: Callable[[Any], None], argument: Any) -> None:
    """Call it, and end as Python does, but for taking to pieces what is shared with others."""
    code: Any = 0
    try:
        function(argument)
    except SystemExit as stop:
        code = stop.code or 0
        if not isinstance(code, int):
            print(code, file=sys.stderr)
            code = 1
    except BaseException:
        sys.excepthook(*sys.exc_info())
        code = 1
    threading._shutdown()  # type: ignore[attr-defined]
    atexit._run_exitfuncs()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code & 0xFF)


if __name__ == "__main__":
    for name in sys.argv[1:]:
        importlib.import_module(name)
    elsewhere = sys.path[1:]
    gc.freeze()  # what is shared stays so
    program = serve()
    become(elsewhere, program["env"])
    end(execute, program["command"])
