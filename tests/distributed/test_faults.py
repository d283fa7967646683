import json
import os
import signal
import subprocess
import sys
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
from distributed.launch import environment

pytestmark = pytest.mark.process

# Seconds: a scenario takes a tenth of them on two free cores.
_LIMIT = 240


def wrong_in(folder: Path, module: str, *arguments: str) -> list[Any]:
    """What the processes of a scenario found wrong; none of them outlives this."""
    driver = subprocess.Popen(
        [sys.executable, "-m", module, *arguments, str(folder)],
        env=environment(),
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    try:
        _, errors = driver.communicate(timeout=_LIMIT)
    finally:
        with suppress(ProcessLookupError):
            # The driver's forks are of its session, and nothing else is.
            os.killpg(driver.pid, signal.SIGKILL)
    assert driver.returncode == 0, errors[-4000:]
    found = json.loads((folder / "found.json").read_text())
    assert found
    return [problems for problems in found if problems != []]


@pytest.mark.parametrize("scenario", ["raising", "unsound", "unlike", "killed"])
def test_no_process_waits_for_one_that_fails(scenario: str, tmp_path: Path) -> None:
    assert not wrong_in(tmp_path, "distributed.faults", scenario)
