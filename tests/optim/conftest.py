"""What the tests of the optimizers report, as those of the contract do; and updates that are fused."""

from collections.abc import Callable
from typing import Any

import pytest
from contract.conftest import weights

from lip_fast import ops

__all__ = ["weights"]


@pytest.fixture
def fused(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """From here on updates are fused; the names of the ops that were called."""
    called: list[str] = []
    monkeypatch.setattr(ops, "fuses_updates", lambda device: True)

    def spied(name: str, op: Callable[..., Any]) -> Callable[..., Any]:
        def spy(*arguments: Any, **options: Any) -> Any:
            called.append(name)
            return op(*arguments, **options)

        return spy

    for name in ("update_one_read_", "update_sketch_", "update_project", "update_rebuild_"):
        monkeypatch.setattr(ops, name, spied(name, getattr(ops, name)))
    return called
