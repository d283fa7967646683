"""Ctrl-C before a command could answer it: while it and its modules are imported."""

import subprocess
import sys
from pathlib import Path

import pytest
from harness.command_line import environment

pytestmark = pytest.mark.process

SCRIPT = Path(sys.executable).with_name("lip-fast")
# What a module does when it is imported. Python turns the signal into what was to be heard of it at once.
EVENTS = {
    "an exception": "raise KeyboardInterrupt",
    "Ctrl-C": "import signal; signal.raise_signal(signal.SIGINT)",
    "Ctrl-C that is swallowed": (
        "import signal\ntry: signal.raise_signal(signal.SIGINT)\nexcept: raise ImportError from None"
    ),
}


def run(folder: Path, module: str, event: str, *command: str) -> subprocess.CompletedProcess[str]:
    (folder / f"{module}.py").write_text(EVENTS[event])
    env = environment()
    env["PYTHONPATH"] = f"{folder}:{env['PYTHONPATH']}"
    return subprocess.run(command, capture_output=True, text=True, env=env, cwd=folder, timeout=120)


@pytest.mark.parametrize("event", EVENTS)
@pytest.mark.parametrize(
    "program",
    [
        [sys.executable, "-m", "lip_fast"],
        [sys.executable, "-W", "error", "-m", "lip_fast.harness"],
        pytest.param(
            [str(SCRIPT)], marks=pytest.mark.skipif(not SCRIPT.exists(), reason="lip-fast is not installed")
        ),
    ],
    ids=["-m lip_fast", "-m lip_fast.harness", "lip-fast"],
)
def test_while_torch_is_imported(tmp_path: Path, program: list[str], event: str) -> None:
    process = run(tmp_path, "torch", event, *program, "train")
    assert (process.returncode, process.stdout, process.stderr) == (130, "", "\nlip-fast: stopped\n")


@pytest.mark.parametrize("event", EVENTS)
def test_while_a_command_is_imported(tmp_path: Path, event: str) -> None:
    process = run(tmp_path, "jsonargparse", event, sys.executable, "-m", "lip_fast", "train")
    speaker = "lip-fast train" if event == "an exception" else "lip-fast"
    assert (process.returncode, process.stdout, process.stderr) == (130, "", f"\n{speaker}: stopped\n")


@pytest.mark.parametrize("program", [["-c", "import lip_fast"], ["script.py", "-m", "lip_fast"]])
def test_programs_of_others_answer_it_themselves(tmp_path: Path, program: list[str]) -> None:
    (tmp_path / "script.py").write_text("import lip_fast")
    for event in ("an exception", "Ctrl-C"):
        process = run(tmp_path, "torch", event, sys.executable, *program)
        assert process.returncode in (130, -2)
        assert process.stderr.endswith("KeyboardInterrupt\n")
