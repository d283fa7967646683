"""Python processes that need not import torch: forks of one that has, and nothing of ours.

``python("torch")`` stands for an interpreter with these modules, started when first asked and kept: ``run``
takes what comes after ``python`` on a command line, and answers as ``subprocess.run`` does. A fork reads its
variables, paths and warnings as a new process would, and ends as one. What is to be seen of the very start of
Python, or of importing torch, wants a process of its own.

Run as a program (``python tests/warm.py torch``) it reads requests from stdin and answers on stdout, one JSON
object a line.
"""

import atexit
import builtins
import fcntl
import gc
import importlib
import json
import os
import runpy
import signal
import subprocess
import sys
import tempfile
import termios
import threading
import time
import types
import warnings
from collections.abc import Callable
from contextlib import suppress
from functools import cache
from pathlib import Path
from typing import IO, Any


class Running:
    """What was started, as far as ``subprocess.Popen`` is asked for it."""

    def __init__(self, ask: Callable[..., Any], pid: int) -> None:
        self._ask, self.pid = ask, pid
        self.returncode: int | None = None
        self._written = "", ""

    def poll(self) -> int | None:
        return self._ended(block=False)

    def wait(self, timeout: float = 300) -> int:
        end = time.monotonic() + timeout
        while (code := self._ended(block=False)) is None:
            if time.monotonic() > end:
                os.kill(self.pid, signal.SIGKILL)
                raise subprocess.TimeoutExpired(str(self.pid), timeout, *self.communicate())
            time.sleep(0.005)
        return code

    def communicate(self, timeout: float | None = None) -> tuple[str, str]:
        """Without a time: however long it takes, which is no longer than was said at its start."""
        if timeout is None:
            self._ended(block=True)
        else:
            self.wait(timeout)
        return self._written

    def send_signal(self, number: int) -> None:
        if self.poll() is None:
            os.kill(self.pid, number)

    def kill(self) -> None:
        self.send_signal(signal.SIGKILL)

    def _ended(self, block: bool) -> int | None:
        if self.returncode is None and (found := self._ask(ended=self.pid, block=block)) is not None:
            self.returncode, *written = found
            self._written = written[0], written[1]
        return self.returncode


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
        process = self.start(*command, cwd=cwd, env=env, timeout=timeout)
        output, error = process.communicate()
        return subprocess.CompletedProcess(command, process.returncode or 0, output, error)

    def start(
        self,
        *command: str,
        cwd: Path | str | None = None,
        env: dict[str, str] | None = None,
        terminal: str | None = None,
        timeout: int = 300,
    ) -> Running:
        """The same, in a session of its own, and not waited for; ``terminal`` is its only stream, if any."""
        ranks = [dict(os.environ if env is None else env)]
        return self._started(command, cwd=cwd, ranks=ranks, terminal=terminal, timeout=timeout)[0]

    def group(
        self,
        world: int,
        *command: str,
        cwd: Path | str | None = None,
        env: dict[str, str],
        timeout: int = 300,
    ) -> list["subprocess.CompletedProcess[str]"]:
        """The same program ``world`` times, with variables as torchrun sets them; one that fails ends all."""
        import torch.distributed as dist

        # All are its clients, as of torchrun's own. It lives until they have ended.
        store = dist.TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False)
        same = {
            "MASTER_ADDR": "127.0.0.1",
            "MASTER_PORT": str(store.port),
            "TORCHELASTIC_USE_AGENT_STORE": "True",
            "TORCHELASTIC_RESTART_COUNT": "0",
            "TORCHELASTIC_RUN_ID": "none",
            "WORLD_SIZE": str(world),
            "LOCAL_WORLD_SIZE": str(world),
        }
        ranks = [{**env, **same, "RANK": str(i), "LOCAL_RANK": str(i)} for i in range(world)]
        running = self._started(command, cwd=cwd, ranks=ranks, terminal=None, timeout=timeout)
        while None in (codes := [process.poll() for process in running]) and not any(codes):
            time.sleep(0.005)
        if any(process.returncode for process in running):
            time.sleep(0.1)  # the others may have something to say
            for process in running:
                process.send_signal(signal.SIGTERM)
        return [
            subprocess.CompletedProcess(command, process.wait(), *process.communicate())
            for process in running
        ]

    def _started(
        self,
        command: tuple[str, ...],
        *,
        cwd: Path | str | None,
        ranks: list[dict[str, str]],
        terminal: str | None,
        timeout: int,
    ) -> list[Running]:
        sys.audit("os.fork")  # one that this process asks for
        where = {"cwd": str(cwd or Path.cwd()), "terminal": terminal, "timeout": timeout}
        return [Running(self._ask, pid) for pid in self._ask(command=command, ranks=ranks, **where)]

    def _ask(self, **request: Any) -> Any:
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        print(json.dumps(request), file=self._process.stdin, flush=True)
        return json.loads(self._process.stdout.readline())


@cache
def python(*modules: str) -> Warm:
    """An interpreter that has imported these modules."""
    return Warm(modules)


class Children:
    """Those that were forked, what they write, and what they ended with."""

    def __init__(self) -> None:
        self.files: dict[int, list[IO[str]]] = {}
        self.codes: dict[int, int] = {}

    def fork(self, terminal: str | None) -> int:
        """Its number; in a fork 0, with streams and a session of its own."""
        files = [tempfile.TemporaryFile("w+", encoding="utf-8") for _ in range(2)]  # noqa: SIM115
        stdin = os.open(terminal or os.devnull, os.O_RDWR | os.O_NOCTTY)
        child = os.fork()
        if child:
            os.close(stdin)
            self.files[child] = files
            return child
        os.setsid()
        if terminal:
            # For its own, as a shell does for what it starts.
            fcntl.ioctl(stdin, termios.TIOCSCTTY, 0)
            sys.stdout.reconfigure(line_buffering=True)  # type: ignore[union-attr]
        for stream, file in enumerate([stdin, *(stdin if terminal else file.fileno() for file in files)]):
            os.dup2(file, stream)
        return child

    def ended(self, child: int, block: bool) -> list[Any] | None:
        while child not in self.codes:
            pid, status = os.waitpid(-1, 0 if block else os.WNOHANG)
            if pid == 0:
                return None
            self.codes[pid] = os.waitstatus_to_exitcode(status)
        texts = []
        for file in self.files.pop(child):
            with file:
                file.seek(0)
                texts.append(file.read())
        return [self.codes.pop(child), *texts]


def serve() -> dict[str, Any]:
    """Answer requests; in a fork, return what it is to run."""
    children, answers = Children(), sys.stdout
    for line in sys.stdin:
        request = json.loads(line)
        if "ended" in request:
            answer: Any = children.ended(request["ended"], request["block"])
        else:
            answer = []
            for env in request["ranks"]:
                answer.append(children.fork(request["terminal"]))
                if answer[-1] == 0:
                    return {**request, "env": env}
        print(json.dumps(answer), file=answers, flush=True)
    sys.exit()


def become(base: list[str], cwd: str, env: dict[str, str]) -> None:
    """Take variables and paths as a new process does."""
    os.chdir(cwd)
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
    signal.alarm(program["timeout"])
    become(elsewhere, program["cwd"], program["env"])
    end(execute, program["command"])
