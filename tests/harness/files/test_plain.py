import json
from pathlib import Path

import pytest

from lip_fast.harness.files.plain import write_json


def test_json_refuses_what_json_does_not_have(tmp_path: Path) -> None:
    write_json(tmp_path / "a.json", {"x": [1.5, None]})
    assert json.loads((tmp_path / "a.json").read_text()) == {"x": [1.5, None]}
    with pytest.raises(ValueError, match="JSON"):
        write_json(tmp_path / "b.json", {"x": float("nan")})
