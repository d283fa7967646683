"""What the host may do, by device."""

import pytest
import torch

from lip_fast import host


def test_values_are_read_on_the_host_alone() -> None:
    assert torch.device("cpu").type in host.READABLE
    assert torch.device("cuda").type not in host.READABLE


def test_a_capture_is_asked_for_where_there_can_be_one(monkeypatch: pytest.MonkeyPatch) -> None:
    for answer in (True, False):
        monkeypatch.setattr(torch.cuda, "is_current_stream_capturing", lambda answer=answer: answer)
        assert host.capturing(torch.device("cuda", 0)) is answer
        assert not host.capturing(torch.device("cpu"))
