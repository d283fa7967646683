"""The command line ``lip-fast``: finds the subcommand and runs it.

Only the standard library is imported here. A subcommand's module is imported when it is asked for, so a
missing extra is one line for the user and ``lip-fast --help`` works without it.
"""

import importlib
import importlib.util
import sys
from collections.abc import Sequence
from dataclasses import dataclass

from lip_fast.cli.errors import UserError, unknown_name
from lip_fast.cli.table import aligned
from lip_fast.cli.version import installed
from lip_fast.starting import listen_no_more, stopped

__all__ = ["COMMANDS", "Command", "main"]

USER_ERROR = 2  # what argparse exits with


@dataclass(frozen=True)
class Command:
    """One subcommand.

    Attributes:
        summary: what ``lip-fast --help`` says of it.
        module: module with ``main(arguments: Sequence[str]) -> int``, which raises ``UserError`` for
            whatever the user can put right.
        extra: the extra of this package that installs ``packages``.
        packages: import names the module needs beyond the core's.
    """

    summary: str
    module: str
    extra: str = ""
    packages: tuple[str, ...] = ()


COMMANDS = {
    "train": Command(
        "train a network on wrong labels: plain, with LIP in the step, each epoch and afterwards",
        "lip_fast.harness.commands.train",
        "harness",
        ("jsonargparse", "matplotlib", "sklearn", "tqdm", "yaml"),
    ),
    "study": Command(
        "study what wrong labels do to a classifier's weight: spectra, subspaces, angles and bounds",
        "lip_fast.harness.commands.study",
        "harness",
        ("jsonargparse", "matplotlib", "scipy", "sklearn", "tqdm", "yaml"),
    ),
    "sweep": Command(
        "run train with many settings and seeds, several at once",
        "lip_fast.harness.commands.sweep",
        "harness",
        ("jsonargparse", "matplotlib", "sklearn", "tqdm", "yaml"),
    ),
    "report": Command(
        "tables, confidence intervals and figures of many runs, as HTML and Markdown",
        "lip_fast.harness.commands.report",
        "harness",
        ("jinja2", "jsonargparse", "matplotlib", "sklearn", "yaml"),
    ),
    "repair": Command(
        "repair the last layer of a saved model from features and noisy labels, without training",
        "lip_fast.harness.commands.repair",
        "harness",
        ("matplotlib", "safetensors"),
    ),
    "bench": Command(
        "time LIP beside what it replaces on this machine, every result checked first",
        "lip_fast.bench.command",
    ),
    "doctor": Command(
        "say what is installed, which backend serves which op and why, and what does not fit together",
        "lip_fast.cli.doctor",
    ),
}


def main(arguments: Sequence[str] | None = None) -> int:
    """Run ``lip-fast`` and return its exit code.

    Args:
        arguments: what follows ``lip-fast``; None for the process's own arguments.

    Returns:
        0 where all went well, 2 where the user can put something right (one line on stderr says what),
        130 after Ctrl-C.
    """
    arguments = list(sys.argv[1:] if arguments is None else arguments)
    speaker = " ".join(["lip-fast", *(word for word in arguments[:1] if word in COMMANDS)])
    try:
        return _run(arguments, speaker)
    except (UserError, OSError) as error:
        # OSError: what no command explains better, as a path that is too long or a device that is gone.
        print(f"{speaker}: {' '.join(str(error).split())}", file=sys.stderr)
        return USER_ERROR
    except KeyboardInterrupt as stop:
        # A command that can be continued raises the interruption with a text that says how.
        return stopped(speaker, *stop.args[:1])


def _run(arguments: list[str], speaker: str) -> int:
    if not arguments or arguments[0] in ("-h", "--help"):
        print(_help())
        return 0
    if arguments[0] in ("-V", "--version"):
        print(f"lip-fast {installed() or '(not installed: run from a source folder)'}")
        return 0
    if arguments[0].startswith("-"):
        raise unknown_name("option", arguments[0], ["--help", "--version"])
    if arguments[0] not in COMMANDS:
        raise unknown_name("subcommand", arguments[0], COMMANDS)
    command = COMMANDS[arguments[0]]
    missing = [name for name in command.packages if not _is_installed(name)]
    if missing:
        print(
            f"{speaker} needs the {command.extra} extra: pip install 'lip-fast[{command.extra}]' "
            f"(missing: {', '.join(missing)})",
            file=sys.stderr,
        )
        return USER_ERROR
    module = importlib.import_module(command.module)
    listen_no_more()
    code: int = module.main(arguments[1:])
    return code


def _is_installed(package: str) -> bool:
    try:
        return importlib.util.find_spec(package) is not None
    except ImportError:
        return False


def _help() -> str:
    lines = [
        "usage: lip-fast [--help] [--version] SUBCOMMAND ...",
        "",
        "LIP inside the optimizer step: classifiers that survive wrong labels.",
        "",
        "subcommands:",
        aligned([(name, command.summary) for name, command in COMMANDS.items()], indent="  "),
        "",
        "lip-fast SUBCOMMAND --help lists what it takes.",
    ]
    return "\n".join(lines)
