from pathlib import Path

import pytest
from distributed.test_faults import wrong_in

pytestmark = pytest.mark.process


def test_every_process_is_told_what_does_not_fit(tmp_path: Path) -> None:
    assert not wrong_in(tmp_path, "distributed.refusals")
